"""Learned rounding and bias correction, against the errors that numpy computes from real inputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
from builders import Array, Feed, Net, session
from onnx import numpy_helper
from rustq.corrections import Excerpt, layer_inputs
from rustq.targets import Outcome
from rustq.task import Task

RNG = np.random.default_rng(8)


def related(*shape: int) -> Array:
    """Positive inputs, all made of the same few signals."""
    size = int(np.prod(shape[1:]))
    mix = RNG.uniform(0, 1, (shape[0], 4)) @ np.random.default_rng(1).uniform(0, 1, (4, size))
    return (mix + 0.05 * RNG.uniform(0, 1, mix.shape)).reshape(shape).astype(np.float32)


def product() -> tuple[onnx.ModelProto, list[Feed]]:
    net = Net()
    x = net.input("x", 32, 64)
    y = net.op("Gemm", x, net.weight(64, 48, fan_in=64), net.weight(48), out="y")
    return net.model(y), [{"x": related(32, 64)} for _ in range(8)]


def convolution(**more: Any) -> Callable[[], tuple[onnx.ModelProto, list[Feed]]]:
    def made() -> tuple[onnx.ModelProto, list[Feed]]:
        net = Net()
        y = net.conv(net.input("x", 1, 16, 12, 12), 16, 32, **more)
        return net.model(y), [{"x": related(1, 16, 12, 12)} for _ in range(8)]

    return made


LAYERS = {
    "gemm": product,
    "pointwise": convolution(kernel=1),
    "dense": convolution(kernel=3),
    "grouped": convolution(kernel=3, group=4),
}


def quantized(model: onnx.ModelProto, data: Any, **config: Any) -> Outcome:
    """All in int8, however small."""
    scheme = config.pop("scheme", "asym")
    task = Task.of(
        model, data, scheme=scheme, config=rustq.QuantConfig(threads=1, method="minmax", **config)
    )
    return task.outcome(everything=True)


def proto(result: Outcome) -> onnx.ModelProto:
    return onnx.load_from_string(result.model.to_bytes())


def dequantized(result: Outcome, model: onnx.ModelProto) -> onnx.ModelProto:
    """The float model with the weights and bias that the integers stand for."""
    constants = {t.name: numpy_helper.to_array(t) for t in proto(result).graph.initializer}
    exact = onnx.ModelProto()
    exact.CopyFrom(model)
    for tensor in exact.graph.initializer:
        integers, scale = (
            constants.get(f"{tensor.name}_{part}") for part in ("quantized", "scale")
        )
        if integers is None or scale is None:
            continue
        axis = 1 if model.graph.node[0].op_type == "Gemm" and integers.ndim == 2 else 0
        shape = [-1 if d == axis else 1 for d in range(integers.ndim)]
        values = (integers.astype(np.float64) * scale.reshape(shape)).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return exact


def errors(result: Outcome, model: onnx.ModelProto, feeds: list[Feed]) -> Array:
    """What the integers of weights and bias add to the results; output channels in front."""
    pair = session(model), session(dequantized(result, model))
    exact, rounded = (np.concatenate([s.run(None, feed)[0] for feed in feeds]) for s in pair)
    error = np.moveaxis(rounded.astype(np.float64) - exact, 1, 0)
    return error.reshape(len(error), -1)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("scheme", ["asym", "sym"])
def test_results_keep_closer_with_learned_rounding(name: str, scheme: str) -> None:
    model, feeds = LAYERS[name]()
    nearest = errors(quantized(model, feeds, scheme=scheme), model, feeds)
    learned = errors(quantized(model, feeds, scheme=scheme, rounding="learned"), model, feeds)
    assert nearest.any()
    assert np.mean(learned**2) < 0.7 * np.mean(nearest**2)


@pytest.mark.parametrize("name", LAYERS)
def test_the_bias_takes_up_the_mean_error(name: str) -> None:
    model, feeds = LAYERS[name]()
    plain = errors(quantized(model, feeds), model, feeds).mean(axis=1)
    corrected = errors(quantized(model, feeds, bias_correction=True), model, feeds).mean(axis=1)
    assert np.mean(corrected**2) < 0.2 * np.mean(plain**2)


@pytest.mark.parametrize("name", LAYERS)
def test_both_together_are_best(name: str) -> None:
    model, feeds = LAYERS[name]()
    ways: list[dict[str, Any]] = [{"rounding": "learned"}, {"bias_correction": True}]
    both = np.mean(errors(quantized(model, feeds, **ways[0], **ways[1]), model, feeds) ** 2)
    assert both <= 1.05 * min(
        np.mean(errors(quantized(model, feeds, **way), model, feeds) ** 2) for way in ways
    )


def test_pairs_of_products_still_fit_into_16_bits() -> None:
    model, feeds = product()
    result = quantized(model, feeds, rounding="learned")
    weights = next(
        numpy_helper.to_array(t).astype(int)
        for t in proto(result).graph.initializer
        if len(t.dims) == 2
    )
    assert np.abs(weights[0::2] + weights[1::2]).max() <= 128


def test_an_iterator_gives_the_same_and_may_use_its_memory_again() -> None:
    model, feeds = product()

    def samples() -> Iterator[Feed]:
        x = np.empty_like(feeds[0]["x"])
        for feed in feeds:
            x[:] = feed["x"]
            yield {"x": x}

    options = {"rounding": "learned", "bias_correction": True}
    direct = quantized(model, feeds, **options)
    assert quantized(model, samples(), **options).model.to_bytes() == direct.model.to_bytes()
    assert any("corrections" in note for note in direct.notes)


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("count", [1, 12, 100])
@pytest.mark.parametrize(("rounding", "most"), [("nearest", 16), ("learned", 64)])
def test_all_samples_are_run_up_to_a_limit(
    rounding: str, most: int, count: int, counted: bool, once: bool
) -> None:
    """Few data are no reason to look at fewer: known or not how many there are."""
    config = rustq.QuantConfig(rounding=rounding)
    data = [{"x": np.full((32, 64), number, np.float32)} for number in range(count)]
    excerpt = Excerpt(iter(data) if once else data, config)
    assert not once or len(list(excerpt.data)) == count
    model = rustq.load(product()[0])._core
    chosen = excerpt.feeds(model, config, count if counted else None, excerpt.most)
    numbers = [int(feed["x"][0, 0]) for feed, _ in chosen]
    assert len(numbers) == min(count, most)
    assert set(np.diff(numbers)) <= ({1} if once or count < most or most == 64 else {4})


@pytest.mark.parametrize(
    ("rounding", "count", "expected"),
    [
        ("nearest", 5, 5),
        ("nearest", 16, 8),
        ("nearest", 24, 12),
        ("nearest", 100, 16),
        ("learned", 16, 16),
        ("learned", 100, 64),
    ],
)
def test_half_of_few_samples_tell_the_means(rounding: str, count: int, expected: int) -> None:
    ran: list[int] = []

    class Counted(Excerpt):
        def feeds(self, *args: Any) -> Any:
            for feed, chosen in super().feeds(*args):
                ran.append(int(feed["x"][0, 0]))
                yield feed, chosen

    config = rustq.QuantConfig(rounding=rounding)
    data = [{"x": np.full((32, 64), number, np.float32)} for number in range(count)]
    layer_inputs(rustq.load(product()[0])._core, Counted(data, config), config, count)
    assert len(ran) == expected
    among = min(count, 64)
    assert max(ran) >= among - among // expected


def test_weights_alone_are_rounded_for_every_one_of_a_few_samples() -> None:
    model, feeds = convolution(kernel=1)()
    config = rustq.QuantConfig(weights="int4", activations="float32", rounding="learned", threads=1)
    made = [
        rustq.quantize(model, data, config=config).to_bytes()
        for data in (feeds, feeds[:7], iter(feeds))
    ]
    assert made[0] == made[2] != made[1]


@pytest.mark.parametrize("option", [{"rounding": "learned"}, {"bias_correction": True}])
def test_a_calibration_alone_is_not_enough(option: dict[str, Any]) -> None:
    model, feeds = product()
    for data in (None, rustq.calibrate(model, feeds)):
        with pytest.raises(rustq.DataError, match="need the data"):
            quantized(model, data, **option)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        (name, target)
        for name in ("gemm", "pointwise", "dense")
        for target in ("tensorrt", "ncnn", "ascend")
        if (name, target) != ("gemm", "ncnn")  # which takes one row at a time
    ],
)
def test_other_targets_correct_the_float_model(name: str, target: str) -> None:
    """What they compute, with inputs as fine as int8 lets them be."""
    model, feeds = LAYERS[name]()
    config = {"method": "minmax", "noise_price": 0.0, "threads": 1}

    def error(**more: Any) -> float:
        task = Task.of(model, feeds, target=target, config=rustq.QuantConfig(**config, **more))
        float_model, made = map(session, (task.as_run, task.outcome().computed))
        off = [made.run(None, feed)[0] - float_model.run(None, feed)[0] for feed in feeds]
        return float(np.mean(np.square(off)))

    plain, both = error(), error(rounding="learned", bias_correction=True)
    assert 0 < both < 0.9 * plain
    assert error(bias_correction=True) < plain


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt", "ncnn", "ascend"])
def test_layers_say_what_was_done(target: str) -> None:
    model, feeds = LAYERS["dense"]()

    def remarks(**options: Any) -> str:
        config = rustq.QuantConfig(method="minmax", noise_price=0.0, threads=1, **options)
        result = rustq.quantize(model, feeds, target=target, config=config)
        (layer,) = (layer for layer in result.report.layers if layer.op_type == "Conv")
        assert layer.quantized
        assert layer.remark == "; ".join(layer.corrections)
        assert list(layer.corrections) == result.report.to_dict()["layers"][0]["corrections"]
        return layer.remark

    rounded = r"weights rounded for its results: \d+\.\d dB less noise in them"
    bias = "bias takes up the mean error"
    assert remarks() == ""
    assert remarks(bias_correction=True) == bias
    assert re.fullmatch(rounded, remarks(rounding="learned"))
    assert re.fullmatch(f"{rounded}; {bias}", remarks(rounding="learned", bias_correction=True))


def test_learned_weights_lie_on_the_grid_that_is_found_by_them() -> None:
    model, feeds = LAYERS["dense"]()
    config = rustq.QuantConfig(rounding="learned", method="minmax", noise_price=0.0)
    task = Task.of(model, feeds, target="ascend", config=config)
    values = {t.name: numpy_helper.to_array(t) for t in proto(task.outcome()).graph.initializer}
    exact = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    name = next(name for name, w in exact.items() if w.ndim == 4)
    step = np.abs(exact[name]).max(axis=(1, 2, 3), keepdims=True) / 127
    found, wanted = values[name] / step, exact[name] / step
    assert np.abs(found - np.rint(found)).max() < 1e-4
    assert np.abs(found).max(axis=(1, 2, 3)) == pytest.approx(127, abs=1e-4)
    assert not np.array_equal(np.rint(found), np.rint(wanted))
