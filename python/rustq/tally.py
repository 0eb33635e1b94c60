"""What was counted so far and of which items, so that an interrupted calibration can go on."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rustq import _rustq
from rustq.errors import DataError

__all__ = ["SECONDS", "Interrupts", "Tally"]

MAGIC = b"rustqrun\x01"
SECONDS = 10.0
"""Between two writes of the file."""

Interval = tuple[int, int]


class Tally:
    """A calibration, and the numbers of the items that are in it.

    The file, if there is one, holds: `rustqrun` and a version, the length of the calibration as
    eight bytes, the calibration, the items as JSON, a CRC-32. It is replaced as a whole, so a crash
    leaves the one before.
    """

    def __init__(
        self, model: _rustq.Model, length: int | None, path: str | os.PathLike[str] | None = None
    ) -> None:
        self.calibration = _rustq.Calibration(model)
        self.done: list[Interval] = []
        self._length = length
        self._path = None if path is None else Path(path)
        self._saved = time.monotonic()
        if self._path is not None and self._path.exists():
            self._load(self._path, model)

    def __contains__(self, item: int) -> bool:
        return any(start <= item < stop for start, stop in self.done)

    @property
    def items(self) -> int:
        """How many items are in the calibration."""
        return sum(stop - start for start, stop in self.done)

    def missing(self) -> Iterator[tuple[int, int | None]]:
        """The items not counted yet, as intervals; the last is open if their number is unknown."""
        start = 0
        for begin, end in self.done:
            if start < begin:
                yield start, begin
            start = end
        if self._length is None or start < self._length:
            yield start, self._length

    def add(self, part: _rustq.Calibration, start: int, stop: int) -> None:
        """Adds what was seen of the items from `start` to before `stop`."""
        self.calibration.add(part)
        self.done = _joined([*self.done, (start, stop)])

    def due(self) -> bool:
        """Whether it is time to write the file."""
        return self._path is not None and time.monotonic() - self._saved > SECONDS

    def save(self) -> None:
        """Writes the file, if there is one."""
        if self._path is None:
            return
        content = self.calibration.to_bytes()
        facts = json.dumps({"done": self.done, "length": self._length}).encode()
        body = MAGIC + len(content).to_bytes(8, "little") + content + facts
        _write(self._path, body + zlib.crc32(body).to_bytes(4, "little"))
        self._saved = time.monotonic()

    def _load(self, path: Path, model: _rustq.Model) -> None:
        data = path.read_bytes()
        body, size = data[:-4], int.from_bytes(data[len(MAGIC) : len(MAGIC) + 8], "little")
        if not data.startswith(MAGIC[:-1]):
            raise DataError(f"{path}: not a file to resume a calibration from")
        if not data.startswith(MAGIC) or zlib.crc32(body) != int.from_bytes(data[-4:], "little"):
            raise DataError(f"{path}: damaged, or written by another version of rustq")
        at = len(MAGIC) + 8
        try:
            calibration = _rustq.Calibration.from_bytes(body[at : at + size])
            calibration.check_model(model)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        facts = json.loads(body[at + size :])
        if facts["length"] != self._length:
            raise DataError(
                f"{path}: it counts {_samples(facts['length'])}, the data hold"
                f" {_samples(self._length)}: resume with the same data"
            )
        self.calibration = calibration
        self.done = [(start, stop) for start, stop in facts["done"]]


def _samples(length: int | None) -> str:
    return "an unknown number of samples" if length is None else f"{length} samples"


def _joined(intervals: list[Interval]) -> list[Interval]:
    """The same numbers in as few intervals as possible, sorted."""
    joined: list[Interval] = []
    for start, stop in sorted(intervals):
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop))
    return joined


def _write(path: Path, content: bytes) -> None:
    """Writes a file wholly or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class Interrupts:
    """Ctrl-C, held back while a sample is being counted, so that none is counted in half."""

    def __init__(self) -> None:
        self._busy = False
        self._came = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While this is open, `held` works.

        Only in the main thread, and where nobody else handles interrupts.
        """
        ours = threading.current_thread() is threading.main_thread()
        if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if not self._busy or self._came:  # a second one does not wait
            raise KeyboardInterrupt
        self._came = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """An interrupt that comes while this is open is raised when it closes."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
        if self._came:
            self._came = False
            raise KeyboardInterrupt
