"""Every operator that is exported to ncnn, against ONNX Runtime, in ncnn itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
from builders import Net, run
from ncnn_runtime import Case
from ncnn_runtime import run as run_ncnn
from onnx import helper

Build = Callable[[Net], Any]
IMAGE = (1, 8, 10, 12)

CASES: dict[str, tuple[Build, dict[str, Any]]] = {}


def case(name: str, build: Build, **facts: Any) -> None:
    """Facts: `opset`, `rel` (the tolerance), `positive` (values of the inputs)."""
    assert name not in CASES, name
    CASES[name] = build, facts


def on(*shape: int) -> Callable[[Net], str]:
    return lambda net: net.input(f"x{len(net.inputs)}", *shape)


def simple(op_type: str, *shape: int, **attributes: Any) -> Build:
    return lambda net: net.op(op_type, on(*(shape or IMAGE))(net), **attributes)


def ints(net: Net, *values: int) -> str:
    return net.constant(list(values), dtype=np.int64)


for op_type in ("Relu", "Sigmoid", "Tanh", "Abs", "Neg", "Floor", "Ceil", "Exp", "Sin", "Cos", "Atan",
                "Round", "Selu", "HardSwish", "Identity"):  # fmt: skip
    case(op_type, simple(op_type))
for op_type in ("Softplus", "Erf", "Mish"):
    case(op_type, simple(op_type), opset=18, rel=2e-4)
for op_type in ("Sqrt", "Log", "Reciprocal"):
    case(op_type, simple(op_type), positive=True)
for op_type in ("Asin", "Acos", "Tan"):
    case(
        op_type,
        lambda net, op_type=op_type: net.op(
            op_type, net.op("Mul", net.op("Tanh", on(*IMAGE)(net)), net.constant(0.9))
        ),
    )
case("LeakyRelu", simple("LeakyRelu", alpha=0.2))
case("Elu", simple("Elu", alpha=0.7))
case("Celu", simple("Celu", alpha=0.7))
case("HardSigmoid", simple("HardSigmoid", alpha=0.3, beta=0.4))
case("Gelu", simple("Gelu"), opset=20)
case("Gelu tanh", simple("Gelu", approximate="tanh"), opset=20, rel=1e-4)
case("Clip", lambda net: net.op("Clip", on(*IMAGE)(net), net.constant(-0.5), net.constant(0.7)))
case("Clip below", lambda net: net.op("Clip", on(*IMAGE)(net), net.constant(-0.5)))
case("Clip 6", simple("Clip", min=-0.5, max=0.5), opset=8)
case("PRelu channels", lambda net: net.op("PRelu", on(*IMAGE)(net), net.weight(8, 1, 1)))
case("PRelu one", lambda net: net.op("PRelu", on(*IMAGE)(net), net.weight(1)))
case("Dropout", simple("Dropout"))

for op_type in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"):
    positive = {"positive": op_type in ("Div", "Pow")}
    pair = lambda net, a, b, op_type=op_type: net.op(op_type, on(*a)(net), on(*b)(net))  # noqa: E731
    case(op_type, lambda net, pair=pair: pair(net, IMAGE, IMAGE), **positive)
    case(f"{op_type} channels", lambda net, pair=pair: pair(net, IMAGE, (1, 8, 1, 1)), **positive)
    case(
        f"{op_type} scalar",
        lambda net, op_type=op_type: net.op(op_type, on(*IMAGE)(net), net.constant(1.5)),
        **positive,
    )
    case(
        f"{op_type} scalar left",
        lambda net, op_type=op_type: net.op(op_type, net.constant(1.5), on(*IMAGE)(net)),
        **positive,
    )
    case(
        f"{op_type} constant",
        lambda net, op_type=op_type: net.op(
            op_type, on(*IMAGE)(net), net.constant(net.random.uniform(0.5, 2, (8, 1, 1)))
        ),
        **positive,
    )
for a, b in (
    (IMAGE, (12,)),
    (IMAGE, (10, 1)),
    ((1, 5, 6), (1, 5, 1)),
    ((1, 7), (1, 7)),
    ((1, 5, 6), (1, 1, 6)),
    (IMAGE, (1, 1, 10, 12)),
):
    case(f"broadcast {a} {b}", lambda net, a=a, b=b: net.op("Add", on(*a)(net), net.weight(*b)))
case(
    "broadcast run time",
    lambda net: net.op(
        "Mul", on(1, 8, 10, 12)(net), net.op("Squeeze", on(1, 1, 12)(net), ints(net, 0))
    ),
)
case("Sum", lambda net: net.op("Sum", on(*IMAGE)(net), on(*IMAGE)(net), on(1, 8, 1, 1)(net)))
case("Pow 2", lambda net: net.op("Pow", on(*IMAGE)(net), net.constant(2.0)))
case(
    "twice",
    lambda net: net.op(
        "Add", (x := net.op("Relu", on(*IMAGE)(net))), net.op("Mul", x, net.op("Exp", x))
    ),
)

for name, attributes in {
    "plain": {},
    "stride": {"strides": [2, 1]},
    "pads": {"pads": [0, 1, 2, 3]},
    "dilations": {"dilations": [2, 1], "pads": [2, 1, 2, 1]},
    "groups": {"group": 2},
    "depthwise": {"group": 8},
    "valid": {"pads": None, "auto_pad": "VALID"},
    "same upper": {"pads": None, "auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "same lower": {"pads": None, "auto_pad": "SAME_LOWER", "strides": [2, 2]},
}.items():

    def conv(net: Net, attributes: dict[str, Any] = attributes) -> str:
        given = {
            key: value
            for key, value in {"pads": [1] * 4, **attributes}.items()
            if value is not None
        }
        depth = 8 // given.get("group", 1)
        return net.op(
            "Conv",
            on(*IMAGE)(net),
            net.weight(16, depth, 3, 3, fan_in=9 * depth),
            net.weight(16),
            **given,
        )

    case(f"Conv {name}", conv)

    def deconv(net: Net, attributes: dict[str, Any] = attributes) -> str:
        given = {
            key: value
            for key, value in {"pads": [1] * 4, **attributes}.items()
            if value is not None
        }
        groups = given.get("group", 1)
        return net.op(
            "ConvTranspose",
            on(*IMAGE)(net),
            net.weight(8, 16 // groups, 3, 3, fan_in=9),
            net.weight(16),
            **given,
        )

    case(f"ConvTranspose {name}", deconv)
case(
    "ConvTranspose output_padding",
    lambda net: net.op(
        "ConvTranspose",
        on(*IMAGE)(net),
        net.weight(8, 4, 3, 3),
        strides=[2, 2],
        output_padding=[1, 0],
    ),
)
case(
    "ConvTranspose output_shape",
    lambda net: net.op(
        "ConvTranspose",
        on(*IMAGE)(net),
        net.weight(8, 4, 3, 3),
        strides=[2, 2],
        output_shape=[20, 24],
    ),
)
case(
    "ConvTranspose 1-D",
    lambda net: net.op(
        "ConvTranspose", on(1, 8, 12)(net), net.weight(8, 4, 3), net.weight(4), strides=[2]
    ),
)
case(
    "Conv 1-D",
    lambda net: net.op("Conv", on(1, 8, 12)(net), net.weight(4, 8, 3), net.weight(4), pads=[1, 2]),
)
case(
    "Conv 1-D groups",
    lambda net: net.op("Conv", on(1, 8, 12)(net), net.weight(8, 4, 3), group=2, strides=[2]),
)
case(
    "Conv BN Relu", lambda net: net.op("Relu", net.batch_norm(net.conv(on(*IMAGE)(net), 8, 16), 16))
)
for activation in ("Relu", "Sigmoid", "HardSwish", "Mish"):
    case(
        f"Conv {activation}",
        lambda net, activation=activation: net.op(activation, net.conv(on(*IMAGE)(net), 8, 16)),
        opset=18,
        rel=1e-4,
    )
case("Conv LeakyRelu", lambda net: net.op("LeakyRelu", net.conv(on(*IMAGE)(net), 8, 16), alpha=0.1))
case(
    "Conv Clip",
    lambda net: net.op(
        "Clip", net.conv(on(*IMAGE)(net), 8, 16), net.constant(0.0), net.constant(6.0)
    ),
)
case(
    "Swish", lambda net: net.op("Mul", (x := net.conv(on(*IMAGE)(net), 8, 8)), net.op("Sigmoid", x))
)
case(
    "HardSwish pattern",
    lambda net: net.op(
        "Mul", (x := on(*IMAGE)(net)), net.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    ),
)

case("Gemm", lambda net: net.linear(on(1, 16)(net), 16, 5))
case(
    "Gemm alpha beta",
    lambda net: net.op(
        "Gemm", on(1, 16)(net), net.weight(5, 16), net.weight(5), transB=1, alpha=0.5, beta=2.0
    ),
)
case("Gemm without bias", lambda net: net.op("Gemm", on(1, 16)(net), net.weight(16, 5)))
case("Gemm rows", lambda net: net.linear(net.op("Squeeze", on(1, 7, 16)(net), ints(net, 0)), 16, 5))
case("MatMul vector", lambda net: net.linear(on(1, 16)(net), 16, 5, "MatMul"))
case("MatMul rows", lambda net: net.linear(on(1, 7, 16)(net), 16, 5, "MatMul"))
case("MatMul 4-D", lambda net: net.linear(on(1, 3, 7, 16)(net), 16, 5, "MatMul"))
case("MatMul run time", lambda net: net.op("MatMul", on(1, 7, 16)(net), on(1, 16, 5)(net)))
case("MatMul heads", lambda net: net.op("MatMul", on(1, 3, 7, 16)(net), on(1, 3, 16, 5)(net)))
case("MatMul constant left", lambda net: net.op("MatMul", net.weight(5, 7), on(1, 7, 16)(net)))

case("BatchNormalization", lambda net: net.batch_norm(on(*IMAGE)(net), 8))
case(
    "BatchNormalization behind Sigmoid",
    lambda net: net.batch_norm(net.op("Sigmoid", on(*IMAGE)(net)), 8, epsilon=1e-3),
)
case(
    "LayerNormalization",
    lambda net: net.op("LayerNormalization", on(1, 7, 16)(net), net.weight(16), net.weight(16)),
)
case(
    "LayerNormalization two axes",
    lambda net: net.op(
        "LayerNormalization", on(1, 5, 7, 16)(net), net.weight(7, 16), axis=-2, epsilon=1e-3
    ),
)
case(
    "InstanceNormalization",
    lambda net: net.op("InstanceNormalization", on(*IMAGE)(net), net.weight(8), net.weight(8)),
    rel=1e-4,
)
case(
    "InstanceNormalization 1-D",
    lambda net: net.op("InstanceNormalization", on(1, 8, 20)(net), net.weight(8), net.weight(8)),
    rel=1e-4,
)
case(
    "GroupNormalization",
    lambda net: net.op(
        "GroupNormalization", on(*IMAGE)(net), net.weight(8), net.weight(8), num_groups=4
    ),
    opset=21,
    rel=1e-4,
    shape=IMAGE,
)
case("LpNormalization", simple("LpNormalization", axis=1), rel=1e-4)
case("LpNormalization vector", simple("LpNormalization", 1, 9, axis=1), rel=1e-4)
case("LRN", simple("LRN", size=3, alpha=0.01, beta=0.6, bias=1.5))


def layer_norm(net: Net) -> str:
    x = on(1, 7, 16)(net)
    difference = net.op("Sub", x, net.op("ReduceMean", x, axes=[-1]))
    variance = net.op("ReduceMean", net.op("Pow", difference, net.constant(2.0)), axes=[-1])
    root = net.op("Sqrt", net.op("Add", variance, net.constant(1e-5)))
    return net.op(
        "Add", net.op("Mul", net.op("Div", difference, root), net.weight(16)), net.weight(16)
    )


def gelu(net: Net) -> str:
    x = net.linear(on(1, 7, 16)(net), 16, 8, "MatMul")
    erf = net.op("Erf", net.op("Div", x, net.constant(np.sqrt(2))))
    return net.op("Mul", net.op("Mul", x, net.op("Add", erf, net.constant(1.0))), net.constant(0.5))


case("LayerNorm pattern", layer_norm)
case("Gelu pattern", gelu, rel=1e-4)

for axis in (1, 2, 3, -1):
    case(f"Softmax {axis}", simple("Softmax", axis=axis))
case("Softmax vector", simple("Softmax", 1, 9, axis=1))
case("Softmax 11", simple("Softmax", axis=1), opset=11)
case("LogSoftmax", simple("LogSoftmax", 1, 5, 9, axis=-1))
for op_type in (
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceSum",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSumExp",
):
    axes = (lambda net: {"axes": [2, 3]}) if op_type != "ReduceSum" else (lambda net: {})
    extra = (lambda net: ()) if op_type != "ReduceSum" else (lambda net: (ints(net, 2, 3),))
    case(
        op_type,
        lambda net, o=op_type, a=axes, e=extra: net.op(o, on(*IMAGE)(net), *e(net), **a(net)),
    )
case("ReduceLogSum", simple("ReduceLogSum", axes=[1]), positive=True)
for keep in (0, 1):
    for axes in ([1], [3], [1, 3], [2, 3], [-1], [0, 2], None):
        attributes = {"keepdims": keep} | ({"axes": axes} if axes else {})
        case(f"ReduceMean {axes} {keep}", simple("ReduceMean", **attributes), rel=1e-4)
case("ReduceMean 3-D", simple("ReduceMean", 1, 6, 9, axes=[1], keepdims=0))
case("ReduceMax vector", simple("ReduceMax", 1, 9, axes=[1], keepdims=1))

for op_type in ("MaxPool", "AveragePool"):
    for name, attributes in {
        "plain": {"kernel_shape": [2, 2], "strides": [2, 2]},
        "odd": {"kernel_shape": [3, 2], "strides": [2, 3]},
        "pads": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 1]},
        "ceil": {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        "ceil pads": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4, "ceil_mode": 1},
        "ceil drops": {"kernel_shape": [1, 1], "strides": [3, 5], "ceil_mode": 1},
        "same": {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        "same lower": {"kernel_shape": [2, 2], "strides": [1, 1], "auto_pad": "SAME_LOWER"},
    }.items():
        case(f"{op_type} {name}", simple(op_type, **attributes))
    case(f"{op_type} 1-D", simple(op_type, 1, 8, 13, kernel_shape=[3], strides=[2], pads=[1, 1]))
    case(f"Global{op_type}", simple(f"Global{op_type}"))
    case(f"Global{op_type} 1-D", simple(f"Global{op_type}", 1, 8, 13))
case(
    "AveragePool count pads",
    simple("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, count_include_pad=1),
)

for axis in (1, 2, 3, -1):
    case(
        f"Concat {axis}",
        lambda net, axis=axis: net.op("Concat", on(*IMAGE)(net), on(*IMAGE)(net), axis=axis),
    )
case("Concat constant", lambda net: net.op("Concat", on(1, 4, 6)(net), net.weight(1, 2, 6), axis=1))
case(
    "Concat same twice",
    lambda net: net.op("Concat", (x := net.op("Relu", on(*IMAGE)(net))), x, axis=1),
)
case("Concat vectors", lambda net: net.op("Concat", on(1, 4)(net), on(1, 6)(net), axis=-1))


def split(axis: int, *sizes: int) -> Build:
    def build(net: Net) -> list[str]:
        outputs = [f"part{i}" for i in range(len(sizes))]
        net.nodes.append(
            helper.make_node(
                "Split", [on(*IMAGE)(net), ints(net, *sizes)], outputs, name="split", axis=axis
            )
        )
        return [net.op("Relu", output) for output in outputs]

    return build


case("Split channels", split(1, 3, 5))
case("Split rows", split(2, 2, 3, 5))
case("Split columns", split(-1, 6, 6))


def slice_(
    starts: list[int],
    ends: list[int],
    axes: list[int],
    steps: list[int] | None = None,
    shape: Any = IMAGE,
) -> Build:
    def build(net: Net) -> str:
        parts = [ints(net, *part) for part in (starts, ends, axes, *([steps] if steps else []))]
        return net.op("Slice", net.op("Relu", on(*shape)(net)), *parts)

    return build


case("Slice", slice_([1, 2], [7, 9], [1, 3]))
case("Slice negative", slice_([-3], [2**62], [2]))
case("Slice 2-D", slice_([1], [4], [1], shape=(1, 6, 9)))
case("Slice vector", slice_([1], [4], [1], shape=(1, 9)))
case("Slice step", slice_([0, 1], [10, 12], [2, 3], [2, 2]))
case("Slice step odd", slice_([0], [9], [2], [2], shape=(1, 4, 9, 5)))
case("Slice step 3", slice_([2], [2**62], [3], [3]))
case("Slice backwards", slice_([-1], [-(2**62)], [3], [-1]))
case(
    "Slice 9", lambda net: net.op("Slice", on(*IMAGE)(net), starts=[1], ends=[5], axes=[1]), opset=9
)
case(
    "Gather index",
    lambda net: net.op("Gather", on(1, 6, 9)(net), net.constant(2, dtype=np.int64), axis=1),
)
case("Gather indices", lambda net: net.op("Gather", on(1, 6, 9)(net), ints(net, 2, 3, 4), axis=2))
case(
    "Embed", lambda net: net.op("Gather", net.weight(8, 6), net.input("ids", 1, 5, dtype=np.int64))
)

for shape in ([1, -1], [1, 80, 12], [1, 4, 2, 120], [0, 0, -1], [8, 10, 12], [1, 2, 4, 10, 12]):
    case(
        f"Reshape {shape}",
        lambda net, shape=shape: net.op(
            "Reshape", net.op("Relu", on(*IMAGE)(net)), ints(net, *shape)
        ),
    )
case("Reshape to 3-D", lambda net: net.op("Reshape", on(1, 24)(net), ints(net, 1, 2, 3, 4)))
case("Flatten", simple("Flatten"))
case("Flatten 3-D", simple("Flatten", 1, 6, 9))
case("Squeeze", lambda net: net.op("Squeeze", on(1, 8, 1, 12)(net), ints(net, 2)))
case("Unsqueeze", lambda net: net.op("Unsqueeze", on(1, 8, 12)(net), ints(net, 2)))
for perm in ([0, 2, 3, 1], [0, 3, 1, 2], [0, 1, 3, 2], [0, 2, 1, 3], [0, 3, 2, 1], [0, 1, 2, 3]):
    case(f"Transpose {perm}", simple("Transpose", perm=perm))
case("Transpose 2-D", simple("Transpose", 1, 6, 9, perm=[0, 2, 1]))
case(
    "Transpose batch away and back",
    lambda net: net.op(
        "Transpose",
        net.op("Relu", net.op("Transpose", on(1, 6, 9)(net), perm=[1, 0, 2])),
        perm=[1, 0, 2],
    ),
)


def permutations(net: Net) -> list[str]:
    from itertools import permutations as orders

    x = net.op("Relu", on(1, 2, 3, 4, 5)(net))
    return [net.op("Transpose", x, perm=[0, *order]) for order in orders(range(1, 5))]


case("Transpose 4-D", permutations)
case(
    "shuffle",
    lambda net: net.op(
        "Reshape",
        net.op(
            "Transpose",
            net.op("Reshape", on(*IMAGE)(net), ints(net, 1, 2, 4, 10, 12)),
            perm=[0, 2, 1, 3, 4],
        ),
        ints(net, 1, 8, 10, 12),
    ),
)
case(
    "Expand",
    lambda net: net.op("Relu", net.op("Expand", on(1, 8, 1, 1)(net), ints(net, 1, 8, 10, 12))),
)
case("Tile", lambda net: net.op("Tile", on(1, 3, 4)(net), ints(net, 1, 2, 3)))
for mode in ("constant", "edge", "reflect"):
    case(
        f"Pad {mode}",
        lambda net, mode=mode: net.op(
            "Pad", on(*IMAGE)(net), ints(net, 0, 0, 1, 2, 0, 0, 3, 1), mode=mode
        ),
    )
case(
    "Pad value",
    lambda net: net.op(
        "Pad", on(*IMAGE)(net), ints(net, 0, 1, 1, 2, 0, 2, 3, 1), net.constant(1.5)
    ),
)
case("Pad 2-D", lambda net: net.op("Pad", on(1, 6, 9)(net), ints(net, 0, 1, 2, 0, 2, 1)))
case("Pad 10", lambda net: net.op("Pad", on(*IMAGE)(net), pads=[0, 0, 1, 1, 0, 0, 1, 1]), opset=10)


def resize(
    factors: list[float] | None = None, sizes: list[int] | None = None, **attributes: Any
) -> Build:
    def build(net: Net) -> str:
        x = on(*IMAGE)(net)
        if sizes:
            return net.op("Resize", x, "", "", ints(net, *sizes), **attributes)
        return net.op("Resize", x, "", net.constant(factors), **attributes)

    return build


case(
    "Resize nearest",
    resize([1, 1, 2, 2], coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
)
case("Resize nearest default", resize([1, 1, 3, 2]))
case(
    "Resize nearest down",
    resize(sizes=[1, 8, 5, 6], coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
)
case(
    "Resize nearest fraction",
    resize(sizes=[1, 8, 7, 9], coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
)
case("Resize linear", resize([1, 1, 2, 2], mode="linear"))
case("Resize linear sizes", resize(sizes=[1, 8, 17, 7], mode="linear"))
case(
    "Resize linear corners",
    resize(sizes=[1, 8, 17, 7], mode="linear", coordinate_transformation_mode="align_corners"),
)
case("Resize cubic", resize([1, 1, 2, 2], mode="cubic"), rel=1e-4)
case(
    "Upsample", lambda net: net.op("Upsample", on(*IMAGE)(net), net.constant([1, 1, 2, 2])), opset=9
)
case("DepthToSpace", simple("DepthToSpace", blocksize=2))
case("DepthToSpace CRD", simple("DepthToSpace", blocksize=2, mode="CRD"))
case("SpaceToDepth", simple("SpaceToDepth", blocksize=2))
case(
    "GridSample",
    lambda net: net.op(
        "GridSample", on(1, 4, 6, 7)(net), net.op("Tanh", on(1, 5, 8, 2)(net)), mode="bilinear"
    ),
    rel=1e-3,
)


def recurrent(op_type: str, outputs: str = "y", state: bool = False, **attributes: Any) -> Build:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op_type]
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    if op_type == "GRU":
        attributes["linear_before_reset"] = 1

    def build(net: Net) -> list[str]:
        width, hidden = 6, 5
        x = net.op("Transpose", on(1, 7, width)(net), perm=[1, 0, 2])
        shapes = ((gates * hidden, width), (gates * hidden, hidden), (2 * gates * hidden,))
        inputs = [x, *(net.weight(directions, *shape, fan_in=hidden) for shape in shapes)]
        states = 2 if op_type == "LSTM" else 1
        if state:
            inputs += ["", *(net.input(f"state{i}", directions, 1, hidden) for i in range(states))]
        names = [name if name[0] in outputs else "" for name in ("y", "h", "c")[: states + 1]]
        net.nodes.append(
            helper.make_node(op_type, inputs, names, name="cell", hidden_size=hidden, **attributes)
        )
        results = [name for name in names if name]
        if "y" in results:
            merged = net.op("Transpose", "y", perm=[0, 2, 1, 3])
            results[0] = net.op("Reshape", merged, ints(net, 0, 0, -1))
        return results

    return build


for op_type in ("LSTM", "GRU", "RNN"):
    for direction in ("forward", "reverse", "bidirectional"):
        activations = (
            {}
            if op_type != "RNN"
            else {"activations": ["Tanh"] * (2 if direction == "bidirectional" else 1)}
        )
        case(f"{op_type} {direction}", recurrent(op_type, direction=direction, **activations))
    case(f"{op_type} last state", recurrent(op_type, "hc"))
    case(f"{op_type} both", recurrent(op_type, "yhc"))
    case(f"{op_type} state", recurrent(op_type, "yh", state=True))


def made(name: str) -> tuple[onnx.ModelProto, list[dict[str, Any]]]:
    build, facts = CASES[name]
    net = Net(seed=3)
    outputs = build(net)
    outputs = [outputs] if isinstance(outputs, str) else outputs
    if "shape" in facts:  # onnx cannot infer it
        values = [helper.make_tensor_value_info(outputs[0], 1, facts["shape"])]
        graph = helper.make_graph(net.nodes, "net", net.inputs, values, net.initializers)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", facts["opset"])], ir_version=10
        )
    else:
        model = net.model(*outputs, opset=facts.get("opset", 17))
    random = np.random.default_rng(5)

    def array(value: onnx.ValueInfoProto) -> Any:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.elem_type == onnx.TensorProto.INT64:
            return random.integers(0, 8, shape)
        values = random.normal(size=shape).astype(np.float32)
        return np.abs(values) + 0.5 if facts.get("positive") else values

    return model, [{value.name: array(value) for value in model.graph.input}]


def unbatched(array: Any) -> Any:
    """Without the first axis of length 1, as ncnn has it."""
    axis = next((i for i, size in enumerate(array.shape) if size == 1), None)
    return array if axis is None else array.squeeze(axis)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ncnn and ONNX Runtime compute; an exception where the export failed."""
    folder = tmp_path_factory.mktemp("ncnn")
    config = rustq.QuantConfig(weights="float32")
    cases, expected, failed = {}, {}, {}
    for number, name in enumerate(CASES):
        model, feeds = made(name)
        path = Path(folder, f"{number}.param")
        try:
            rustq.quantize(model, target="ncnn", config=config).save(path)
        except rustq.RustqError as error:
            failed[name] = error
            continue
        outputs = [value.name for value in model.graph.output]
        inputs = [{key: unbatched(value) for key, value in feed.items()} for feed in feeds]
        cases[name] = Case(path, inputs, outputs)
        expected[name] = run(model, feeds[0])
    found = run_ncnn(list(cases.values()))
    pairs = {name: (expected[name], got[0]) for name, got in zip(cases, found, strict=True)}
    return pairs | failed


@pytest.mark.parametrize("name", CASES)
def test_operator(name: str, results: dict[str, Any]) -> None:
    if isinstance(results[name], Exception):
        raise results[name]
    for expected, found in zip(*results[name], strict=True):
        assert found.size == expected.size, (found.shape, expected.shape)
        error = np.abs(found.ravel() - expected.ravel()).max() / max(np.abs(expected).max(), 1e-6)
        assert error <= CASES[name][1].get("rel", 2e-5)
