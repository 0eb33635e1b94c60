"""What other tools have for the work of `rustq.kernels`: name -> function without arguments.

Each writes into memory that is already there if it can. torch is a peer where it is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime

try:
    import torch
except ImportError:
    torch = None

Peers = dict[str, Callable[[], object]]
Array = np.ndarray[Any, Any]
BINS = 2048


def node(kind: str, x: Array, out: Array, scale: Array, zero: Array, axis: int) -> Any:
    """QuantizeLinear or DequantizeLinear in ONNX Runtime, one thread, from and to these arrays."""
    helper = onnx.helper
    types = [helper.np_dtype_to_tensor_dtype(array.dtype) for array in (x, out)]
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", "scale", "zero"], ["y"], axis=axis)],
        kind,
        [helper.make_tensor_value_info("x", types[0], x.shape)],
        [helper.make_tensor_value_info("y", types[1], out.shape)],
        [onnx.numpy_helper.from_array(scale, "scale"), onnx.numpy_helper.from_array(zero, "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, x.dtype, x.shape, x.ctypes.data)
    binding.bind_output("y", "cpu", 0, out.dtype, out.shape, out.ctypes.data)
    # The binding knows the arrays by their address alone: they are arguments so that they live on.
    return lambda arrays=(x, out): session.run_with_iobinding(binding)


def quantize(x: Array, scale: float, zero: int, out: Array) -> Peers:
    step, buffer = np.float32(scale), np.empty_like(x)

    def by_numpy() -> None:
        np.divide(x, step, out=buffer)
        np.rint(buffer, out=buffer)
        np.add(buffer, np.float32(zero), out=buffer)
        np.clip(buffer, np.float32(-128), np.float32(127), out=buffer)
        np.copyto(out, buffer, casting="unsafe")

    zeros = np.asarray(zero, np.int8)
    peers: Peers = {
        "numpy": by_numpy,
        "onnxruntime": node("QuantizeLinear", x, np.empty_like(out), np.asarray(step), zeros, 1),
    }
    if torch:
        tensor = torch.from_numpy(x)
        peers["torch"] = lambda: torch.quantize_per_tensor(tensor, scale, zero, torch.qint8)
    return peers


def dequantize(q: Array, scale: float, zero: int, out: Array) -> Peers:
    step, zeros = np.float32(scale), np.asarray(zero, np.int8)

    def by_numpy() -> None:
        np.subtract(q, np.float32(zero), out=out)
        np.multiply(out, step, out=out)

    peers: Peers = {
        "numpy": by_numpy,
        "onnxruntime": node("DequantizeLinear", q, np.empty_like(out), np.asarray(step), zeros, 1),
    }
    if torch:
        tensor = torch._make_per_tensor_quantized_tensor(torch.from_numpy(q), scale, zero)
        peers["torch"] = tensor.dequantize
    return peers


def fake_quantize(x: Array, scale: float, zero: int, out: Array) -> Peers:
    step = np.float32(scale)

    def by_numpy() -> None:
        np.divide(x, step, out=out)
        np.rint(out, out=out)
        np.clip(out, np.float32(-128 - zero), np.float32(127 - zero), out=out)
        np.multiply(out, step, out=out)

    peers: Peers = {"numpy": by_numpy}
    if torch:
        tensor = torch.from_numpy(x)
        peers["torch"] = lambda: torch.fake_quantize_per_tensor_affine(
            tensor, scale, zero, -128, 127
        )
    return peers


def min_max(x: Array) -> Peers:
    peers: Peers = {"numpy": lambda: (x.min(), x.max())}
    if torch:
        tensor = torch.from_numpy(x)
        peers["torch"] = lambda: torch.aminmax(tensor)
    return peers


def absmax_quantize(x: Array, axis: int, out: Array) -> Peers:
    """Of a matrix. ONNX Runtime's has the scales given, and so less to do."""
    buffer = np.empty_like(x)

    def scales() -> Array:
        largest = np.maximum(x.max(1 - axis), -x.min(1 - axis))
        return (largest / np.float32(127)).astype(np.float32)

    def by_numpy() -> None:
        np.divide(x, np.expand_dims(scales(), 1 - axis), out=buffer)
        np.rint(buffer, out=buffer)
        np.copyto(out, buffer, casting="unsafe")

    given = scales()
    zeros = np.zeros(given.size, np.int8)
    peers: Peers = {
        "numpy": by_numpy,
        "onnxruntime": node("QuantizeLinear", x, np.empty_like(out), given, zeros, axis),
    }
    if torch:
        tensor, none = torch.from_numpy(x), torch.zeros(given.size)

        def by_torch() -> object:
            low, high = torch.aminmax(tensor, dim=1 - axis)
            each = torch.maximum(high, -low) / 127
            return torch.quantize_per_channel(tensor, each, none, axis, torch.qint8)

        peers["torch"] = by_torch
    return peers


def histogram(x: Array) -> Peers:
    """Linear bins over a range that has to be found first."""
    peers: Peers = {"numpy": lambda: np.histogram(x, BINS)}
    if torch:
        tensor = torch.from_numpy(x)
        peers["torch"] = lambda: torch.histc(tensor, BINS)
    return peers


def quantization_error(x: Array, scale: float, zero: int) -> Peers:
    out = np.empty_like(x)
    fake = fake_quantize(x, scale, zero, out)["numpy"]

    def by_numpy() -> float:
        fake()
        np.subtract(out, x, out=out)
        return float(np.vdot(out, out))

    return {"numpy": by_numpy}


def pack_int4(q: Array) -> Peers:
    bits = q.view(np.uint8)
    return {"numpy": lambda: (bits[::2] & 15) | (bits[1::2] << 4)}


def unpack_int4(packed: Array, out: Array) -> Peers:
    def by_numpy() -> None:
        np.left_shift(packed, 4, out=out.view(np.uint8)[::2])
        out.view(np.uint8)[1::2] = packed
        np.right_shift(out, 4, out=out)

    return {"numpy": by_numpy}
