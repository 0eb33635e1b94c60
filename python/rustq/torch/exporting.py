"""A module that was trained with quantization, as ONNX."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from torch.nn.utils import parametrize

from rustq import _rustq
from rustq.errors import DataError, ModelError
from rustq.frameworks.torch import Inputs, by_dynamo, evaluating, silence
from rustq.torch.preparing import EXAMPLE
from rustq.torch.quantizers import ActivationQuantizer, StoredWeights, WeightQuantizer

__all__ = ["export"]


def export(module: Any, path: str | os.PathLike[str], *, example_inputs: Any = None) -> Path:
    """Writes a module of `prepare_qat` as ONNX, with QuantizeLinear/DequantizeLinear pairs: weights
    are int8, activations float32 between pairs of their scales.

    `rustq.quantize(path)` keeps them, for any target. The module stays as it is.

    Args:
        module: of `prepare_qat`, trained or not.
        path: the file to write.
        example_inputs: what the module is called with, see `rustq.load`; `None`: what it was
            prepared with.

    Returns:
        The path.

    Raises:
        ValueError: the module was not prepared.
        DataError: no example of its inputs is known; or activations have no range yet, because it
            was prepared without data and not trained.
        ModelError: torch cannot export it.
        OSError: the file cannot be written.
    """
    if not any(isinstance(part, WeightQuantizer) for part in module.modules()):
        raise ValueError("the module was not prepared: see rustq.torch.prepare_qat")
    known: Inputs | None = getattr(module, EXAMPLE, None)
    if example_inputs is not None:
        known = Inputs.of(module, [example_inputs])
    if known is None:
        raise DataError("nothing is known of the module's inputs: pass example_inputs")
    copied = copy.deepcopy(module).cpu()
    for name, part in copied.named_modules():
        if isinstance(part, ActivationQuantizer):
            if not part.ready:
                raise DataError(f"'{name}' has no range yet: train the module, or give it data")
            part.for_export()
    for part in list(copied.modules()):
        if parametrize.is_parametrized(part, "weight"):
            weight = part.parametrizations.weight
            if isinstance(weight[0], WeightQuantizer):
                # In its place: taken away, it would be gone from the class that both share.
                weight[0] = StoredWeights(weight[0], weight.original)
    with evaluating(copied), silence():
        content = _exported(copied, known)
    path = Path(path)
    _rustq.write_together([(path, content)])
    return path


def _exported(module: Any, inputs: Inputs) -> bytes:
    reasons = []
    for dynamic in (True, False):
        try:
            return by_dynamo(module, inputs, dynamic)
        except Exception as error:  # the exporter raises what it likes
            reasons.append(str(error).strip().splitlines()[0])
    raise ModelError("torch could not export the module: " + "; ".join(dict.fromkeys(reasons)))
