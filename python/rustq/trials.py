"""Settings chosen by what they do to the outputs of the model, on a few samples of the data.

How much a clipped value matters is decided by what reads it: a detector may live by the outliers
that a classifier never looks at. No statistic of a tensor tells the two apart; running the model
does. So `method="auto"` quantizes with each of `CANDIDATES`, runs the results beside the float
model, and keeps the one whose outputs are closest; biases that take up the mean error of rounded
weights mostly belong to it, and are given up where it does better without.

The samples were calibrated on, so that a candidate that follows them closely looks better than it
is: it has to win by `MARGIN` over those before it. One that runs clearly less in int8 is not
considered: it would be accurate by being slow. With a stored `Calibration` instead of data there is
nothing to run, and the first candidate is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from rustq import text
from rustq.corrections import Excerpt, LayerInputs, layer_inputs
from rustq.errors import DataError, ModelError
from rustq.judging import UNKNOWN, Judge, runs
from rustq.remedies import Trial, remedied

if TYPE_CHECKING:
    from rustq import _rustq
    from rustq.config import QuantConfig
    from rustq.progress import Progress
    from rustq.task import Task

__all__ = ["CANDIDATES", "Candidate", "chosen"]

LEAST, EACH, MOST = 8, 3, 64
"""Samples that are run: a third of those that were calibrated on, and so many at least and at most.
With an eighth of them, an OCR model kept what seemed 8 dB better than it was: one line in twenty
makes a third of its error."""
MARGIN = 10 ** (-0.02)
"""Share of the least typical error so far, a fifth of a decibel below it, that a candidate has to
reach."""
EVEN_MARGIN = 10 ** (-0.15)
"""The `MARGIN` of one that equalizes channels in the float model: it follows the extremes of each,
of which a few samples know little."""
EXACT = 1e-10
"""Relative noise of the outputs, 100 dB below them, that two orders of the same float operations
may differ by: there is nothing to choose."""
SHARE = 0.98
"""Least multiply-accumulates in int8, relative to those of the first candidate."""
OTHER_SHAPES = (
    "the file has fixed shapes, those of input_shapes= or the first sample, and there are samples"
    " of others: calibrated on all, but no settings were tried and no biases corrected"
)


@dataclass(frozen=True)
class Candidate:
    """A way to choose ranges, and what goes with it.

    Attributes:
        method: as in `QuantConfig`; `"auto"` here is what the target takes by itself: the estimate
            for each tensor alone, or Ascend's search.
        percentile: as in `QuantConfig`; `None` where the method has none.
        equalize: whether channels are brought to one scale.
        bias: whether biases take up the mean error.
        rounding: of weights, as in `QuantConfig`.
    """

    method: str
    percentile: float | None = None
    equalize: bool = False
    bias: bool = True
    rounding: str = "nearest"

    @property
    def label(self) -> str:
        """What the report calls it."""
        method = f"{self.method} {self.percentile:g}" if self.percentile else self.method
        parts = (
            method,
            self.equalize and "channels equalized",
            self.rounding == "learned" and "weights rounded for the results",
            self.bias and "biases corrected",
        )
        return ", ".join(part for part in parts if part)

    @property
    def margin(self) -> float:
        """Share of the least error so far that it has to reach."""
        return EVEN_MARGIN if self.equalize and self.rounding == "learned" else MARGIN

    def within(self, asked: QuantConfig) -> Candidate:
        """The same, as far as it was left open."""
        return replace(
            self,
            bias=self.bias if asked.bias_correction is None else asked.bias_correction,
            rounding=asked.rounding or self.rounding,
        )

    def fits(self, asked: QuantConfig) -> bool:
        """Whether channels are equalized as was asked for."""
        return asked.equalize in (None, self.equalize)

    def config(self, asked: QuantConfig) -> QuantConfig:
        """What was asked for, with the ranges chosen this way."""
        return replace(
            asked,
            method=self.method,
            percentile=self.percentile or asked.percentile,
            equalize=self.equalize,
            bias_correction=self.bias,
            rounding=self.rounding,
        )


WAYS = (("auto", None), ("percentile", 99.99))
CANDIDATES = tuple(
    Candidate(method, percentile, equalize)
    for method, percentile in WAYS
    for equalize in (False, True)
)
"""For ONNX Runtime."""
ON_THE_FLOAT_MODEL = (
    *(replace(candidate, rounding="learned") for candidate in CANDIDATES),
    Candidate("auto", bias=False),
)
"""For the others. Channels that are equalized make weights more uneven, for which the corrections
make up: each alone may be of no use."""

WIDE = (Candidate("minmax"),)
"""For int16 activations, whose steps are so small that there is nothing to gain by clipping."""


def chosen(task: Task, excerpt: Excerpt, report: Progress) -> Task:
    """The task with the best of the candidates that its configuration leaves open."""
    asked = task.config
    candidates = [each.within(asked) for each in _ways(task) if each.fits(asked)]
    learned = any(each.rounding == "learned" for each in candidates)
    widest = replace(asked, rounding="learned" if learned else "nearest")
    try:
        judge, inputs = _looked_at(task, excerpt, widest)
    except ModelError:
        return task
    except DataError:
        if task.as_run is task.model:
            raise
        # They were calibrated on, so that it is the shapes that do not fit.
        return replace(task, notes=(*task.notes, OTHER_SHAPES))
    task = replace(task, inputs=inputs, method=asked.method)
    best, label = _best(task, candidates, judge, report)
    if best.noise <= EXACT:
        return replace(best.task, made=best.outcome)
    notes = [
        f"ranges: {label}, {_best_of(candidates)} by the outputs on"
        f" {text.count(len(judge.feeds), 'sample')} (SQNR {best.sqnr})"
    ]
    report(len(candidates), len(candidates) + 1)
    best, more = remedied(best, judge)
    return replace(best.task, notes=(*task.notes, *notes, *more), made=best.outcome)


def _looked_at(
    task: Task, excerpt: Excerpt, config: QuantConfig
) -> tuple[Judge, _rustq.LayerInputs]:
    """What the float model makes of some samples, and what its layers multiply: found in the same
    runs, if it is run as it was prepared."""
    assert task.calibration is not None
    calibrated = task.calibration.samples
    count = min(max(calibrated // EACH, LEAST), MOST)
    model = task.as_run
    if model is task.model:
        inputs = LayerInputs(model, config)
        both = partial(inputs.runs, excerpt, calibrated, count=count)
        return Judge(model, both, task.sessions), inputs.seen
    feeds = (feed for feed, _ in excerpt.feeds(model, config, calibrated, count))
    judge = Judge(model, runs(model, feeds, task.sessions), task.sessions)
    return judge, layer_inputs(task.model, excerpt, config, calibrated)


def _best(
    task: Task, candidates: Sequence[Candidate], judge: Judge, report: Progress
) -> tuple[Trial, str]:
    """The best way to choose ranges, and what it is called."""
    first, *others = candidates
    steps = len(candidates) + 1  # what remedies there are is not known yet: they are one
    report(0, steps)
    best = _trial(task, first).judged(judge), first
    least = SHARE * best[0].int8
    if best[0].noise <= EXACT:
        return best[0], first.label
    for done, candidate in enumerate(others, 1):
        report(done, steps)
        best = _better(task, candidate, judge, best, least)
    without = replace(best[1], bias=False)
    if task.config.bias_correction is None and without not in candidates:
        best = _better(task, without, judge, best, least)
    return best[0], best[1].label


def _better(
    task: Task,
    candidate: Candidate,
    judge: Judge,
    best: tuple[Trial, Candidate],
    least: float,
) -> tuple[Trial, Candidate]:
    """This candidate if it beats the best so far, and has at least so much in int8; else that."""
    trial = _trial(task, candidate)
    if trial.int8 < least:
        return best
    trial = trial.judged(judge, typical=candidate.margin * best[0].error.typical)
    return best if trial.error == UNKNOWN else (trial, candidate)


def _trial(task: Task, candidate: Candidate) -> Trial:
    """What a candidate makes, not run yet."""
    return Trial.of(replace(task, config=candidate.config(task.config)))


def _ways(task: Task) -> Sequence[Candidate]:
    if task.config.activations == "int16":
        return WIDE
    return CANDIDATES if task.runtime.name == "onnxruntime" else ON_THE_FLOAT_MODEL


def _best_of(candidates: Sequence[Candidate]) -> str:
    return f"the best of {len(candidates)} ways" if len(candidates) > 1 else "judged"
