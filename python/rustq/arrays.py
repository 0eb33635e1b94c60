"""`.npy` and `.npz` files, read a few rows at a time so that memory does not grow."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from rustq.errors import DataError
from rustq.samples import Array, as_array

__all__ = ["ARRAY_SUFFIXES", "ArrayRows", "Rows", "open_arrays"]

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
"""File name endings, in lower case, that are read as numpy arrays."""


class Rows(Protocol):
    """An array that is handed out front to back."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole array."""

    def whole(self) -> Array:
        """The whole array."""

    def chunks(self, step: int, first: int = 0) -> Iterator[Array]:
        """Consecutive slices of `step` rows of the first axis, from slice `first` on; the last may
        be shorter."""


class ArrayRows:
    """An array in memory, or mapped from a file, as `Rows`."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.shape: tuple[int, ...] = array.shape

    def whole(self) -> Array:
        """The whole array."""
        return self._array

    def chunks(self, step: int, first: int = 0) -> Iterator[Array]:
        """Consecutive slices of `step` rows, from slice `first` on; the last may be shorter."""
        for start in range(first * step, self.shape[0], step):
            yield self._array[start : start + step]


class MemberRows:
    """An array in an `.npz` file as `Rows`: decompressed as it is read, whole only if asked."""

    def __init__(self, path: Path, member: str) -> None:
        self._path, self._member = path, member
        with self._open() as (_, shape, _, _):
            self.shape = shape

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], tuple[int, ...], bool, np.dtype[Any]]]:
        """The stream after the header, and the header: shape, Fortran order?, dtype."""
        with (
            _reading(self._path),
            zipfile.ZipFile(self._path) as file,
            file.open(self._member) as stream,
        ):
            version = np.lib.format.read_magic(stream)
            if version == (1, 0):
                header = np.lib.format.read_array_header_1_0(stream)
            elif version == (2, 0):
                header = np.lib.format.read_array_header_2_0(stream)
            else:
                raise ValueError(f"npy version {version} in {self._member}")
            yield stream, *header

    def whole(self) -> Array:
        """The whole array, read into memory."""
        with _reading(self._path), np.load(self._path, allow_pickle=False) as file:
            return as_array(file[self._member.removesuffix(".npy")], str(self._path))

    def chunks(self, step: int, first: int = 0) -> Iterator[Array]:
        """Consecutive slices of `step` rows, from slice `first` on; the last may be shorter."""
        with self._open() as (stream, shape, fortran, dtype):
            if fortran or dtype.hasobject:
                yield from ArrayRows(self.whole()).chunks(step, first)
                return
            row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
            stream.seek(first * step * row, os.SEEK_CUR)
            for start in range(first * step, shape[0], step):
                count = min(step, shape[0] - start)
                data = stream.read(count * row)
                if len(data) != count * row:
                    raise ValueError(f"{self._member} is cut short")
                yield np.frombuffer(data, dtype).reshape(count, *shape[1:])


def open_arrays(path: Path) -> dict[str, Rows] | Rows:
    """The arrays of a file: by name for `.npz`, a single one for `.npy` (mapped, not loaded).

    Raises:
        OSError: the file cannot be opened.
        DataError: it is not what its name says, is damaged, or holds Python objects.
    """
    with _reading(path):
        if path.suffix.lower() == ".npy":
            return ArrayRows(np.lib.format.open_memmap(path, mode="r"))
        with zipfile.ZipFile(path) as file:
            members = [name for name in file.namelist() if name.endswith(".npy")]
    return {name.removesuffix(".npy"): MemberRows(path, name) for name in members}


_DAMAGE = (ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what numpy and zipfile raise over a damaged file into a `DataError` that names it."""
    try:
        yield
    except _DAMAGE as error:
        raise DataError(f"{path}: cannot read this {path.suffix.lower()} file: {error}") from error
