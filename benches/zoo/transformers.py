"""ONNX graphs of transformers with random weights: for measuring time and memory, not accuracy.

They are written as PyTorch exports them: one node per step, a decomposed GELU, fused
LayerNormalization, opset 17, a fixed sequence length and a dynamic batch.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from .graphs import OPSET, Net

WIDTH, HEADS, LAYERS = 768, 12, 12


class _Transformer(Net):
    """Layers on a sequence of `WIDTH` features; tensors are `[batch, length, WIDTH]`."""

    def __init__(self, length: int, seed: int = 0) -> None:
        super().__init__({})
        self.rng = np.random.default_rng(seed)
        self.length = length

    def random(self, name: str, *shape: int, scale: float = 0.02) -> str:
        drawn = self.rng.standard_normal(shape, np.float32) * np.float32(scale)
        return self.constant(name, drawn)

    def integers(self, name: str, *values: int) -> str:
        return self.constant(name, np.array(values, np.int64))

    def linear(self, x: str, name: str, inputs: int, outputs: int) -> str:
        weight = self.random(f"{name}.weight", inputs, outputs, scale=inputs**-0.5)
        product = self.op("MatMul", x, weight, name=f"{name}.product")
        return self.op("Add", product, self.random(f"{name}.bias", outputs), name=name)

    def layer_norm(self, x: str, name: str) -> str:
        gain = self.constant(f"{name}.gain", self.rng.uniform(0.5, 1.5, WIDTH).astype(np.float32))
        bias = self.random(f"{name}.bias", WIDTH)
        return self.op("LayerNormalization", x, gain, bias, name=name, axis=-1, epsilon=1e-6)

    def gelu(self, x: str, name: str) -> str:
        parts = {"sqrt2": 2**0.5, "one": 1.0, "half": 0.5}
        sqrt2, one, half = (self.constant(f"gelu.{k}", np.float32(v)) for k, v in parts.items())
        erf = self.op("Erf", self.op("Div", x, sqrt2, name=f"{name}.div"), name=f"{name}.erf")
        product = self.op("Mul", x, self.op("Add", erf, one, name=f"{name}.add"), name=f"{name}.x")
        return self.op("Mul", product, half, name=name)

    def attention(self, x: str, name: str) -> str:
        depth = WIDTH // HEADS
        split = self.integers("heads", 0, self.length, HEADS, depth)

        def heads(part: str, perm: list[int]) -> str:
            projected = self.linear(x, f"{name}.{part}", WIDTH, WIDTH)
            shaped = self.op("Reshape", projected, split, name=f"{name}.{part}.heads")
            return self.op("Transpose", shaped, name=f"{name}.{part}.turned", perm=perm)

        query, value = heads("query", [0, 2, 1, 3]), heads("value", [0, 2, 1, 3])
        scores = self.op("MatMul", query, heads("key", [0, 2, 3, 1]), name=f"{name}.scores")
        root = self.constant("root", np.float32(depth**0.5))
        weights = self.op("Softmax", self.op("Div", scores, root, name=f"{name}.scaled"), axis=-1)
        mixed = self.op("MatMul", weights, value, name=f"{name}.mixed")
        back = self.op("Transpose", mixed, name=f"{name}.back", perm=[0, 2, 1, 3])
        joined = self.op("Reshape", back, self.integers("joined", 0, self.length, WIDTH))
        return self.linear(joined, f"{name}.output", WIDTH, WIDTH)

    def mlp(self, x: str, name: str) -> str:
        inner = self.gelu(self.linear(x, f"{name}.up", WIDTH, 4 * WIDTH), f"{name}.gelu")
        return self.linear(inner, f"{name}.down", 4 * WIDTH, WIDTH)

    def finished(self, inputs: list[onnx.ValueInfoProto], output: str) -> onnx.ModelProto:
        outputs = [onnx.ValueInfoProto(name=output)]
        initializers = list(self.initializers.values())
        graph = helper.make_graph(self.nodes, "net", inputs, outputs, initializers)
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def bert_base(length: int = 128, vocabulary: int = 30_522) -> onnx.ModelProto:
    """An encoder of the size of BERT-base: post-norm, token and position embeddings."""
    net = _Transformer(length)
    table = net.random("tokens", vocabulary, WIDTH)
    x = net.op("Add", net.op("Gather", table, "ids"), net.random("positions", length, WIDTH))
    x = net.layer_norm(x, "embedding.norm")
    for number in range(LAYERS):
        name = f"layer{number}"
        x = net.layer_norm(net.op("Add", net.attention(x, f"{name}.self"), x), f"{name}.norm1")
        x = net.layer_norm(net.op("Add", net.mlp(x, f"{name}.mlp"), x), f"{name}.norm2")
    return net.finished([helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", length])], x)


def vit_b_16(side: int = 224, patch: int = 16, classes: int = 1000) -> onnx.ModelProto:
    """A vision transformer of the size of ViT-B/16: pre-norm, patches by a convolution."""
    patches = (side // patch) ** 2
    net = _Transformer(patches)
    weight = net.random("patches.weight", WIDTH, 3, patch, patch, scale=(3 * patch**2) ** -0.5)
    x = net.op(
        "Conv",
        "image",
        weight,
        net.random("patches.bias", WIDTH),
        name="patches",
        kernel_shape=[patch, patch],
        strides=[patch, patch],
    )
    x = net.op("Reshape", x, net.integers("flat", 0, WIDTH, patches))
    x = net.op("Transpose", x, perm=[0, 2, 1])
    x = net.op("Add", x, net.random("positions", patches, WIDTH))
    for number in range(LAYERS):
        name = f"layer{number}"
        x = net.op("Add", net.attention(net.layer_norm(x, f"{name}.norm1"), f"{name}.self"), x)
        x = net.op("Add", net.mlp(net.layer_norm(x, f"{name}.norm2"), f"{name}.mlp"), x)
    x = net.op("ReduceMean", net.layer_norm(x, "norm"), axes=[1], keepdims=0)
    shape = ["N", 3, side, side]
    return net.finished(
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        net.linear(x, "head", WIDTH, classes),
    )
