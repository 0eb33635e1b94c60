"""What is done where running a quantized model shows that its outputs are not good enough.

The plan weighs noise where it arises; what becomes of it on the way to the outputs depends on the
model: a difference of two nearly equal values is all noise. So the outputs of the best candidate
are looked at, and a remedy is kept if they are closer then and it is worth what stays float:

1. a higher price of noise, where the outputs are poor;
2. the layers in float that do most harm, where that was not enough.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rustq import text
from rustq.attribution import shares
from rustq.judging import UNKNOWN, Error, Judge
from rustq.measuring import decibels
from rustq.ranking import prefixes

if TYPE_CHECKING:
    from rustq.targets import Outcome
    from rustq.task import Task

__all__ = ["Trial", "remedied"]

POOR = 0.01
"""Relative noise of the outputs, 20 dB below them, above which higher prices of noise are tried."""
DEARER = (2, 4, 8, 16)
"""These, in times the usual one."""
WORTH = 16
"""Share of the multiply-accumulates that a relative noise of 1 in the outputs is worth: to be rid
of 1 %, 16 % may stay float."""
LOW = 0.03
"""Relative noise of the outputs, 15 dB below them, above which the layers that cause it are looked
for, and the user is told what can be done if it stays."""
FEW = 4
"""Samples on which remedies are looked for, the worst. What is found is judged on all."""
RANKED = 2
"""Samples on which layers are ranked by the harm they do, the worst."""


@dataclass(frozen=True)
class Trial:
    """A quantized model that was run.

    Attributes:
        task: what makes it.
        outcome: what that made.
        error: that of its outputs.
    """

    task: Task
    outcome: Outcome
    error: Error = UNKNOWN

    @classmethod
    def of(cls, task: Task) -> Trial:
        """What a task makes, not run yet."""
        return cls(task, task.outcome())

    def judged(self, judge: Judge, **limits: float) -> Trial:
        """Run beside the float model, as long as its error may be below the limits."""
        return replace(self, error=judge.error(self.outcome.computed, **limits))

    @property
    def noise(self) -> float:
        """Energy of the error of its outputs, relative to theirs."""
        return self.error.noise

    @property
    def int8(self) -> float:
        """Share of the multiply-accumulates that it has in int8."""
        layers = [(layer["macs"] or 0, layer["quantized"]) for layer in self.outcome.layers]
        total = sum(macs for macs, _ in layers)
        return sum(macs for macs, quantized in layers if quantized) / total if total else 0.0

    @property
    def sqnr(self) -> str:
        """Of the outputs, as text."""
        return text.decibels(decibels(self.noise))

    @property
    def worth(self) -> float:
        """What runs in int8 less what that costs in accuracy, as a share of the products."""
        return self.int8 - WORTH * self.noise

    @property
    def summary(self) -> str:
        """How good it is, and how much of it is in int8."""
        return f"{self.sqnr}, with {100 * self.int8:.0f} % of the multiply-accumulates in int8"


def remedied(first: Trial, judge: Judge) -> tuple[Trial, list[str]]:
    """The model with what makes it better, and a note for each."""
    best, notes = _remedied(first, judge) if _free(first.task) else (first, [])
    if best.int8 == 0 < first.int8:
        return best, [
            f"nothing runs in int8: the outputs' SQNR was {first.sqnr}, and no part that was tried"
            " is worth its error; rustq.sensitivity tells which layers cost it"
        ]
    if best.noise > LOW:
        notes.append(
            f"the outputs' SQNR is only {best.sqnr}: rustq.sensitivity tells which layers cost it,"
            " and max_drop=0.01 leaves in float what it takes for 20 dB"
        )
    return best, notes


def _remedied(first: Trial, judge: Judge) -> tuple[Trial, list[str]]:
    """The worthiest of what the remedies make, the second of the first or by itself."""
    few = judge.worst(FEW)
    best, notes = first, list[str]()
    if dearer := _dearer(first, judge, few):
        best, notes = dearer[0], [dearer[1]]
    start, before = (best, notes) if best.noise > LOW else (first, [])
    if spared := _spared(start, best, judge, few):
        best, notes = spared[0], [*before, spared[1]]
    return best, notes


def _free(task: Task) -> bool:
    """Whether more may stay float: neither a price was asked for, nor weights of few bits."""
    return task.config.noise_price is None and task.config.weights == "int8"


def _dearer(first: Trial, judge: Judge, few: Judge) -> tuple[Trial, str] | None:
    """With a higher price of noise, if the outputs are poor and it is worth what stays float."""
    if first.noise <= POOR:
        return None
    task, price = first.task, first.task.noise_price
    dearer = (replace(task.config, noise_price=factor * price) for factor in DEARER)
    best = _worthiest(first, (replace(task, config=config) for config in dearer), judge, few)
    if best is first:
        return None
    return best, _note(f"noise price: {best.task.noise_price:g} in place of {price:g}", first, best)


def _spared(first: Trial, best: Trial, judge: Judge, few: Judge) -> tuple[Trial, str] | None:
    """With the layers in float that do most harm, if the outputs are poor still and that is worth
    more than the best so far."""
    if first.noise <= LOW:
        return None
    names = _by_harm(first, few)
    spared = (replace(first.task, spared=tuple(prefix)) for prefix in prefixes(names))
    found = _worthiest(best, spared, judge, few)
    if found is best:
        return None
    count = len(found.task.spared)
    return found, _note(
        f"layers left in float for the sake of the outputs: {count}, which", first, found
    )


def _worthiest(first: Trial, others: Iterable[Task], judge: Judge, few: Judge) -> Trial:
    """The one worth most, of a trial and those of ever less in int8 up to the first that is good
    enough: looked for on few samples, and kept if it is worth more on all."""
    best = first
    for task in others:
        trial = Trial.of(task)
        if trial.int8 <= best.worth:
            break
        # Above that it is neither worth more nor good enough.
        trial = trial.judged(few, noise=max((trial.int8 - best.worth) / WORTH, POOR))
        best = max(best, trial, key=lambda trial: trial.worth)
        if trial.noise <= POOR:
            break
    return first if best is first else max(first, best.judged(judge), key=lambda trial: trial.worth)


def _note(what: str, first: Trial, best: Trial) -> str:
    return f"{what} brings that to {best.summary} in place of {100 * first.int8:.0f} %; kept"


def _by_harm(trial: Trial, judge: Judge) -> list[str]:
    """The int8 layers, that with the largest share of the outputs' error first."""
    task = replace(trial.task, made=trial.outcome)
    quantized = task.quantized()
    layers, feeds = quantized.report.layers, judge.feeds[:RANKED]
    found = shares(task.as_run, quantized._core, layers, feeds, task.sessions)
    return sorted(found, key=lambda name: -found[name])
