"""Shapes of values, as onnx infers them: the one way to it, since a file can make it fill the
memory or end the process.

- A vector that an operator may read as a shape is looked at entry by entry; a long one is refused.
- A Slice of what onnx itself takes to have a length below 0 ends the process (onnx/onnx#8481): of
  a kernel larger than its input, say. A Slice is hidden, under a name that onnx does not know,
  until the lengths of what it reads have been inferred and are not below 0. Those in bodies of
  other operators and in functions stay hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from operator import add
from typing import TYPE_CHECKING

from rustq import _rustq
from rustq.errors import ModelError

if TYPE_CHECKING:
    import onnx

__all__ = ["check_inference", "infer_shapes", "keeps_lengths"]

ROUNDS = 16
"""How often shapes are inferred to show more slices. What is behind those that are still hidden
has no known shape."""

HIDDEN = "Slice of unknown lengths"
"""The name of a hidden Slice."""

# fmt: off
KEEPING = frozenset({
    "Abs", "Add", "And", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat", "ConstantOfShape",
    "Cos", "DequantizeLinear", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "Flatten", "Floor",
    "Gather", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual",
    "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "LayerNormalization",
    "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "MatMul", "Max", "Mean", "Min", "Mul",
    "Neg", "Not", "Or", "PRelu", "Pow", "QuantizeLinear", "Reciprocal", "ReduceL2", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Relu", "Reshape", "Shape", "Sigmoid",
    "Sin", "Size", "Slice", "Softmax", "Softplus", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh",
    "Transpose", "Unsqueeze", "Where",
})
# fmt: on
"""Operators of whose results onnx infers no length below 0 where their inputs have none. Any other
may have one: of a negative attribute, say."""

WINDOWED = frozenset({"AveragePool", "Conv", "LpPool", "MaxPool"})
"""Operators that keep lengths if what is padded makes up for the windows."""

GROWING, DOUBTFUL = 1, 2
"""Of a value: more of its shape may be known once slices are shown; and a length below 0 too."""


def infer_shapes(proto: onnx.ModelProto, **options: bool) -> None:
    """Describes the values and outputs of `proto` as onnx infers them with these options.

    Raises:
        ModelError: a vector is so long that its entries would fill the memory.
        Exception: onnx raises several errors without a base class.
    """
    inferred = _inferred(proto, **options).graph
    for values, known in (
        (proto.graph.value_info, inferred.value_info),
        (proto.graph.output, inferred.output),
    ):
        del values[:]
        values.extend(known)


def check_inference(proto: onnx.ModelProto) -> None:
    """Raises what `infer_shapes` does, and `ModelError` where a Slice has to stay hidden: for what
    infers shapes on its own."""
    for node in _nodes(_inferred(proto)):
        if node.op_type == HIDDEN:
            name = node.name or next(iter(node.output), "")
            raise ModelError(f"node {name!r} (Slice) may read what onnx gives a length below 0")


def _inferred(proto: onnx.ModelProto, **options: bool) -> onnx.ModelProto:
    """What onnx infers, with the slices hidden that it must not see."""
    import onnx

    serialized = proto.SerializeToString()
    if _rustq.Model.from_bytes(serialized).has_long_vectors:
        raise ModelError("a vector is too long to be looked at entry by entry")
    if b"Slice" not in serialized:
        return onnx.shape_inference.infer_shapes(proto, **options)
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    for node in _nodes(model):
        if node.op_type == "Slice":
            node.op_type = HIDDEN
    sound = _sound(model, None)
    for _ in range(ROUNDS):
        for node in sound:
            node.op_type = "Slice"
        inferred = onnx.shape_inference.infer_shapes(model, **options)
        sound = _sound(model, _below_0(inferred.graph))
        if not sound:
            break
    return inferred


def _sound(model: onnx.ModelProto, below_0: Set[str] | None) -> list[onnx.NodeProto]:
    """The hidden slices that may be shown now.

    Args:
        model: with the nodes of its graph in order.
        below_0: the values that have a length below 0 as far as has been inferred; `None` while
            nothing has been.
    """
    sound: list[onnx.NodeProto] = []
    states: dict[str, int] = {}
    own = {function.name for function in model.functions}  # that may be called like operators
    for node in model.graph.node:
        reads = node.input[:1] if node.op_type == HIDDEN else node.input
        state = max((states.get(name, 0) for name in reads), default=0)
        if below_0 is None or (states and any(_bodies(node))):
            state = max(state, GROWING)
        if node.op_type == HIDDEN:
            if state < DOUBTFUL and not set(reads) & (below_0 or set()):
                sound.append(node)
                state = GROWING
        elif state and (node.op_type in own or not keeps_lengths(node)):
            state = DOUBTFUL
        if state:
            states.update(dict.fromkeys(node.output, state))
    return sound


def keeps_lengths(node: onnx.NodeProto) -> bool:
    """Whether onnx infers no length below 0 of the results where the inputs have none."""
    if node.op_type not in WINDOWED:
        return node.op_type in KEEPING
    known = {attribute.name: attribute for attribute in node.attribute}

    def integers(name: str, default: Sequence[int]) -> Sequence[int]:
        return known[name].ints if name in known else default

    kernel = integers("kernel_shape", ())
    strides, dilations = (integers(name, [1] * len(kernel)) for name in ("strides", "dilations"))
    pads = integers("pads", [0, 0] * len(kernel))
    if not len(kernel) == len(strides) == len(dilations) == len(pads) / 2 != 0:
        return False
    if min(*kernel, *strides, *dilations) < 1 or min(pads) < 0:
        return False
    automatic = known["auto_pad"].s if "auto_pad" in known else b"NOTSET"
    if automatic != b"NOTSET":
        return automatic.startswith(b"SAME")
    # (x + padded - reach - 1) / stride + 1 of a length x, where a window reaches over so many more.
    padded = map(add, pads[: len(kernel)], pads[len(kernel) :])
    reaches = (dilation * (size - 1) for dilation, size in zip(dilations, kernel, strict=True))
    return all(pad >= reach for pad, reach in zip(padded, reaches, strict=True))


def _below_0(graph: onnx.GraphProto) -> set[str]:
    """The values with a length below 0."""
    return {
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if any(dim.dim_value < 0 for dim in value.type.tensor_type.shape.dim)
    }


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, those in functions and in bodies of others too."""
    left = [model.graph.node, *(function.node for function in model.functions)]
    while left:
        for node in left.pop():
            yield node
            left.extend(body.node for body in _bodies(node))


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs within a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
