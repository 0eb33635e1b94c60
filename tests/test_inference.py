"""Shapes inferred by onnx, which ends the process at a Slice of a length below 0 (onnx/onnx#8481)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
from builders import Net
from onnx import TensorProto, helper, numpy_helper
from rustq.inference import KEEPING, WINDOWED, keeps_lengths

OPSETS = (11, 17, 20)


def integers(net: Net, *values: int) -> str:
    return net.constant(values, dtype=np.int64)


def zeros(net: Net, *dims: int, dtype: Any = np.float32) -> str:
    return net.constant(np.zeros(dims), dtype=dtype)


def sparse(net: Net, x: str) -> str:
    del x
    value = onnx.SparseTensorProto(dims=[1, 1, -4, 1])
    value.values.CopyFrom(numpy_helper.from_array(np.float32([1])))
    value.indices.CopyFrom(numpy_helper.from_array(np.array([0])))
    return net.op("Constant", sparse_value=value)


def convolved_integers(net: Net, x: str) -> str:
    codes = net.op("Cast", x, to=TensorProto.UINT8)
    return net.op("ConvInteger", codes, zeros(net, 1, 1, 5, 5, dtype=np.uint8))


def expanded(net: Net, x: str) -> str:
    del x
    return net.op("Expand", net.constant(np.zeros(5)), integers(net, 1, 1, -4, 5))


def sampled(net: Net, x: str) -> str:
    del x
    return net.op("AffineGrid", zeros(net, 1, 2, 3), integers(net, 1, 1, 2, -5))


def pooled_regions(net: Net, x: str) -> str:
    places = {"output_height": -3, "output_width": 3}
    return net.op("RoiAlign", x, zeros(net, 1, 4), zeros(net, 1, dtype=np.int64), **places)


SHRINK: dict[str, Callable[[Net, str], str]] = {
    "AffineGrid": sampled,
    "Constant": sparse,
    "Conv": lambda net, x: net.op("Conv", x, zeros(net, 1, 1, 5, 5)),
    "ConvInteger": convolved_integers,
    "Expand": expanded,
    "MaxPool": lambda net, x: net.op("MaxPool", x, kernel_shape=[5, 5]),
    "MaxUnpool": lambda net, x: net.op("MaxUnpool", x, x, kernel_shape=[2, 2], strides=[-3, -3]),
    "Pad": lambda net, x: net.op("Pad", x, integers(net, 0, 0, -3, 0, 0, 0, -3, 0)),
    "Resize": lambda net, x: net.op("Resize", x, "", net.constant(np.float32([1, 1, -2, -2]))),
    "RoiAlign": pooled_regions,
}
"""What onnx infers a length below 0 of, of an input of 1 × 1 × 2 × 2."""


def cut(net: Net, x: str, axis: int = 2) -> str:
    return net.op("Slice", x, *(integers(net, bound) for bound in (0, 1, axis)))


def models(net: Net, y: str, **options: Any) -> Iterator[onnx.ModelProto]:
    output = helper.make_tensor_value_info(net.op("Relu", y), TensorProto.FLOAT, None)
    graph = helper.make_graph(net.nodes, "net", net.inputs, [output], net.initializers)
    for opset in OPSETS:
        imports = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
        yield helper.make_model(graph, opset_imports=imports, ir_version=8, **options)


def survives(model: onnx.ModelProto) -> None:
    for target in ("onnxruntime", "ncnn", "tensorrt"):
        with suppress(rustq.RustqError):
            rustq.fold(model)
            rustq.quantize(model, target=target)


@pytest.mark.parametrize("before", [0, 1, 20])
@pytest.mark.parametrize("op_type", SHRINK)
def test_a_slice_of_a_length_inferred_below_0(op_type: str, before: int) -> None:
    net = Net()
    x = net.input("x", 1, 1, 2, 2)
    for _ in range(before):  # each has to be shown to onnx before the next one
        x = cut(net, net.op("MaxPool", x, kernel_shape=[1, 1]), axis=1)
    y = SHRINK[op_type](net, x)
    for model in models(net, cut(net, cut(net, y), axis=3)):
        survives(model)


def body(op_type: str, reads: str) -> onnx.GraphProto:
    net = Net()
    y = cut(net, SHRINK[op_type](net, reads))
    output = helper.make_tensor_value_info(y, TensorProto.FLOAT, None)
    return helper.make_graph(net.nodes, "body", [], [output], net.initializers)


@pytest.mark.parametrize("op_type", SHRINK)
def test_a_slice_within_a_body(op_type: str) -> None:
    net = Net()
    x = net.input("x", 1, 1, 2, 2)
    branches = {name: body(op_type, x) for name in ("then_branch", "else_branch")}
    for model in models(net, net.op("If", net.constant(True, "condition", np.bool_), **branches)):
        survives(model)


@pytest.mark.parametrize("domain", ["", "own"])
def test_a_slice_of_what_a_function_makes(domain: str) -> None:
    """One that is called like an operator that keeps lengths."""
    pool = helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[5, 5])
    function = helper.make_function(
        domain, "Celu", ["a"], ["b"], [pool], [helper.make_opsetid("", 17)]
    )
    for name in ("Celu", "Relu"):
        function.name = name
        net = Net()
        x = net.input("x", 1, 1, 2, 2)
        net.nodes.append(helper.make_node(name, [x], ["made"], domain=domain))
        for model in models(net, cut(net, "made"), functions=[function]):
            survives(model)


def test_a_slice_within_a_function() -> None:
    net = Net()
    y = cut(net, net.op("MaxPool", "x", kernel_shape=[5, 5]))
    constants = [
        helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in net.initializers
    ]
    imports = [helper.make_opsetid("", 17)]
    function = helper.make_function("own", "Cut", ["x"], [y], [*constants, *net.nodes], imports)
    net = Net()
    call = helper.make_node("Cut", [net.input("x", 1, 1, 2, 2)], ["cut"], domain="own")
    net.nodes.append(call)
    for model in models(net, "cut", functions=[function]):
        survives(model)


def test_a_slice_of_lengths_that_are_known_is_seen() -> None:
    """Behind several slices, each behind an operator that may shrink: the shapes are known."""
    net = Net()
    y = net.input("x", 1, 8, 32, 32)
    for pads in ([0] * 4, [1, 1, 0, 0]):
        for _ in range(14):
            y = cut(net, net.op("MaxPool", y, kernel_shape=[2, 2], pads=pads), axis=1)
    y = net.op("Reshape", y, net.op("Shape", y))
    for model in models(net, y):
        assert not {"Shape", "Reshape"} & {
            node.op_type for node in rustq.fold(model).to_onnx().graph.node
        }


def tried(schema: onnx.defs.OpSchema) -> Iterator[dict[str, Any]]:
    """Attributes, some of them below 0."""
    required = {"to": TensorProto.FLOAT} if "to" in schema.attributes else {}
    yield required
    kinds = onnx.defs.OpSchema.AttrType
    values = {kinds.INT: (-5, -1, 2), kinds.INTS: ([-5], [1, -4], [2, -3, 2, 2], [0, -1, -7])}
    for attribute in schema.attributes.values():
        yield from ({**required, attribute.name: value} for value in values.get(attribute.type, ()))


@pytest.mark.parametrize("op_type", sorted(KEEPING - {"Slice"}))
def test_operators_that_keep_lengths(op_type: str) -> None:
    """Whatever attributes and constants say, onnx infers no length below 0 of lengths that are not."""
    vectors = (-5, (-5,), (2, -3, 2, 2), (-1, -1), (0, -7), (1, 1, -4, 5))
    for opset, vector in itertools.product((7, 13, 20), (None, *vectors)):
        try:
            schema = onnx.defs.get_schema(op_type, opset)
        except onnx.defs.SchemaError:
            continue
        counts = {max(schema.min_input, 1), max(schema.min_input, min(schema.max_input, 3))}
        for attributes, count, data_prop in itertools.product(tried(schema), counts, (False, True)):
            names = [f"x{index}" for index in range(count)]
            varying = count if vector is None else count - 1
            inputs = [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3, 4, 5])
                for name in names[:varying]
            ]
            constants = [
                numpy_helper.from_array(np.array(vector), name) for name in names[varying:]
            ]
            node = helper.make_node(op_type, names, ["y"], **attributes)
            outputs = [onnx.ValueInfoProto(name="y")]
            graph = helper.make_graph([node], "net", inputs, outputs, constants)
            imports = [helper.make_opsetid("", opset)]
            model = helper.make_model(graph, opset_imports=imports, ir_version=8)
            with suppress(onnx.shape_inference.InferenceError):
                inferred = onnx.shape_inference.infer_shapes(model, data_prop=data_prop)
                dims = inferred.graph.output[0].type.tensor_type.shape.dim
                assert not any(dim.dim_value < 0 for dim in dims), (attributes, vector)


@pytest.mark.parametrize("op_type", sorted(WINDOWED))
def test_windows_that_padding_makes_up_for_keep_lengths(op_type: str) -> None:
    random, kept = np.random.default_rng(0), 0

    def draw(low: int, high: int) -> list[int]:
        return random.integers(low, high, 2).tolist()

    for _ in range(3000):
        attributes: dict[str, Any] = {"kernel_shape": draw(0, 5), "strides": draw(-1, 4)}
        attributes |= {"dilations": draw(0, 3), "pads": [*draw(-1, 5), *draw(-1, 5)]}
        for name in ("strides", "dilations", "pads"):
            if random.integers(4) == 0 or (op_type in ("AveragePool", "LpPool") and name[0] == "d"):
                del attributes[name]
        if random.integers(4) == 0:
            attributes["auto_pad"] = ("SAME_UPPER", "SAME_LOWER", "VALID")[random.integers(3)]
            attributes.pop("pads", None)
        names = ["x", "w"] if op_type == "Conv" else ["x"]
        node = helper.make_node(op_type, names, ["y"], **attributes)
        if not keeps_lengths(node):
            continue
        kept += 1
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, *draw(0, 7)])
        w = helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 3, *draw(1, 9)])
        outputs = [onnx.ValueInfoProto(name="y")]
        graph = helper.make_graph([node], "net", [x, w][: len(names)], outputs)
        imports = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=8)
        with suppress(onnx.shape_inference.InferenceError):
            inferred = onnx.shape_inference.infer_shapes(model)
            dims = inferred.graph.output[0].type.tensor_type.shape.dim
            assert not any(dim.dim_value < 0 for dim in dims), attributes
    assert kept > 200
