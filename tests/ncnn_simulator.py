"""ncnn's arithmetic in numpy, float and int8, from its files: what ncnn is compared with.

It reads the files by itself, so that a wrong layout is found too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
TYPES = {0: np.float32, 0x01306B47: np.float16, 0x000D4B38: np.int8}


@dataclass
class Layer:
    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    params: dict[int, Any]
    weights: list[Array] = field(default_factory=list)

    def get(self, key: int, default: Any = 0) -> Any:
        return self.params.get(key, default)


def read_param(path: Path) -> list[Layer]:
    magic, counts, *lines = path.read_text().splitlines()
    assert magic == "7767517"
    layers = []
    for line in lines:
        kind, name, n_in, n_out, *words = line.split()
        split = int(n_in) + int(n_out)
        params: dict[int, Any] = {}
        for word in words[split:]:
            key, value = word.split("=")
            if int(key) <= -23300:
                length, *values = value.split(",")
                assert int(length) == len(values)
                params[-23300 - int(key)] = [_number(v) for v in values]
            else:
                params[int(key)] = _number(value)
        layers.append(Layer(kind, name, words[: int(n_in)], words[int(n_in) : split], params))
    blobs = {blob for layer in layers for blob in (*layer.inputs, *layer.outputs)}
    assert counts.split() == [str(len(layers)), str(len(blobs))]
    return layers


def _number(text: str) -> float | int:
    if "." in text or "e" in text:
        assert re.fullmatch(r"-?\d\.\d{8}e[+-]\d\d", text), text
        return float(text)
    return int(text)


class _Reader:
    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        self.at = 0

    def raw(self, count: int, dtype: Any = np.float32) -> Array:
        size = count * np.dtype(dtype).itemsize
        assert self.at + size <= len(self.content)
        values = np.frombuffer(self.content, dtype, count, self.at)
        self.at += -(-size // 4) * 4
        return values

    def tagged(self, count: int) -> Array:
        return self.raw(count, TYPES[int(self.raw(1, np.uint32)[0])])


def load(path: Path) -> list[Layer]:
    """The layers with their weights. The `.bin` file must hold nothing else."""
    layers, reader = read_param(path), _Reader(path.with_suffix(".bin"))
    for layer in layers:
        layer.weights = list(_weights(layer, reader))
    assert reader.at == len(reader.content)
    return layers


def _weights(layer: Layer, reader: _Reader) -> Any:
    get = layer.get
    match layer.kind:
        case "Convolution" | "ConvolutionDepthWise":
            yield reader.tagged(get(6))
            yield reader.raw(get(0)) if get(5) else np.zeros(get(0), np.float32)
            if get(8):
                yield reader.raw(get(7) if layer.kind == "ConvolutionDepthWise" else get(0))
                yield reader.raw(1)
            if get(8) > 100:
                yield reader.raw(1)
        case "InnerProduct":
            yield reader.tagged(get(2))
            yield reader.raw(get(0)) if get(1) else np.zeros(get(0), np.float32)
            if get(8):
                yield reader.raw(get(0))
                yield reader.raw(1)
        case "LSTM" | "GRU":
            gates = 4 if layer.kind == "LSTM" else 3
            directions = 2 if get(2) == 2 else 1
            yield reader.tagged(get(1))
            yield reader.tagged(directions * 4 * get(0))
            yield reader.tagged(directions * gates * get(0) ** 2)
            if get(8):
                yield reader.raw(directions * gates * get(0))
                yield reader.raw(directions * gates * get(0))
        case "Embed":
            yield reader.tagged(get(3))
            if get(18):
                yield reader.raw(1)
        case "MemoryData":
            yield reader.raw(int(np.prod([get(key, 1) for key in (0, 1, 11, 2)])))


def quantize(x: Array, scale: Array | float) -> Array:
    """Half away from zero, −127…127."""
    scaled = (x * np.float32(scale)).astype(np.float32)
    return np.clip(np.trunc(scaled + np.copysign(np.float32(0.5), scaled)), -127, 127).astype(
        np.int8
    )


def run(layers: list[Layer], feed: dict[str, Array]) -> dict[str, Array]:
    """All blobs. What a convolution hands out as integers stays integers."""
    blobs = dict(feed)
    for layer in layers:
        if layer.kind == "Input":
            continue
        results = COMPUTE[layer.kind](layer, [blobs[name] for name in layer.inputs])
        results = results if isinstance(results, list) else [results]
        blobs.update(zip(layer.outputs, results, strict=True))
    return blobs


def _activated(layer: Layer, y: Array) -> Array:
    params = layer.get(10, [])
    match layer.get(9):
        case 0:
            return y
        case 1:
            return np.maximum(y, 0)
        case 2:
            return np.where(y > 0, y, y * np.float32(params[0]))
        case 3:
            return np.clip(y, np.float32(params[0]), np.float32(params[1]))
        case 4:
            return 1 / (1 + np.exp(-y))
        case 6:
            return y * np.clip(y * np.float32(params[0]) + np.float32(params[1]), 0, 1)
    raise AssertionError(layer)


def _convolution(layer: Layer, inputs: list[Array]) -> Array:
    get, (x,) = layer.get, inputs
    groups = get(7, 1)
    weight, bias, *scales = layer.weights
    weight = weight.reshape(get(0), -1, get(11), get(1))
    if get(8):
        x = x if x.dtype == np.int8 else quantize(x, scales[1][0])
        assert weight.dtype == np.int8
    else:
        weight = weight.astype(np.float32)
    x = np.pad(x, ((0, 0), (get(14), get(16)), (get(4), get(15))))
    windows = np.lib.stride_tricks.sliding_window_view(
        x, ((get(11) - 1) * get(12) + 1, (get(1) - 1) * get(2) + 1), axis=(1, 2)
    )[:, :: get(13), :: get(3), :: get(12), :: get(2)]
    windows = windows.reshape(groups, -1, *windows.shape[1:])
    weight = weight.reshape(groups, get(0) // groups, *weight.shape[1:])
    wide = np.int64 if get(8) else np.float64
    y = np.einsum("gcyxhw,gochw->goyx", windows.astype(wide), weight.astype(wide))
    y = y.reshape(get(0), *y.shape[2:])
    channel = (slice(None), None, None)
    if get(8):
        y = y.astype(np.float32) * (1 / (scales[1][0] * scales[0]))[channel]
    y = _activated(layer, (y + bias[channel]).astype(np.float32))
    return quantize(y, scales[2][0]) if get(8) > 100 else y


def _inner_product(layer: Layer, inputs: list[Array]) -> Array:
    (x,) = inputs
    weight, bias, *scales = layer.weights
    weight = weight.reshape(layer.get(0), -1)
    if layer.get(8):
        sums = quantize(x, scales[1][0]).astype(np.int64) @ weight.astype(np.int64).T
        y = sums.astype(np.float32) * (1 / (scales[1][0] * scales[0]))
    else:
        y = x @ weight.astype(np.float32).T
    return _activated(layer, (y + bias).astype(np.float32))


def _embed(layer: Layer, inputs: list[Array]) -> Array:
    table, *scale = layer.weights
    rows = table.reshape(layer.get(1), -1)[inputs[0]].astype(np.float32)
    return rows / scale[0][0] if scale else rows


def _rowwise(x: Array, weight: Array, scales: Array) -> Array:
    """x · Wᵀ with the rows of x on integers of their own scale."""
    scale = 127 / np.abs(x).max() if np.abs(x).max() else np.float32(1)
    sums = weight.astype(np.int64) @ quantize(x, scale).astype(np.int64)
    return sums / (np.float32(scale) * scales)


def _lstm(layer: Layer, inputs: list[Array]) -> Array:
    (x,), hidden, results = inputs, layer.get(0), []
    for d in range(2 if layer.get(2) == 2 else 1):
        w, b, r, *scales = (
            part.reshape(2 if layer.get(2) == 2 else 1, -1)[d] for part in layer.weights
        )
        w, r, b = w.reshape(4 * hidden, -1), r.reshape(4 * hidden, -1), b.astype(np.float32)
        backwards = layer.get(2) == 1 or d == 1
        h = c = np.zeros(hidden, np.float32)
        rows = []
        for row in x[::-1] if backwards else x:
            if layer.get(8):
                gates = _rowwise(row, w, scales[0]) + _rowwise(h, r, scales[1]) + b
            else:
                gates = w.astype(np.float32) @ row + r.astype(np.float32) @ h + b
            i, f, o, g = gates.reshape(4, hidden)
            sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            rows.append(h)
        results.append(np.stack(rows[::-1] if backwards else rows))
    return np.concatenate(results, axis=1).astype(np.float32)


def _reshape(layer: Layer, inputs: list[Array]) -> Array:
    return inputs[0].reshape([layer.get(key) for key in (2, 11, 1, 0) if key in layer.params])


def _slice(layer: Layer, inputs: list[Array]) -> list[Array]:
    return np.split(inputs[0], len(layer.outputs), axis=layer.get(1))


def _pooling(layer: Layer, inputs: list[Array]) -> Array:
    assert layer.get(7) == 1 and layer.get(0) == 1
    return inputs[0].mean(axis=(1, 2), keepdims=True, dtype=np.float32)


COMPUTE: dict[str, Any] = {
    "Convolution": _convolution,
    "ConvolutionDepthWise": _convolution,
    "InnerProduct": _inner_product,
    "Embed": _embed,
    "LSTM": _lstm,
    "Reshape": _reshape,
    "Slice": _slice,
    "Pooling": _pooling,
    "Split": lambda layer, inputs: inputs * len(layer.outputs),
    "Concat": lambda layer, inputs: np.concatenate(inputs, axis=layer.get(0)),
    "BinaryOp": lambda layer, inputs: {0: np.add, 2: np.multiply}[layer.get(0)](*inputs),
    "Sigmoid": lambda layer, inputs: 1 / (1 + np.exp(-inputs[0])),
    "Swish": lambda layer, inputs: inputs[0] / (1 + np.exp(-inputs[0])),
}
