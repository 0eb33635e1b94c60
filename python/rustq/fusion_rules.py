"""Which Q/DQ pairs a runtime that is not at hand will fuse, by its documented rules.

A layer runs on integers if its operator can and every activation it reads comes from a
DequantizeLinear. The QuantizeLinear behind it, with a function in between that the runtime fuses,
becomes part of it. What is left of the pairs is converted while the model runs.

Sources: docs/tensorrt.md and docs/ncnn.md, which say where these rules were found and tested.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rustq.fusion import CONVERSIONS, Fusion

if TYPE_CHECKING:
    import onnx

__all__ = ["RULES", "Rules", "expected"]


@dataclass(frozen=True)
class Rules:
    """What a runtime does with pairs.

    Attributes:
        integers: operators that it runs on integers.
        behind: operators that it fuses into the layer in front of them.
    """

    integers: frozenset[str]
    behind: frozenset[str]


POINTWISE = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSwish", "Mish"})
MOVES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split"})
PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool"})

RULES: Mapping[str, Rules] = {
    "tensorrt": Rules(
        integers=PRODUCTS | POOLS | MOVES | {"ConvTranspose", "Add", "Concat", "Resize"},
        behind=POINTWISE | {"Add", "Mul", "Tanh"},
    ),
    "ncnn": Rules(integers=PRODUCTS, behind=POINTWISE),
}
"""By the name of the target."""


def expected(model: bytes, target: str) -> Fusion | None:
    """What a target will make of a QDQ model; `None` if no rules of it are known, or there are no
    pairs."""
    import onnx

    rules = RULES.get(target)
    graph = onnx.load_model_from_string(model).graph
    if rules is None or all(node.op_type not in CONVERSIONS for node in graph.node):
        return None
    return _Reading(graph, rules).fusion(target)


class _Reading:
    """A graph with its pairs, read by a runtime's rules."""

    def __init__(self, graph: onnx.GraphProto, rules: Rules) -> None:
        self._rules = rules
        self._nodes = list(graph.node)
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._constants = {tensor.name for tensor in graph.initializer}
        self._paired: set[str] = set()
        """Values behind a DequantizeLinear that are no constants."""
        self._integral: set[str] = set()
        """Values that come out of an integer layer, or of what is fused into one."""
        self._running: set[str] = set()
        """The first outputs of the nodes that run on integers."""
        for node in graph.node:  # which ONNX has in the order of computation
            self._classify(node)

    def fusion(self, target: str) -> Fusion:
        """How the graph will run."""
        kernels: Counter[str] = Counter()
        floats: Counter[str] = Counter()
        conversions = []
        for node in self._nodes:
            if node.op_type not in CONVERSIONS:
                (kernels if self._runs(node) else floats)[node.op_type] += 1
            elif readers := self._converted_for(node):
                conversions.append((node.input[0], CONVERSIONS[node.op_type], readers))
        return Fusion(
            kernels=dict(kernels.most_common()),
            floats=dict(floats.most_common()),
            conversions=tuple(conversions),
            runtime=target,
        )

    def _classify(self, node: onnx.NodeProto) -> None:
        values = [name for name in node.input if name and name not in self._constants]
        if not values:
            self._constants.update(node.output)
        elif node.op_type == "DequantizeLinear":
            self._paired.update(node.output)
        elif node.op_type in CONVERSIONS:
            return
        elif node.op_type in self._rules.integers and self._read_as_integers(node, values):
            self._running.add(node.output[0])
            self._integral.update(node.output)
        elif node.op_type in self._rules.behind and not self._integral.isdisjoint(values):
            self._integral.update(node.output)

    def _read_as_integers(self, node: onnx.NodeProto, values: Sequence[str]) -> bool:
        """Whether all activations of a node come from pairs, or some do and it is fused into the
        layer that the others come from."""
        paired = [name in self._paired for name in values]
        fused = node.op_type in self._rules.behind and not self._integral.isdisjoint(values)
        return all(paired) or (any(paired) and fused)

    def _runs(self, node: onnx.NodeProto) -> bool:
        return bool(node.output) and node.output[0] in self._running

    def _converted_for(self, node: onnx.NodeProto) -> str:
        """Who reads what a node of a pair converts while the model runs; nothing if that is fused,
        or done beforehand."""
        value, made = node.input[0], node.output[0]
        if value in self._constants:
            return ""
        if node.op_type == "QuantizeLinear":
            if value in self._integral:
                return ""
            pairs = self._readers.get(made, ())
            readers = [each for pair in pairs for each in self._readers.get(pair.output[0], ())]
        else:
            readers = [each for each in self._readers.get(made, ()) if not self._runs(each)]
            if not readers and made in self._readers:
                return ""
        return ", ".join(sorted({each.op_type for each in readers})) or "an output"
