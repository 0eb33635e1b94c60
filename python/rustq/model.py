"""Models as the API hands them around."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rustq import _rustq

if TYPE_CHECKING:
    import onnx

    from rustq.calibration import Calibration
    from rustq.config import QuantConfig
    from rustq.measuring import Metric
    from rustq.report import Report
    from rustq.targets import Target

__all__ = ["Model", "QuantizedModel", "Value"]


@dataclass(frozen=True)
class Value:
    """An input or output of a model.

    Attributes:
        name: its name in the graph.
        dtype: its element type in ONNX's spelling, such as `"FLOAT"` or `"INT64"`.
        shape: per axis a length, the name of a dynamic one, or `None`; `None` for an unknown rank.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


class Model:
    """An ONNX model. Immutable: `rustq.fold` and `rustq.quantize` return new ones."""

    def __init__(self, core: _rustq.Model) -> None:
        self._core = core

    @property
    def inputs(self) -> tuple[Value, ...]:
        """What has to be fed; inputs with a default value are left out."""
        return tuple(_value(*value) for value in self._core.inputs)

    @property
    def outputs(self) -> tuple[Value, ...]:
        """What the model computes."""
        return tuple(_value(*value) for value in self._core.outputs)

    @property
    def opset(self) -> int | None:
        """Version of the default operator set."""
        return self._core.opset

    @property
    def ir_version(self) -> int:
        """Version of the file format."""
        return self._core.ir_version

    @property
    def producer(self) -> str:
        """Name of the tool that wrote the model."""
        return self._core.producer

    @property
    def op_counts(self) -> dict[str, int]:
        """How many nodes of each operator the main graph has."""
        return self._core.op_counts

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of the main graph."""
        return self._core.weight_bytes

    @property
    def byte_size(self) -> int:
        """Bytes of the whole model as a file."""
        return self._core.byte_size

    def to_bytes(self) -> bytes:
        """The model as the content of an `.onnx` file."""
        return self._core.to_bytes()

    def to_onnx(self) -> onnx.ModelProto:
        """The model as an `onnx.ModelProto`."""
        import onnx

        return onnx.load_model_from_string(self.to_bytes())

    def save(
        self, path: str | os.PathLike[str], *, external_data: bool | None = None
    ) -> list[Path]:
        """Writes an `.onnx` file, wholly or not at all, and returns the paths written.

        Args:
            path: the file.
            external_data: `True` puts the data of every tensor of 1 KiB or more into one file
                beside it, which is called `path` with `.data` behind it, or with a number before
                that if a file of other content has the name; `False` keeps them in the model;
                `None` puts them beside it only above 2 GiB, which one ONNX file cannot hold.

        Raises:
            OSError: a file cannot be written.
            ModelError: the model does not fit into one file, but has to.
        """
        return _rustq.write_together([(Path(path), self._core)], external_data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and self._core == other._core

    def __hash__(self) -> int:
        return hash((self.producer, self.byte_size))

    def __repr__(self) -> str:
        nodes = sum(self.op_counts.values())
        return f"<{type(self).__name__}: opset {self.opset}, {nodes} nodes, {self.byte_size} bytes>"


class QuantizedModel(Model):
    """A quantized model, with the report of what was done and the calibration it came from.

    Attributes:
        report: per layer, whether it is quantized, how, and if not, why.
        calibration: what was seen of the activations; `None` after dynamic quantization.
    """

    def __init__(
        self,
        core: _rustq.Model,
        report: Report,
        calibration: Calibration | None,
        target: Target,
        files: Mapping[str, bytes],
    ) -> None:
        super().__init__(core)
        self.report = report
        self.calibration = calibration
        self._target = target
        self._files = files

    def save(
        self, path: str | os.PathLike[str], *, external_data: bool | None = None
    ) -> list[Path]:
        """Writes what the target reads, all of it or nothing, and returns the paths written.

        Files that belong to the one at `path` get its name with another suffix.

        Args:
            path: the main file.
            external_data: see `Model.save`; for targets whose main file is ONNX.

        Raises:
            OSError: a file cannot be written.
            ModelError: the model does not fit into one file, but has to.
            ValueError: the target's files are not ONNX, and `path` has another suffix than theirs.
        """
        path = Path(path)
        beside = [(self._target.companion(path, suffix), f) for suffix, f in self._files.items()]
        main = [(path, self._core)] if self._target.writes_onnx else []
        return _rustq.write_together([*main, *beside], external_data)

    def save_report(
        self,
        path: str | os.PathLike[str],
        *,
        model: Any = None,
        data: Any = None,
        config: QuantConfig | None = None,
        metric: Metric | None = None,
    ) -> Path:
        """Writes what was done, and how good, small and fast the result is, as one HTML page.

        Args:
            path: the file to write; what ends in `.json` gets the same as JSON (docs/report.md).
            model: the float model, see `rustq.load`; with it and `data`, both models are run and
                their outputs and times compared, and each layer's share of the error is measured.
            data: see `rustq.compare`. Data that the model was not calibrated on say more.
            config: what the model was quantized with.
            metric: a score of your own, see `rustq.quantize`: it is shown for both models.

        Raises:
            OSError: the file cannot be written.
            ModelError: ONNX Runtime does not accept one of the models.
            DataError: the data do not fit the models.
            ValueError: `metric` did not return a finite number.
        """
        from rustq.page import quantization_page

        return quantization_page(path, self, model=model, data=data, config=config, metric=metric)


def _value(name: str, element_type: int, shape: list[int | str | None] | None) -> Value:
    dtype = _ELEMENT_TYPES.get(element_type, f"type {element_type}" if element_type else "?")
    return Value(name, dtype, None if shape is None else tuple(shape))


# fmt: off
_ELEMENT_TYPES = dict(enumerate((
    "FLOAT", "UINT8", "INT8", "UINT16", "INT16", "INT32", "INT64", "STRING", "BOOL",
    "FLOAT16", "DOUBLE", "UINT32", "UINT64", "COMPLEX64", "COMPLEX128", "BFLOAT16",
), start=1))
# fmt: on
"""`TensorProto.DataType`, without importing onnx for it."""


def core_of(model: Any) -> _rustq.Model:
    """The native model behind a path, bytes, an `onnx.ModelProto` or a `Model`.

    Raises:
        OSError: the file cannot be read.
        ModelError: it is not an ONNX model.
        TypeError: `model` is none of these.
    """
    if isinstance(model, Model):
        return model._core
    if isinstance(model, str | os.PathLike):
        return _rustq.Model.open(Path(model))
    if isinstance(model, bytes | bytearray | memoryview):
        return _rustq.Model.from_bytes(bytes(model))
    if hasattr(model, "SerializeToString") and hasattr(model, "graph"):
        return _rustq.Model.from_bytes(model.SerializeToString())
    raise TypeError(
        "model must be a path, bytes, an onnx.ModelProto or a rustq.Model,"
        f" got {type(model).__name__}"
    )
