"""Layers of ncnn that quantize what they read as it comes, and how attention becomes one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
from builders import Array, Net, run
from ncnn_runtime import Case
from ncnn_runtime import run as run_ncnn
from ncnn_simulator import quantize, read_param
from onnx import helper

ROWS, WIDTH, HEADS = 7, 24, 4
SIZE = WIDTH // HEADS


def ints(net: Net, *values: int) -> str:
    return net.constant(list(values), dtype=np.int64)


def heads(net: Net, x: str, perm: list[int], rows: int = ROWS) -> str:
    shape = ints(net, 1, rows, HEADS, SIZE)
    return net.op("Transpose", net.op("Reshape", x, shape), perm=perm)


def attended(net: Net, q: str, k: str, v: str, rows: int = ROWS) -> str:
    """Of Q, Kᵀ and V by heads."""
    scores = net.op("Mul", net.op("MatMul", q, k), net.constant(SIZE**-0.5))
    context = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
    merged = net.op("Transpose", context, perm=[0, 2, 1, 3])
    return net.op("Reshape", merged, ints(net, 1, rows, WIDTH))


def projected(net: Net, x: str, outputs: int = WIDTH) -> str:
    return net.linear(x, WIDTH, outputs, "MatMul")


def apart(net: Net) -> str:
    x = net.input("x", 1, ROWS, WIDTH)
    q, v = (heads(net, projected(net, x), [0, 2, 1, 3]) for _ in range(2))
    k = heads(net, projected(net, x), [0, 2, 3, 1])
    return projected(net, attended(net, q, k, v))


def together(net: Net) -> str:
    """One projection for Q, K and V, cut behind the transpose, as in many ViTs; Q is scaled."""
    x = projected(net, net.input("x", 1, ROWS, WIDTH), 3 * WIDTH)
    x = net.op("Reshape", x, ints(net, ROWS, 3, HEADS, SIZE))
    x = net.op("Transpose", x, perm=[1, 2, 0, 3])

    def part(i: int) -> str:
        return net.op("Squeeze", net.op("Slice", x, ints(net, i), ints(net, i + 1), ints(net, 0)),
                      ints(net, 0))  # fmt: skip

    q = net.op("Div", part(0), net.constant(2.0))
    scores = net.op("MatMul", q, net.op("Transpose", part(1), perm=[0, 2, 1]))
    context = net.op("MatMul", net.op("Softmax", scores, axis=-1), part(2))
    merged = net.op("Transpose", context, perm=[1, 0, 2])
    return projected(net, net.op("Reshape", merged, ints(net, 1, ROWS, WIDTH)))


def split(net: Net) -> str:
    """Cut by Split, and the elements of a head lie apart."""
    x = projected(net, net.input("x", 1, ROWS, WIDTH), 3 * WIDTH)
    names = ["q", "k", "v"]
    net.nodes.append(helper.make_node("Split", [x], names, axis=-1, name="split"))
    shape = [1, ROWS, SIZE, HEADS]
    q, k, v = (
        net.op("Transpose", net.op("Reshape", name, ints(net, *shape)), perm=perm)
        for name, perm in zip(names, ([0, 3, 1, 2], [0, 3, 2, 1], [0, 3, 1, 2]), strict=True)
    )
    scores = net.op("MatMul", q, k)
    context = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
    merged = net.op("Transpose", context, perm=[0, 2, 3, 1])
    return projected(net, net.op("Reshape", merged, ints(net, 1, ROWS, WIDTH)))


def across(net: Net) -> str:
    """Keys and values of another sequence."""
    x, y = net.input("x", 1, ROWS, WIDTH), net.input("y", 1, 5, WIDTH)
    q = heads(net, projected(net, x), [0, 2, 1, 3])
    k, v = (heads(net, projected(net, y), perm, rows=5) for perm in ([0, 2, 3, 1], [0, 2, 1, 3]))
    return projected(net, attended(net, q, k, v))


ATTENTIONS: dict[str, Callable[[Net], Any]] = {
    function.__name__: function for function in (apart, together, split, across)
}


def wrong_axis(net: Net) -> str:
    x = net.input("x", 1, ROWS, WIDTH)
    q, v = (heads(net, projected(net, x), [0, 2, 1, 3]) for _ in range(2))
    k = heads(net, projected(net, x), [0, 2, 3, 1])
    scores = net.op("Softmax", net.op("MatMul", q, k), axis=2)
    merged = net.op("Transpose", net.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    return projected(net, net.op("Reshape", merged, ints(net, 1, ROWS, WIDTH)))


def activated(net: Net) -> str:
    x = net.input("x", 1, ROWS, WIDTH)
    q = heads(net, net.op("Relu", projected(net, x)), [0, 2, 1, 3])
    v, k = (heads(net, projected(net, x), perm) for perm in ([0, 2, 1, 3], [0, 2, 3, 1]))
    return projected(net, attended(net, q, k, v))


def read_twice(net: Net) -> list[str]:
    result = apart(net)
    scores = next(node.output[0] for node in net.nodes if node.op_type == "Softmax")
    return [result, net.op("Relu", scores)]


def mixed_rows(net: Net) -> str:
    """The rows of V are turned round: no column of the projection keeps to its row."""
    x = net.input("x", 1, ROWS, WIDTH)
    q, k = (heads(net, projected(net, x), perm) for perm in ([0, 2, 1, 3], [0, 2, 3, 1]))
    v = net.op("Reshape", projected(net, x), ints(net, 1, HEADS, ROWS, SIZE))
    return projected(net, attended(net, q, k, v))


OTHERS: dict[str, Callable[[Net], Any]] = {
    function.__name__: function for function in (wrong_axis, activated, read_twice, mixed_rows)
}


def built(build: Callable[[Net], Any]) -> onnx.ModelProto:
    net = Net(seed=3)
    outputs = build(net)
    return net.model(*([outputs] if isinstance(outputs, str) else outputs))


def feed(model: onnx.ModelProto) -> dict[str, Array]:
    random = np.random.default_rng(5)

    def array(value: onnx.ValueInfoProto) -> Array:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.elem_type == onnx.TensorProto.INT64:
            return random.integers(0, 8, shape)
        return random.normal(size=shape).astype(np.float32)

    return {value.name: array(value) for value in model.graph.input}


def saved(model: onnx.ModelProto, path: Path, **choices: Any) -> rustq.QuantizedModel:
    config = rustq.QuantConfig(**choices)
    result = rustq.quantize(model, target="ncnn", config=config)
    result.save(path)
    return result


def in_ncnn(model: onnx.ModelProto, path: Path) -> list[Array]:
    unbatched = {name: value[0] for name, value in feed(model).items()}
    names = [value.name for value in model.graph.output]
    return run_ncnn([Case(path, [unbatched], names)])[0][0]


def kinds(path: Path) -> list[str]:
    return [layer.kind for layer in read_param(path)]


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_is_one_layer(name: str, tmp_path: Path) -> None:
    model, path = built(ATTENTIONS[name]), tmp_path / "net.param"
    expected = run(model, feed(model))[0][0]
    saved(model, path, weights="float32")
    assert kinds(path).count("MultiHeadAttention") == 1
    assert not {"MatMul", "InnerProduct", "Softmax"} & set(kinds(path))
    (found,) = in_ncnn(model, path)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()

    result = saved(model, path)
    (layer,) = [layer for layer in read_param(path) if layer.kind == "MultiHeadAttention"]
    assert layer.get(18) == 2
    products = sum(node.op_type == "MatMul" for node in model.graph.node)
    quantized = [each.name for each in result.report.layers if each.quantized]
    assert len(quantized) == products - 2  # all but the two of activations
    table = path.with_suffix(".table").read_text().split("\n")
    assert [len(line.split(" ")) - 1 for line in table[:4]] == [WIDTH] * 3 + [1]
    (found,) = in_ncnn(model, path)
    assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_attention(name: str, tmp_path: Path) -> None:
    model, path = built(OTHERS[name]), tmp_path / "net.param"
    saved(model, path, weights="float32")
    assert "MultiHeadAttention" not in kinds(path)
    expected = [value[0] for value in run(model, feed(model))]
    for found, wanted in zip(in_ncnn(model, path), expected, strict=True):
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_attention_stays_float_where_a_part_is_excluded(tmp_path: Path) -> None:
    model, path = built(apart), tmp_path / "net.param"
    name = next(node.name for node in model.graph.node if node.op_type == "MatMul")
    result = saved(model, path, exclude=[name])
    (layer,) = [layer for layer in read_param(path) if layer.kind == "MultiHeadAttention"]
    assert layer.get(18) == 0
    assert not any(layer.quantized for layer in result.report.layers)
    assert name in [layer.name for layer in result.report.layers if "excluded" in layer.reason]


def matrix(net: Net) -> str:
    return projected(net, net.input("x", 1, ROWS, WIDTH), 10)


def bare(net: Net) -> str:
    return net.op("MatMul", net.input("x", 1, ROWS, WIDTH), net.weight(WIDTH, 10))


def vector(net: Net) -> str:
    return net.op("Relu", net.linear(net.input("x", 1, WIDTH), WIDTH, 10))


@pytest.mark.parametrize("build", [matrix, bare, vector])
def test_products_without_ranges_are_gemms(build: Callable[[Net], str], tmp_path: Path) -> None:
    model, path = built(build), tmp_path / "net.param"
    result = saved(model, path)
    assert "Gemm" in kinds(path)
    assert all(layer.quantized for layer in result.report.layers)
    (found,) = in_ncnn(model, path)
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in model.graph.initializer}
    node = next(n for n in model.graph.node if n.op_type in ("Gemm", "MatMul"))
    weight = constants[node.input[1]]
    bias = next((v for v in constants.values() if v.ndim == 1), 0)
    x = feed(model)["x"].reshape(-1, WIDTH)
    by_row, scale = 127 / np.abs(x).max(axis=1, keepdims=True), 127 / np.abs(weight).max()
    sums = quantize(x, by_row).astype(np.int64) @ quantize(weight, scale).astype(np.int64)
    expected = sums / (by_row * scale) + bias
    if model.graph.node[-1].op_type == "Relu":
        expected = np.maximum(expected, 0)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-4)


def recurrent(op_type: str, gates: int, bidirectional: bool) -> Callable[[Net], str]:
    directions = 2 if bidirectional else 1

    def build(net: Net) -> str:
        x = net.op("Transpose", net.input("x", 1, ROWS, 6), perm=[1, 0, 2])
        shapes = ((gates * 5, 6), (gates * 5, 5), (gates * 10,))
        weights = [net.weight(directions, *shape, fan_in=6) for shape in shapes]
        facts = {"linear_before_reset": 1} if op_type == "GRU" else {}
        direction = "bidirectional" if bidirectional else "forward"
        y = net.op(op_type, x, *weights, hidden_size=5, direction=direction, **facts)
        merged = net.op("Transpose", y, perm=[0, 2, 1, 3])
        return net.op("Reshape", merged, ints(net, ROWS, 5 * directions))

    return build


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("op_type", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers(op_type: str, gates: int, bidirectional: bool, tmp_path: Path) -> None:
    model, path = built(recurrent(op_type, gates, bidirectional)), tmp_path / "net.param"
    result = saved(model, path)
    assert [(layer.op_type, layer.quantized) for layer in result.report.layers] == [(op_type, True)]
    expected = run(model, feed(model))[0]
    found = in_ncnn(model, path)[0].reshape(expected.shape)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 1e-6 < error < 0.02


def test_embeddings(tmp_path: Path) -> None:
    model = built(
        lambda net: net.op("Gather", net.weight(8, 6), net.input("x", 1, 5, dtype=np.int64))
    )
    path = tmp_path / "net.param"
    saved(model, path)
    (layer,) = [layer for layer in read_param(path) if layer.kind == "Embed"]
    assert layer.get(18) == 2
    expected = run(model, feed(model))[0][0]
    assert np.abs(in_ncnn(model, path)[0] - expected).max() <= np.abs(expected).max() / 100


def test_the_report_counts_each_product_once(tmp_path: Path) -> None:
    result = saved(built(apart), tmp_path / "net.param")
    macs = [layer.macs for layer in result.report.layers]
    assert sorted(macs, key=bool) == [*[ROWS * WIDTH**2] * 4]
    assert result.report.mac_share() == 1
