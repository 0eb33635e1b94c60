"""What ONNX Runtime makes of a quantized model: integer kernels, and what is left over."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

__all__ = ["Fusion", "computing_on_integers", "fusion"]

INTEGER_KERNELS = (
    ("com.microsoft", "QLinear"),
    ("", "QLinear"),
    ("com.microsoft", "QGemm"),
    ("com.microsoft", "MatMulIntegerToFloat"),
    ("com.microsoft", "DynamicQuantize"),
    ("", "ConvInteger"),
    ("", "MatMulInteger"),
)
"""Domain of an operator that computes on integers, and what its type begins with."""


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """How a runtime runs a quantized model.

    Attributes:
        kernels: how many nodes of each integer kernel there are.
        floats: how many nodes of each other operator there are.
        conversions: values that are turned from float into integers or back while the model runs,
            as `(tensor, "quantized" or "dequantized", what reads it)`.
        runtime: which: for `"onnxruntime"` it is what its CPU provider made of the model, for
            others what they will make of it by their rules (`rustq.fusion_rules`).
    """

    kernels: dict[str, int]
    floats: dict[str, int]
    conversions: tuple[tuple[str, str, str], ...]
    runtime: str = "onnxruntime"

    def summary(self) -> str:
        """One sentence: how many operators run on integers, and what is converted."""
        integers, floats = sum(self.kernels.values()), sum(self.floats.values())
        return (
            f"{integers} operators run on integers, {floats} in float; values converted between the"
            f" two while the model runs: {len(self.conversions)}."
        )


def fusion(model: bytes | Path) -> Fusion:
    """Has ONNX Runtime optimize a model, and looks at what came of its Q/DQ pairs.

    Raises:
        ModelError: ONNX Runtime does not accept the model.
    """
    graph = _optimized(model).graph
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node.op_type)
    constants = {tensor.name for tensor in graph.initializer}
    kernels: Counter[str] = Counter()
    floats: Counter[str] = Counter()
    conversions = []
    for node in graph.node:
        if node.op_type in CONVERSIONS and node.input[0] not in constants:
            read = ", ".join(sorted(set(readers.get(node.output[0], ["an output"]))))
            conversions.append((node.input[0], CONVERSIONS[node.op_type], read))
        elif _on_integers(node):
            kernels[node.op_type] += 1
        elif node.op_type not in CONVERSIONS:
            floats[node.op_type] += 1
    return Fusion(
        kernels=dict(kernels.most_common()),
        floats=dict(floats.most_common()),
        conversions=tuple(conversions),
    )


CONVERSIONS = {"QuantizeLinear": "quantized", "DequantizeLinear": "dequantized"}


def _on_integers(node: onnx.NodeProto) -> bool:
    domain = node.domain.removeprefix("ai.onnx")
    return any(domain == d and node.op_type.startswith(begin) for d, begin in INTEGER_KERNELS)


def computing_on_integers(op_counts: Mapping[str, int]) -> str:
    """The operators of a model, by type, that compute on integers themselves, as text, or nothing:
    there are no pairs then to take scales from."""
    begin = tuple(begin for _, begin in INTEGER_KERNELS)
    counted = (
        f"{number} {op_type}"
        for op_type, number in sorted(op_counts.items())
        if op_type.startswith(begin) and op_type != "DynamicQuantizeLinear"
    )
    return ", ".join(counted)


def _optimized(model: bytes | Path) -> Any:
    import onnx

    from rustq.runner import session

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        session(model, threads=1, optimized=path)
        return onnx.load(path)
