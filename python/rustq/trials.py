"""Settings chosen by what they do to the outputs of the model, on a few samples of the data.

How much a clipped value matters is decided by what reads it: a detector may live by the outliers
that a classifier never looks at. No statistic of a tensor tells the two apart; running the model
does. So `method="auto"` quantizes with each of `CANDIDATES`, runs the results beside the float
model, and keeps the one whose outputs are closest.

The samples were calibrated on, so that a candidate that follows them closely looks better than it
is: it has to win by `MARGIN` over those before it. One that runs clearly less in int8 is not
considered: it would be accurate by being slow. With a stored `Calibration` instead of data there is
nothing to run, and the first candidate is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rustq import text
from rustq.corrections import Excerpt, layer_inputs
from rustq.errors import ModelError
from rustq.measuring import Reference
from rustq.remedies import MARGIN, Trial, int8_share, remedied

if TYPE_CHECKING:
    from rustq.api import Task
    from rustq.config import QuantConfig
    from rustq.progress import Progress

__all__ = ["CANDIDATES", "Candidate", "chosen"]

LEAST, EACH, MOST = 4, 8, 16
"""Samples that are run: every eighth of those that were calibrated on, and so many at least and at
most."""
EVEN_MARGIN = 10 ** (-0.15)
"""The `MARGIN` of one that equalizes channels in the float model: it follows the extremes of each,
of which a few samples know little."""
SHARE = 0.98
"""Least multiply-accumulates in int8, relative to those of the first candidate."""


@dataclass(frozen=True)
class Candidate:
    """A way to choose ranges, and what goes with it.

    Attributes:
        method: as in `QuantConfig`; `"auto"` here is what the target takes by itself: the estimate
            for each tensor alone, or Ascend's search.
        percentile: as in `QuantConfig`; `None` where the method has none.
        equalize: whether channels are brought to one scale.
        corrected: whether weights are rounded, and biases corrected, for the sake of the results;
            `None`: of biases that is tried afterwards.
    """

    method: str
    percentile: float | None = None
    equalize: bool = False
    corrected: bool | None = None

    @property
    def label(self) -> str:
        """What the report calls it."""
        method = f"{self.method} {self.percentile:g}" if self.percentile else self.method
        parts = (method, self.equalize and "channels equalized", self.corrected and "corrected")
        return ", ".join(part for part in parts if part)

    @property
    def margin(self) -> float:
        """Share of the least error so far that it has to reach."""
        return EVEN_MARGIN if self.equalize and self.corrected else MARGIN

    def fits(self, asked: QuantConfig) -> bool:
        """Whether channels are equalized as was asked for."""
        return asked.equalize in (None, self.equalize)

    def config(self, asked: QuantConfig) -> QuantConfig:
        """What was asked for, with the ranges chosen this way."""
        bias, rounding = asked.bias_correction, asked.rounding
        if self.corrected is not None:
            bias = self.corrected if bias is None else bias
            rounding = rounding or ("learned" if self.corrected else "nearest")
        return replace(
            asked,
            method=self.method,
            percentile=self.percentile or asked.percentile,
            equalize=self.equalize,
            bias_correction=bias,
            rounding=rounding,
        )


WAYS = (("auto", None), ("percentile", 99.99))
CANDIDATES = tuple(
    Candidate(method, percentile, equalize)
    for method, percentile in WAYS
    for equalize in (False, True)
)
"""For ONNX Runtime."""
ON_THE_FLOAT_MODEL = (
    *(
        Candidate(method, percentile, equalize, True)
        for method, percentile in WAYS
        for equalize in (False, True)
    ),
    Candidate("auto", corrected=False),
)
"""For the others. Channels that are equalized make weights more uneven, for which the corrections
make up: each alone may be of no use."""

WIDE = (Candidate("minmax"),)
"""For int16 activations, whose steps are so small that there is nothing to gain by clipping."""


def chosen(task: Task, excerpt: Excerpt, report: Progress) -> Task:
    """The task with the best of the candidates that its configuration leaves open."""
    assert task.calibration is not None
    seen = task.calibration.samples
    candidates = [each for each in _ways(task) if each.fits(task.config)]
    count = min(max(seen // EACH, LEAST), MOST)
    model = task.as_run
    feeds = excerpt.feeds(model, task.config, seen, count)
    try:
        reference = Reference(model, list(feeds), task.sessions, by_kind=True)
    except ModelError:
        return task
    widest = replace(task.config, rounding=_rounding(task.config, candidates))
    task = replace(
        task,
        inputs=layer_inputs(task.model, excerpt, widest, seen),
        method=task.config.method,
    )
    best, label = _best(task, candidates, reference, report)
    notes = [
        f"ranges: {label}, {_best_of(candidates)} by the outputs on"
        f" {text.count(len(reference.feeds), 'sample')} (SQNR {best.sqnr})"
    ]
    report(len(candidates), len(candidates) + 1)
    best, more = remedied(best, reference)
    return replace(best.task, notes=(*task.notes, *notes, *more))


def _best(
    task: Task, candidates: Sequence[Candidate], reference: Reference, report: Progress
) -> tuple[Trial, str]:
    """The best way to choose ranges, and what it is called."""
    best, label, most = Trial(task, math.inf, 0.0), "", None
    for done, candidate in enumerate(candidates):
        report(done, len(candidates) + 1)  # what remedies there are is not known yet: they are one
        tried = replace(task, config=candidate.config(task.config))
        outcome = tried.outcome()
        int8 = int8_share(outcome)
        most = int8 if most is None else most
        if int8 < SHARE * most:
            continue
        noise = reference.error(outcome.computed).noise
        if not label or noise < candidate.margin * best.noise:
            best, label = Trial(tried, noise, int8), candidate.label
    return best, label


def _rounding(asked: QuantConfig, candidates: Sequence[Candidate]) -> str:
    """The way to round that needs the most to be seen."""
    roundings = [each.config(asked).rounding for each in candidates]
    return "learned" if "learned" in roundings else "nearest"


def _ways(task: Task) -> Sequence[Candidate]:
    if task.config.activations == "int16":
        return WIDE
    return CANDIDATES if task.runtime.name == "onnxruntime" else ON_THE_FLOAT_MODEL


def _best_of(candidates: Sequence[Candidate]) -> str:
    return f"the best of {len(candidates)} ways" if len(candidates) > 1 else "judged"
