"""Quantization end to end: every kind of model, every scheme, run by ONNX Runtime."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
from builders import Array, Feed, Net, random_feeds, run, session, sqnr
from onnx import helper, numpy_helper
from rustq.task import Task
from zoo import MODELS, classifier, mobile, random_network

SCHEMES = ("asym", "sym", "dynamic")
LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"}
ALL_CASES = pytest.mark.parametrize(
    ("name", "scheme"), [(name, scheme) for name in MODELS for scheme in SCHEMES]
)
LEAST_SQNR = 22.0
"""In dB. Random weights and activations are harder than trained ones."""


class Case:
    """A model, what became of it, and data to run both on."""

    def __init__(self, model: onnx.ModelProto, scheme: str, **config: Any) -> None:
        self.model, self.scheme = model, scheme
        static = scheme != "dynamic"
        self.result = rustq.quantize(
            model,
            random_feeds(model, 6) if static else None,
            scheme=scheme if static else "asym",
            config=rustq.QuantConfig(threads=1, **config),
        )
        self.proto = self.result.to_onnx()
        self.feed: Feed = random_feeds(model, 1, seed=99)[0]

    def constants(self) -> dict[str, Array]:
        return {t.name: numpy_helper.to_array(t) for t in self.proto.graph.initializer}

    def optimized(self, folder: Path) -> onnx.ModelProto:
        session(self.result, optimized=folder / "optimized.onnx")
        return onnx.load(folder / "optimized.onnx")

    def reasons(self) -> dict[str, str]:
        return {
            layer.name: layer.reason for layer in self.result.report.layers if not layer.quantized
        }


CACHE: dict[tuple[str, str], Case] = {}


def case(name: str, scheme: str) -> Case:
    if (name, scheme) not in CACHE:
        CACHE[name, scheme] = Case(MODELS[name](), scheme)
    return CACHE[name, scheme]


def cosine(a: Array, b: Array) -> float:
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def op_types(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def label(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]


# ---------------------------------------------------------------------- every model, every scheme
@ALL_CASES
def test_valid_faithful_and_the_same_however_it_is_run(name: str, scheme: str) -> None:
    made = case(name, scheme)
    onnx.checker.check_model(made.proto, full_check=True)
    expected = run(made.model, made.feed)
    plain, fused = (run(made.result, made.feed, optimize=on) for on in (False, True))
    for output, x, y, z in zip(made.model.graph.output, expected, plain, fused, strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype) == (z.shape, z.dtype)
        assert sqnr(x, z) > LEAST_SQNR, output.name
        # Fused kernels round some sums the other way: a few codes off by one.
        assert sqnr(y, z) > 35, output.name
        steps = np.abs(y.astype(np.float64) - z).max() / (np.abs(x).max() / 127)
        assert steps < 4, output.name


@ALL_CASES
def test_inputs_outputs_and_metadata_are_kept(name: str, scheme: str) -> None:
    made = case(name, scheme)
    before, after = made.model.graph, made.proto.graph
    weights = {tensor.name for tensor in before.initializer}
    inputs = [value for value in before.input if value.name not in weights]
    assert [(v.name, v.type) for v in after.input] == [(v.name, v.type) for v in inputs]
    assert [v.name for v in after.output] == [v.name for v in before.output]
    assert [v.type.tensor_type.elem_type for v in after.output] == [
        v.type.tensor_type.elem_type for v in before.output
    ]
    assert made.proto.producer_name == made.model.producer_name


@ALL_CASES
def test_report_lists_every_layer(name: str, scheme: str) -> None:
    made = case(name, scheme)
    report = made.result.report
    listed = {layer.name: layer for layer in report.layers}
    folded = rustq.fold(made.model).to_onnx()
    wanted = [node for node in folded.graph.node if node.op_type in LAYERS]
    assert [(n.op_type, label(n)) for n in wanted if label(n) not in listed] == []
    assert [layer.name for layer in report.layers if not layer.quantized and not layer.reason] == []
    assert report.summary()
    # A model that comes with scales is static without data.
    static = name == "already quantized" and scheme == "dynamic"
    assert report.scheme == ("asym" if static else scheme)
    assert report.size_after == made.result.byte_size == len(made.result.to_bytes())
    assert report.size_before == len(made.model.SerializeToString())
    assert (made.result.calibration is None) == (scheme == "dynamic")


@ALL_CASES
def test_weights_are_stored_once(name: str, scheme: str) -> None:
    made = case(name, scheme)
    read = {value for node in made.proto.graph.node for value in node.input}
    read |= {value.name for value in made.proto.graph.output}
    for body in (a.g for n in made.proto.graph.node for a in n.attribute if a.HasField("g")):
        read |= {value for node in body.node for value in node.input}
    constants = made.constants()
    assert sorted(set(constants) - read) == []
    integers = [array for array in constants.values() if array.dtype == np.int8 and array.any()]
    floats = [array for array in constants.values() if array.dtype == np.float32 and array.size > 1]
    for weight in integers:
        for other in floats:
            for copy in (other, other.T):
                if copy.shape == weight.shape and copy.any():
                    assert abs(cosine(weight, copy)) < 0.9


@ALL_CASES
def test_kernels_are_fused(name: str, scheme: str, tmp_path: Path) -> None:
    """What the report calls quantized has an integer kernel: no weight is dequantized at run time."""
    made = case(name, scheme)
    optimized = made.optimized(tmp_path)
    constants = {tensor.name for tensor in optimized.graph.initializer}
    leftover = [
        node.input[0]
        for node in optimized.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    ]
    assert leftover == []
    layers = Counter(layer.op_type for layer in made.result.report.layers if layer.quantized)
    found = op_types(optimized)
    assert found["QLinearConv"] >= layers["Conv"]
    products = ("QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
    assert sum(found[op] for op in products) >= layers["Gemm"] + layers["MatMul"]


@ALL_CASES
def test_same_bytes_twice(name: str, scheme: str) -> None:
    assert Case(MODELS[name](), scheme).result.to_bytes() == case(name, scheme).result.to_bytes()


# ---------------------------------------------------------------------- what runs on integers
@pytest.mark.parametrize(
    ("name", "scheme", "least"),
    [
        ("classifier", "asym", {"QLinearConv": 3, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1}),
        ("classifier", "sym", {"QLinearConv": 3, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1}),
        ("classifier opset 9", "asym", {"QLinearConv": 3, "QLinearAdd": 1}),
        ("classifier dynamic batch", "asym", {"QLinearConv": 3, "QLinearAdd": 1}),
        ("initializers as inputs", "asym", {"QLinearConv": 3}),
        ("constant nodes", "asym", {"QLinearConv": 3}),
        ("mobile", "asym", {"QLinearConv": 6, "QLinearAdd": 2}),
        ("mobile", "sym", {"QLinearConv": 6, "QLinearAdd": 2}),
        ("squeeze and excite", "asym", {"QLinearConv": 2}),
        ("detector", "asym", {"QLinearConv": 3}),
        ("detector", "sym", {"QLinearConv": 3}),
        ("branching", "asym", {"QLinearConv": 3, "If": 1}),
        ("looping", "asym", {"QLinearConv": 3, "Loop": 1}),
        ("several inputs", "asym", {"QLinearConv": 2, "QLinearAdd": 1}),
        ("transformer", "asym", {"QGemm": 5}),
        ("transformer", "sym", {"QGemm": 5}),
        ("transformer", "dynamic", {"MatMulIntegerToFloat": 3, "DynamicQuantizeMatMul": 3}),
        ("transformer dynamic batch", "asym", {"MatMulIntegerToFloat": 5}),
        ("transformer dynamic batch", "sym", {"MatMulIntegerToFloat": 5}),
        ("custom operator", "asym", {"QLinearConv": 2, "BiasGelu": 1}),
        ("already quantized", "asym", {"QLinearConv": 2}),
        ("huge bias", "asym", {"QLinearConv": 2, "QGemm": 2}),
    ],
)
def test_integer_kernels(name: str, scheme: str, least: dict[str, int], tmp_path: Path) -> None:
    found = op_types(case(name, scheme).optimized(tmp_path))
    assert {op: found[op] for op in least if found[op] < least[op]} == {}


@pytest.mark.parametrize("made", ["int8", "float"])
def test_pooling_of_what_is_made_in_float_stays_float(made: str) -> None:
    """ONNX Runtime's kernel with vectors for it wants the channels last, as integer convolutions leave
    them."""
    net = Net(seed=1)
    x = net.op("Relu", net.conv(net.input("x", 1, 32, 48, 48), 32, 48), name="stem")
    pooled = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[1, 1], name="pool")
    model = net.model(net.conv(net.conv(pooled, 48, 48), 48, 48))
    stem = model.graph.node[0].name
    case = Case(model, "asym", exclude=[stem] if made == "float" else [], noise_price=0.5)
    assert ("pool" in case.reasons()) == (made == "float")


@pytest.mark.parametrize("scheme", ["asym", "sym"])
@pytest.mark.parametrize("product", ["Gemm", "MatMul"])
@pytest.mark.parametrize("activation", ["", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "Clip"])
def test_products_with_a_float_reader(
    activation: str, product: str, scheme: str, tmp_path: Path
) -> None:
    """ONNX Runtime must not fuse the activation into a float Gemm before it sees the integers."""
    net = Net()
    x = net.linear(net.input("x", 32, 128), 128, 128, product)
    if activation:
        bounds = [net.constant(-1.0), net.constant(1.0)] if activation == "Clip" else []
        x = net.op(activation, x, *bounds)
    made = Case(net.model(net.op("Softmax", x)), scheme)
    assert product not in {
        layer.op_type for layer in made.result.report.layers if not layer.quantized
    }
    found = op_types(made.optimized(tmp_path))
    assert found["QGemm"] + found["MatMulIntegerToFloat"] + found["QLinearMatMul"] == 1, found


@pytest.mark.parametrize("scheme", ["asym", "sym"])
@pytest.mark.parametrize(
    "activation",
    [
        "",
        "Relu",
        "Relu6",
        "Clip",
        "LeakyRelu",
        "Sigmoid",
        "Tanh",
        "HardSigmoid",
        "HardSwish",
        "Elu",
    ],
)
def test_convolutions_before_every_activation(activation: str, scheme: str, tmp_path: Path) -> None:
    """Two convolutions, each with the activation behind it, and a float operator at the end."""
    net = Net()
    x = net.input("x", 1, 32, 16, 16)
    for channels in ((32, 64), (64, 32)):
        x = net.conv(x, *channels)
        limits = {"Relu6": (0.0, 6.0), "Clip": (-1.0, 1.0)}.get(activation)
        if limits:
            x = net.op("Clip", x, *map(net.constant, limits))
        elif activation:
            x = net.op(activation, x)
    made = Case(net.model(net.op("Softmax", x, axis=1)), scheme)
    quantized = [layer for layer in made.result.report.layers if layer.quantized]
    convolutions = sum(layer.op_type == "Conv" for layer in quantized)
    assert op_types(made.optimized(tmp_path))["QLinearConv"] == convolutions == 2
    (expected,), (found,) = run(made.model, made.feed), run(made.result, made.feed, optimize=True)
    assert sqnr(expected, found) > LEAST_SQNR


@pytest.mark.parametrize("scheme", ["asym", "sym"])
def test_hard_sigmoid_clips_at_both_ends(scheme: str) -> None:
    """Where it stays float in the symmetric scheme: int8 with the zero point 0 goes on below 0."""
    net = Net()
    x = net.conv(net.input("x", 1, 32, 16, 16), 32, 32)
    x = net.op("Mul", x, net.op("HardSigmoid", net.op("Mul", x, net.constant(6.0)), alpha=1 / 6))
    model = net.model(net.conv(x, 32, 32))
    data = [{"x": net.random.normal(size=(1, 32, 16, 16)).astype(np.float32)} for _ in range(4)]
    task = Task.of(model, data, scheme=scheme, config=rustq.QuantConfig(method="minmax"))
    result = task.outcome(everything=True)
    layers = {layer["op_type"]: layer for layer in result.layers}
    assert layers["HardSigmoid"]["quantized"] == (scheme == "asym")
    assert layers["Mul"]["quantized"]
    (expected,), (found,) = run(model, data[0]), run(result.model, data[0], optimize=True)
    assert sqnr(expected, found) > LEAST_SQNR


@pytest.mark.parametrize("scheme", ["asym", "sym"])
@pytest.mark.parametrize("name", ["classifier", "mobile", "detector", "branching"])
def test_activations_are_of_the_type_of_the_scheme(name: str, scheme: str) -> None:
    tensors = [t for layer in case(name, scheme).result.report.layers for t in layer.outputs]
    assert {t.dtype for t in tensors} == {"uint8" if scheme == "asym" else "int8"}
    if scheme == "sym":
        assert {zero for t in tensors for zero in t.zero_point} == {0}


@pytest.mark.parametrize("scheme", ["asym", "sym"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_are_symmetric(scheme: str, per_channel: bool) -> None:
    """scale = absmax / 127 of each output channel of the folded weights, and codes in -127…127."""
    made = Case(mobile(), scheme, per_channel=per_channel, avoid_saturation=False, equalize=False)
    folded = {
        t.name: numpy_helper.to_array(t) for t in rustq.fold(made.model).to_onnx().graph.initializer
    }
    constants, seen = made.constants(), 0
    for node in made.proto.graph.node:
        integers = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if integers is None or integers.dtype != np.int8:
            continue
        name = node.input[0].removesuffix("_quantized")
        axes = tuple(range(1, integers.ndim)) if per_channel else None
        absmax = np.abs(folded[name]).max(axes).astype(np.float64)
        np.testing.assert_array_equal(constants[node.input[1]], np.float32(absmax / 127))
        assert integers.min() >= -127
        seen += 1
    assert seen >= 6


def test_no_pair_of_weights_can_saturate() -> None:
    """Activations of 255 everywhere, the worst there is: fused kernels and plain float arithmetic agree."""
    net = Net()
    x = net.input("x", 1, 3, 16, 16)
    x = net.op(
        "Relu",
        net.op("Conv", x, net.constant(net.random.uniform(size=(32, 3, 3, 3))), pads=[1] * 4),
    )
    x = net.op("Conv", x, net.constant(-net.random.uniform(size=(32, 32, 3, 3))), pads=[1] * 4)
    x = net.op("Flatten", net.op("GlobalMaxPool", x))
    model = net.model(net.op("Gemm", x, net.weight(8, 32), transB=1))
    feed = {"x": np.ones((1, 3, 16, 16), np.float32)}
    result = rustq.quantize(model, [feed], config=rustq.QuantConfig(noise_price=0))
    assert sqnr(run(model, feed)[0], run(result, feed, optimize=True)[0]) > 35
    for integers in (numpy_helper.to_array(t) for t in result.to_onnx().graph.initializer):
        if integers.dtype == np.int8 and integers.ndim == 4:
            sums = np.moveaxis(integers, 1, -1).reshape(len(integers), -1).astype(int)
            even = sums[:, : sums.shape[1] // 2 * 2]
            assert abs(even[:, ::2] + even[:, 1::2]).max() <= 128


@pytest.mark.parametrize("scheme", ["asym", "sym"])
def test_quiet_channels_need_no_room_for_pairs(scheme: str) -> None:
    """One channel of each pair stays below a tenth of the other: their products fit as they are."""
    net = Net()
    x = net.input("x", 1, 3, 16, 16)
    loud = np.where(np.arange(32) % 2, 0.05, 1.0)[:, None, None, None]
    first = net.constant(loud * net.random.uniform(size=(32, 3, 3, 3)))
    x = net.op("Relu", net.op("Conv", x, first, pads=[1] * 4))
    weights = net.random.uniform(0.9, 1, size=(16, 32, 1, 1))
    model = net.model(net.op("Conv", x, net.constant(weights, "pairs")))
    feed = {"x": np.ones((1, 3, 16, 16), np.float32)}
    config = rustq.QuantConfig(method="minmax", equalize=False)
    seen = rustq.calibrate(model, [feed])  # the channels too, as by default
    task = replace(Task.of(model, seen, scheme=scheme, config=config), method="auto")
    result = task.outcome(everything=True).model
    proto = onnx.load_from_string(result.to_bytes())
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    room = constants["pairs_scale"] * 127 / weights.max(axis=(1, 2, 3))
    most = {"asym": 1.1, "sym": 1.6}[scheme]  # ONNX Runtime adds 128 to what is symmetric
    assert (room >= 1 - 1e-6).all()
    assert (room < most).all()
    assert sqnr(run(result, feed)[0], run(result, feed, optimize=True)[0]) > 35


@pytest.mark.parametrize("scheme", SCHEMES)
def test_dead_columns_keep_their_bias(scheme: str) -> None:
    """Columns 1 and 5 of the last product have no weights: what comes out is their bias."""
    made = case("dead channels", scheme)
    expected, found = (run(model, made.feed)[1][:, [1, 5]] for model in (made.model, made.result))
    np.testing.assert_allclose(found, expected, rtol=0.01, atol=1e-3)


def test_bias_of_a_tiny_channel_does_not_overflow() -> None:
    """1000 on a scale of some 1e-12 is more than int32 holds."""
    for scheme in ("asym", "sym"):
        made = case("huge bias", scheme)
        for x, y in zip(run(made.model, made.feed), run(made.result, made.feed), strict=True):
            channels = slice(4, 8) if x.ndim == 4 else slice(8, 16)
            np.testing.assert_allclose(
                y[:, channels], x[:, channels], rtol=0.02, atol=0.01 * np.abs(x).max()
            )


def test_dead_channels_are_noted() -> None:
    notes = case("dead channels", "asym").result.report.notes
    assert [note for note in notes if "2 channels" in note and "zero weights" in note]


# ---------------------------------------------------------------------- initializers as inputs
def test_a_default_can_still_be_overridden() -> None:
    """An initializer that is also an input is a default: feeding another value must count."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("image", 1, 32, 16, 16), 32, 32))
    x = net.op("Add", x, net.weight(1, 32, 1, 1, name="offset"))
    model = net.model(net.conv(x, 32, 32))
    model.graph.input.append(helper.make_tensor_value_info("offset", 1, [1, 32, 1, 1]))
    for scheme in SCHEMES:
        made = Case(model, scheme)
        assert [value.name for value in made.proto.graph.input] == ["image", "offset"]
        for factor in (1, -1):
            offset = numpy_helper.to_array(model.graph.initializer[2]) * np.float32(factor)
            feed = made.feed | {"offset": offset}
            assert sqnr(run(model, feed)[0], run(made.result, feed)[0]) > LEAST_SQNR, (
                scheme,
                factor,
            )


def test_weights_that_can_be_overridden_stay_float() -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input("image", 1, 32, 16, 16), 32, 32))
    model = net.model(net.op("Conv", x, net.weight(32, 32, 1, 1, name="w"), name="open"))
    model.graph.input.append(helper.make_tensor_value_info("w", 1, [32, 32, 1, 1]))
    made = Case(model, "asym")
    assert "'w'" in made.reasons()["open"]


# ---------------------------------------------------------------------- opset conversion
@pytest.mark.parametrize(
    ("opset", "after"), [(9, 13), (11, 13), (12, 13), (13, 13), (17, 17), (21, 21)]
)
def test_opset(opset: int, after: int) -> None:
    report = Case(classifier(opset), "asym").result.report
    assert (report.opset_before, report.opset_after) == (opset, after)


def unconvertible() -> onnx.ModelProto:
    """Operator set 11 with an operator that ONNX's converter does not know."""
    model = classifier(11)
    graph = model.graph
    graph.node.append(
        helper.make_node("Gelu", ["logits"], ["out"], name="acme", domain="com.microsoft")
    )
    graph.output[0].name = "out"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    graph.node.append(helper.make_node("Loop", ["", "", ""], ["n"], name="bad"))
    del graph.node[-1]
    return model


@pytest.mark.parametrize("scheme", SCHEMES)
def test_conversion_beside_custom_operators(scheme: str) -> None:
    """Converted, or left float with a note; never an error."""
    made = Case(unconvertible(), scheme)
    x, y = run(made.model, made.feed)[0], run(made.result, made.feed)[0]
    assert sqnr(x, y) > LEAST_SQNR
    report = made.result.report
    assert report.opset_after == 13 or any(
        "could not be converted" in note for note in report.notes
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_conversion_that_fails(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be converted stays float, and the report says why."""

    def fail(*_: Any) -> None:
        raise RuntimeError("no adapter for Conv")

    monkeypatch.setattr("onnx.version_converter.convert_version", fail)
    made = Case(classifier(11), scheme)
    assert "no adapter for Conv" in " ".join([*made.result.report.notes, *made.reasons().values()])
    np.testing.assert_allclose(
        run(made.result, made.feed)[0], run(made.model, made.feed)[0], rtol=1e-4, atol=1e-5
    )


# ---------------------------------------------------------------------- options
def test_exclude() -> None:
    model = classifier()
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    made = Case(model, "asym", exclude=[names[1], "*nothing*"])
    assert made.reasons()[names[1]] == "excluded by the configuration"
    assert names[2] not in made.reasons()
    assert [note for note in made.result.report.notes if "*nothing*" in note]
    everything = Case(model, "asym", exclude_op_types=["Conv", "Gemm"])
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(op_types(everything.proto))


@pytest.mark.parametrize("method", ["auto", "minmax", "percentile", "entropy", "mse", "ifmr"])
@pytest.mark.parametrize("scheme", ["asym", "sym"])
def test_every_method(method: str, scheme: str) -> None:
    made = Case(classifier(), scheme, method=method)
    onnx.checker.check_model(made.proto, full_check=True)
    assert sqnr(run(made.model, made.feed)[0], run(made.result, made.feed)[0]) > LEAST_SQNR
    assert made.result.report.method == method


def test_a_calibration_stands_for_its_data(tmp_path: Path) -> None:
    model = classifier()
    feeds = random_feeds(model, 4)
    calibration = rustq.calibrate(model, feeds)
    calibration.save(tmp_path / "cal")
    loaded = rustq.Calibration.load(tmp_path / "cal")
    # With samples to run, "auto" tries more than a calibration can tell.
    for scheme, config in product(
        ("asym", "sym"), (rustq.QuantConfig(method="mse", equalize=each) for each in (False, True))
    ):
        direct = rustq.quantize(model, feeds, scheme=scheme, config=config).to_bytes()
        for stored in (calibration, loaded):
            again = rustq.quantize(model, stored, scheme=scheme, config=config)
            assert again.to_bytes() == direct


def test_a_calibration_of_another_model() -> None:
    """Its ranges would be those of other values: it is refused, whichever way round."""
    calibrations = {
        make: rustq.calibrate(make(), random_feeds(make(), 1)) for make in (mobile, classifier)
    }
    for make, other in ((mobile, classifier), (classifier, mobile)):
        rustq.quantize(make(), calibrations[make])
        with pytest.raises(rustq.DataError, match="made from another model"):
            rustq.quantize(make(), calibrations[other])


def test_quantizing_twice_is_harmless() -> None:
    once = case("mobile", "asym")
    again = rustq.quantize(once.proto, random_feeds(once.model, 4))
    onnx.checker.check_model(again.to_onnx(), full_check=True)
    assert sqnr(run(once.model, once.feed)[0], run(again, once.feed)[0]) > LEAST_SQNR - 3
    dynamic = case("transformer", "dynamic")
    again = rustq.quantize(dynamic.proto)
    onnx.checker.check_model(again.to_onnx(), full_check=True)
    assert again.op_counts == dynamic.result.op_counts


def test_save_and_load(tmp_path: Path) -> None:
    result = case("classifier", "asym").result
    (path,) = result.save(tmp_path / "q.onnx")
    assert path.read_bytes() == result.to_bytes()
    assert rustq.load(path) == result


def test_size_is_the_int8_weights_and_what_stays_float() -> None:
    net = Net()
    x = net.input("x", 16, 512)
    for _ in range(4):
        x = net.op("Relu", net.linear(x, 512, 512))
    made = Case(net.model(x), "asym")
    assert all(layer.quantized for layer in made.result.report.layers if layer.op_type == "Gemm")
    assert made.result.byte_size < 1.02 * 4 * (512 * 512 + 8 * 512) + 8000


# ---------------------------------------------------------------------- determinism across threads
SCRIPT = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
import rustq
from builders import random_feeds
from zoo import MODELS
digest = hashlib.sha256()
for name in ("classifier", "transformer", "detector"):
    model = MODELS[name]()
    for threads in (1, 2):
        config = rustq.QuantConfig(threads=1)
        for data in (random_feeds(model, 3), None):
            digest.update(rustq.quantize(model, data, config=config).to_bytes())
print(digest.hexdigest())
"""


def test_same_bytes_with_one_thread_and_with_two() -> None:
    def digest(threads: str) -> str:
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent)]
        return subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert len(digest("1")) == len(hashlib.sha256().hexdigest())
    assert digest("1") == digest("2")


# ---------------------------------------------------------------------- random networks
@pytest.mark.parametrize("scheme", ["asym", "sym"])
@pytest.mark.parametrize("seed", range(60))
def test_random_networks(seed: int, scheme: str) -> None:
    """Any mixture of operators is valid, and as good with ONNX Runtime's fusions as without."""
    made = Case(random_network(seed), scheme)
    onnx.checker.check_model(made.proto, full_check=True)
    expected = run(made.model, made.feed)
    plain, fused = (run(made.result, made.feed, optimize=on) for on in (False, True))
    for output, x, y, z in zip(made.model.graph.output, expected, plain, fused, strict=True):
        assert sqnr(x, y) > 15, output.name
        assert sqnr(x, z) > min(sqnr(x, y), 60) - 3, output.name
