"""How good the quantized forms of one model are: by the error of their outputs, or by a metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from rustq.calibration import Calibration
from rustq.comparison import Tally, run
from rustq.errors import DataError
from rustq.readers import adapted
from rustq.samples import Array, Feed, Session, by_name, conform, inputs_of

if TYPE_CHECKING:
    from rustq import _rustq
    from rustq.config import QuantConfig

__all__ = [
    "SAMPLES",
    "Metric",
    "OutputError",
    "Reference",
    "Run",
    "Sessions",
    "repeatable",
    "scored",
]

NO_SPINNING = {"session.intra_op.allow_spinning": "0"}
"""For runs whose time is not measured: threads that wait for work do not use a processor, which by
default is a quarter of all its time."""

SAMPLES = 64
"""Feeds that errors are measured on, the first of the data."""

Run = Callable[[Any], list[Array]]
"""Runs a model on one feed, in any form that `rustq.quantize` takes one, and returns its outputs in
order."""

Metric = Callable[[Run], float]
"""A user's measure of a model, higher is better: it calls the `Run` as often as it likes."""


@dataclass(frozen=True)
class OutputError:
    """How far a model's outputs are from the float model's.

    Attributes:
        noise: energy of the error over energy of the float output, averaged over the outputs.
        cosine: cosine similarity of an output's values, averaged over the outputs.
    """

    noise: float
    cosine: float

    @property
    def sqnr_db(self) -> float:
        """-10 log10 of the noise, in dB; infinite if there is none."""
        return decibels(self.noise)


def decibels(noise: float) -> float:
    """-10 log10 of a relative noise."""
    return -10 * math.log10(noise) if noise > 0 else math.inf


def repeatable(data: Any) -> Any:
    """The data in a form that can be gone through again: an iterator is read into a list, and so is
    a data reader that cannot be rewound.

    Raises:
        DataError: there are no samples in it.
    """
    if data is None or isinstance(data, Calibration):
        given = "none" if data is None else "a Calibration, which holds counts"
        raise DataError(f"samples are needed to measure errors on, and the data are {given}")
    data = adapted(data)
    return list(data) if isinstance(data, Iterator) else data


@dataclass(frozen=True)
class Sessions:
    """How models are run to be measured.

    Attributes:
        config: `threads`, `providers` and `images` are used.
        options: of ONNX Runtime, see `Target.session_options`.
    """

    config: QuantConfig
    options: Mapping[str, Any] = field(default_factory=dict)

    def session(self, model: _rustq.Model | bytes) -> Session:
        """A session for a model, or a serialized one."""
        from rustq.runner import session

        config = self.config
        made: Session = session(
            model,
            threads=config.threads,
            providers=tuple(config.providers),
            options=NO_SPINNING | dict(self.options),
        )
        return made


class Reference:
    """The float model's outputs on the first feeds of the data, kept to compare others with.

    Attributes:
        feeds: these feeds.
        sessions: how models are run.
    """

    def __init__(self, model: _rustq.Model, data: Any, sessions: Sessions) -> None:
        from rustq.data import feeds

        self.sessions = sessions
        self._names = [name for name, *_ in model.outputs]
        session = sessions.session(model)
        self.feeds: list[Feed] = list(
            islice(feeds(data, inputs_of(session), sessions.config.images), SAMPLES)
        )
        self._expected = [
            run(session, self._names, feed, sample) for sample, feed in enumerate(self.feeds)
        ]

    def error(self, model: _rustq.Model) -> OutputError:
        """The error of a model with the same inputs and outputs."""
        session = self.sessions.session(model)
        tallies = [Tally(name) for name in self._names]
        for sample, (feed, expected) in enumerate(zip(self.feeds, self._expected, strict=True)):
            actual = run(session, self._names, feed, sample)
            for tally, x, y in zip(tallies, expected, actual, strict=True):
                tally.add(x, y)
        outputs = [tally.result() for tally in tallies if tally.values]
        return OutputError(
            noise=_mean([_noise(output.sqnr_db) for output in outputs]),
            cosine=_mean([_cosine(output.cosine) for output in outputs]),
        )


def scored(metric: Metric, model: _rustq.Model, sessions: Sessions) -> float:
    """What a metric says of a model.

    Raises:
        ValueError: it is not a finite number.
    """
    session = sessions.session(model)
    inputs = inputs_of(session)

    def run_one(sample: Any) -> list[Array]:
        feed = by_name(sample, inputs, "the metric's feed")
        return list(
            session.run(
                None,
                {info.name: conform(feed[info.name], info, "the metric's feed") for info in inputs},
            )
        )

    score = float(metric(run_one))
    if not math.isfinite(score):
        raise ValueError(f"metric must return a finite number, it returned {score}")
    return score


def _noise(sqnr_db: float | None) -> float:
    """Relative noise from an SQNR; an output that is all zero, and no longer is, counts as 1."""
    return 1.0 if sqnr_db is None else 10 ** (-sqnr_db / 10)


def _cosine(cosine: float | None) -> float:
    """A cosine similarity; an output that is all zero in one of the models counts as alike."""
    return 1.0 if cosine is None else cosine


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
