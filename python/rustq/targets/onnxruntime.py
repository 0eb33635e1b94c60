"""ONNX Runtime: QDQ models for its CPU provider, or dynamic quantization."""

from __future__ import annotations

from rustq import _rustq
from rustq.config import BLOCK_SIZE
from rustq.conversion import at_least
from rustq.errors import UnsupportedError
from rustq.targets import Job, Outcome

__all__ = ["make"]

OPSET = 21
"""The first operator set with DequantizeLinear of 4 bits and QuantizeLinear to 16."""


def make(job: Job) -> Outcome:
    """Quantizes for ONNX Runtime: static with a calibration, dynamic without."""
    config, model = job.config, job.model
    if config.activations == "int16" or (config.codes and config.quant_format == "qdq"):
        model, reason = at_least(model, OPSET)
        if reason:
            raise UnsupportedError(
                f"4-bit types and int16 activations need opset {OPSET}: {reason}"
            )
    if config.activations == "float32" or (config.codes and job.calibration is None):
        return Outcome(
            *_rustq.quantize_weights(
                model,
                job.inputs,
                weights=job.codes(BLOCK_SIZE),
                exclude=list(job.excluded),
                rounding=config.rounding or "nearest",
                bias_correction=bool(config.bias_correction),
            )
        )
    if job.calibration is None:
        return Outcome(
            *_rustq.quantize_dynamic(
                model,
                per_channel=config.per_channel,
                avoid_saturation=config.avoid_saturation,
                exclude=list(job.excluded),
            )
        )
    return Outcome(
        *_rustq.quantize_static(
            model,
            job.calibration._core,
            job.inputs,
            scheme=job.scheme,
            method=config.method,
            percentile=config.percentile,
            per_channel=config.per_channel,
            avoid_saturation=config.avoid_saturation,
            noise_price=job.noise_price,
            exclude=list(job.excluded),
            everything=job.everything or config.activations == "int16",
            rounding=config.rounding or "nearest",
            bias_correction=bool(config.bias_correction),
            equalize=bool(config.equalize),
            by_channel=job.by_channel,
            weights=job.codes(0) if config.codes else None,
            wide=config.activations == "int16",
            given=job.given,
        )
    )
