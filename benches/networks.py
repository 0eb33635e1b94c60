"""Networks of well-known structure with random weights: for what does not depend on training.

    python benches/networks.py FOLDER [NAME …]

ResNet-18 and -50 (He et al. 2016), a ViT-Ti/16 (Dosovitskiy et al. 2021, Touvron et al. 2021),
MobileNetV3-Small (Howard et al. 2019), ShuffleNetV2 x0.5 (Ma et al. 2018), a U-Net (Ronneberger et
al. 2015), a bidirectional LSTM, and a small net of many operators. Convolutions stand for their
folded BatchNormalization.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 17


class Builder:
    """A graph under construction, whose float32 `input` is a square image, or of another shape."""

    def __init__(self, side: int, shape: tuple[int, ...] = ()) -> None:
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        shape = shape or (1, 3, side, side)
        self.inputs = [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, shape)]

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """An initializer."""
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weights(self, *shape: int, fan_in: int) -> str:
        """Normal weights that keep the variance of a ReLU network."""
        return self.constant(self.random.normal(size=shape) * np.sqrt(2 / fan_in))

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output."""
        name = f"{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def conv(self, x: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> str:
        """A padded convolution with bias."""
        weights = self.weights(outputs, inputs, kernel, kernel, fan_in=inputs * kernel**2)
        bias, pads = self.constant(self.random.normal(size=outputs) / 10), [kernel // 2] * 4
        return self.op("Conv", x, weights, bias, strides=[stride] * 2, pads=pads)

    def depthwise(self, x: str, channels: int, kernel: int, stride: int = 1) -> str:
        """The same with each channel by itself."""
        weights = self.weights(channels, 1, kernel, kernel, fan_in=kernel**2)
        bias, pads = self.constant(self.random.normal(size=channels) / 10), [kernel // 2] * 4
        return self.op("Conv", x, weights, bias, strides=[stride] * 2, pads=pads, group=channels)

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        """A MatMul and the Add of its bias."""
        product = self.op("MatMul", x, self.weights(inputs, outputs, fan_in=2 * inputs))
        return self.op("Add", product, self.constant(self.random.normal(size=outputs) / 10))

    def integers(self, *values: int) -> str:
        """A shape, or axes."""
        return self.constant(values, np.int64)

    def model(self, output: str) -> onnx.ModelProto:
        """The checked model."""
        outputs = [onnx.ValueInfoProto(name=output)]
        graph = helper.make_graph(self.nodes, "net", self.inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = 8
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def resnet(blocks: tuple[int, ...], bottleneck: bool) -> onnx.ModelProto:
    """A ResNet for images of 224 × 224."""
    net = Builder(224)
    x = net.op("Relu", net.conv("input", 3, 64, 7, 2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    expansion = 4 if bottleneck else 1
    inputs = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            if bottleneck:
                y = net.op("Relu", net.conv(x, inputs, width, 1))
                y = net.op("Relu", net.conv(y, width, width, 3, stride))
            else:
                y = net.op("Relu", net.conv(x, inputs, width, 3, stride))
            y = net.conv(y, width, width * expansion, 1 if bottleneck else 3)
            if stride > 1 or inputs != width * expansion:
                x = net.conv(x, inputs, width * expansion, 1, stride)
            inputs = width * expansion
            x = net.op("Relu", net.op("Add", y, x))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    weights = net.weights(1000, inputs, fan_in=2 * inputs)
    return net.model(net.op("Gemm", x, weights, net.constant(np.zeros(1000)), transB=1))


def resnet18() -> onnx.ModelProto:
    """Of basic blocks."""
    return resnet((2, 2, 2, 2), bottleneck=False)


def resnet50() -> onnx.ModelProto:
    """Of bottlenecks."""
    return resnet((3, 4, 6, 3), bottleneck=True)


def attention(net: Builder, x: str, width: int, heads: int, tokens: int) -> str:
    """Multi-head self-attention."""

    def split(x: str, perm: list[int]) -> str:
        shape = net.integers(1, tokens, heads, width // heads)
        return net.op("Transpose", net.op("Reshape", x, shape), perm=perm)

    q, v = (split(net.linear(x, width, width), [0, 2, 1, 3]) for _ in range(2))
    k = split(net.linear(x, width, width), [0, 2, 3, 1])
    scale = net.constant((width // heads) ** -0.5)
    weights = net.op("Softmax", net.op("Mul", net.op("MatMul", q, k), scale), axis=-1)
    y = net.op("Transpose", net.op("MatMul", weights, v), perm=[0, 2, 1, 3])
    return net.linear(net.op("Reshape", y, net.integers(1, tokens, width)), width, width)


def gelu(net: Builder, x: str) -> str:
    """As exporters spell it."""
    erf = net.op("Erf", net.op("Div", x, net.constant(np.sqrt(2))))
    return net.op("Mul", net.op("Mul", x, net.op("Add", erf, net.constant(1))), net.constant(0.5))


def vit(width: int = 192, heads: int = 3, depth: int = 12) -> onnx.ModelProto:
    """A ViT-Ti/16 without class token: the mean of the tokens is classified."""
    net, tokens = Builder(224), 196
    weights = net.weights(width, 3, 16, 16, fan_in=768)
    x = net.op("Conv", "input", weights, net.constant(np.zeros(width)), strides=[16, 16])
    x = net.op("Reshape", x, net.integers(1, width, tokens))
    x = net.op("Add", net.op("Transpose", x, perm=[0, 2, 1]), net.weights(tokens, width, fan_in=99))

    def normed(x: str) -> str:
        ones, zeros = net.constant(np.ones(width)), net.constant(np.zeros(width))
        return net.op("LayerNormalization", x, ones, zeros, axis=-1, epsilon=1e-6)

    for _ in range(depth):
        x = net.op("Add", x, attention(net, normed(x), width, heads, tokens))
        y = gelu(net, net.linear(normed(x), width, 4 * width))
        x = net.op("Add", x, net.linear(y, 4 * width, width))
    x = net.op("ReduceMean", normed(x), axes=[1], keepdims=0)
    return net.model(net.linear(x, width, 1000))


V3_SMALL = (
    # kernel, width inside, outputs, squeeze-and-excitation, hard-swish, stride
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)
"""The blocks of MobileNetV3-Small."""


def mobilenet_v3() -> onnx.ModelProto:
    """MobileNetV3-Small."""
    net, inputs = Builder(224), 16
    x = net.op("HardSwish", net.conv("input", 3, 16, 3, 2))
    for kernel, width, outputs, gated, swish, stride in V3_SMALL:
        activation = "HardSwish" if swish else "Relu"
        y = x if width == inputs else net.op(activation, net.conv(x, inputs, width, 1))
        y = net.op(activation, net.depthwise(y, width, kernel, stride))
        if gated:
            gate = net.op("Relu", net.conv(net.op("GlobalAveragePool", y), width, width // 4, 1))
            gate = net.op("HardSigmoid", net.conv(gate, width // 4, width, 1), alpha=1 / 6)
            y = net.op("Mul", y, gate)
        y = net.conv(y, width, outputs, 1)
        x = net.op("Add", x, y) if stride == 1 and inputs == outputs else y
        inputs = outputs
    x = net.op("HardSwish", net.conv(x, inputs, 576, 1))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    x = net.op("HardSwish", net.linear(x, 576, 1024))
    return net.model(net.linear(x, 1024, 1000))


def shuffled(net: Builder, x: str, channels: int, side: int) -> str:
    """The channels of two halves in turn."""
    x = net.op("Reshape", x, net.integers(1, 2, channels // 2, side, side))
    x = net.op("Transpose", x, perm=[0, 2, 1, 3, 4])
    return net.op("Reshape", x, net.integers(1, channels, side, side))


def shufflenet_v2() -> onnx.ModelProto:
    """ShuffleNetV2 x0.5."""
    net, side, inputs = Builder(224), 56, 24
    x = net.op("Relu", net.conv("input", 3, 24, 3, 2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)

    def branch(x: str, inputs: int, outputs: int, stride: int) -> str:
        x = net.op("Relu", net.conv(x, inputs, outputs, 1))
        return net.op("Relu", net.conv(net.depthwise(x, outputs, 3, stride), outputs, outputs, 1))

    for channels, count in ((48, 4), (96, 8), (192, 4)):
        half, side = channels // 2, side // 2
        beside = net.conv(net.depthwise(x, inputs, 3, 2), inputs, half, 1)
        halves = net.op("Relu", beside), branch(x, inputs, half, 2)
        for _ in range(count - 1):
            x = shuffled(net, net.op("Concat", *halves, axis=1), channels, side)
            left, right = (
                net.op("Slice", x, *(net.integers(v) for v in (start, start + half, 1)))
                for start in (0, half)
            )
            halves = left, branch(right, half, half, 1)
        x, inputs = shuffled(net, net.op("Concat", *halves, axis=1), channels, side), channels
    x = net.op("Relu", net.conv(x, inputs, 1024, 1))
    x = net.op("ReduceMean", x, axes=[2, 3], keepdims=0)
    return net.model(net.linear(x, 1024, 1000))


def unet(side: int = 64) -> onnx.ModelProto:
    """Two levels down, two up: transposed convolutions, skips by concatenation."""
    net = Builder(side)

    def block(x: str, inputs: int, outputs: int) -> str:
        x = net.op("Relu", net.conv(x, inputs, outputs, 3))
        return net.op("Relu", net.conv(x, outputs, outputs, 3))

    def down(x: str) -> str:
        return net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])

    def up(x: str, inputs: int, outputs: int) -> str:
        weights = net.weights(inputs, outputs, 2, 2, fan_in=inputs)
        return net.op("ConvTranspose", x, weights, net.constant(np.zeros(outputs)), strides=[2, 2])

    first = block("input", 3, 16)
    second = block(down(first), 16, 32)
    x = up(block(down(second), 32, 64), 64, 32)
    x = up(block(net.op("Concat", x, second, axis=1), 64, 32), 32, 16)
    x = block(net.op("Concat", x, first, axis=1), 32, 16)
    return net.model(net.op("Sigmoid", net.conv(x, 16, 2, 1)))


def lstm(steps: int = 40, inputs: int = 32, hidden: int = 48) -> onnx.ModelProto:
    """Two bidirectional LSTMs and a classifier of each step."""
    net = Builder(0, (1, steps, inputs))
    x = net.op("Transpose", "input", perm=[1, 0, 2])
    for width in (inputs, 2 * hidden):
        weights = [net.weights(2, 4 * hidden, size, fan_in=2 * size) for size in (width, hidden)]
        weights.append(net.constant(net.random.normal(size=(2, 8 * hidden)) / 10))
        y = net.op("LSTM", x, *weights, hidden_size=hidden, direction="bidirectional")
        y = net.op("Transpose", y, perm=[0, 2, 1, 3])
        x = net.op("Reshape", y, net.integers(steps, 1, 2 * hidden))
    x = net.linear(net.op("Transpose", x, perm=[1, 0, 2]), 2 * hidden, 64)
    return net.model(net.op("Softmax", x, axis=-1))


def mixed() -> onnx.ModelProto:
    """Pools, a gate, a transposed convolution, Resize, Concat, attention: one of each."""
    net = Builder(64)
    x = net.op("Relu", net.conv("input", 3, 32, 3, 2))
    small = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    y = net.conv(small, 32, 64, 3)
    y = net.op("Mul", y, net.op("Sigmoid", y))
    gate = net.op("Relu", net.conv(net.op("GlobalAveragePool", y), 64, 16, 1))
    y = net.op("Mul", y, net.op("Sigmoid", net.conv(gate, 16, 64, 1)))
    weights = net.weights(64, 32, 2, 2, fan_in=64)
    up = net.op("ConvTranspose", y, weights, net.constant(np.zeros(32)), strides=[2, 2])
    scales = net.constant([1, 1, 2, 2])
    resized = net.op("Resize", small, "", scales, mode="nearest")
    pooled = net.op("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4)
    x = net.op("Relu", net.conv(net.op("Concat", up, resized, pooled, axis=1), 96, 64, 3, 2))
    x = net.op("Reshape", net.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]),
               net.integers(1, 64, 64))  # fmt: skip
    x = net.op("Transpose", x, perm=[0, 2, 1])
    ones, zeros = net.constant(np.ones(64)), net.constant(np.zeros(64))
    y = net.op("LayerNormalization", x, ones, zeros, axis=-1)
    x = net.op("Add", x, attention(net, y, 64, 4, 64))
    x = net.op("Add", x, net.linear(gelu(net, net.linear(x, 64, 256)), 256, 64))
    return net.model(net.linear(x, 64, 32))


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    make.__name__: make
    for make in (
        resnet18,
        resnet50,
        vit,
        mobilenet_v3,
        shufflenet_v2,
        unet,
        lstm,
        mixed,
    )
}


def main() -> None:
    """Command line."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or NETWORKS:
        onnx.save(NETWORKS[name](), folder / f"{name}.onnx")
        print(folder / f"{name}.onnx")


if __name__ == "__main__":
    main()
