"""The kernels beyond formulas: small and blocked integers, 16-bit floats, histograms, outputs."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from builders import Array, Net, run
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from rustq import kernels

LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}
FLOATS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def normal(*shape: int, scale: float = 1.0) -> Array:
    return (np.random.default_rng(0).normal(size=shape) * scale).astype(np.float32)


def oracle(x: Array, scale: Array, zero: Array, limits: tuple[int, int]) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.rint(np.asarray(x, np.float32) / scale).astype(np.float64) + zero
    return np.clip(rounded, *limits)


# ---------------------------------------------------------------------- blocks
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(("axis", "block"), [(0, 2), (1, 3), (2, 4), (-1, 5), (1, 8), (2, 1)])
def test_blocks_are_onnx_bit_by_bit(dtype: str, axis: int, block: int) -> None:
    x = normal(6, 8, 20, scale=50)
    shape = list(x.shape)
    shape[axis] = -(-shape[axis] // block)
    random = np.random.default_rng(1)
    scale = random.uniform(0.01, 2, shape).astype(np.float32)
    zero = random.integers(*LIMITS[dtype], shape, endpoint=True)
    each = [np.repeat(p, block, axis).take(range(x.shape[axis]), axis) for p in (scale, zero)]
    found = kernels.quantize(x, scale, zero, axis=axis, block_size=block, dtype=dtype)
    np.testing.assert_array_equal(found, oracle(x, *each, LIMITS[dtype]))
    back = kernels.dequantize(found, scale, zero, axis=axis, block_size=block)
    np.testing.assert_array_equal(back, (found - each[1]).astype(np.float32) * each[0])
    again = kernels.fake_quantize(x, scale, zero, axis=axis, block_size=block, dtype=dtype)
    np.testing.assert_array_equal(again, back)
    if x.shape[axis] % block == 0:
        net = Net()
        net.input("x", *x.shape)
        s, z = net.constant(scale), net.constant(zero, dtype=np.dtype(dtype))
        q = net.op("QuantizeLinear", "x", s, z, axis=axis, block_size=block)
        y = net.op("DequantizeLinear", q, s, z, axis=axis, block_size=block)
        quantized, real = run(net.model(q, y, opset=21), {"x": x})
        np.testing.assert_array_equal(found, quantized)
        np.testing.assert_array_equal(back, real)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_size": 2}, "needs an axis"),
        ({"block_size": -2, "axis": 0}, "block_size"),
        ({"block_size": 2, "axis": 1}, r"shape \(4, 3\)"),
    ],
)
def test_unfit_blocks(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.quantize(normal(4, 6), np.ones((4, 4)), **arguments)


# ---------------------------------------------------------------------- four bits
@pytest.mark.parametrize("dtype", ["int4", "uint4"])
@pytest.mark.parametrize("n", [0, 1, 2, 7, 1000, 150_001])
def test_four_bits(dtype: str, n: int) -> None:
    x, zero = normal(n, scale=3), 1
    limits = (-8, 7) if dtype == "int4" else (0, 15)
    q = kernels.quantize(x, 0.7, zero, dtype=dtype)
    np.testing.assert_array_equal(q, oracle(x, np.float32(0.7), zero, limits))
    packed = kernels.pack_int4(q)
    np.testing.assert_array_equal(kernels.unpack_int4(packed, q.shape, dtype), q)
    tensor = helper.make_tensor(
        "q", getattr(TensorProto, dtype.upper()), q.shape, packed.tobytes(), raw=True
    )
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(q.dtype), q)
    as_dtype = q.astype(getattr(ml_dtypes, dtype))
    real = kernels.dequantize(as_dtype, 0.7, zero)
    np.testing.assert_array_equal(real, kernels.dequantize(q, 0.7, zero))


@pytest.mark.parametrize("dtype", ["int4", "uint4"])
def test_four_bits_in_onnx_runtime(dtype: str) -> None:
    x = normal(64, scale=3)
    net = Net()
    net.input("x", 64)
    s, z = net.constant(0.7), net.constant(1, dtype=getattr(ml_dtypes, dtype))
    y = net.op("DequantizeLinear", net.op("QuantizeLinear", "x", s, z), s, z)
    (real,) = run(net.model(y, opset=21), {"x": x})
    np.testing.assert_array_equal(kernels.fake_quantize(x, 0.7, 1, dtype=dtype), real)


def test_what_does_not_fit_in_four_bits() -> None:
    for bad in (np.int8([8]), np.uint8([16]), np.int16([0]), np.float32([0])):
        with pytest.raises(ValueError, match=r"holds|int8 or uint8"):
            kernels.pack_int4(bad)
    with pytest.raises(ValueError, match="do not hold"):
        kernels.unpack_int4(np.zeros(3, np.uint8), 7)


# ---------------------------------------------------------------------- 16-bit floats
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_every_half_is_the_float32_of_its_value(kind: str) -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(FLOATS[kind])
    with np.errstate(invalid="ignore"):
        wide = x.astype(np.float32)
    for scale in (np.float32(0.013), np.float32(7.0)):
        for dtype in LIMITS:
            found = kernels.quantize(x, scale, 3, dtype=dtype)
            np.testing.assert_array_equal(found, kernels.quantize(wide, scale, 3, dtype=dtype))
    found, expected = kernels.fake_quantize(x, 0.3), kernels.fake_quantize(wide, 0.3)
    np.testing.assert_array_equal(found, expected)
    assert kernels.min_max(x) == kernels.min_max(wide)
    finite = x[np.isfinite(wide)]
    for a, b in zip(kernels.histogram(x), kernels.histogram(wide), strict=True):
        np.testing.assert_array_equal(a, b)
    assert kernels.quantization_error(finite, 0.3) == kernels.quantization_error(
        finite.astype(np.float32), 0.3
    )


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_float16_is_onnx_runtime_bit_by_bit(dtype: str) -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    x = x[np.isfinite(x)]
    scale, zero = np.float16(0.037), 7
    net = Net()
    net.input("x", x.size, dtype=np.float16)
    s, z = net.constant(scale, dtype=np.float16), net.constant(zero, dtype=np.dtype(dtype))
    q = net.op("QuantizeLinear", "x", s, z)
    y = net.op("DequantizeLinear", q, s, z)
    quantized, real = run(net.model(q, y, opset=21), {"x": x})
    found = kernels.quantize(x, scale, zero, dtype=dtype)
    np.testing.assert_array_equal(found, quantized)
    back = kernels.dequantize(found, scale, zero, dtype="float16")
    assert back.dtype == np.float16
    np.testing.assert_array_equal(back, real)


def test_dequantize_rounds_to_16_bits() -> None:
    q = np.arange(-128, 128, dtype=np.int8)
    for kind, dtype in FLOATS.items():
        found = kernels.dequantize(q, 0.3, 5, dtype=kind)
        assert found.dtype == dtype
        expected = (q.astype(np.float32) - 5) * np.float32(0.3)
        np.testing.assert_array_equal(found, expected.astype(dtype))


# ---------------------------------------------------------------------- the reference of ONNX
@pytest.mark.parametrize("dtype", LIMITS)
def test_the_reference_of_onnx(dtype: str) -> None:
    x = normal(40, 9, scale=40)
    scale, zero = np.float32([0.1, 0.5, 3] * 3), np.array([1, 2, 3] * 3, dtype)
    net = Net()
    net.input("x", *x.shape)
    s, z = net.constant(scale), net.constant(zero, dtype=np.dtype(dtype))
    q = net.op("QuantizeLinear", "x", s, z, axis=1)
    y = net.op("DequantizeLinear", q, s, z, axis=1)
    quantized, real = ReferenceEvaluator(net.model(q, y, opset=21)).run(None, {"x": x})
    found = kernels.quantize(x, scale, zero, axis=1, dtype=dtype)
    np.testing.assert_array_equal(found, quantized)
    np.testing.assert_array_equal(kernels.dequantize(found, scale, zero, axis=1), real)


# ---------------------------------------------------------------------- absmax, error
@pytest.mark.parametrize("shape", [(7, 5), (5, 70_001), (70_001, 5), (4, 3, 3, 3), (0, 3), (3, 0)])
def test_absmax(shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    if x.size:
        x[0] = 0
    for axis in range(-1, x.ndim):
        others = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
        largest = np.abs(x).max(axis=others, initial=0).astype(np.float64)
        expected = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        q, scale = kernels.absmax_quantize(x, axis)
        np.testing.assert_array_equal(scale, expected)
        along = expected.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
        np.testing.assert_array_equal(q, oracle(x, along, 0, (-127, 127)))
    q, scale = kernels.absmax_quantize(x)
    assert scale.shape == () and q.shape == shape


def test_error_is_that_of_fake_quantize() -> None:
    x = normal(3, 70_001)
    for scale, axis in ((0.1, None), (np.float32([0.1, 0.2, 0.3]), 0)):
        error = kernels.fake_quantize(x, scale, axis=axis).astype(np.float64) - x
        found = kernels.quantization_error(x, scale, axis=axis)
        assert found == pytest.approx((error**2).sum(), rel=1e-12)
        assert found == kernels.quantization_error(x, scale, axis=axis)


# ---------------------------------------------------------------------- histogram
@pytest.mark.parametrize("n", [1, 100, 20_000, 3_000_000])
@pytest.mark.parametrize("relu", [False, True])
def test_histogram(n: int, relu: bool) -> None:
    x = normal(n)
    x = np.maximum(x, 0) if relu else x
    counts, edges = kernels.histogram(x)
    assert (counts.dtype, edges.dtype) == (np.uint64, np.float32)
    assert counts.size + 1 == edges.size and counts.sum() == n
    assert (np.diff(edges) > 0).all() and counts[0] and counts[-1]
    # A bin below 0 holds its upper edge and not its lower one: numpy's are the other way round.
    expected, _ = np.histogram(-x[x < 0], -edges[edges <= 0][::-1])
    np.testing.assert_array_equal(counts[: expected.size][::-1], expected)
    above = edges[edges > 0]
    if above.size > 1:
        expected, _ = np.histogram(x[x >= above[0]], above)
        np.testing.assert_array_equal(counts[counts.size - expected.size :], expected)


def test_the_bin_around_zero_reaches_to_the_smallest_magnitudes() -> None:
    counts, edges = kernels.histogram(np.float32([-1, 0.25, 1.25, 0]))
    middle = int(np.flatnonzero(edges == 0.25)[0]) - 1
    assert (edges[middle], counts[middle]) == (-1, 1)
    assert (counts[0], counts[-1], counts.sum()) == (1, 1, 4)
    counts, edges = kernels.histogram(np.zeros(3, np.float32))
    assert counts.tolist() == [3] and edges.tolist() == [-(2.0**-126), 2.0**-126]


def test_histogram_of_the_special() -> None:
    counts, edges = kernels.histogram(np.float32([np.nan, np.inf, -np.inf, 0, -0.0, 1e-45, 3e38]))
    assert (int(counts[0]), int(counts[-1]), int(counts.sum())) == (3, 1, 4)
    assert edges[-2] <= np.float32(3e38) < edges[-1]
    for nothing in ([], [np.nan], [np.inf]):
        with pytest.raises(ValueError, match="without finite numbers"):
            kernels.histogram(nothing)


# ---------------------------------------------------------------------- arrays in and out
def test_out_is_written() -> None:
    x = normal(50, 3)
    for kernel, dtype in ((kernels.quantize, np.int8), (kernels.fake_quantize, np.float32)):
        out = np.empty(x.shape, dtype)
        assert kernel(x, 0.1, out=out) is out
        np.testing.assert_array_equal(out, kernel(x, 0.1))
    q = kernels.quantize(x, 0.1)
    real = np.empty(x.shape, np.float32)
    assert kernels.dequantize(q, 0.1, out=real) is real
    np.testing.assert_array_equal(real, kernels.dequantize(q, 0.1))


def unfit_outs() -> dict[str, Array]:
    frozen = np.empty((4, 4), np.float32)
    frozen.flags.writeable = False
    return {
        "shape": np.empty((4, 5), np.float32),
        "type": np.empty((4, 4), np.float64),
        "Fortran order": np.empty((4, 4), np.float32, order="F"),
        "gaps": np.empty((4, 8), np.float32)[:, ::2],
        "unaligned": np.empty(65, np.uint8)[1:].view(np.float32).reshape(4, 4),
        "big endian": np.empty((4, 4), ">f4"),
        "read only": frozen,
    }


@pytest.mark.parametrize("kind", unfit_outs())
def test_unfit_out(kind: str) -> None:
    x = normal(4, 4)
    for kernel, given in ((kernels.fake_quantize, x), (kernels.dequantize, np.int8(x))):
        with pytest.raises(ValueError, match="out must be"):
            kernel(given, 0.1, out=unfit_outs()[kind])
    with pytest.raises(ValueError, match="out must be"):
        kernels.quantize(x, 0.1, out=np.empty((4, 4), np.uint8))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_out_of_another_float_or_none(dtype: str) -> None:
    q = np.zeros((4, 4), np.int8)
    for out in ([0.0] * 16, np.empty((4, 4), np.uint16), np.empty((4, 4), np.float64)):
        with pytest.raises(ValueError, match="out must be"):
            kernels.dequantize(q, 0.1, dtype=dtype, out=out)  # type: ignore[arg-type]
    other = {"float32": np.float16, "float16": np.float32}[dtype]
    with pytest.raises(ValueError, match="out must be"):
        kernels.dequantize(q, 0.1, dtype=dtype, out=np.empty((4, 4), other))


def test_out_that_is_the_input() -> None:
    x = normal(4, 4)
    with pytest.raises(ValueError, match="share memory"):
        kernels.fake_quantize(x, 0.1, out=x)


def test_an_array_past_the_caches() -> None:
    """Large enough for non-temporal stores, to an output that is not aligned to them."""
    n = (16 << 20) + 4099
    q = np.arange(n, dtype=np.uint32).astype(np.uint8)
    out = np.empty(n + 1, np.float32)[1:]
    expected = (q.astype(np.float32) - 9) * np.float32(0.5)
    np.testing.assert_array_equal(kernels.dequantize(q, 0.5, 9, out=out), expected)
    found = kernels.quantize(expected, 0.5, 9, dtype="uint8")
    np.testing.assert_array_equal(found, q)


@pytest.mark.parametrize("shape", [(99, 170_000), (16_500, 1021), (5_600_000, 3)])
@pytest.mark.parametrize("axis", [0, 1])
def test_channels_of_an_array_past_the_caches(shape: tuple[int, int], axis: int) -> None:
    """Rows longer than what is stored together, shorter, and next to nothing; and columns."""
    x = normal(*shape)
    out = np.empty(x.size + 1, np.int8)[1:].reshape(shape)
    found, scales = kernels.absmax_quantize(x, axis, out=out)
    assert found is out
    expected = np.abs(x).max(axis=1 - axis) / np.float32(127)
    np.testing.assert_array_equal(scales, expected)
    np.divide(x, np.expand_dims(expected, 1 - axis), out=x)
    np.rint(x, out=x)
    np.testing.assert_array_equal(found, x)


def test_extremes_and_counts_of_an_array_past_the_caches() -> None:
    x = normal((16 << 20) + 4099)
    assert kernels.min_max(x) == (x.min(), x.max())
    counts, edges = kernels.histogram(x)
    whole = x.view(np.uint32) >> 16
    largest = np.bincount(whole).max()
    assert counts.sum() == x.size
    assert counts.max() >= largest
    middle = np.flatnonzero(edges == 1)[0]
    assert counts[middle] == np.count_nonzero(whole == 0x3F80)


@pytest.mark.parametrize("x", [np.ones(3, complex), np.array(["a"]), np.array([None])])
def test_what_is_not_real(x: Array) -> None:
    with pytest.raises(ValueError, match="real numbers"):
        kernels.quantize(x, 1.0)


def test_other_threads_go_on() -> None:
    """Another thread gets its turn though nobody is ever asked to give up the interpreter lock."""
    x = normal(1 << 22)
    turns, done = 0, threading.Event()

    def count() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            time.sleep(1e-4)

    def went_on() -> bool:
        before = turns
        kernels.quantize(x, 0.1)
        return turns > before

    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)
    other = threading.Thread(target=count)
    try:
        other.start()
        assert any(went_on() for _ in range(200))
    finally:
        sys.setswitchinterval(interval)
        done.set()
        other.join()
