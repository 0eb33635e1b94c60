"""Two models side by side: how far their outputs differ, their size and their speed."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from rustq import text
from rustq.config import QuantConfig
from rustq.errors import DataError, ModelError
from rustq.latency import about_this_processor, interleaved_medians
from rustq.model import QuantizedModel
from rustq.plain import plain
from rustq.progress import Progress, reporting
from rustq.samples import Array, Feed, Session, inputs_of
from rustq.targets import TARGETS

__all__ = ["Comparison", "OutputComparison", "compare"]


@dataclass(frozen=True, kw_only=True)
class OutputComparison:
    """How far one output of the quantized model is from the float model's, over all the data.

    Attributes:
        name: the output's name in the float model.
        sqnr_db: energy of the float output over the energy of the error, in dB; infinite if the
            outputs are equal, `None` if the float output is all zero and the other is not.
        cosine: cosine similarity over all values, `None` if one of the outputs is all zero.
        max_abs_error: largest absolute difference of a value.
        mean_abs_error: mean absolute difference.
        top1_agreement: share of the rows of an output of shape `[rows, classes]`, with two classes
            or more, whose largest value is at the same place; `None` for other outputs.
        values: number of values compared.
    """

    name: str
    sqnr_db: float | None
    cosine: float | None
    max_abs_error: float
    mean_abs_error: float
    top1_agreement: float | None
    values: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A float model and its quantized form, compared on the same data.

    Attributes:
        outputs: one entry per output, in the float model's order.
        samples: number of feeds that both models were run on.
        size_float: bytes of the float model.
        size_quantized: bytes of the quantized model.
        latency_float_ms: median time of the first feed in ONNX Runtime; `None` where the quantized
            model is for another runtime.
        latency_quantized_ms: the same for the quantized model, run by turns with the float one.
        threads: ONNX Runtime threads of both.
        notes: what could not be compared, and what the times depend on, one line each.
    """

    outputs: tuple[OutputComparison, ...]
    samples: int
    size_float: int
    size_quantized: int
    latency_float_ms: float | None
    latency_quantized_ms: float | None
    threads: int
    notes: tuple[str, ...] = ()

    @property
    def speedup(self) -> float | None:
        """Float time over quantized time: above 1 the quantized model is faster."""
        if self.latency_float_ms is None or self.latency_quantized_ms is None:
            return None
        return self.latency_float_ms / self.latency_quantized_ms

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values; infinite numbers become `None`."""
        values = {entry.name: plain(getattr(self, entry.name)) for entry in fields(self)}
        return values | {"speedup": plain(self.speedup)}

    def to_json(self, *, indent: int | None = 2) -> str:
        """`to_dict` as JSON text."""
        import json

        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    def output_rows(self) -> list[tuple[str, ...]]:
        """The outputs as text, in the columns of `OUTPUT_HEADER`."""
        return [
            (
                output.name,
                text.decibels(output.sqnr_db),
                "-" if output.cosine is None else f"{output.cosine:.6f}",
                f"{output.max_abs_error:.4g}",
                f"{output.mean_abs_error:.4g}",
                "-" if output.top1_agreement is None else f"{100 * output.top1_agreement:.2f} %",
            )
            for output in self.outputs
        ]

    def cost_rows(self) -> list[tuple[str, ...]]:
        """Size and latency as text, in the columns of `COST_HEADER`."""
        share = self.size_quantized / self.size_float
        threads = text.count(self.threads, "thread")
        sizes = text.size(self.size_float), text.size(self.size_quantized)
        rows: list[tuple[str, ...]] = [("size", *sizes, f"{100 * share:.0f} %")]
        times = self.latency_float_ms, self.latency_quantized_ms
        if self.speedup is not None:
            rows.append(
                (f"latency, {threads}", *map(text.milliseconds, times), _times(self.speedup))
            )
        return rows

    def _repr_html_(self) -> str:
        from rustq.page.facts import Facts
        from rustq.page.render import framed

        return framed(Facts(comparison=self))

    def __str__(self) -> str:
        return "\n".join(
            [
                text.table(OUTPUT_HEADER, self.output_rows()),
                "",
                text.table(COST_HEADER, self.cost_rows()),
                *(f"note: {note}" for note in self.notes),
            ]
        )


def _times(speedup: float) -> str:
    """A speed-up in words: `2.37x faster`, `0.61x (slower)`, `as fast`."""
    shown = f"{speedup:.2f}x"
    return "as fast" if shown == "1.00x" else f"{shown} {'faster' if speedup > 1 else '(slower)'}"


OUTPUT_HEADER = ("output", "SQNR", "cosine", "max error", "mean error", "top-1 agreement")
COST_HEADER = ("", "float", "quantized", "quantized / float")


def compare(
    model: Any,
    quantized: Any,
    data: Any,
    *,
    config: QuantConfig | None = None,
    progress: bool | Progress = False,
) -> Comparison:
    """Runs both models in ONNX Runtime on the same data and compares what comes out.

    Of a `rustq.QuantizedModel` for another runtime, what that computes is compared, and no times
    are taken.

    Outputs are compared as they come and not kept, so memory does not grow with the data.

    Args:
        model: the float model, in any form that `rustq.load` takes.
        quantized: the quantized model: a path, bytes, an `onnx.ModelProto` or a `rustq.Model`.
        data: the data, in any form that `rustq.quantize` takes.
        config: `images` says how image files are read, `threads` (1 if `None`) and `providers` how
            both models are run.
        progress: `True` for a bar on a terminal, or a callable taking (done, total or `None`).

    Raises:
        ModelError: a model cannot be loaded, or the two have different inputs or outputs.
        DataError: the data does not fit the models or is empty.
        OSError: a file cannot be opened.
    """
    from rustq.data import feeds  # not needed until there is data
    from rustq.frameworks import exported

    config = config or QuantConfig()
    threads = config.threads or 1
    model, data = exported(model, data)
    sources = [_source(model), _source(quantized)]
    runtime = quantized._target if isinstance(quantized, QuantizedModel) else TARGETS["onnxruntime"]
    sessions = [
        _session(source, threads, config, options)
        for source, options in zip(sources, ({}, runtime.session_options), strict=True)
    ]
    names = _common_outputs(*sessions)
    stream = feeds(data, inputs_of(sessions[1]), config.images)
    tallies = {name: Tally(name) for name, _ in names}
    first: Feed | None = None
    samples = 0
    with reporting(progress, "comparing") as report:
        for feed in stream:
            first = feed if first is None else first
            expected = run(sessions[0], [name for name, _ in names], feed, samples)
            actual = run(sessions[1], [name for _, name in names], feed, samples)
            for (name, _), one, other in zip(names, expected, actual, strict=True):
                tallies[name].add(one, other)
            samples += 1
            report(samples, stream.length)
    assert first is not None
    kept = first
    latency: tuple[float | None, float | None] = (None, None)
    notes = [*stream.notes, *(note for tally in tallies.values() for note in tally.notes())]
    if runtime.name == "onnxruntime":
        latency = interleaved_medians(
            lambda: sessions[0].run(None, kept), lambda: sessions[1].run(None, kept)
        )
        notes += about_this_processor()
    return Comparison(
        outputs=tuple(tally.result() for tally in tallies.values() if tally.values),
        samples=samples,
        size_float=_size(sources[0]),
        size_quantized=_size_of(quantized, sources[1]),
        latency_float_ms=latency[0],
        latency_quantized_ms=latency[1],
        threads=threads,
        notes=tuple(notes),
    )


def _source(model: Any) -> Path | bytes:
    """A model as ONNX Runtime loads it: a path, so that external data is found, or bytes."""
    if isinstance(model, str | os.PathLike):
        return Path(model)
    if isinstance(model, bytes):
        return model
    from rustq.api import as_model

    serialized: bytes = (model if hasattr(model, "to_bytes") else as_model(model)).to_bytes()
    return serialized


def _size_of(model: Any, source: Path | bytes) -> int:
    """Bytes of what is deployed."""
    return model.report.size_after if isinstance(model, QuantizedModel) else _size(source)


def _size(source: Path | bytes) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _session(
    source: Path | bytes, threads: int, config: QuantConfig, options: Mapping[str, Any]
) -> Session:
    from rustq.runner import session

    if isinstance(source, Path):
        source.stat()  # a missing file is an OSError like any other, not ONNX Runtime's error
    made: Session = session(
        source, threads=threads, providers=tuple(config.providers), options=options
    )
    return made


def _common_outputs(model: Session, quantized: Session) -> list[tuple[str, str]]:
    """The outputs in pairs: by name, or in order if the names differ but not their number."""
    wanted, found = (
        {(info.name, str(info.dtype)) for info in inputs_of(session)}
        for session in (model, quantized)
    )
    if wanted != found:
        one, other = (", ".join(sorted(f"{n} ({d})" for n, d in side)) for side in (wanted, found))
        raise ModelError(f"the models have different inputs: {one} against {other}")
    first = [output.name for output in model.get_outputs()]
    second = [output.name for output in quantized.get_outputs()]
    if set(first) == set(second):
        return [(name, name) for name in first]
    if len(first) != len(second):
        raise ModelError(
            f"the models have different outputs: {', '.join(first)} against {', '.join(second)}"
        )
    return list(zip(first, second, strict=True))


def inner(one: Array, other: Array) -> float:
    """The inner product of two vectors. Not by BLAS, whose threads then wait for more in a busy
    loop while ONNX Runtime works."""
    return float(np.einsum("i,i", one, other))


def run(session: Session, outputs: Sequence[str], feed: Feed, sample: int) -> Sequence[Any]:
    try:
        return session.run(list(outputs), feed)
    except Exception as error:
        raise DataError(f"sample {sample}: ONNX Runtime cannot run it: {error}") from error


class Tally:
    """Sums over the values of one output, feed by feed, in float64."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._signal = self._other = self._product = self._error = 0.0
        self._abs_sum = self._abs_max = 0.0
        self._rows = self._agreeing = 0
        self._reshaped = self._not_finite = 0
        self._numeric = True
        self.values = 0

    def add(self, expected: Any, actual: Any) -> None:
        """Counts in the outputs of both models for one feed."""
        if not (isinstance(expected, np.ndarray) and isinstance(actual, np.ndarray)) or (
            expected.dtype.kind in "OSU"
        ):
            self._numeric = False
            return
        if expected.shape != actual.shape:
            self._reshaped += 1
            return
        if expected.ndim == 2 and expected.shape[1] > 1 and expected.dtype.kind == "f":
            self._rows += len(expected)
            self._agreeing += int((expected.argmax(axis=1) == actual.argmax(axis=1)).sum())
        self._add_values(*_finite_pairs(expected, actual))
        self._not_finite += int((np.isfinite(expected) != np.isfinite(actual)).sum())

    def _add_values(self, x: Array, y: Array) -> None:
        if not x.size:
            return
        error = np.abs(x - y)
        self.values += x.size
        self._signal += inner(x, x)
        self._other += inner(y, y)
        self._product += inner(x, y)
        self._error += inner(error, error)
        self._abs_sum += float(error.sum())
        self._abs_max = max(self._abs_max, float(error.max()))

    def result(self) -> OutputComparison:
        """The figures over all that was added."""
        norm = math.sqrt(self._signal * self._other)
        return OutputComparison(
            name=self._name,
            sqnr_db=self._sqnr(),
            # Rounding may push the quotient a hair past 1.
            cosine=max(-1.0, min(1.0, self._product / norm)) if norm else None,
            max_abs_error=self._abs_max,
            mean_abs_error=self._abs_sum / self.values,
            top1_agreement=self._agreeing / self._rows if self._rows else None,
            values=self.values,
        )

    def _sqnr(self) -> float | None:
        if not self._error:
            return math.inf
        return 10 * math.log10(self._signal / self._error) if self._signal else None

    def notes(self) -> list[str]:
        """What was left out of the figures."""
        where = f'output "{self._name}"'
        notes = []
        if not self._numeric:
            notes.append(f"{where} does not hold numbers and was not compared")
        if self._reshaped:
            notes.append(f"{where} has another shape in {self._reshaped} sample(s), left out")
        if self._not_finite:
            notes.append(f"{where}: {self._not_finite} value(s) are finite in only one model")
        return notes


def _finite_pairs(expected: Array, actual: Array) -> tuple[Array, Array]:
    x, y = expected.astype(np.float64).ravel(), actual.astype(np.float64).ravel()
    finite = np.isfinite(x) & np.isfinite(y)
    return (x, y) if finite.all() else (x[finite], y[finite])
