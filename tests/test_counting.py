"""The share of the multiply-accumulates in int8, with layers that calibration says nothing about."""

from __future__ import annotations

import numpy as np
import pytest
import rustq
from builders import Net
from onnx import helper
from rustq import counting

EVERYTHING = rustq.QuantConfig(noise_price=0)


@pytest.mark.parametrize("batch", [1, "N", -1])
def test_transposed_convolutions_are_counted(batch: int | str) -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", batch, 32, 16, 16), 32, 64))
    weight = net.weight(64, 16, 2, 2, fan_in=64)
    y = net.op("ConvTranspose", x, weight, name="up", strides=[2, 2])
    feeds = [np.random.default_rng(0).normal(size=(1, 32, 16, 16)).astype(np.float32)] * 2
    report = rustq.quantize(net.model(y), feeds, config=EVERYTHING).report
    macs = {layer.op_type: layer.macs for layer in report.layers if layer.macs}
    assert macs == {"Conv": 64 * 16 * 16 * 32 * 9, "ConvTranspose": 64 * 16 * 16 * 16 * 4}
    share = 100 * macs["Conv"] / sum(macs.values())
    assert f"({share:.1f} % of the multiply-accumulates)" in report.summary()


def test_recurrent_layers_and_products_of_activations() -> None:
    net, width, steps = Net(), 32, 62
    x = net.op("Relu", net.op("Conv", net.input("sound", "N", 16, 64),
               net.weight(width, 16, 3, fan_in=48)))  # fmt: skip
    x = net.op("Transpose", x, perm=[2, 0, 1])
    sizes = ((1, 4 * width, width), (1, 4 * width, width))
    weights = [net.weight(*size, fan_in=width) for size in sizes]
    lstm = helper.make_node("LSTM", [x, *weights], ["y"], name="lstm", hidden_size=width)
    net.nodes.append(lstm)
    y = net.op("Squeeze", "y", net.constant([1], dtype=np.int64))
    y = net.op("MatMul", y, net.op("Transpose", y, perm=[0, 2, 1]), name="products")
    feeds = [np.random.default_rng(0).normal(size=(2, 16, 64)).astype(np.float32)] * 2
    report = rustq.quantize(net.model(y), feeds, config=EVERYTHING).report
    macs = {layer.name: layer.macs for layer in report.layers}
    assert macs["products"] == 0
    assert macs["lstm"] == 2 * steps * 2 * 4 * width * width


def test_an_unknown_size_leaves_the_share_open() -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", 1, 32, 16, 16), 32, 64))
    sizes = net.input("sizes", 4, dtype=np.int64)
    y = net.op("ConvTranspose", net.op("Reshape", x, sizes), net.weight(64, 8, 2, 2), name="up")
    feed = {
        "x": np.random.default_rng(0).normal(size=(1, 32, 16, 16)).astype(np.float32),
        "sizes": np.array([1, 64, 32, 8]),
    }
    report = rustq.quantize(net.model(y), [feed], config=EVERYTHING).report
    assert {layer.name: layer.macs for layer in report.layers}["up"] is None
    assert "multiply-accumulates" not in report.summary()


def test_nothing_is_inferred_without_a_count_to_scale_by(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    x = net.op("MatMul", net.input("x", "N", 8, 32), net.weight(32, 32, fan_in=32), name="weights")
    y = net.op("MatMul", x, net.op("Transpose", x, perm=[0, 2, 1]), name="products")
    monkeypatch.delattr(counting, "_described")
    for config in (None, rustq.QuantConfig(weights="int4")):
        report = rustq.quantize(net.model(y), config=config).report
        assert {layer.name: layer.macs for layer in report.layers} == {
            "weights": None,
            "products": 0,
        }
