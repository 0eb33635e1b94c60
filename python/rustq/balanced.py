"""Values whose channels are on one scale in a quantized model, under their own names again.

Such a model holds them divided by a factor for each channel, which the weights around them take up.
From the same integers, a DequantizeLinear with a scale for each channel makes the value itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from rustq.samples import Array, Feed

if TYPE_CHECKING:
    import onnx

    from rustq.measuring import Sessions
    from rustq.report import LayerReport

__all__ = ["DIVIDED", "put_back"]

DIVIDED = "_divided"
"""Behind the name of a value: the same divided by the factors of its channels."""
FACTORS = "_factors"
"""Behind the name of a value that is divided where it is made in float, or put back for float
operators: what its channels are multiplied by to be divided."""

ALONG_THE_FIRST = frozenset({"Conv", "AveragePool", "GlobalAveragePool"})
"""Operators whose channels are along axis 1; those of others are along the last."""
PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})


def put_back(
    quantized: onnx.ModelProto,
    graph: onnx.GraphProto,
    layers: Iterable[LayerReport],
    feed: Feed,
    run_as: Sessions,
) -> None:
    """Adds the values that a quantized model holds divided alone, undivided.

    Their scales are those of the report. Where it has none, because the model came as a file, the
    factors are read off its weights.

    Args:
        quantized: the model, which is changed.
        graph: the float model, folded as it was quantized.
        layers: the report's.
        feed: one to run the quantized model on, to have its weights decoded.
        run_as: how it is run.
    """
    import onnx

    pairs = {n.output[0]: n for n in quantized.graph.node if n.op_type == "DequantizeLinear"}
    made = {name for node in quantized.graph.node for name in node.output}
    axes = _axes(graph)
    divided = {value: pairs[value + DIVIDED] for value in axes if value + DIVIDED in pairs}
    missing = {value: pair for value, pair in divided.items() if value not in made}
    scales = {
        tensor.name: np.array(tensor.scale, np.float32)
        for layer in layers
        for tensor in (*layer.inputs, *layer.outputs)
        if tensor.axis is not None
    }
    constants = _constants(quantized.graph)
    if not scales.keys() >= missing.keys():
        weights = _decoded_weights(quantized, feed, run_as)
        factors = _factors(graph, weights, constants, divided.keys())
        scales |= {v: constants[pair.input[1]] * factors[v] for v, pair in missing.items()}
    for value, pair in missing.items():
        zero = constants[pair.input[2]].ravel()[0]
        parts = {"scale": scales[value], "zero_point": np.full(scales[value].shape, zero)}
        names = [f"{value}_undivided_{part}" for part in parts]
        for name, array in zip(names, parts.values(), strict=True):
            quantized.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        inputs = [pair.input[0], *names]
        node = onnx.helper.make_node("DequantizeLinear", inputs, [value], axis=axes[value])
        quantized.graph.node.append(node)


def _axes(graph: onnx.GraphProto) -> dict[str, int]:
    """The axis of the channels of each value that a node reads or makes."""
    axes: dict[str, int] = {}
    for node in graph.node:
        for name in (*node.input[:1], *node.output):
            if node.op_type in ALONG_THE_FIRST or name not in axes:
                axes[name] = 1 if node.op_type in ALONG_THE_FIRST else -1
    return axes


def _constants(graph: onnx.GraphProto) -> dict[str, Array]:
    import onnx

    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}


def _decoded_weights(quantized: onnx.ModelProto, feed: Feed, run_as: Sessions) -> dict[str, Array]:
    """What products multiply by in a quantized model, by their names, as far as it is computed."""
    import onnx

    inputs = {node.name: node.input[1] for node in quantized.graph.node if node.op_type in PRODUCTS}
    made = {name for node in quantized.graph.node for name in node.output}
    inputs = {name: value for name, value in inputs.items() if value in made}
    probed = onnx.ModelProto()
    probed.CopyFrom(quantized)
    del probed.graph.output[:]
    values = sorted(set(inputs.values()))
    probed.graph.output.extend(map(onnx.helper.make_empty_tensor_value_info, values))
    arrays = run_as.session(probed.SerializeToString()).run(values, feed)
    found = dict(zip(values, arrays, strict=True))
    return {name: found[value] for name, value in inputs.items()}


def _factors(
    graph: onnx.GraphProto,
    weights: Mapping[str, Array],
    constants: Mapping[str, Array],
    divided: Iterable[str],
) -> dict[str, Array]:
    """The factors of the channels of values, as far as they are divided by any.

    Weights w of the float model have become w · rᵢ / rₒ in the other, by the factors of the
    channels they read and make, and are rounded.

    Args:
        graph: the float model's.
        weights: those of the quantized model, see `_decoded_weights`.
        constants: those of the quantized model.
        divided: the values that are divided in the quantized model.
    """
    originals, divided = _constants(graph), set(divided)
    found: dict[str, Array] = {}
    for node in graph.node:
        output = node.output[0]
        known = [found[name] for name in node.input if name in found]
        if output + FACTORS in constants:
            found[output] = 1 / constants[output + FACTORS].ravel()
        elif node.op_type in PRODUCTS and node.name in weights and node.input[1] in originals:
            rows, rounded = (_rows(node, w) for w in (originals[node.input[1]], weights[node.name]))
            if node.input[0] in divided and node.input[0] in found:
                rows = rows * _of_inputs(node, found[node.input[0]], len(rows))[..., None]
            energy, product = (np.einsum("ocx,ocx->o", rows, w) for w in (rows, rounded))
            found[output] = np.divide(energy, product, np.ones_like(energy), where=product != 0)
        elif known and node.op_type not in PRODUCTS:
            found[output] = np.concatenate(known) if node.op_type == "Concat" else known[0]
    return {value: factors.astype(np.float32) for value, factors in found.items()}


def _rows(node: onnx.NodeProto, weights: Array) -> Array:
    """Weights as [output channels, input channels of the group, positions of the window]."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    by_rows = node.op_type == "Conv" or transposed
    rows = weights.astype(np.float64) if by_rows else weights.astype(np.float64).T
    return rows.reshape(*rows.shape[:2], -1)


def _of_inputs(node: onnx.NodeProto, factors: Array, outputs: int) -> Array:
    """The factor of each channel that each of the output channels sees."""
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    return np.repeat(factors.reshape(groups, -1), outputs // groups, axis=0)
