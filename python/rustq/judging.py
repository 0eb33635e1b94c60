"""Which of many quantized forms of a model is closest to it, told as soon as it is clear."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rustq.comparison import inner, run
from rustq.samples import Array, Feed, Session

if TYPE_CHECKING:
    from rustq import _rustq
    from rustq.measuring import Sessions

__all__ = ["UNKNOWN", "Error", "Judge", "Runs", "runs"]

Runs = Callable[[Sequence[str]], Iterable[tuple[Feed, Sequence[Any]]]]
"""Runs the float model: gives, sample by sample, the feed and what the model makes of it, the
values of these names."""

KEPT = 128 << 20
"""Bytes of feeds and outputs that are kept, beyond which every other sample is let go."""
LEAST = 4
"""Samples that are kept whatever their size."""
TELLING = 4
"""Of so many samples, one tells whether a model falls behind: of those that the one before was
worst on, with most of its error, at least `LEAST`."""


@dataclass(frozen=True)
class Error:
    """How far the outputs of a model are from those of another.

    Attributes:
        noise: energy of the error, relative to that of the outputs and averaged over them.
        typical: the same if all samples had the mean amplitude, the square root of the energy. A
            few samples often make most of the energy, and it takes luck to have them among those
            that are run; this tells with fewer which of two models is better. It is relative to
            the outputs of all: those of an image without an object do not count for more.
    """

    noise: float
    typical: float


UNKNOWN = Error(math.inf, math.inf)
"""Of a model that was not run, or not to the end."""


@dataclass(frozen=True)
class Sample:
    """A feed, and what the float model makes of it."""

    feed: Feed
    outputs: dict[str, Array]

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return sum(array.nbytes for array in (*self.feed.values(), *self.outputs.values()))


class Judge:
    """The float model's outputs on some samples, kept to compare those of others with.

    An output that joins values of different kinds, such as boxes and scores, is as good as the
    worst of them: large values do not hide small ones. It takes many samples to tell two models
    apart; but errors only grow from sample to sample, and those that were worst for the model
    before come first. One that is clearly worse is not run on them all; nor is one that falls
    behind on the first of them, where chance is on its side: they were chosen for being bad for the
    other.
    """

    def __init__(self, model: _rustq.Model, runs: Runs, sessions: Sessions) -> None:
        self._sessions = sessions
        outputs = model.kinds_of_outputs()
        names = sorted({name for kinds in outputs for kind in kinds for name in kind})
        self._inner = names if names != sorted(name for name, *_ in model.outputs) else []
        self._samples = _thinned(
            Sample(feed, _numbers(names, values)) for feed, values in runs(names)
        )
        seen = {name for sample in self._samples for name in sample.outputs}
        kept = [
            [found for kind in kinds if (found := seen.intersection(kind))] for kinds in outputs
        ]
        kept = [kinds for kinds in kept if kinds]
        self._kinds = [sorted(kind) for kinds in kept for kind in kinds]
        self._starts = np.cumsum([0, *map(len, kept)])[:-1]
        self._names = sorted({name for kind in self._kinds for name in kind})
        self._signal = sum(
            (self._energies(sample.outputs) for sample in self._samples), self._nothing
        )
        self._amplitudes: list[float] = []

    def worst(self, count: int) -> Judge:
        """A judge by so many samples, those on which the last model was worst: its error is the
        same to it, as if there were as much of the outputs as these have of that error."""
        few = copy(self)
        few._samples, few._amplitudes = self._samples[:count], self._amplitudes[:count]
        energies = np.square(self._amplitudes)
        if energies.any():
            few._signal = self._signal * (energies[:count].sum() / energies.sum())
        return few

    @property
    def feeds(self) -> list[Feed]:
        """Of the samples, those on which the last model was worst first."""
        return [sample.feed for sample in self._samples]

    def error(
        self, model: _rustq.Model, *, noise: float = math.inf, typical: float = math.inf
    ) -> Error:
        """The error of a model's outputs; `UNKNOWN` where one of the two figures is not below its
        limit, or would hardly be."""
        if not self._names:
            return Error(0.0, 0.0)
        session = self._session(model)
        allowed = self._allowed(typical)
        total, amplitudes = self._nothing, list[float]()
        for at, sample in enumerate(self._samples):
            outputs = _numbers(self._names, run(session, self._names, sample.feed, at))
            differences = {name: _difference(outputs, sample, name) for name in sample.outputs}
            energies = self._energies(differences)
            total = total + energies
            amplitudes.append(math.sqrt(self._relative(energies)))
            if self._relative(total) >= noise or sum(amplitudes) >= allowed[at]:
                return UNKNOWN
        order = np.argsort(amplitudes, kind="stable")[::-1]
        self._samples = [self._samples[at] for at in order]
        self._amplitudes = [amplitudes[at] for at in order]
        return Error(self._relative(total), sum(amplitudes) ** 2 / len(amplitudes))

    def _allowed(self, typical: float) -> list[float]:
        """What the amplitudes together have to stay below, after each sample: what they may be in
        the end, and once there are enough of them its share that the last model had by then."""
        count = len(self._samples)
        allowed = [math.sqrt(count * typical)] * count
        before = np.cumsum(self._amplitudes)
        if len(before) and before[-1] > 0 and typical < math.inf:
            first = max(count // TELLING, LEAST) - 1
            allowed[first:] = [allowed[-1] * part / before[-1] for part in before[first:]]
        return allowed

    @property
    def _nothing(self) -> Array:
        return np.zeros(len(self._kinds))

    def _session(self, model: _rustq.Model) -> Session:
        return self._sessions.session(model.with_outputs(self._inner) if self._inner else model)

    def _energies(self, values: dict[str, Array]) -> Array:
        """Of each kind."""
        return np.array(
            [sum(_energy(values[name]) for name in kind if name in values) for kind in self._kinds]
        )

    def _relative(self, errors: Array) -> float:
        """A kind that is all zero, and no longer is, has a noise of 1."""
        silent = (errors > 0).astype(np.float64)
        noise = np.divide(errors, self._signal, out=silent, where=self._signal > 0)
        return float(np.maximum.reduceat(noise, self._starts).mean())


def runs(model: _rustq.Model, feeds: Iterable[Feed], sessions: Sessions) -> Runs:
    """Runs this model on these feeds, for nothing else."""

    def made(names: Sequence[str]) -> Iterable[tuple[Feed, Sequence[Any]]]:
        session = sessions.session(model.with_outputs(list(names)))
        for at, feed in enumerate(feeds):
            yield feed, run(session, names, feed, at)

    return made


def _thinned(samples: Iterable[Sample]) -> list[Sample]:
    """As many of the samples as may be kept, evenly spread."""
    kept: list[Sample] = []
    step = 1
    for at, sample in enumerate(samples):
        if at % step:
            continue
        kept.append(sample)
        while len(kept) >= 2 * LEAST and sum(each.nbytes for each in kept) > KEPT:
            kept, step = kept[::2], 2 * step
    return kept


def _numbers(names: Iterable[str], values: Iterable[Any]) -> dict[str, Array]:
    """What of the values is an array of numbers."""
    return {
        name: value
        for name, value in zip(names, values, strict=True)
        if isinstance(value, np.ndarray) and value.dtype.kind not in "OSU"
    }


def _difference(outputs: dict[str, Array], sample: Sample, name: str) -> Array:
    """Nothing where the shapes are not the same."""
    actual, expected = outputs[name], sample.outputs[name]
    if actual.shape != expected.shape:
        return np.zeros(0)
    difference = actual.astype(np.float64)
    with np.errstate(invalid="ignore"):  # of infinities, which are left out
        difference -= expected
    return difference


def _energy(values: Array) -> float:
    """The sum of the squares of what is finite."""
    flat = values.ravel().astype(np.float64, copy=False)
    energy = inner(flat, flat)
    if math.isfinite(energy):
        return energy
    finite = flat[np.isfinite(flat)]
    return inner(finite, finite)
