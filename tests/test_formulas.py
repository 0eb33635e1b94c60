"""The arithmetic of quantization, against ONNX Runtime and a numpy oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import rustq
from builders import Array, Net, random_feeds, run
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from rustq import kernels

LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}
TINY = float(np.finfo(np.float32).smallest_subnormal)
HUGE = float(np.finfo(np.float32).max)
INF = float("inf")


def oracle(x: Array, scale: Array, zero: Array, dtype: str) -> Array:
    """saturate(round_half_even(x / scale) + zero_point), the division in float32."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        rounded = np.rint(np.asarray(x, np.float32) / scale).astype(np.float64) + zero
    return np.clip(rounded, *LIMITS[dtype]).astype(dtype)


def in_onnx_runtime(
    x: Array, scale: Array, zero: Array, dtype: str, axis: int
) -> tuple[Array, Array]:
    """QuantizeLinear and DequantizeLinear of operator set 21, not optimized."""
    net = Net()
    net.input("x", *x.shape)
    s, z = net.constant(scale), net.constant(zero, dtype=np.dtype(dtype))
    q = net.op("QuantizeLinear", "x", s, z, axis=axis)
    y = net.op("DequantizeLinear", q, s, z, axis=axis)
    model = net.model(q, y, opset=21)
    quantized, real = run(model, {"x": x})
    return quantized, real


def hard_values(scale: float) -> Array:
    """Rounding boundaries and their neighbours, the ends of the types, denormals and infinities."""
    boundaries = (np.arange(-300, 300, dtype=np.float32) + np.float32(0.5)) * np.float32(scale)
    around = [np.nextafter(boundaries, np.float32(end)) for end in (-INF, INF)]
    special = [0.0, -0.0, TINY, -TINY, 1e-40, 1e-38, HUGE, -HUGE, INF, -INF, 32768.5, 65535.5, 1e9]
    ends = np.array(special, np.float32)
    return np.concatenate([boundaries, *around, ends, ends * np.float32(scale)])


CASES = [
    (dtype, scale, zero)
    for dtype, zeros in {
        "int8": (0, -128, 127, 5),
        "uint8": (0, 255, 128, 3),
        "int16": (0, -32768, 77),
        "uint16": (0, 65535, 32768),
    }.items()
    for zero in zeros
    for scale in (1.0, 0.1, 1 / 3, 0.00392157, 1e-38, 1e-42, 3e38)
]


@pytest.mark.parametrize(("dtype", "scale", "zero"), CASES)
def test_per_tensor_is_onnx_bit_by_bit(dtype: str, scale: float, zero: int) -> None:
    with np.errstate(over="ignore", under="ignore"):
        x = hard_values(scale)
    quantized, real = in_onnx_runtime(x, np.float32(scale), np.array(zero), dtype, 0)
    found = kernels.quantize(x, scale, zero, dtype=dtype)
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, oracle(x, np.float32(scale), zero, dtype))
    np.testing.assert_array_equal(found, quantized)
    back = kernels.dequantize(found, scale, zero)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, real)
    np.testing.assert_array_equal(kernels.fake_quantize(x, scale, zero, dtype=dtype), back)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -3])
def test_per_axis_is_onnx_bit_by_bit(dtype: str, axis: int) -> None:
    random = np.random.default_rng(0)
    shape = (3, 5, 4, 7)
    x = (random.normal(size=shape) * 100).astype(np.float32)
    scale = random.uniform(0.01, 2, shape[axis]).astype(np.float32)
    zero = random.integers(*LIMITS[dtype], shape[axis], endpoint=True)
    quantized, real = in_onnx_runtime(x, scale, zero, dtype, axis)
    found = kernels.quantize(x, scale, zero, axis=axis, dtype=dtype)
    np.testing.assert_array_equal(found, quantized)
    np.testing.assert_array_equal(kernels.dequantize(found, scale, zero, axis=axis), real)
    np.testing.assert_array_equal(
        kernels.fake_quantize(x, scale, zero, axis=axis, dtype=dtype), real
    )


def test_one_zero_point_serves_every_channel() -> None:
    x = np.arange(-6, 6, dtype=np.float32).reshape(3, 4)
    each = kernels.quantize(x, [1.0, 0.5, 2.0], [7, 7, 7], axis=0)
    np.testing.assert_array_equal(kernels.quantize(x, [1.0, 0.5, 2.0], 7, axis=0), each)


@given(
    x=npst.arrays(np.float32, st.integers(0, 200), elements=st.floats(width=32, allow_nan=False)),
    scale=st.floats(2**-20, 2**20, width=32),
    zero=st.integers(0, 255),
    signed=st.booleans(),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_values(x: Array, scale: float, zero: int, signed: bool) -> None:
    dtype, zero = ("int8", zero - 128) if signed else ("uint8", zero)
    found = kernels.quantize(x, scale, zero, dtype=dtype)
    np.testing.assert_array_equal(found, oracle(x, np.float32(scale), zero, dtype))


@pytest.mark.parametrize("dtype", LIMITS)
def test_nan_becomes_the_smallest_integer(dtype: str) -> None:
    x = np.array([np.nan, 1.0, -np.nan], np.float32)
    lowest = LIMITS[dtype][0]
    assert kernels.quantize(x, 1.0, dtype=dtype).tolist() == [lowest, 1, lowest]
    assert kernels.fake_quantize(x, 1.0, dtype=dtype).tolist() == [lowest, 1, lowest]


# ---------------------------------------------------------------------- arrays of every kind
def layouts() -> dict[str, Array]:
    x = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32) * 50
    return {
        "C order": x,
        "Fortran order": np.asfortranarray(x),
        "transposed": x.transpose(2, 0, 1),
        "every other": x[::2, ::-1, 1:],
        "unaligned": np.frombuffer(b"0" + x.tobytes(), np.uint8)[1:]
        .view(np.float32)
        .reshape(x.shape),
        "big endian": x.astype(">f4"),
        "float64": x.astype(np.float64),
        "float16": x.astype(np.float16),
        "integers": x.astype(np.int64),
        "read only": np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
        "0-d": x[0, 0, 0],
        "empty": x[:0],
        "empty inside": x[:, :0],
        "broadcast": np.broadcast_to(x[:1], x.shape),
    }


@pytest.mark.parametrize(("kind", "x"), layouts().items(), ids=list(layouts()))
def test_array_layouts(kind: str, x: Array) -> None:
    plain = np.array(x, np.float32, order="C")
    found = kernels.quantize(x, 0.5, 3)
    assert found.shape == np.shape(x)
    np.testing.assert_array_equal(found, oracle(plain, np.float32(0.5), 3, "int8"))
    np.testing.assert_array_equal(kernels.fake_quantize(x, 0.5, 3), (found - np.float32(3)) * 0.5)
    np.testing.assert_array_equal(kernels.dequantize(found, 0.5, 3), (found - np.float32(3)) * 0.5)
    if x.size:
        assert kernels.min_max(x) == (plain.min(), plain.max())
    if x.ndim == 3:
        scale = np.linspace(0.1, 1, x.shape[1], dtype=np.float32)
        found = kernels.quantize(x, scale, axis=1)
        np.testing.assert_array_equal(found, oracle(plain, scale[:, None], 0, "int8"))


def outcome(kernel: Callable[[Array], Any], x: Array) -> list[Any]:
    """Dtypes, shapes and values of what a kernel gives, or its error."""
    try:
        found = kernel(x)
    except ValueError as error:
        return [str(error)]
    parts = [np.asarray(part) for part in (found if isinstance(found, tuple) else (found,))]
    return [(part.dtype, part.shape, part.tolist()) for part in parts]


def along(kernel: Callable[..., Any], x: Array) -> Any:
    """With a scale for each place of the last axis, or for all."""
    scale = np.linspace(0.1, 1, x.shape[-1], dtype=np.float32) if x.ndim else 0.1
    return kernel(x, scale, axis=-1 if x.ndim else None)


REALS = {
    "quantize": lambda x: kernels.quantize(x, 0.5, 3),
    "quantize along": lambda x: along(kernels.quantize, x),
    "fake_quantize": lambda x: kernels.fake_quantize(x, 0.5, 3),
    "fake_quantize along": lambda x: along(kernels.fake_quantize, x),
    "quantization_error": lambda x: kernels.quantization_error(x, 0.5, 3),
    "quantization_error along": lambda x: along(kernels.quantization_error, x),
    "absmax_quantize": kernels.absmax_quantize,
    "absmax_quantize, rows": lambda x: kernels.absmax_quantize(x, 0 if x.ndim else None),
    "absmax_quantize, columns": lambda x: kernels.absmax_quantize(x, -1 if x.ndim else None),
    "min_max": kernels.min_max,
    "histogram": kernels.histogram,
}


@pytest.mark.parametrize(("kind", "x"), layouts().items(), ids=list(layouts()))
@pytest.mark.parametrize("name", REALS)
def test_reals_in_any_layout(name: str, kind: str, x: Array) -> None:
    plain = np.array(x, np.float32, order="C")
    assert outcome(REALS[name], x) == outcome(REALS[name], plain)


INTEGERS = {
    "dequantize": lambda q: kernels.dequantize(q, 0.5, 1),
    "dequantize along": lambda q: along(kernels.dequantize, q),
    "pack_int4": lambda q: kernels.pack_int4(q & 7),
    "unpack_int4": lambda q: kernels.unpack_int4(q.view(np.uint8), 2 * q.size),
}


def integer_layouts(dtype: str) -> dict[str, Array]:
    q = np.arange(-12, 12).astype(dtype).reshape(4, 6)
    shifted = np.frombuffer(b"0" + q.tobytes(), np.uint8)[1:].view(dtype).reshape(q.shape)
    return {
        "Fortran order": np.asfortranarray(q),
        "transposed": q.T,
        "every other": q[::2, ::-1],
        "unaligned": shifted,
        "big endian": q.astype(np.dtype(dtype).newbyteorder(">")),
        "read only": np.frombuffer(q.tobytes(), dtype).reshape(q.shape),
        "0-d": q[0, 0, ...],
        "empty": q[:0],
        "broadcast": np.broadcast_to(q[:1], q.shape),
    }


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("kind", integer_layouts("int8"))
def test_integers_in_any_layout(name: str, dtype: str, kind: str) -> None:
    if dtype.endswith("16") and "int4" in name:
        pytest.skip("takes bytes")
    q = integer_layouts(dtype)[kind]
    assert outcome(INTEGERS[name], q) == outcome(INTEGERS[name], np.array(q, dtype, order="C"))


def test_lists_and_numbers() -> None:
    assert kernels.quantize([0.4, 1.5, 2.5], 1).tolist() == [0, 2, 2]
    assert kernels.quantize(2.5, 1).tolist() == 2
    assert kernels.dequantize(np.uint8(3), 0.5, 1).tolist() == 1.0
    assert kernels.min_max([3, 1, 2]) == (1.0, 3.0)


def test_large_arrays_are_split_right() -> None:
    x = np.random.default_rng(0).normal(size=(3, 70_001)).astype(np.float32)
    for axis, scale in ((None, np.float32(0.01)), (0, np.float32([[0.01], [0.02], [0.03]]))):
        found = kernels.quantize(x, np.ravel(scale) if axis == 0 else scale, axis=axis)
        np.testing.assert_array_equal(found, oracle(x, scale, 0, "int8"))


# ---------------------------------------------------------------------- min_max
@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([1.0, -2.0], (-2.0, 1.0)),
        ([np.nan, 3.0], (3.0, 3.0)),
        ([-INF, 0.0, INF], (-INF, INF)),
        ([-0.0], (0.0, 0.0)),
        ([TINY, -TINY], (-TINY, TINY)),
        (np.arange(1001), (0.0, 1000.0)),
    ],
)
def test_min_max(x: Any, expected: tuple[float, float]) -> None:
    assert kernels.min_max(np.asarray(x, np.float32)) == expected


@pytest.mark.parametrize("x", [[], np.zeros((0, 3)), [np.nan, np.nan]])
def test_min_max_of_nothing(x: Any) -> None:
    with pytest.raises(ValueError, match="without numbers"):
        kernels.min_max(np.asarray(x, np.float32))


# ---------------------------------------------------------------------- bad arguments
X = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, "positive and finite"),
        ({"scale": -1.0}, "positive and finite"),
        ({"scale": np.nan}, "positive and finite"),
        ({"scale": INF}, "positive and finite"),
        ({"scale": [[1.0]]}, "a vector"),
        ({"scale": [1.0, 1.0]}, "1 scales, found 2"),
        ({"scale": [1.0, 1.0], "axis": 1}, "3 scales, found 2"),
        ({"axis": 2}, "axis 2"),
        ({"axis": -3}, "axis -3"),
        ({"zero_point": 128}, "zero_point"),
        ({"zero_point": -129}, "zero_point"),
        ({"zero_point": 0.5}, "zero_point"),
        ({"zero_point": [1, 2]}, "shape"),
        ({"dtype": "int2"}, "int2"),
        ({"dtype": "int32"}, "int8, uint8"),
        ({"dtype": "uint8", "zero_point": -1}, r"0\.\.\.255"),
    ],
)
@pytest.mark.parametrize("kernel", [kernels.quantize, kernels.fake_quantize])
def test_bad_arguments(kernel: Any, change: dict[str, Any], message: str) -> None:
    arguments = {"scale": 1.0, "zero_point": 0, "axis": None, "dtype": "int8"} | change
    scale, zero = arguments.pop("scale"), arguments.pop("zero_point")
    with pytest.raises((ValueError, TypeError), match=message):
        kernel(X, scale, zero, **arguments)


@pytest.mark.parametrize("q", [X, X.astype(np.int32), X.astype(bool)])
def test_dequantize_takes_small_integers(q: Array) -> None:
    with pytest.raises(ValueError, match="choose one of int8"):
        kernels.dequantize(q, 1.0)


# ---------------------------------------------------------------------- the formulas
RANGES = [
    (-1.0, 1.0),
    (-3.0, 12.7),
    (0.0, 6.0),
    (2.0, 51.0),  # widened to hold 0
    (-255.0, -3.0),
    (-0.1, 1000.0),
    (-1e-30, 1e-30),
    (-1e30, 3e30),
]


def quantized_input(low: float, high: float, scheme: str) -> Any:
    """How a Conv's input is stored that calibration saw to run from low to high."""
    net = Net()
    x = net.input("x", 1, 32, 16, 16)
    model = net.model(net.op("Relu", net.conv(x, 32, 32)))
    (feed,) = random_feeds(model, 1)
    values = feed["x"]
    feed["x"] = (low + (high - low) * (values - values.min()) / np.ptp(values)).astype(np.float32)
    feed["x"].flat[:2] = low, high
    np.clip(feed["x"], low, high, out=feed["x"])
    config = rustq.QuantConfig(method="minmax")
    result = rustq.quantize(model, [feed], scheme=scheme, config=config)
    (layer,) = (layer for layer in result.report.layers if layer.op_type == "Conv")
    assert layer.quantized, layer.reason
    return next(tensor for tensor in layer.inputs if tensor.name == "x")


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_symmetric_formula(low: float, high: float) -> None:
    tensor = quantized_input(low, high, "sym")
    absmax = max(abs(np.float32(low)), abs(np.float32(high)))
    assert (tensor.dtype, tensor.zero_point) == ("int8", (0,))
    assert np.float32(tensor.scale[0]) == np.float32(np.float64(absmax) / 127)


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_asymmetric_formula(low: float, high: float) -> None:
    tensor = quantized_input(low, high, "asym")
    least, most = min(np.float64(np.float32(low)), 0), max(np.float64(np.float32(high)), 0)
    scale = np.float32((most - least) / 255)
    assert tensor.dtype == "uint8"
    assert np.float32(tensor.scale[0]) == scale
    assert tensor.zero_point == (int(np.rint(-least / np.float64(scale))),)
    assert 0 <= tensor.zero_point[0] <= 255


def test_the_int8_offset_form_is_the_same_map() -> None:
    """scale * (q - offset) on int8 and on uint8 differ by 128 in q and in offset alone."""
    x = np.linspace(-5, 9, 1001, dtype=np.float32)
    scale, zero = np.float32(14 / 255), 91
    unsigned = kernels.quantize(x, scale, zero, dtype="uint8")
    signed = kernels.quantize(x, scale, zero - 128, dtype="int8")
    np.testing.assert_array_equal(unsigned.astype(int) - 128, signed)
    np.testing.assert_array_equal(
        kernels.dequantize(unsigned, scale, zero), kernels.dequantize(signed, scale, zero - 128)
    )
