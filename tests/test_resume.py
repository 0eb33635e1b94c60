"""A calibration that was interrupted goes on, and ends as if it had not been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
import zoo
from rustq import tally
from rustq.tally import Interrupts, Tally

COUNT = 12
Array = np.ndarray[Any, Any]


def image(number: int) -> Array:
    return np.random.default_rng(number).normal(size=(1, 3, 32, 32)).astype(np.float32)


class Lazy:
    def __init__(self, stop: int = COUNT) -> None:
        self.stop = stop
        self.read: list[int] = []

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, number: int) -> Array:
        if number == self.stop:
            raise KeyboardInterrupt
        self.read.append(number)
        return image(number)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return zoo.classifier()


@pytest.fixture(scope="module")
def expected(model: onnx.ModelProto) -> rustq.Calibration:
    return rustq.calibrate(model, Lazy())


def same(found: rustq.Calibration, expected: rustq.Calibration) -> None:
    assert found == expected
    assert found._core.to_bytes() == expected._core.to_bytes()


@pytest.mark.parametrize("config", [None, rustq.QuantConfig(providers="CPUExecutionProvider")])
@pytest.mark.parametrize("stop", [0, 1, 5, 11])
def test_interrupted_while_reading(
    model: onnx.ModelProto,
    expected: rustq.Calibration,
    stop: int,
    config: rustq.QuantConfig | None,
    tmp_path: Path,
) -> None:
    kept = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        rustq.calibrate(model, Lazy(stop), resume=kept, config=config)
    data = Lazy()
    same(rustq.calibrate(model, data, resume=kept, config=config), expected)
    assert data.read == list(range(stop, COUNT))
    data = Lazy()
    same(rustq.calibrate(model, data, resume=kept, config=config), expected)
    assert data.read == []
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_generator_is_read_again(
    model: onnx.ModelProto, expected: rustq.Calibration, tmp_path: Path
) -> None:
    def stream(stop: int) -> Iterator[Array]:
        for number in range(COUNT):
            if number == stop:
                raise OSError("the disk is gone")
            yield image(number)

    for stop in (4, 9):
        with pytest.raises(OSError, match="disk"):
            rustq.calibrate(model, stream(stop), resume=tmp_path / "kept")
    same(rustq.calibrate(model, stream(COUNT), resume=tmp_path / "kept"), expected)


def test_files(model: onnx.ModelProto, expected: rustq.Calibration, tmp_path: Path) -> None:
    def stop(done: int, _: int | None) -> None:
        if done == 7:
            raise KeyboardInterrupt

    whole = np.concatenate([image(n) for n in range(COUNT)])
    np.savez_compressed(tmp_path / "all.npz", image=whole)
    (tmp_path / "folder").mkdir()
    for number in range(0, COUNT, 4):
        np.save(tmp_path / "folder" / f"{number:02}.npy", whole[number : number + 4])
    for data in (tmp_path / "all.npz", tmp_path / "folder", whole, {"image": whole}):
        kept = tmp_path / "kept"
        with pytest.raises(KeyboardInterrupt):
            rustq.calibrate(model, data, resume=kept, progress=stop)
        same(rustq.calibrate(model, data, resume=kept), expected)
        kept.unlink()


def test_a_bad_sample_costs_nothing_else(
    model: onnx.ModelProto, expected: rustq.Calibration, tmp_path: Path
) -> None:
    """Neither one that does not fit, nor one that fails in the middle of the model."""
    for bad in (np.full((1, 3, 32, 32), np.nan, np.float32), np.zeros((1, 3, 8), np.float32)):
        data = [image(n) for n in range(COUNT)]
        data[6] = bad
        with pytest.raises(rustq.DataError, match="sample 6"):
            rustq.calibrate(model, data, resume=tmp_path / "kept")
        data[6] = image(6)
        same(rustq.calibrate(model, data, resume=tmp_path / "kept"), expected)
        (tmp_path / "kept").unlink()


def test_half_a_sample_is_not_counted(
    model: onnx.ModelProto, expected: rustq.Calibration, tmp_path: Path
) -> None:
    """A failure within a batch that is split leaves nothing of it."""
    whole = np.concatenate([image(n) for n in range(COUNT)])
    bad = whole.copy()
    bad[8] = np.nan
    with pytest.raises(rustq.DataError, match="row 2"):
        rustq.calibrate(model, [whole[:6], bad[6:]], resume=tmp_path / "kept")
    same(rustq.calibrate(model, [whole[:6], whole[6:]], resume=tmp_path / "kept"), expected)


SCRIPT = """
import signal, sys, time, numpy as np
from pathlib import Path
import rustq
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored, which is inherited
from rustq import tally
tally.SECONDS = float(sys.argv[4])
def stream():
    for number in range(12):
        if number == 7:
            Path(sys.argv[3]).touch()
            if sys.argv[4] == "0":
                import os; os._exit(9)
            time.sleep(20)
        yield np.random.default_rng(number).normal(size=(1, 3, 32, 32)).astype("f4")
rustq.calibrate(sys.argv[1], stream(), resume=sys.argv[2])
"""


@pytest.mark.parametrize("how", ["crash", "interrupt"])
def test_a_process_that_ends(
    model: onnx.ModelProto, expected: rustq.Calibration, how: str, tmp_path: Path
) -> None:
    onnx.save(model, tmp_path / "m.onnx")
    kept, marker = tmp_path / "kept", tmp_path / "marker"
    seconds = "0" if how == "crash" else "1000"
    arguments = [str(tmp_path / "m.onnx"), str(kept), str(marker), seconds]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], stderr=subprocess.DEVNULL
    )
    if how == "interrupt":
        while not marker.exists() and process.poll() is None:
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
    try:
        assert process.wait(30) == (9 if how == "crash" else -signal.SIGINT)
    finally:
        process.kill()
    progress: list[int] = []
    again = rustq.calibrate(
        model,
        (image(n) for n in range(COUNT)),
        resume=kept,
        progress=lambda done, _: progress.append(done),
    )
    same(again, expected)
    assert progress == [8, 9, 10, 11, 12]


@pytest.fixture
def interruptible() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_waits_for_the_sample() -> None:
    interrupts, done = Interrupts(), []
    with pytest.raises(KeyboardInterrupt), interrupts.deferred():
        with interrupts.held():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            done.append(1)
        done.append(2)
    assert done == [1]
    with pytest.raises(KeyboardInterrupt), interrupts.deferred(), interrupts.held():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_does_not_belong_together(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    rustq.calibrate(model, Lazy(), resume=kept)
    with pytest.raises(rustq.DataError, match="kept: it counts 12 samples, the data hold 3"):
        rustq.calibrate(model, [image(0)] * 3, resume=kept)
    other = zoo.mobile()
    with pytest.raises(rustq.DataError, match="kept: the calibration was made from another model"):
        rustq.calibrate(other, Lazy(), resume=kept)
    good = kept.read_bytes()
    for bad, message in (
        (b"", "not a file to resume"),
        (b"rustqcal" + good[8:], "not a file to resume"),
        (good[:8] + b"\x07" + good[9:], "another version"),
        (good[:-50], "damaged"),
        (good[:99] + b"!" + good[100:], "damaged"),
    ):
        kept.write_bytes(bad)
        with pytest.raises(rustq.DataError, match=message):
            rustq.calibrate(model, Lazy(), resume=kept)
    with pytest.raises(FileNotFoundError):
        rustq.calibrate(model, Lazy(), resume=tmp_path / "nowhere" / "kept")


def test_intervals() -> None:
    assert tally._joined([(4, 6), (0, 2), (2, 4), (9, 10)]) == [(0, 6), (9, 10)]
    counted = Tally.__new__(Tally)
    counted.done, counted._length = [(2, 4), (6, 7)], 9
    assert list(counted.missing()) == [(0, 2), (4, 6), (7, 9)]
    assert [n in counted for n in range(9)] == [n in (2, 3, 6) for n in range(9)]
    counted._length = None
    assert list(counted.missing())[-1] == (7, None)
