"""Several samples run at once, and what is counted is the same."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
import zoo
from builders import random_feeds
from rustq import DataError, QuantConfig, runner
from rustq.runner import MOST_LANES, Observation, lanes

SAMPLES = 24


def feeds(model: onnx.ModelProto) -> list[dict[str, Any]]:
    return [random_feeds(model, seed=seed)[0] for seed in range(SAMPLES)]


@pytest.mark.parametrize("threads", [2, 3, 4, None])
@pytest.mark.parametrize("name", ["mobile", "transformer"])
def test_counts_the_same(name: str, threads: int | None) -> None:
    model = getattr(zoo, name)()
    data = feeds(model)
    one, several = (
        rustq.calibrate(model, data, config=QuantConfig(threads=count)) for count in (1, threads)
    )
    assert several == one
    assert several.samples == SAMPLES


def test_memory_that_is_used_again() -> None:
    model = zoo.mobile()
    data = feeds(model)

    def reusing() -> Iterator[dict[str, Any]]:
        buffer = {name: np.empty_like(values) for name, values in data[0].items()}
        for feed in data:
            for name, values in feed.items():
                buffer[name][...] = values
            yield buffer

    config = QuantConfig(threads=4)
    assert rustq.calibrate(model, reusing(), config=config) == rustq.calibrate(model, data)


def test_runs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(3, timeout=30)
    observe = Observation.observe

    def met(self: Observation, feed: Any, number: int) -> None:
        together.wait()  # broken unless three are here
        observe(self, feed, number)

    monkeypatch.setattr(Observation, "observe", met)
    rustq.calibrate(zoo.mobile(), feeds(zoo.mobile()), config=QuantConfig(threads=3))


def test_a_sample_that_cannot_be_run_is_named_and_the_rest_kept(tmp_path: Path) -> None:
    model = zoo.mobile(), tmp_path / "run"
    data = feeds(model[0])
    data[13] = {"image": np.zeros((1, 3, 0, 0), np.float32)}
    with pytest.raises(DataError, match="sample 13"):
        rustq.calibrate(model[0], data, config=QuantConfig(threads=4), resume=model[1])
    data[13] = feeds(model[0])[13]
    resumed = rustq.calibrate(model[0], data, config=QuantConfig(threads=4), resume=model[1])
    assert resumed == rustq.calibrate(model[0], data)


@pytest.mark.parametrize(
    ("config", "samples", "expected"),
    [({"threads": 1}, 99, 1), ({"threads": 3}, None, 3), ({"threads": 3}, 2, 2),
     ({"threads": 64}, 99, MOST_LANES),
     ({"threads": 4, "session_options": {"inter_op_num_threads": 1}}, 99, 1),
     ({"threads": 4, "runner": lambda *_: None}, 99, 1)],
)  # fmt: skip
def test_how_many(config: dict[str, Any], samples: int | None, expected: int) -> None:
    assert lanes(QuantConfig(**config), samples) == expected


def test_outputs_are_counted_one_at_a_time() -> None:
    core = rustq.model.core_of(zoo.mobile())
    assert runner.Observation(core, QuantConfig(), ("outputs",), lanes=4).lanes == 1
