"""The time two models take, measured in turns so that both meet the same machine."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np

from rustq import _rustq

__all__ = ["about_this_processor", "interleaved_medians"]


def about_this_processor() -> list[str]:
    """What is to be known of times that were measured here: at most one note."""
    if (missing := _rustq.MISSING_INSTRUCTIONS) is None:
        return []
    return [
        f"this processor lacks {missing}, by which int8 is fast: here it is hardly faster than"
        " float, so measure on the device"
    ]


def interleaved_medians(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    seconds: float = 2.0,
    least: int = 5,
    most: int = 200,
) -> tuple[float, float]:
    """The median time of two pieces of work, in milliseconds, run by turns after one warm-up each.

    Args:
        first: one piece of work.
        second: the other.
        seconds: no further turn is begun after this long.
        least: turns that are taken however long they last.
        most: turns at most.
    """
    times: tuple[list[float], list[float]] = ([], [])
    first()
    second()
    end = perf_counter() + seconds
    for turn in range(most):
        if turn >= least and perf_counter() > end:
            break
        # Who goes first changes, so that neither always finds the other's data in the cache.
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            start = perf_counter()
            (second if which else first)()
            times[which].append((perf_counter() - start) * 1e3)
    return float(np.median(times[0])), float(np.median(times[1]))
