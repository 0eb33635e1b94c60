"""Fair timing on a machine that does other things as well."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from zoo import Feed, Run

MIN_ROUNDS, MAX_ROUNDS = 15, 2000


def pin(core: int | None = None) -> None:
    """Keep this process and its children on one core (the last if not given), if possible."""
    if hasattr(os, "sched_setaffinity"):
        chosen = max(os.sched_getaffinity(0)) if core is None else core
        os.sched_setaffinity(0, {chosen})


def interleaved(
    runs: Mapping[str, Run], feeds: Sequence[Feed], seconds: float, clock: Callable[[], float]
) -> dict[str, float]:
    """Median milliseconds of each run; they take turns, each round in another order."""
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names:  # warm up
        runs[name](feeds[0])
    end = time.monotonic() + seconds
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and time.monotonic() > end:
            break
        feed, turn = feeds[number % len(feeds)], number % len(names)
        for name in names[turn:] + names[:turn]:
            start = clock()
            runs[name](feed)
            times[name].append(clock() - start)
    return {name: 1000 * statistics.median(each) for name, each in times.items()}
