"""The verbs of the pipeline: load, fold, calibrate, quantize."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rustq import _rustq
from rustq.calibration import Calibration
from rustq.config import QuantConfig
from rustq.conversion import at_least, inlined
from rustq.errors import UnsupportedError
from rustq.folding import FoldedModel, folded
from rustq.model import Model, QuantizedModel, core_of
from rustq.progress import Progress, reporting
from rustq.targets import Job
from rustq.targets import target as target_named

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from rustq.report import Report

__all__ = ["as_model", "calibrate", "fold", "load", "quantize"]


def load(model: Any) -> Model:
    """Opens a model.

    Args:
        model: a path (opened over mmap), bytes, an `onnx.ModelProto`, or a `Model`.

    Raises:
        OSError: the file cannot be read.
        ModelError: it is not an ONNX model.
    """
    return model if isinstance(model, Model) else Model(core_of(model))


as_model = load


def fold(model: Any) -> FoldedModel:
    """Simplifies a model without changing what it computes.

    BatchNormalization and chains of constant Mul, Div, Add and Sub disappear into the weights of
    Conv, ConvTranspose, Gemm and MatMul, also past pooling, concatenation and the like; what can be
    computed beforehand is; no-ops go away. Inputs, outputs, metadata and operator sets stay.

    Returns:
        The new model. Its `folding` lists the nodes that are gone, and those that were looked
        at and stayed, with the reason.

    Raises:
        OSError: the file cannot be read.
        ModelError: it is not an ONNX model.
    """
    return folded(core_of(model))


def calibrate(
    model: Any,
    data: Any,
    *,
    config: QuantConfig | None = None,
    progress: bool | Progress = False,
    executor: Executor | None = None,
) -> Calibration:
    """Runs a float model over data and counts what its activations are.

    The calibration serves every method, scheme and target; save it, and the data need not be run
    again. Memory does not grow with the number of samples.

    Args:
        model: see `load`.
        data: see `quantize`.
        config: `threads`, `providers` and `images` are used here.
        progress: `True` for a progress bar on a terminal, or a callable that is given the number
            of samples done and their total.
        executor: not available yet.

    Raises:
        OSError: a file cannot be read.
        ModelError: the model is not valid.
        DataError: the data do not fit the model, or are empty or not finite.
    """
    _no_executor(executor)
    prepared, _ = _prepare(core_of(model))
    return _observed(prepared, data, _config(config), progress)[0]


def quantize(
    model: Any,
    data: Any = None,
    *,
    scheme: str | None = None,
    target: str = "onnxruntime",
    config: QuantConfig | None = None,
    progress: bool | Progress = False,
    executor: Executor | None = None,
) -> QuantizedModel:
    """Quantizes a model to INT8.

    With data it is static quantization: weights and activations are int8, the ranges of the
    activations come from the data. Without, it is dynamic: weights are int8, activations are
    quantized while the model runs.

    Args:
        model: see `load`.
        data: `None`; a `Calibration`; an iterable of feeds (a dict by input name, an array for a
            model with one input, a tuple or list in input order); an `.npz` or `.npy` file; a
            folder of them, or of images.
        scheme: `"asym"`: activations are uint8, scale = (max - min) / 255, with a zero point;
            `"sym"`: int8, scale = absmax / 127, zero point 0. `None` is the target's default,
            `"asym"` for ONNX Runtime.
        target: `"onnxruntime"`.
        config: every other choice.
        progress: see `calibrate`.
        executor: not available yet.

    Returns:
        The quantized model, with `.save(path)` and `.report`.

    Raises:
        OSError: a file cannot be read.
        ModelError: the model is not valid, or its weights are not finite.
        DataError: the data do not fit the model, or are empty or not finite.
        ValueError: an unknown scheme or target.
        UnsupportedError: a target, or kind of weights, that is not available yet, or a scheme that
            the target cannot run.
    """
    started = time.perf_counter()
    config = _config(config)
    runtime = target_named(target)
    scheme = runtime.scheme(scheme)
    _check(config)
    _no_executor(executor)
    source = core_of(model)
    prepared, notes = _prepare(source)
    if data is None or isinstance(data, Calibration):
        calibration = data
    else:
        calibration, assumed = _observed(prepared, data, config, progress)
        notes += assumed
    excluded = [name for name, op_type in prepared.nodes if config.excludes(name, op_type)]
    outcome = runtime.make(Job(prepared, calibration, scheme, config, excluded))
    names = [name for name, _ in prepared.nodes]
    notes += [f"exclude: no node is called '{name}'" for name in config.unused_exclusions(names)]
    report = _report(
        source,
        outcome.model,
        outcome.layers,
        notes + outcome.notes,
        config,
        scheme=scheme if calibration else "dynamic",
        target=runtime.name,
        samples=calibration.samples if calibration else None,
        seconds=time.perf_counter() - started,
    )
    return QuantizedModel(outcome.model, report, calibration, runtime, outcome.files)


def _config(config: QuantConfig | None) -> QuantConfig:
    if config is not None and not isinstance(config, QuantConfig):
        raise TypeError(f"config must be a rustq.QuantConfig, got {type(config).__name__}")
    return config or QuantConfig()


def _check(config: QuantConfig) -> None:
    wanted = {
        f"weights={config.weights!r}": config.weights != "int8",
        "bias_correction=True": config.bias_correction,
        "equalize=True": config.equalize,
    }
    for option, asked in wanted.items():
        if asked:
            raise UnsupportedError(f"{option} is not available yet")


def _no_executor(executor: object) -> None:
    if executor is not None:
        raise UnsupportedError("calibrating with an executor is not available yet")


def _prepare(source: _rustq.Model) -> tuple[_rustq.Model, list[str]]:
    """The model folded and in an operator set that can express int8 per channel, and notes."""
    notes = []
    if source.undeclared_bytes:
        notes.append(
            f"the file has {source.undeclared_bytes} bytes that this version of rustq does not"
            " know and did not keep"
        )
    simple = folded(inlined(source))._core
    simple.check_weights()
    converted, reason = at_least(simple, _rustq.MINIMUM_OPSET)
    if reason:
        notes.append(reason)
    return folded(converted)._core if converted is not simple else simple, notes


def _observed(
    prepared: _rustq.Model, data: Any, config: QuantConfig, progress: bool | Progress
) -> tuple[Calibration, list[str]]:
    from rustq.data import feeds, inputs_of
    from rustq.runner import Observation

    observation = Observation(prepared, config)
    samples = feeds(data, inputs_of(observation.session), config.images)
    core = _rustq.Calibration()
    with reporting(progress, "calibrating") as report:
        observation.run(samples, core, report)
    core.check_finite()
    return Calibration(core), list(samples.notes)


def _report(
    source: _rustq.Model,
    quantized: _rustq.Model,
    layers: list[dict[str, Any]],
    notes: list[str],
    config: QuantConfig,
    **facts: Any,
) -> Report:
    from rustq.report import Report

    return Report.from_records(
        layers,
        notes=notes,
        size_before=source.byte_size,
        size_after=quantized.byte_size,
        opset_before=source.opset or 0,
        opset_after=quantized.opset or 0,
        method=config.method,
        versions={"rustq": _rustq.__version__},
        **facts,
    )
