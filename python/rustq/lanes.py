"""Observing several feeds at once."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from rustq.runner import Observation
    from rustq.samples import Feed

__all__ = ["Lanes"]


class Lanes:
    """As many threads as an observation takes; with one, the caller's."""

    def __init__(self, observation: Observation) -> None:
        several = observation.lanes > 1
        self._observation = observation
        self._pool = ThreadPoolExecutor(observation.lanes) if several else None
        self._underway: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def observe(self, feed: Feed, number: int) -> None:
        """Runs a feed, which belongs to sample `number`, as soon as there is a lane for it.

        Raises:
            DataError: this feed, or one before it, cannot be run.
        """
        if self._pool is None:
            self._observation.observe(feed, number)
            return
        if len(self._underway) >= self._observation.lanes:
            self._underway.popleft().result()
        # What yields the feeds may use their memory again for the next one.
        copy = {name: np.array(values) for name, values in feed.items()}
        self._underway.append(self._pool.submit(self._observation.observe, copy, number))

    def finish(self) -> None:
        """Waits until every feed is observed.

        Raises:
            DataError: one of them cannot be run.
        """
        while self._underway:
            self._underway.popleft().result()
