"""Multiply-accumulates with weights of the layers that were no candidates for int8.

The quantizer knows the sizes of what calibration observed, which is what its candidates read and
make. For the others the shapes that onnx infers tell, for inputs like the first sample. Without
samples lengths that the model leaves open are taken as `OPEN`. The counts are scaled by what the
candidates do: in proportion to batch, time and area, as products with weights are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from rustq.errors import ModelError
from rustq.folding import folded
from rustq.inference import infer_shapes

if TYPE_CHECKING:
    import onnx

    from rustq import _rustq

__all__ = ["count"]

OPEN = 64
"""In the place of a length that is not known."""

Shapes = Mapping[str, Sequence[int]]


def count(
    model: _rustq.Model, layers: Sequence[dict[str, Any]], sample: Mapping[str, Sequence[int]]
) -> None:
    """Fills in the `macs` of the records without, where they can be known.

    Args:
        model: the float model.
        layers: the records.
        sample: the shapes of the inputs in the first sample, if there is one.
    """
    missing = [layer for layer in layers if layer["macs"] is None and layer["op_type"] in _RULES]
    if not missing or not any(layer["macs"] for layer in layers):  # nothing to scale them by
        return
    counts = _counts(model, sample)
    known = [layer for layer in layers if layer["macs"] and counts.get(layer["name"])]
    nominal = sum(counts[layer["name"]] for layer in known)
    if not nominal:
        return
    scale = sum(layer["macs"] for layer in known) / nominal
    for layer in missing:
        if layer["name"] in counts:
            layer["macs"] = round(counts[layer["name"]] * scale)


def _counts(model: _rustq.Model, sample: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Of each layer by name, as far as shapes are known."""
    activations = {name for name, *_ in model.inputs}
    graph = _described(_sized(model, sample), activations)
    activations.update(name for node in graph.node for name in node.output)
    shapes, counts = _shapes(graph), {}
    for node in graph.node:
        rule = _RULES.get(node.op_type)
        if rule is None:
            continue
        try:
            weights = not activations.issuperset(node.input[:2])
            counts[node.name or node.output[0]] = rule(node, shapes) if weights else 0
        except (KeyError, IndexError):  # a shape that is not known, or does not fit the operator
            continue
    return counts


def _sized(model: _rustq.Model, sample: Mapping[str, Sequence[int]]) -> _rustq.Model:
    """The model for inputs of these shapes, if there is one."""
    try:
        return folded(model.with_input_shapes(sample))._core if sample else model
    except ModelError:
        return model


def _described(model: _rustq.Model, activations: Set[str]) -> onnx.GraphProto:
    """The graph with the shapes of values for these inputs; an empty one if onnx cannot infer
    them."""
    import onnx

    proto = onnx.load_model_from_string(model.skeleton().to_bytes())
    for value in proto.graph.input:
        for dim in value.type.tensor_type.shape.dim if value.name in activations else ():
            if dim.dim_value <= 0:  # some exporters write -1
                dim.dim_value = OPEN
    try:
        for data_prop in (False, True):
            infer_shapes(proto, data_prop=data_prop)
        return proto.graph
    except Exception:  # onnx raises several errors without a base class; all mean the same here
        return onnx.GraphProto()


def _shapes(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """The shapes of all values that are known in full."""
    shapes: dict[str, list[int]] = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            if all(dim.HasField("dim_value") for dim in dims):
                shapes[value.name] = [dim.dim_value for dim in dims]
    return shapes


def _convolution(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Each result is a sum over the weights of one output channel."""
    return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])


def _transposed(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Each input is multiplied by the weights of one input channel."""
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _product(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Each result is a sum over the axis that disappears."""
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-2 if transposed else -1]


def _recurrent(node: onnx.NodeProto, shapes: Shapes) -> int:
    """All weights are used once for each step of each sequence."""
    used = math.prod(shapes[node.input[1]]) + math.prod(shapes[node.input[2]])
    return math.prod(shapes[node.input[0]][:2]) * used


_RULES = {
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "ConvTranspose": _transposed,
    "Gemm": _product,
    "MatMul": _product,
    "MatMulInteger": _product,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
