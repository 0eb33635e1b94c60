"""ONNX Runtime: QDQ models for its CPU provider, or dynamic quantization."""

from __future__ import annotations

from rustq import _rustq
from rustq.targets import Job, Outcome

__all__ = ["make"]

NOISE_PRICE = {"asym": 3.0, "sym": 6.0}


def make(job: Job) -> Outcome:
    """Quantizes for ONNX Runtime: static with a calibration, dynamic without."""
    config = job.config
    if job.calibration is None:
        return Outcome(
            *_rustq.quantize_dynamic(
                job.model,
                per_channel=config.per_channel,
                avoid_saturation=config.avoid_saturation,
                exclude=list(job.excluded),
            )
        )
    price = config.noise_price
    return Outcome(
        *_rustq.quantize_static(
            job.model,
            job.calibration._core,
            job.inputs,
            scheme=job.scheme,
            method=config.method,
            percentile=config.percentile,
            per_channel=config.per_channel,
            avoid_saturation=config.avoid_saturation,
            noise_price=NOISE_PRICE[job.scheme] if price is None else price,
            exclude=list(job.excluded),
            everything=job.everything,
            rounding=config.rounding,
            bias_correction=bool(config.bias_correction),
            equalize=bool(config.equalize),
            named=job.named,
        )
    )
