"""Channels on one scale, and settings chosen by their outputs: against numpy and ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import rustq
from builders import Array, Feed, Net, run, sqnr
from onnx import numpy_helper
from rustq.task import Task

LOUD = np.geomspace(1, 100, 16)
"""How large the channels of the values in the middle are."""


def feeds(*shape: int, seed: int = 1) -> list[Feed]:
    random = np.random.default_rng(seed)
    return [{"x": random.normal(size=shape).astype(np.float32)} for _ in range(12)]


def uneven(net: Net, x: str, inputs: int, kernel: int = 3, clip: str = "Relu") -> str:
    """A convolution whose 16 channels are of very different size, and a clip."""
    weight = net.random.normal(size=(16, inputs, kernel, kernel)) / np.sqrt(inputs * kernel**2)
    weight = net.constant(weight * LOUD[:, None, None, None])
    y = net.op("Conv", x, weight, net.constant(LOUD / 10), pads=[kernel // 2] * 4)
    if clip == "Clip":
        return net.op("Clip", y, net.constant(0.0), net.constant(60.0))
    return net.op(clip, y) if clip else y


def reading(net: Net, x: str, outputs: int = 16) -> str:
    """A convolution to which all of these channels matter alike."""
    weight = net.random.normal(size=(outputs, 16, 1, 1)) / LOUD[:, None, None] / 4
    return net.op("Conv", x, net.constant(weight), net.weight(outputs, fan_in=100))


def depthwise(net: Net, x: str) -> str:
    weight = net.random.normal(size=(16, 1, 3, 3)) / 3
    return net.op("Conv", x, net.constant(weight), group=16, pads=[1] * 4)


def chain(clip: str = "Relu") -> onnx.ModelProto:
    net = Net()
    return net.model(reading(net, uneven(net, net.input("x", 1, 8, 12, 12), 8, clip=clip)))


def separable() -> onnx.ModelProto:
    net = Net()
    y = depthwise(net, uneven(net, net.input("x", 1, 8, 12, 12), 8))
    return net.model(reading(net, y))


def residual() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", 1, 8, 12, 12)
    return net.model(reading(net, net.op("Add", uneven(net, x, 8, clip=""), uneven(net, x, 8))))


def largest() -> onnx.ModelProto:
    net = Net()
    y = uneven(net, net.input("x", 1, 8, 12, 12), 8)
    return net.model(reading(net, net.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])))


def joined() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", 1, 8, 12, 12)
    y = net.op("Concat", uneven(net, x, 8), uneven(net, x, 8, 1), axis=1)
    weight = net.random.normal(size=(16, 32, 1, 1)) / np.tile(LOUD, 2)[:, None, None] / 6
    return net.model(net.op("Conv", y, net.constant(weight)))


def pooled() -> onnx.ModelProto:
    net = Net()
    y = net.op("GlobalAveragePool", uneven(net, net.input("x", 1, 8, 12, 12), 8))
    weight = net.random.normal(size=(16, 10)) / LOUD[:, None]
    return net.model(net.op("Gemm", net.op("Flatten", y), net.constant(weight), net.weight(10)))


def float_reader() -> onnx.ModelProto:
    net = Net()
    y = net.op("Abs", uneven(net, net.input("x", 1, 8, 12, 12), 8, clip=""))
    return net.model(net.op("Div", y, net.constant(LOUD[:, None, None])))


def float_maker() -> onnx.ModelProto:
    net = Net()
    loud = np.geomspace(0.1, 10, 256)
    y = net.op("LayerNormalization", net.input("x", 64, 256), net.constant(loud))
    weight = net.random.normal(size=(256, 1024)) / loud[:, None] / 16
    return net.model(net.op("MatMul", y, net.constant(weight)))


MODELS = {
    "relu": chain,
    "clip": lambda: chain("Clip"),
    "no clip": lambda: chain(""),
    "depthwise": separable,
    "addition": residual,
    "pooling": largest,
    "concatenation": joined,
    "global pooling": pooled,
    "read in float": float_reader,
    "made in float": float_maker,
}


def shape_of(model: onnx.ModelProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)


def quantized(
    model: onnx.ModelProto,
    scheme: str | None = "asym",
    *,
    target: str = "onnxruntime",
    **config: Any,
) -> Any:
    """All in int8, however small."""
    settings = rustq.QuantConfig(threads=1, bias_correction=False, **config)
    scheme = scheme if target == "onnxruntime" else None
    task = Task.of(model, feeds(*shape_of(model)), scheme=scheme, target=target, config=settings)
    return task.outcome(everything=True)


def quality(model: onnx.ModelProto, outcome: Any, *, optimize: bool) -> float:
    samples = feeds(*shape_of(model), seed=2)
    values = [
        (run(model, feed)[0], run(outcome.computed, feed, optimize=optimize)[0]) for feed in samples
    ]
    expected, found = (np.stack(each) for each in zip(*values, strict=True))
    return sqnr(expected, found)


@pytest.mark.parametrize("scheme", ["asym", "sym"])
@pytest.mark.parametrize("name", MODELS)
def test_uneven_channels_lose_less(name: str, scheme: str) -> None:
    """Also on inputs that calibration did not see, in float and in the integer kernels."""
    model = MODELS[name]()
    plain = quantized(model, scheme, equalize=False)
    even = quantized(model, scheme, equalize=True)
    onnx.checker.check_model(onnx.load_from_string(even.model.to_bytes()), full_check=True)
    for optimize in (False, True):
        before = quality(model, plain, optimize=optimize)
        assert quality(model, even, optimize=optimize) > before + 2, optimize


def factors(outcome: Any, position: int = 0) -> Array:
    """What the channels of the first layer's result are divided by."""
    scales = np.array(outcome.layers[position]["outputs"][0]["scale"])
    return scales / scales.max()


def weights(outcome: Any) -> list[Array]:
    """The weights of the convolutions as the kernels see them, and their steps."""
    proto = onnx.load_from_string(outcome.model.to_bytes())
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    made = {node.output[0]: node for node in proto.graph.node}
    found = []
    for node in proto.graph.node:
        if node.op_type == "Conv":
            integers, scale = (constants[name] for name in made[node.input[1]].input[:2])
            scale = scale.reshape(-1, 1, 1, 1)
            found.append((integers * scale, scale))
    return found


def test_factors_are_taken_up_by_the_weights() -> None:
    model = chain()
    outcome = quantized(model, equalize=True)
    exact = [numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) == 4]
    r = factors(outcome)
    assert r.min() < 0.2
    ends = [layer["corrections"] for layer in outcome.layers if layer["op_type"] == "Conv"]
    assert ends == [[f"channels of its {end} on one scale"] for end in ("output", "input")]
    first, second = weights(outcome)
    made, read = exact[0] / r[:, None, None, None], exact[1] * r[:, None, None]
    for (found, step), wanted in ((first, made), (second, read)):
        assert np.all(np.abs(found - wanted) <= step * 0.501)


@pytest.mark.parametrize("op", ["Sigmoid", "HardSigmoid"])
def test_what_is_not_homogeneous_keeps_one_scale(op: str) -> None:
    net = Net()
    y = uneven(net, net.input("x", 1, 8, 12, 12), 8, clip="")
    model = net.model(reading(net, net.op(op, y)))
    outcome = quantized(model, equalize=True)
    assert outcome.layers[0]["op_type"] == "Conv"
    assert len(outcome.layers[0]["outputs"][0]["scale"]) == 1


def test_a_value_that_something_else_reads_keeps_its_meaning() -> None:
    net = Net()
    y = uneven(net, net.input("x", 1, 8, 12, 12), 8)
    model = net.model(y, reading(net, y))
    outcome = quantized(model, equalize=True)
    assert factors(outcome).min() < 0.2
    feed = feeds(1, 8, 12, 12, seed=3)[0]
    for expected, found in zip(run(model, feed), run(outcome.model, feed), strict=True):
        assert sqnr(expected, found) > 25


IN_FLOAT = [name for name in MODELS if name not in ("read in float", "made in float")]
"""Where the factors can be taken up by weights alone."""


@pytest.mark.parametrize("target", ["tensorrt", "ncnn", "ascend"])
@pytest.mark.parametrize("name", IN_FLOAT)
def test_other_targets_read_an_even_float_model(name: str, target: str) -> None:
    """What they compute, as pairs: on inputs that calibration did not see."""
    model = MODELS[name]()
    plain, even = (
        quantized(model, target=target, equalize=equalize, method="minmax")
        for equalize in (False, True)
    )
    assert any("brought to one scale" in note for note in even.notes)
    before = quality(model, plain, optimize=False)
    assert quality(model, even, optimize=False) > before + 2
    if target == "ascend":  # its file is the float model, which computes what it did
        samples = feeds(*shape_of(model), seed=2)
        for feed in samples:
            assert sqnr(run(model, feed)[0], run(even.model, feed)[0]) > 60


@pytest.mark.parametrize("name", ["read in float", "made in float"])
def test_other_targets_leave_alone_what_they_cannot_divide(name: str) -> None:
    model = MODELS[name]()
    plain, even = (
        quantized(model, target="ascend", equalize=equalize, method="minmax")
        for equalize in (False, True)
    )
    assert even.computed.to_bytes() == plain.computed.to_bytes()


def test_tables_and_caches_are_for_the_model_as_it_was() -> None:
    model = chain()
    for target, suffix in (("ncnn", ".table"), ("tensorrt", ".cache")):
        plain, even = (
            quantized(model, target=target, equalize=equalize, method="minmax")
            for equalize in (False, True)
        )
        assert even.files[suffix] == plain.files[suffix]
        assert even.computed.to_bytes() != plain.computed.to_bytes()


@pytest.mark.parametrize("target", ["tensorrt", "ncnn", "ascend"])
def test_other_targets_try_ways_too(target: str) -> None:
    model = separable()
    config = rustq.QuantConfig(threads=1, noise_price=0)
    result = rustq.quantize(model, feeds(1, 8, 12, 12), target=target, config=config)
    notes = [note for note in result.report.notes if note.startswith("ranges:")]
    assert len(notes) == 1
    assert (
        "channels equalized, weights rounded for the results, biases corrected, the best of"
        in notes[0]
    )


def test_a_choice_is_a_bool() -> None:
    with pytest.raises(TypeError, match="equalize must be"):
        rustq.QuantConfig(equalize="yes")  # type: ignore[arg-type]


def test_channels_are_counted_where_they_may_be_asked_for() -> None:
    model, data = chain(), feeds(1, 8, 12, 12)
    plain = rustq.calibrate(model, data, config=rustq.QuantConfig(method="minmax"))
    full = rustq.calibrate(model, data)
    for config in ({"method": "mse", "equalize": True}, {"method": "auto"}):
        again = rustq.calibrate(model, data, config=rustq.QuantConfig(**config))
        assert again == full != plain
    assert all(plain.range(name) == full.range(name) for name in full.tensors)
    config = rustq.QuantConfig(method="mse", equalize=True)
    with pytest.raises(rustq.DataError, match="did not observe channels one by one"):
        rustq.quantize(model, plain, config=config)
    assert rustq.quantize(model, full, config=config).to_bytes()


def test_the_best_way_is_kept_and_named() -> None:
    model, samples = float_maker(), feeds(64, 256)
    config = rustq.QuantConfig(threads=1, noise_price=0)
    result = rustq.quantize(model, samples, config=config)
    notes = [note for note in result.report.notes if note.startswith("ranges:")]
    assert len(notes) == 1
    assert (
        "channels equalized, biases corrected, the best of 4 ways by the outputs on 8 samples"
        in notes[0]
    )
    # An iterator can be read only once, and is as good.
    once = rustq.quantize(model, iter(samples), config=config)
    assert once.to_bytes() == result.to_bytes()
