"""The quantization arithmetic on numpy arrays, bit-exact to ONNX's operators.

`quantize` computes `saturate(round_half_even(x / scale) + zero_point)` and `dequantize`
`(q - zero_point) * scale`, as QuantizeLinear and DequantizeLinear do (ONNX operator set 21).
Infinities saturate; NaN becomes the smallest integer, as in ONNX Runtime.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rustq import _rustq

__all__ = ["dequantize", "fake_quantize", "min_max", "quantize"]

Array = np.ndarray[Any, Any]
_LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}


def quantize(
    x: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike = 0,
    *,
    axis: int | None = None,
    dtype: str = "int8",
) -> Array:
    """Integers for real values.

    Args:
        x: real values of any shape, taken as float32.
        scale: a positive number, or with `axis` one for each channel.
        zero_point: the integer that means 0, or one for each scale.
        axis: the channel axis; `None` for one scale.
        dtype: `"int8"`, `"uint8"`, `"int16"` or `"uint16"`.

    Returns:
        An array of `dtype`, in the shape of `x`.

    Raises:
        ValueError: an unknown dtype, a scale that is not positive and finite, a zero point outside
            the dtype, or a number of scales that does not fit the axis.
    """
    dtype = _known(dtype)
    values = _contiguous(x, np.float32)
    scales, zeros = _parameters(scale, zero_point, dtype)
    return _array(_rustq.quantize(values, scales, zeros, _axis(axis, values), dtype))


def dequantize(
    q: ArrayLike, scale: ArrayLike, zero_point: ArrayLike = 0, *, axis: int | None = None
) -> Array:
    """Real values, float32, that integers stand for.

    Args:
        q: int8, uint8, int16 or uint16 of any shape.
        scale: see `quantize`.
        zero_point: see `quantize`.
        axis: see `quantize`.

    Raises:
        ValueError: see `quantize`.
    """
    array = np.asarray(q)
    values = _contiguous(array, np.dtype(_known(array.dtype.name)))
    scales, zeros = _parameters(scale, zero_point, array.dtype.name)
    return _array(_rustq.dequantize(values, scales, zeros, _axis(axis, values)))


def fake_quantize(
    x: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike = 0,
    *,
    axis: int | None = None,
    dtype: str = "int8",
) -> Array:
    """`dequantize(quantize(x))` in one pass: the nearest float32 values on the integer grid.

    Arguments and errors are those of `quantize`.
    """
    dtype = _known(dtype)
    values = _contiguous(x, np.float32)
    scales, zeros = _parameters(scale, zero_point, dtype)
    return _array(_rustq.fake_quantize(values, scales, zeros, _axis(axis, values), *_LIMITS[dtype]))


def min_max(x: ArrayLike) -> tuple[float, float]:
    """Smallest and largest value of an array, NaNs left out.

    Raises:
        ValueError: the array is empty, or holds nothing but NaN.
    """
    found = _rustq.min_max(_contiguous(x, np.float32))
    if found is None:
        raise ValueError("min_max of an array without numbers")
    return found


def _known(dtype: str) -> str:
    name = np.dtype(dtype).name
    if name not in _LIMITS:
        raise ValueError(f"unknown dtype {name!r}: choose one of {', '.join(_LIMITS)}")
    return name


def _contiguous(x: ArrayLike, dtype: Any) -> Array:
    # ascontiguousarray would give a scalar a dimension.
    return np.require(x, dtype=dtype, requirements=("C", "A"))


def _array(values: Any) -> Array:
    return np.asarray(values)


def _axis(axis: int | None, values: Array) -> int | None:
    if axis is not None and not -values.ndim <= axis < values.ndim:
        raise ValueError(f"axis {axis} is outside of an array with {values.ndim} dimensions")
    return None if axis is None else axis % values.ndim


def _parameters(
    scale: ArrayLike, zero_point: ArrayLike, dtype: str
) -> tuple[list[float], list[int]]:
    scales = np.atleast_1d(np.asarray(scale, np.float32))
    zeros = np.broadcast_to(np.asarray(zero_point), scales.shape)
    if scales.ndim != 1 or not (np.isfinite(scales) & (scales > 0)).all():
        raise ValueError("scale must be positive and finite: a number, or a vector with an axis")
    lowest, highest = _LIMITS[dtype]
    if zeros.dtype.kind not in "iu" or ((zeros < lowest) | (zeros > highest)).any():
        raise ValueError(f"zero_point must be integers in {lowest}...{highest} for {dtype}")
    return scales.tolist(), zeros.astype(np.int64).tolist()
