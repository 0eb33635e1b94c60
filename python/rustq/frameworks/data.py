"""Data sets of the frameworks, as samples for a model with certain inputs.

They hold more than a model takes, mostly labels: behind the inputs where a sample is a tuple, under
names of their own where it is a dict. Nothing is read before it is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import PurePath
from typing import Any

import numpy as np

__all__ = ["first_samples", "fitted", "is_data_set", "samples_of"]

DATA_SETS = (
    ("torch", "DataLoader"),
    ("torch", "Dataset"),
    ("tensorflow", "DatasetV2"),
    ("keras", "PyDataset"),
    ("datasets", "Dataset"),
    ("datasets", "IterableDataset"),
)
"""Packages and names of classes; subclasses count."""


def is_data_set(data: Any) -> bool:
    """Whether these are data of a framework, which may hold labels."""
    return any(
        (base.__module__.partition(".")[0], base.__name__) in DATA_SETS
        for base in type(data).__mro__
    )


def fitted(data: Any, names: Sequence[str]) -> Fitted:
    """The samples of a data set without what inputs of these names do not take."""
    return (FittedRows if hasattr(data, "__getitem__") else Fitted)(data, names)


class Fitted:
    """A data set of what a model takes, which can be iterated again if the whole one can."""

    def __init__(self, data: Any, names: Sequence[str]) -> None:
        self._data, self._names = data, tuple(names)

    def __iter__(self) -> Iterator[Any]:
        return (_part(sample, self._names) for sample in _samples(self._data))

    def __len__(self) -> int:
        length = len(self._data)
        # An infinite data set of TensorFlow says -1, one of unknown length -2.
        if length < 0:
            raise TypeError("the number of samples is not known")
        return length


class FittedRows(Fitted):
    """The same for one that can be indexed."""

    def __getitem__(self, number: int) -> Any:
        return _part(self._data[number], self._names)


def first_samples(data: Any, count: int) -> list[Any]:
    """The first samples as they are; of what is neither iterated nor indexed, itself."""
    if isinstance(data, str | PurePath):
        raise TypeError(
            "a torch.nn.Module is exported with the first sample of the data: pass samples, a data"
            " set or a DataLoader, not a path"
        )
    if isinstance(data, Mapping) or hasattr(data, "shape"):
        return [data]
    return list(islice(samples_of(data), count))


def samples_of(data: Any) -> Iterator[Any]:
    """All samples, with a batch axis."""
    if isinstance(data, Mapping) or hasattr(data, "shape"):
        return iter([data])
    samples = _samples(data)
    return (_batched(sample) for sample in samples) if _holds_single(data) else samples


def _holds_single(data: Any) -> bool:
    """Whether samples have no batch axis: a data set of torch or Hugging Face."""
    names = {base.__name__ for base in type(data).__mro__}
    return is_data_set(data) and bool(names & {"Dataset", "IterableDataset"})


def _batched(sample: Any) -> Any:
    if isinstance(sample, Mapping):
        return {name: _batched(value) for name, value in sample.items()}
    if isinstance(sample, tuple | list):
        return tuple(_batched(value) for value in sample)
    return sample[None] if hasattr(sample, "shape") else np.asarray(sample)[None]


def _samples(data: Any) -> Iterator[Any]:
    if hasattr(data, "as_numpy_iterator"):
        return iter(data.as_numpy_iterator())
    if not isinstance(data, Iterable):
        return (data[number] for number in range(len(data)))
    return iter(data)


def _part(sample: Any, names: Sequence[str]) -> Any:
    """What of a sample the inputs take."""
    if isinstance(sample, Mapping):
        return {name: sample[name] for name in names if name in sample} or sample
    if not isinstance(sample, tuple | list) or not sample:
        return sample
    if isinstance(sample[0], Mapping | tuple):  # (inputs, labels), as Keras has it
        return _part(sample[0], names)
    return sample[: len(names)] if len(sample) > len(names) else sample
