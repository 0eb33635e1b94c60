"""What is decided by running the quantized model: what stays float where outputs are poor."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
import rustq
from builders import Array, Feed, Net, run, sqnr
from rustq.judging import Judge, runs
from rustq.measuring import Reference, Sessions, decibels

WIDTH = 128


def cancelling(difference: float, harmless: int = 0) -> onnx.ModelProto:
    """Convolutions, then two whose results are nearly equal, and the difference of what they make:
    each alone loses little by int8, and the difference nearly everything. So many harmless ones
    make another output."""
    net = Net(seed=5)
    x = net.input("x", 1, WIDTH, 16, 16)
    for _ in range(3):
        x = net.op("Conv", x, net.constant(weights(net)))
    weight = weights(net)
    branches = (weight, weight + difference * weights(net))
    outputs = [net.op("Sub", *(net.op("Conv", x, net.constant(each)) for each in branches))]
    if harmless:
        x = net.inputs[0].name
        for _ in range(harmless):
            x = net.op("Conv", x, net.constant(weights(net)))
        outputs.append(x)
    return net.model(*outputs)


def loud(factor: float) -> onnx.ModelProto:
    """Five convolutions. In the middle one channel is so many times the others, and sets the scale
    for all, but is not read."""
    net = Net(seed=3)
    x = net.input("x", 1, WIDTH, 16, 16)
    for place in range(5):
        weight = weights(net)
        if place == 2:
            weight[0] *= factor
        if place == 3:
            weight[:, 0] = 0
        x = net.op("Conv", x, net.constant(weight))
    return net.model(x)


def weights(net: Net) -> Array:
    return net.random.normal(size=(WIDTH, WIDTH, 1, 1)) / np.sqrt(WIDTH)


def feeds(seed: int, count: int = 8) -> list[Feed]:
    random = np.random.default_rng(seed)
    return [{"x": random.normal(size=(1, WIDTH, 16, 16)).astype(np.float32)} for _ in range(count)]


def detector(noise: float = 0.0) -> onnx.ModelProto:
    """Boxes of pixels beside scores below 1, in one output, as detectors have them; the scores with
    some noise."""
    net = Net(seed=2)
    x = net.input("x", 1, WIDTH, 16, 16)
    boxes = net.op("Mul", net.op("Conv", x, net.constant(weights(net))), net.constant(100.0))
    logits = net.op("Conv", x, net.constant(weights(net)))
    error = net.constant(noise * net.random.normal(size=(1, WIDTH, 16, 16)))
    scores = net.op("Sigmoid", net.op("Add", logits, error))
    return net.model(
        net.op("Transpose", net.op("Concat", boxes, scores, axis=1), perm=[0, 2, 3, 1])
    )


def measured(model: onnx.ModelProto, result: rustq.QuantizedModel) -> float:
    [sample] = feeds(9, 1)
    [expected], [found] = run(model, sample), run(result, sample)
    return sqnr(expected, found)


def notes(result: rustq.QuantizedModel, start: str) -> list[str]:
    return [note for note in result.report.notes if note.startswith(start)]


@pytest.mark.parametrize("scheme", ["asym", "sym"])
def test_poor_outputs_make_noise_dearer(scheme: str) -> None:
    model, data = loud(36), feeds(1)
    config = rustq.QuantConfig(threads=1, equalize=False)
    result = rustq.quantize(model, data, scheme=scheme, config=config)
    asked = rustq.QuantConfig(threads=1, equalize=False, noise_price=1.0)
    fixed = rustq.quantize(model, data, scheme=scheme, config=asked)
    [note] = notes(result, "noise price:")
    assert " in place of " in note
    assert note.endswith("; kept")
    assert notes(fixed, "noise price:") == []
    assert measured(model, fixed) < 15
    assert measured(model, result) > 20
    assert any(layer.quantized for layer in result.report.layers)


def test_what_no_price_tells_is_found_at_the_outputs() -> None:
    model, data = cancelling(0.03, harmless=5), feeds(1)
    result = rustq.quantize(model, data, config=rustq.QuantConfig(threads=1))
    assert len(notes(result, "layers left in float for the sake of the outputs:")) == 1
    [sample] = feeds(9, 1)
    for expected, found in zip(run(model, sample), run(result, sample), strict=True):
        assert sqnr(expected, found) > 20
    reasons = {layer.reason for layer in result.report.layers if not layer.quantized}
    assert reasons == {"the outputs are poor with it in int8"}
    assert any(layer.quantized for layer in result.report.layers)


def test_a_model_that_int8_would_ruin_stays_float() -> None:
    model, data = cancelling(0.03), feeds(1)
    result = rustq.quantize(model, data, config=rustq.QuantConfig(threads=1))
    assert len(notes(result, "nothing runs in int8: the outputs' SQNR was ")) == 1
    assert not any(layer.quantized for layer in result.report.layers)


def test_a_price_that_was_asked_for_is_kept_and_poor_outputs_are_named() -> None:
    model, data = cancelling(0.03), feeds(1)
    config = rustq.QuantConfig(threads=1, noise_price=3.0)
    result = rustq.quantize(model, data, config=config)
    assert len(notes(result, "the outputs' SQNR is only ")) == 1
    assert all(layer.quantized for layer in result.report.layers)


def test_good_outputs_leave_all_as_it_is() -> None:
    model, data = cancelling(1.0), feeds(1)
    result = rustq.quantize(model, data, config=rustq.QuantConfig(threads=1))
    assert measured(model, result) > 25
    assert all(layer.quantized for layer in result.report.layers)
    for start in ("noise price:", "layers left in float", "the outputs' SQNR"):
        assert notes(result, start) == []


def test_large_values_do_not_hide_small_ones_of_another_kind() -> None:
    core, worse = (rustq.load(detector(noise))._core for noise in (0.0, 1.0))
    sessions = Sessions(rustq.QuantConfig(threads=1))
    whole = Reference(core, feeds(1, 2), sessions).error(worse)
    judge = Judge(core, runs(core, feeds(1, 2), sessions), sessions)
    by_kind = judge.error(worse).noise
    assert whole.sqnr_db > 40
    assert 5 < decibels(by_kind) < 15


def test_a_bar_for_the_trials_and_samples_alone_for_the_callers_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    config, done = rustq.QuantConfig(threads=1), []
    rustq.quantize(cancelling(1.0), feeds(1), config=config, progress=True)
    shown = capsys.readouterr().err
    assert "calibrating" in shown
    assert "trying settings" in shown
    rustq.quantize(
        cancelling(1.0), feeds(1), config=config, progress=lambda count, _: done.append(count)
    )
    assert done == sorted(done)
    assert done[-1] == len(feeds(1))
    assert capsys.readouterr().err == ""
