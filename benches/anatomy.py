"""What is in a quantized ONNX file: how many layers run in int8, and how small it could be."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"}
INT8_LAYERS = {
    "ConvInteger",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
    "QGemm",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
}
WEIGHT_STEPS = {"DequantizeLinear", "QuantizeLinear", "Cast", "Identity", "Transpose", "Reshape"}


class Anatomy:
    """The nodes and constant tensors of a model, those of its subgraphs included."""

    def __init__(self, path: Path) -> None:
        self.size = path.stat().st_size
        graphs = list(_graphs(onnx.load(path).graph))
        self.nodes = [node for graph in graphs for node in graph.node]
        self.constants = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.users: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for graph in graphs:
            for value in graph.output:
                self.users[value.name].append(("output", 0))
        for node in self.nodes:
            for index, name in enumerate(node.input):
                self.users[name].append((node.op_type, index))
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    self.constants[node.output[0]] = attribute.t

    def int8_layers(self) -> tuple[int, int]:
        """(layers in int8, all layers); a layer multiplies an activation by a stored weight."""
        weighted = [node for node in self.nodes if self._has_weight(node)]
        return sum(map(self._is_int8, weighted)), len(weighted)

    def _has_weight(self, node: onnx.NodeProto) -> bool:
        if node.op_type in INT8_LAYERS:
            return True
        return node.op_type in LAYERS and any(map(self._is_stored, node.input[:2]))

    def _is_stored(self, name: str) -> bool:
        while name not in self.constants:
            node = self.producer.get(name)
            if node is None or node.op_type not in WEIGHT_STEPS:
                return False
            name = node.input[0]
        return True

    def _is_int8(self, node: onnx.NodeProto) -> bool:
        origins = [self.producer.get(name) for name in node.input[:2]]
        return node.op_type in INT8_LAYERS or all(
            origin is not None and origin.op_type == "DequantizeLinear" for origin in origins
        )

    def least_size(self) -> int:
        """Bytes of the int8 weights, their scales and biases, and of what stays float; each once.

        A float weight that is quantized at run time counts as one byte an element; zero points
        (all 0 for symmetric weights), tensors that nothing uses, and the graph's own description
        count nothing.
        """
        contents: dict[bytes, int] = {}
        for name, tensor in self.constants.items():
            users = self.users[name]
            if not users or all(
                kind in {"QuantizeLinear", "DequantizeLinear"} and i == 2 for kind, i in users
            ):
                continue
            if all(user == ("QuantizeLinear", 0) for user in users):
                size = int(np.prod(tensor.dims))
            else:
                size = numpy_helper.to_array(tensor).nbytes
            contents[_digest(tensor)] = size
        return sum(contents.values())

    def graph_size(self) -> int:
        """Bytes of everything but tensor contents: nodes, names, shapes, metadata."""
        return self.size - sum(numpy_helper.to_array(t).nbytes for t in self.constants.values())


def _digest(tensor: onnx.TensorProto) -> bytes:
    nameless = onnx.TensorProto()
    nameless.CopyFrom(tensor)
    nameless.ClearField("name")
    return hashlib.sha256(nameless.SerializeToString(deterministic=True)).digest()


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)
