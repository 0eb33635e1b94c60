"""Fair timing on a machine that does other things as well."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the zoo asks for more packages than timing does
    from zoo import Feed, Run

MIN_ROUNDS, MAX_ROUNDS = 15, 2000


def pin(count: int = 1, core: int | None = None) -> None:
    """Keep this process and its children on a core, or on the last `count`, if possible."""
    if hasattr(os, "sched_setaffinity"):
        last = sorted(os.sched_getaffinity(0))[-count:]
        os.sched_setaffinity(0, last if core is None else {core})


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
