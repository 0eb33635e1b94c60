"""Weights below 8 bits, and int16 activations: codes against their definition, and what ONNX Runtime computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
from builders import Array, Net, random_feeds, run, session, sqnr
from click.testing import CliRunner
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from rustq import demo
from rustq.cli import commands

LEVELS = {
    "int8": range(-127, 128),
    "int4": range(-8, 8),
    "uint4": range(16),
    "log2": [0, *(sign * 2**e for sign in (-1, 1) for e in range(7))],
    "binary": [-1, 1],
}
BITS = {"int8": 8, "int4": 4, "uint4": 4, "log2": 4, "binary": 1}
LOW = [name for name, bits in BITS.items() if bits < 8]


def network() -> onnx.ModelProto:
    """Every operator whose weights are taken, and counts of codes that fill no byte."""
    net = Net(3)
    x = net.input("x", "n", 3, 7, 7)
    y = net.op("Relu", net.conv(x, 3, 7))
    y = net.op("Relu", net.conv(y, 7, 14, group=7))
    y = net.op("Relu", net.conv(y, 14, 40, kernel=1))
    y = net.op("Relu", net.conv(y, 40, 14))
    transposed = net.weight(14, 5, 3, 3, fan_in=126, name="up")
    y = net.op("ConvTranspose", y, transposed, pads=[1] * 4)
    y = net.op("Reshape", y, net.constant([0, 245], dtype=np.int64))
    y = net.op("Gemm", y, net.weight(33, 245, fan_in=245, name="rows"), net.weight(33), transB=1)
    y = net.op("MatMul", net.op("Relu", y), net.weight(33, 9, fan_in=33, name="columns"))
    return net.model(y)


def format_of(layer: Array, name: str) -> str:
    """What the weights of a layer of that network become: one in 32 may be int8, and the next are too many."""
    return "int8" if name.endswith("int4") and layer.size <= 189 else name


def quantized(model: Any, data: Any = None, **config: Any) -> rustq.QuantizedModel:
    return rustq.quantize(model, data, config=rustq.QuantConfig(threads=1, **config))


def weights_of(proto: onnx.ModelProto) -> dict[str, Array]:
    """What the second input of each product is, computed by onnx's reference; by ONNX Runtime's own operator, its
    product of the identity."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    found: dict[str, Array] = {}
    wanted = []
    for node in proto.graph.node:
        if node.op_type == "MatMulNBits":
            found[node.name] = blocks_of(node, proto)
        elif node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            wanted.append((node.name, node.input[1]))
    made = {name for _, name in wanted} - set(constants)
    chain, needed = [], set(made)
    for node in reversed(proto.graph.node):
        if needed & set(node.output):
            chain.insert(0, node)
            needed |= set(node.input)
    outputs = [onnx.ValueInfoProto(name=name) for name in sorted(made)]
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in needed]
    graph = helper.make_graph(chain, "weights", [], outputs, kept)
    opset = max(proto.opset_import[0].version, 21)  # the reference has no older DequantizeLinear
    decoder = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    values = dict(zip(sorted(made), ReferenceEvaluator(decoder).run(None, {}), strict=True))
    return found | {node: values.get(name, constants.get(name)) for node, name in wanted}


def blocks_of(node: onnx.NodeProto, proto: onnx.ModelProto) -> Array:
    numbers = {attribute.name: attribute.i for attribute in node.attribute}
    exact = helper.make_node("MatMulNBits", ["x", *node.input[1:]], ["y"], domain="com.microsoft")
    exact.attribute.extend(a for a in node.attribute if a.name != "accuracy_level")
    graph = helper.make_graph(
        [exact],
        "blocks",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", numbers["K"]])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", numbers["N"]])],
        [tensor for tensor in proto.graph.initializer if tensor.name in node.input],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    return run(model, {"x": np.eye(numbers["K"], dtype=np.float32)})[0]


def channels(weights: Array, op_type: str, *, transposed: bool = False) -> Array:
    """A row for each output channel."""
    if op_type == "ConvTranspose" or (weights.ndim == 2 and not transposed):
        weights = np.moveaxis(weights, 1, 0)
    return weights.reshape(len(weights), -1)


def check_row(exact: Array, decoded: Array, name: str) -> None:
    """Some scale and zero point make every decoded weight the nearest level to the exact one."""
    if name == "int8":
        scale = np.abs(exact).max() / 127
        np.testing.assert_allclose(decoded, scale * np.rint(exact / scale), rtol=1e-5)
        return
    steps = np.unique(decoded)
    assert len(steps) <= len(LEVELS[name])
    if name == "binary":
        np.testing.assert_allclose(np.abs(decoded), np.abs(exact).mean(), rtol=1e-5)
        np.testing.assert_array_equal(decoded > 0, exact >= 0)
        return
    distances = np.abs(exact[:, None] - steps[None])
    np.testing.assert_allclose(np.abs(exact - decoded), distances.min(1), rtol=1e-4, atol=1e-6)
    positive = np.abs(steps[steps != 0])
    if name == "log2":
        exponents = np.log2(positive / positive.max())
        np.testing.assert_allclose(exponents, np.rint(exponents), atol=1e-5)
        assert exponents.min() >= -6
    elif len(exact) > 8:
        # Few weights may not have two neighbouring levels among them.
        scales = [np.diff(steps).min() / parts for parts in (1, 2, 3, 4)]
        uneven = [np.abs(np.diff(steps) / s - np.rint(np.diff(steps) / s)).max() for s in scales]
        even = [scale for scale, error in zip(scales, uneven, strict=True) if error < 2e-2]
        span = (steps[-1] - steps[0]) / even[0]
        assert span < max(LEVELS[name]) - min(LEVELS[name]) + 0.1


@pytest.mark.parametrize("form", ["auto", "qdq"])
@pytest.mark.parametrize("block", [0, 32, 16])
@pytest.mark.parametrize("name", LEVELS)
def test_every_weight_is_decoded_to_the_nearest_level(name: str, block: int, form: str) -> None:
    if block and not name.endswith("int4"):
        pytest.skip("has no blocks")
    model = network()
    config = {"block_size": block} if name.endswith("int4") else {}
    result = quantized(model, weights=name, activations="float32", quant_format=form, **config)
    proto = result.to_onnx()
    onnx.checker.check_model(proto, full_check=form == "qdq")
    exact, decoded = weights_of(model), weights_of(proto)
    assert exact.keys() == decoded.keys()
    for node in model.graph.node:
        if node.name not in exact:
            continue
        flat = bool(decoded[node.name].ndim == 2)
        by_kernel = flat and node.op_type == "Gemm" and decoded[node.name].shape == (245, 33)
        rows = channels(exact[node.name], node.op_type, transposed=node.op_type == "Gemm")
        found = channels(
            decoded[node.name], node.op_type, transposed=node.op_type == "Gemm" and not by_kernel
        )
        levels = format_of(exact[node.name], name)
        size = rows.shape[1]
        if block and levels == name and node.op_type != "ConvTranspose":
            size = block * int(np.prod(exact[node.name].shape[2:]))
        for row, values in zip(rows, found, strict=True):
            for start in range(0, len(row), size):
                check_row(row[start : start + size], values[start : start + size], levels)


@pytest.mark.parametrize("form", ["auto", "qdq"])
@pytest.mark.parametrize("name", LOW)
def test_runs_and_is_small(name: str, form: str) -> None:
    model = network()
    feed = random_feeds(model, 1)[0]
    result = quantized(model, weights=name, quant_format=form)
    found = run(result, feed, optimize=True)[0]
    by_hand = helper.make_model(model.graph, opset_imports=model.opset_import, ir_version=8)
    for node, weights in weights_of(result.to_onnx()).items():
        original = next(n for n in by_hand.graph.node if n.name == node)
        tensor = next(t for t in by_hand.graph.initializer if t.name == original.input[1])
        values = weights.T if weights.shape != tuple(tensor.dims) else weights
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    assert sqnr(run(by_hand, feed)[0], found) > 35  # MatMulNBits rounds activations
    coded = sum(int(np.prod(t.dims)) for t in model.graph.initializer if len(t.dims) > 1)
    biases = sum(int(np.prod(t.dims)) for t in model.graph.initializer if len(t.dims) == 1)
    assert result.byte_size < coded * BITS[name] / 8 + 4 * biases + 10_000
    layers = {layer.name: layer for layer in result.report.layers}
    forms = {layer: format_of(weights, name) for layer, weights in weights_of(model).items()}
    assert {layer.name: layer.weights for layer in layers.values()} == forms
    assert len(set(forms.values())) == 1 + name.endswith("int4")
    assert f"with {name} weights" in result.report.summary()
    assert result.report.scheme == "weights only"


@pytest.mark.parametrize("name", LOW)
def test_with_data_int8_kernels_multiply_by_the_codes(name: str, tmp_path: Path) -> None:
    model, data = demo.model_path(), demo.calibration()
    result = quantized(model, data, weights=name)
    session(result, optimized=tmp_path / "optimized.onnx")
    optimized = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert optimized.count("QLinearConv") >= 9
    assert "Gather" not in optimized and "Cast" not in optimized
    plain = quantized(model, data)
    assert result.byte_size < 0.8 * plain.byte_size
    for optimize in (False, True):  # the integers mean the same to ONNX Runtime's kernels
        feed = data[0]
        expected = run(result, feed)[0]
        assert sqnr(expected, run(result, feed, optimize=optimize)[0]) > 25


@pytest.mark.parametrize("name", ["int4", "uint4", "log2"])
def test_learned_rounding_beats_the_nearest_level(name: str) -> None:
    model, data = demo.model_path(), demo.calibration()
    feed = data[1]
    exact = run(rustq.load(model), feed)[0]
    for activations in ("int8", "float32"):
        noise = [
            sqnr(exact, run(quantized(model, data[:1], **settings), feed)[0])
            for settings in (
                {"weights": name, "activations": activations, "bias_correction": False},
                {
                    "weights": name,
                    "activations": activations,
                    "rounding": "learned",
                    "bias_correction": True,
                },
            )
        ]
        assert noise[1] > noise[0] + 2, (activations, noise)


@pytest.mark.parametrize("activations", ["int8", "float32"])
def test_biases_take_up_no_errors_of_binary_weights_unasked(activations: str) -> None:
    model, data = demo.model_path(), demo.calibration()
    settings = {"weights": "binary", "activations": activations}
    left, kept, corrected = (
        quantized(model, data, bias_correction=asked, **settings) for asked in (None, False, True)
    )
    assert left == kept != corrected


def test_four_bits_keep_the_digits() -> None:
    model = demo.model_path()
    for name in ("int4", "uint4"):
        result = quantized(model, demo.calibration(), weights=name, rounding="learned")
        runner = session(result)
        name = runner.get_inputs()[0].name
        accuracy = demo.accuracy(lambda x, run=runner.run, name=name: run(None, {name: x})[0])
        assert accuracy > 0.98


def test_int16_activations_are_finer() -> None:
    model, data = demo.model_path(), demo.calibration()
    feed = data[0]
    exact = run(rustq.load(model), feed)[0]
    for scheme in ("asym", "sym"):
        coarse, fine = (
            rustq.quantize(
                model,
                data,
                scheme=scheme,
                config=rustq.QuantConfig(activations=activations, avoid_saturation=False),
            )
            for activations in ("int8", "int16")
        )
        types = {t.data_type for t in fine.to_onnx().graph.initializer}
        assert onnx.TensorProto.UINT16 in types or onnx.TensorProto.INT16 in types
        onnx.checker.check_model(fine.to_onnx(), full_check=True)
        few = {key: value[:2] for key, value in feed.items()}
        expected = ReferenceEvaluator(fine.to_onnx()).run(None, few)[0]
        assert sqnr(expected, run(fine, few)[0]) > 60
        assert sqnr(exact, run(fine, feed)[0]) > sqnr(exact, run(coarse, feed)[0])
        of_activations = [
            min(
                layer.activation_sqnr_db
                for layer in result.report.layers
                if layer.activation_sqnr_db
            )
            for result in (coarse, fine)
        ]
        assert of_activations[1] > of_activations[0] + 30


def test_blocks_and_data_leave_the_activations_of_products_float() -> None:
    model = demo.model_path()
    result = quantized(model, demo.calibration(), weights="int4", block_size=32)
    assert result.op_counts["MatMulNBits"] == 1 and result.op_counts["QuantizeLinear"] > 0


def test_excluded_and_shared_weights_stay() -> None:
    net = Net(4)
    x = net.input("x", "n", 64)
    shared = net.weight(64, 64, fan_in=64, name="shared")
    y = net.op("MatMul", net.op("MatMul", x, shared, name="a"), shared, name="b")
    y = net.op("MatMul", y, net.weight(64, 64, fan_in=64), name="c")
    y = net.op("MatMul", y, net.weight(64, 64, fan_in=64), name="d")
    result = quantized(net.model(y), weights="int4", exclude="c")
    reasons = {layer.name: layer.reason for layer in result.report.layers}
    assert reasons == {
        "a": "its weights 'shared' are used elsewhere too",
        "b": "its weights 'shared' are used elsewhere too",
        "c": "excluded by the configuration",
        "d": "",
    }
    assert result.op_counts == {"MatMul": 3, "MatMulNBits": 1}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"weights": "int4", "block_size": 24}, "power of 2 from 16 on, or 0, got 24"),
        ({"weights": "log2", "block_size": 32}, "block_size is for int4 and uint4"),
        ({"weights": "binary", "per_channel": False}, "per_channel=False is for int8"),
        ({"activations": "int16", "equalize": True}, "equalize=True is for int8 activations"),
    ],
)
def test_choices_that_do_not_go_together(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rustq.QuantConfig(**config)


def test_on_the_command_line(tmp_path: Path) -> None:
    output = tmp_path / "small.onnx"
    arguments = ["quantize", str(demo.model_path()), "--weights", "log2", "-o", str(output)]
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 0, result.output
    assert "11 of 11" not in result.output and "with log2 weights" in result.output
    assert output.stat().st_size < 60_000
