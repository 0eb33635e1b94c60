"""TensorRT: weights of matrix products in 4 bits, and what the lint says of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
import zoo
from builders import random_feeds, run
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from rustq import QuantConfig
from rustq.errors import UnsupportedError
from rustq.targets.tensorrt import lint


def coded(model: onnx.ModelProto, data: Any = None, **knobs: Any) -> onnx.ModelProto:
    config = QuantConfig(weights="int4", **knobs)
    made = rustq.quantize(model, data, target="tensorrt", config=config).to_onnx()
    onnx.checker.check_model(made, full_check=True)
    return made


def decoders(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "DequantizeLinear"]


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


@pytest.mark.parametrize(
    ("block", "expected"), [(None, {0, 128}), (0, {0}), (64, {0, 64}), (32, {32})]
)
def test_codes_are_blocks_along_the_inputs(block: int | None, expected: set[int]) -> None:
    made = coded(zoo.transformer(), block_size=block)
    known = constants(made)
    sizes = set()
    for node in decoders(made):
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        codes, scale = (known[name] for name in node.input[:2])
        assert codes.data_type == TensorProto.INT4
        rows, columns = codes.dims
        size = attributes.get("block_size", 0)
        assert attributes["axis"] == (0 if size else 1)
        assert list(scale.dims) == ([rows // size, columns] if size else [columns])
        sizes.add(size)
    assert sizes == expected  # a row of 64 is one block of 64, and none of 128
    assert len(decoders(made)) == 6
    assert made.opset_import[0].version == 21
    assert made.ir_version <= 10
    assert lint(made) == []


def test_computes_what_its_codes_say() -> None:
    model = zoo.transformer()
    made = coded(model, block_size=32)
    feed = random_feeds(model)[0]
    expected = ReferenceEvaluator(made).run(None, feed)
    for one, other in zip(run(made, feed), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_data_improve_the_codes() -> None:
    model = zoo.transformer()
    feeds = random_feeds(model)
    exact = run(model, feeds[0])[0]
    errors = [
        np.square(run(coded(model, data, rounding=rounding), feeds[0])[0] - exact).sum()
        for data, rounding in ((None, None), (feeds, "learned"))
    ]
    assert errors[1] < errors[0]


def test_convolutions_stay_float_and_say_why() -> None:
    result = rustq.quantize(zoo.classifier(), target="tensorrt", config=QuantConfig(weights="int4"))
    reasons = {layer.op_type: layer.reason for layer in result.report.layers}
    assert "no such weights for Conv" in reasons["Conv"]
    assert [layer.op_type for layer in result.report.layers if layer.quantized] == ["Gemm"]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [({"weights": "uint4"}, "not available for tensorrt"),
     ({"weights": "int4", "high_precision": "fp16"}, "high_precision='fp32'")],
)  # fmt: skip
def test_refuses(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        rustq.quantize(zoo.transformer(), target="tensorrt", config=QuantConfig(**knobs))


def attribute(name: str, value: int) -> Callable[[onnx.ModelProto, onnx.NodeProto], None]:
    def change(_: onnx.ModelProto, node: onnx.NodeProto) -> None:
        next(a for a in node.attribute if a.name == name).i = value

    return change


def old_opset(model: onnx.ModelProto, _: onnx.NodeProto) -> None:
    model.opset_import[0].version = 20


def zero_point(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    scale = constants(model)[node.input[1]]
    ones = np.ones(int(np.prod(scale.dims)), np.int8)
    model.graph.initializer.append(
        helper.make_tensor("zero", TensorProto.INT4, scale.dims, ones.tolist())
    )
    node.input.append("zero")


def odd_count(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    known = constants(model)
    known[node.input[0]].CopyFrom(
        helper.make_tensor(node.input[0], TensorProto.INT4, [3, 3], [0] * 9)
    )
    known[node.input[1]].CopyFrom(
        numpy_helper.from_array(np.ones((3, 3), np.float32), node.input[1])
    )


BROKEN = {
    "below operator set 21": old_opset,
    "zero point that is not 0": zero_point,
    "for blocks of 16 along axis 0": attribute("block_size", 16),
    "for blocks of 32 along axis 1": attribute("axis", 1),
    "odd number of 4-bit weights": odd_count,
}


@pytest.mark.parametrize("message", BROKEN)
def test_lint_finds(message: str) -> None:
    made = coded(zoo.transformer(), block_size=32)
    BROKEN[message](made, decoders(made)[0])
    findings = lint(made)
    assert any(message in finding for finding in findings), findings
