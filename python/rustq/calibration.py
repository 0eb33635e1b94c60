"""What calibration saw of the activations."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rustq import _rustq
from rustq.config import QuantConfig

__all__ = ["Calibration"]


class Calibration:
    """Per tensor: exact minimum, maximum and count, and a histogram that needs no range in advance.

    Equal data give equal calibrations, whatever the order and the number of shards, and `a + b` is
    what calibrating on all of the data at once would have given. A calibration remembers which
    model it was made from, as checksums of the folded nodes and weights, and `rustq.quantize`
    refuses another.
    """

    def __init__(self, core: _rustq.Calibration | None = None) -> None:
        self._core = _rustq.Calibration() if core is None else core

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that were observed, sorted."""
        return tuple(self._core.tensors)

    @property
    def samples(self) -> int:
        """How many feeds the model was run on."""
        return self._core.runs

    def range(
        self,
        tensor: str,
        method: str = "auto",
        *,
        percentile: float = 99.99,
        scheme: str = "asym",
    ) -> tuple[float, float]:
        """The range that a method chooses: `(min, max)`, always with `min <= 0 <= max`.

        Args:
            tensor: one of `tensors`.
            method: see `rustq.QuantConfig`.
            percentile: for that method, in percent.
            scheme: `"asym"`, or `"sym"` for a range with `min == -max`.

        Raises:
            KeyError: there is no such tensor.
            ValueError: there is no such method or scheme, or the percentile is out of range.
        """
        QuantConfig(method=method, percentile=percentile)  # checks both
        return self._core.range(tensor, method, percentile, scheme)

    def histogram(
        self, tensor: str, bins: int = 100
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """How often values were seen, as `numpy.histogram` gives it.

        Args:
            tensor: one of `tensors`.
            bins: number of equal bins between the smallest and the largest value.

        Returns:
            Counts, int64 of shape `[bins]`, and edges, float64 of shape `[bins + 1]`. A value may
            be counted one bin beside its own: calibration keeps values to 0.4 %.

        Raises:
            KeyError: there is no such tensor.
            ValueError: `bins` is less than 1.
        """
        if bins < 1:
            raise ValueError(f"bins must be at least 1, got {bins}")
        counts, low, high = self._core.histogram(tensor, bins)
        return np.array(counts, np.int64), np.linspace(low, high, bins + 1)

    def merge(self, other: Calibration) -> Calibration:
        """What both saw together; exact, in any order.

        Raises:
            DataError: they were made from different models.
        """
        return Calibration(self._core.merged(other._core))

    def __add__(self, other: Calibration) -> Calibration:
        return self.merge(other)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a calibration file, wholly or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        self._core.save(Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Reads a calibration file.

        Raises:
            OSError: the file cannot be read.
            DataError: it is not a calibration file, or damaged, or of another version of rustq.
        """
        from rustq.errors import DataError

        try:
            return cls(_rustq.Calibration.from_bytes(Path(path).read_bytes()))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self._core.to_bytes(),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Calibration) and self._core == other._core

    def __hash__(self) -> int:
        return hash((self.samples, self.tensors))

    def __repr__(self) -> str:
        return f"<Calibration: {len(self.tensors)} tensors, {self.samples} samples>"


def _unpickled(content: bytes) -> Calibration:
    return Calibration(_rustq.Calibration.from_bytes(content))
