"""TensorRT: an ONNX model with explicit quantization, and the legacy calibration cache."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rustq import _rustq
from rustq.conversion import at_least
from rustq.errors import UnsupportedError
from rustq.model import Model, core_of
from rustq.targets import Job, Outcome

__all__ = ["lint", "make", "next_step"]

OPSETS = {"fp32": 17, "fp16": 19}
"""The operator set to write, if the model's is older: all that TensorRT 8.6 knows, or the first
that has float16 scales."""

CODES_OPSET = 21
"""The first with 4-bit weights."""

BLOCK_SIZE = 128
"""TensorRT's documentation names 64 and 128."""

BATCHES = (1, 8, 32)
"""Smallest, best and largest batch to suggest for a dynamic one."""


def make(job: Job) -> Outcome:
    """Quantizes for TensorRT: static with a calibration, or 4-bit weights."""
    if job.config.codes:
        return _codes(job)
    if job.calibration is None:
        raise UnsupportedError("tensorrt cannot quantize without calibration data")
    config, notes = job.config, []
    half = config.high_precision == "fp16"
    opset = OPSETS[config.high_precision]
    model, reason = at_least(job.model, opset)
    if reason:
        notes.append(reason)
        if half:
            raise UnsupportedError(f"high_precision='fp16' needs opset {opset}: {reason}")
    elif model.opset is not None and model.opset > opset and not half:
        notes.append(f"opset {model.opset}: TensorRT 8.6 reads up to {OPSETS['fp32']}")
    (written, layers, found), cache = _rustq.quantize_tensorrt(
        model,
        job.calibration._core,
        job.choices(),
        half=half,
        version=config.tensorrt_version,
    )
    return Outcome(written, layers, notes + found, {".cache": cache.encode()})


def _codes(job: Job) -> Outcome:
    """Weights of matrix products in 4 bits; all else stays float."""
    if job.config.high_precision != "fp32":
        raise UnsupportedError("4-bit weights for TensorRT are for high_precision='fp32'")
    model, reason = at_least(job.model, CODES_OPSET)
    if reason:
        raise UnsupportedError(f"4-bit weights need opset {CODES_OPSET}: {reason}")
    written, layers, notes = _rustq.quantize_tensorrt_weights(
        model, job.codes(BLOCK_SIZE, standard=True), job.choices("minmax")
    )
    return Outcome(written, layers, [*notes, "4-bit weights: for TensorRT 10 and later"])


def lint(model: Any) -> list[str]:
    """What TensorRT would refuse or misread of a quantized model, one line for each finding.

    Every export is checked by it. The rules are those of NVIDIA's ONNX parser (docs/tensorrt.md).

    Args:
        model: a path, bytes, an `onnx.ModelProto` or a `Model`.

    Raises:
        OSError: the file cannot be read.
        ModelError: it is not an ONNX model.
    """
    return _rustq.lint_tensorrt(core_of(model))


def next_step(model: Model, files: Sequence[Path]) -> str:
    """The command that builds an engine of the written model on the device."""
    path = files[0]
    words = [f"--onnx={path}", f"--saveEngine={path.with_suffix('.engine')}", *_shapes(model)]
    command = " ".join(["trtexec", *map(shlex.quote, map(os.fspath, words))])
    if model.op_counts.get("Cast") and _is_half(model):
        return f"{command} --stronglyTyped\n(TensorRT 10; TensorRT 11: without --stronglyTyped)"
    return f"{command} --int8 --fp16\n(TensorRT 8.6 and 10; TensorRT 11: without --int8 --fp16)"


def _is_half(model: Model) -> bool:
    return model.opset is not None and model.opset >= OPSETS["fp16"]


def _shapes(model: Model) -> list[str]:
    """The profile of a model with dynamic inputs: a dynamic first axis is taken for the batch."""
    dynamic = any(
        not isinstance(length, int) for value in model.inputs for length in value.shape or ()
    )
    if not dynamic:
        return []
    return [
        f"--{kind}Shapes="
        + ",".join(f"{value.name}:{_shape(value.shape or (), batch)}" for value in model.inputs)
        for kind, batch in zip(("min", "opt", "max"), BATCHES, strict=True)
    ]


def _shape(shape: Sequence[int | str | None], batch: int) -> str:
    lengths = [
        length if isinstance(length, int) else batch if axis == 0 else str(length or "?").upper()
        for axis, length in enumerate(shape)
    ]
    return "x".join(map(str, lengths))
