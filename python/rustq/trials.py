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
from itertools import islice
from typing import TYPE_CHECKING

from rustq import text
from rustq.corrections import Excerpt, layer_inputs
from rustq.errors import ModelError
from rustq.measuring import Reference, decibels
from rustq.runner import session

if TYPE_CHECKING:
    from rustq.api import Task
    from rustq.config import QuantConfig
    from rustq.targets import Outcome

__all__ = ["CANDIDATES", "Candidate", "chosen"]

LEAST, EACH, MOST = 4, 8, 16
"""Samples that are run: every eighth of those that were calibrated on, and so many at least and at
most."""
MARGIN = 10 ** (-0.05)
"""Share of the least error so far, half a decibel below it, that another candidate has to reach."""
SHARE = 0.98
"""Least multiply-accumulates in int8, relative to those of the first candidate."""


@dataclass(frozen=True)
class Candidate:
    """A way to choose ranges.

    Attributes:
        method: as in `QuantConfig`; `"auto"` here is the estimate for each tensor alone.
        percentile: as in `QuantConfig`; `None` where the method has none.
        equalize: whether channels are brought to one scale.
    """

    method: str
    percentile: float | None = None
    equalize: bool = False

    @property
    def label(self) -> str:
        """What the report calls it."""
        method = f"{self.method} {self.percentile:g}" if self.percentile else self.method
        return f"{method}, channels equalized" if self.equalize else method

    def config(self, asked: QuantConfig) -> QuantConfig:
        """What was asked for, with the ranges chosen this way."""
        return replace(
            asked,
            method=self.method,
            percentile=self.percentile or asked.percentile,
            equalize=self.equalize,
        )


CANDIDATES = tuple(
    Candidate(method, percentile, equalize)
    for method, percentile in (
        ("auto", None),
        ("percentile", 99.99),
    )
    for equalize in (False, True)
)

WIDE = (Candidate("minmax"),)
"""For int16 activations, whose steps are so small that there is nothing to gain by clipping."""


def chosen(task: Task, excerpt: Excerpt) -> Task:
    """The task with the best of the candidates that its configuration leaves open."""
    assert task.calibration is not None
    asked, seen = task.config.equalize, task.calibration.samples
    ways = WIDE if task.config.activations == "int16" else CANDIDATES
    candidates = [each for each in ways if asked in (None, each.equalize)]
    count = min(max(seen // EACH, LEAST), MOST)
    feeds = excerpt.feeds(session(task.model.to_bytes()), task.config, seen, count)
    try:
        reference = Reference(task.model, list(islice(feeds, count)), task.sessions)
    except ModelError:
        return task
    least, best, most = math.inf, candidates[0], None
    for candidate in candidates:
        outcome = replace(task, config=candidate.config(task.config)).outcome()
        int8 = _int8_macs(outcome)
        most = int8 if most is None else most
        if int8 < SHARE * most:
            continue
        error = reference.error(outcome.model).noise
        if error < MARGIN * least:
            least, best = error, candidate
    task = replace(task, config=best.config(task.config), method=task.config.method)
    notes = [
        f"ranges: {best.label}, {_best_of(candidates)} by the outputs on"
        f" {len(reference.feeds)} samples (SQNR {text.decibels(decibels(least))})"
    ]
    if task.config.bias_correction is None:
        corrected = _corrected(task, excerpt)
        error = reference.error(corrected.outcome().model).noise
        if error < MARGIN * least:
            task = corrected
            notes.append(f"bias correction: brings that to {text.decibels(decibels(error))}; kept")
    return replace(task, notes=(*task.notes, *notes))


def _best_of(candidates: Sequence[Candidate]) -> str:
    return f"the best of {len(candidates)} ways" if len(candidates) > 1 else "judged"


def _corrected(task: Task, excerpt: Excerpt) -> Task:
    """The task with its biases corrected."""
    assert task.calibration is not None
    config = replace(task.config, bias_correction=True)
    return replace(
        task,
        config=config,
        inputs=layer_inputs(task.model, excerpt, config, task.calibration.samples),
    )


def _int8_macs(outcome: Outcome) -> float:
    layers = (layer for layer in outcome.layers if layer["quantized"])
    return sum(layer["macs"] or 0 for layer in layers)
