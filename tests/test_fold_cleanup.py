"""What folding cleans up: no-ops, pairs that are one node, duplicates, pads and dead nodes."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
from builders import Net, random_feeds, run
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from test_fold import branches, close, folded, op_types

INT = np.int64
SHAPE = (2, 3, 4, 5)


def ints(net: Net, *values: int) -> str:
    return net.constant(values, dtype=INT)


def kept(model: onnx.ModelProto, feeds: Any = None) -> dict[str, int]:
    """The operators besides `Neg`, which the tests put around what they are about."""
    counts = op_types(folded(model, 0, feeds))
    return {op_type: count for op_type, count in counts.items() if op_type != "Neg"}


# ---------------------------------------------------------------------- no-ops
NO_OPS: dict[str, Any] = {
    "cast": lambda n, x: n.op("Cast", x, to=1),
    "cast like": lambda n, x: n.op("CastLike", x, n.constant(1.0)),
    "reshape 0 and -1": lambda n, x: n.op("Reshape", x, ints(n, 0, -1, 4, 5)),
    "reshape": lambda n, x: n.op("Reshape", x, ints(n, *SHAPE)),
    "expand": lambda n, x: n.op("Expand", x, ints(n, 3, 1, 5)),
    "squeeze": lambda n, x: n.op("Squeeze", x),
    "tile": lambda n, x: n.op("Tile", x, ints(n, 1, 1, 1, 1)),
    "slice": lambda n, x: n.op("Slice", x, ints(n, 0, 0), ints(n, 2**63 - 1, 4), ints(n, 1, -2)),
    "pad": lambda n, x: n.op("Pad", x, ints(n, *[0] * 8), mode="reflect"),
    "resize scales": lambda n, x: n.op("Resize", x, "", n.constant([1, 1, 1, 1])),
    "resize sizes": lambda n, x: n.op("Resize", x, "", "", ints(n, *SHAPE), mode="linear"),
    "transpose": lambda n, x: n.op("Transpose", x, perm=[0, 1, 2, 3]),
    "concat": lambda n, x: n.op("Concat", x, axis=1),
    "sum": lambda n, x: n.op("Sum", x),
    "mean": lambda n, x: n.op("Mean", x),
    "max": lambda n, x: n.op("Max", x),
    "min": lambda n, x: n.op("Min", x),
    "add": lambda n, x: n.op("Add", x, n.constant(0.0)),
    "add left": lambda n, x: n.op("Add", n.constant([0.0]), x),
    "sub": lambda n, x: n.op("Sub", x, n.constant([[0.0]])),
    "mul": lambda n, x: n.op("Mul", x, n.constant([[[[1.0]]]])),
    "div": lambda n, x: n.op("Div", x, n.constant(1.0)),
    "pow": lambda n, x: n.op("Pow", x, n.constant(1, dtype=INT)),
    "clip": lambda n, x: n.op("Clip", x),
    "max pool": lambda n, x: n.op("MaxPool", x, kernel_shape=[1, 1]),
    "average pool": lambda n, x: n.op("AveragePool", x, kernel_shape=[1, 1], strides=[1, 1]),
}  # fmt: skip
CHANGES: dict[str, Any] = {
    "cast": lambda n, x: n.op("Cast", n.op("Cast", x, to=10), to=1),
    "reshape": lambda n, x: n.op("Reshape", x, ints(n, 0, 4, 3, 5)),
    "reshape two": lambda n, x: n.op("Reshape", x, ints(n, 3, -1, 4, 5)),
    "flatten": lambda n, x: n.op("Flatten", x),
    "expand wider": lambda n, x: n.op("Expand", x, ints(n, 1, 1, 1, 1, 1)),
    "unsqueeze": lambda n, x: n.op("Unsqueeze", x, ints(n, 0)),
    "tile": lambda n, x: n.op("Tile", x, ints(n, 1, 2, 1, 1)),
    "slice": lambda n, x: n.op("Slice", x, ints(n, 0), ints(n, 2), ints(n, 1)),
    "slice start": lambda n, x: n.op("Slice", x, ints(n, 1), ints(n, 99), ints(n, 1)),
    "slice step": lambda n, x: n.op("Slice", x, ints(n, 0), ints(n, 99), ints(n, 1), ints(n, 2)),
    "pad": lambda n, x: n.op("Pad", x, ints(n, *[0] * 7, 1)),
    "resize": lambda n, x: n.op("Resize", x, "", n.constant([1, 1, 2, 1])),
    "transpose": lambda n, x: n.op("Transpose", x, perm=[0, 1, 3, 2]),
    "transpose reversed": lambda n, x: n.op("Transpose", x),
    "sum": lambda n, x: n.op("Sum", x, x),
    "add": lambda n, x: n.op("Add", x, n.constant(1.0)),
    "add wider": lambda n, x: n.op("Add", x, n.constant([[[[[0.0]]]]])),
    "sub left": lambda n, x: n.op("Sub", n.constant(0.0), x),
    "div left": lambda n, x: n.op("Div", n.constant(1.0), x),
    "mul array": lambda n, x: n.op("Mul", x, n.constant([1.0, 1, 1, 1, 2])),
    "clip": lambda n, x: n.op("Clip", x, n.constant(-0.5)),
    "max pool": lambda n, x: n.op("MaxPool", x, kernel_shape=[1, 1], strides=[2, 1]),
    "average pool": lambda n, x: n.op("AveragePool", x, kernel_shape=[2, 1]),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_OPS)
def test_no_op_goes(name: str) -> None:
    net = Net()
    y = net.op("Neg", NO_OPS[name](net, net.op("Neg", net.input("x", *SHAPE))))
    assert kept(net.model(y, opset=15, described=True)) == {}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_its_input_stays(name: str) -> None:
    net = Net()
    y = net.op("Neg", CHANGES[name](net, net.op("Neg", net.input("x", *SHAPE))))
    assert kept(net.model(y, opset=15, described=True)) != {}


@pytest.mark.parametrize("name", ["reshape", "expand", "sub", "mul", "cast", "resize sizes"])
def test_no_op_without_a_known_shape_stays(name: str) -> None:
    """What the rules do by themselves; `rustq.fold` infers shapes where that can help."""
    net = Net()
    y = net.op("Neg", NO_OPS[name](net, net.op("Neg", net.input("x", *SHAPE))))
    simple, _ = rustq._rustq.Model.from_bytes(net.model(y, opset=15).SerializeToString()).fold()
    assert sum(simple.op_counts.values()) == 3


def test_dimensions_that_are_not_fixed() -> None:
    net = Net()
    x = net.input("x", "n", 3, "t")
    same = net.op("Neg", net.op("Reshape", x, ints(net, 0, 3, -1)))
    asks = net.op("Neg", net.op("Expand", x, ints(net, 2, 1, 1)))
    assert kept(net.model(same, asks)) == {"Expand": 1}


@pytest.mark.parametrize("name", ["transpose", "cast", "mul"])
def test_output_name_is_kept_by_the_producer(name: str) -> None:
    net = Net()
    y = NO_OPS[name](net, net.op("Neg", net.input("x", *SHAPE)))
    result = folded(net.model(y, net.op("Relu", y), opset=15, described=True), 0)
    assert op_types(result) == {"Neg": 1, "Relu": 1}
    assert result.graph.node[0].output == [y]


def test_two_names_for_one_value_stay() -> None:
    net = Net()
    y = net.op("Neg", net.input("x", 2, 3))
    model = net.model(y, net.op("Identity", y), net.op("Identity", "x"))
    result = rustq.fold(model)
    assert kept(model) == {"Identity": 2}
    assert result.op_counts == {"Neg": 1, "Identity": 2}


def test_no_op_that_a_body_reads() -> None:
    net = Net()
    y = net.op("Identity", net.op("Neg", net.input("x", 1, 4, 5, 5)))
    flag = net.input("flag", dtype=np.bool_)
    model = net.model(net.op("If", flag, **branches(y, 4)), y)
    assert kept(model) == {"If": 1}


def test_neutral_element_that_a_caller_may_override_stays() -> None:
    net = Net()
    y = net.op("Mul", net.input("x", 2, 3), net.constant(1.0, "k"))
    model = net.model(net.op("Neg", y))
    model.graph.input.append(helper.make_tensor_value_info("k", 1, []))
    assert kept(model) == {"Mul": 1}


# ---------------------------------------------------------------------- pairs
def view(net: Net, x: str, op_type: str, *values: int) -> str:
    return net.op(op_type, x, ints(net, *values))


def clip(net: Net, x: str, low: float | None, high: float | None) -> str:
    return net.op("Clip", x, *("" if b is None else net.constant(b) for b in (low, high)))


PAIRS: dict[str, tuple[Any, dict[str, int]]] = {
    "transposes": (lambda n, x: n.op("Transpose", n.op("Transpose", x, perm=[0, 2, 3, 1]), perm=[1, 0, 2, 3]), {"Transpose": 1}),
    "transposes undone": (lambda n, x: n.op("Transpose", n.op("Transpose", x, perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2]), {}),
    "transposes reversed": (lambda n, x: n.op("Transpose", n.op("Transpose", x)), {}),
    "transposes half reversed": (lambda n, x: n.op("Transpose", n.op("Transpose", x), perm=[1, 0, 2, 3]), {"Transpose": 1}),
    "reshapes": (lambda n, x: view(n, view(n, x, "Reshape", 0, -1), "Reshape", 0, 5, 12), {"Reshape": 1}),
    "reshape back": (lambda n, x: view(n, view(n, x, "Reshape", 0, -1), "Reshape", 0, 3, 4, 5), {}),
    "reshape with a moved 0": (lambda n, x: view(n, view(n, x, "Reshape", 6, 20), "Reshape", 0, 2, 10), {"Reshape": 1}),
    "flatten and reshape": (lambda n, x: view(n, n.op("Flatten", x), "Reshape", 0, 5, 12), {"Reshape": 1}),
    "flatten twice": (lambda n, x: n.op("Flatten", n.op("Flatten", x)), {"Flatten": 1}),
    "unsqueeze squeeze": (lambda n, x: view(n, view(n, x, "Unsqueeze", 1, 3), "Squeeze", 1, 3), {}),
    "unsqueeze squeeze other": (lambda n, x: view(n, view(n, x, "Unsqueeze", 1, 3), "Squeeze", 1), {"Unsqueeze": 1, "Squeeze": 1}),
    "casts": (lambda n, x: n.op("Cast", n.op("Cast", x, to=11), to=1), {}),
    "casts narrower": (lambda n, x: n.op("Cast", n.op("Cast", x, to=11), to=10), {"Cast": 1, "cast": 1}),
    "casts that round": (lambda n, x: n.op("Cast", n.op("Cast", x, to=10), to=1), {"Cast": 2}),
    "casts that truncate": (lambda n, x: n.op("Cast", n.op("Cast", x, to=6), to=1), {"Cast": 2}),
    "relus": (lambda n, x: n.op("Relu", n.op("Relu", x)), {"Relu": 1}),
    "floor": (lambda n, x: n.op("Floor", n.op("Floor", x)), {"Floor": 1}),
    "relu of sigmoid": (lambda n, x: n.op("Relu", n.op("Sigmoid", x)), {"Sigmoid": 1}),
    "clips": (lambda n, x: clip(n, clip(n, x, -1.0, 0.5), -0.5, 1.0), {"Clip": 1}),
    "clips apart": (lambda n, x: clip(n, clip(n, x, 0.5, 0.7), -0.5, 0.1), {"Clip": 1}),
    "clip of one side": (lambda n, x: clip(n, clip(n, x, None, 0.5), -0.5, None), {"Clip": 1}),
    "relu clip": (lambda n, x: clip(n, n.op("Relu", x), -1.0, 0.5), {"Clip": 1}),
    "relu clip 0": (lambda n, x: clip(n, n.op("Relu", x), 0.0, 0.5), {"Clip": 1}),
    "relu clip wide": (lambda n, x: clip(n, n.op("Relu", x), -1.0, None), {"Relu": 1}),
    "clip relu": (lambda n, x: n.op("Relu", clip(n, x, -1.0, 0.5)), {"Clip": 1}),
    "clip relu negative": (lambda n, x: n.op("Relu", clip(n, x, -1.0, None)), {"Relu": 1}),
    "clip relu none": (lambda n, x: n.op("Relu", clip(n, x, 0.25, 0.5)), {"Clip": 1}),
    "relu neg relu": (lambda n, x: n.op("Relu", n.op("Neg", n.op("Relu", x))), {"Relu": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("end", [True, False], ids=["behind", "output"])
def test_pair(name: str, end: bool) -> None:
    build, expected = PAIRS[name]
    net = Net()
    y = build(net, net.op("Neg", net.input("x", *SHAPE)))
    y = net.op("Neg", y) if end else y
    expected = {op: count for op, count in expected.items() if op != "cast"}
    assert kept(net.model(y, opset=15, described=True)) == expected


@pytest.mark.parametrize("name", ["transposes", "transposes undone", "reshapes", "clips"])
def test_first_of_a_pair_stays_for_others(name: str) -> None:
    net = Net()
    y = PAIRS[name][0](net, net.op("Neg", net.input("x", *SHAPE)))
    first = net.nodes[-2].output[0]
    result = folded(net.model(net.op("Neg", y), net.op("Abs", first), described=True), 0)
    counts = op_types(result)
    assert counts["Abs"] == 1
    assert first not in [node.input[0] for node in result.graph.node if node.op_type != "Abs"]


@pytest.mark.parametrize("opset", [10, 13])
def test_clip_bounds_as_attributes(opset: int) -> None:
    if opset > 10:
        pytest.skip("bounds are inputs")
    net = Net()
    y = net.op("Clip", net.op("Relu", net.input("x", 2, 3)), min=-1.0, max=0.5)
    result = folded(net.model(net.op("Clip", y, min=-2.0, max=0.25), opset=opset), 0)
    (node,) = result.graph.node
    assert {a.name: a.f for a in node.attribute} == {"min": 0.0, "max": 0.25}


# ---------------------------------------------------------------------- duplicates
def test_equal_chains_collapse() -> None:
    net = Net()
    x = net.input("x", *SHAPE)
    ends = []
    for _ in range(3):
        y = net.op("Transpose", x, perm=[0, 2, 1, 3])
        ends.append(net.op("Mul", net.op("Softmax", y), net.constant(np.full((5,), 2.0))))
    y = net.op("Add", net.op("Sub", ends[0], net.op("Neg", ends[1])), ends[2])
    result = folded(net.model(y, ends[1]), 0)
    assert op_types(result)["Softmax"] == op_types(result)["Mul"] == 1
    assert len(result.graph.initializer) == 1


@pytest.mark.parametrize("outputs", [(0, 1), (1, 2), (0, 1, 2)])
def test_equal_outputs_keep_their_names(outputs: tuple[int, ...]) -> None:
    net = Net()
    x = net.input("x", 2, 4)
    ends = [net.op("Exp", x) for _ in range(4)]
    total = net.op("Sum", *(net.op("Neg", y) for y in ends))
    result = folded(net.model(total, *(ends[i] for i in outputs)), 0)
    assert op_types(result)["Exp"] == len(outputs)


def test_what_is_not_twice_the_same() -> None:
    net = Net()
    x = net.input("x", 2, 4)
    ends = [
        net.op("Softmax", x, axis=0), net.op("Softmax", x, axis=1), net.op("Concat", x, x, axis=0),
        net.op("Concat", x, x, axis=1), net.op("RandomNormalLike", x), net.op("RandomNormalLike", x),
    ]  # fmt: skip
    model = net.model(*(net.op("Neg", y) for y in ends))
    assert rustq.fold(model).op_counts == op_types(model)


def test_bodies_are_not_compared() -> None:
    net = Net()
    x = net.input("x", 1, 4, 5, 5)
    flag = net.input("flag", dtype=np.bool_)
    ends = [net.op("If", flag, **branches(x, 4)) for _ in range(2)]
    assert kept(net.model(net.op("Add", *ends))) == {"If": 2, "Add": 1}


def test_equal_constants_merge() -> None:
    net = Net()
    x = net.input("x", 2, 8)
    values = np.arange(64).reshape(8, 8)
    for tensor in (values, values, -values, values.reshape(1, 8, 8)):
        net.constant(tensor)
    minus = net.constant(np.zeros(8) * -1.0), net.constant(np.zeros(8))
    y = net.op("Max", *(net.op("MatMul", x, f"c{i}") for i in range(4)))
    y = net.op("Sum", y, *(net.op("Div", x, zero) for zero in minus))
    model = net.model(y)
    result = rustq.fold(model).to_onnx()
    assert len(result.graph.initializer) == 5
    (feed,) = random_feeds(model, 1)
    np.testing.assert_array_equal(run(model, feed)[0], run(result, feed)[0])


def test_constants_that_others_see_do_not_merge() -> None:
    net = Net()
    x = net.input("x", 2)
    net.constant([1.0, 2.0], "a")
    net.constant([1.0, 2.0], "b")
    net.constant([1.0, 2.0], "overridable")
    y = net.op("Mul", net.op("Add", x, "a"), net.op("Exp", net.op("Sub", x, "overridable")))
    model = (
        net.model(net.op("Pow", y, "b"), "a", "b") if False else net.model(net.op("Max", y, "b"))
    )
    model.graph.input.append(helper.make_tensor_value_info("overridable", 1, [2]))
    result = folded(model)
    assert sorted(t.name for t in result.graph.initializer) == ["a", "overridable"]


def test_shared_weights_still_fold_apart() -> None:
    """Equal weights in two Convs, each with another scale behind it."""
    net = Net()
    x = net.input("x", 1, 3, 6, 6)
    weight = net.random.normal(size=(4, 3, 3, 3))
    convs = [net.op("Conv", x, net.constant(weight)) for _ in range(2)]
    y = net.op("Add", net.batch_norm(convs[0], 4), net.op("Relu", net.batch_norm(convs[1], 4)))
    folded(net.model(y))


# ---------------------------------------------------------------------- pads
def padded(net: Net, x: str, *sides: int, form: str = "input", value: float = 0.0) -> str:
    """Padding of the last axes: all begins, then all ends."""
    half = len(sides) // 2
    pads = [0, 0, *sides[:half], 0, 0, *sides[half:]]
    if form == "attribute":
        return net.op("Pad", x, pads=pads, value=value)
    if form == "axes":
        axes = ints(net, *range(-half, 0))
        return net.op("Pad", x, ints(net, *sides), net.constant(value), axes)
    return net.op("Pad", x, ints(net, *pads), net.constant(value))


@pytest.mark.parametrize(("form", "opset"), [("attribute", 10), ("input", 17), ("axes", 18)])
@pytest.mark.parametrize(
    "attributes", [{}, {"pads": [1, 0, 2, 1]}, {"auto_pad": "VALID"}, {"strides": [2, 1]}]
)
def test_pad_into_conv(form: str, opset: int, attributes: dict[str, Any]) -> None:
    net = Net()
    x = padded(net, net.input("x", 1, 3, 7, 8), 1, 2, 0, 1, form=form)
    y = net.op("Conv", x, net.weight(4, 3, 3, 3), **attributes)
    assert op_types(folded(net.model(y, opset=opset))) == {"Conv": 1}


POOLS: dict[str, tuple[str, float, dict[str, Any], bool]] = {
    "average": ("AveragePool", 0.0, {}, True),
    "average counts": ("AveragePool", 0.0, {"count_include_pad": 1, "pads": [1, 0, 0, 1]}, True),
    "average does not count": ("AveragePool", 0.0, {"pads": [1, 0, 0, 1]}, False),
    "average rounds up": ("AveragePool", 0.0, {"ceil_mode": 1, "strides": [2, 2]}, False),
    "average of ones": ("AveragePool", 1.0, {}, False),
    "max": ("MaxPool", -np.inf, {"pads": [1, 0, 1, 0]}, True),
    "max lowest": ("MaxPool", float(np.finfo(np.float32).min), {}, True),
    "max of zeros": ("MaxPool", 0.0, {}, False),
    "max dilated": ("MaxPool", -np.inf, {"dilations": [2, 2]}, False),
}


@pytest.mark.parametrize("name", POOLS)
def test_pad_into_pool(name: str) -> None:
    op_type, value, attributes, folds = POOLS[name]
    net = Net()
    x = padded(net, net.input("x", 1, 3, 7, 8), 1, 1, 0, 1, value=value)
    model = net.model(net.op(op_type, x, kernel_shape=[3, 3], **attributes))
    assert op_types(folded(model, 1e-6)) == {op_type: 1} | ({} if folds else {"Pad": 1})


def test_zeros_around_what_is_not_negative() -> None:
    net = Net()
    x = padded(net, net.op("Relu", net.input("x", 1, 3, 7, 8)), 1, 1, 1, 1)
    y = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])
    assert op_types(folded(net.model(y), 0)) == {"Relu": 1, "MaxPool": 1}


DECLINED: dict[str, tuple[Any, str]] = {
    "reflect": (lambda n, x: n.op("Pad", x, ints(n, 0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"), "constant"),
    "value": (lambda n, x: padded(n, x, 1, 1, 1, 1, value=0.5), "zeros only"),
    "channels": (lambda n, x: n.op("Pad", x, ints(n, 0, 1, 0, 0, 0, 0, 0, 0)), "the channels"),
    "negative": (lambda n, x: padded(n, x, 1, -1, 1, 0), "takes away"),
    "not constant": (lambda n, x: n.op("Pad", x, n.input("pads", 8, dtype=INT)), "not constant"),
}  # fmt: skip


@pytest.mark.parametrize("name", DECLINED)
def test_pad_stays(name: str) -> None:
    build, reason = DECLINED[name]
    net = Net()
    x = build(net, net.input("x", 1, 3, 7, 8))
    y = net.op("Conv", x, net.weight(4, 4 if name == "channels" else 3, 3, 3))
    model = net.model(y)
    feeds = [
        feed | ({"pads": np.zeros(8, INT)} if "pads" in feed else {})
        for feed in random_feeds(model, 1)
    ]
    assert kept(model, feeds) == {"Pad": 1, "Conv": 1}
    (record,) = [record for record in rustq.fold(model).folding if record.op_type == "Pad"]
    assert reason in (record.declined or "")


def test_pad_into_a_convolution_that_took_up_what_was_between() -> None:
    net = Net()
    x = padded(net, net.input("x", 1, 3, 7, 8), 1, 1, 1, 1)
    y = net.op("Conv", net.batch_norm(x, 3), net.weight(4, 3, 3, 3))
    assert op_types(folded(net.model(y))) == {"Conv": 1}


def test_pad_with_several_readers() -> None:
    net = Net()
    x = padded(net, net.input("x", 1, 3, 7, 8), 1, 1, 1, 1)
    convs = [net.op("Conv", x, net.weight(4, 3, 3, 3)) for _ in range(2)]
    both = net.model(*convs)
    assert op_types(folded(both)) == {"Conv": 2}
    model = net.model(*convs, net.op("Neg", x))
    assert op_types(folded(model)) == {"Conv": 2, "Neg": 1, "Pad": 1}


# ---------------------------------------------------------------------- dead nodes
def test_dead_nodes_go() -> None:
    net = Net()
    x = net.input("x", 1, 4, 5, 5)
    y = net.op("Exp", x)
    net.op("Softmax", net.op("Abs", y))
    seen = net.op("Abs", net.op("Sqrt", x))
    net.op("If", net.constant(True, dtype=np.bool_), **branches(seen, 4))
    assert op_types(folded(net.model(y), 0)) == {"Exp": 1}


def test_what_a_body_reads_and_custom_nodes_stay() -> None:
    net = Net()
    x = net.input("x", 1, 4, 5, 5)
    seen = net.op("Abs", x)
    y = net.op("If", net.constant(True, dtype=np.bool_), **branches(seen, 4))
    assert kept(net.model(y)) == {"Abs": 1, "If": 1}
    net.op("Log", net.op("Exp", x), domain="acme")
    graph = helper.make_graph(net.nodes, "g", net.inputs, [helper.make_tensor_value_info(y, 1, [1, 4, 5, 5])], net.initializers)  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    model = helper.make_model(graph, opset_imports=imports)
    assert rustq.fold(model).op_counts == op_types(model)


# ---------------------------------------------------------------------- bad files
@pytest.mark.parametrize("first", ["x", "i", "c"])
def test_a_value_made_twice_is_an_error(first: str) -> None:
    net = Net()
    net.constant([1.0], "c")
    net.op("Relu", net.input("i", 2), out="x")
    net.op("Identity", "x", out=first)
    graph = helper.make_graph(net.nodes, "g", net.inputs, [helper.make_tensor_value_info("x", 1, [2])], net.initializers)  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(rustq.ModelError, match=r"exists already|before it is made"):
        rustq.fold(model)


# ---------------------------------------------------------------------- long chains
def chain(kind: str, length: int) -> onnx.ModelProto:
    net = Net()
    x = y = net.input("x", 2, 3)
    for i in range(length):
        if kind == "Transpose":
            y = net.op("Transpose", y, perm=[1, 0])
        elif kind == "branching":
            y = net.op("Transpose", y, perm=[1, 0])
            net.op("Neg", y, out=f"end{i}")
        elif kind == "readers":
            y = "t" if i else net.op("Unsqueeze", x, ints(net, 0), out="t")
            net.op("Reshape", y, ints(net, i + 1, 1, -1), out=f"end{i}")
        else:
            y = net.op("Identity" if kind == "Identity" else "Exp", y)
    ends = [o for n in net.nodes for o in n.output if o.startswith("end")]
    if kind == "dead":
        y = x
    ends = ends or [net.op("Neg", y)]
    outputs = [helper.make_tensor_value_info(name, 1, None) for name in ends]
    graph = helper.make_graph(net.nodes, "g", net.inputs, outputs, net.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("kind", ["Identity", "Transpose", "branching", "readers", "dead"])
def test_long_chains_fold_in_linear_time(kind: str) -> None:
    def seconds(length: int) -> float:
        model = chain(kind, length)
        best = float("inf")
        for _ in range(5):
            start = time.process_time()
            result = rustq.fold(model)
            best = min(best, time.process_time() - start)
        if kind not in ("branching", "readers"):
            assert result.op_counts == {"Neg": 1}
        return best

    # Quadratic would be ten times as much for each.
    assert seconds(3000) / 3000 < 6 * max(seconds(300) / 300, 5e-6)


# ---------------------------------------------------------------------- random graphs
UNARY: list[Any] = [
    *(NO_OPS[name] for name in ("cast", "tile", "transpose", "concat", "sum", "add", "mul", "clip")),
    *(lambda n, x, p=p: n.op("Transpose", x, perm=p) for p in ([1, 0, 2, 3], [0, 2, 1, 3], [3, 2, 1, 0])),
    lambda n, x: n.op("Reshape", x, ints(n, 2, 2, 2, 2)),
    lambda n, x: n.op("Reshape", n.op("Flatten", x), ints(n, 0, 2, -1, 2)),
    lambda n, x: n.op("Unsqueeze", x, ints(n, 0)),
    lambda n, x: n.op("Relu", x),
    lambda n, x: clip(n, x, -0.5, 0.75),
    lambda n, x: clip(n, x, None, 0.5),
    lambda n, x: clip(n, x, 0.25, None),
    lambda n, x: n.op("Neg", x),
    lambda n, x: n.op("Cast", n.op("Cast", x, to=11), to=1),
    lambda n, x: n.op("Cast", n.op("Cast", x, to=10), to=1),
    lambda n, x: n.op("Squeeze", n.op("Unsqueeze", x, ints(n, 1)), ints(n, 1)),
    lambda n, x: n.op("MaxPool", padded(n, x, 1, 0, 0, 1), kernel_shape=[2, 2]),
    lambda n, x: n.op("AveragePool", padded(n, x, 1, 0, 0, 1), kernel_shape=[2, 2]),
]  # fmt: skip


@given(
    st.lists(
        st.tuples(st.integers(0, 99), st.integers(0, len(UNARY) - 1)), min_size=1, max_size=14
    ),
    st.lists(st.integers(0, 99), max_size=3),
    st.booleans(),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_random_graphs(steps: list[tuple[int, int]], outputs: list[int], described: bool) -> None:
    """Each step reads any value made before; any values are outputs."""
    net = Net()
    values, ranks = [net.input("x", 2, 2, 2, 2)], [4]
    for source, step in steps:
        at = source % len(values)
        unsqueezes = step == UNARY.index(UNARY[13])
        if ranks[at] != 4:
            values.append(net.op("Squeeze", values[at], ints(net, 0)))
            ranks.append(4)
        else:
            values.append(UNARY[step](net, values[at]))
            ranks.append(5 if unsqueezes else 4)
    names = {values[-1], *(values[i % len(values)] for i in outputs)} - {"x"}
    model = net.model(*sorted(names), described=described)
    once = rustq.fold(folded(model, 1e-6))
    assert rustq.fold(once).to_bytes() == once.to_bytes()


def test_equal_bytes_every_time() -> None:
    net = Net()
    x = net.input("x", 2, 4)
    ends = [
        net.op("Add", net.op("Mul", x, net.constant(i % 3 + 2.0)), net.constant(i % 2 + 1.0))
        for i in range(12)
    ]
    model = net.model(net.op("Sum", *ends), ends[3], ends[9])
    close(run(model, f := random_feeds(model, 1)[0])[0], run(rustq.fold(model), f)[0])
    assert len({rustq.fold(model).to_bytes() for _ in range(10)}) == 1
