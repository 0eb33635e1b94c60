"""BatchNormalization that no weights could take up: between the layers of a DenseNet it is quantized all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import rustq
from builders import Net, random_feeds, run, session, sqnr

DEEP = 128


def dense_net() -> onnx.ModelProto:
    """Two layers that read what is concatenated so far, each through a BatchNormalization of its own."""
    net = Net()
    x, channels = net.op("Relu", net.conv(net.input("x", 1, 3, 28, 28), 3, DEEP)), DEEP
    for _ in range(2):
        y = net.op("Relu", net.batch_norm(x, channels))
        y = net.conv(net.op("Relu", net.conv(y, channels, DEEP, 1)), DEEP, 32)
        x = net.op("Concat", x, y, axis=1)
        channels += 32
    pooled = net.op("Flatten", net.op("GlobalAveragePool", net.conv(x, channels, DEEP, 1)))
    return net.model(net.linear(pooled, DEEP, 5))


def norms(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type == "BatchNormalization"]


def test_folding_leaves_them() -> None:
    model = dense_net()
    declined = [record.node for record in rustq.fold(model).folding if record.declined]
    assert set(declined) >= set(norms(model))


@pytest.mark.parametrize("scheme", ["asym", "sym"])
def test_between_the_layers_of_a_dense_block(scheme: str, tmp_path: Path) -> None:
    model = dense_net()
    feeds = random_feeds(model, 8, batch=1)
    config = rustq.QuantConfig(noise_price=0)
    result = rustq.quantize(model, feeds, scheme=scheme, config=config)
    quantized = {layer.name for layer in result.report.layers if layer.quantized}
    assert quantized >= set(norms(model))
    optimized = tmp_path / "optimized.onnx"
    session(result, optimized=optimized)
    ops = [node.op_type for node in onnx.load(optimized).graph.node]
    assert ops.count("QLinearConv") >= 7
    assert not {"BatchNormalization", "Relu"}.intersection(ops)
    assert sqnr(run(model, feeds[0])[0], run(result, feeds[0])[0]) > 20


def test_where_int8_is_not_worth_it_they_stay() -> None:
    model = dense_net()
    feeds = random_feeds(model, 2, batch=1)
    config = rustq.QuantConfig(exclude=norms(model))
    result = rustq.quantize(model, feeds, config=config)
    assert norms(result.to_onnx()) == norms(model)
    result = rustq.quantize(model, feeds, config=rustq.QuantConfig(exclude=["*"]))
    assert norms(result.to_onnx()) == norms(model)
    expected, found = run(model, feeds[0])[0], run(result, feeds[0])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_of_matrices_it_stays() -> None:
    """A convolution needs a feature map."""
    net = Net()
    x = net.op("Sigmoid", net.linear(net.input("x", 4, 6), 6, 6))
    model = net.model(net.op("Sigmoid", net.batch_norm(x, 6)))
    config = rustq.QuantConfig(noise_price=0)
    result = rustq.quantize(model, random_feeds(model, 2), config=config)
    assert len(norms(result.to_onnx())) == 1
