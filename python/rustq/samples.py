"""What a sample must look like: the model's inputs, and the check of an array against one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rustq.errors import DataError, UnsupportedError

__all__ = [
    "Array",
    "Feed",
    "InputInfo",
    "Session",
    "Shape",
    "as_array",
    "by_name",
    "conform",
    "described",
    "fits",
    "inputs_of",
    "is_float",
    "shape_text",
]

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]
Shape = tuple[int | str | None, ...]


@dataclass(frozen=True)
class InputInfo:
    """An input of a model.

    Attributes:
        name: its name in the graph.
        dtype: the numpy dtype of its elements; `object` for strings.
        shape: per axis a fixed length, the name of a dynamic one, or `None`; `None` as a whole if
            the rank is unknown.
    """

    name: str
    dtype: np.dtype[Any]
    shape: Shape | None


class Argument(Protocol):
    """An input or output of a `Session`."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> Sequence[int | str | None]: ...


class Session(Protocol):
    """What rustq uses of an `onnxruntime.InferenceSession`."""

    def get_inputs(self) -> Sequence[Argument]:
        """The inputs without a default value."""

    def get_outputs(self) -> Sequence[Argument]:
        """The outputs."""

    def run(self, outputs: list[str] | None, feed: Feed, /) -> Sequence[Any]:
        """The named outputs, or all of them, for a feed."""


class Declared(Protocol):
    """An input of a `rustq.Model`."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> Shape | None: ...


def described(inputs: Iterable[Declared]) -> list[InputInfo]:
    """The inputs of a `rustq.Model`.

    Raises:
        UnsupportedError: an input is not a tensor, or has a dtype that numpy does not know.
    """
    return [
        InputInfo(value.name, _dtype(value.name, value.dtype.lower()), value.shape)
        for value in inputs
    ]


_ONNX_RUNTIME_DTYPES = {"float": "float32", "double": "float64", "string": "object"}


def inputs_of(session: Session) -> list[InputInfo]:
    """The inputs that an `onnxruntime.InferenceSession` must be fed (those without a default
    value).

    Raises:
        UnsupportedError: an input is not a tensor, or has a dtype that numpy does not know.
    """
    infos = []
    for argument in session.get_inputs():
        kind = argument.type.removeprefix("tensor(").removesuffix(")")
        infos.append(InputInfo(argument.name, _dtype(argument.name, kind), tuple(argument.shape)))
    return infos


def _dtype(name: str, kind: str) -> np.dtype[Any]:
    try:
        return np.dtype(_ONNX_RUNTIME_DTYPES.get(kind, kind))
    except TypeError:
        raise UnsupportedError(f'input "{name}" is a {kind}: rustq cannot feed it') from None


def shape_text(shape: Iterable[int | str | None] | None) -> str:
    """A shape for people: `[N, 3, 224, ?]`."""
    if shape is None:
        return "[any shape]"
    return f"[{', '.join('?' if length is None else str(length) for length in shape)}]"


def fits(actual: Sequence[int], wanted: Shape) -> bool:
    """Whether an array's shape has the wanted rank and every fixed length."""
    return len(actual) == len(wanted) and all(
        not isinstance(length, int) or length == got
        for got, length in zip(actual, wanted, strict=True)
    )


def as_array(value: Any, where: str) -> Array:
    """Anything array-like as a numpy array, without a copy where possible.

    Takes numpy arrays and scalars, (nested) lists of numbers, and tensors of torch, TensorFlow, JAX
    and others, through their own `detach`, `cpu` and `numpy`, `__array__` or `__dlpack__`: no
    framework is imported.

    Raises:
        DataError: it cannot be seen as an array of numbers; the message starts with `where`.
    """
    if isinstance(value, np.ndarray):
        return value
    try:
        for step in ("detach", "cpu"):
            if hasattr(value, step):
                value = getattr(value, step)()
        if hasattr(value, "numpy"):
            try:
                return np.asarray(value.numpy())
            except TypeError:  # torch.bfloat16 has no numpy dtype
                return np.asarray(value.float().numpy())
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        return np.asarray(value)
    except Exception as error:
        raise DataError(
            f"{where}: cannot turn a {type(value).__name__} into an array: {error}"
        ) from error


def by_name(sample: Any, inputs: Sequence[InputInfo], where: str) -> Feed:
    """One sample, in any of the forms people have, as arrays by input name; shapes are not checked
    yet.

    A mapping names its inputs; a tuple or list is in input order; anything else is the array of the
    only input.

    Raises:
        DataError: a name is unknown or missing, or the number of arrays is wrong.
    """
    if isinstance(sample, Mapping):
        check_names(sample, inputs, where)
        return {
            info.name: as_array(sample[info.name], f'{where}, input "{info.name}"')
            for info in inputs
        }
    names = ", ".join(f'"{info.name}"' for info in inputs)
    if isinstance(sample, tuple | list):
        if len(sample) != len(inputs):
            hint = (
                ": if the others are labels, pass only the inputs, as in (x for x, _ in loader)"
                if len(sample) > len(inputs) == 1
                else ""
            )
            raise DataError(
                f"{where}: {len(sample)} arrays for {len(inputs)} input(s) ({names}){hint}"
            )
        pairs = zip(inputs, sample, strict=True)
        return {
            info.name: as_array(value, f'{where}, input "{info.name}"') for info, value in pairs
        }
    if len(inputs) != 1:
        raise DataError(
            f"{where}: one array for {len(inputs)} inputs ({names}): pass a dict of arrays by"
            " input name, or a tuple in that order"
        )
    if sample is None or isinstance(sample, str | bytes):
        raise DataError(f"{where}: cannot turn a {type(sample).__name__} into an array")
    return {inputs[0].name: as_array(sample, where)}


def check_names(names: Iterable[Any], inputs: Sequence[InputInfo], where: str) -> None:
    """Raises `DataError` unless `names` are exactly the names of the inputs, in any order."""
    wanted = [info.name for info in inputs]
    given = [str(name) for name in names]
    inputs_text = ", ".join(f'"{name}"' for name in wanted)
    for name in given:
        if name not in wanted:
            from difflib import get_close_matches

            close = get_close_matches(name, wanted, 1)
            hint = f': did you mean "{close[0]}"?' if close else ""
            raise DataError(f'{where}: the model has no input "{name}"; it has {inputs_text}{hint}')
    for name in wanted:
        if name not in given:
            raise DataError(f'{where}: input "{name}" is missing; the model needs {inputs_text}')


def conform(array: Array, info: InputInfo, where: str) -> Array:
    """An array of the right shape in the form ONNX Runtime takes: C-ordered, of the input's dtype.

    Casts that keep the meaning are done: between floats, between integers when the values fit, from
    integers and booleans to floats when exact. Pixels are not guessed at: uint8 for a float input
    is an error.

    Raises:
        DataError: the dtype does not fit, a value would overflow, or there is a NaN or an infinity.
    """
    where = f'{where}, input "{info.name}"'
    if array.size == 0 and (array.ndim == 0 or array.shape[0] == 0):
        raise DataError(f"{where}: the array is empty, its shape is {shape_text(array.shape)}")
    result = np.ascontiguousarray(_cast(array, info.dtype, where)).reshape(array.shape)
    if not is_float(result.dtype):
        return result
    finite = np.isfinite(result)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        value = array[index]
        if np.isfinite(value):
            raise DataError(f"{where}: {value} at index {list(index)} does not fit {info.dtype}")
        kind = "NaN" if np.isnan(value) else "an infinite value"
        raise DataError(
            f"{where}: {kind} at index {list(index)}"
            f" ({int((~finite).sum())} of {finite.size} values)"
        )
    return result


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether these are floating-point numbers."""
    # ml_dtypes' bfloat16 has kind "V" and does not count as np.floating.
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _cast(array: Array, dtype: np.dtype[Any], where: str) -> Array:
    source = array.dtype
    if dtype.kind in "OSU":
        raise DataError(f"{where}: the model takes strings here, which rustq cannot feed")
    if source.kind in "OSUmMc" or source.names is not None:
        raise DataError(f"{where}: the array holds {_kind(source)}, the input takes {dtype}")
    if source == dtype:
        return array.astype(dtype, copy=False)  # the same dtype in native byte order
    if is_float(dtype):
        if is_float(source):
            with np.errstate(over="ignore"):  # what overflows is reported with its index
                return array.astype(dtype)
        if source == np.uint8:
            raise DataError(
                f"{where}: the array is uint8, the input takes {dtype}: prepare the pixels as"
                f' in training, such as (x.astype("{dtype}") / 255 - mean) / std'
            )
        with np.errstate(over="ignore"):
            result = array.astype(dtype)
        if source.kind != "b" and not np.array_equal(result.astype(source), array):
            raise DataError(
                f"{where}: the {source} values are not exact in {dtype}: cast them with .astype"
            )
        return result
    if is_float(source):
        raise DataError(
            f"{where}: the array is {source}, the input takes {dtype}: cast it with"
            f' .astype("{dtype}")'
        )
    limits = None if dtype.kind == "b" else np.iinfo(dtype)
    low, high = (limits.min, limits.max) if limits else (0, 1)
    if array.size and source.kind != "b":
        least, most = int(array.min()), int(array.max())
        if least < low or most > high:
            raise DataError(
                f"{where}: values from {least} to {most} do not fit {dtype} ({low}…{high})"
            )
    return array.astype(dtype)


def _kind(dtype: np.dtype[Any]) -> str:
    kinds = {"O": "Python objects", "S": "bytes", "U": "text", "m": "time spans", "M": "dates"}
    return kinds.get(dtype.kind, f"{dtype} values")
