"""Which tool folds what: the table of docs/folding.md, from small graphs that all simplify.

    python benches/fold_rules.py            # print it
    python benches/fold_rules.py --write    # and put it into docs/folding.md

A graph has one thing to fold. "✓": it is gone and the result is right in ONNX Runtime; "–": it is
still there; "✗": the result differs or does not load; "!": the tool failed.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import simplifiers

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "folding.md"
MARKS = "<!-- table -->\n", "<!-- end of table -->\n"
sys.path.insert(0, str(ROOT / "tests"))

from builders import Net, random_feeds, run  # noqa: E402

Build = Callable[[Net], str]
ROWS: dict[str, tuple[Build, set[str], int]] = {}
"""Per row of the table: the graph, the operators that must be gone, and the operator set."""

INT = np.int64
TWICE = "a second Exp"


def row(label: str, *gone: str, opset: int = 17) -> Callable[[Build], Build]:
    def register(build: Build) -> Build:
        ROWS[label] = build, set(gone), opset
        return build

    return register


def image(net: Net) -> str:
    return net.input("x", 2, 4, 8, 8)


def conv_norm(
    label: str, spatial: int, weight: tuple[int, ...], channels: int, **more: Any
) -> None:
    op_type = more.pop("op_type", "Conv")

    @row(label, "BatchNormalization")
    def _(net: Net) -> str:
        x = net.input("x", 2, 4, *[8] * spatial)
        return net.batch_norm(net.op(op_type, x, net.weight(*weight), **more), channels)


conv_norm("Conv + BatchNormalization, 1-D", 1, (6, 4, 3), 6)
conv_norm("… 2-D", 2, (6, 4, 3, 3), 6)
conv_norm("… 3-D", 3, (6, 4, 3, 3, 3), 6)
conv_norm("… grouped", 2, (6, 2, 3, 3), 6, group=2)
conv_norm("… depthwise, multiplier 2", 2, (8, 1, 3, 3), 8, group=4)
conv_norm("ConvTranspose + BatchNormalization", 2, (4, 6, 3, 3), 6, op_type="ConvTranspose")
conv_norm("… grouped, transposed", 2, (4, 3, 3, 3), 6, op_type="ConvTranspose", group=2)


@row("Gemm + BatchNormalization", "BatchNormalization")
def _(net: Net) -> str:
    return net.batch_norm(net.linear(net.input("x", 3, 5), 5, 6), 6)


@row("… with alpha, beta, transA, transB", "BatchNormalization")
def _(net: Net) -> str:
    more = {"alpha": 0.5, "beta": 2.0, "transA": 1, "transB": 1}
    y = net.op("Gemm", net.input("x", 5, 3), net.weight(6, 5), net.weight(6), **more)
    return net.batch_norm(y, 6)


@row("MatMul + BatchNormalization", "BatchNormalization")
def _(net: Net) -> str:
    return net.batch_norm(net.op("MatMul", net.input("x", 3, 5), net.weight(5, 6)), 6)


@row("MatMul + Mul, rank 3", "Mul")
def _(net: Net) -> str:
    y = net.op("MatMul", net.input("x", 2, 3, 5), net.weight(5, 6))
    return net.op("Mul", y, net.weight(6))


@row("MatMul + Add → Gemm", "Add")
def _(net: Net) -> str:
    return net.linear(net.input("x", 3, 5), 5, 6, "MatMul")


@row("Conv + Mul, Add, Div, Sub", "Mul", "Add", "Div", "Sub")
def _(net: Net) -> str:
    y = net.op("Mul", net.conv(image(net), 4, 6), net.weight(6, 1, 1))
    y = net.op("Div", net.op("Add", y, net.weight(1, 6, 1, 1)), net.constant(0.7))
    return net.op("Sub", y, net.constant([0.3]))


@row("Conv + matrix + BatchNormalization", "BatchNormalization")
def _(net: Net) -> str:
    return net.batch_norm(net.op("Add", net.conv(image(net), 4, 6), net.weight(6, 8, 8)), 6)


@row("BatchNormalization before Conv", "BatchNormalization")
def _(net: Net) -> str:
    return net.conv(net.batch_norm(image(net), 4), 4, 6, pads=[0] * 4)


@row("BatchNormalization before Gemm", "BatchNormalization")
def _(net: Net) -> str:
    return net.linear(net.batch_norm(net.input("x", 3, 5), 5), 5, 6)


@row("scale and shift before a padded Conv → one Add", "Mul")
def _(net: Net) -> str:
    y = net.op("Add", net.op("Mul", image(net), net.constant(0.02)), net.constant(-1.0))
    return net.conv(y, 4, 6)


def commuting(label: str, between: Callable[[Net, str], str]) -> None:
    @row(f"Relu + BatchNormalization + {label}", "BatchNormalization")
    def _(net: Net) -> str:
        return between(net, net.batch_norm(net.op("Relu", image(net)), 4))


commuting("MaxPool + Conv", lambda n, y: n.conv(n.op("MaxPool", y, kernel_shape=[2, 2]), 4, 6, 1))
commuting(
    "AveragePool + Conv", lambda n, y: n.conv(n.op("AveragePool", y, kernel_shape=[2, 2]), 4, 6, 1)
)
commuting("Flatten + Gemm", lambda n, y: n.linear(n.op("Flatten", y), 256, 6))
commuting(
    "Concat + Conv", lambda n, y: n.conv(n.op("Concat", y, n.op("Sigmoid", "x"), axis=1), 8, 6, 1)
)
commuting("two Convs", lambda n, y: n.op("Add", n.conv(y, 4, 6, 1), n.conv(y, 4, 6, 1)))


@row("Conv + MaxPool + BatchNormalization", "BatchNormalization")
def _(net: Net) -> str:
    return net.batch_norm(net.op("MaxPool", net.conv(image(net), 4, 6), kernel_shape=[2, 2]), 6)


@row("Conv + Conv + Add + BatchNormalization", "BatchNormalization")
def _(net: Net) -> str:
    x = image(net)
    return net.batch_norm(net.op("Add", net.conv(x, 4, 6), net.conv(x, 4, 6, 1)), 6)


@row("parameters computed by nodes", "BatchNormalization")
def _(net: Net) -> str:
    var = net.op("Add", net.op("Exp", net.weight(6)), net.constant(0.1))
    rest = [net.weight(6) for _ in range(3)]
    return net.op("BatchNormalization", net.conv(image(net), 4, 6), *rest, var)


@row("MatMul + Mul, float64", "Mul")
def _(net: Net) -> str:
    y = net.op("MatMul", net.input("x", 3, 5, dtype=np.float64), net.weight(5, 6, dtype=np.float64))
    return net.op("Mul", y, net.weight(6, dtype=np.float64))


@row("weights shared by two Convs", "BatchNormalization")
def _(net: Net) -> str:
    x, weight = image(net), net.weight(6, 4, 1, 1)
    y = net.batch_norm(net.op("Conv", x, weight), 6)
    return net.op("Add", y, net.op("Conv", net.op("Relu", x), weight))


@row("weights in the layout of Keras", "Transpose", "BatchNormalization")
def _(net: Net) -> str:
    weight = net.op("Transpose", net.weight(3, 3, 4, 6), perm=[3, 2, 0, 1])
    return net.batch_norm(net.op("Conv", image(net), weight), 6)


@row("shape computed from a fixed input", "Shape", "Gather", "Concat")
def _(net: Net) -> str:
    rows = net.op("Gather", net.op("Shape", image(net)), net.constant([0], dtype=INT))
    return net.op("Reshape", "x", net.op("Concat", rows, net.constant([-1], dtype=INT), axis=0))


@row("Identity, Dropout", "Identity", "Dropout")
def _(net: Net) -> str:
    return net.op("Relu", net.op("Dropout", net.op("Identity", image(net))))


@row("Cast and Reshape that change nothing", "Cast", "Reshape")
def _(net: Net) -> str:
    y = net.op("Reshape", net.op("Cast", image(net), to=1), net.constant([2, 4, 8, 8], dtype=INT))
    return net.op("Relu", y)


@row("Transpose and back", "Transpose")
def _(net: Net) -> str:
    y = net.op("Transpose", image(net), perm=[0, 2, 3, 1])
    return net.op("Relu", net.op("Transpose", y, perm=[0, 3, 1, 2]))


@row("Pad into Conv", "Pad")
def _(net: Net) -> str:
    pads = net.constant([0, 0, 1, 1, 0, 0, 1, 1], dtype=INT)
    return net.op("Conv", net.op("Pad", image(net), pads), net.weight(6, 4, 3, 3))


@row("Pad into AveragePool", "Pad")
def _(net: Net) -> str:
    pads = net.constant([0, 0, 1, 1, 0, 0, 1, 1], dtype=INT)
    return net.op("AveragePool", net.op("Pad", image(net), pads), kernel_shape=[3, 3])


@row("Pad + BatchNormalization + Conv", "Pad", "BatchNormalization")
def _(net: Net) -> str:
    pads = net.constant([0, 0, 1, 1, 0, 0, 1, 1], dtype=INT)
    return net.conv(net.batch_norm(net.op("Pad", image(net), pads), 4), 4, 6, pads=[0] * 4)


@row("Conv between channels-last operators", "Transpose")
def _(net: Net) -> str:
    y = image(net)
    for _ in range(2):
        y = net.op("Transpose", net.conv(y, 4, 4), perm=[0, 2, 3, 1])
        y = net.op("Add", net.op("Sigmoid", y), net.weight(4))
        y = net.op("Transpose", y, perm=[0, 3, 1, 2])
    return y


@row("LayerNormalization spelled out", "ReduceMean")
def _(net: Net) -> str:
    x = net.input("x", 3, 5, 8)
    centred = net.op("Sub", x, net.op("ReduceMean", x, axes=[-1]))
    variance = net.op("ReduceMean", net.op("Pow", centred, net.constant(2.0)), axes=[-1])
    deviation = net.op("Sqrt", net.op("Add", variance, net.constant(1e-5)))
    y = net.op("Mul", net.op("Div", centred, deviation), net.weight(8))
    return net.op("Add", y, net.weight(8))


@row("GELU spelled out", "Erf", opset=20)
def _(net: Net) -> str:
    x = net.input("x", 3, 5, 8)
    y = net.op("Erf", net.op("Div", x, net.constant(np.sqrt(2))))
    y = net.op("Mul", x, net.op("Add", y, net.constant(1.0)))
    return net.op("Mul", y, net.constant(0.5))


@row("hard-swish spelled out", "Clip", "Div")
def _(net: Net) -> str:
    x = net.conv(image(net), 4, 4)
    y = net.op("Clip", net.op("Add", x, net.constant(3.0)), net.constant(0.0), net.constant(6.0))
    return net.op("Div", net.op("Mul", x, y), net.constant(6.0))


@row("dead nodes", "Sigmoid")
def _(net: Net) -> str:
    net.op("Sigmoid", image(net))
    return net.op("Relu", "x")


@row("the same node twice", TWICE)
def _(net: Net) -> str:
    x = image(net)
    return net.op("Sub", net.op("Exp", x), net.op("Neg", net.op("Exp", x)))


def verdict(model: onnx.ModelProto, gone: set[str], simplify: Any, folder: Path) -> str:
    source, target = folder / "source.onnx", folder / "target.onnx"
    onnx.save(model, source)
    target.unlink(missing_ok=True)
    try:
        simplify(source, target)
        simplified = onnx.load(target)
    except Exception:  # whatever it is, the tool failed
        return "!"
    try:
        for feed in random_feeds(model, 2):
            for x, y in zip(run(model, feed), run(simplified, feed), strict=True):
                np.testing.assert_allclose(y, x, rtol=0, atol=1e-4 * float(np.abs(x).max()))
    except Exception:  # it does not load or computes something else
        return "✗"
    left = Counter(node.op_type for node in simplified.graph.node)
    left[TWICE] = int(left["Exp"] > 1)
    return "–" if any(left[op] for op in gone) else "✓"


def lines() -> list[str]:
    found = [f"| | {' | '.join(simplifiers.TOOLS)} |", "|---|" + "---|" * len(simplifiers.TOOLS)]
    with TemporaryDirectory() as folder:
        for label, (build, gone, opset) in ROWS.items():
            net = Net()
            model = net.model(build(net), opset=opset)
            tools = simplifiers.TOOLS.values()
            marks = [verdict(model, gone, simplify, Path(folder)) for simplify in tools]
            found.append(f"| {label} | {' | '.join(marks)} |")
    return [*found, "", f"Versions: {simplifiers.versions()}; `onnxruntime` is its basic level."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/folding.md")
    table = "\n".join(lines()) + "\n"
    print(table)
    if parser.parse_args().write:
        page = PAGE.read_text()
        start, end = page.index(MARKS[0]) + len(MARKS[0]), page.index(MARKS[1])
        PAGE.write_text(page[:start] + table + page[end:])


if __name__ == "__main__":
    main()
