"""Small models built node by node, and ONNX Runtime to run them: shared by the end-to-end tests."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]


class Net:
    """A graph under construction. Weights are random, from a fixed seed."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.inputs: list[onnx.ValueInfoProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def input(self, name: str, *shape: int | str | None, dtype: Any = np.float32) -> str:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def constant(self, value: Any, name: str = "", dtype: Any = np.float32) -> str:
        name = name or f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, *shape: int, fan_in: int = 1, name: str = "", dtype: Any = np.float32) -> str:
        values = self.random.normal(size=shape) / np.sqrt(fan_in)
        return self.constant(values, name, dtype)

    def op(
        self, op_type: str, *inputs: str, out: str = "", name: str = "", **attributes: Any
    ) -> str:
        """Adds a node with one output, called `out`; returns the output."""
        label = f"{op_type.lower()}{len(self.nodes)}"
        node = helper.make_node(op_type, inputs, [out or label], name or f"n_{label}", **attributes)
        self.nodes.append(node)
        return node.output[0]

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 3, **attributes: Any) -> str:
        depth = inputs // attributes.get("group", 1)
        weight = self.weight(outputs, depth, kernel, kernel, fan_in=depth * kernel**2)
        attributes.setdefault("pads", [kernel // 2] * 4)
        return self.op("Conv", x, weight, self.weight(outputs, fan_in=100), **attributes)

    def batch_norm(self, x: str, channels: int, dtype: Any = np.float32, **more: Any) -> str:
        draw = self.random.uniform
        ranges = ((0.5, 1.5), (-0.5, 0.5), (-0.5, 0.5), (0.5, 1.5))
        constants = [self.constant(draw(lo, hi, channels), dtype=dtype) for lo, hi in ranges]
        return self.op("BatchNormalization", x, *constants, **more)

    def linear(self, x: str, inputs: int, outputs: int, op_type: str = "Gemm") -> str:
        weight = self.weight(inputs, outputs, fan_in=inputs)
        bias = self.weight(outputs, fan_in=100)
        if op_type == "Gemm":
            return self.op("Gemm", x, weight, bias)
        return self.op("Add", self.op("MatMul", x, weight), bias)

    def model(
        self,
        *outputs: str,
        opset: int = 17,
        ir_version: int = 0,
        domains: Sequence[str] = (),
        described: bool = False,
    ) -> onnx.ModelProto:
        """The checked model with these outputs.

        With `described` it holds the types of the values in between, as some exporters write them.
        """
        inputs = {value.name: value for value in self.inputs}
        values = [inputs.get(name, onnx.ValueInfoProto(name=name)) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", self.inputs, values, self.initializers)
        imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
        model = helper.make_model(graph, opset_imports=imports, producer_name="tests")
        model.ir_version = ir_version or (10 if opset >= 21 else 8)
        model = onnx.shape_inference.infer_shapes(model)
        if not described:
            model.graph.ClearField("value_info")
        onnx.checker.check_model(model, full_check=True)
        return model


def session(model: Any, *, optimize: bool = True, optimized: Path | None = None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # What the symmetric scheme asks for on x86; elsewhere it is the default.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.intra_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(_bytes(model), options, providers=["CPUExecutionProvider"])


def run(model: Any, feed: Feed, *, optimize: bool = False) -> list[Array]:
    """The outputs of a model, by default without any optimization by ONNX Runtime."""
    outputs: list[Array] = session(model, optimize=optimize).run(None, feed)
    return outputs


@cache
def saturates() -> bool:
    """Whether integer kernels add up pairs of products in 16 bits here, as without VNNI on x86:
    weights that a file came with have no room for that."""
    weights = numpy_helper.from_array(np.full((64, 16), 127, np.int8), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [8, 64])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [8, 16])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (sums,) = run(model, {"x": np.full((8, 64), 255, np.uint8)}, optimize=True)
    return bool((sums < 64 * 255 * 127).any())


def _bytes(model: Any) -> bytes:
    content: bytes = (
        model.SerializeToString() if isinstance(model, onnx.ModelProto) else model.to_bytes()
    )
    return content


def sqnr(expected: Array, found: Array) -> float:
    """Signal to noise in dB."""
    x, y = expected.astype(np.float64), found.astype(np.float64)
    noise = float(((x - y) ** 2).sum())
    return float("inf") if noise == 0 else 10 * np.log10(float((x**2).sum()) / noise + 1e-30)


def random_feeds(
    model: onnx.ModelProto, count: int = 4, seed: int = 1, batch: int = 2
) -> list[Feed]:
    """Standard normal values, or integers below 8, for every input without a default value."""
    random = np.random.default_rng(seed)
    defaults = {tensor.name for tensor in model.graph.initializer}

    def array(value: onnx.ValueInfoProto) -> Array:
        kind = value.type.tensor_type
        shape = [dim.dim_value or batch for dim in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if dtype.kind == "f":
            return np.asarray(random.normal(size=shape)).astype(dtype)
        return np.asarray(random.integers(0, 2 if dtype.kind == "b" else 8, size=shape)).astype(
            dtype
        )

    inputs = [value for value in model.graph.input if value.name not in defaults]
    return [{value.name: array(value) for value in inputs} for _ in range(count)]
