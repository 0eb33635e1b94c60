"""Data readers of `onnxruntime.quantization`, wherever data are taken."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import rustq
from onnxruntime.quantization import CalibrationDataReader
from rustq import demo
from rustq.readers import adapted

SAMPLES = demo.calibration()[:24]


class OnceReader(CalibrationDataReader):
    """What the interface asks for and no more."""

    def __init__(self) -> None:
        self.left: Iterator[Any] = iter(SAMPLES)
        self.given = 0

    def get_next(self) -> dict[str, Any] | None:
        sample = next(self.left, None)
        self.given += sample is not None
        return sample


class RewindingReader(OnceReader):
    def rewind(self) -> None:
        self.left = iter(SAMPLES)


class RangeReader(OnceReader):
    def __len__(self) -> int:
        return len(SAMPLES)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.left = iter(SAMPLES[start_index:end_index])


class DuckReader:
    """Not derived from anything."""

    def __init__(self) -> None:
        self.left = iter(SAMPLES)

    def get_next(self) -> dict[str, Any] | None:
        sample = next(self.left, None)
        return sample


class MiscountingReader(RewindingReader):
    """Its length is in other units than its feeds."""

    def __len__(self) -> int:
        return 7 * len(SAMPLES)


READERS = (OnceReader, RewindingReader, RangeReader, DuckReader, MiscountingReader)


@pytest.mark.parametrize("kind", READERS)
def test_a_reader_calibrates_as_its_samples_do(kind: type) -> None:
    seen = rustq.calibrate(demo.model_path(), kind())
    assert seen == rustq.calibrate(demo.model_path(), SAMPLES)
    assert seen.samples == len(SAMPLES)


@pytest.mark.parametrize("kind", READERS)
def test_a_reader_quantizes_as_its_samples_do(kind: type) -> None:
    """Trials and corrections read samples again: from a reader that cannot rewind, the first."""
    once = kind in (OnceReader, DuckReader)
    expected = rustq.quantize(demo.model_path(), iter(SAMPLES) if once else list(SAMPLES))
    assert rustq.quantize(demo.model_path(), kind()).to_bytes() == expected.to_bytes()


@pytest.mark.parametrize("kind", (OnceReader, RewindingReader))
def test_limits_and_rankings_take_a_reader(kind: type) -> None:
    ranked = rustq.sensitivity(demo.model_path(), kind())
    plain = rustq.sensitivity(demo.model_path(), list(SAMPLES))
    assert [layer.name for layer in ranked.layers] == [layer.name for layer in plain.layers]
    limited = rustq.quantize(demo.model_path(), kind(), max_drop=0.01)
    assert limited.report.drop is not None


def test_comparing_takes_a_reader() -> None:
    quantized = rustq.quantize(demo.model_path(), SAMPLES)
    found = rustq.compare(demo.model_path(), quantized, RewindingReader())
    assert found.outputs == rustq.compare(demo.model_path(), quantized, SAMPLES).outputs


def test_a_reader_that_rewinds_serves_one_call_after_another() -> None:
    reader = RewindingReader()
    first = rustq.calibrate(demo.model_path(), reader)
    assert rustq.calibrate(demo.model_path(), reader) == first


def test_a_reader_that_is_used_up_says_so() -> None:
    reader = OnceReader()
    rustq.calibrate(demo.model_path(), reader)
    with pytest.raises(rustq.DataError, match=r"the OnceReader gives no samples: .*rewind\(\)"):
        rustq.calibrate(demo.model_path(), reader)


def test_an_empty_reader_is_empty() -> None:
    reader = RewindingReader()
    reader.rewind = lambda: setattr(reader, "left", iter(()))  # type: ignore[method-assign]
    with pytest.raises(rustq.DataError, match="empty"):
        rustq.calibrate(demo.model_path(), reader)


def test_a_reader_is_read_as_samples_are_needed() -> None:
    reader = RewindingReader()
    samples = iter(adapted(reader))
    assert reader.given == 0
    next(samples)
    next(samples)
    assert reader.given == 2


def test_an_iteration_ends_those_before_it() -> None:
    data = adapted(RewindingReader())
    one = iter(data)
    next(one)
    assert len(list(data)) == len(SAMPLES)
    with pytest.raises(rustq.DataError, match="rewound"):
        next(one)


def test_workers_take_a_reader() -> None:
    with ThreadPoolExecutor(2) as executor:
        seen = rustq.calibrate(demo.model_path(), RewindingReader(), executor=executor)
    assert seen == rustq.calibrate(demo.model_path(), SAMPLES)


def test_what_a_reader_gives_is_checked() -> None:
    class Wrong(OnceReader):
        def get_next(self) -> dict[str, Any] | None:
            return {"picture": np.zeros((1, 1, 16, 16), np.float32)}

    with pytest.raises(rustq.DataError, match='no input "picture"'):
        rustq.calibrate(demo.model_path(), Wrong())


def test_other_data_are_left_as_they_are() -> None:
    class Iterators:
        """Like TensorFlow's, whose `get_next` raises at the end."""

        def get_next(self) -> None: ...

    Iterators.__module__ = "tensorflow.python.data.ops.iterator_ops"
    for data in (SAMPLES, iter(SAMPLES), "samples/", None, Iterators()):
        assert adapted(data) is data
