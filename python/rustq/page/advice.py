"""What to try next, from what was measured."""

from __future__ import annotations

from collections.abc import Callable

from rustq.page.facts import Facts

__all__ = ["ADVICE", "advice"]


SLOWER = 0.97
"""Speed-up below which int8 is called slower: times that are closer are noise."""


def _noisy(facts: Facts) -> bool:
    return facts.worst_db is not None and facts.worst_db < 15


def _slower(facts: Facts) -> bool:
    return facts.speedup is not None and facts.speedup < SLOWER


def _symmetric(facts: Facts) -> bool:
    return facts.report is not None and facts.report.scheme == "sym"


def _few_samples(facts: Facts) -> bool:
    return facts.report is not None and (facts.report.samples or 99) < 16


def _dynamic(facts: Facts) -> bool:
    return facts.report is not None and facts.report.scheme == "dynamic"


def _many_conversions(facts: Facts) -> bool:
    fused = facts.fusion
    return fused is not None and len(fused.conversions) > sum(fused.kernels.values()) > 0


ADVICE: tuple[tuple[Callable[[Facts], bool], str], ...] = (
    (
        _noisy,
        "An output is below 15 dB. Leave the layers at the top of the table of errors in float"
        " (exclude=…), or let accuracy count for more than time: noise_price twice as large.",
    ),
    (
        lambda facts: _noisy(facts) and not _few_samples(facts),
        'Try another method: "percentile" where a few values are far out, "minmax" where rare and'
        " large values decide. One calibration file serves all of them.",
    ),
    (
        lambda facts: facts.seen and facts.comparison is not None,
        "These errors are on the samples that it was calibrated on, where int8 looks better than it"
        " is. Compare on others: rustq compare FLOAT INT8 --data OTHERS --report PAGE.",
    ),
    (
        _few_samples,
        "Fewer than 16 feeds were seen. If each is one sample, a few dozen that are like those in"
        " use make the ranges steadier.",
    ),
    (
        _slower,
        "int8 is slower than float here. See which values are converted back and forth, and"
        " quantize less (exclude=…), or measure on the device: processors differ.",
    ),
    (
        lambda facts: _slower(facts) and _symmetric(facts),
        "On x86, ONNX Runtime has no fast kernels for int8 activations: what it cannot turn into"
        ' uint8 it computes in float. scheme="asym" is the one for x86.',
    ),
    (
        _many_conversions,
        "There are more conversions than integer kernels. They sit around operators without an"
        " integer kernel; a model with fewer kinds of activations converts less.",
    ),
    (
        lambda facts: _dynamic(facts) and _slower(facts),
        "Dynamic quantization finds ranges while the model runs. With calibration data that is done"
        " once, and convolutions can run in int8 too.",
    ),
)
"""When to say something, and what."""


DOMINANT = 0.25
"""Share of the outputs' error from which on a single layer is named."""
SEVERAL = 5
"""Layers below which each has a large share anyway."""


def advice(facts: Facts) -> list[str]:
    """What to try next, most important first; empty if all is well."""
    return [*_culprit(facts), *(text for applies, text in ADVICE if applies(facts))]


def _culprit(facts: Facts) -> list[str]:
    """The layer that makes most of the error, if one does."""
    if len(facts.shares) < SEVERAL:
        return []
    name, share = max(facts.shares.items(), key=lambda entry: entry[1])
    if share < DOMINANT:
        return []
    return [
        f"{name} makes {100 * share:.0f} % of the outputs' error by itself:"
        f" exclude=[{name!r}] leaves it in float, if that is worth its time."
    ]
