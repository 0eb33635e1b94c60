"""PyTorch: `torch.nn.Module` to ONNX, by torch's own exporters.

The dynamo exporter is tried first, the TorchScript one where that fails or `onnxscript` is missing.
BatchNormalization is kept: rustq folds it. The first axis of each input is the batch, of any
length; so is an axis along which the first two samples differ.
"""

from __future__ import annotations

import inspect
import io
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rustq.errors import DataError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Inputs",
    "by_dynamo",
    "by_torchscript",
    "evaluating",
    "export",
    "parameters_of",
    "silence",
    "taken_from",
]

OPSET = 18


def export(module: Any, samples: Sequence[Any]) -> bytes:
    """The module in evaluation mode, as the bytes of an ONNX model."""
    if not samples:
        raise DataError(
            "a torch.nn.Module is exported with an example of its inputs: pass data, whose first"
            " sample is one (rustq.load and rustq.fold: example_inputs=…)"
        )
    inputs = Inputs.of(module, samples)
    reasons = []
    with evaluating(module), silence():
        for way in (by_dynamo, by_torchscript):
            for dynamic in (True, False):
                try:
                    return way(module, inputs, dynamic)
                except Exception as error:  # the exporters raise what they like
                    reasons.append(f"{way.__name__.removeprefix('_by_')}: {_line(error)}")
    raise ModelError("torch could not export the module: " + "; ".join(dict.fromkeys(reasons)))


class Inputs:
    """Example inputs of a module, and their names.

    Attributes:
        values: tensors, in the order of the module's parameters.
        names: of those parameters.
        open_axes: of each input, names of the axes of any length.
    """

    def __init__(self, values: Sequence[Any], names: Sequence[str], others: Sequence[Any]) -> None:
        self.values = tuple(values)
        self.names = tuple(names)
        self.open_axes = {
            name: {
                axis: f"{name}_{axis}" if axis else "batch"
                for axis, length in enumerate(value.shape)
                if axis == 0 or (other.ndim == value.ndim and other.shape[axis] != length)
            }
            for name, value, other in zip(self.names, self.values, others, strict=True)
        }

    @classmethod
    def of(cls, module: Any, samples: Sequence[Any]) -> Inputs:
        """From the first two samples of data."""
        names, required = parameters_of(module)
        taken = [taken_from(sample, names, required) for sample in samples]
        first, last = taken[0], taken[-1]
        values = [_doubled(_tensor(value)) for value in first.values()]
        others = [_tensor(last.get(name, value)) for name, value in first.items()]
        return cls(values, list(first), others)


def parameters_of(module: Any) -> tuple[list[str], int]:
    """Names of what `forward` takes, and how many of them it must be given."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [
        p for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds
    ]
    required = sum(p.default is inspect.Parameter.empty for p in parameters)
    return [p.name for p in parameters], max(required, 1)


def taken_from(sample: Any, names: Sequence[str], required: int) -> dict[str, Any]:
    """What of a sample the module takes, by name. A tuple may have labels behind the inputs."""
    if isinstance(sample, Mapping):
        taken = {name: sample[name] for name in names if name in sample}
        if not taken and len(sample) == 1:
            return {(names or ["input"])[0]: next(iter(sample.values()))}
        if not taken:
            raise DataError(
                f"the first sample has {', '.join(map(repr, sample))}, the module's forward takes"
                f" {', '.join(map(repr, names))}"
            )
        return taken
    values = list(sample) if isinstance(sample, tuple | list) else [sample]
    names = names or [f"input_{number}" for number in range(len(values))]
    return dict(zip(names, values[:required], strict=False))


def _tensor(value: Any) -> Any:
    import numpy as np
    import torch

    return (
        value.detach().cpu()
        if isinstance(value, torch.Tensor)
        else torch.as_tensor(np.asarray(value))
    )


def _doubled(value: Any) -> Any:
    """At least two along the batch: the exporter takes a length of 1 for a fixed one."""
    import torch

    return torch.cat([value, value]) if value.ndim and value.shape[0] == 1 else value


def by_dynamo(module: Any, inputs: Inputs, dynamic: bool) -> bytes:
    """The module as ONNX, by the exporter on top of torch.export, axes of any length or not."""
    import torch

    shapes = tuple(inputs.open_axes[name] for name in inputs.names)
    program = torch.onnx.export(
        module,
        inputs.values,
        input_names=inputs.names,
        dynamo=True,
        dynamic_shapes=shapes if dynamic else None,
        optimize=False,
        verbose=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        program.save(str(path), external_data=False)
        return path.read_bytes()


def by_torchscript(module: Any, inputs: Inputs, dynamic: bool) -> bytes:
    """The same by the exporter on top of tracing."""
    import torch

    buffer = io.BytesIO()
    torch.onnx.export(
        module,
        inputs.values,
        buffer,
        input_names=list(inputs.names),
        dynamic_axes=inputs.open_axes if dynamic else None,
        opset_version=OPSET,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        dynamo=False,
    )
    return buffer.getvalue()


@contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """The module, and all in it, in evaluation mode; afterwards as they were."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def silence() -> Iterator[None]:
    """Keeps the exporters' warnings and logs to themselves."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "torch")
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
