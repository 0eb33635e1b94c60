"""Huawei Ascend: a float ONNX model and the record of its scales, for the compression toolkit."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rustq import _rustq
from rustq.errors import UnsupportedError
from rustq.model import Model
from rustq.targets import Job, Outcome

__all__ = ["make", "next_step"]

RECORD = ".record.txt"
EXPLICIT = ".qdq.onnx"

RANGES = "ifmr"
"""The toolkit's own way to choose ranges."""


def make(job: Job) -> Outcome:
    """Finds scales and offsets for Ascend."""
    if job.calibration is None:
        raise UnsupportedError("ascend cannot quantize without calibration data")
    outcome, record, explicit = _rustq.quantize_ascend(
        job.model,
        job.calibration._core,
        job.choices(RANGES),
        scheme=job.scheme,
    )
    files = {RECORD: record.encode()}
    if job.config.ascend_qdq:
        files[EXPLICIT] = explicit.to_bytes()
    return Outcome(*outcome, files, explicit)


def next_step(model: Model, files: Sequence[Path]) -> str:
    """The commands that make the deployed model on the device."""
    stem = str(files[0].with_suffix(""))
    arguments = ", ".join(repr(str(path)) for path in (*files[:2], stem))
    python = f"import amct_onnx; amct_onnx.save_model({arguments})"
    quoted = shlex.quote(python) if set(python) & set('"$`\\') else f'"{python}"'
    return (
        f"python -c {quoted}\n"
        f"then: atc --framework=5 --model={shlex.quote(stem + '_deploy_model.onnx')}"
        f" --output={shlex.quote(stem)} --soc_version=YOUR_CHIP"
    )
