"""Mixed precision: the fewest layers left in float with which a model is good enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rustq import text
from rustq.measuring import Metric, Reference, repeatable, scored
from rustq.progress import Progress, reporting
from rustq.ranking import LayerSensitivity, prefixes, ranked

if TYPE_CHECKING:
    from rustq.model import QuantizedModel
    from rustq.task import Task

__all__ = ["within"]

RETURNS = 16
"""Models made at most to bring layers back to int8 once the limit is met."""


@dataclass(frozen=True)
class Attempt:
    """A quantized model with some layers left in float, and how much worse than float it is."""

    kept: tuple[str, ...]
    model: QuantizedModel
    drop: float


def within(
    task: Task, data: Any, limit: float, metric: Metric | None, progress: bool | Progress
) -> QuantizedModel:
    """The quantized model with the fewest layers in float whose drop is at most `limit`.

    Layers are ranked once, by their share of the error of the outputs; the shortest prefix of that
    ranking that has to stay float is found by doubling and halving; then layers of the prefix are
    tried in int8 again, the least harmful first and in halves, and stay there if the limit still
    holds. Every model that counts was measured.
    """
    data = repeatable(data)
    reference = Reference(task.as_run, data, task.sessions)
    with reporting(progress, "searching") as report:
        search = _Search(task, limit, _measure(task, reference, metric), report)
        full = search.attempt(())
        if full.drop <= limit:
            return _told(full, full, limit, metric, ())
        found = ranked(task, full.model, reference)
        names = [layer.name for layer in found.layers]
        best = search.returned(search.shortest(names))
    return _told(full, best, limit, metric, found.layers)


def _measure(
    task: Task, reference: Reference, metric: Metric | None
) -> Callable[[QuantizedModel], float]:
    """How much worse than the float model a quantized one is."""
    if metric is None:
        return lambda model: reference.error(model._core).noise
    float_score = scored(metric, task.as_run, task.sessions)
    return lambda model: float_score - scored(metric, model._core, task.sessions)


class _Search:
    def __init__(
        self,
        task: Task,
        limit: float,
        drop: Callable[[QuantizedModel], float],
        report: Progress,
    ) -> None:
        self._task, self._limit, self._drop, self._report = task, limit, drop, report
        self._attempts = 0

    def attempt(self, kept: Sequence[str]) -> Attempt:
        """Quantizes with these layers in float, and measures."""
        model = self._task.quantized(kept)
        self._attempts += 1
        self._report(self._attempts, None)
        return Attempt(tuple(kept), model, self._drop(model))

    def holds(self, attempt: Attempt) -> bool:
        """Whether a model is good enough."""
        return attempt.drop <= self._limit

    def shortest(self, names: Sequence[str]) -> Attempt:
        """The shortest prefix of a ranking that is enough, or the best of those tried."""
        failed, best = 0, None
        for prefix in prefixes(names):
            attempt = self.attempt(prefix)
            if best is None or self.holds(attempt) or attempt.drop < best.drop:
                best = attempt
            if self.holds(attempt):
                break
            failed = len(prefix)
        assert best is not None
        if not self.holds(best):
            return best
        while len(best.kept) - failed > 1:
            middle = (failed + len(best.kept)) // 2
            attempt = self.attempt(names[:middle])
            if self.holds(attempt):
                best = attempt
            else:
                failed = middle
        return best

    def returned(self, best: Attempt) -> Attempt:
        """The same with layers back in int8, where the limit still holds without them in float."""
        if not self.holds(best):
            return best
        # The last of the shortest prefix is needed: without it the limit did not hold.
        groups = [list(best.kept[:-1])] if len(best.kept) > 1 else []
        for _ in range(RETURNS):
            if not groups:
                break
            group = groups.pop()
            attempt = self.attempt([name for name in best.kept if name not in group])
            if self.holds(attempt):
                best = attempt
            elif len(group) > 1:
                middle = len(group) // 2
                groups += [group[:middle], group[middle:]]
        return best


def _told(
    full: Attempt,
    best: Attempt,
    limit: float,
    metric: Metric | None,
    ranking: Sequence[LayerSensitivity],
) -> QuantizedModel:
    """The model, with the report saying what stayed float for the limit, and what it would cost."""
    report = best.model.report
    what = "error of the outputs" if metric is None else "drop of the metric"
    asked = f"max_drop={limit:g}"
    notes = [f"{what}: {best.drop:.4g} ({asked}; {full.drop:.4g} with nothing kept float for it)"]
    if best.drop > limit:
        notes = [f"{asked} is not met: the {what} is {best.drop:.4g}"]
    costs = {layer.name: layer.sqnr_db for layer in ranking if layer.name in best.kept}
    notes += [
        f"'{name}' stays float for {asked}: in int8, it alone would hold the output SQNR to"
        f" {text.decibels(sqnr_db)}"
        for name, sqnr_db in costs.items()
    ]
    layers = tuple(
        replace(layer, reason=f"kept float for {asked}", output_sqnr_db=costs[layer.name])
        if layer.name in costs
        else layer
        for layer in report.layers
    )
    best.model.report = replace(
        report, layers=layers, notes=[*report.notes, *notes], drop=best.drop, max_drop=limit
    )
    return best.model
