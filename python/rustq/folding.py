"""Folding, with what onnx and ONNX Runtime can find out about a graph.

The rules are native. Two things are asked of others, and only where they can help: shapes of
values, which onnx infers, and what nodes with constant inputs compute, which ONNX Runtime
evaluates, so that the constants are those the model would have computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rustq import _rustq
from rustq.errors import ModelError
from rustq.inference import infer_shapes
from rustq.model import Model

if TYPE_CHECKING:
    import onnx

__all__ = [
    "FoldRecord",
    "FoldedModel",
    "folded",
    "specialized",
]

ROUNDS = 8
"""Shapes that follow from constants that follow from shapes: how often."""

BODIES = frozenset({"If", "Loop", "Scan"})
"""Operators with subgraphs."""

LIMIT, LEAST, SHARE = 1 << 26, 1 << 22, 4
"""Bytes that computed constants may take in all: the first number, but no more than the second and
so many times those of the model, since a small file must not ask for a large one."""


@dataclass(frozen=True)
class FoldRecord:
    """One node that folding removed, or looked at and left.

    Attributes:
        node: its name, or its first output where it has none.
        op_type: its operator.
        rule: what removed it, or would have.
        declined: why it stayed; `None` when it is gone.
    """

    node: str
    op_type: str
    rule: str
    declined: str | None


class FoldedModel(Model):
    """A folded model, and what was done to it.

    Attributes:
        folding: the nodes that are gone, and those that stayed with the reason.
    """

    def __init__(self, core: _rustq.Model, folding: tuple[FoldRecord, ...]) -> None:
        super().__init__(core)
        self.folding = folding


def folded(core: _rustq.Model) -> FoldedModel:
    """`core` folded as far as shapes and constants allow.

    Raises:
        ModelError: the model is inconsistent.
    """
    computes_shapes = not {"Shape", "Size"}.isdisjoint(core.op_counts)
    # What a file says of its values may be stale; only inferred shapes may become constants.
    model, records = (core.with_values_of(core.skeleton()) if computes_shapes else core).fold()
    if model.wants_evidence():
        largest = core.byte_size + min(LIMIT, LEAST + SHARE * core.byte_size)
        for _ in range(ROUNDS):
            informed = _with_computed_constants(_with_inferred_shapes(model), largest)
            folded, found = informed.fold()
            records = [r for r in records if r["declined"] is None] + found
            changed = folded.nodes != model.nodes
            model = folded
            if not changed:
                break
        model = model.with_values_of(core)
    return FoldedModel(model, tuple(FoldRecord(**record) for record in records))


def specialized(core: _rustq.Model, shapes: Mapping[str, Sequence[int]]) -> _rustq.Model:
    """`core` for inputs of these shapes alone: folded again, with the shape of every value that
    onnx can infer. Within a body of If, Loop or Scan it may take for inconsistent what runs.

    Raises:
        ModelError: the model is inconsistent, with itself or with these shapes.
    """
    import onnx

    fixed = folded(core.with_input_shapes(shapes))._core
    proto = onnx.load_model_from_string(fixed.skeleton().to_bytes())
    strict = BODIES.isdisjoint(node.op_type for node in proto.graph.node)
    try:
        for data_prop in (False, True):
            infer_shapes(proto, strict_mode=strict, data_prop=data_prop)
    except Exception as error:  # onnx raises several errors without a base class
        reason = " ".join(str(error).split())
        raise ModelError(f"the shapes of values cannot be inferred: {reason}") from None
    return fixed.described_as(_rustq.Model.from_bytes(proto.SerializeToString()))


def _with_inferred_shapes(model: _rustq.Model) -> _rustq.Model:
    """`model` describing its values as onnx infers them; not at all if onnx cannot, or would fill
    the memory."""
    import onnx

    proto = onnx.load_model_from_string(model.skeleton().to_bytes())
    try:
        infer_shapes(proto)
    except Exception:  # onnx raises several errors without a base class; all mean the same here
        del proto.graph.value_info[:]
    return model.with_values_of(_rustq.Model.from_bytes(proto.SerializeToString()))


def _with_computed_constants(model: _rustq.Model, largest: int) -> _rustq.Model:
    """`model` with constants in the place of nodes that compute them, until it is this large."""
    part = model.constant_part()
    if part is None:
        return model
    import onnx

    try:
        proto = onnx.load_model_from_string(part.to_bytes())
        _keep_bounded(proto, largest - model.byte_size)
        values = _evaluated(proto) if proto.graph.node else []
    except Exception:  # an operator without a kernel, or inconsistent attributes: the nodes stay
        return model
    if not values:
        return model
    del proto.graph.node[:], proto.graph.output[:], proto.graph.initializer[:]
    proto.graph.initializer.extend(values)
    return model.with_constants(_rustq.Model.from_bytes(proto.SerializeToString()))


def _keep_bounded(proto: onnx.ModelProto, limit: int) -> None:
    """Drops the nodes whose results might exceed `limit` bytes, and what depends on them."""
    import onnx

    graph = proto.graph
    read = {value.name for value in graph.output}
    infer_shapes(proto)
    sizes = {value.name: _size(value) for value in (*graph.value_info, *graph.output)}
    kept, left = [], limit
    known = {tensor.name for tensor in graph.initializer} | {""}
    for node in graph.node:
        size = sum(sizes.get(name, math.inf) for name in node.output if name)
        if size <= left and known.issuperset(node.input):
            left -= int(size)
            known.update(node.output)
            kept.append(node)
        else:
            read.update(node.input)
    del graph.node[:], graph.output[:], graph.value_info[:]
    graph.node.extend(kept)
    made = [name for node in kept for name in node.output if name in read]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)


def _size(value: onnx.ValueInfoProto) -> float:
    """Bytes of a value, infinite if they are not known."""
    kind = value.type.tensor_type
    dims = kind.shape.dim
    if not kind.HasField("shape") or not all(dim.HasField("dim_value") for dim in dims):
        return math.inf
    return 8.0 * float(math.prod(dim.dim_value for dim in dims))


def _evaluated(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """What ONNX Runtime computes; what onnx's reference does where ONNX Runtime has no kernel, as
    it has hardly any for bfloat16."""
    from onnx import numpy_helper

    names = [value.name for value in proto.graph.output]
    try:
        arrays = _run(proto, names)
    except Exception:  # onnxruntime raises several errors without a base class
        from onnx.reference import ReferenceEvaluator

        arrays = list(ReferenceEvaluator(proto).run(names, {}))
    return [numpy_helper.from_array(a, name) for name, a in zip(names, arrays, strict=True)]


def _run(proto: onnx.ModelProto, names: Sequence[str]) -> list[Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session: Any = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    arrays: list[Any] = session.run(names, {})
    return arrays
