"""The layers of a quantized model that came as a file, beside the float model it was made from.

A node of the float model is quantized in the file if the node of its name there, or what makes the
same value, reads an activation or a weight from integers. A Relu or Clip between a layer and its
QuantizeLinear belongs to the layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rustq.balanced import DIVIDED
from rustq.fusion import CONVERSIONS
from rustq.report import Report

if TYPE_CHECKING:
    import onnx

    from rustq import _rustq

__all__ = ["read_report"]

CLIPS = frozenset({"Relu", "Clip"})
DECODING = frozenset(
    {"Cast", "DequantizeLinear", "Gather", "Mul", "Reshape", "Slice", "Sub", "Transpose"}
)
"""What the codes of weights go through: codes below 8 bits look their levels up in a table."""
LEVELS = "_levels"
"""Behind the name of a number format: its table of levels."""
REASON = "float in the file"


def read_report(model: _rustq.Model, quantized: bytes) -> Report | None:
    """What of a float model is quantized in another that has the names of its nodes or values;
    `None` if nothing is found there.

    Args:
        model: the float model, folded.
        quantized: the serialized model with QuantizeLinear/DequantizeLinear pairs.
    """
    import onnx

    graph = onnx.load_model_from_string(model.to_bytes()).graph
    pairs = _Pairs(onnx.load_model_from_string(quantized).graph)
    records = list(_records(graph, pairs))
    if not any(record["quantized"] for record in records):
        return None
    formats = Counter(record["weights"] for record in records if record["weights"])
    weights = formats.most_common(1)[0][0] if formats else "int8"
    return Report.from_records(records, target="onnxruntime", weights=weights)


def _records(graph: onnx.GraphProto, pairs: _Pairs) -> Iterator[dict[str, Any]]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    taken: set[str] = set()
    for node in graph.node:
        if node.output[0] in taken:
            continue
        behind = readers.get(node.output[0], [])
        values = [node.output[0]]
        if len(behind) == 1 and behind[0].op_type in CLIPS:
            values.append(behind[0].output[0])
        weights = pairs.reads(node.name, values)
        stored = [pairs.stored[value] for value in values if value in pairs.stored]
        if weights is not None and stored and stored[0]["name"] != node.output[0]:
            taken.add(stored[0]["name"])
        yield {
            "name": node.name or node.output[0],
            "op_type": node.op_type,
            "quantized": weights is not None,
            "weights": weights or "",
            "reason": "" if weights is not None else REASON,
            "outputs": stored[:1] if weights is not None else [],
        }


class _Pairs:
    """What is quantized in a graph.

    Attributes:
        stored: by the names of the values in front of the pairs, or behind, how they are stored.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._maker = {name: node for node in graph.node for name in node.output}
        for name in [name for name in self._maker if name.endswith(DIVIDED)]:
            self._maker.setdefault(name.removesuffix(DIVIDED), self._maker[name])
        self._named = {node.name: node for node in graph.node if node.op_type not in CONVERSIONS}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self.stored: dict[str, dict[str, Any]] = {}
        for node in graph.node:
            if node.op_type == "DequantizeLinear" and node.input[0] in self._maker:
                source = self._maker[node.input[0]].input[0]
                for name in {node.output[0].removesuffix(DIVIDED), source}:
                    self.stored[name] = self._parameters(name, node)

    def reads(self, name: str, values: Sequence[str]) -> str | None:
        """The number format of the weights of the node with this name, or of the one that makes the
        first of these values that is there, empty if it has none; `None` if it reads nothing
        quantized."""
        made = self._named.get(name) if name else None
        made = made or next((self._maker[value] for value in values if value in self._maker), None)
        while made is not None and made.op_type in CONVERSIONS:
            made = self._maker.get(made.input[0])
        if made is None:
            return None
        bits = next((a.i for a in made.attribute if a.name == "bits"), 0)
        if bits:  # of MatMulNBits and GatherBlockQuantized, with zero points as a fourth input
            return f"{'u' if any(made.input[3:4]) else ''}int{bits}"
        kinds = [kind for name in made.input if (kind := self._kind(name)) is not None]
        return max(kinds, key=len, default=None)

    def _kind(self, name: str) -> str | None:
        """The format of the constant that a value is decoded from; empty for an activation that is,
        and `None` for what is float."""
        import onnx

        made = self._maker.get(name)
        if made is not None:
            if made.op_type not in DECODING:
                return None
            if made.op_type == "DequantizeLinear" and self._is_activation(made.input[0]):
                return ""
            return self._kind(made.input[0]) or None
        constant = self._constants.get(name)
        if constant is None or len(constant.dims) < 2:
            return None
        if LEVELS in name:
            return name.split(LEVELS)[0]
        kind = onnx.TensorProto.DataType.Name(constant.data_type).lower()
        return kind if "int" in kind and kind != "int64" else None

    def _is_activation(self, integers: str) -> bool:
        """Whether integers are not those of a constant."""
        made = self._maker.get(integers)
        while made is not None and made.op_type in DECODING:
            made = self._maker.get(integers := made.input[0])
        return made is not None or integers not in self._constants

    def _parameters(self, name: str, pair: onnx.NodeProto) -> dict[str, Any]:
        """How the value of a pair is stored."""
        import onnx

        scale = onnx.numpy_helper.to_array(self._constants[pair.input[1]])
        zero = self._constants.get(pair.input[2]) if len(pair.input) > 2 else None
        kind = onnx.TensorProto.DataType.Name(zero.data_type).lower() if zero else "uint8"
        return {
            "name": name,
            "dtype": kind,
            "scale": scale.ravel().tolist(),
            "zero_point": onnx.numpy_helper.to_array(zero).ravel().tolist() if zero else [0],
        }
