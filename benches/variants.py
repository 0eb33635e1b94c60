"""The ways to quantize that are compared: rustq, and onnxruntime as its documentation advises."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from zoo import Case, Feed

LEAST_OPSET, NEW_OPSET = 13, 17  # per-channel DequantizeLinear needs 13


@dataclass(frozen=True)
class Variant:
    """A way to quantize a case's model into a file."""

    name: str
    quantize: Callable[[Case, Path], None]


@dataclass(frozen=True)
class Attempt:
    """What became of it: a file, or nothing and the reason."""

    path: Path
    cpu_seconds: float
    error: str = ""


def attempt(variant: Variant, case: Case, folder: Path) -> Attempt:
    """Quantize and take the time; a failure is part of the result, and printed."""
    path = folder / f"{case.name}.{variant.name.replace(' ', '-')}.onnx"
    start, error = time.process_time(), ""
    try:
        variant.quantize(case, path)
    except Exception as reason:  # whatever a peer raises is its result
        error = " ".join(f"{type(reason).__name__}: {reason}".split())
        print(f"{case.name}, {variant.name}: {error}", file=sys.stderr)
    return Attempt(path, time.process_time() - start, error)


def rustq(scheme: str, method: str | None = None) -> Variant:
    """rustq with its defaults, or with one calibration method."""

    def quantize(case: Case, path: Path) -> None:
        import rustq

        config = rustq.QuantConfig(method=method) if method else None
        rustq.quantize(case.model, case.calibration, scheme=scheme, config=config).save(path)

    return Variant(f"rustq {scheme}" + (f" {method}" if method else ""), quantize)


def onnxruntime(*, per_channel: bool) -> Variant:
    """onnxruntime's quantize_static after its quant_pre_process: QDQ, min-max, uint8 and int8."""

    def quantize(case: Case, path: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            prepared = prepare(case.model, Path(scratch))
            quantize_static(prepared, case.calibration, path, per_channel=per_channel)

    return Variant(f"ORT per {'channel' if per_channel else 'tensor'}", quantize)


def prepare(model: Path, scratch: Path) -> Path:
    """Convert an old opset, then onnxruntime's own preparation.

    Symbolic shape inference is left out: it needs SymPy, and stops with an error on most of the
    zoo's models.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().setLevel(logging.ERROR)
    loaded = onnx.load(model)
    opset = next(o.version for o in loaded.opset_import if o.domain in {"", "ai.onnx"})
    if opset < LEAST_OPSET:
        model = scratch / "converted.onnx"
        onnx.save(onnx.version_converter.convert_version(loaded, NEW_OPSET), model)
    prepared = scratch / "prepared.onnx"
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    return prepared


def quantize_static(
    model: Path,
    feeds: Iterable[Feed],
    path: Path,
    *,
    per_channel: bool = True,
    method: str = "MinMax",
) -> None:
    """onnxruntime.quantization.quantize_static, as QDQ with u8 activations and s8 weights."""
    from onnxruntime import quantization as ort

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest: Iterator[Feed] = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self.rest, None)

    logging.getLogger().setLevel(logging.ERROR)
    ort.quantize_static(
        str(model),
        str(path),
        Reader(),
        quant_format=ort.QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=ort.QuantType.QUInt8,
        weight_type=ort.QuantType.QInt8,
        calibrate_method=ort.CalibrationMethod[method],
    )
