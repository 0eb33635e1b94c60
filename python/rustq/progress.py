"""Progress of long work: a bar on a terminal, a callable of the user's, or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

__all__ = ["Progress", "reporting"]

Progress = Callable[[int, int | None], None]
"""Called with the number of samples done, and the total or `None` if it is not known."""


@contextmanager
def reporting(progress: bool | Progress, what: str) -> Iterator[Progress]:
    """The callable to report to while some work runs.

    Args:
        progress: `False` for silence; a callable, which is handed through; or `True` for a bar on
            standard error, which appears with the first report, if that is a terminal.
        what: the work, in a word or two, to stand before the bar.
    """
    if callable(progress):
        yield progress
    elif not progress or not _terminal():
        yield _silent
    else:
        bar = _RichBar(what)
        try:
            yield bar
        finally:
            bar.stop()


def _silent(done: int, total: int | None) -> None:
    pass


def _terminal() -> bool:
    import sys

    return sys.stderr is not None and sys.stderr.isatty()


class _RichBar:
    """A rich progress bar, made at the first report so that work without steps shows none."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._first: tuple[float, int] | None = None

    def __call__(self, done: int, total: int | None) -> None:
        if self._bar is None or self._task is None:
            self._start(total)
        assert self._bar is not None
        assert self._task is not None
        # Data may turn out to be longer than they said.
        shown = None if total is None else max(total, done)
        self._bar.update(self._task, completed=done, total=shown, rate=self._rate(done))

    def _rate(self, done: int) -> str:
        """Samples per second since the first report, which may come with many done long ago."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        since, already = self._first
        return f"{(done - already) / (now - since):.1f}/s" if done > already else ""

    def _start(self, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            # Without a total nothing is known of the time left.
            TimeElapsedColumn() if total is None else TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(self._what, total=total, rate="")
        self._bar.start()

    def stop(self) -> None:
        """Takes the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()
