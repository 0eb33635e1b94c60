"""A model as it is quantized: folded, and in an operator set that can express int8 per channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rustq import _rustq
from rustq.conversion import at_least, inlined
from rustq.folding import folded
from rustq.model import Model
from rustq.pairs import taken

if TYPE_CHECKING:
    from rustq.config import QuantConfig

__all__ = ["first_shapes", "prepare", "prepared", "undeclared"]


def undeclared(core: _rustq.Model) -> str:
    """What is said of fields of a file that are not in the ONNX schema."""
    return (
        f"the file has {core.undeclared_bytes} bytes that this version of rustq does not"
        " know and did not keep"
    )


def prepared(model: Model) -> _rustq.Model:
    """A model as it is quantized: folded, and in an operator set that can express int8."""
    return prepare(model._core)[0]


def prepare(
    source: _rustq.Model, *, check: bool = True
) -> tuple[_rustq.Model, list[str], _rustq.Given | None]:
    """The model folded and in an operator set that can express int8 per channel, notes, and the
    parameters of the QuantizeLinear/DequantizeLinear pairs that it came with.

    Raises:
        ModelError: it is not valid, or its weights are not finite and `check` is true.
    """
    from rustq.fusion import computing_on_integers

    notes = []
    if source.undeclared_bytes:
        notes.append(undeclared(source))
    if found := computing_on_integers(source.op_counts):
        notes.append(
            f"the model is quantized already, and stays as it is there ({found}): give the float"
            " model that it was made from"
        )
    simple = folded(inlined(source))._core
    if check:
        simple.check_weights()
    ready, reason = at_least(simple, _rustq.MINIMUM_OPSET)
    if reason:
        notes.append(reason)
    plain, given = taken(ready)
    return plain.spelled_out(), notes, given


def first_shapes(model: _rustq.Model, data: Any, config: QuantConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each input of a prepared model in the first sample."""
    from rustq.data import feeds
    from rustq.runner import inputs_of_model

    samples = feeds(data, inputs_of_model(model), config.images)
    next(iter(samples))
    return samples.shapes
