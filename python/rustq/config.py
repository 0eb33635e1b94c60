"""Every knob of quantization, in one frozen dataclass."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from rustq.images import ImageOptions

__all__ = ["METHODS", "WEIGHTS", "ImageOptions", "QuantConfig", "checked"]

METHODS = ("auto", "minmax", "percentile", "entropy", "mse", "ifmr")
"""Ways to turn what was observed of a tensor into its quantized range."""

WEIGHTS = ("int8", "float16", "float32", "int4", "uint4", "log2", "binary")
"""Number formats of the weights."""

ACTIVATIONS = ("int8", "int16", "float32")
"""Number formats of the activations where there are data."""

QUANT_FORMATS = ("auto", "qdq")
"""How weights below 8 bits are written."""

BLOCK_SIZE = 32
"""Weights that share a scale where blocks are the default."""

PRECISIONS = ("fp32", "fp16")
"""Types of what is not int8, for TensorRT."""

ROUNDINGS = ("nearest", "learned")
"""Ways to round the weights."""

NamePattern = str | re.Pattern[str]
Provider = str | tuple[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class QuantConfig:
    """How to quantize. Every argument is keyword-only and has a default that suits most models.

    Attributes:
        method: how the range of an activation is chosen from its calibration. `"auto"`, for ONNX
            Runtime and with samples to run: a few ways are tried, and the one whose outputs are
            closest to the float model's on some of the samples is kept. `"minmax"` keeps
            every value; `"percentile"` cuts the rare ones off at both ends; `"entropy"`
            (Kullback-Leibler) and `"mse"` choose the cut that loses least; `"ifmr"` is Ascend's
            search; `"auto"` where nothing can be tried weighs clipping heavier than `"mse"`. All of
            them come from one pass over the data.
        percentile: share of the values kept inside the range by `"percentile"`, in percent, above
            50 and up to 100. The default 99.99 leaves one value in ten thousand outside.
        per_channel: one scale for each output channel of a weight (`True`), or one for the whole
            weight.
        avoid_saturation: leave room in the weights for x86 processors without VNNI, on which ONNX
            Runtime adds pairs of products in 16 bits: the result is then the same on every
            processor. `False` makes weights up to one bit finer, for processors that are known to
            have VNNI (or are ARM).
        weights: number format of the weights: `"int8"`; for ONNX Runtime also `"int4"`, `"uint4"`
            (with a zero point), `"log2"` (a sign and an exponent, in 4 bits) and `"binary"` (a
            sign, times the mean magnitude of the channel); for TensorRT also `"int4"`, of matrix
            products, whose activations then are float; for ncnn
            also `"float16"` and `"float32"`, which quantize nothing and need no data. Without
            data, those below 8 bits leave the activations float. For ONNX Runtime, `"int4"` and
            `"uint4"` are int8 in the smallest layers, with one in 32 weights together. See
            docs/low-bit.md.
        activations: number format of the activations where there are data: `"int8"` (uint8 with
            `scheme="asym"`); for ONNX Runtime also `"int16"`, which needs opset 21 and no integer
            kernel takes, and `"float32"`: only the weights are quantized.
        block_size: int4 and uint4: how many inputs of an output channel share a scale in products
            with float activations, or how many input channels in convolutions: a power of 2 from
            16 on, or 0 for all of them. `None` is 32 without data, or with
            `activations="float32"`, 128 for TensorRT, and 0 otherwise; where int8 activations are
            asked for, other sizes leave those of matrix products float, and convolutions in int8
            have one scale for each channel.
        quant_format: ONNX Runtime, weights below 8 bits: `"auto"` writes what it runs fastest:
            `MatMulNBits`, and else codes that it decodes when it loads the model; `"qdq"` only
            operators of the ONNX standard, with `DequantizeLinear` for int4 and uint4 (opset 21).
        noise_price: what accuracy is worth in time, at least 0: a relative noise of 1 in one place
            costs as much as this many times the float model's time. Larger leaves more layers in
            float; 0 asks for speed alone. `None` is 5 for `scheme="asym"` and 6 for `"sym"`, and
            3 for Ascend, 20 for TensorRT and ncnn; with `method="auto"` up to 16 times that if
            the outputs on some of the samples are poor, and it is worth what then stays float.
        rounding: how weights become integers: `"nearest"`, or `"learned"`: so that the results of
            the layer change least on inputs from the data. Costs a pass over up to 64 of the
            samples, of which there should be as many, and for wide layers some seconds. `None` is
            `"nearest"` for ONNX Runtime; for the others, with `method="auto"`, `"learned"` if the
            outputs on some of the samples then are closer to the float model's.
        bias_correction: let the biases take up the mean error that rounding the weights puts into
            the results of a layer, on inputs from up to 16 of the samples, or 64 with learned
            rounding. `None` does so with `activations="float32"`, and with `method="auto"` if the
            outputs on some of the samples then are closer to the float model's; not for binary
            weights.
        equalize: bring channels of very different size to one scale, and make up
            for it in the weights around them (cross-layer equalization; for transformers known as
            SmoothQuant), where that leaves less noise. `None` does so with `method="auto"` if the
            outputs on some of the samples then are closer to the float model's.
        high_precision: TensorRT only: the type of what is not int8, `"fp32"` or `"fp16"`.
            TensorRT 11 runs every operator in the type that the file gives it, so that `"fp16"` is
            quicker there. It is written in opset 19, which TensorRT before 10 does not read.
        tensorrt_version: TensorRT only: the version to write the calibration cache for, such as
            `"8.6.1"`. Other versions ignore the cache; the `.onnx` file needs none.
        ascend_qdq: Ascend only: also write a `.qdq.onnx` file for `convert_qat_model`.
        exclude: nodes that stay float: a name, a glob (`"/head/*"`, matched against the whole name,
            case-sensitive), an `re.Pattern` (searched for in the name), or several of these. Stored
            as a tuple.
        exclude_op_types: operator types that stay float, such as `"Gemm"`. Stored as a tuple.
        images: how image files become model inputs; `None` derives it from the model's input shape.
        input_shapes: shapes of inputs by name, for targets that need fixed ones (ncnn). Where it is
            left out they come from the model, or from the first sample. Stored as pairs.
        threads: threads that run the float model: up to four samples at once while it is
            calibrated, each by its share of them, unless `session_options` or `runner` say how.
            `None` is one for each core.
        providers: ONNX Runtime execution providers for the float model, in order of preference:
            names, or pairs of a name and a dict of options. Stored as a tuple.
        session_options: attributes of `onnxruntime.SessionOptions`, such as
            `{"inter_op_num_threads": 2}`, and configuration entries, which have a dot in their
            name, such as `{"session.intra_op.allow_spinning": "0"}`, for the float model.
        runner: what runs the float model instead of ONNX Runtime: `runner(model, outputs)` gets a
            serialized ONNX model whose outputs are those, and returns a function that takes a feed
            (a dict of arrays by input name) and returns the values of the outputs, in their order
            or as a dict. For the workers of a process pool it must be picklable: a function of a
            module.

    Raises:
        ValueError: a value is not one of the valid choices, which the message lists, or is out of
            range.
        TypeError: a value has the wrong type.
    """

    method: str = "auto"
    percentile: float = 99.99
    per_channel: bool = True
    avoid_saturation: bool = True
    weights: str = "int8"
    activations: str = "int8"
    block_size: int | None = None
    quant_format: str = "auto"
    noise_price: float | None = None
    rounding: str | None = None
    bias_correction: bool | None = None
    equalize: bool | None = None
    high_precision: str = "fp32"
    tensorrt_version: str = "10.3.0"
    ascend_qdq: bool = False
    exclude: NamePattern | Iterable[NamePattern] = ()
    exclude_op_types: str | Iterable[str] = ()
    images: ImageOptions | None = None
    input_shapes: Mapping[str, Sequence[int]] | Iterable[tuple[str, tuple[int, ...]]] = ()
    threads: int | None = None
    providers: Provider | Iterable[Provider] = ("CPUExecutionProvider",)
    session_options: Mapping[str, Any] | None = None
    runner: Callable[[bytes, Sequence[str]], Callable[..., Any]] | None = None

    def __post_init__(self) -> None:
        _choice("method", self.method, METHODS)
        _choice("weights", self.weights, WEIGHTS)
        _choice("activations", self.activations, ACTIVATIONS)
        _choice("quant_format", self.quant_format, QUANT_FORMATS)
        self._check_codes()
        _choice("high_precision", self.high_precision, PRECISIONS)
        if not isinstance(self.tensorrt_version, str):
            raise TypeError(f"tensorrt_version must be a string, got {self.tensorrt_version!r}")
        if self.rounding is not None:
            _choice("rounding", self.rounding, ROUNDINGS)
        if isinstance(self.percentile, bool) or not isinstance(self.percentile, int | float):
            raise TypeError(f"percentile must be a number, got {self.percentile!r}")
        if not 50 < self.percentile <= 100:
            raise ValueError(
                f"percentile must be above 50 and at most 100, got {self.percentile!r}"
            )
        for name in (
            "per_channel",
            "avoid_saturation",
            "ascend_qdq",
        ):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name in ("bias_correction", "equalize"):
            if getattr(self, name) not in (None, True, False):
                raise TypeError(f"{name} must be True, False or None, got {getattr(self, name)!r}")
        if self.images is not None and not isinstance(self.images, ImageOptions):
            raise TypeError(
                f"images must be a rustq.ImageOptions, got {type(self.images).__name__}"
            )
        if self.threads is not None and (
            isinstance(self.threads, bool) or not isinstance(self.threads, int)
        ):
            raise TypeError(f"threads must be an int or None, got {self.threads!r}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(
                f"threads must be at least 1, or None for ONNX Runtime's choice, got {self.threads}"
            )
        if self.noise_price is not None:
            if isinstance(self.noise_price, bool) or not isinstance(self.noise_price, int | float):
                raise TypeError(f"noise_price must be a number or None, got {self.noise_price!r}")
            if not 0 <= self.noise_price < float("inf"):
                raise ValueError(f"noise_price must be 0 or more, got {self.noise_price!r}")
        for name, kinds in (("exclude", (str, re.Pattern)), ("exclude_op_types", (str,))):
            object.__setattr__(self, name, _several(name, getattr(self, name), kinds))
        object.__setattr__(self, "input_shapes", _shapes(self.input_shapes))
        self._check_runtime()

    def _check_codes(self) -> None:
        size = self.block_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int)):
            raise TypeError(f"block_size must be an int or None, got {size!r}")
        if size and (size < 16 or size & (size - 1)):
            raise ValueError(f"block_size must be a power of 2 from 16 on, or 0, got {size}")
        if size and self.weights not in ("int4", "uint4"):
            raise ValueError(f"block_size is for int4 and uint4 weights, not for {self.weights}")
        if self.codes and not self.per_channel:
            raise ValueError(f"per_channel=False is for int8 weights, not for {self.weights}")
        if self.equalize and self.activations != "int8":
            raise ValueError(f"equalize=True is for int8 activations, not for {self.activations}")

    def _check_runtime(self) -> None:
        given: Any = self.providers
        single = isinstance(given, str) or _is_pair(given)
        object.__setattr__(self, "providers", _several("providers", given, (str, tuple), single))
        for entry in _as_tuple(self.providers):
            if isinstance(entry, tuple) and not _is_pair(entry):
                raise TypeError(f"providers must hold names, or (name, dict) pairs, got {entry!r}")
        if not self.providers:
            raise ValueError('providers must name at least one, such as "CPUExecutionProvider"')
        if self.session_options is not None and not isinstance(self.session_options, Mapping):
            raise TypeError(f"session_options must be a dict, got {self.session_options!r}")
        if self.runner is not None and not callable(self.runner):
            raise TypeError(f"runner must be callable, got {self.runner!r}")

    @property
    def corrects(self) -> bool:
        """Whether anything is corrected that inputs of the layers are needed for."""
        return self.rounding == "learned" or bool(self.bias_correction)

    @property
    def codes(self) -> bool:
        """Whether the weights have fewer than 8 bits."""
        return self.weights not in ("int8", "float16", "float32")

    def excludes(self, name: str, op_type: str = "") -> bool:
        """Whether the node with this name and operator type is to stay float."""
        return op_type in _as_tuple(self.exclude_op_types) or any(
            _matches(pattern, name) for pattern in _as_tuple(self.exclude)
        )

    def unused_exclusions(self, names: Iterable[str]) -> tuple[str, ...]:
        """The entries of `exclude` that match no name of these: probably misspelt."""
        names = list(names)
        patterns: tuple[NamePattern, ...] = _as_tuple(self.exclude)
        return tuple(
            pattern if isinstance(pattern, str) else pattern.pattern
            for pattern in patterns
            if not any(_matches(pattern, name) for name in names)
        )

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON-ready values; a pattern becomes its text."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        values["exclude"] = [p if isinstance(p, str) else p.pattern for p in values["exclude"]]
        values["exclude_op_types"] = list(values["exclude_op_types"])
        values["input_shapes"] = {name: list(shape) for name, shape in values["input_shapes"]}
        values["providers"] = [p if isinstance(p, str) else list(p) for p in values["providers"]]
        if self.runner is not None:
            values["runner"] = getattr(self.runner, "__qualname__", repr(self.runner))
        if self.images is not None:
            values["images"] = asdict(self.images)
        return values


def _choice(name: str, value: object, valid: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(valid)}, got {value!r}")
    if value not in valid:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(valid)}")


def _is_pair(value: object) -> bool:
    """Whether this is a provider with its options."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], Mapping)
    )


def _several(
    name: str, value: Any, kinds: tuple[type, ...], single: bool | None = None
) -> tuple[Any, ...]:
    """One or several values as a tuple, each checked to be one of `kinds`."""
    single = isinstance(value, kinds) if single is None else single
    if not single and not isinstance(value, Iterable):
        raise TypeError(f"{name} must be one or several of {_names(kinds)}, got {value!r}")
    values: tuple[Any, ...] = (value,) if single else tuple(value)
    for entry in values:
        if not isinstance(entry, kinds):
            raise TypeError(f"{name} must hold {_names(kinds)}, got {entry!r}")
    return values


def _shapes(given: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Shapes by name as pairs that can be hashed."""
    try:
        pairs = tuple((str(name), tuple(map(int, shape))) for name, shape in dict(given).items())
    except (TypeError, ValueError):
        raise TypeError(f"input_shapes must map names to shapes, got {given!r}") from None
    if any(size < 1 for _, shape in pairs for size in shape):
        raise ValueError(f"input_shapes must hold lengths of at least 1, got {given!r}")
    return pairs


def _names(kinds: tuple[type, ...]) -> str:
    return " or ".join(kind.__name__ for kind in kinds)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    """The value of a field that `__post_init__` stored as a tuple, for the type checker."""
    assert isinstance(value, tuple)
    return value


def _matches(pattern: NamePattern, name: str) -> bool:
    if isinstance(pattern, re.Pattern):
        return pattern.search(name) is not None
    # Names may hold brackets, which a glob reads as a set of characters: a name matches itself.
    return pattern == name or fnmatchcase(name, pattern)


def checked(config: QuantConfig | None) -> QuantConfig:
    """The configuration, or that of nothing asked for."""
    if config is not None and not isinstance(config, QuantConfig):
        raise TypeError(f"config must be a rustq.QuantConfig, got {type(config).__name__}")
    return config or QuantConfig()
