"""ncnn: `.param`, `.bin` and `.table`, from ONNX in one step."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rustq import _rustq
from rustq.config import QuantConfig
from rustq.errors import ModelError, UnsupportedError
from rustq.folding import specialized
from rustq.targets import Job, Outcome

if TYPE_CHECKING:
    from rustq.model import Model

__all__ = ["Contents", "Layer", "as_run", "check", "make", "next_step", "read", "unsupported"]


def make(job: Job) -> Outcome:
    """Exports for ncnn: int8 or, by `QuantConfig.weights`, float."""
    config = job.config
    model = as_run(job.model, config, job.shapes)
    quantizing = config.weights == "int8"
    calibration = job.calibration._core if job.calibration and quantizing else None
    param, weights, table, layers, notes, simulation = _rustq.ncnn_export(
        model, calibration, job.choices(), weights=config.weights
    )
    files = {".param": param.encode(), ".bin": weights}
    if table:
        files[".table"] = table.encode()
    return Outcome(simulation, layers, notes, files)


def next_step(model: Model, files: Sequence[Path]) -> str:
    """A look at what was written."""
    return f"rustq inspect {shlex.quote(str(files[0]))}"


def check(model: _rustq.Model, config: QuantConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses a folded model that cannot be exported.

    Raises:
        UnsupportedError: the first node that cannot be.
        ModelError: the shapes do not fit the model.
    """
    _rustq.ncnn_check(as_run(model, config, shapes))


def unsupported(
    model: _rustq.Model, config: QuantConfig, shapes: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, str, str, str]]:
    """Everything in a folded model that cannot be exported: the name of the node, its operator,
    the reason, and the nearest thing to do.

    Raises:
        ModelError: the shapes do not fit the model.
    """
    return _rustq.ncnn_unsupported(as_run(model, config, shapes))


def as_run(
    model: _rustq.Model, config: QuantConfig, sample: Mapping[str, tuple[int, ...]]
) -> _rustq.Model:
    """The model with the shapes given, else those of the first sample, else its own; one sample at
    a time."""
    given = dict(config.input_shapes)
    names = [name for name, *_ in model.inputs]
    if unknown := [name for name in given if name not in names]:
        raise ModelError(f"input_shapes: the model has no input '{unknown[0]}', only {names}")
    shapes = {}
    for name, _, dims in model.inputs:
        declared = [1 if i == 0 and not isinstance(d, int) else d for i, d in enumerate(dims or ())]
        known: list[int | str | None] = list(given.get(name) or sample.get(name) or declared)
        if name not in given and dims and not isinstance(dims[0], int):
            known[:1] = [1]
        if (dims is None and not known) or not all(isinstance(d, int) for d in known):
            raise UnsupportedError(
                f"ncnn needs fixed shapes, and that of input {name!r} is {dims}: give data, or"
                f" input_shapes={{{name!r}: (1, …)}} (--input-shape {_shown(name)}=1x…)"
            )
        shapes[name] = [d for d in known if isinstance(d, int)]
    return specialized(model, shapes)


def _shown(name: str) -> str:
    """A name within a line."""
    return repr(name)[1:-1]


@dataclass(frozen=True)
class Layer:
    """A layer of an ncnn model.

    Attributes:
        kind: its type.
        name: its name.
        inputs: the blobs it reads.
        outputs: the blobs it makes.
        int8: whether it computes on integers.
        weight_bytes: bytes of its weights; `None` if they were not read.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    int8: bool
    weight_bytes: int | None


@dataclass(frozen=True)
class Contents:
    """What the files of an ncnn model hold.

    Attributes:
        layers: in the order they run.
    """

    layers: tuple[Layer, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The blobs to feed."""
        return tuple(layer.outputs[0] for layer in self.layers if layer.kind == "Input")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The blobs that no layer reads."""
        read = {blob for layer in self.layers for blob in layer.inputs}
        made = [blob for layer in self.layers for blob in layer.outputs]
        return tuple(blob for blob in made if blob not in read)

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of all weights; `None` if they were not read."""
        sizes = [layer.weight_bytes for layer in self.layers]
        return sum(size or 0 for size in sizes) if None not in sizes else None

    @property
    def kinds(self) -> dict[str, tuple[int, int, int]]:
        """Per type of layer, the most frequent first: how many there are, how many compute on
        integers, and the bytes of their weights."""
        counts: dict[str, list[Layer]] = {}
        for layer in self.layers:
            counts.setdefault(layer.kind, []).append(layer)
        return {
            kind: (
                len(layers),
                sum(layer.int8 for layer in layers),
                sum(layer.weight_bytes or 0 for layer in layers),
            )
            for kind, layers in sorted(counts.items(), key=lambda e: (-len(e[1]), e[0]))
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values."""
        return {
            "inputs": self.inputs,
            "outputs": self.outputs,
            "weight_bytes": self.weight_bytes,
            "layers": [asdict(layer) for layer in self.layers],
        }


def read(path: Path) -> Contents:
    """Reads a `.param` file and, if it is there, the `.bin` file beside it.

    Raises:
        OSError: a file cannot be read.
        ModelError: ncnn would not run it: a count is wrong, a blob is read twice, weights are cut
            short, …; the message names the layer.
    """
    weights = path.with_suffix(".bin")
    try:
        text = path.read_text(encoding="utf-8")
        rows = _rustq.ncnn_read(text, weights.read_bytes() if weights.exists() else None)
    except (ModelError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: {error}") from None
    return Contents(
        tuple(
            Layer(kind, name, tuple(inputs), tuple(outputs), int8, size)
            for kind, name, inputs, outputs, int8, size in rows
        )
    )
