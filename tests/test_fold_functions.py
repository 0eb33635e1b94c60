"""Functions spelled out in several nodes: one operator where the operator set has it, one unit where not."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
from builders import Net, random_feeds, run

WIDTH = 12


def folded(model: onnx.ModelProto, tolerance: float = 1e-5) -> Counter[str]:
    """Operators left by folding, which must not change the outputs."""
    result = onnx.load_model_from_string(rustq.fold(model).to_bytes())
    onnx.checker.check_model(result, full_check=True)
    for feed in random_feeds(model):
        for expected, found in zip(run(model, feed), run(result, feed), strict=True):
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    return Counter(node.op_type for node in result.graph.node)


def layer_norm(net: Net, x: str, form: str, opset: int, width: int = WIDTH) -> str:
    def mean(value: str) -> str:
        axes = [2] if "positive" in form else [-1]
        if opset >= 18:
            return net.op("ReduceMean", value, net.constant(axes, dtype=np.int64))
        return net.op("ReduceMean", value, axes=axes)

    centred = net.op("Sub", x, mean(x))
    if "product" in form:
        square = net.op("Mul", centred, centred)
    else:
        square = net.op("Pow", centred, net.constant(2.0))
    epsilon = [net.constant(1e-5), mean(square)]
    root = net.op("Sqrt", net.op("Add", *epsilon[:: -1 if "swapped" in form else 1]))
    y = net.op("Div", centred, root)
    if "bare" in form:
        return y
    scale = [y, net.weight(width)]
    y = net.op("Mul", *scale[:: -1 if "swapped" in form else 1])
    return y if "no bias" in form else net.op("Add", y, net.weight(width))


def gelu(net: Net, x: str, form: str) -> str:
    half, one = net.constant(0.5), net.constant(1.0)
    if "tanh" in form:
        if "product" in form:
            cube = net.op("Mul", net.op("Mul", x, x), x)
        else:
            cube = net.op("Pow", x, net.constant(3.0))
        if "scaled" in form:  # ((k · x) · x) · x
            term = net.op("Mul", net.constant(0.044715), x)
            term = net.op("Mul", x, net.op("Mul", x, term))
        else:
            term = net.op("Mul", net.constant(0.044715), cube)
        inner = net.op("Add", x, term)
        f = net.op("Tanh", net.op("Mul", inner, net.constant(np.sqrt(2 / np.pi))))
    elif "product" in form:
        f = net.op("Erf", net.op("Mul", x, net.constant(np.sqrt(0.5))))
    else:
        f = net.op("Erf", net.op("Div", x, net.constant(np.sqrt(2))))
    f = net.op("Add", f, one)
    if "late" in form:
        return net.op("Mul", net.op("Mul", x, f), half)
    if "early" in form:
        return net.op("Mul", net.op("Mul", x, half), f)
    return net.op("Mul", x, net.op("Mul", f, half))


NORMS = ("plain", "positive", "product", "swapped", "no bias")
GELUS = [f"{f} {order} {form}" for f in ("erf", "tanh") for order in ("late", "early", "inner")
         for form in ("", "product")] + ["tanh early scaled", "tanh inner scaled"]  # fmt: skip


@pytest.mark.parametrize("form", NORMS)
@pytest.mark.parametrize("opset", [13, 17, 18])
def test_layer_norm(form: str, opset: int) -> None:
    net = Net()
    y = layer_norm(net, net.input("x", 2, 5, WIDTH), form, opset)
    left = folded(net.model(net.op("Relu", y), opset=opset))
    if opset >= 17:
        assert left == {"LayerNormalization": 1, "Relu": 1}
    else:
        assert left["Sqrt"] == 1


def test_layer_norm_over_two_axes() -> None:
    net = Net()
    x = net.input("x", 2, 5, WIDTH)
    centred = net.op("Sub", x, net.op("ReduceMean", x, axes=[-1, 1]))
    square = net.op("ReduceMean", net.op("Mul", centred, centred), axes=[1, 2])
    root = net.op("Sqrt", net.op("Add", square, net.constant(1e-6)))
    y = net.op("Mul", net.op("Div", centred, root), net.weight(5, WIDTH))
    assert folded(net.model(y)) == {"LayerNormalization": 1}


def several_rows(net: Net) -> str:
    return net.op("Mul", layer_norm(net, net.input("x", 2, 5, WIDTH), "bare", 17), net.weight(5, 1))


def unknown_width(net: Net) -> str:
    return layer_norm(net, net.input("x", 2, 5, "n"), "plain", 17, width=1)


def other_axis(net: Net) -> str:
    x = net.input("x", 2, 5, WIDTH)
    centred = net.op("Sub", x, net.op("ReduceMean", x, axes=[-1]))
    square = net.op("ReduceMean", net.op("Mul", centred, centred), axes=[1])
    root = net.op("Sqrt", net.op("Add", square, net.constant(1e-6)))
    return net.op("Mul", net.op("Div", centred, root), net.weight(WIDTH))


@pytest.mark.parametrize("build", [several_rows, unknown_width, other_axis])
def test_what_is_no_layer_norm(build: Any) -> None:
    net = Net()
    assert folded(net.model(build(net)))["LayerNormalization"] == 0


def test_a_part_that_is_read_elsewhere_keeps_the_spelling() -> None:
    net = Net()
    y = layer_norm(net, net.input("x", 2, 5, WIDTH), "plain", 17)
    root = next(node.output[0] for node in net.nodes if node.op_type == "Sqrt")
    assert folded(net.model(y, net.op("Relu", root)))["LayerNormalization"] == 0


@pytest.mark.parametrize("form", GELUS)
@pytest.mark.parametrize("opset", [13, 20])
def test_gelu(form: str, opset: int) -> None:
    net = Net()
    y = gelu(net, net.input("x", 2, 5, WIDTH), form)
    left = folded(net.model(net.op("Relu", y), opset=opset))
    assert left["Gelu"] == (opset >= 20)
    assert left["Erf"] + left["Tanh"] == (opset < 20)


def test_other_constants_are_no_gelu() -> None:
    net = Net()
    x = net.input("x", 2, WIDTH)
    f = net.op("Add", net.op("Erf", net.op("Div", x, net.constant(1.5))), net.constant(1.0))
    y = net.op("Mul", net.op("Mul", x, f), net.constant(0.5))
    assert folded(net.model(y, opset=20))["Gelu"] == 0


@pytest.mark.parametrize("form", ["plain", "erf late", "tanh early"])
def test_nothing_is_folded_out_of_a_function(form: str) -> None:
    """ONNX Runtime has one kernel for the whole, if the whole is there."""
    net = Net()
    x = net.input("x", 2, 5, WIDTH)
    y = layer_norm(net, x, form, 13) if form == "plain" else gelu(net, x, form)
    before = Counter(node.op_type for node in net.nodes)
    product = net.op("MatMul", y, net.weight(WIDTH, 6, fan_in=WIDTH))
    assert folded(net.model(product, opset=13)) == before + Counter(MatMul=1)


@pytest.mark.parametrize("form", ["plain", "erf late", "tanh early"])
def test_nothing_in_a_function_is_quantized(form: str) -> None:
    net = Net()
    x = net.op("MatMul", net.input("x", 2, 64, 256), net.weight(256, 256, fan_in=256))
    start = len(net.nodes)
    y = layer_norm(net, x, form, 13, width=256) if form == "plain" else gelu(net, x, form)
    inside = {out for node in net.nodes[start:] for out in node.output} - {y}
    y = net.op("MatMul", y, net.weight(256, 256, fan_in=256))
    model = net.model(y, opset=13)
    result = rustq.quantize(
        model, random_feeds(model, 8), config=rustq.QuantConfig(noise_price=0.0)
    )
    quantized = onnx.load_model_from_string(result.to_bytes())
    read = {
        name
        for node in quantized.graph.node
        if node.op_type == "QuantizeLinear"
        for name in node.input
    }
    assert not read & inside
    assert sum(node.op_type == "QuantizeLinear" for node in quantized.graph.node) >= 1


def test_hard_swish_runs_in_int8() -> None:
    net = Net()
    y = net.conv(net.input("x", 2, 16, 16, 16), 16, 32)
    y = net.conv(net.op("HardSwish", y), 32, 32)
    model = net.model(y)
    result = rustq.quantize(
        model, random_feeds(model, 8), config=rustq.QuantConfig(noise_price=0.0)
    )
    left = Counter(
        node.op_type for node in onnx.load_model_from_string(result.to_bytes()).graph.node
    )
    assert left["HardSwish"] == 0 and left["Mul"] == 1
    assert np.isfinite(run(result, random_feeds(model)[0])[0]).all()


def test_silu_is_all_int8_or_all_float() -> None:
    net = Net()
    y = net.conv(net.input("x", 2, 16, 16, 16), 16, 32)
    y = net.conv(net.op("Mul", y, net.op("Sigmoid", y)), 32, 32)
    model = net.model(y)
    for price in (0.0, 3.0, 1e6):
        result = rustq.quantize(
            model, random_feeds(model, 8), config=rustq.QuantConfig(noise_price=price)
        )
        types = {
            layer.op_type: layer.quantized
            for layer in result.report.layers
            if layer.op_type in {"Sigmoid", "Mul"}
        }
        assert len(set(types.values())) <= 1
