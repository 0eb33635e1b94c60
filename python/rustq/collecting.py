"""Calibrating on data: here, or in parts by the workers of an executor; from the start, or from
where an interrupted run stopped."""

from __future__ import annotations

import os
from concurrent.futures import Executor
from typing import Any

from rustq import _rustq
from rustq.calibration import Calibration
from rustq.config import QuantConfig
from rustq.data import Feeds, feeds
from rustq.lanes import Lanes
from rustq.progress import Progress, reporting
from rustq.runner import Observation, channels_to_observe, inputs_of_model, lanes, ways
from rustq.tally import Interrupts, Tally

__all__ = ["collect"]


def collect(
    model: _rustq.Model,
    data: Any,
    config: QuantConfig,
    progress: bool | Progress,
    executor: Executor | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> tuple[Calibration, Feeds]:
    """What a prepared model computes on the data, and these as a stream of feeds.

    The result does not depend on the executor, nor on whether it was interrupted and resumed.
    """
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise TypeError(f"executor must have a submit method, got {type(executor).__name__}")
    samples = feeds(data, inputs_of_model(model), config.images)
    tally = Tally(model, samples.length, resume)
    with reporting(progress, "calibrating") as report:
        if executor is None:
            observation = Observation(
                model,
                config,
                ways(samples.length),
                channels_to_observe(model, config),
                lanes(config, samples.length),
            )
            _here(observation, samples, tally, report)
        else:
            from rustq.shards import collect_on

            collect_on(executor, model, data, samples, config, tally, report)
    tally.save()
    tally.calibration.check_finite()
    return Calibration(tally.calibration), samples


def _here(observation: Observation, samples: Feeds, tally: Tally, report: Progress) -> None:
    """Counts what is missing, in the order of the items."""
    first = next(tally.missing(), None)
    if first is None:
        return
    interrupts = Interrupts()
    number = taken = first[0]
    whole = True  # the counters hold the items from `taken` to before `number`, and no part of one

    def keep() -> None:
        nonlocal taken, whole
        with interrupts.held():
            whole = False
            running.finish()
            whole = True
            if number > taken:
                tally.add(observation.take(), taken, number)
            taken = number

    with interrupts.deferred(), Lanes(observation) as running:
        try:
            for item in samples.items(number):
                if number in tally:
                    keep()
                    number = taken = number + 1
                    continue
                with interrupts.held():
                    for feed in item:
                        whole = False
                        running.observe(feed, number)
                    number, whole = number + 1, True
                report(tally.items + number - taken, samples.length)
                if tally.due():
                    keep()
                    tally.save()
            keep()
        except BaseException:
            if whole:
                keep()
            tally.save()
            raise
