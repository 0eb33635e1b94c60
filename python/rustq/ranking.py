"""How much each int8 layer costs in accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from rustq import attribution, text
from rustq.calibration import Calibration
from rustq.config import QuantConfig
from rustq.measuring import Metric, OutputError, Reference, decibels, repeatable, scored
from rustq.plain import plain
from rustq.progress import Progress, reporting
from rustq.targets import check_measured

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from rustq.model import QuantizedModel
    from rustq.task import Task

__all__ = ["LayerSensitivity", "Sensitivity", "sensitivity"]


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """What one layer in int8 does to the model's outputs.

    Attributes:
        name: the node's name, or that of its first output where it has none.
        op_type: its ONNX operator type.
        noise: energy of the error at the outputs, relative to theirs, that the layer causes;
            averaged over the outputs.
        cosine: cosine similarity of the outputs with the float model's if this were the only error:
            measured if `exact`, else 1 / sqrt(1 + noise), which holds for an independent error.
        macs: multiply-accumulates for one sample, `None` if its shapes are not known.
        metric: the user's metric with this layer alone in int8; `None` if not measured.
    """

    name: str
    op_type: str
    noise: float
    cosine: float
    macs: int | None = None
    metric: float | None = None

    @property
    def sqnr_db(self) -> float:
        """-10 log10 of the noise: the outputs' SQNR in dB if this were the only error."""
        return decibels(self.noise)


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The layers that run in int8, the most harmful first.

    Attributes:
        layers: one entry per int8 layer, sorted by the metric if it was measured for each, else by
            noise, the worst first.
        noise: relative energy of the error of the outputs with all of them in int8.
        cosine: cosine similarity of these outputs with the float model's.
        exact: whether each layer was measured by itself.
        samples: number of feeds that were measured on.
        metric_float: the user's metric of the float model, `None` without one.
        metric_int8: the same of the quantized model.
    """

    layers: tuple[LayerSensitivity, ...]
    noise: float
    cosine: float
    exact: bool
    samples: int
    metric_float: float | None = None
    metric_int8: float | None = None

    @property
    def sqnr_db(self) -> float:
        """SQNR of the outputs in dB, all layers together."""
        return decibels(self.noise)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values; infinite numbers become `None`."""
        values = {entry.name: plain(getattr(self, entry.name)) for entry in fields(self)}
        for layer, entry in zip(self.layers, values["layers"], strict=True):
            entry["sqnr_db"] = plain(layer.sqnr_db)
        return values | {"sqnr_db": plain(self.sqnr_db)}

    def to_json(self, *, indent: int | None = 2) -> str:
        """`to_dict` as JSON text."""
        import json

        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    def rows(self) -> list[tuple[str, ...]]:
        """The layers as text, in the columns of `HEADER`."""
        total = sum(layer.noise for layer in self.layers)
        return [
            (
                layer.name,
                layer.op_type,
                text.decibels(layer.sqnr_db),
                f"{100 * layer.noise / total:.1f} %" if total else "-",
                f"{layer.cosine:.6f}",
                "-" if layer.metric is None else f"{layer.metric:.4g}",
            )
            for layer in self.layers
        ]

    def summary(self) -> str:
        """One line: all layers together, and how it was measured."""
        how = "each by itself" if self.exact else "in one pass"
        metric = (
            ""
            if self.metric_float is None or self.metric_int8 is None
            else f", metric {self.metric_int8:.4g} (float {self.metric_float:.4g})"
        )
        return (
            f"{len(self.layers)} layers in int8: output SQNR {text.decibels(self.sqnr_db)},"
            f" cosine {self.cosine:.6f}{metric}; measured {how} on"
            f" {text.count(self.samples, 'sample')}"
        )

    def __str__(self) -> str:
        return f"{text.table(HEADER, self.rows())}\n\n{self.summary()}"


HEADER = ("layer", "op", "output SQNR", "share of noise", "cosine", "metric")


def sensitivity(
    model: Any,
    data: Any,
    *,
    scheme: str | None = None,
    target: str = "onnxruntime",
    config: QuantConfig | None = None,
    metric: Metric | None = None,
    exact: bool = False,
    progress: bool | Progress = False,
    executor: Executor | None = None,
) -> Sensitivity:
    """Ranks the layers that `quantize` would put in int8 by what they do to the model's outputs.

    The fast way runs the float model and the quantized one once over the data, measures what each
    layer adds to the error of its output, and follows it to the model's outputs to first order: the
    shares of all layers add up to the error that was measured there. The exact way quantizes one
    layer at a time, everything else in float, and runs each of these models.

    Args:
        model: see `quantize`.
        data: samples, in any form that `quantize` takes them. They calibrate, and the first 64
            feeds are what errors are measured on.
        scheme: see `quantize`.
        target: `"onnxruntime"`, `"tensorrt"` or `"ncnn"`; the arithmetic of the others is computed
            in ONNX Runtime.
        config: see `quantize`.
        metric: a function that is given a `run`, calls it on its own inputs, and returns a number,
            higher is better. `run(feed)` takes one feed in any form that `data` may hold and
            returns the list of the outputs. It is called for the float model and for the quantized
            one, and with `exact` for every layer.
        exact: measure each layer by itself.
        progress: `True` for a bar on a terminal, or a callable taking (done, total or `None`).
        executor: runs the exact measurements, in chunks of layers. With processes, `metric` has to
            be picklable.

    Raises:
        DataError: the data do not fit the model, are empty, or hold no samples.
        ValueError: an unknown scheme or target, or `metric` did not return a finite number.
        UnsupportedError: a target whose arithmetic cannot be computed here.
        Others: as `quantize`.
    """
    from rustq.task import Task

    data = repeatable(data)
    check_measured(target)
    task = Task.of(model, data, scheme=scheme, target=target, config=config, progress=progress)
    reference = Reference(task.as_run, data, task.sessions)
    quantized = task.quantized()
    found = ranked(task, quantized, reference)
    if metric is not None:
        found = replace(
            found,
            metric_float=scored(metric, task.as_run, task.sessions),
            metric_int8=scored(metric, quantized._core, task.sessions),
        )
    return _exact(found, task, reference, metric, progress, executor) if exact else found


def ranked(task: Task, quantized: QuantizedModel, reference: Reference) -> Sensitivity:
    """The int8 layers of a quantized model, ranked the fast way."""
    total = reference.error(quantized._core)
    shares = attribution.shares(
        task.as_run, quantized._core, quantized.report.layers, reference.feeds, task.sessions
    )
    macs = {layer.name: (layer.op_type, layer.macs) for layer in quantized.report.layers}
    layers = [
        LayerSensitivity(
            name=name,
            op_type=macs[name][0],
            noise=share * total.noise,
            cosine=1 / math.sqrt(1 + share * total.noise),
            macs=macs[name][1],
        )
        for name, share in shares.items()
    ]
    return Sensitivity(
        layers=_sorted(layers),
        noise=total.noise,
        cosine=total.cosine,
        exact=False,
        samples=len(reference.feeds),
    )


def prefixes(ranking: Sequence[str]) -> Iterator[Sequence[str]]:
    """The first 1, 2, 4 and so on of a ranking, and at last all of it."""
    size = 1
    while size < len(ranking):
        yield ranking[:size]
        size *= 2
    yield ranking


def _sorted(layers: Iterable[LayerSensitivity]) -> tuple[LayerSensitivity, ...]:
    def harm(layer: LayerSensitivity) -> tuple[float, float]:
        return (math.inf if layer.metric is None else layer.metric), -layer.noise

    return tuple(sorted(layers, key=harm))


CHUNKS = 32
"""Pieces that the exact measurements are handed to an executor in."""


def _exact(
    found: Sensitivity,
    task: Task,
    reference: Reference,
    metric: Metric | None,
    progress: bool | Progress,
    executor: Executor | None,
) -> Sensitivity:
    names = [layer.name for layer in found.layers]
    measured: list[LayerSensitivity] = []
    layers = {layer.name: layer for layer in found.layers}
    with reporting(progress, "measuring") as report:
        for name, (error, score) in _each(names, task, reference, metric, executor):
            measured.append(
                replace(layers[name], noise=error.noise, cosine=error.cosine, metric=score)
            )
            report(len(measured), len(names))
    return replace(found, layers=_sorted(measured), exact=True)


Measurement = tuple[OutputError, float | None]


def _each(
    names: Sequence[str],
    task: Task,
    reference: Reference,
    metric: Metric | None,
    executor: Executor | None,
) -> Iterable[tuple[str, Measurement]]:
    """What is measured with each of these layers alone in int8."""
    # What a model came with is not sent to others.
    if executor is None or task.given is not None:
        for name in names:
            yield name, _alone(task, name, reference, metric)
        return
    size = -(-len(names) // CHUNKS)
    chunks = [names[start : start + size] for start in range(0, len(names), size)]
    assert task.calibration is not None
    work = _Work(
        task.model.to_bytes(),
        task.calibration._core.to_bytes(),
        task.runtime.name,
        task.scheme,
        task.config,
        task.shapes,
        reference.feeds,
        metric,
    )
    for chunk, results in zip(chunks, executor.map(work, chunks), strict=True):
        yield from zip(chunk, results, strict=True)


def _alone(task: Task, name: str, reference: Reference, metric: Metric | None) -> Measurement:
    others = [each for each, _ in task.model.nodes if each != name]
    model = task.outcome(others, everything=True).computed
    score = None if metric is None else scored(metric, model, task.sessions)
    return reference.error(model), score


@dataclass(frozen=True)
class _Work:
    """What a worker needs, in a form that can be sent to another process."""

    model: bytes
    calibration: bytes
    target: str
    scheme: str
    config: QuantConfig
    shapes: Mapping[str, tuple[int, ...]]
    feeds: Sequence[Any]
    metric: Metric | None

    def __call__(self, names: Sequence[str]) -> list[Measurement]:
        from rustq import _rustq
        from rustq.targets import target
        from rustq.task import Task

        model = _rustq.Model.from_bytes(self.model)
        calibration = Calibration(_rustq.Calibration.from_bytes(self.calibration))
        config = replace(self.config, threads=self.config.threads or 1)
        runtime = target(self.target)
        task = Task(model, model, calibration, runtime, self.scheme, config, shapes=self.shapes)
        reference = Reference(task.as_run, self.feeds, task.sessions)
        return [_alone(task, name, reference, self.metric) for name in names]
