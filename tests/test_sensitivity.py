"""Which layers cost accuracy, and keeping them float: on nets in which the answer is known."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
from builders import Array, Feed, Net, run
from rustq import demo
from rustq.errors import DataError

WIDTH = 64
CONFIG = rustq.QuantConfig(noise_price=0, threads=1, method="minmax")
"""All in int8 that is faster so, whatever it does to the outputs, over the whole range."""


def fragile(width: int = WIDTH, blocks: int = 5, bad: int = 2) -> onnx.ModelProto:
    """A chain of 1x1 convolutions of random sign. One has a channel a thousand times the others,
    which sets its range and which nothing reads, so that its output loses all the rest."""
    net = Net(seed=3)
    x = net.input("x", 1, width, 16, 16)
    for block in range(blocks):
        weight = net.random.normal(size=(width, width, 1, 1)) / np.sqrt(width)
        if block == bad:
            weight[0] *= 1000
        if block == bad + 1:
            weight[:, 0] = 0
        x = net.op("Conv", x, net.constant(weight), name=f"conv{block}")
    return net.model(x)


def feeds(count: int = 6, width: int = WIDTH) -> list[Feed]:
    random = np.random.default_rng(7)
    return [{"x": random.normal(size=(1, width, 16, 16)).astype(np.float32)} for _ in range(count)]


@lru_cache
def fast() -> rustq.Sensitivity:
    return rustq.sensitivity(fragile(), feeds(), config=CONFIG)


@lru_cache
def exact() -> rustq.Sensitivity:
    return rustq.sensitivity(fragile(), feeds(), exact=True, config=CONFIG)


def outputs_of(model: Any, feed: Feed) -> list[Array]:
    return run(model, feed, optimize=True)


def noise_of(model: Any, other: Any, samples: list[Feed]) -> float:
    """The energy of the error over that of the output, by its definition."""
    pairs = [(outputs_of(model, f)[0], outputs_of(other, f)[0]) for f in samples]
    error = sum(float(np.sum((a.astype(np.float64) - b) ** 2)) for a, b in pairs)
    return error / sum(float(np.sum(a.astype(np.float64) ** 2)) for a, _ in pairs)


def test_both_ways_find_the_fragile_layer() -> None:
    # The convolution that makes the wide value, or the one that reads it, quantizes it.
    for found in (fast(), exact()):
        assert found.layers[0].name == "conv2"
        assert found.layers[0].noise > 100 * found.layers[2].noise


def test_the_shares_are_the_measured_error() -> None:
    found = fast()
    quantized = rustq.quantize(fragile(), feeds(), config=CONFIG)
    assert sum(layer.noise for layer in found.layers) == pytest.approx(found.noise, rel=1e-9)
    assert found.noise == pytest.approx(noise_of(fragile(), quantized, feeds()), rel=1e-3)
    assert {layer.name for layer in found.layers} == {
        layer.name for layer in quantized.report.layers if layer.quantized
    }
    assert found.samples == 6
    assert not found.exact


def test_fast_agrees_with_exact() -> None:
    """On a chain of layers with independent errors, to within a factor of two."""
    model = fragile(bad=-10)
    quick = rustq.sensitivity(model, feeds(), config=CONFIG)
    slow = rustq.sensitivity(model, feeds(), exact=True, config=CONFIG)
    measured = {layer.name: layer.noise for layer in slow.layers}
    # In the chain a value is quantized by the layer that makes it; alone, a layer quantizes its input too.
    for layer in quick.layers:
        assert measured[layer.name] / 3 < layer.noise < measured[layer.name] * 3


def test_exact_is_each_layer_alone() -> None:
    from rustq.task import Task

    task = Task.of(fragile(), feeds(), config=CONFIG)
    found = exact()
    for layer in found.layers[:2]:
        others = [name for name, _ in task.model.nodes if name != layer.name]
        alone = task.outcome(others, everything=True)
        assert [r["name"] for r in alone.layers if r["quantized"]] == [layer.name]
        noise = noise_of(fragile(), alone.model, feeds())
        assert layer.noise == pytest.approx(noise, rel=1e-3)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_an_executor_measures_the_same(kind: str) -> None:
    pools: dict[str, Any] = {
        "threads": lambda: ThreadPoolExecutor(2),
        "processes": lambda: ProcessPoolExecutor(1, mp_context=get_context("spawn")),
    }
    with pools[kind]() as executor:
        found = rustq.sensitivity(fragile(), feeds(), exact=True, executor=executor, config=CONFIG)
    here = exact()
    assert [layer.name for layer in found.layers] == [layer.name for layer in here.layers]
    for one, other in zip(found.layers, here.layers, strict=True):
        # The last bit of a sum depends on where in memory the values are.
        assert one.noise == pytest.approx(other.noise, rel=1e-5)
        assert one.cosine == pytest.approx(other.cosine, rel=1e-5)
        assert replace(one, noise=other.noise, cosine=other.cosine) == other


def mean_match(model: Any) -> float:
    """A user's metric: minus the mean error against the float model, on its own inputs."""
    random = np.random.default_rng(11)
    total = 0.0
    for _ in range(3):
        x = random.normal(size=(1, WIDTH, 16, 16)).astype(np.float32)
        expected = outputs_of(fragile(), {"x": x})[0]
        total += float(np.mean(np.abs(model(x)[0] - expected)) / np.std(expected))
    return -total / 3


def test_the_metric_of_every_layer() -> None:
    found = rustq.sensitivity(fragile(), feeds(), exact=True, metric=mean_match, config=CONFIG)
    assert found.metric_float == pytest.approx(0, abs=1e-6)
    assert found.metric_int8 is not None
    assert found.metric_int8 < -0.1
    scores = [layer.metric for layer in found.layers]
    assert None not in scores
    assert scores == sorted(scores, key=lambda score: score or 0)
    assert found.layers[0].name == "conv2"
    quick = rustq.sensitivity(fragile(), feeds(), metric=mean_match, config=CONFIG)
    assert quick.metric_int8 == pytest.approx(found.metric_int8)
    assert quick.layers[0].metric is None


def test_what_it_says() -> None:
    lines = str(fast()).splitlines()
    assert lines[0].split()[:2] == ["layer", "op"]
    assert lines[2].startswith("conv2")
    values = json.loads(fast().to_json())
    assert values["layers"][0]["name"] == "conv2"
    assert values["layers"][0]["sqnr_db"] == pytest.approx(fast().layers[0].sqnr_db)


@pytest.mark.parametrize("data", [None, "calibration"])
def test_samples_are_needed(data: str | None) -> None:
    given = rustq.calibrate(fragile(), feeds()) if data else None
    with pytest.raises(DataError, match="samples are needed"):
        rustq.sensitivity(fragile(), given)
    with pytest.raises(DataError, match="samples are needed"):
        rustq.quantize(fragile(), given, max_drop=0.1)


# ------------------------------------------------------------------------- mixed precision
def float_layers(model: rustq.QuantizedModel) -> set[str]:
    return {layer.name for layer in model.report.layers if not layer.quantized}


def test_only_the_fragile_layer_stays_float() -> None:
    plain = rustq.quantize(fragile(), feeds(), config=CONFIG)
    assert float_layers(plain) == set()
    made = rustq.quantize(fragile(), iter(feeds()), max_drop=0.01, config=CONFIG)
    assert "conv2" in float_layers(made)
    assert not {"conv0", "conv1"} & float_layers(made)
    noise = noise_of(fragile(), made, feeds())
    assert made.report.drop == pytest.approx(noise, rel=1e-3)
    assert noise <= 0.01 < noise_of(fragile(), plain, feeds())
    kept = [layer for layer in made.report.layers if layer.reason == "kept float for max_drop=0.01"]
    # What makes the wide value, and what reads it: that one would quantize it as well.
    assert [layer.name for layer in kept] == ["conv2", "conv3"]
    assert kept[0].output_sqnr_db == pytest.approx(fast().layers[0].sqnr_db)
    assert any("'conv2' stays float for max_drop=0.01" in note for note in made.report.notes)


def test_nothing_stays_float_for_a_limit_that_holds() -> None:
    made = rustq.quantize(fragile(bad=-10), feeds(), max_drop=0.01, config=CONFIG)
    assert float_layers(made) == set()
    assert made.to_bytes() == rustq.quantize(fragile(bad=-10), feeds(), config=CONFIG).to_bytes()
    assert made.report.max_drop == 0.01
    assert made.report.drop is not None
    assert made.report.drop < 0.01


def test_a_limit_of_zero_leaves_all_float() -> None:
    made = rustq.quantize(fragile(), feeds(2), max_drop=0, config=CONFIG)
    assert made.report.drop == 0
    assert all(not layer.quantized for layer in made.report.layers)


def test_a_metric_decides() -> None:
    seen = []

    def metric(model: Any) -> float:
        seen.append(mean_match(model))
        return seen[-1]

    made = rustq.quantize(fragile(), feeds(), max_drop=0.1, metric=metric, config=CONFIG)
    assert made.report.drop is not None
    assert made.report.drop <= 0.1
    assert made.report.drop in [seen[0] - score for score in seen]
    assert "conv2" in float_layers(made)
    assert len(seen) <= 10
    assert (
        made.to_bytes()
        == rustq.quantize(
            fragile(), feeds(), max_drop=0.1, metric=mean_match, config=CONFIG
        ).to_bytes()
    )


def test_a_limit_that_cannot_be_met_is_said() -> None:
    calls = iter(range(100))
    made = rustq.quantize(
        fragile(), feeds(2), max_drop=0.5, metric=lambda model: -float(next(calls)), config=CONFIG
    )
    assert made.report.drop is not None
    assert made.report.drop > 0.5
    assert any(note.startswith("max_drop=0.5 is not met") for note in made.report.notes)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_drop": -0.1}, ValueError),
        ({"max_drop": float("nan")}, ValueError),
        ({"max_drop": "small"}, TypeError),
        ({"metric": mean_match}, ValueError),
        ({"max_drop": 0.1, "metric": 3}, TypeError),
        ({"max_drop": 0.1, "metric": lambda model: float("nan")}, ValueError),
    ],
)
def test_bad_limits(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=r"max_drop|metric"):
        rustq.quantize(fragile(), feeds(2), **arguments)


def test_the_demo_model_within_its_accuracy() -> None:
    images: list[Array] = [feed[demo.INPUT] for feed in demo.calibration()]
    made = rustq.quantize(demo.model_path(), demo.calibration(), max_drop=1e-3)
    assert made.report.drop is not None
    assert made.report.drop <= 1e-3
    noise = noise_of(
        onnx.load(demo.model_path()), made, [{demo.INPUT: image} for image in images[:64]]
    )
    assert noise == pytest.approx(made.report.drop, rel=1e-2)
