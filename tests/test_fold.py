"""Folding: what becomes part of the weights, what must stay, and that neither changes a result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
from builders import Array, Net, random_feeds, run
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

LINEAR_CHAIN = {"BatchNormalization", "Mul", "Div", "Add", "Sub"}


def op_types(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def close(expected: Array, found: Array, tolerance: float = 2e-5) -> None:
    assert expected.shape == found.shape
    assert expected.dtype == found.dtype
    scale = float(np.abs(expected).max()) or 1.0
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def folded(model: onnx.ModelProto, tolerance: float = 2e-5, feeds: Any = None) -> onnx.ModelProto:
    """The folded model, once it is sure that it is valid and computes the same."""
    result = rustq.fold(model).to_onnx()
    onnx.checker.check_model(result, full_check=True)
    assert [(v.name, v.type) for v in result.graph.input] == [
        (v.name, v.type) for v in model.graph.input
    ]
    assert list(result.graph.output) == list(model.graph.output)
    for feed in feeds or random_feeds(model, 2):
        for expected, found in zip(run(model, feed), run(result, feed), strict=True):
            close(expected, found, tolerance)
    return result


# ---------------------------------------------------------------------- linear operators
def conv(*shape: int, spatial: tuple[int, ...], bias: bool = True, **attributes: Any) -> Any:
    """A Conv with weights of this shape, or a ConvTranspose, and the number of output channels."""
    op_type = attributes.pop("op_type", "Conv")
    group = attributes.get("group", 1)
    if op_type == "Conv":
        inputs, outputs = shape[1] * group, shape[0]
    else:
        inputs, outputs = shape[0], shape[1] * group

    def build(net: Net) -> tuple[str, int]:
        x = net.input("x", 2, inputs, *spatial)
        weights = [net.weight(*shape, fan_in=8)] + ([net.weight(outputs)] if bias else [])
        return net.op(op_type, x, *weights, **attributes), outputs

    return build


def gemm(bias: tuple[int, ...] | None = (6,), **attributes: Any) -> Any:
    def build(net: Net) -> tuple[str, int]:
        x = net.input("x", *((5, 4) if attributes.get("transA") else (4, 5)))
        weight = net.weight(*((6, 5) if attributes.get("transB") else (5, 6)))
        return net.op(
            "Gemm", x, weight, *([] if bias is None else [net.weight(*bias)]), **attributes
        ), 6

    return build


def matmul(*lead: int | str) -> Any:
    def build(net: Net) -> tuple[str, int]:
        return net.op("MatMul", net.input("x", *lead, 5), net.weight(5, 6)), 6

    return build


CONVOLUTIONS = {
    "conv1d": conv(6, 4, 3, spatial=(9,)),
    "conv2d": conv(6, 4, 3, 3, spatial=(7, 8), pads=[1, 1, 1, 1]),
    "conv3d": conv(6, 4, 3, 2, 1, spatial=(5, 4, 3)),
    "no bias": conv(6, 4, 3, 3, spatial=(7, 8), bias=False),
    "grouped": conv(6, 2, 3, 3, spatial=(7, 8), group=3),
    "depthwise": conv(6, 1, 3, 3, spatial=(7, 8), group=6, strides=[2, 1], pads=[1, 0, 1, 0]),
    "depthwise multiplier 2": conv(8, 1, 3, 3, spatial=(7, 8), group=4, dilations=[1, 2]),
    "one channel": conv(1, 3, 3, 3, spatial=(7, 8)),
    "transposed": conv(4, 6, 3, 3, spatial=(4, 5), op_type="ConvTranspose", strides=[2, 2]),
    "transposed grouped": conv(6, 2, 3, 3, spatial=(4, 5), op_type="ConvTranspose", group=3),
    "transposed 1d": conv(4, 6, 3, spatial=(5,), bias=False, op_type="ConvTranspose"),
}
MATRICES = {
    "gemm": gemm(),
    "gemm no bias": gemm(None),
    "gemm row bias": gemm((1, 6)),
    "gemm one bias": gemm((1,)),
    "gemm scalar bias": gemm(()),
    "gemm alpha beta": gemm(alpha=0.5, beta=3.0),
    "gemm transB": gemm(transB=1),
    "gemm transA": gemm(transA=1),
    "gemm all": gemm(transA=1, transB=1, alpha=2.0, beta=0.25),
    "matmul": matmul(4),
}
LINEARS = CONVOLUTIONS | MATRICES


def linear(name: str) -> tuple[Net, str, int, int]:
    """A net with one linear operator: its output, channels and number of dimensions behind them."""
    net = Net(seed=len(name))
    y, channels = LINEARS[name](net)
    behind = len(net.inputs[0].type.tensor_type.shape.dim) - 2 if name in CONVOLUTIONS else 0
    return net, y, channels, behind


@pytest.mark.parametrize("name", LINEARS)
def test_batch_norm_behind(name: str) -> None:
    net, y, channels, _ = linear(name)
    model = net.model(net.batch_norm(y, channels, epsilon=1e-3))
    result = folded(model)
    assert len(result.graph.node) == 1
    assert len(result.graph.initializer) == 2


@pytest.mark.parametrize("name", LINEARS)
def test_chain_behind(name: str) -> None:
    """((y * c + c) / s - c) * s, then c - y: scalars and a constant per channel in turn."""
    net, y, channels, behind = linear(name)
    per_channel = (channels, *[1] * behind)
    y = net.op("Mul", y, net.weight(*per_channel))
    y = net.op("Add", net.weight(*per_channel), y)
    y = net.op("Div", y, net.constant(0.7))
    y = net.op("Sub", y, net.weight(*per_channel))
    y = net.op("Mul", net.constant([1.3]), y)
    y = net.op("Sub", net.weight(*per_channel), y)
    y = net.op("Div", y, net.constant(np.linspace(0.5, 2, channels).reshape(per_channel)))
    result = folded(net.model(y))
    assert len(result.graph.node) == 1


@pytest.mark.parametrize("shape", ["c11", "1c11", "11", "1", ""])
def test_shapes_of_constants_behind_a_conv(shape: str) -> None:
    net, y, channels, _ = linear("conv2d")
    dims = [channels if letter == "c" else 1 for letter in shape]
    result = folded(net.model(net.op("Mul", y, net.weight(*dims))))
    assert op_types(result) == {"Conv": 1}


@pytest.mark.parametrize("lead", [(4,), (2, 3), ("n", 3), (2, "t", 3)])
def test_scale_behind_a_matmul_of_any_rank(lead: tuple[int | str, ...]) -> None:
    net = Net()
    y, channels = matmul(*lead)(net)
    y = net.op("Mul", y, net.weight(channels))
    assert op_types(folded(net.model(net.op("Div", y, net.constant(3.0))))) == {"MatMul": 1}


def test_bias_behind_a_matmul_of_higher_rank_stays() -> None:
    net = Net()
    y, channels = matmul(2, 3)(net)
    result = folded(net.model(net.op("Add", y, net.weight(channels))))
    assert op_types(result) == {"MatMul": 1, "Add": 1}


# ---------------------------------------------------------------------- in front
@pytest.mark.parametrize(
    "name",
    [
        "conv1d", "conv2d", "conv3d", "no bias", "grouped", "depthwise", "depthwise multiplier 2",
        "transposed", "transposed grouped", "gemm", "gemm no bias", "gemm transB", "gemm all", "matmul",
    ],
)  # fmt: skip
@pytest.mark.parametrize("what", ["scale", "shift", "both", "batch norm"])
def test_in_front(name: str, what: str) -> None:
    net, y, _, behind = linear(name)
    info = net.inputs[0].type.tensor_type.shape.dim
    channels = info[1].dim_value
    shape = (channels, *[1] * behind)
    (operator,) = net.nodes
    net.nodes, x = [], "x"
    if what == "batch norm":
        x = net.batch_norm(x, channels)
    if what in ("scale", "both"):
        x = net.op("Mul", x, net.weight(*shape))
    if what in ("shift", "both"):
        x = net.op("Sub", x, net.weight(*shape))
    operator.input[0] = x
    net.nodes.append(operator)
    result = folded(net.model(y))
    attributes = {a.name: helper.get_attribute_value(a) for a in operator.attribute}
    padded = any(attributes.get("pads", ())) or operator.op_type == "ConvTranspose"
    if what == "scale" and not attributes.get("transA"):
        assert len(result.graph.node) == 1
    if padded and what != "scale":
        assert len(result.graph.node) > 1
    if not padded and name in CONVOLUTIONS:
        assert len(result.graph.node) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_scale_moves_past_a_shift(dtype: Any) -> None:
    """x * a + b before a padded Conv: (x + b / a), and a goes into the weights."""
    net = Net()
    x = net.input("x", 1, 3, 6, 6, dtype=dtype)
    x = net.op("Mul", x, net.constant(1 / 127.5, dtype=dtype))
    x = net.op("Add", x, net.constant(-1.0, dtype=dtype))
    y = net.op("Conv", x, net.weight(4, 3, 3, 3, dtype=dtype), pads=[1] * 4)
    result = folded(net.model(y), 1e-2 if dtype is np.float16 else 2e-5)
    assert op_types(result) == {"Add": 1, "Conv": 1}


# ---------------------------------------------------------------------- other number formats
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float16, 5e-3), (np.float32, 1e-6), (np.float64, 1e-13)]
)
@pytest.mark.parametrize("front", [False, True])
def test_other_floats(dtype: Any, tolerance: float, front: bool) -> None:
    net = Net()
    y = net.input("x", 3, 4, dtype=dtype)
    weights = [net.weight(4, 6, fan_in=4, dtype=dtype), net.weight(6, dtype=dtype)]
    if front:
        y = net.op("Sub", net.op("Mul", y, net.weight(4, dtype=dtype)), net.weight(4, dtype=dtype))
    y = net.op("Gemm", y, *weights)
    if not front:
        y = net.op("Div", y, net.constant(np.linspace(2, 3, 6), dtype=dtype))
        y = net.op("Add", y, net.weight(6, dtype=dtype))
    result = folded(net.model(y), tolerance)
    assert op_types(result) == {"Gemm": 1}
    assert all(numpy_helper.to_array(t).dtype == dtype for t in result.graph.initializer)


def test_float16_overflow_declines() -> None:
    """Weights of 1000 and a factor of 1000 do not fit into float16."""
    net = Net()
    x = net.input("x", 1, 2, 3, 3, dtype=np.float16)
    y = net.op("Conv", x, net.constant(np.full((2, 2, 1, 1), 1000), dtype=np.float16))
    model = net.model(net.op("Mul", y, net.constant(1000.0, dtype=np.float16)))
    small = {"x": np.full((1, 2, 3, 3), 1e-3, np.float16)}
    folded(model, 1e-2, [small])


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 14, 15, 17, 21])
def test_every_opset(opset: int) -> None:
    net = Net()
    x = net.input("x", "n", 4, 6, 6)
    y = net.batch_norm(net.conv(x, 4, 6), 6)
    assert op_types(folded(net.model(net.op("Relu", y), opset=opset))) == {"Conv": 1, "Relu": 1}


# ---------------------------------------------------------------------- activations
def spelled_hard_sigmoid(net: Net, x: str, form: str, y: str = "") -> str:
    """clip(x + 3, 0, 6) / 6, times y if there is one, in one of the ways exporters write it."""
    add = ("Add", net.constant(3.0), x) if "swapped" in form else ("Add", x, net.constant(3.0))
    gate = net.op("Clip", net.op(*add), net.constant(0.0), net.constant(6.0))

    def sixth(value: str) -> str:
        if "times" in form:
            return net.op("Mul", value, net.constant(1 / 6))
        return net.op("Div", value, net.constant(6.0))

    if not y:
        return sixth(gate)
    if "late" in form:
        return sixth(net.op("Mul", y, gate))
    return net.op("Mul", sixth(gate), y)


@pytest.mark.parametrize("opset", [13, 14])
@pytest.mark.parametrize("form", ["div", "times", "swapped div", "late div", "late times"])
def test_hard_swish_spellings(form: str, opset: int) -> None:
    net = Net()
    x = net.op("Relu", net.input("x", 2, 4, 5, 5))
    x = net.op("Sub", x, net.op("Sigmoid", x))
    result = folded(net.model(spelled_hard_sigmoid(net, x, form, x), opset=opset))
    product = {"HardSwish": 1} if opset >= 14 else {"HardSigmoid": 1, "Mul": 1}
    assert op_types(result) == {"Relu": 1, "Sigmoid": 1, "Sub": 1, **product}


@pytest.mark.parametrize("form", ["div", "times", "late div"])
def test_gate_of_a_squeeze_and_excitation_block(form: str) -> None:
    net = Net()
    x = net.input("x", 2, 4, 5, 5)
    gate = net.conv(net.op("GlobalAveragePool", x), 4, 4, 1)
    result = folded(net.model(spelled_hard_sigmoid(net, gate, form, x)))
    assert op_types(result) == {"GlobalAveragePool": 1, "Conv": 1, "HardSigmoid": 1, "Mul": 1}


@pytest.mark.parametrize(
    ("low", "high", "shift", "divisor"), [(0, 6, 3, 5), (0, 5, 3, 6), (-1, 6, 3, 6), (0, 6, 2, 6)]
)
def test_what_is_no_hard_sigmoid(low: float, high: float, shift: float, divisor: float) -> None:
    net = Net()
    y = net.op("Add", net.input("x", 2, 4), net.constant(shift))
    y = net.op("Clip", y, net.constant(low), net.constant(high))
    result = folded(net.model(net.op("Div", y, net.constant(divisor))))
    assert "HardSigmoid" not in op_types(result)


def test_hard_sigmoid_whose_parts_are_read_elsewhere() -> None:
    net = Net()
    x = net.input("x", 2, 4)
    added = net.op("Add", x, net.constant(3.0))
    clipped = net.op("Clip", added, net.constant(0.0), net.constant(6.0))
    folded(net.model(net.op("Div", clipped, net.constant(6.0)), added))
    folded(net.model(net.op("Div", clipped, net.constant(6.0)), clipped))


# ---------------------------------------------------------------------- constants and no-ops
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("value", helper.make_tensor("v", 1, [1], [0.5])),
        ("value_float", 0.5),
        ("value_floats", [0.5, 1.5]),
        ("value_int", 2),
        ("value_ints", [2, 3]),
    ],
)
def test_constant_nodes(name: str, value: Any) -> None:
    net = Net()
    x = net.input("x", 3, 2)
    constant = net.op("Constant", **{name: value})
    if "int" in name:
        constant = net.op("Cast", constant, to=1)
    result = folded(net.model(net.op("Add", x, constant)))
    assert "Constant" not in op_types(result)


def test_constant_weights_are_folded() -> None:
    net = Net()
    x = net.input("x", 1, 3, 5, 5)
    weight = numpy_helper.from_array(net.random.normal(size=(4, 3, 3, 3)).astype(np.float32), "v")
    y = net.op("Conv", x, net.op("Constant", value=weight))
    assert op_types(folded(net.model(net.batch_norm(y, 4)))) == {"Conv": 1}


def test_constant_that_is_an_output_or_captured() -> None:
    net = Net()
    net.input("x", 2)
    value = net.op("Constant", value_floats=[1.0, 2.0])
    captured = net.op("Constant", value_floats=[3.0, 4.0])
    body = [helper.make_graph([helper.make_node("Add", ["x", captured], [f"{name}_y"])], name, [],
            [helper.make_tensor_value_info(f"{name}_y", 1, [2])]) for name in "ab"]  # fmt: skip
    y = net.op("If", net.constant(True, dtype=np.bool_), then_branch=body[0], else_branch=body[1])
    folded(net.model(value, y))


@pytest.mark.parametrize("op_type", ["Identity", "Dropout"])
def test_no_ops_go(op_type: str) -> None:
    net = Net()
    x = net.input("x", 1, 3, 5, 5)
    y = net.op(op_type, net.conv(net.op(op_type, net.op(op_type, x)), 3, 4))
    assert op_types(folded(net.model(net.batch_norm(y, 4)))) == {"Conv": 1}


def test_no_op_between_input_and_output_stays() -> None:
    net = Net()
    x = net.input("x", 2, 3)
    result = folded(net.model(net.op("Identity", x)))
    assert op_types(result) == {"Identity": 1}


def test_dropout_with_a_mask_or_in_training_stays() -> None:
    net = Net()
    x = net.input("x", 2, 3)
    net.nodes.append(helper.make_node("Dropout", [x], ["y", "mask"]))
    assert op_types(folded(net.model("y", "mask"))) == {"Dropout": 1}
    net = Net()
    ratio, training = net.constant(0.0), net.constant(True, dtype=np.bool_)
    y = net.op("Dropout", net.input("x", 2, 3), ratio, training)
    assert op_types(folded(net.model(net.op("Relu", y)))) == {"Dropout": 1, "Relu": 1}


# ---------------------------------------------------------------------- what must stay
def branches(captured: str, width: int) -> dict[str, onnx.GraphProto]:
    value = helper.make_tensor_value_info
    return {
        f"{side}_branch": helper.make_graph(
            [helper.make_node(op_type, [captured], [side])],
            side,
            [],
            [value(side, 1, [1, width, 5, 5])],
        )
        for side, op_type in (("then", "Relu"), ("else", "Neg"))
    }


def used_twice(net: Net, y: str) -> tuple[str, ...]:
    return net.op("Add", net.batch_norm(y, 4), net.op("Relu", y)), net.op("Neg", y)


def also_an_output(net: Net, y: str) -> tuple[str, ...]:
    return net.batch_norm(y, 4), y


def captured(net: Net, y: str) -> tuple[str, ...]:
    condition = net.constant(True, dtype=np.bool_)
    return net.batch_norm(y, 4), net.op("If", condition, **branches(y, 4))


def not_per_channel(net: Net, y: str) -> tuple[str, ...]:
    return (net.op("Mul", y, net.weight(5)),)


def per_pixel(net: Net, y: str) -> tuple[str, ...]:
    return (net.op("Mul", y, net.weight(4, 5, 5)),)


def of_higher_rank(net: Net, y: str) -> tuple[str, ...]:
    return (net.op("Mul", y, net.weight(1, 1, 4, 1, 1)),)


def scalar_of_higher_rank(net: Net, y: str) -> tuple[str, ...]:
    return (net.op("Mul", y, net.weight(1, 1, 1, 1, 1)),)


def divided(net: Net, y: str) -> tuple[str, ...]:
    return (net.op("Div", net.constant(2.0), y),)


def by_itself(net: Net, y: str) -> tuple[str, ...]:
    return (net.op("Mul", y, y),)


def behind_relu(net: Net, y: str) -> tuple[str, ...]:
    return (net.batch_norm(net.op("Relu", y), 4),)


def by_zero(net: Net, y: str) -> tuple[str, ...]:
    return (net.op("Relu", net.op("Div", y, net.constant([[[1.0]], [[0.0]], [[1.0]], [[1.0]]]))),)


def by_an_input(net: Net, y: str) -> tuple[str, ...]:
    return (net.op("Mul", y, net.input("k", 4, 1, 1)),)


STAYS = [
    used_twice, also_an_output, captured, not_per_channel, per_pixel, of_higher_rank,
    scalar_of_higher_rank, divided, by_itself, behind_relu, by_an_input,
]  # fmt: skip


@pytest.mark.parametrize("end", STAYS, ids=lambda end: end.__name__)
def test_what_stays(end: Callable[[Net, str], tuple[str, ...]]) -> None:
    net = Net()
    y = net.conv(net.input("x", 1, 3, 5, 5), 3, 4)
    model = net.model(*end(net, y))
    assert op_types(folded(model)) == op_types(model)


def test_division_by_zero_stays() -> None:
    net = Net()
    y = net.conv(net.input("x", 1, 3, 5, 5), 3, 4)
    result = rustq.fold(net.model(*by_zero(net, y)))
    assert result.op_counts == {"Conv": 1, "Div": 1, "Relu": 1}


def test_shared_weights_are_copied() -> None:
    net = Net()
    x = net.input("x", 1, 4, 5, 5)
    weight = net.weight(4, 4, 1, 1)
    first = net.batch_norm(net.op("Conv", x, weight), 4)
    second = net.op("Conv", first, weight)
    third = net.batch_norm(net.op("Conv", second, weight), 4)
    assert op_types(folded(net.model(third, second))) == {"Conv": 3}


@pytest.mark.parametrize("ir_version", [3, 8])
def test_initializers_that_are_inputs(ir_version: int) -> None:
    """From IR version 4 on a caller may override them; before, they had to be inputs."""
    net = Net()
    x = net.input("x", 1, 3, 5, 5)
    model = net.model(net.batch_norm(net.conv(x, 3, 4), 4), ir_version=8)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, 1, tensor.dims))
    model.ir_version = ir_version
    result = rustq.fold(model)
    assert result.op_counts == ({"Conv": 1} if ir_version == 3 else op_types(model))
    onnx.checker.check_model(result.to_onnx(), full_check=True)
    (feed,) = random_feeds(model, 1)
    close(run(model, feed)[0], run(result, feed)[0])


@pytest.mark.parametrize("opset", [13, 17])
def test_batch_norm_in_training_mode(opset: int) -> None:
    """Declared by more than one output, before operator set 14, or by the attribute."""
    net = Net()
    y = net.conv(net.input("x", 2, 3, 5, 5), 3, 4)
    net.batch_norm(y, 4, out="z", **({"training_mode": 1} if opset > 13 else {}))
    more = ["mean", "var"] if opset > 13 else ["mean", "var", "saved_mean", "saved_var"]
    net.nodes[-1].output.extend(more)
    graph = helper.make_graph(
        net.nodes,
        "g",
        net.inputs,
        [helper.make_tensor_value_info("z", 1, [2, 4, 5, 5])],
        net.initializers,
    )
    graph.output.extend(helper.make_tensor_value_info(name, 1, [4]) for name in more)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    assert rustq.fold(model).op_counts == {"Conv": 1, "BatchNormalization": 1}


@pytest.mark.parametrize("op_type", ["Sub", "Mul"])
def test_constant_that_widens_the_input_stays(op_type: str) -> None:
    """A grey image against a constant per colour: the Conv must go on reading three channels."""
    net = Net()
    x = net.input("x", 1, 1, 5, 5)
    x = net.op(op_type, x, net.weight(3, 1, 1))
    result = folded(net.model(net.op("Conv", x, net.weight(4, 3, 3, 3))))
    assert op_types(result) == {op_type: 1, "Conv": 1}


@pytest.mark.parametrize("shape", [(5,), (1, 1, 5), (1, 1, 1)])
def test_constant_that_widens_a_matrix_stays(shape: tuple[int, ...]) -> None:
    net = Net()
    rows = 1 if shape == (5,) else 5
    x = net.op("Mul", net.input("x", 4, rows), net.weight(*shape))
    folded(net.model(net.op("MatMul", x, net.weight(5, 6))))
    net = Net()
    y, _ = matmul(4)(net)
    folded(net.model(net.op("Mul", y, net.weight(*(6 if n == 5 else n for n in shape)))))


def test_gemm_with_a_matrix_as_bias() -> None:
    net = Net()
    y, channels = gemm((4, 6))(net)
    folded(net.model(net.batch_norm(y, channels)))
    net = Net()
    y, channels = gemm((4, 1))(net)
    folded(net.model(net.batch_norm(y, channels)))


def test_custom_operators_of_the_same_name_are_left_alone() -> None:
    net = Net()
    y = net.conv(net.input("x", 1, 3, 5, 5), 3, 4)
    y = net.op("Mul", y, net.constant(2.0), domain="acme")
    net.nodes.append(helper.make_node("Identity", [y], ["z"], domain="acme"))
    output = helper.make_tensor_value_info("z", 1, [1, 4, 5, 5])
    graph = helper.make_graph(net.nodes, "g", net.inputs, [output], net.initializers)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    model = helper.make_model(graph, opset_imports=imports)
    assert rustq.fold(model).op_counts == {"Conv": 1, "Mul": 1, "Identity": 1}


# ---------------------------------------------------------------------- everything else is kept
def test_names_and_metadata_are_kept() -> None:
    net = Net()
    y = net.op(
        "Relu", net.batch_norm(net.conv(net.input("pixels", "n", 3, 5, 5), 3, 4), 4), out="logits"
    )
    model = net.model(y)
    helper.set_model_props(model, {"classes": "a,b", "author": "me"})
    model.doc_string, model.domain, model.model_version = "a model", "org.example", 7
    model.producer_version, model.graph.doc_string = "1.2", "a graph"
    model.graph.output[0].doc_string = "the answer"
    model.functions.append(
        helper.make_function("acme", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])],
                             [helper.make_opsetid("", 17)])
    )  # fmt: skip
    result = folded(model)
    assert list(result.graph.input) == list(model.graph.input)
    for field in ("metadata_props", "functions", "opset_import"):
        assert list(getattr(result, field)) == list(getattr(model, field))
    for field in ("doc_string", "domain", "model_version", "producer_name", "producer_version"):
        assert getattr(result, field) == getattr(model, field)
    assert result.graph.doc_string == "a graph"
    assert [node.name for node in result.graph.node] == [
        model.graph.node[0].name,
        model.graph.node[2].name,
    ]


def test_folding_twice_changes_nothing() -> None:
    net = Net()
    y = net.op("Relu", net.batch_norm(net.conv(net.input("x", 1, 3, 5, 5), 3, 4), 4))
    once = rustq.fold(net.model(y))
    assert rustq.fold(once) == once
    assert rustq.fold(once).to_bytes() == once.to_bytes()


def test_new_names_do_not_clash() -> None:
    """Values that are called what the folded weights would be called."""
    net = Net()
    x = net.input("x", 1, 3, 5, 5)
    y = net.op("BatchNormalization", net.op("Conv", x, net.weight(4, 3, 1, 1)),
               *(net.constant(np.linspace(1, 2, 4)) for _ in range(4)), out="y")  # fmt: skip
    taken = net.op("Neg", y, out="y.weight")
    more = net.op("Mul", taken, net.constant(2.0, "y.bias"), out="y.weight_")
    folded(net.model(y, taken, more))


# ---------------------------------------------------------------------- random chains
STEPS = ["bn", "Mul", "Div", "Add", "Sub", "rSub", "Identity"]


@st.composite
def chains(draw: Any) -> tuple[Any, ...]:
    group = draw(st.sampled_from([1, 1, 2, 4]))
    transposed = draw(st.booleans())
    padded = draw(st.booleans())
    steps = st.lists(st.tuples(st.sampled_from(STEPS), st.booleans()), max_size=4)
    return group, transposed, padded, draw(steps), draw(steps), draw(st.integers(0, 999))


def append(net: Net, x: str, step: str, per_channel: bool, channels: int, behind: int = 2) -> str:
    if step == "bn":
        return net.batch_norm(x, channels)
    if step == "Identity":
        return net.op("Identity", x)
    values = net.random.uniform(0.5, 2, channels if per_channel else 1) * net.random.choice([-1, 1])
    constant = net.constant(values.reshape(-1, *[1] * behind) if per_channel else values[0])
    return net.op("Sub", constant, x) if step == "rSub" else net.op(step, x, constant)


@given(chains())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_random_chains(chain: tuple[Any, ...]) -> None:
    group, transposed, padded, before, behind, seed = chain
    net = Net(seed)
    x = net.input("x", 2, 4, 4, 5)
    for step, per_channel in before:
        x = append(net, x, step, per_channel, 4)
    shape = (4, 8 // group) if transposed else (8, 4 // group)
    weight = net.weight(*shape, 3, 2, fan_in=24 // group)
    op_type = "ConvTranspose" if transposed else "Conv"
    y = net.op(op_type, x, weight, net.weight(8), group=group, pads=[int(padded)] * 4)
    for step, per_channel in behind:
        y = append(net, y, step, per_channel, 8)
    result = folded(net.model(y), 1e-4)
    left = op_types(result)
    ends = [step for step, _ in behind]
    if ends and ends[-1] == "Identity":  # as a graph output it keeps its name, and its node
        left -= Counter(["Identity"])
    if not before or (not padded and not transposed):
        assert not LINEAR_CHAIN & set(left), left
    assert left["Identity"] == 0


@given(
    st.sampled_from(sorted(LINEARS)),
    st.lists(st.tuples(st.sampled_from(STEPS), st.booleans()), min_size=1, max_size=6),
    st.integers(0, 999),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_random_chains_behind_every_linear_operator(
    name: str, steps: list[tuple[str, bool]], seed: int
) -> None:
    """Of any number of dimensions, all of it becomes part of the weights and the bias."""
    net, y, channels, behind = linear(name)
    net.random = np.random.default_rng(seed)
    for step, per_channel in steps:
        y = append(net, y, step, per_channel, channels, behind)
    result = folded(net.model(net.op("Identity", net.op("Relu", y))), 1e-4)
    assert set(op_types(result)) <= {net.nodes[0].op_type, "Gemm", "Relu", "Identity"}


def test_a_constant_along_another_axis_says_nothing_about_channels() -> None:
    """x[1, 1, 5, 5] times a row of 5, minus a column of 5 channels: the second constant widens x."""
    net = Net()
    x = net.input("x", "N", "C", 5, 5)
    x = net.op("Mul", x, net.weight(5))
    x = net.op("Sub", x, net.weight(5, 1, 1))
    result = net.model(net.op("Conv", x, net.weight(4, 5, 3, 3)))
    feed = {"x": np.random.default_rng(0).normal(size=(1, 1, 5, 5)).astype("f")}
    wanted, found = run(result, feed)[0], run(rustq.fold(result), feed)[0]
    np.testing.assert_allclose(wanted, found, rtol=1e-5, atol=1e-5)
