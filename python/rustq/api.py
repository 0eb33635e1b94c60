"""The verbs of the pipeline: load, fold, calibrate, quantize."""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rustq import _rustq
from rustq.collecting import collect
from rustq.config import QuantConfig, checked
from rustq.folding import FoldedModel, folded
from rustq.frameworks import exported
from rustq.model import Model, QuantizedModel, core_of
from rustq.preparing import first_shapes, prepare, undeclared
from rustq.progress import Progress
from rustq.targets import check_measured
from rustq.targets import target as target_named
from rustq.task import Task

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from rustq.calibration import Calibration
    from rustq.measuring import Metric
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
    return Model(_known(core_of(exported(model, _one(example_inputs))[0])))


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
    return folded(_known(core_of(exported(model, _one(example_inputs))[0])))


def _one(sample: Any) -> list[Any] | None:
    """A sample as data."""
    return None if sample is None else [sample]


def _known(core: _rustq.Model) -> _rustq.Model:
    """`core`, with a warning for the caller of our caller if there is more in the file."""
    if core.undeclared_bytes:
        warnings.warn(undeclared(core), stacklevel=3)
    return core


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
    model, data = exported(model, data)
    source, _, _ = prepare(core_of(model))
    return collect(source, data, checked(config), progress, executor, resume)[0]


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
    config = checked(config)
    runtime = target_named(target)
    model, data = exported(model, data)
    source, _, _ = prepare(core_of(model))
    shapes = {} if data is None else first_shapes(source, data, config)
    return runtime.unsupported(source, config, shapes)


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
