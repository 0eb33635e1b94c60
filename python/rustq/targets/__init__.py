"""The runtimes to write for, as data. How each is written is in a module of that name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rustq.errors import UnsupportedError

if TYPE_CHECKING:
    from rustq import _rustq
    from rustq.calibration import Calibration
    from rustq.config import QuantConfig
    from rustq.model import Model

__all__ = [
    "SCHEMES",
    "TARGETS",
    "Job",
    "Outcome",
    "Target",
    "Unsupported",
    "check_measured",
    "target",
]

SCHEMES = ("asym", "sym")

LITERAL = {"session.disable_quant_qdq": "1"}
"""Makes ONNX Runtime compute QuantizeLinear, DequantizeLinear and what is between as they stand."""


@dataclass(frozen=True)
class Job:
    """What a target is asked to write.

    Attributes:
        model: the float model, folded.
        calibration: what was seen of its activations, or `None`: dynamic quantization.
        scheme: one of the target's.
        config: every other choice.
        excluded: names of the nodes that stay float.
        everything: whether all others that can run in int8 do, whatever that costs.
        inputs: what the layers multiply on a few samples, if anything is corrected for that.
        shapes: the shape of each input in the first sample; empty where there is no sample.
        given: parameters that the model came with, which are kept; the calibration may be empty
            then.
        noise_price: what accuracy is worth in time; see `QuantConfig`.
        by_channel: whether what was seen of single channels counts: where the configuration would
            have had them observed, so that a calibration gives what its data would.
    """

    model: _rustq.Model
    calibration: Calibration | None
    scheme: str
    config: QuantConfig
    excluded: Sequence[str]
    noise_price: float
    everything: bool = False
    inputs: _rustq.LayerInputs | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    given: _rustq.Given | None = None
    by_channel: bool = False

    def codes(self, block_size: int, *, standard: bool = False) -> tuple[str, int | None, bool]:
        """How weights are coded: the number format, the inputs that share a scale, of which
        `block_size` is the default, and whether only operators of the standard may be written."""
        config = self.config
        size = block_size if config.block_size is None else config.block_size
        return config.weights, size or None, standard or config.quant_format == "qdq"

    def choices(self, method: str = "auto") -> _rustq._Choices:
        """Those of the configuration for a runtime other than ONNX Runtime, whose way to choose
        ranges `"auto"` means."""
        config = self.config
        return {
            "method": method if config.method == "auto" else config.method,
            "percentile": config.percentile,
            "per_channel": config.per_channel,
            "noise_price": 0.0 if self.everything else self.noise_price,
            "exclude": list(self.excluded),
            "equalize": bool(config.equalize),
            "rounding": config.rounding or "nearest",
            "bias_correction": bool(config.bias_correction),
            "inputs": self.inputs,
            "given": self.given,
        }


@dataclass(frozen=True)
class Outcome:
    """What a target made of a job.

    Attributes:
        model: the quantized model as ONNX. For a target whose files are not ONNX it has the same
            integers as QuantizeLinear/DequantizeLinear pairs, to be run elsewhere.
        layers: what became of each operator; see `rustq.report.LayerReport.from_record`.
        notes: what the user should know.
        files: the content of files, by suffix: those beside the `.onnx` file, or, for a target
            whose files are not ONNX, all.
        deployed: what the device computes, as QuantizeLinear/DequantizeLinear pairs, where the
            model is not that: another tool of the target makes it of the files.
    """

    model: _rustq.Model
    layers: list[dict[str, Any]]
    notes: list[str]
    files: Mapping[str, bytes] = field(default_factory=dict)
    deployed: _rustq.Model | None = None

    @property
    def computed(self) -> _rustq.Model:
        """What the device computes."""
        return self.deployed or self.model


@dataclass(frozen=True)
class Unsupported:
    """A node that a target cannot run.

    Attributes:
        node: its name, or that of its first output where it has none.
        op_type: its operator.
        reason: what the target lacks.
        hint: the nearest thing to do.
    """

    node: str
    op_type: str
    reason: str
    hint: str


@dataclass(frozen=True)
class Target:
    """A runtime, and what it takes.

    Attributes:
        name: what users call it, and the module here that writes for it.
        noise_prices: the schemes of activations that it can run, its default first, and the price
            of noise with each where none is asked for.
        suffix: of its main file.
        knobs: what of `QuantConfig` only it takes.
        weights: the number formats of weights that it can be given.
        weights_alone: those of them with which its activations stay float.
        measured: whether what ONNX Runtime makes of `Outcome.model` is what the target computes,
            so that errors can be measured there.
    """

    name: str
    noise_prices: Mapping[str, float]
    suffix: str = ".onnx"
    knobs: tuple[str, ...] = ()
    weights: tuple[str, ...] = ("int8",)
    weights_alone: tuple[str, ...] = ()
    measured: bool = True

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes of activations that it can run, its default first."""
        return tuple(self.noise_prices)

    @property
    def writes_onnx(self) -> bool:
        """Whether its main file is an ONNX model."""
        return self.suffix == ".onnx"

    @property
    def session_options(self) -> Mapping[str, Any]:
        """Of ONNX Runtime, for it to compute what the target does: other runtimes do not have its
        integer kernels, but multiply what the pairs say."""
        return {} if self.name == "onnxruntime" else LITERAL

    def scheme(self, asked: str | None) -> str:
        """The scheme to use where a user asked for `asked`, or for none in particular.

        Raises:
            ValueError: there is no such scheme.
            UnsupportedError: the target cannot run it.
        """
        if asked is None:
            return self.schemes[0]
        if asked not in SCHEMES:
            raise ValueError(f"unknown scheme {asked!r}: choose one of {', '.join(SCHEMES)}")
        if asked not in self.schemes:
            only = " and ".join(map(repr, self.schemes))
            raise UnsupportedError(f"{self.name} cannot run scheme {asked!r}, only {only}")
        return asked

    def check_weights(self, format: str) -> None:
        """Raises `UnsupportedError` where weights in this format cannot be had for the target."""
        if format not in self.weights:
            only = " and ".join(map(repr, self.weights))
            raise UnsupportedError(
                f"weights={format!r} is not available for {self.name}, only {only}"
            )

    def make(self, job: Job) -> Outcome:
        """Quantizes."""
        outcome: Outcome = import_module(f"{__name__}.{self.name}").make(job)
        return outcome

    def as_run(
        self, model: _rustq.Model, config: QuantConfig, shapes: Mapping[str, tuple[int, ...]]
    ) -> _rustq.Model:
        """The float model in the shapes that the target runs it in."""
        if self.writes_onnx:
            return model
        fixed: _rustq.Model = import_module(f"{__name__}.{self.name}").as_run(model, config, shapes)
        return fixed

    def next_step(self, model: Model, files: Sequence[Path]) -> str:
        """What to type next, on the device, with the files that were written."""
        step: str = import_module(f"{__name__}.{self.name}").next_step(model, files)
        return step

    def check(
        self, model: _rustq.Model, config: QuantConfig, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        """Raises `UnsupportedError` where a folded model cannot be written as anything but ONNX."""
        import_module(f"{__name__}.{self.name}").check(model, config, shapes)

    def unsupported(
        self, model: _rustq.Model, config: QuantConfig, shapes: Mapping[str, tuple[int, ...]]
    ) -> list[Unsupported]:
        """What of a folded model cannot be written; nothing where ONNX is what is written."""
        if self.writes_onnx:
            return []
        module = import_module(f"{__name__}.{self.name}")
        return [Unsupported(*each) for each in module.unsupported(model, config, shapes)]

    def size(self, outcome: Outcome) -> int:
        """Bytes of what is written, but for what only other tools read."""
        if self.writes_onnx:
            return outcome.model.byte_size
        return sum(len(content) for suffix, content in outcome.files.items() if suffix != ".table")

    def companion(self, path: Path, suffix: str) -> Path:
        """The file with another suffix that belongs to the main file `path`.

        Raises:
            ValueError: the target's files are not ONNX, and `path` is not called like its main one.
        """
        if not path.name.endswith(self.suffix):
            if not self.writes_onnx:
                raise ValueError(f"{path}: a model for {self.name} ends in {self.suffix}")
            return path.with_name(path.name + suffix)
        return path.with_name(path.name.removesuffix(self.suffix) + suffix)


TARGETS = {
    target.name: target
    for target in (
        Target(
            "onnxruntime",
            {"asym": 5.0, "sym": 6.0},
            knobs=("activations", "block_size", "quant_format"),
            weights=("int8", "int4", "uint4", "log2", "binary"),
        ),
        Target(
            "tensorrt",
            {"sym": 20.0},
            knobs=("block_size", "high_precision", "tensorrt_version"),
            weights=("int8", "int4"),
            weights_alone=("int4",),
        ),
        Target("ascend", {"asym": 3.0, "sym": 3.0}, knobs=("ascend_qdq",), measured=False),
        Target("ncnn", {"sym": 20.0}, ".param", weights=("int8", "float16", "float32")),
    )
}
"""All of them, by name."""


def check_measured(name: str) -> None:
    """Raises `UnsupportedError` where errors of a target cannot be measured in ONNX Runtime, and
    `ValueError` where there is no such target."""
    if not target(name).measured:
        able = ", ".join(each.name for each in TARGETS.values() if each.measured)
        raise UnsupportedError(f"errors cannot be measured for {name}, only for {able}")


def target(name: str) -> Target:
    """The target of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in TARGETS:
        raise ValueError(f"unknown target {name!r}: choose one of {', '.join(TARGETS)}")
    return TARGETS[name]
