"""ONNX graphs for networks that are published as weights only.

Each builder reproduces what an exporter writes: one node per layer, BatchNormalization kept apart
from its convolution (so that folding it is the quantizer's work), a dynamic batch dimension, opset
17.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Weights = Mapping[str, np.ndarray]
OPSET = 17
BN_PARTS = ("weight", "bias", "running_mean", "running_var")


class Net:
    """A graph under construction. Layers take and return tensor names; weights have a prefix."""

    def __init__(self, weights: Weights, epsilon: float = 1e-5) -> None:
        self.weights = weights
        self.epsilon = epsilon
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: np.ndarray | None = None) -> str:
        """The name of an initializer, which is added on first use."""
        if name not in self.initializers:
            array = self.weights[name] if value is None else value
            self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Append one node and return its output."""
        name = name or f"{kind}_{len(self.nodes)}"
        output = f"{name}/{kind}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def conv(self, x: str, layer: str, stride: int = 1, pads: tuple[int, int] | None = None) -> str:
        """A square convolution; `pads` is (before, after), half the kernel if not given.

        One input channel per filter and many filters means depthwise, except on a one-channel
        image.
        """
        out, per_group, size, _ = self.weights[f"{layer}.weight"].shape
        before, after = pads or (size // 2, size // 2)
        parts = [p for p in ("weight", "bias") if f"{layer}.{p}" in self.weights]
        return self.op(
            "Conv",
            x,
            *(self.constant(f"{layer}.{p}") for p in parts),
            name=layer,
            group=out if per_group == 1 and x != "image" else 1,
            kernel_shape=[size, size],
            strides=[stride, stride],
            pads=[before, before, after, after],
        )

    def norm(self, x: str, layer: str) -> str:
        """BatchNormalization in its inference form."""
        parts = [self.constant(f"{layer}.{part}") for part in BN_PARTS]
        return self.op("BatchNormalization", x, *parts, name=layer, epsilon=self.epsilon)

    def relu6(self, x: str) -> str:
        """min(max(x, 0), 6)"""
        bounds = [self.constant(f"relu6.{b}", np.array(b, np.float32)) for b in (0, 6)]
        return self.op("Clip", x, *bounds)

    def dense(self, x: str, layer: str) -> str:
        """A fully connected layer with bias."""
        parts = [self.constant(f"{layer}.{part}") for part in ("weight", "bias")]
        return self.op("Gemm", x, *parts, name=layer, transB=1)

    def channels(self, tensor: str) -> int:
        """Channels of a tensor: those of the nearest convolution or normalization behind it."""
        node = next(n for n in self.nodes if n.output[0] == tensor)
        if node.op_type in {"Conv", "BatchNormalization"}:
            return int(self.initializers[node.input[1]].dims[0])
        return self.channels(node.input[0])

    def model(self, output: str, shape: tuple[int, ...], classes: int) -> onnx.ModelProto:
        """The finished model: input `image` of `shape` without the batch, output `output`."""
        last = next(n for n in self.nodes if n.output[0] == output)
        last.output[0] = "output"
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *shape])],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", classes])],
            list(self.initializers.values()),
        )
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def mobilenet_v2(weights: Weights) -> onnx.ModelProto:
    """MobileNetV2 1.0 as torchvision names its weights."""
    net = Net(weights)

    def unit(x: str, conv: str, norm: str, stride: int = 1) -> str:
        return net.relu6(net.norm(net.conv(x, conv, stride), norm))

    x = unit("image", "features.0.0", "features.0.1", stride=2)
    halving = {2, 4, 7, 14}  # the blocks that halve the picture
    for number in range(1, 18):
        block, start = f"features.{number}.conv", x
        units = 1 if number == 1 else 2  # the first block does not expand its input
        for i in range(units):
            stride = 2 if number in halving and i == units - 1 else 1
            x = unit(x, f"{block}.{i}.0", f"{block}.{i}.1", stride)
        x = net.norm(net.conv(x, f"{block}.{units}"), f"{block}.{units + 1}")
        if number not in halving and net.channels(start) == net.channels(x):
            x = net.op("Add", start, x)
    x = unit(x, "features.18.0", "features.18.1")
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.model(net.dense(x, "classifier.1"), (3, 224, 224), 1000)


def efficientnet_lite0(weights: Weights, side: int = 224) -> onnx.ModelProto:
    """EfficientNet-Lite0: ReLU6, no squeeze-and-excitation, asymmetric SAME padding."""
    net = Net(weights, epsilon=1e-3)

    def same(size: int, stride: int) -> tuple[int, int]:
        """SAME padding at the current side, which it then updates."""
        nonlocal side
        outputs = -(-side // stride)
        total = max((outputs - 1) * stride + size - side, 0)
        side = outputs
        return total // 2, total - total // 2

    def unit(x: str, conv: str, norm: str, stride: int = 1) -> str:
        pads = same(weights[f"{conv}.weight"].shape[2], stride)
        return net.norm(net.conv(x, conv, stride, pads), norm)

    x = net.relu6(unit("image", "_conv_stem", "_bn0", stride=2))
    halving = {1, 3, 5, 11}
    for number in range(16):
        block, start, stride = f"_blocks.{number}", x, 2 if number in halving else 1
        if f"{block}._expand_conv.weight" in weights:
            x = net.relu6(unit(x, f"{block}._expand_conv", f"{block}._bn0"))
        x = net.relu6(unit(x, f"{block}._depthwise_conv", f"{block}._bn1", stride))
        x = unit(x, f"{block}._project_conv", f"{block}._bn2")
        if stride == 1 and net.channels(start) == net.channels(x):
            x = net.op("Add", x, start)
    x = net.relu6(unit(x, "_conv_head", "_bn1"))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.model(net.dense(x, "_fc"), (3, 224, 224), 1000)


def digits_cnn(weights: Weights) -> onnx.ModelProto:
    """Three convolutions with pooling and two dense layers, without BatchNormalization."""
    net, x = Net(weights), "image"
    for layer in (0, 3, 6):
        x = net.op("Relu", net.conv(x, f"conv_layers.{layer}"))
        x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Relu", net.dense(net.op("Flatten", x), "fc_layers.0"))
    return net.model(net.dense(x, "fc_layers.2"), (1, 28, 28), 10)


def resnet50(seed: int = 0) -> onnx.ModelProto:
    """ResNet-50 with random weights: for measuring time and memory, not accuracy.

    Convolutions are He-initialised and the running statistics are random; the last normalization
    of each block is scaled down, so that sixteen residual additions do not blow the activations
    up.
    """
    weights = _RandomWeights(seed)
    net = Net(weights)

    def unit(
        x: str, name: str, shape: tuple[int, int, int], stride: int = 1, gain: float = 1
    ) -> str:
        out, inputs, size = shape
        weights.add_conv(f"{name}.conv", out, inputs, size)
        weights.add_norm(f"{name}.norm", out, gain)
        return net.norm(net.conv(x, f"{name}.conv", stride), f"{name}.norm")

    x = net.op("Relu", unit("image", "stem", (64, 3, 7), stride=2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    widths = [64, 256, 512, 1024, 2048]
    for stage, (before, after) in enumerate(pairwise(widths)):
        for number in range((3, 4, 6, 3)[stage]):
            name, inner, first = f"stage{stage}.{number}", after // 4, number == 0
            inputs = before if first else after
            stride = 2 if first and stage else 1
            y = net.op("Relu", unit(x, f"{name}.reduce", (inner, inputs, 1)))
            y = net.op("Relu", unit(y, f"{name}.spatial", (inner, inner, 3), stride))
            y = unit(y, f"{name}.expand", (after, inner, 1), gain=0.3)
            shortcut = unit(x, f"{name}.shortcut", (after, inputs, 1), stride) if first else x
            x = net.op("Relu", net.op("Add", y, shortcut))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    weights.add_dense("classifier", 1000, 2048)
    return net.model(net.dense(x, "classifier"), (3, 224, 224), 1000)


class _RandomWeights(dict[str, np.ndarray]):
    """Weights drawn from one seeded generator, in the order in which layers are added."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)

    def add_conv(self, layer: str, out: int, inputs: int, size: int) -> None:
        scale = (2 / (inputs * size * size)) ** 0.5
        shape = (out, inputs, size, size)
        self[f"{layer}.weight"] = self.rng.standard_normal(shape, np.float32) * np.float32(scale)

    def add_norm(self, layer: str, channels: int, gain: float) -> None:
        draws = {
            "weight": gain * self.rng.uniform(0.7, 1.3, channels),
            "bias": self.rng.normal(0, 0.1, channels),
            "running_mean": self.rng.normal(0, 0.2, channels),
            "running_var": self.rng.uniform(0.5, 1.5, channels),
        }
        for part, value in draws.items():
            self[f"{layer}.{part}"] = value.astype(np.float32)

    def add_dense(self, layer: str, out: int, inputs: int) -> None:
        weight = self.rng.standard_normal((out, inputs), np.float32) * np.float32(inputs**-0.5)
        self[f"{layer}.weight"], self[f"{layer}.bias"] = weight, np.zeros(out, np.float32)
