"""The quantization arithmetic on numpy arrays, bit-exact to ONNX's operators.

`quantize` computes `saturate(round_half_even(x / scale) + zero_point)` and `dequantize`
`(q - zero_point) * scale`, as QuantizeLinear and DequantizeLinear do (ONNX operator set 21).
Infinities saturate; NaN becomes the smallest integer, as in ONNX Runtime.

Arrays may have any layout and byte order: C-contiguous ones are read where they are, others copied
first. Real arrays are float32, float16 or bfloat16 (of `ml_dtypes`), read as they are, or of
another real type, converted to float32. All arithmetic is in float32. Large arrays are worked on
by several threads (`RAYON_NUM_THREADS`), and other Python threads go on meanwhile.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rustq import _rustq

__all__ = [
    "absmax_quantize",
    "dequantize",
    "fake_quantize",
    "histogram",
    "min_max",
    "pack_int4",
    "quantization_error",
    "quantize",
    "unpack_int4",
]

Array = np.ndarray[Any, Any]
_LIMITS = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
    "int4": (-8, 7),
    "uint4": (0, 15),
}
_STORED = {"int4": "int8", "uint4": "uint8"}
_HALVES = ("float16", "bfloat16")
_FLOAT32, _INT32 = np.dtype(np.float32), np.dtype(np.int32)
# What numpy and Python work out anew at each call takes as long as thousands of elements: a dtype
# makes up its name, or is found by it; types are joined.
_DTYPES = {name: np.dtype(name) for name in ("float32", "float16", *_LIMITS) if "int4" not in name}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_REAL_NUMBER, _WHOLE_NUMBER = (float, np.floating), (int, np.integer)


def quantize(
    x: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike = 0,
    *,
    axis: int | None = None,
    block_size: int = 0,
    dtype: str = "int8",
    out: Array | None = None,
) -> Array:
    """Integers for real values.

    Args:
        x: real values of any shape.
        scale: a positive number, or with `axis` one for each channel, or with `block_size` an array
            in the shape of `x` but for `ceil(n / block_size)` in place of the axis' length `n`.
        zero_point: the integer that means 0, or one for each scale.
        axis: the channel axis; `None` for one scale.
        block_size: how many neighbours along `axis` share a scale; 0 for all.
        dtype: `"int8"`, `"uint8"`, `"int16"`, `"uint16"`, `"int4"` or `"uint4"`. Integers of four
            bits are returned one in a byte, as int8 or uint8; see `pack_int4`.
        out: where to write the result: a C-contiguous array of its shape and type that shares no
            memory with `x`. A new array if it is `None`.

    Returns:
        An array of `dtype`, in the shape of `x`.

    Raises:
        ValueError: an unknown dtype, a scale that is not positive and finite, a zero point outside
            the dtype, a number of scales that does not fit the axis, or an unfit `out`.
    """
    name, values, params = _to_integers(x, scale, zero_point, dtype, axis, block_size)
    stored = _STORED.get(name, name)
    result = _empty(values, stored) if out is None else out
    if not _rustq.quantize(_bits(values), params, result):
        raise _unfit(result, values, stored)
    return result


def dequantize(
    q: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike = 0,
    *,
    axis: int | None = None,
    block_size: int = 0,
    dtype: str = "float32",
    out: Array | None = None,
) -> Array:
    """Real values that integers stand for.

    Args:
        q: int8, uint8, int16 or uint16 of any shape, or int4 or uint4 of `ml_dtypes`.
        scale: see `quantize`.
        zero_point: see `quantize`.
        axis: see `quantize`.
        block_size: see `quantize`.
        dtype: `"float32"`, `"float16"` or `"bfloat16"`, to which the product is rounded.
        out: see `quantize`.

    Returns:
        An array of `dtype`, in the shape of `q`.

    Raises:
        ValueError: see `quantize`; or `q` holds other integers, or no integers.
    """
    array = q if type(q) is np.ndarray else np.asarray(q)
    name = _known(_name(array.dtype))
    values = _contiguous(array, _DTYPES[_STORED.get(name, name)])
    params = _parameters(scale, zero_point, name, values.shape, axis, block_size)
    if dtype != "float32" and dtype not in _HALVES:
        raise ValueError(f"unknown dtype {dtype!r}: choose one of float32, float16, bfloat16")
    result = _empty(values, dtype) if out is None else out
    if not _rustq.dequantize(values, params, _bits_for(result, dtype)):
        raise _unfit(result, values, dtype)
    return result


def fake_quantize(
    x: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike = 0,
    *,
    axis: int | None = None,
    block_size: int = 0,
    dtype: str = "int8",
    out: Array | None = None,
) -> Array:
    """`dequantize(quantize(x))` in one pass: the nearest float32 values on the integer grid.

    Args:
        x: see `quantize`.
        scale: see `quantize`.
        zero_point: see `quantize`.
        axis: see `quantize`.
        block_size: see `quantize`.
        dtype: the integers, as for `quantize`.
        out: see `quantize`; float32.

    Returns:
        A float32 array in the shape of `x`.

    Raises:
        ValueError: see `quantize`.
    """
    _, values, params = _to_integers(x, scale, zero_point, dtype, axis, block_size)
    result = _empty(values, "float32") if out is None else out
    if not _rustq.fake_quantize(_bits(values), params, result):
        raise _unfit(result, values, "float32")
    return result


def quantization_error(
    x: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike = 0,
    *,
    axis: int | None = None,
    block_size: int = 0,
    dtype: str = "int8",
) -> float:
    """Sum of `(fake_quantize(x) - x) ** 2`, in float64; the same however many threads add it up.

    Args:
        x: see `quantize`.
        scale: see `quantize`.
        zero_point: see `quantize`.
        axis: see `quantize`.
        block_size: see `quantize`.
        dtype: the integers, as for `quantize`.

    Returns:
        The sum over all elements; not finite if `x` holds a value that is not.

    Raises:
        ValueError: see `quantize`.
    """
    _, values, params = _to_integers(x, scale, zero_point, dtype, axis, block_size)
    return _rustq.quantization_error(_bits(values), params)


def absmax_quantize(
    x: ArrayLike, axis: int | None = None, *, out: Array | None = None
) -> tuple[Array, Array]:
    """Symmetric int8 integers, -127...127, that use the whole range of each channel.

    Args:
        x: finite real values of any shape.
        axis: the channel axis; `None` for one scale.
        out: where to write the integers, as for `quantize`.

    Returns:
        The integers, in the shape of `x`, and float32 scales: `max(abs(x)) / 127` of each channel,
        1 for a channel of zeros; never subnormal. A vector, or with no axis an array of no
        dimension.

    Raises:
        ValueError: the array does not hold real numbers, or has no such axis, or an unfit `out`.
    """
    values = _reals(x)
    length, _, inner = _place(values.shape, axis, 0)
    result = _empty(values, "int8") if out is None else out
    channels, inner = (length, inner) if axis is not None else (1, values.size)
    scale = _rustq.absmax_quantize(_bits(values), channels, inner, result)
    if scale is None:
        raise _unfit(result, values, "int8")
    return result, scale if axis is not None else scale.reshape(())


def min_max(x: ArrayLike) -> tuple[float, float]:
    """Smallest and largest value of an array, NaNs left out.

    Args:
        x: real values of any shape.

    Returns:
        Two numbers that are float32 values; -0 is given as 0.

    Raises:
        ValueError: the array is empty, or holds nothing but NaN.
    """
    found = _rustq.min_max(_bits(_reals(x)))
    if found is None:
        raise ValueError("min_max of an array without numbers")
    return found


def histogram(x: ArrayLike) -> tuple[Array, Array]:
    """Counts of values in bins that need no range in advance.

    A bin holds the float32 values of one sign, exponent and first seven bits of the mantissa, so
    that it is at most 1/128 of its values wide, and includes its edge that is nearer to 0. The bin
    around 0 reaches as far as to the bins of the smallest magnitudes that occur, and at least to
    2**-126. Infinities and NaNs are not counted.

    Args:
        x: real values of any shape.

    Returns:
        As `numpy.histogram`: counts, uint64, of the bins from the first to the last that is not
        empty, and one edge more, float32, ascending. The last edge of all is infinite.

    Raises:
        ValueError: the array holds no finite number.
    """
    found = _rustq.histogram(_bits(_reals(x)))
    if found is None:
        raise ValueError("histogram of an array without finite numbers")
    return found


def pack_int4(q: ArrayLike) -> Array:
    """Bytes that hold two integers of four bits each, the first in the low half, as in ONNX.

    Args:
        q: int8 in -8...7 or uint8 in 0...15 of any shape, in C order. A missing last one is 0.

    Returns:
        A vector of `ceil(q.size / 2)` uint8.

    Raises:
        ValueError: another dtype, or integers that do not fit.
    """
    array = np.asarray(q)
    name = {"int8": "int4", "uint8": "uint4"}.get(_name(array.dtype), _name(array.dtype))
    if name not in _STORED:
        raise ValueError(f"pack_int4 takes int8 or uint8, not {array.dtype.name}")
    values = _contiguous(array, np.dtype(_STORED[name]))
    lowest, highest = _LIMITS[name]
    if values.size and (values.min() < lowest or values.max() > highest):
        raise ValueError(f"{name} holds {lowest}...{highest}")
    packed = np.empty((values.size + 1) // 2, np.uint8)
    _rustq.pack_int4(values.view(np.uint8), packed)
    return packed


def unpack_int4(packed: ArrayLike, shape: int | tuple[int, ...], dtype: str = "int4") -> Array:
    """The integers that `pack_int4` packed, one in a byte.

    Args:
        packed: uint8 of any shape, in C order.
        shape: the shape of the result, with `2 * packed.size` elements or one less.
        dtype: `"int4"` for int8 in -8...7, `"uint4"` for uint8 in 0...15.

    Returns:
        An int8 or uint8 array of this shape.

    Raises:
        ValueError: an unknown dtype, or a shape that does not fit.
    """
    values = np.asarray(packed)
    if dtype not in _STORED or values.dtype != np.uint8:
        raise ValueError("unpack_int4 takes uint8 and makes int4 or uint4")
    size = math.prod(shape) if isinstance(shape, tuple) else shape
    if (size + 1) // 2 != values.size:
        raise ValueError(f"{values.size} bytes do not hold the integers of shape {shape}")
    out = np.empty(shape, _STORED[dtype])
    _rustq.unpack_int4(_contiguous(values, np.uint8), dtype == "int4", out.view(np.uint8))
    return out


def _name(dtype: Any) -> str:
    return _NAMES.get(dtype) or str(dtype.name)


def _known(dtype: str) -> str:
    name = dtype if dtype in _LIMITS else np.dtype(dtype).name
    if name not in _LIMITS:
        raise ValueError(f"unknown dtype {name!r}: choose one of {', '.join(_LIMITS)}")
    return name


def _contiguous(x: ArrayLike, dtype: Any) -> Array:
    if type(x) is np.ndarray and x.dtype == dtype and x.flags.carray:
        return x
    # ascontiguousarray would give a scalar a dimension.
    return np.require(x, dtype=dtype, requirements=("C", "A"))


def _reals(x: ArrayLike) -> Array:
    array = x if type(x) is np.ndarray else np.asarray(x)
    if array.dtype == _FLOAT32:
        return array if array.flags.carray else _contiguous(array, _FLOAT32)
    if array.dtype.kind in "cOSUmM":
        raise ValueError(f"expected an array of real numbers, found {array.dtype.name}")
    half = array.dtype.name in _HALVES
    return _contiguous(array, array.dtype.newbyteorder("=") if half else _FLOAT32)


def _bits(values: Array) -> Array | tuple[str, Array]:
    """An array as the native module takes it: one of a float type of 16 bits with its name."""
    if values.dtype == _FLOAT32:
        return values
    name = _name(values.dtype)
    return (name, values.view(np.uint16)) if name in _HALVES else values


def _bits_for(out: Any, dtype: str) -> Any:
    """An array for results of a float type, the same way; `None` if it is no array of that type."""
    if dtype == "float32":
        return out
    fits = isinstance(out, np.ndarray) and out.dtype == _dtype(dtype)
    return _bits(out) if fits else None


def _empty(source: Array, dtype: str) -> Array:
    """A new array of the shape of another."""
    return np.empty(source.shape, _dtype(dtype))


def _dtype(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes  # noqa: F401, makes numpy know the name

    return _DTYPES.get(name) or np.dtype(name)


def _unfit(out: Any, source: Array, dtype: str) -> ValueError:
    """Why results cannot go into an array, or into what is none."""
    if not isinstance(out, np.ndarray) or not (
        # carray: C-contiguous, aligned and writable.
        out.shape == source.shape and out.dtype == _dtype(dtype) and out.flags.carray
    ):
        return ValueError(
            f"out must be a writable C-contiguous array of {dtype} in the shape {source.shape}"
        )
    if np.may_share_memory(out, source):
        return ValueError("out must not share memory with the input")
    return ValueError("out is in use by another thread")


def _place(shape: tuple[int, ...], axis: int | None, block_size: int) -> tuple[int, int, int]:
    """Length of the axis, block size, product of the axes behind it; length 0 for no axis."""
    if axis is None:
        if block_size:
            raise ValueError("block_size needs an axis")
        return 0, 0, 1
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis {axis} is outside of an array with {len(shape)} dimensions")
    if block_size < 0:
        raise ValueError(f"block_size must be positive, or 0 for none, not {block_size}")
    axis %= len(shape)
    return shape[axis], block_size, math.prod(shape[axis + 1 :])


def _to_integers(
    x: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike,
    dtype: str,
    axis: int | None,
    block_size: int,
) -> tuple[str, Array, _rustq.KernelParams]:
    """The name of the integers that real values become, the values, and the checked parameters."""
    name = _known(dtype)
    values = _reals(x)
    return name, values, _parameters(scale, zero_point, name, values.shape, axis, block_size)


def _parameters(
    scale: ArrayLike,
    zero_point: ArrayLike,
    dtype: str,
    shape: tuple[int, ...],
    axis: int | None,
    block_size: int,
) -> _rustq.KernelParams:
    if (
        axis is None
        and not block_size
        and isinstance(scale, _REAL_NUMBER)
        and isinstance(zero_point, _WHOLE_NUMBER)
    ):
        return _for_all(scale, zero_point, dtype)
    place = _place(shape, axis, block_size)
    scales, zeros = _each(scale, zero_point, dtype)
    if axis is not None and block_size:
        blocks = list(shape)
        blocks[axis] = -(-blocks[axis] // block_size)
        if scales.shape != tuple(blocks):
            raise ValueError(f"expected scales in the shape {tuple(blocks)}, found {scales.shape}")
    elif scales.size != (channels := 1 if axis is None else place[0]):
        raise ValueError(f"expected {channels} scales, found {scales.size}")
    if scales.ndim != 1 and not block_size:
        raise ValueError("scale must be a number, or a vector with an axis")
    return _rustq.KernelParams(scales.ravel(), zeros.ravel(), _LIMITS[dtype], place)


def _each(scale: ArrayLike, zero_point: ArrayLike, dtype: str) -> tuple[Array, Array]:
    """Scales, float32, and their zero points, int32, in one shape of at least one dimension."""
    scales = np.atleast_1d(_contiguous(scale, _FLOAT32))
    if not (np.isfinite(scales) & (scales > 0)).all():
        raise ValueError("scale must be positive and finite: a number, or a vector with an axis")
    zeros = np.broadcast_to(np.asarray(zero_point), scales.shape)
    lowest, highest = _LIMITS[dtype]
    if zeros.dtype.kind not in "iu" or ((zeros < lowest) | (zeros > highest)).any():
        raise ValueError(f"zero_point must be integers in {lowest}...{highest} for {dtype}")
    return scales, np.ascontiguousarray(zeros, _INT32)


# The checks take longer than thousands of elements, and the same pair comes again and again.
@lru_cache(maxsize=256, typed=True)
def _for_all(scale: ArrayLike, zero_point: ArrayLike, dtype: str) -> _rustq.KernelParams:
    """The parameters of elements that share one pair of numbers."""
    return _rustq.KernelParams(
        *_each(scale, zero_point, dtype), _LIMITS[dtype], _place((), None, 0)
    )
