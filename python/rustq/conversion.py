"""What onnx itself does to a model: inlining functions, converting operator sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rustq import _rustq
from rustq.errors import ModelError
from rustq.folding import folded
from rustq.inference import check_inference

if TYPE_CHECKING:
    import onnx

__all__ = ["at_least", "inlined"]

LEAST, SHARE = 1 << 24, 4
"""Bytes that functions in the place of their calls may take: the first number and so many times
those of the model, since a small file must not ask for a large one."""


def inlined(model: _rustq.Model) -> _rustq.Model:
    """`model` with the bodies of its own functions in the place of their calls.

    Raises:
        ModelError: they cannot be put there, or would make a model of another size.
    """
    if not model.has_functions:
        return model
    size = model.inlined_len()
    if size > LEAST + SHARE * model.byte_size:
        reason = f"it has {model.byte_size} bytes, and would have {size}"
        raise ModelError(f"the model's functions cannot be inlined: {reason}")
    import onnx
    from onnx import inliner

    serialized = model.to_bytes()
    try:
        proto = inliner.inline_local_functions(onnx.load_model_from_string(serialized))
    except Exception as error:  # onnx raises several errors without a base class
        raise ModelError(f"the model's functions cannot be inlined: {_reason(error)}") from None
    return _rustq.Model.from_bytes(proto.SerializeToString()).with_metadata_of(model)


def at_least(model: _rustq.Model, opset: int) -> tuple[_rustq.Model, str]:
    """A folded model in operator set `opset` or later, folded again if it had to be converted.

    Returns:
        The model and an empty string; or the model as it was, and why it could not be converted.
    """
    if model.opset is None or model.opset >= opset:
        return model, ""
    import onnx
    from onnx import version_converter

    try:
        skeleton = onnx.load_model_from_string(model.skeleton().to_bytes())
        _check(skeleton)
        check_inference(skeleton)  # the converter infers shapes
        proto = onnx.load_model_from_string(model.without_negative_dimensions().to_bytes())
        converted = version_converter.convert_version(proto, opset)
    except Exception as error:  # the converter raises RuntimeError, and more, without a base class
        return model, f"opset {model.opset} could not be converted to {opset}: {_reason(error)}"
    core = _rustq.Model.from_bytes(converted.SerializeToString())
    return folded(core.with_metadata_of(model))._core, ""


def _check(proto: onnx.ModelProto) -> None:
    """Raises onnx's error if a node is not as its operator asks: the converter takes attributes of
    other types for what they are not, and the process with it."""
    import onnx

    # What says nothing of nodes, and is missing in models that work.
    proto.graph.name = proto.graph.name or "graph"
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.WhichOneof("value") in (None, "tensor_type"):
            tensor = value.type.tensor_type
            tensor.elem_type = tensor.elem_type or onnx.TensorProto.FLOAT
            tensor.shape.SetInParent()
    onnx.checker.check_model(proto)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
