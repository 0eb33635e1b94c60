"""A million nodes: errors come at once, and the work grows as the graph does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import cache

import onnx
import pytest
import rustq
from onnx import TensorProto, helper

MANY = 1_000_000


def varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def node(op_type: str, inputs: Iterable[str], output: str, name: str = "") -> bytes:
    """A node of `GraphProto`, in a tenth of the time that protobuf's Python takes."""
    parts = [field(1, text.encode()) for text in inputs]
    parts += [field(2, output.encode()), field(3, name.encode()), field(4, op_type.encode())]
    return field(1, b"".join(parts))


def model(nodes: Iterable[bytes], output: str, initializers: Iterable[TensorProto] = ()) -> bytes:
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x0", output)
    ]
    graph = helper.make_graph([], "g", ends[:1], ends[1:], list(initializers))
    rest = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)])
    content = b"".join(nodes) + graph.SerializeToString()
    return rest.SerializeToString() + field(7, content)


@cache
def chain(op_type: str, count: int, *more: str) -> list[bytes]:
    return [node(op_type, [f"x{k}", *more], f"x{k + 1}") for k in range(count)]


def cycle() -> bytes:
    first = node("Relu", ["end"], "x1")
    return model(
        [first, *chain("Relu", MANY)[1:], node("Relu", [f"x{MANY}"], "end", "last")], "end"
    )


def made_twice() -> bytes:
    return model([*chain("Relu", MANY), node("Relu", ["x0"], "x5", "again")], f"x{MANY}")


def upside_down() -> bytes:
    return model(chain("Relu", MANY)[::-1], f"x{MANY}")


def long_name() -> bytes:
    return model([*chain("Relu", MANY), node("Relu", ["x0"], "x5", "n" * 1_000_000)], f"x{MANY}")


def no_inputs() -> bytes:
    return model([*chain("Relu", MANY), node("Conv", [], "y", "empty")], f"x{MANY}")


def cut_short() -> bytes:
    return model(chain("Relu", MANY), f"x{MANY}")[:-1]


HOSTILE: list[tuple[Callable[[], bytes], str]] = [
    (cycle, "'end' before it is made"),
    (made_twice, "'again' makes 'x5'"),
    (upside_down, f"reads 'x{MANY - 1}' before"),
    (long_name, "'nnn"),
    (no_inputs, "'empty' lacks an input"),
    (cut_short, "not an ONNX model"),
]


@pytest.mark.parametrize(("make", "place"), HOSTILE, ids=[make.__name__ for make, _ in HOSTILE])
def test_what_is_wrong_is_found_at_once(make: Callable[[], bytes], place: str) -> None:
    content = make()
    started = time.process_time()
    with pytest.raises(rustq.ModelError) as raised:
        rustq.quantize(content)
    # A second on an idle machine, whose cores have nothing else to do.
    assert time.process_time() - started < 5
    assert place in str(raised.value)
    assert len(str(raised.value)) < 2000


CHAINS = {
    "activations": ("Relu", []),
    "constants": ("Add", [helper.make_tensor("c", TensorProto.FLOAT, [], [1.5])]),
    "unknown": ("Nobody", []),
    "products": (
        "MatMul",
        [helper.make_tensor("w", TensorProto.FLOAT, [4, 4], [0.1 * k for k in range(16)])],
    ),
}


@pytest.mark.parametrize("kind", CHAINS)
def test_time_grows_as_the_graph_does(kind: str) -> None:
    op_type, initializers = CHAINS[kind]
    names = [tensor.name for tensor in initializers]
    seconds = []
    for count in (5_000, 40_000):
        content = model(chain(op_type, count, *names), f"x{count}", initializers)
        started = time.process_time()
        rustq.quantize(content)
        seconds.append(time.process_time() - started)
    # Eight times the nodes: 64 times the time if it grew with the square.
    assert seconds[1] < 24 * max(seconds[0], 0.05), seconds
