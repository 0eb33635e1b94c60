"""Transposes the way exporters of channels-last frameworks write them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import rustq
from builders import Net, random_feeds, run

FIRST, LAST = [0, 3, 1, 2], [0, 2, 3, 1]
"""Permutations to channels first and to channels last."""


def folded(model: onnx.ModelProto) -> Counter[str]:
    """Operators left by folding, which must not change the outputs."""
    result = onnx.load_model_from_string(rustq.fold(model).to_bytes())
    onnx.checker.check_model(result, full_check=True)
    for feed in random_feeds(model):
        for expected, found in zip(run(model, feed), run(result, feed), strict=True):
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= 1e-5 * max(1e-3, np.abs(expected).max())
    return Counter(node.op_type for node in result.graph.node)


def conv(net: Net, x: str, inputs: int, outputs: int, kernel: int = 3, group: int = 1) -> str:
    """A convolution of a channels-last image with weights [h, w, in, out], or [h, w, in, m] where depthwise."""
    depth = outputs // inputs if group > 1 else outputs
    weight = net.weight(kernel, kernel, inputs, depth, fan_in=kernel * kernel * inputs // group)
    if group > 1:
        shape = net.constant([outputs, 1, kernel, kernel], dtype=np.int64)
        weight = net.op("Reshape", net.op("Transpose", weight, perm=[2, 3, 0, 1]), shape)
    else:
        weight = net.op("Transpose", weight, perm=[3, 2, 0, 1])
    y = net.op("Transpose", x, perm=FIRST)
    y = net.op("Conv", y, weight, pads=[kernel // 2] * 4, group=group)
    return net.op("Transpose", y, perm=LAST)


def norm(net: Net, x: str, channels: int) -> str:
    return net.op("Add", net.op("Mul", x, net.weight(channels)), net.weight(channels))


def batch_norm(net: Net, x: str, channels: int) -> str:
    y = net.batch_norm(net.op("Transpose", x, perm=FIRST), channels)
    return net.op("Transpose", y, perm=LAST)


def clip(net: Net, x: str) -> str:
    return net.op("Clip", x, net.constant(0.0), net.constant(6.0))


def swish(net: Net, x: str) -> str:
    return net.op("Mul", x, net.op("Sigmoid", x))


def pads(net: Net, x: str) -> str:
    return net.op("Pad", x, net.constant([0, 1, 0, 0, 0, 0, 1, 0], dtype=np.int64))


def concat(net: Net, x: str) -> str:
    return net.op("Concat", net.op("Relu", x), net.op("Neg", x), axis=3)


def gate(net: Net, x: str) -> str:
    return net.op("Mul", x, net.op("Sigmoid", net.op("ReduceMean", x, axes=[1, 2])))


def softmax(net: Net, x: str) -> str:
    return net.op("Softmax", x, axis=-1)


def slopes(net: Net, x: str) -> str:
    return net.op("PRelu", x, net.weight(1, 1, 6))


def table(net: Net, x: str) -> str:
    return net.op("Add", net.op("Relu", x), net.weight(8, 8, 6))


BETWEEN: dict[str, tuple[Callable[[Net, str], str], int]] = {
    f.__name__: (f, 12 if f is concat else 6)
    for f in (clip, swish, pads, concat, gate, softmax, slopes, table)
}


@pytest.mark.parametrize("name", BETWEEN)
def test_nothing_is_transposed_between_two_convolutions(name: str) -> None:
    between, channels = BETWEEN[name]
    net = Net()
    y = norm(net, conv(net, net.input("x", 2, 8, 8, 4), 4, 6), 6)
    left = folded(net.model(conv(net, between(net, y), channels, 5)))
    assert left["Transpose"] == 2, left
    assert left["Conv"] == 2


def test_mobile_net() -> None:
    """Separable convolutions with a residual, BatchNormalization everywhere, and a classifier."""
    net = Net()
    y = clip(net, batch_norm(net, conv(net, net.input("x", 1, 16, 16, 3), 3, 8), 8))
    for _ in range(3):
        z = clip(net, batch_norm(net, conv(net, y, 8, 16, 1), 16))
        z = clip(net, norm(net, conv(net, z, 16, 16, 3, group=16), 16))
        y = net.op("Add", y, batch_norm(net, conv(net, z, 16, 8, 1), 8))
    y = net.op("ReduceMean", y, axes=[1, 2], keepdims=1)
    y = net.op("Reshape", y, net.constant([-1, 8], dtype=np.int64))
    y = net.op("Softmax", net.linear(y, 8, 5, "MatMul"), axis=-1)
    left = folded(net.model(y))
    assert left["BatchNormalization"] == left["Mul"] == 0
    assert left["Conv"] == 10 and left["Add"] == 3
    # One turns the image, one the result of the last convolution.
    assert left["Transpose"] == 2, left


def test_two_branches_are_joined() -> None:
    net = Net()
    x = net.input("x", 1, 8, 8, 4)
    a, b = (net.op("Relu", conv(net, x, 4, 6, k)) for k in (1, 3))
    left = folded(net.model(conv(net, net.op("Add", a, b), 6, 5)))
    assert left["Transpose"] == 2, left


def test_attention_is_left_as_it_is() -> None:
    """The scale between a transpose and a product could be turned, with nothing won."""
    net = Net()
    x = net.input("x", 2, 5, 3, 4)
    y = net.op("Tanh", net.op("Transpose", x, perm=[0, 2, 1, 3]))
    model = net.model(net.op("MatMul", y, net.weight(4, 6)))
    assert [n.op_type for n in onnx.load_model_from_string(rustq.fold(model).to_bytes()).graph.node] == [
        "Transpose", "Tanh", "MatMul",
    ]  # fmt: skip


def test_values_seen_from_outside_keep_their_layout() -> None:
    net = Net()
    y = net.op("Relu", conv(net, net.input("x", 1, 8, 8, 4), 4, 6))
    assert folded(net.model(conv(net, y, 6, 5), y))["Conv"] == 2


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_transpose_that_makes_an_output_goes(outputs: int) -> None:
    """A second output of the same values needs a name, and so a node, of its own."""
    net = Net()
    x = net.op("Transpose", net.conv(net.input("x", 1, 3, 6, 8), 3, 4), perm=LAST)
    y = net.op("Add", net.op("Sigmoid", x), net.weight(4))
    seen = [net.op("Transpose", y, perm=FIRST) for _ in range(outputs)]
    other = net.op("Relu", net.op("Transpose", y, perm=FIRST))
    left = folded(net.model(*seen, other))
    assert left["Transpose"] == 2 * (outputs - 1)
    assert left - Counter(Transpose=2) == {"Conv": 1, "Sigmoid": 1, "Add": 1, "Relu": 1}


def test_operand_of_unknown_rank_or_lower_rank() -> None:
    net = Net()
    y = conv(net, net.input("x", 1, 8, 8, 4), 4, 6)
    y = net.op("Add", y, net.input("k", 6))
    assert folded(net.model(conv(net, y, 6, 5)))["Conv"] == 2


def test_a_transpose_of_single_pixels_in_front_of_a_reshape_goes() -> None:
    for op_type in ("Flatten", "Reshape"):
        net = Net()
        y = net.op("Exp", net.input("x", 2, 6, 1, 1))
        y = net.op("Transpose", y, perm=LAST)
        shape = [net.constant([2, 6], dtype=np.int64)] if op_type == "Reshape" else []
        assert folded(net.model(net.op(op_type, y, *shape)))["Transpose"] == 0


def test_a_long_chain_of_pads_is_one() -> None:
    net = Net()
    y = net.input("x", 1, 2, 4, 4)
    for _ in range(40):
        y = net.op("Pad", y, net.constant([0, 0, 0, 1, 0, 0, 1, 0], dtype=np.int64))
    left = folded(net.model(net.conv(y, 2, 3)))
    assert left == {"Conv": 1}
