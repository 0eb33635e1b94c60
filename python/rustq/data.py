"""The data people have, as a stream of feeds that fit the model.

Accepted, as `data` everywhere in rustq:

- an iterable of samples: `{input name: array}`, a tuple or list in input order, or a bare array for
  a model with one input. Arrays are numpy's, or tensors of torch, TensorFlow or JAX (no framework
  is imported), or nested lists. A sample may also be the path of a file as below. A data set that
  has a length and can be indexed, but not iterated, will do as well, and so do those of torch,
  TensorFlow and Hugging Face, which may hold labels (`rustq.frameworks.data`), and a
  `CalibrationDataReader` of onnxruntime (`rustq.readers`);
- one array, or one mapping of arrays: a whole data set, or one feed;
- a `.npy` file (models with one input), or an `.npz` file whose keys are the input names (or
  numpy's own `arr_0`, `arr_1`, … in input order);
- a folder of `.npy` and `.npz` files, or of images (for a model with one input), subfolders
  included, sorted by name. Files with other endings and hidden files are passed over.

What a first axis means is decided by the shapes: see `rustq.cuts`. Files are read as they are
needed: `.npy` is mapped, `.npz` is decompressed a few rows at a time, and a folder has one file
open at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rustq.arrays import ARRAY_SUFFIXES, ArrayRows, Rows, open_arrays
from rustq.cuts import Plan, plan
from rustq.errors import DataError
from rustq.frameworks.data import fitted, is_data_set
from rustq.images import IMAGE_SUFFIXES, ImageOptions, ImageReader
from rustq.samples import Array, Feed, InputInfo, by_name, check_names, conform, inputs_of

__all__ = ["Feeds", "InputInfo", "feeds", "inputs_of", "is_data_path", "is_indexed"]


Item = Iterable[Feed]
"""What one sample of the data becomes: a feed, or several for a batch that has to be split."""


class Feeds:
    """A lazy stream of feeds, `{input name: array}`, each checked against the model's inputs.

    The arrays are C-ordered, of the input's dtype and rank, and finite. Iterating again reads the
    data again, which an iterator or generator cannot do: the second time is a `DataError`.

    Attributes:
        length: number of items where it is known without reading the data: of samples of an
            iterable, of feeds otherwise.
        notes: what was assumed about the data, one line each, for the report.
        parts: whether `items(first)` reads nothing of the items before `first`.
    """

    def __init__(
        self,
        start: Callable[[int], Iterator[Item]],
        length: int | None,
        *,
        notes: Sequence[str] = (),
        once: bool = False,
        parts: bool = True,
    ) -> None:
        self.length = length
        self.notes = tuple(notes)
        self.parts = parts
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._start = start
        self._once = once
        self._used = False

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("the number of samples is not known in advance")
        return self.length

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Feed]:
        for item in self.items():
            yield from item

    def items(self, first: int = 0) -> Iterator[Item]:
        """The items from number `first` on, each to be consumed before the next is asked for.

        Raises:
            DataError: the data can be read only once, and were; or hold nothing at all.
        """
        if self._used and self._once:
            raise DataError(
                "the data is an iterator that was already consumed: pass a list, or an object"
                " that can be iterated again"
            )
        self._used = True
        return self._not_empty(first)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each input in the first feed that is read; read for it if none was yet."""
        if not self._shapes and not self._once:
            next(iter(self))
        return self._shapes

    def _noting_shapes(self, item: Item) -> Item:
        for feed in item:
            self._shapes = {name: array.shape for name, array in feed.items()}
            yield feed

    def _not_empty(self, first: int) -> Iterator[Item]:
        empty = first == 0
        for item in self._start(first):
            if not self._shapes:
                item = self._noting_shapes(item)
            empty = False
            yield item
        if empty:
            raise DataError(
                "the data is empty: there is no sample to calibrate with or to compare on"
            )


def feeds(data: Any, inputs: Sequence[InputInfo], images: ImageOptions | None = None) -> Feeds:
    """The feeds for a model with these inputs.

    Args:
        data: any of the forms in the module's documentation.
        inputs: the inputs of the model that have to be fed.
        images: how image files become arrays; `None` derives it from the model's input, and says so
            in `Feeds.notes`.

    Raises:
        DataError: here, if a file, folder or array cannot fit the model; while iterating, if a
            sample does not.
        OSError: a file or folder cannot be opened.
        TypeError: `data` is none of the accepted forms.
    """
    if isinstance(data, str | os.PathLike):
        return _from_path(Path(data), inputs, images)
    if isinstance(data, Mapping) or _is_array(data):
        return _from_arrays(by_name(data, inputs, "the data"), inputs)
    if is_data_set(data):
        data = fitted(data, [info.name for info in inputs])
    if is_indexed(data):
        data = _Indexed(data)
    if not isinstance(data, Iterable) or isinstance(data, bytes | bytearray):
        raise TypeError(
            "data must be an iterable of samples, an array, a dict of arrays, or a path to .npy,"
            f" .npz or images, got {type(data).__name__}"
        )
    length = _length(data)
    if length == 0:
        raise DataError("the data is empty: it has no samples")
    reader = _LazyReader(inputs, images)
    once = isinstance(data, Iterator)
    return Feeds(
        lambda first: _from_samples(data, inputs, reader, first),
        length,
        once=once,
        parts=isinstance(data, _Indexed),
    )


def is_data_path(path: Path) -> bool:
    """Whether `feeds` reads this path: a folder, or a file with the ending of arrays or images."""
    return path.is_dir() or path.suffix.lower() in ARRAY_SUFFIXES | IMAGE_SUFFIXES


def is_indexed(data: Any) -> bool:
    """Whether samples of these data can be read by their number, without reading others."""
    if isinstance(data, str | bytes | bytearray | os.PathLike | Mapping) or _is_array(data):
        return False
    return hasattr(data, "__getitem__") and hasattr(data, "__len__")


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (
        any(hasattr(value, name) for name in ("__array__", "__dlpack__"))
        and hasattr(value, "shape")
    )


def _length(data: Iterable[Any]) -> int | None:
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:  # torch's DataLoader over an iterable data set has a len that raises
        return None


class _Indexed:
    """A data set that can be indexed, as an iterable that starts anywhere."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[Any]:
        return self.since(0)

    def since(self, first: int) -> Iterator[Any]:
        """The samples from number `first` on."""
        if first == 0 and isinstance(self._data, Iterable):
            return iter(self._data)
        return (self._data[number] for number in range(first, len(self._data)))


class _LazyReader:
    """Makes the image reader when the first image turns up."""

    def __init__(self, inputs: Sequence[InputInfo], images: ImageOptions | None) -> None:
        self._inputs, self._images = inputs, images
        self._reader: ImageReader | None = None

    def get(self, where: Path) -> ImageReader:
        if self._reader is None:
            if len(self._inputs) != 1:
                names = ", ".join(f'"{info.name}"' for info in self._inputs)
                raise DataError(
                    f"{where}: images feed a model with one input, this one has"
                    f" {len(self._inputs)} ({names}): pass .npz files with the input names as keys"
                )
            self._reader = ImageReader(self._inputs[0], self._images)
        return self._reader


# ---------------------------------------------------------------------- arrays and samples
def _from_arrays(arrays: Feed, inputs: Sequence[InputInfo]) -> Feeds:
    where = "the data"
    cut = plan({name: array.shape for name, array in arrays.items()}, inputs, where, data_set=True)
    rows: dict[str, Rows] = {name: ArrayRows(array) for name, array in arrays.items()}
    return Feeds(
        lambda first: _single(cut.feeds(rows, inputs, where, first)), cut.count, notes=_notes(cut)
    )


def _notes(cut: Plan) -> list[str]:
    return [cut.note] if cut.note else []


def _single(feeds: Iterable[Feed]) -> Iterator[Item]:
    """Each feed an item."""
    for feed in feeds:
        yield (feed,)


def _from_samples(
    data: Iterable[Any], inputs: Sequence[InputInfo], reader: _LazyReader, first: int
) -> Iterator[Item]:
    samples = data.since(first) if isinstance(data, _Indexed) else islice(data, first, None)
    for number, sample in enumerate(samples, start=first):
        if isinstance(sample, str | os.PathLike):
            yield _read_file(Path(sample), inputs, reader)
            continue
        where = f"sample {number}"
        arrays = by_name(sample, inputs, where)
        cut = plan(
            {name: array.shape for name, array in arrays.items()}, inputs, where, data_set=False
        )
        yield cut.feeds({name: ArrayRows(array) for name, array in arrays.items()}, inputs, where)


# ---------------------------------------------------------------------- files and folders
def _from_path(path: Path, inputs: Sequence[InputInfo], images: ImageOptions | None) -> Feeds:
    reader = _LazyReader(inputs, images)
    if not path.is_dir():
        if path.suffix.lower() in IMAGE_SUFFIXES:
            path.stat()
            return _from_images([path], reader)
        _, cut = _open(path, inputs)
        return Feeds(
            lambda first: _single(_read_file(path, inputs, reader, first)),
            cut.count,
            notes=_notes(cut),
        )
    files = _data_files(path)
    if files[0].suffix.lower() in IMAGE_SUFFIXES:
        return _from_images(files, reader)
    counts = [_open(file, inputs)[1].count for file in files]

    def start(first: int) -> Iterator[Item]:
        for file, count in zip(files, counts, strict=True):
            if first < count:
                yield from _single(_read_file(file, inputs, reader, first))
            first = max(first - count, 0)

    return Feeds(start, sum(counts))


def _data_files(folder: Path) -> list[Path]:
    """The data files of a folder, sorted by their path in it: all arrays, or all images."""
    found = [
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in ARRAY_SUFFIXES | IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    ]
    files = sorted(found, key=lambda file: file.relative_to(folder).parts)
    if not files:
        raise DataError(f"{folder}: no .npy, .npz or image files in this folder")
    arrays = [file for file in files if file.suffix.lower() in ARRAY_SUFFIXES]
    if arrays and len(arrays) != len(files):
        other = next(file for file in files if file.suffix.lower() in IMAGE_SUFFIXES)
        raise DataError(
            f"{folder}: holds both arrays ({arrays[0].name}) and images ({other.name}):"
            " keep one kind"
        )
    return files


def _open(path: Path, inputs: Sequence[InputInfo]) -> tuple[dict[str, Rows], Plan]:
    """The arrays of a file by input name, and how they are cut. Reads only headers."""
    if path.suffix.lower() not in ARRAY_SUFFIXES:
        path.stat()
        raise DataError(
            f"{path}: not a file rustq reads data from: use .npy, .npz, an image, or a folder"
        )
    arrays = open_arrays(path)
    if not isinstance(arrays, dict):
        if len(inputs) != 1:
            names = ", ".join(f'"{info.name}"' for info in inputs)
            raise DataError(
                f"{path}: one array for {len(inputs)} inputs ({names}): use .npz with the input"
                " names as keys"
            )
        arrays = {inputs[0].name: arrays}
    elif arrays and set(arrays) == {f"arr_{number}" for number in range(len(inputs))}:
        arrays = {info.name: arrays[f"arr_{number}"] for number, info in enumerate(inputs)}
    if not arrays:
        raise DataError(f"{path}: holds no arrays")
    check_names(arrays, inputs, str(path))
    return arrays, plan(
        {name: rows.shape for name, rows in arrays.items()}, inputs, str(path), data_set=True
    )


def _read_file(
    path: Path, inputs: Sequence[InputInfo], reader: _LazyReader, first: int = 0
) -> Iterator[Feed]:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        images = reader.get(path)
        yield {inputs[0].name: _without_batch(images.read(path), inputs[0], path)}
        return
    arrays, cut = _open(path, inputs)
    yield from cut.feeds(arrays, inputs, str(path), first)


def _from_images(files: Sequence[Path], reader: _LazyReader) -> Feeds:
    images = reader.get(files[0])
    info = images.info
    batch = (
        info.shape[0]
        if info.shape and len(info.shape) == 4 and isinstance(info.shape[0], int)
        else 1
    )
    if len(files) % batch:
        raise DataError(
            f"{files[0].parent}: {len(files)} images do not divide into the model's"
            f" batches of {batch}"
        )

    def start(first: int) -> Iterator[Item]:
        for at in range(first * batch, len(files), batch):
            group = [images.read(file) for file in files[at : at + batch]]
            array = group[0] if batch == 1 else np.concatenate(group)
            yield ({info.name: _without_batch(array, info, files[at])},)

    return Feeds(start, len(files) // batch, notes=images.notes)


def _without_batch(array: Array, info: InputInfo, path: Path) -> Array:
    """The image as the input takes it: without a batch axis where it has none."""
    drop = info.shape is not None and len(info.shape) == 3
    return conform(array[0] if drop else array, info, str(path))
