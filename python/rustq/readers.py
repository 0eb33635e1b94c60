"""Data readers of `onnxruntime.quantization`, as data of ours.

A `CalibrationDataReader` hands out a dict by input name with each `get_next()`, and `None` at its
end. How to begin again is not part of its interface: many have a `rewind()`, as the examples of
ONNX Runtime do, and some a `set_range(start, stop)`. With one of these it can be read as often as
is needed, and without it once, like an iterator. Its length is not asked for, since it may count
images where a feed is a batch of them. Nothing of onnxruntime is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rustq.errors import DataError

__all__ = ["Reader", "ReaderOnce", "adapted"]


def adapted(data: Any) -> Any:
    """Data as they are, or a reader in a form that can be iterated."""
    if not _is_reader(data):
        return data
    return (Reader if _rewinding(data) else ReaderOnce)(data)


def _is_reader(data: Any) -> bool:
    """Whether this has `get_next` and is no iterator of TensorFlow, which has one that raises."""
    package = type(data).__module__.partition(".")[0]
    return callable(getattr(type(data), "get_next", None)) and package != "tensorflow"


def _rewinding(reader: Any) -> bool:
    return hasattr(reader, "rewind") or (_has_range(reader) and _has_length(reader))


def _has_range(reader: Any) -> bool:
    """Whether `set_range` is more than that of the base class, which raises."""
    method = getattr(type(reader), "set_range", None)
    return method is not None and not method.__module__.startswith("onnxruntime.")


def _has_length(reader: Any) -> bool:
    try:
        return len(reader) >= 0
    except (TypeError, NotImplementedError):  # the base class has a len that raises
        return False


def _rewind(reader: Any) -> None:
    if hasattr(reader, "rewind"):
        reader.rewind()
    else:
        reader.set_range(0, len(reader))


class Reader:
    """A reader that can begin again, as an iterable; each iteration rewinds it first.

    There is one place to read from, so an iteration ends those before it: going on with one is a
    `DataError`.
    """

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._latest = 0

    def __iter__(self) -> Iterator[Any]:
        self._latest += 1
        return self._samples(self._latest)

    def _samples(self, number: int) -> Iterator[Any]:
        _rewind(self._reader)
        while (sample := self._reader.get_next()) is not None:
            yield sample
            if number != self._latest:
                raise DataError("the data reader was rewound while its samples were being read")


class ReaderOnce(Iterator[Any]):
    """A reader that can be read once, as an iterator."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._begun = False

    def __next__(self) -> Any:
        sample = self._reader.get_next()
        if sample is None:
            if not self._begun:
                raise DataError(
                    f"the {type(self._reader).__name__} gives no samples: if it was read before,"
                    " give it a rewind() method, or pass a new one"
                )
            raise StopIteration
        self._begun = True
        return sample
