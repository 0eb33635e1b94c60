"""Models whose operators are calls of functions of their own."""

import numpy as np
import onnx
import pytest
import rustq
from builders import Net, run
from onnx import helper


def with_function() -> onnx.ModelProto:
    """A convolution and its activation, called as a function of the model."""
    net = Net()
    x = net.input("x", 1, 8, 16, 16)
    weight = net.weight(32, 8, 3, 3, fan_in=72)
    net_model = net.model(net.op("Conv", net.op("Conv", x, weight), net.weight(32, 32, 3, 3)))
    opsets = list(net_model.opset_import)
    block = helper.make_function(
        "local",
        "Block",
        ["a", "w"],
        ["b"],
        [helper.make_node("Conv", ["a", "w"], ["c"]), helper.make_node("Relu", ["c"], ["b"])],
        opsets,
    )
    net_model.functions.append(block)
    for node in net_model.graph.node:
        node.op_type, node.domain = "Block", "local"
    net_model.opset_import.append(helper.make_opsetid("local", 1))
    return net_model


@pytest.mark.parametrize("scheme", ["asym", "sym"])
def test_functions_are_looked_into(scheme: str) -> None:
    model = with_function()
    data = [np.random.default_rng(i).normal(size=(1, 8, 16, 16)).astype("f") for i in range(4)]
    result = rustq.quantize(model, data, scheme=scheme)
    onnx.checker.check_model(result.to_onnx(), full_check=True)
    assert any(layer.quantized and layer.op_type == "Conv" for layer in result.report.layers)
    for x in data:
        wanted, found = run(model, {"x": x})[0], run(result, {"x": x})[0]
        assert np.square(wanted - found).mean() < 0.01 * np.square(wanted).mean()


def test_folding_alone_keeps_functions() -> None:
    model = with_function()
    assert [f.name for f in rustq.fold(model).to_onnx().functions] == ["Block"]
