"""Models that are quantized already: the scales of their QuantizeLinear/DequantizeLinear pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rustq import _rustq
from rustq.errors import UnsupportedError
from rustq.folding import folded

if TYPE_CHECKING:
    from rustq.config import QuantConfig

__all__ = ["check", "taken"]

PAIRS = {"QuantizeLinear", "DequantizeLinear"}


def taken(model: _rustq.Model) -> tuple[_rustq.Model, _rustq.Given | None]:
    """A folded model without its pairs, and their parameters.

    Weights are taken first, and what can be is folded into them. The pairs of the activations are
    still there then, so that nothing is folded across them.

    Returns:
        A float model and the parameters by the names of its values; or the model as it was, and
        `None`, where there are no pairs.
    """
    if PAIRS.isdisjoint(model.op_counts):
        return model, None
    plain, constants = _rustq.Given.of_constants(model)
    plain, given = constants.and_pairs(folded(plain)._core)
    return (plain, given) if any(given.counts) else (model, None)


def check(config: QuantConfig) -> None:
    """Raises `UnsupportedError` for what would change the scales that a model came with."""
    asked = {
        "weights": config.codes,
        "activations": config.activations != "int8",
        "equalize": bool(config.equalize),
        "rounding": config.rounding == "learned",
        "bias_correction": bool(config.bias_correction),
    }
    if knobs := [knob for knob, given in asked.items() if given]:
        raise UnsupportedError(
            "the model comes with QuantizeLinear/DequantizeLinear pairs, whose scales are kept:"
            f" {knobs[0]}={getattr(config, knobs[0])!r} would change them"
        )
