"""The verbs of the pipeline: load, fold, calibrate, quantize."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from rustq import _rustq
from rustq.calibration import Calibration
from rustq.config import QuantConfig
from rustq.conversion import at_least, inlined
from rustq.counting import count as count_multiplications
from rustq.errors import DataError, UnsupportedError
from rustq.folding import FoldedModel, folded
from rustq.model import Model, QuantizedModel, core_of
from rustq.pairs import check as check_kept
from rustq.pairs import taken
from rustq.progress import Progress, reporting
from rustq.targets import TARGETS, Job, Outcome, Target, check_measured
from rustq.targets import target as target_named

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from rustq.data import Feeds
    from rustq.measuring import Metric, Sessions
    from rustq.report import Report
    from rustq.targets import Unsupported

__all__ = ["as_model", "calibrate", "fold", "load", "quantize", "unsupported"]


def load(model: Any, *, example_inputs: Any = None) -> Model:
    """Opens a model.

    Args:
        model: a path (opened over mmap), bytes, an `onnx.ModelProto`, or a `Model`; also a
            `torch.nn.Module`, a Keras model or its `.keras` or `.h5` file, and the folder of a
            TensorFlow SavedModel, which are exported to ONNX by their own tools.
        example_inputs: for a `torch.nn.Module`: what it is called with, one batch: a tensor, a
            tuple in the order of its parameters, or a dict by their names.

    Raises:
        OSError: the file cannot be read.
        ModelError: it is not an ONNX model, or data of a tensor is not where it says; or its
            framework cannot export it.
        DataError: a `torch.nn.Module` without an example of its inputs.
        UnsupportedError: a package that exports it is not installed.

    Warns:
        UserWarning: the file has fields that are not in the ONNX schema; they are not kept.
    """
    if isinstance(model, Model):
        return model
    return Model(_known(core_of(_exported(model, _one(example_inputs))[0])))


as_model = load


def fold(model: Any, *, example_inputs: Any = None) -> FoldedModel:
    """Simplifies a model without changing what it computes.

    BatchNormalization and chains of constant Mul, Div, Add and Sub disappear into the weights of
    Conv, ConvTranspose, Gemm and MatMul, also past pooling, concatenation and the like; what can be
    computed beforehand is; no-ops go away. Inputs, outputs, metadata and operator sets stay.

    Args:
        model: see `load`.
        example_inputs: see `load`.

    Returns:
        The new model. Its `folding` lists the nodes that are gone, and those that were looked
        at and stayed, with the reason.

    Raises:
        OSError: the file cannot be read.
        ModelError: it is not an ONNX model.
    """
    return folded(_known(core_of(_exported(model, _one(example_inputs))[0])))


def _exported(model: Any, data: Any) -> tuple[Any, Any]:
    """What is of another framework as ONNX; and the data, which still begin where they did."""
    from rustq.frameworks import exported

    return exported(model, data)


def _one(sample: Any) -> list[Any] | None:
    """A sample as data."""
    return None if sample is None else [sample]


def _known(core: _rustq.Model) -> _rustq.Model:
    """`core`, with a warning for the caller of our caller if there is more in the file."""
    if core.undeclared_bytes:
        warnings.warn(_undeclared(core), stacklevel=3)
    return core


def _undeclared(core: _rustq.Model) -> str:
    return (
        f"the file has {core.undeclared_bytes} bytes that this version of rustq does not"
        " know and did not keep"
    )


def calibrate(
    model: Any,
    data: Any,
    *,
    config: QuantConfig | None = None,
    progress: bool | Progress = False,
    executor: Executor | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> Calibration:
    """Runs a float model over data and counts what its activations are.

    The calibration serves every method, scheme and target; save it, and the data need not be run
    again. Memory does not grow with the number of samples.

    Args:
        model: see `load`.
        data: see `quantize`.
        config: `threads`, `providers`, `session_options`, `runner` and `images` are used here.
        progress: `True` for a progress bar on a terminal, or a callable that is given the number
            of samples done and their total, or `None` if that is not known.
        executor: a `concurrent.futures.Executor`, whose workers run the model; the result is the
            same. They read a path themselves, or a sequence (`__len__` and `__getitem__`) that is
            cheap to pickle, each its own part; other data are read here and sent. Each worker runs
            `threads` threads, 1 if that is `None`.
        resume: a file to keep what was counted in, every few seconds and when the run ends,
            whatever ends it. If it exists, the run goes on from there: pass the same data.

    Raises:
        OSError: a file cannot be read.
        ModelError: the model is not valid.
        DataError: the data do not fit the model, or are empty or not finite; the file to resume
            from is of another model or of other data.
        WorkerError: a worker of the executor died; `resume` has what the others counted.
    """
    model, data = _exported(model, data)
    prepared, _, _ = _prepare(core_of(model))
    return _observed(prepared, data, _config(config), progress, executor, resume)[0]


def quantize(
    model: Any,
    data: Any = None,
    *,
    scheme: str | None = None,
    target: str = "onnxruntime",
    config: QuantConfig | None = None,
    max_drop: float | None = None,
    metric: Metric | None = None,
    progress: bool | Progress = False,
    executor: Executor | None = None,
) -> QuantizedModel:
    """Quantizes a model to INT8, or its weights to less (`QuantConfig.weights`).

    With data it is static quantization: weights and activations are int8, the ranges of the
    activations come from the data. Without, it is dynamic: weights are int8, activations are
    quantized while the model runs; or, with weights below 8 bits, they stay float.

    Scales of QuantizeLinear/DequantizeLinear pairs that the model comes with are kept, with data or
    without (docs/qat.md); the report's notes name those that the target cannot express.

    Args:
        model: see `load`.
        data: `None`; a `Calibration`; an iterable of feeds (a dict by input name, an array for a
            model with one input, a tuple or list in input order); an `.npz` or `.npy` file; a
            folder of them, or of images; a torch `DataLoader` or `Dataset`, a `tf.data.Dataset` or
            a Hugging Face data set, whose labels are left out; a `CalibrationDataReader` of
            onnxruntime. A `torch.nn.Module` is exported with the first sample.
        scheme: `"asym"`: activations are uint8, scale = (max - min) / 255, with a zero point;
            `"sym"`: int8, scale = absmax / 127, zero point 0. `None` is the target's default:
            `"sym"` for TensorRT and ncnn, which have no other, `"asym"` for the others.
        target: `"onnxruntime"`, `"tensorrt"`, `"ascend"` or `"ncnn"`. One calibration serves all
            of them.
        config: every other choice.
        max_drop: how much worse than the float model the result may be, at least 0: layers that
            cost too much stay float, as few as are found to be enough. With `metric`, the
            difference of the two scores; without, the energy of the outputs' error relative to
            the outputs' own, averaged over the outputs: 0.01 is an SQNR of 20 dB, 0.001 of 30 dB.
            That is measured on the first 64 feeds of the data; an iterator is read into a list.
            For TensorRT and ncnn their arithmetic is computed in ONNX Runtime. If it cannot be met,
            the report's notes say so; its `drop` is what was measured.
        metric: a function that is given a `run`, calls it on its own inputs, and returns a number,
            higher is better. `run(feed)` takes one feed in any form that `data` may hold, and
            returns the list of the outputs.
        progress: see `calibrate`.
        executor: see `calibrate`.

    Returns:
        The quantized model, with `.save(path)` and `.report`.

    Raises:
        OSError: a file cannot be read.
        ModelError: the model is not valid, or its weights are not finite.
        DataError: the data do not fit the model, or are empty or not finite; a calibration was
            made from another model.
        ValueError: an unknown scheme or target, `max_drop` below 0, a `metric` without it, or one
            that does not return a finite number.
        UnsupportedError: a target, or kind of weights, that is not available yet, a scheme that
            the target cannot run, or a choice that would change scales that the model came with.
    """
    started = time.perf_counter()
    _check_limit(max_drop, metric, target)
    if max_drop is not None:
        from rustq.measuring import repeatable

        data = repeatable(data)
    task = Task.of(
        model,
        data,
        scheme=scheme,
        target=target,
        config=config,
        progress=progress,
        executor=executor,
    )
    if max_drop is None:
        made = task.quantized()
    else:
        from rustq.mixed import within

        made = within(task, data, max_drop, metric, progress)
    made.report = replace(made.report, seconds=time.perf_counter() - started)
    return made


SPARED = "the outputs are poor with it in int8"
"""Why `Task.spared` are float."""


@dataclass(frozen=True)
class Task:
    """All that quantizing starts from.

    Attributes:
        source: the model as it was given.
        model: the same, folded and in an operator set that can express int8 per channel.
        calibration: what was seen of its activations; `None`: dynamic quantization.
        runtime: the target.
        scheme: one of the target's.
        config: every other choice.
        notes: what the user should know.
        inputs: what its layers multiply, if anything is corrected for that.
        shapes: of the inputs in the first sample; empty where there is no sample.
        method: what was asked for, where `config` has what was chosen instead.
        given: the parameters that the model came with; what has none follows the calibration, which
            has seen nothing if there are no data.
        spared: names of the nodes that stay float because the outputs were poor with them in int8.
        made: what the target makes of all this, if it has made it already.
    """

    source: _rustq.Model
    model: _rustq.Model
    calibration: Calibration | None
    runtime: Target
    scheme: str
    config: QuantConfig
    notes: tuple[str, ...] = ()
    inputs: _rustq.LayerInputs | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    method: str | None = None
    given: _rustq.Given | None = None
    spared: tuple[str, ...] = ()
    made: Outcome | None = None

    @classmethod
    def of(
        cls,
        model: Any,
        data: Any,
        *,
        scheme: str | None = None,
        target: str = "onnxruntime",
        config: QuantConfig | None = None,
        progress: bool | Progress = False,
        executor: Executor | None = None,
    ) -> Task:
        """Prepares a model and calibrates it; see `quantize`."""
        config = _config(config)
        runtime = target_named(target)
        scheme = runtime.scheme(scheme)
        runtime.check_weights(config.weights)
        _check(config, runtime)
        model, data = _exported(model, data)
        source = core_of(model)
        # Where nothing is run, weights are checked when they are quantized: large ones are read
        # once less.
        in_float = config.weights.startswith("float")
        checked_later = data is None and runtime.name == "onnxruntime" and not in_float
        prepared, notes, given = _prepare(source, check=not checked_later)
        if given is not None and checked_later:
            prepared.check_weights()
        if config.weights == "binary" and config.bias_correction is None:
            # The mean error of such weights is that for float inputs, which theirs are far from.
            config = replace(config, bias_correction=False)
        task = cls(source, prepared, None, runtime, scheme, config, tuple(notes))
        if given is not None and not in_float:
            return replace(task, given=given)._filled_in(data, progress, executor)
        if data is None or isinstance(data, Calibration):
            return task._with_calibration(data)
        if in_float:
            return replace(task, shapes=_first_shapes(prepared, data, config))
        if config.activations == "float32" or config.weights in runtime.weights_alone:
            return task._with_weights_alone(data)
        return task._calibrated(data, progress, executor)

    def _with_calibration(self, calibration: Calibration | None) -> Task:
        """This task with what was seen before, or nothing."""
        if self.config.corrects:
            raise DataError(
                "rounding='learned' and bias_correction=True need the data themselves, to run some"
                " of them again: a calibration, or none, will not do"
            )
        if calibration is not None:
            calibration._core.check_model(self.model)
        return replace(self, calibration=calibration)

    def _with_weights_alone(self, data: Any) -> Task:
        """This task with what its layers multiply, where activations are not quantized."""
        from rustq.corrections import SPREAD, Excerpt, layer_inputs

        config = self.config
        if config.bias_correction is None:
            config = replace(config, bias_correction=True)
        inputs = None
        if config.corrects:
            few = list(islice(data, SPREAD)) if isinstance(data, Iterator) else data
            inputs = layer_inputs(self.model, Excerpt(few, config), config, None)
        return replace(self, config=config, inputs=inputs)

    def _calibrated(self, data: Any, progress: bool | Progress, executor: Executor | None) -> Task:
        """This task with what was seen of the activations, and what was chosen for that."""
        from rustq.corrections import Excerpt, layer_inputs
        from rustq.frameworks import example

        model, config = self.model, self.config
        if self.runtime.suffix != ".onnx":  # before the time of a calibration
            first, data = example(data, 1) if isinstance(data, Iterator) else (data, data)
            self.runtime.check(model, config, _first_shapes(model, first, config))
        excerpt = Excerpt(data, config)
        calibration, samples = _observed(model, excerpt.data, config, progress, executor)
        notes = (*self.notes, *samples.notes)
        task = replace(self, calibration=calibration, shapes=samples.shapes, notes=notes)
        if config.method == "auto":
            from rustq.trials import chosen

            # A caller's own progress counts samples, which these are not.
            with reporting(progress is True, "trying settings") as report:
                return chosen(task, excerpt, report)
        if config.corrects or config.equalize:
            inputs = layer_inputs(model, excerpt, config, calibration.samples)
            task = replace(task, inputs=inputs)
        return task

    def _filled_in(self, data: Any, progress: bool | Progress, executor: Executor | None) -> Task:
        """This task, whose model came with scales, with a calibration for what has none."""
        assert self.given is not None
        check_kept(self.config)
        activations, constants = self.given.counts
        if data is None and not activations:
            raise DataError(
                "the model's weights are quantized and its activations are not: give calibration"
                " data"
            )
        shapes: Mapping[str, tuple[int, ...]] = {}
        notes = [
            f"the scales of {activations} activations and {constants} constants are those that the"
            " model came with"
        ]
        if data is None:
            calibration = Calibration(_rustq.Calibration(self.model))
        elif isinstance(data, Calibration):
            data._core.check_model(self.model)
            calibration = data
        else:
            calibration, samples = _observed(self.model, data, self.config, progress, executor)
            shapes = samples.shapes
            notes += samples.notes
        notes = [*self.notes, *notes]
        return replace(self, calibration=calibration, shapes=shapes, notes=tuple(notes))

    @property
    def as_run(self) -> _rustq.Model:
        """The float model in the shapes that the target runs it in."""
        return self.runtime.as_run(self.model, self.config, self.shapes)

    @property
    def noise_price(self) -> float:
        """What was asked for, or the target's."""
        asked = self.config.noise_price
        return self.runtime.noise_prices[self.scheme] if asked is None else asked

    @property
    def sessions(self) -> Sessions:
        """How it and its quantized forms are run to be measured."""
        from rustq.measuring import Sessions

        return Sessions(self.config, self.runtime.session_options)

    def outcome(self, excluded: Sequence[str] = (), *, everything: bool = False) -> Outcome:
        """What the target makes of it with these nodes in float, besides those of the config."""
        from rustq.runner import observes_channels

        if self.made and not excluded and not everything:
            return self.made
        _rustq.trim_memory()  # what sessions before it have left
        excludes = self.config.excludes
        names = {name for name, op_type in self.model.nodes if excludes(name, op_type)}
        kept = sorted(names.union(excluded, self.spared))
        job = Job(
            self.model,
            self.calibration,
            self.scheme,
            self.config,
            kept,
            self.noise_price,
            everything,
            self.inputs,
            self.shapes,
            self.given,
            observes_channels(self.config, self.method),
        )
        outcome = self.runtime.make(job)
        for layer in outcome.layers:
            if layer["name"] in self.spared:
                layer["reason"] = SPARED
        return outcome

    def quantized(self, excluded: Sequence[str] = ()) -> QuantizedModel:
        """The quantized model, with these nodes in float, besides those of the config."""
        outcome = self.outcome(excluded)
        count_multiplications(self.model, outcome.layers, self.shapes)
        names = [name for name, _ in self.model.nodes]
        unused = self.config.unused_exclusions(names)
        misspelt = [f"exclude: no node is called '{name}'" for name in unused]
        calibration = self.calibration if self.calibration and self.calibration.samples else None
        report = _report(
            self.source,
            outcome.model,
            outcome.layers,
            [*self.notes, *misspelt, *outcome.notes],
            method=self.method or self.config.method,
            scheme=_scheme_of(self.scheme, self.calibration, self.config),
            target=self.runtime.name,
            weights=self.config.weights,
            size_after=self.runtime.size(outcome),
            samples=calibration.samples if calibration else None,
        )
        return QuantizedModel(outcome.model, report, calibration, self.runtime, outcome.files)


def unsupported(
    model: Any, data: Any = None, *, target: str, config: QuantConfig | None = None
) -> list[Unsupported]:
    """Everything in a model that cannot be written for a target.

    Args:
        model: see `load`.
        data: shapes are taken from its first sample where neither the model nor
            `QuantConfig.input_shapes` fixes them.
        target: see `quantize`.
        config: see `quantize`.

    Raises:
        OSError: a file cannot be read.
        ModelError: the model is not valid.
        DataError: the data do not fit the model.
        ValueError: an unknown target.
        UnsupportedError: a shape that is not known.
    """
    config = _config(config)
    runtime = target_named(target)
    model, data = _exported(model, data)
    prepared, _, _ = _prepare(core_of(model))
    shapes = {} if data is None else _first_shapes(prepared, data, config)
    return runtime.unsupported(prepared, config, shapes)


def _first_shapes(
    prepared: _rustq.Model, data: Any, config: QuantConfig
) -> dict[str, tuple[int, ...]]:
    """The shape of each input in the first sample."""
    from rustq.data import feeds
    from rustq.runner import inputs_of_model

    samples = feeds(data, inputs_of_model(prepared), config.images)
    next(iter(samples))
    return samples.shapes


def _config(config: QuantConfig | None) -> QuantConfig:
    if config is not None and not isinstance(config, QuantConfig):
        raise TypeError(f"config must be a rustq.QuantConfig, got {type(config).__name__}")
    return config or QuantConfig()


def _check(config: QuantConfig, runtime: Target) -> None:
    for other in TARGETS.values():
        for knob in other.knobs:
            if knob not in runtime.knobs and getattr(config, knob) != getattr(QuantConfig(), knob):
                raise UnsupportedError(f"{knob} is for the target {other.name}, not {runtime.name}")


def _check_limit(max_drop: float | None, metric: Metric | None, target: str) -> None:
    if max_drop is None:
        if metric is not None:
            raise ValueError("metric is what max_drop is measured by: give max_drop as well")
        return
    if isinstance(max_drop, bool) or not isinstance(max_drop, int | float):
        raise TypeError(f"max_drop must be a number or None, got {max_drop!r}")
    if not 0 <= max_drop < float("inf"):
        raise ValueError(f"max_drop must be 0 or more, got {max_drop!r}")
    if metric is not None and not callable(metric):
        raise TypeError(f"metric must be a function, got {type(metric).__name__}")
    check_measured(target)


def _scheme_of(scheme: str, calibration: Calibration | None, config: QuantConfig) -> str:
    """What the report calls it: the scheme where activations are quantized by ranges."""
    if config.weights.startswith("float"):
        return "float"
    if calibration is None and (config.codes or config.activations == "float32"):
        return "weights only"
    return scheme if calibration else "dynamic"


def prepared(model: Model) -> _rustq.Model:
    """A model as it is quantized: folded, and in an operator set that can express int8."""
    return _prepare(model._core)[0]


def _prepare(
    source: _rustq.Model, *, check: bool = True
) -> tuple[_rustq.Model, list[str], _rustq.Given | None]:
    """The model folded and in an operator set that can express int8 per channel, notes, and the
    parameters of the QuantizeLinear/DequantizeLinear pairs that it came with.

    Raises:
        ModelError: it is not valid, or its weights are not finite and `check` is true.
    """
    from rustq.fusion import computing_on_integers

    notes = []
    if source.undeclared_bytes:
        notes.append(_undeclared(source))
    if found := computing_on_integers(source.op_counts):
        notes.append(
            f"the model is quantized already, and stays as it is there ({found}): give the float"
            " model that it was made from"
        )
    simple = folded(inlined(source))._core
    if check:
        simple.check_weights()
    ready, reason = at_least(simple, _rustq.MINIMUM_OPSET)
    if reason:
        notes.append(reason)
    plain, given = taken(ready)
    return plain.spelled_out(), notes, given


def _observed(
    prepared: _rustq.Model,
    data: Any,
    config: QuantConfig,
    progress: bool | Progress,
    executor: Executor | None,
    resume: str | os.PathLike[str] | None = None,
) -> tuple[Calibration, Feeds]:
    from rustq.collecting import collect

    with reporting(progress, "calibrating") as report:
        core, samples = collect(prepared, data, config, report, executor=executor, resume=resume)
    core.check_finite()
    return Calibration(core), samples


def _report(
    source: _rustq.Model,
    quantized: _rustq.Model,
    layers: list[dict[str, Any]],
    notes: list[str],
    **facts: Any,
) -> Report:
    from rustq.report import Report

    return Report.from_records(
        layers,
        notes=notes,
        size_before=source.byte_size,
        opset_before=source.opset or 0,
        opset_after=quantized.opset or 0,
        versions={"rustq": _rustq.__version__},
        **facts,
    )
