"""How close the outputs of a model are to the float model's, and how soon it is told."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
from builders import Array, Feed, Net
from rustq import judging
from rustq.judging import UNKNOWN
from rustq.measuring import Reference, Sessions

SESSIONS = Sessions(rustq.QuantConfig(threads=1))


def scaled(*factors: float) -> Any:
    """A model with an output for each factor: x times that."""
    net = Net()
    x = net.input("x", 1, 64)
    outputs = [net.op("Mul", x, net.constant(np.float32([factor]))) for factor in factors]
    return rustq.load(net.model(*outputs))._core


def clipped(most: float) -> Any:
    """A model whose output is x, but no more than that."""
    net = Net()
    x = net.input("x", 1, 64)
    return rustq.load(
        net.model(net.op("Min", x, net.constant(np.float32([most])), out="mul0"))
    )._core


def feeds(*sizes: float) -> list[Feed]:
    """Feeds of random numbers that are so large."""
    random = np.random.default_rng(1)
    return [{"x": (s * random.normal(size=(1, 64))).astype(np.float32)} for s in sizes]


def judging_by(model: Any, data: Iterable[Feed], sessions: Any = SESSIONS) -> judging.Judge:
    """A judge by what a model makes of these feeds."""
    return judging.Judge(model, judging.runs(model, data, sessions), sessions)


class Counting:
    """Sessions that count their runs, and keep the first element of what they were given."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def session(self, model: Any) -> Any:
        inner, seen = SESSIONS.session(model), self.seen

        class Session:
            def run(self, names: Any, feed: Feed) -> list[Array]:
                seen.append(float(feed["x"].flat[0]))
                return list(inner.run(names, feed))

        return Session()


def test_the_noise_is_that_of_the_definition() -> None:
    data = feeds(1, 3, 2)
    judge = judging_by(scaled(1, 2), data)
    other = scaled(1.1, 2.1)
    expected = (0.1**2 + (0.1 / 2) ** 2) / 2
    assert judge.error(other).noise == pytest.approx(expected, rel=1e-4)
    assert judge.error(other).noise == pytest.approx(
        Reference(scaled(1, 2), data, SESSIONS).error(other).noise, rel=1e-9
    )
    assert judge.error(scaled(1, 2)).noise == 0


def test_the_typical_error_is_that_of_the_definition() -> None:
    [first, second] = feeds(1, 1)
    first["x"][:], second["x"][:] = 1, [[1.0] * 32 + [2.0] * 32]
    other, data = clipped(1.5), [first, second]
    error = judging_by(scaled(1), data).error(other)
    signal = 64 + 32 + 32 * 4
    assert error.noise == pytest.approx(32 * 0.5**2 / signal, rel=1e-9)
    assert error.typical == pytest.approx(2 * (math.sqrt(error.noise) / 2) ** 2, rel=1e-9)


@pytest.mark.parametrize("figure", ["noise", "typical"])
def test_what_is_not_below_a_limit_is_unknown(figure: str) -> None:
    judge = judging_by(scaled(1), feeds(1, 3, 2))
    judge.error(scaled(1.1))  # which puts the samples in the order of the runs to come
    error = judge.error(scaled(1.1))
    limit = getattr(error, figure)
    assert judge.error(scaled(1.1), **{figure: 1.001 * limit}) == error
    assert judge.error(scaled(1.1), **{figure: limit}) == UNKNOWN
    assert judge.error(scaled(1.1), **{figure: 0.5 * limit}) == UNKNOWN


def test_the_worst_samples_come_first_and_a_worse_model_is_not_run_on_all() -> None:
    counting, data = Counting(), feeds(1, 2, 1, 30, 1, 1, 1, 1)
    judge = judging_by(scaled(1), data, counting)
    best = judge.error(scaled(1.1)).noise
    assert [feed["x"] is data[3]["x"] for feed in judge.feeds] == [True] + 7 * [False]
    counting.seen.clear()
    assert judge.error(scaled(1.2), noise=best) == UNKNOWN
    assert counting.seen == [float(data[3]["x"].flat[0])]
    counting.seen.clear()
    assert judge.error(scaled(1.05), noise=best).noise < best
    assert len(counting.seen) == len(data)


def test_a_model_that_falls_behind_on_the_worst_samples_is_not_run_on_the_rest() -> None:
    counting, data = Counting(), feeds(*range(1, 21))
    judge = judging_by(scaled(1), data, counting)
    best = judge.error(scaled(1.1)).typical
    counting.seen.clear()
    assert judge.error(scaled(1.099), typical=0.95 * best) == UNKNOWN
    assert len(counting.seen) == len(data) // 4
    counting.seen.clear()
    assert judge.error(scaled(1.09), typical=0.95 * best).typical < best
    assert len(counting.seen) == len(data)


def test_the_worst_samples_stand_for_all() -> None:
    counting, data = Counting(), feeds(1, 2, 1, 30, 1, 1)
    judge = judging_by(scaled(1), data, counting)
    error = judge.error(scaled(1.1)).noise
    few = judge.worst(2)
    assert [float(feed["x"].flat[0]) for feed in few.feeds] == [
        float(data[at]["x"].flat[0]) for at in (3, 1)
    ]
    counting.seen.clear()
    assert few.error(scaled(1.1)).noise == pytest.approx(error, rel=1e-12)
    assert few.error(scaled(1.2)).noise == pytest.approx(4 * error, rel=1e-4)
    assert len(counting.seen) == 4
    assert judge.error(scaled(1.1)).noise == pytest.approx(error, rel=1e-12)


def test_the_order_of_the_samples_changes_nothing() -> None:
    judge = judging_by(scaled(1), feeds(1, 2, 1, 30))
    assert judge.error(scaled(1.1)).noise == pytest.approx(
        judge.error(scaled(1.1)).noise, rel=1e-12
    )


def test_an_output_of_zeros_has_all_noise_or_none() -> None:
    judge = judging_by(scaled(1, 0), feeds(1, 2))
    assert judge.error(scaled(1, 0)).noise == 0
    assert judge.error(scaled(1, 1)).noise == 0.5


def test_infinities_are_left_out() -> None:
    [first, second] = feeds(1, 1)
    first["x"][0, 0], second["x"][0, 1] = np.inf, -np.inf
    judge = judging_by(scaled(1), [first, second])
    assert judge.error(scaled(1.1)).noise == pytest.approx(0.01, rel=1e-4)


def test_samples_are_kept_evenly_and_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    data = feeds(*range(1, 41))
    size = 2 * data[0]["x"].nbytes
    monkeypatch.setattr(judging, "KEPT", 10 * size)
    kept = judging_by(scaled(1), iter(data)).feeds
    places = [next(i for i, feed in enumerate(data) if feed["x"] is each["x"]) for each in kept]
    assert places == list(range(0, 40, 4))
    monkeypatch.setattr(judging, "KEPT", size)
    least = len(judging_by(scaled(1), iter(data)).feeds)
    assert judging.LEAST <= least < 2 * judging.LEAST


def test_outputs_without_numbers_have_no_noise() -> None:
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["words"], ["y"])],
        "words",
        [info("x", onnx.TensorProto.FLOAT, [1, 64])],
        [info("y", onnx.TensorProto.STRING, [2])],
        [onnx.helper.make_tensor("words", onnx.TensorProto.STRING, [2], [b"a", b"b"])],
    )
    opset = onnx.helper.make_opsetid("", 17)
    model = rustq.load(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8))._core
    assert judging_by(model, feeds(1, 2)).error(model).noise == 0
