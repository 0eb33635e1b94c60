"""What nodes with constant inputs compute, and shapes that are known, become constants; nothing else does."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
from builders import Net
from onnx import TensorProto, helper, numpy_helper
from test_fold import branches, folded, op_types

INT64 = np.int64


def shaped(net: Net, x: str, *, start: int | None = None) -> str:
    """x reshaped to (rows, -1), as torch spells `x.view(x.size(0), -1)`."""
    shape = net.op("Shape", x, **({} if start is None else {"start": start}))
    rows = net.op("Gather", shape, net.constant(0, dtype=INT64), axis=0)
    rows = net.op("Unsqueeze", rows, net.constant([0], dtype=INT64))
    target = net.op("Concat", rows, net.constant([-1], dtype=INT64), axis=0)
    return net.op("Reshape", x, target)


def test_shape_computations_of_a_fixed_input() -> None:
    net = Net()
    y = shaped(net, net.conv(net.input("x", 2, 3, 8, 8), 3, 4))
    assert op_types(folded(net.model(net.op("Relu", y)))) == {"Conv": 1, "Reshape": 1, "Relu": 1}


def test_dynamic_batch_stays() -> None:
    net = Net()
    y = shaped(net, net.conv(net.input("x", "n", 3, 8, 8), 3, 4))
    feeds = [{"x": np.ones((n, 3, 8, 8), np.float32)} for n in (1, 3)]
    result = folded(net.model(net.op("Relu", y)), feeds=feeds)
    assert op_types(result)["Shape"] == 1


def test_stale_descriptions_are_not_believed() -> None:
    net = Net()
    y = shaped(net, net.conv(net.input("x", 2, 3, 8, 8), 3, 4))
    model = net.model(net.op("Relu", y), described=True)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    feeds = [{"x": np.ones((n, 3, 8, 8), np.float32)} for n in (1, 3)]
    assert op_types(folded(model, feeds=feeds))["Shape"] == 1


@pytest.mark.parametrize("start,end", [(None, None), (1, 3), (-2, None), (0, -1), (3, 1)])
def test_shape_from_start_to_end(start: int | None, end: int | None) -> None:
    net = Net()
    limits = {k: v for k, v in (("start", start), ("end", end)) if v is not None}
    shape = net.op("Shape", net.input("x", 2, 3, 4, 5), **limits)
    y = net.op("Cast", shape, to=TensorProto.FLOAT)
    result = folded(net.model(net.op("ReduceSum", net.op("Mul", y, y))))
    assert "Shape" not in op_types(result)


def test_parameters_of_batch_norm_computed_by_nodes() -> None:
    net = Net()
    y = net.conv(net.input("x", 2, 3, 8, 8), 3, 4)
    gamma = net.op(
        "Squeeze",
        net.op("Transpose", net.weight(4, 1), perm=[1, 0]),
        net.constant([0], dtype=INT64),
    )
    half = net.constant(np.linspace(0.5, 1, 4), dtype=np.float16)
    var = net.op("Add", net.op("Cast", half, to=TensorProto.FLOAT), net.constant(0.1))
    beta = net.op("Expand", net.constant([0.3]), net.constant([4], dtype=INT64))
    mean = net.op("Gather", net.weight(9), net.constant([1, 3, 5, 7], dtype=INT64))
    y = net.op("BatchNormalization", y, gamma, beta, mean, net.op("Sqrt", var))
    assert op_types(folded(net.model(y))) == {"Conv": 1}


@pytest.mark.parametrize("multiplier", [1, 2])
def test_weights_in_the_layout_of_keras(multiplier: int) -> None:
    """[h, w, in, m] of a depthwise convolution, and [h, w, in, out]."""
    net = Net()
    depthwise = net.op("Transpose", net.weight(3, 3, 4, multiplier), perm=[2, 3, 0, 1])
    depthwise = net.op("Reshape", depthwise, net.constant([4 * multiplier, 1, 3, 3], dtype=INT64))
    y = net.op("Conv", net.input("x", 2, 4, 8, 8), depthwise, group=4)
    y = net.batch_norm(y, 4 * multiplier)
    point = net.op("Transpose", net.weight(1, 1, 4 * multiplier, 6), perm=[3, 2, 0, 1])
    y = net.batch_norm(net.op("Conv", y, point), 6)
    assert op_types(folded(net.model(y))) == {"Conv": 2}


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64, np.int8, np.bool_])
def test_types(dtype: Any) -> None:
    net = Net()
    x = net.input("x", 2, 3, dtype=dtype)
    constant = net.op("Transpose", net.constant(np.ones((3, 2)), dtype=dtype), perm=[1, 0])
    y = net.op("Concat", x, constant, axis=0)
    assert op_types(folded(net.model(y))) == {"Concat": 1}


HOSTILE = {
    "ConstantOfShape": lambda net: net.op(
        "ConstantOfShape", net.constant([1 << 20, 1 << 20], dtype=INT64)
    ),
    "Expand": lambda net: net.op(
        "Expand", net.constant([1.0]), net.constant([1 << 30, 64], dtype=INT64)
    ),
    "Range": lambda net: net.op("Range", *(net.constant(v, dtype=INT64) for v in (0, 1 << 40, 1))),
    "Tile": lambda net: net.op("Tile", net.constant([1.0]), net.constant([1 << 40], dtype=INT64)),
    "broadcast": lambda net: net.op("Add", net.weight(1 << 14, 1), net.weight(1, 1 << 14)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_constants_that_would_be_huge_stay_nodes(name: str) -> None:
    net = Net()
    y = net.op("ReduceSum", net.op("Cast", HOSTILE[name](net), to=TensorProto.FLOAT), keepdims=0)
    y = net.op("Add", net.input("x", 2), y)
    model = net.model(y)
    started = time.perf_counter()
    result = rustq.fold(model)
    assert time.perf_counter() - started < 5
    assert result.op_counts["ReduceSum"] == 1
    assert result.byte_size < 1 << 20


def test_a_small_file_asks_for_no_large_one() -> None:
    net = Net()
    y = net.constant([1, 1000, 1000], dtype=np.int64)
    for _ in range(4):  # the shape of each is known when the one before is computed
        y = net.op("Expand", net.constant(1.0), y)
        y = net.op("Mul", net.op("Shape", y), net.constant([2, 1, 1], dtype=np.int64))
    y = net.op("ReduceMax", net.op("Expand", net.constant(1.0), y), keepdims=0)
    result = rustq.fold(net.model(net.op("Add", net.input("x", 2), y)))
    assert result.byte_size < 10_000_000


def test_random_numbers_stay_random() -> None:
    net = Net()
    noise = net.op("RandomNormalLike", net.weight(3))
    y = net.op("Add", net.input("x", 2, 3), net.op("Mul", noise, net.constant(0.0)))
    assert op_types(folded(net.model(y)))["RandomNormalLike"] == 1


def test_quantized_weights_stay_quantized() -> None:
    net = Net()
    weight = net.constant(np.arange(-6, 6).reshape(3, 4), dtype=np.int8)
    weight = net.op("DequantizeLinear", weight, net.constant(0.1))
    y = net.op("MatMul", net.input("x", 2, 3), net.op("Mul", weight, net.constant(2.0)))
    assert op_types(folded(net.model(y))) == {"DequantizeLinear": 1, "Mul": 1, "MatMul": 1}


def test_overridable_initializers_are_no_constants() -> None:
    net = Net()
    weight = net.weight(3, name="w")
    net.inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3]))
    y = net.op("Add", net.input("x", 2, 3), net.op("Sqrt", net.op("Abs", weight)))
    x = {"x": np.ones((2, 3), np.float32)}
    model = folded(net.model(y), feeds=[x, {**x, "w": np.full(3, 4, np.float32)}])
    assert op_types(model) == {"Abs": 1, "Sqrt": 1, "Add": 1}


def test_outputs_and_captured_values_are_still_there() -> None:
    net = Net()
    root = net.op("Sqrt", net.constant(np.ones(3)), out="root")
    captured = net.op("Exp", net.constant(np.ones((1, 3, 5, 5))), out="captured")
    condition = net.input("condition", dtype=np.bool_)
    y = net.op("If", condition, **branches(captured, 3))
    model = folded(net.model(y, root), feeds=[{"condition": np.array(v)} for v in (True, False)])
    assert op_types(model) == {"Sqrt": 1, "If": 1}


def test_an_operator_without_a_kernel_stays() -> None:
    net = Net()
    node = helper.make_node("Unknown", [net.weight(3)], ["made"], domain="my.domain")
    net.nodes.append(node)
    graph = helper.make_graph(
        [*net.nodes, helper.make_node("Add", ["x", "made"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
        net.initializers,
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1)]
    model = helper.make_model(graph, opset_imports=imports)
    assert rustq.fold(model).op_counts == {"Unknown": 1, "Add": 1}


def test_the_descriptions_of_the_file_are_kept() -> None:
    net = Net()
    y = net.op("Relu", net.conv(net.input("x", 2, 3, 8, 8), 3, 4), out="act")
    plain = net.model(shaped(net, y))
    described = net.model(net.nodes[-1].output[0], described=True)
    assert not folded(plain).graph.value_info
    assert {value.name for value in folded(described).graph.value_info} >= {"act"}


def test_constants_without_a_kernel_in_onnxruntime() -> None:
    """Products of bfloat16, which only onnx's reference computes."""
    net = Net()
    rows = net.op("Mul", *(half(net, net.random.uniform(1, 2, 4)) for _ in range(2)))
    scale = net.op("Reshape", rows, net.constant([4, 1, 1], dtype=INT64))
    x = net.input("x", 1, 3, 5, 5)
    net.inputs[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    weight = half(net, net.random.normal(size=(4, 3, 1, 1)))
    model = net.model(net.op("Mul", net.op("Conv", x, weight), scale), opset=22)
    result = rustq.fold(model).to_onnx()
    assert op_types(result) == {"Conv": 1}
    w, a, b = (constants(model)[name] for name in (weight, *model.graph.node[0].input))
    scale_first = (a * b).astype(np.float64).reshape(4, 1, 1, 1)
    (found,) = constants(result).values()
    np.testing.assert_array_equal(found, (w.astype(np.float64) * scale_first).astype(w.dtype))


def half(net: Net, values: Any) -> str:
    name = f"half{len(net.initializers)}"
    kind = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    net.initializers.append(numpy_helper.from_array(values.astype(kind), name))
    return name


def constants(model: onnx.ModelProto) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_what_was_done_is_told() -> None:
    net = Net()
    y = net.batch_norm(net.conv(net.input("x", 2, 3, 8, 8), 3, 4), 4)
    y = net.batch_norm(net.op("Sigmoid", y), 4)
    result = rustq.fold(net.model(net.op("Relu", y)))
    norms = [record for record in result.folding if record.op_type == "BatchNormalization"]
    assert [record.declined is None for record in norms] == [True, False]
    in_front, behind = (norms[1].declined or "").split("; ")
    assert "Sigmoid" in in_front
    assert "Relu" in behind
