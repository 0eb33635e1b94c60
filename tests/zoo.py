"""Synthetic models of the kinds that are quantized in practice, each a few milliseconds to run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from builders import Net
from onnx import helper, numpy_helper


def classifier(opset: int = 17, batch: int | str = 1, **more: Any) -> onnx.ModelProto:
    """Conv, BN, Relu, MaxPool, Conv, residual Add, GlobalAveragePool, Gemm."""
    net = Net()
    x = net.input("image", batch, 3, 32, 32)
    x = net.op("Relu", net.batch_norm(net.conv(x, 3, 32), 32))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    y = net.op("Relu", net.batch_norm(net.conv(x, 32, 32), 32))
    x = net.op("Relu", net.op("Add", x, net.batch_norm(net.conv(y, 32, 32), 32)))
    x = net.op("Flatten", net.op("GlobalAveragePool", net.op("Relu", net.conv(x, 32, 64))))
    return net.model(net.op("Gemm", x, net.weight(64, 10, fan_in=64), net.weight(10), out="logits"),
                     opset=opset, **more)  # fmt: skip


def mobile(opset: int = 17) -> onnx.ModelProto:
    """Inverted residual blocks with ReLU6 and depthwise convolutions."""
    net = Net()

    def relu6(x: str) -> str:
        if opset < 11:
            return net.op("Clip", x, min=0.0, max=6.0)
        return net.op("Clip", x, net.constant(0.0), net.constant(6.0))

    x = relu6(net.batch_norm(net.conv(net.input("image", 1, 3, 32, 32), 3, 32), 32))
    for _ in range(2):
        y = relu6(net.batch_norm(net.conv(x, 32, 96, 1), 96))
        y = relu6(net.batch_norm(net.conv(y, 96, 96, group=96), 96))
        x = net.op("Add", x, net.batch_norm(net.conv(y, 96, 32, 1), 32))
    return net.model(net.conv(x, 32, 64, 1), opset=opset)


def squeeze_and_excite() -> onnx.ModelProto:
    """A block gated by HardSigmoid, with HardSwish and its spelling as activations."""
    net = Net()
    x = net.op("HardSwish", net.batch_norm(net.conv(net.input("image", 1, 16, 16, 16), 16, 32), 32))
    gate = net.op("Relu", net.conv(net.op("GlobalAveragePool", x), 32, 16, 1))
    gate = net.op("HardSigmoid", net.conv(gate, 16, 32, 1), alpha=0.2, beta=0.5)
    y = net.conv(net.op("Mul", x, gate), 32, 64)
    swish = net.op(
        "Clip", net.op("Add", y, net.constant(3.0)), net.constant(0.0), net.constant(6.0)
    )
    y = net.op("Div", net.op("Mul", y, swish), net.constant(6.0))
    return net.model(net.conv(y, 64, 32, 1))


def detector() -> onnx.ModelProto:
    """SiLU, Concat, nearest Resize, a pooling pyramid and a Sigmoid at the end."""
    net = Net()

    def silu(x: str) -> str:
        return net.op("Mul", x, net.op("Sigmoid", x))

    large = silu(net.conv(net.input("image", 1, 16, 16, 16), 16, 32))
    small = silu(net.conv(large, 32, 64, strides=[2, 2]))
    pooled = net.op("MaxPool", small, kernel_shape=[5, 5], pads=[2] * 4)
    small = silu(net.conv(net.op("Concat", small, pooled, axis=1), 128, 64, 1))
    scales = net.constant([1, 1, 2, 2])
    up = net.op("Resize", small, "", scales, mode="nearest",
                coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
    head = silu(net.conv(net.op("Concat", up, large, axis=1), 96, 32))
    boxes = net.op("Transpose", net.op("Reshape", net.conv(head, 32, 32, 1),
                   net.constant([1, 32, -1], dtype=np.int64)), perm=[0, 2, 1])  # fmt: skip
    return net.model(boxes, net.op("Sigmoid", net.conv(head, 32, 16, 1)))


def transformer(batch: int | str = 2) -> onnx.ModelProto:
    """Token ids, Gather, one attention block with LayerNormalization and GELU, a mask."""
    net, width, heads, tokens = Net(), 64, 4, 16
    ids, mask = net.input("ids", batch, tokens, dtype=np.int64), net.input("mask", batch, tokens)
    x = net.op("Gather", net.weight(8, width), ids)
    x = net.op("Add", x, net.weight(tokens, width))

    def shaped(x: str, perm: list[int]) -> str:
        shape = net.constant([0, tokens, heads, width // heads], dtype=np.int64)
        return net.op("Transpose", net.op("Reshape", x, shape), perm=perm)

    q, v = (shaped(net.linear(x, width, width, "MatMul"), [0, 2, 1, 3]) for _ in range(2))
    k = shaped(net.linear(x, width, width, "MatMul"), [0, 2, 3, 1])
    scores = net.op("Mul", net.op("MatMul", q, k), net.constant(0.25))
    bias = net.op(
        "Unsqueeze", net.op("Mul", mask, net.constant(-1.0)), net.constant([1, 2], dtype=np.int64)
    )
    weights = net.op("Softmax", net.op("Add", scores, bias), axis=-1)
    y = net.op("Transpose", net.op("MatMul", weights, v), perm=[0, 2, 1, 3])
    y = net.op("Reshape", y, net.constant([0, 0, width], dtype=np.int64))
    x = net.op("Add", x, net.linear(y, width, width, "MatMul"))
    x = net.op("LayerNormalization", x, net.weight(width), net.weight(width))
    y = net.linear(x, width, 4 * width, "MatMul")
    half = net.op("Mul", y, net.constant(0.5))
    erf = net.op("Erf", net.op("Div", y, net.constant(np.sqrt(2))))
    y = net.op("Mul", half, net.op("Add", erf, net.constant(1.0)))
    return net.model(net.op("Add", x, net.linear(y, 4 * width, width, "MatMul")))


def recurrent() -> onnx.ModelProto:
    """Conv1d features, an LSTM with its state as input and output, a Gemm."""
    net, width = Net(), 32
    x = net.op("Relu", net.op("Conv", net.input("sound", 1, 16, 64), net.weight(32, 16, 3, fan_in=48),
               net.weight(32), strides=[2]))  # fmt: skip
    x = net.op("Transpose", x, perm=[2, 0, 1])
    h, c = net.input("h", 1, 1, width), net.input("c", 1, 1, width)
    lstm = helper.make_node(
        "LSTM",
        [x, net.weight(1, 4 * width, 32, fan_in=32), net.weight(1, 4 * width, width, fan_in=32),
         net.weight(1, 8 * width, fan_in=32), "", h, c],
        ["", "h_next", "c_next"], name="lstm", hidden_size=width,
    )  # fmt: skip
    net.nodes.append(lstm)
    y = net.op("Squeeze", "h_next", net.constant([0], dtype=np.int64))
    return net.model(net.linear(y, width, 8), "h_next", "c_next")


def branching() -> onnx.ModelProto:
    """An If whose branches read a value that is quantized outside."""
    net, info = Net(), helper.make_tensor_value_info
    x = net.op("Relu", net.conv(net.input("image", 1, 16, 16, 16), 16, 32))
    x = net.op("Relu", net.conv(x, 32, 32))
    bodies = []
    for name in ("then", "else"):
        weight = numpy_helper.from_array(
            net.random.normal(size=(32, 32, 1, 1)).astype(np.float32) / 6, f"{name}_w"
        )
        nodes = [helper.make_node("Conv", [x, f"{name}_w"], [name])]
        bodies.append(
            helper.make_graph(nodes, name, [], [info(name, 1, [1, 32, 16, 16])], [weight])
        )
    condition = net.input("flag", dtype=np.bool_)
    y = net.op("If", condition, then_branch=bodies[0], else_branch=bodies[1])
    return net.model(net.conv(net.op("Add", x, y), 32, 32))


def looping() -> onnx.ModelProto:
    """A Loop that adds a captured, quantized value three times."""
    net, info = Net(), helper.make_tensor_value_info
    x = net.op("Relu", net.conv(net.input("image", 1, 16, 16, 16), 16, 32))
    x = net.conv(x, 32, 32)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["state", x], ["sum"]),
        ],
        "body",
        [info("i", 7, []), info("go", 9, []), info("state", 1, [1, 32, 16, 16])],
        [info("go_on", 9, []), info("sum", 1, [1, 32, 16, 16])],
    )
    count, go = net.constant(3, dtype=np.int64), net.constant(True, dtype=np.bool_)
    y = net.conv(net.op("Loop", count, go, x, body=body), 32, 32)
    return net.model(net.op("Reshape", y, net.constant([1, 32, 256], dtype=np.int64)))


def several_inputs() -> onnx.ModelProto:
    """Two images and a row of features; one input is passed on, one output is a Relu of an input."""
    net = Net()
    left, right = net.input("left", 1, 16, 16, 16), net.input("right", 1, 16, 16, 16)
    features = net.input("features", 1, 16)
    x = net.op("Add", net.conv(left, 16, 32), net.conv(right, 16, 32))
    x = net.op("Flatten", net.op("GlobalAveragePool", net.op("Relu", x)))
    x = net.op("Concat", x, features, axis=1)
    return net.model(net.linear(x, 48, 8), "left", net.op("Relu", features))


USUAL: dict[str, Callable[[], onnx.ModelProto]] = {
    make.__name__: make
    for make in (
        classifier,
        mobile,
        squeeze_and_excite,
        detector,
        transformer,
        recurrent,
        branching,
        looping,
        several_inputs,
    )
}
"""What people quantize; the others are odd in some way."""


def constant_nodes() -> onnx.ModelProto:
    """`classifier` with every weight in a Constant node."""
    model = classifier()
    nodes = [
        helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in model.graph.initializer
    ]
    nodes.extend(model.graph.node)
    for field in ("initializer", "node"):
        model.graph.ClearField(field)
    model.graph.node.extend(nodes)
    return model


def initializers_as_inputs() -> onnx.ModelProto:
    """`classifier` as written before IR version 4: every initializer is listed as an input."""
    model = classifier(opset=9)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, 1, tensor.dims))
    return model


def shared_weights() -> onnx.ModelProto:
    """The same Conv over two inputs of different range, a matrix used upright and transposed."""
    net = Net()
    a, b = net.input("a", 1, 32, 16, 16), net.input("b", 1, 32, 16, 16)
    weight, bias = net.weight(32, 32, 3, 3, fan_in=288), net.weight(32)
    x = net.op("Relu", net.op("Conv", a, weight, bias))
    y = net.op("Relu", net.op("Conv", net.op("Exp", b), weight, bias))
    square = net.constant(net.random.normal(size=(128, 128)) * np.linspace(0.01, 1, 128))
    rows, bias = net.input("rows", 32, 128), net.weight(128)
    z = net.op("Relu", net.op("Gemm", rows, square, bias, transB=1))
    w = net.op("Relu", net.op("Gemm", net.op("MatMul", z, square), square, bias))
    return net.model(x, y, w)


def dead_channels() -> onnx.ModelProto:
    """Channels whose weights are all zero, with and without a bias, in a Conv and in products."""
    net = Net()
    weight = net.random.normal(size=(32, 32, 3, 3)) / 17
    weight[[3, 7]] = 0
    bias = net.random.normal(size=32)
    bias[7] = 0
    x = net.op("Relu", net.conv(net.input("image", 1, 16, 16, 16), 16, 32))
    x = net.op("Conv", x, net.constant(weight), net.constant(bias), pads=[1] * 4)
    upright, transposed = (net.random.normal(size=(128, 128)) / 11 for _ in range(2))
    upright[:, [1, 5]] = 0
    transposed[::2] = 0
    y = net.op("Gemm", net.input("rows", 32, 128), net.constant(upright), net.weight(128))
    y = net.op("Gemm", y, net.constant(transposed), net.weight(128, fan_in=1000), transB=1)
    y = net.op("MatMul", y, net.constant(upright))
    return net.model(x, net.op("Add", y, net.weight(128, fan_in=1000)))


def huge_bias() -> onnx.ModelProto:
    """Biases that do not fit into int32 on the scale of input times weight."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("image", 1, 16, 16, 16), 16, 32))
    weight = net.random.normal(size=(32, 32, 1, 1))
    weight[4:8] *= 1e-7
    x = net.op("Conv", x, net.constant(weight), net.constant(net.random.normal(size=32) * 100))
    matrix = net.random.normal(size=(128, 128))
    matrix[:, 8:16] *= 1e-8
    bias = net.random.normal(size=128) * 1000
    rows = net.input("rows", 32, 128)
    y = net.op("Add", net.op("MatMul", rows, net.constant(matrix)), net.constant(bias))
    z = net.op("Gemm", rows, net.constant(matrix * 2), net.constant(bias))
    return net.model(x, y, z)


def of_type(dtype: Any) -> Callable[[], onnx.ModelProto]:
    def build() -> onnx.ModelProto:
        net = Net()
        x = net.input("x", 32, 128, dtype=dtype)
        weights = [
            net.weight(*shape, fan_in=128, dtype=dtype) for shape in ((128, 128), (128,), (128, 32))
        ]
        return net.model(
            net.op("MatMul", net.op("Relu", net.op("Gemm", x, *weights[:2])), weights[2])
        )

    return build


def nameless() -> onnx.ModelProto:
    model = classifier()
    for node in model.graph.node:
        node.ClearField("name")
    return model


def odd_biases() -> onnx.ModelProto:
    """Gemm biases that are no vector: one number, a row, a column, a matrix; and a bias computed."""
    net = Net()
    x = net.input("x", 32, 128)
    for shape in ((1,), (), (1, 128), (32, 1), (32, 128)):
        bias = net.constant(np.abs(net.random.normal(size=shape)))
        x = net.op("Relu", net.op("Gemm", x, net.weight(128, 128, fan_in=64), bias))
    computed = net.op("Neg", net.input("bias", 128))
    return net.model(net.op("Gemm", x, net.weight(128, 128, fan_in=128), computed))


def taken_names() -> onnx.ModelProto:
    """Values and constants that are called what the quantized ones would be called."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", 1, 32, 16, 16), 32, 32), out="y")
    x = net.op(
        "Conv", x, net.weight(32, 32, 3, 3, fan_in=288, name="w"), net.weight(32, name="b"), out="z"
    )
    outputs = [
        net.op("Relu", x),
        net.op("MatMul", net.input("rows", 32, 128), net.weight(128, 128), out="m"),
    ]
    parts = ("_scale", "_quantized", "_dequantized", "_float", "_zero_point",
             "_QuantizeLinear", "_DequantizeLinear", "_integers", "_cast", "_product")  # fmt: skip
    for base in ("x", "y", "z", "w", "b", "m", "rows"):
        for part in parts:
            constant = net.constant(net.random.normal(size=4), f"{base}{part}")
            outputs.append(net.op("Neg", constant, name=f"{base}{part}"))
    for name in (
        "zero_point_u0",
        "zero_point_i0",
        "zero_point_u128",
        "zero_points_32",
        "zero_points_64",
    ):
        outputs.append(net.op("Neg", net.constant(net.random.normal(size=4), name)))
    return net.model(*outputs)


def custom_operator() -> onnx.ModelProto:
    """A contrib operator of ONNX Runtime amid ordinary ones."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("image", 1, 16, 16, 16), 16, 32))
    x = net.op("Relu", net.conv(x, 32, 32))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    x = net.op(
        "BiasGelu", net.linear(x, 32, 64), net.weight(64), domain="com.microsoft", out="gelu"
    )
    y = net.op("Gemm", x, net.weight(64, 8, fan_in=64), out="y")
    output = helper.make_tensor_value_info(y, 1, [1, 8])
    graph = helper.make_graph(net.nodes, "net", net.inputs, [output], net.initializers)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def already_quantized() -> onnx.ModelProto:
    """A Conv in QDQ form as ONNX Runtime's quantizer writes it, then a float Conv."""
    net = Net()
    x = net.input("image", 1, 32, 16, 16)
    scale, zero = net.constant(0.03), net.constant(128, dtype=np.uint8)
    x = net.op("DequantizeLinear", net.op("QuantizeLinear", x, scale, zero), scale, zero)
    # Small enough for pairs of products not to saturate anywhere, or ONNX Runtime's fusions would matter.
    integers = net.constant(net.random.integers(-63, 64, (32, 32, 3, 3)), dtype=np.int8)
    weight = net.op("DequantizeLinear", integers, net.constant(np.full(32, 0.002)),
                    net.constant(np.zeros(32), dtype=np.int8), axis=0)  # fmt: skip
    x = net.op("Conv", x, weight, pads=[1] * 4)
    scale, zero = net.constant(0.02), net.constant(120, dtype=np.uint8)
    x = net.op("DequantizeLinear", net.op("QuantizeLinear", x, scale, zero), scale, zero)
    return net.model(net.op("Relu", net.conv(x, 32, 32)))


def ai_onnx_domain() -> onnx.ModelProto:
    """The default domain by its long name."""
    model = classifier()
    model.opset_import[0].domain = "ai.onnx"
    return model


def contrib_only() -> onnx.ModelProto:
    """No operator of the default domain, and no import of it."""
    net = Net()
    net.op("Gelu", net.input("x", 2, 3), domain="com.microsoft", out="y")
    output = helper.make_tensor_value_info("y", 1, [2, 3])
    graph = helper.make_graph(net.nodes, "net", net.inputs, [output])
    imports = [helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "classifier": classifier,
    "classifier dynamic batch": lambda: classifier(batch="n"),
    **{f"classifier opset {n}": lambda n=n: classifier(opset=n) for n in (9, 11, 12, 13, 21)},
    "mobile": mobile,
    "mobile opset 9": lambda: mobile(9),
    "squeeze and excite": squeeze_and_excite,
    "detector": detector,
    "transformer": transformer,
    "transformer dynamic batch": lambda: transformer("n"),
    "recurrent": recurrent,
    "branching": branching,
    "looping": looping,
    "several inputs": several_inputs,
    "constant nodes": constant_nodes,
    "initializers as inputs": initializers_as_inputs,
    "shared weights": shared_weights,
    "dead channels": dead_channels,
    "huge bias": huge_bias,
    "float16": of_type(np.float16),
    "double": of_type(np.float64),
    "nameless": nameless,
    "odd biases": odd_biases,
    "taken names": taken_names,
    "custom operator": custom_operator,
    "ai.onnx domain": ai_onnx_domain,
    "contrib only": contrib_only,
    "already quantized": already_quantized,
}


STEPS: dict[str, Callable[[Net, str, str], str]] = {
    "conv": lambda net, x, _: net.conv(x, 32, 32),
    "pointwise": lambda net, x, _: net.conv(x, 32, 32, 1),
    "depthwise": lambda net, x, _: net.conv(x, 32, 32, group=32),
    "conv bn": lambda net, x, _: net.batch_norm(net.conv(x, 32, 32), 32),
    "bn": lambda net, x, _: net.batch_norm(x, 32),
    "relu": lambda net, x, _: net.op("Relu", x),
    "relu6": lambda net, x, _: net.op("Clip", x, net.constant(0.0), net.constant(6.0)),
    "clip": lambda net, x, _: net.op("Clip", x, net.constant(-0.5), net.constant(1.5)),
    "leaky relu": lambda net, x, _: net.op("LeakyRelu", x, alpha=0.1),
    "sigmoid": lambda net, x, _: net.op("Sigmoid", x),
    "silu": lambda net, x, _: net.op("Mul", x, net.op("Sigmoid", x)),
    "hard sigmoid": lambda net, x, _: net.op("HardSigmoid", x, alpha=0.3, beta=0.4),
    "hard swish": lambda net, x, _: net.op("HardSwish", x),
    "tanh": lambda net, x, _: net.op("Tanh", x),
    "add": lambda net, x, y: net.op("Add", x, y),
    "product": lambda net, x, y: net.op("Mul", x, net.op("Sigmoid", y)),
    "gate": lambda net, x, y: net.op("Mul", x, net.op("Sigmoid", net.op("GlobalAveragePool", y))),
    "add constant": lambda net, x, _: net.op("Add", x, net.weight(1, 32, 1, 1)),
    "add plane": lambda net, x, _: net.op("Add", net.weight(16, 16), x),
    "scale": lambda net, x, _: net.op("Mul", x, net.constant(0.7)),
    "concat": lambda net, x, y: net.conv(net.op("Concat", x, y, axis=1), 64, 32, 1),
    "concat constant": lambda net, x, _: net.conv(
        net.op("Concat", x, net.weight(1, 16, 16, 16), axis=1), 48, 32, 1
    ),
    "max pool": lambda net, x, _: net.op("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4),
    "average pool": lambda net, x, _: net.op("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4),
    "there and back": lambda net, x, _: net.op(
        "Transpose", net.op("Relu", net.op("Transpose", x, perm=[0, 2, 3, 1])), perm=[0, 3, 1, 2]
    ),
    "reshape": lambda net, x, _: net.op("Reshape", x, net.constant([1, 32, 16, 16], dtype=np.int64)),
    "turn": lambda net, x, _: net.op("Transpose", x, perm=[0, 1, 3, 2]),
    "up and down": lambda net, x, _: net.op(
        "MaxPool", net.op("Resize", x, "", net.constant([1, 1, 2, 2]), mode="nearest"),
        kernel_shape=[2, 2], strides=[2, 2],
    ),
    "slice": lambda net, x, _: net.conv(
        net.op("Slice", x, *(net.constant([n], dtype=np.int64) for n in (8, 24, 1))), 16, 32, 1
    ),
    "project": lambda net, x, _: net.op("Add", net.op("MatMul", x, net.weight(16, 16, fan_in=16)), net.weight(16)),
    "softmax": lambda net, x, _: net.op("Softmax", x, axis=1),
}  # fmt: skip
"""What maps one or two values of shape [1, 32, 16, 16] to another."""


def random_network(seed: int, steps: int = 12) -> onnx.ModelProto:
    """A random graph of `STEPS`, some of its values being outputs."""
    net, draw = Net(seed), np.random.default_rng(seed)
    values = [net.input("a", 1, 32, 16, 16), net.input("b", 1, 32, 16, 16)]
    odds = np.array([4.0 if "conv" in name or name == "pointwise" else 1.0 for name in STEPS])
    for name in draw.choice(list(STEPS), steps, p=odds / odds.sum()):
        x, y = (values[-1 - min(int(draw.geometric(0.5)) - 1, len(values) - 1)] for _ in range(2))
        values.append(STEPS[name](net, x, y))
    outputs = {values[-1], *draw.choice(values[2:], 2)}
    return net.model(*sorted(outputs))
