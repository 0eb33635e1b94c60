"""Which layers the error of a quantized model's outputs comes from, by two passes over the data.

The float model and the quantized one run on the same feeds, and the error of every value is
measured. In the quantized model, each int8 layer has its float operator beside it, on the same
inputs: the difference between the two is what the layer adds by itself.

From the outputs backwards, error is then divided as it came together. In each channel of a value,
let S be the energy of the float model's, E that of the error and N that of what the layer adds.
What is charged to the value is the layer's own in the share of Σ N/(S+E) to Σ E/(S+E), summed over
the channels: a channel that is drowned counts as much as a louder one. The rest is charged to the
values it read, in the share of the error that each brings: in a sum relative to what the sum holds,
in a concatenation by channels, in anything else relative to the value itself. These are the
first-order rules for independent errors, and all shares together are the error at the outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rustq.balanced import put_back
from rustq.comparison import run
from rustq.samples import Array, Feed

if TYPE_CHECKING:
    import onnx

    from rustq import _rustq
    from rustq.measuring import Sessions
    from rustq.report import LayerReport

__all__ = ["shares"]

SUMS = frozenset({"Add", "Sub", "Sum", "Mean"})
"""Operators in which errors keep their size, whatever the values that they come with."""

BESIDE = "/rustq_float"
"""Behind the name of a value: the same from the float operator beside the int8 layer."""


@dataclass(frozen=True)
class Step:
    """A node of the float model, together with the clip that its int8 form takes in.

    Attributes:
        reads: the values it computes from, those that subgraphs read included.
        makes: its outputs, behind the clip.
        op_type: its operator.
        layer: its name in the report if it runs in int8.
        nodes: the node, and the clip.
    """

    reads: tuple[str, ...]
    makes: tuple[str, ...]
    op_type: str
    layer: str | None
    nodes: tuple[onnx.NodeProto, ...]


def shares(
    model: _rustq.Model,
    quantized: _rustq.Model,
    layers: Sequence[LayerReport],
    feeds: Sequence[Feed],
    run_as: Sessions,
) -> dict[str, float]:
    """Each int8 layer's share of the error of the outputs; together 1, or 0 without any error.

    Empty if the quantized model has not kept a value that an int8 layer reads. Values whose
    channels are on one scale are put back.

    Args:
        model: the float model, folded as it was quantized.
        quantized: its quantized form, whose values have the names that they have in `model`.
        layers: the report's.
        feeds: what to run both on.
        run_as: how both are run.
    """
    import onnx

    graph = onnx.load_model_from_string(model.to_bytes()).graph
    steps = list(_steps(graph, {layer.name: layer for layer in layers if layer.quantized}))
    simulated = onnx.load_model_from_string(quantized.to_bytes())
    outputs = [output.name for output in graph.output]
    put_back(simulated, graph, layers, feeds[0], run_as)
    if not _all_read(steps, graph, simulated.graph):
        return {}
    wanted = _wanted(steps, outputs) & _made(graph) & _made(simulated.graph)
    own = [name for step in steps if step.layer for name in step.makes if name in wanted]
    _put_float_layers(simulated.graph, graph, steps)
    names = sorted(wanted)
    _set_outputs(simulated.graph, [*names, *(name + BESIDE for name in own)])
    energies = _Energies(names, own)
    sessions = (
        run_as.session(model.with_outputs(names)),
        run_as.session(simulated.SerializeToString()),
    )
    for sample, feed in enumerate(feeds):
        expected = run(sessions[0], names, feed, sample)
        energies.add(expected, sessions[1].run(None, feed))
    return _divided(steps, outputs, energies)


# ------------------------------------------------------------------------------ the graph
def _steps(graph: onnx.GraphProto, layers: Mapping[str, LayerReport]) -> Iterator[Step]:
    """The nodes in order, each clip with the int8 layer in front of it."""
    behind = {node.input[0]: node for node in graph.node if node.input}
    taken: set[str] = set()
    for node in graph.node:
        if node.output[0] in taken:
            continue
        layer = layers.get(node.name or node.output[0])
        nodes: tuple[onnx.NodeProto, ...] = (node,)
        if layer and layer.outputs and layer.outputs[0].name not in node.output:
            nodes = (node, behind[node.output[0]])
            taken.update(nodes[1].output)
        name = layer.name if layer else None
        yield Step(tuple(_read(node)), tuple(nodes[-1].output), node.op_type, name, nodes)


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """The values a node reads, each once, those that only its subgraphs read included."""
    names = dict.fromkeys(name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                names |= dict.fromkeys(_read(inner))
    return iter(names)


def _made(graph: onnx.GraphProto) -> set[str]:
    return {name for node in graph.node for name in node.output if name}


def _all_read(steps: Iterable[Step], graph: onnx.GraphProto, simulated: onnx.GraphProto) -> bool:
    """Whether all that the int8 layers compute from in the float model is in the other, too."""
    given = {value.name for value in (*graph.input, *graph.initializer)}
    kept = given | _made(simulated)
    return all(kept.issuperset(step.reads) for step in steps if step.layer)


def _wanted(steps: Iterable[Step], outputs: Iterable[str]) -> set[str]:
    """The values whose errors decide how errors are divided."""
    wanted = set(outputs)
    for step in steps:
        if step.layer:
            wanted.update(step.makes)
        if len(step.reads) > 1:
            wanted.update(step.reads)
        if step.op_type in SUMS:
            wanted.update(step.makes)
    return wanted


def _put_float_layers(
    simulated: onnx.GraphProto, graph: onnx.GraphProto, steps: Iterable[Step]
) -> None:
    """Puts the float operators of all int8 layers beside them, on the values they read."""
    import onnx

    there = {tensor.name for tensor in simulated.initializer}
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in there}
    added: set[str] = set()
    for step in steps:
        if not step.layer:
            continue
        inner = set(_names_within(step))
        for node in step.nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{step.layer}{BESIDE}_{node.op_type}"
            for position, name in enumerate(copy.output):
                copy.output[position] = name + BESIDE if name else name
            for position, name in enumerate(copy.input):
                if name in inner or name in weights:
                    copy.input[position] = name + BESIDE
                if name in weights and name not in added:
                    added.add(name)
                    tensor = simulated.initializer.add()
                    tensor.CopyFrom(weights[name])
                    tensor.name += BESIDE
            simulated.node.append(copy)


def _names_within(step: Step) -> Iterator[str]:
    """What a step's operator hands to its clip."""
    for node in step.nodes[:-1]:
        yield from node.output


def _set_outputs(graph: onnx.GraphProto, names: Iterable[str]) -> None:
    import onnx

    del graph.output[:]
    graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)


# ------------------------------------------------------------------------------ the errors
class _Energies:
    """Sums of squares over all feeds, by value and channel.

    Attributes:
        signal: of the float model's.
        error: of the difference between the two models.
        own: of what the int8 layer that makes the value adds.
    """

    def __init__(self, names: Sequence[str], own: Sequence[str]) -> None:
        self._names, self._own = names, own
        self.signal: dict[str, Array] = {}
        self.error: dict[str, Array] = {}
        self.own: dict[str, Array] = {}

    def add(self, expected: Sequence[Any], actual: Sequence[Any]) -> None:
        """Counts in the values of one feed: of the float model, and of the other, its own last."""
        count = len(self._names)
        seen = dict(zip(self._names, actual[:count], strict=True))
        for name, value in zip(self._names, expected, strict=True):
            if _comparable(value, seen[name]):
                _count(self.signal, name, _energy(value))
                _count(self.error, name, _energy(seen[name], value))
        for name, value in zip(self._own, actual[count:], strict=True):
            if _comparable(value, seen[name]):
                _count(self.own, name, _energy(seen[name], value))

    def relative(self, name: str) -> float:
        """Sum over channels of the share of error in what the channel holds."""
        return _against(self.error.get(name, _NONE), self._held(name))

    def own_share(self, name: str) -> float:
        """The share of the error of a layer's output that the layer adds, at most 1."""
        error = self.relative(name)
        own = _against(self.own.get(name, _NONE), self._held(name))
        return min(1.0, own / error) if error else 0.0

    def arriving(self, name: str, step: Step) -> float:
        """How much of the error of a step's output comes with one of the values it reads."""
        error = self.error.get(name, _NONE)
        if step.op_type == "Concat":
            return self.relative(name)
        if step.op_type in SUMS:
            return _against(error, self._held(step.makes[0]))
        return self.relative(name) / error.size

    def total(self, name: str) -> float:
        """Energy of the error over that of the signal."""
        signal = float(self.signal.get(name, _NONE).sum())
        return float(self.error.get(name, _NONE).sum()) / signal if signal else 0.0

    def _held(self, name: str) -> Array:
        return self.signal.get(name, _NONE) + self.error.get(name, _NONE)


_NONE = np.zeros(1)


def _count(sums: dict[str, Array], name: str, energies: Array) -> None:
    """Adds to a sum by channel, or for all channels if their number is not always the same."""
    before = sums.get(name)
    if before is None:
        sums[name] = energies
    elif before.shape == energies.shape:
        before += energies
    else:
        sums[name] = np.array([before.sum() + energies.sum()])


def _comparable(one: Any, other: Any) -> bool:
    return (
        isinstance(one, np.ndarray)
        and isinstance(other, np.ndarray)
        and one.dtype.kind == "f"
        and one.shape == other.shape
    )


def _energy(one: Array, other: Array | None = None) -> Array:
    """Sums of squares of a value, or of a difference, by channel: axis 1 of a feature map, the last
    axis of anything else."""
    with np.errstate(all="ignore"):  # masks hold infinities, and the lowest of all floats
        values = one if other is None else one - other
        if values.ndim >= 4:
            values = values.reshape(*values.shape[:2], -1)
            sums = np.einsum("ncx,ncx->c", values, values)
        else:
            values = values.reshape(-1, values.shape[-1] if values.ndim else 1)
            sums = np.einsum("xc,xc->c", values, values)
    return np.where(np.isfinite(sums), sums, 0).astype(np.float64)


def _against(part: Array, whole: Array) -> float:
    """Sum of part / whole over the channels that hold something."""
    if part.shape != whole.shape:
        part, whole = part.sum(keepdims=True), whole.sum(keepdims=True)
    return float(np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0).sum())


def _divided(
    steps: Sequence[Step], outputs: Iterable[str], energies: _Energies
) -> dict[str, float]:
    """Divides the error of the outputs among the layers, from the last step to the first."""
    charged = _in_proportion({name: energies.total(name) for name in outputs}, 1.0)
    layers: dict[str, float] = {step.layer: 0.0 for step in steps if step.layer}
    for step in reversed(steps):
        rest = 0.0
        for name in step.makes:
            charge = charged.pop(name, 0.0)
            own = energies.own_share(name) if step.layer else 0.0
            if step.layer:
                layers[step.layer] += charge * own
            rest += charge * (1 - own)
        several = len(step.reads) > 1
        arriving = {name: energies.arriving(name, step) if several else 1.0 for name in step.reads}
        if step.layer and not any(arriving.values()):
            layers[step.layer] += rest
        for name, charge in _in_proportion(arriving, rest).items():
            charged[name] = charged.get(name, 0.0) + charge
    return layers


def _in_proportion(weights: Mapping[str, float], total: float) -> dict[str, float]:
    """A total divided by weights, of which some are positive; nothing otherwise."""
    whole = sum(weights.values())
    return {name: total * weight / whole for name, weight in weights.items()} if whole else {}
