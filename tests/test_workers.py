"""Calibrating by the workers of an executor: equal to calibrating here, whatever the data are and whatever fails."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
import zoo
from PIL import Image
from rustq import shards

COUNT = 37
Array = np.ndarray[Any, Any]


def image(number: int) -> Array:
    return np.random.default_rng(number).normal(size=(1, 3, 32, 32)).astype(np.float32)


class Lazy:
    """Samples made when they are asked for; in a worker, something may happen instead."""

    def __init__(self, trouble: Callable[[int], None] | None = None) -> None:
        self.trouble = trouble
        self.parent = os.getpid()

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, number: int) -> Array:
        if self.trouble is not None and os.getpid() != self.parent:
            self.trouble(number)
        return image(number)


def die(number: int) -> None:
    if number == 20:
        os._exit(1)


def refuse(number: int) -> None:
    if number == 20:
        raise LookupError("number twenty is not there")


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return zoo.classifier()


@pytest.fixture(scope="module")
def expected(model: onnx.ModelProto) -> rustq.Calibration:
    return rustq.calibrate(model, Lazy())


@pytest.fixture(scope="module", params=["fork", "spawn", "threads"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    made = pool(request.param)
    with made:
        yield made


def pool(kind: str) -> Executor:
    if kind == "threads":
        return ThreadPoolExecutor(3)
    if kind not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {kind} here")
    return ProcessPoolExecutor(2, multiprocessing.get_context(kind))


def batches() -> list[Array]:
    whole = np.concatenate([image(n) for n in range(COUNT)])
    return [whole[:10], whole[10:11], whole[11:]]


def saved(path: Path, start: int = 0, stop: int = COUNT) -> Path:
    values = np.concatenate([image(n) for n in range(start, min(stop, COUNT))])
    if path.suffix == ".npz":
        np.savez_compressed(path, image=values)
    else:
        np.save(path, values)
    return path


def in_parts(folder: Path) -> Path:
    for start in range(0, COUNT, 13):
        saved(folder / f"{start:02}.npz", start, start + 13)
    return folder


KINDS: dict[str, Callable[[Path], Any]] = {
    "sequence": lambda _: Lazy(),
    "list": lambda _: [image(n) for n in range(COUNT)],
    "generator": lambda _: (image(n) for n in range(COUNT)),
    "array": lambda _: np.concatenate([image(n) for n in range(COUNT)]),
    "dict": lambda _: {"image": np.concatenate([image(n) for n in range(COUNT)])},
    "batches to be split": lambda _: batches(),
    "npz": lambda folder: saved(folder / "all.npz"),
    "npy": lambda folder: saved(folder / "all.npy"),
    "folder": in_parts,
    "list of files": lambda folder: [saved(folder / f"{n}.npy", n, n + 1) for n in range(COUNT)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_here(
    model: onnx.ModelProto,
    expected: rustq.Calibration,
    executor: Executor,
    kind: str,
    tmp_path: Path,
) -> None:
    seen: list[tuple[int, int | None]] = []
    data = KINDS[kind](tmp_path)
    found = rustq.calibrate(
        model, data, executor=executor, progress=lambda *step: seen.append(step)
    )
    assert found == expected
    assert found._core.to_bytes() == expected._core.to_bytes()
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == (3 if kind == "batches to be split" else COUNT)


def test_images(model: onnx.ModelProto, executor: Executor, tmp_path: Path) -> None:
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    config = rustq.QuantConfig(images=rustq.ImageOptions(std=(0.5,)))
    here = rustq.calibrate(model, tmp_path, config=config)
    assert rustq.calibrate(model, tmp_path, config=config, executor=executor) == here


def test_quantize(model: onnx.ModelProto, executor: Executor) -> None:
    here, there = (rustq.quantize(model, Lazy(), executor=e) for e in (None, executor))
    assert here.to_bytes() == there.to_bytes()


def test_workers_read_their_own(model: onnx.ModelProto, expected: rustq.Calibration) -> None:
    """The parent reads nothing of a sequence; a path is opened by the workers."""
    with pool("spawn") as executor:
        data = Lazy()
        data.__class__ = Elsewhere
        assert rustq.calibrate(model, data, executor=executor) == expected


class Elsewhere(Lazy):
    def __getitem__(self, number: int) -> Array:
        assert os.getpid() != self.parent
        return image(number)


@pytest.mark.parametrize("kind", ["fork", "spawn"])
def test_a_worker_that_dies_is_reported(
    model: onnx.ModelProto, expected: rustq.Calibration, kind: str, tmp_path: Path
) -> None:
    with (
        pool(kind) as executor,
        pytest.raises(rustq.WorkerError, match=r"samples \d+ to \d+, which are not counted: "),
    ):
        rustq.calibrate(model, Lazy(die), executor=executor, resume=tmp_path / "kept")
    with pool(kind) as executor:
        found = rustq.calibrate(model, Lazy(), executor=executor, resume=tmp_path / "kept")
    assert found == expected


class Unsteady(Executor):
    """Loses the first `failures` of each shard, as a cluster that gives a task up does."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.seen: dict[str, int] = {}

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.seen[str(args[1])] = number = self.seen.get(str(args[1]), 0) + 1
        if number <= self.failures:
            future.set_exception(ConnectionError("the machine is gone"))
        else:
            future.set_result(fn(*pickle.loads(pickle.dumps(args)), **kwargs))
        return future


def test_a_shard_that_is_lost_is_tried_again(
    model: onnx.ModelProto, expected: rustq.Calibration
) -> None:
    executor = Unsteady(2)
    assert rustq.calibrate(model, Lazy(), executor=executor) == expected
    assert set(executor.seen.values()) == {3}
    with pytest.raises(rustq.WorkerError, match=r"samples \d+ to \d+, .* gone"):
        rustq.calibrate(model, Lazy(), executor=Unsteady(3))


def test_a_worker_that_does_not_see_the_file(
    model: onnx.ModelProto, expected: rustq.Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shards._model
    sent: list[bool] = []

    def elsewhere(job: shards.Job) -> Any:
        sent.append(job.model is not None)
        return found(job) if job.model else None

    monkeypatch.setattr(shards, "_model", elsewhere)
    assert rustq.calibrate(model, Lazy(), executor=Unsteady(0)) == expected
    assert sent.count(True) == 1  # and then the session is there


@pytest.mark.parametrize("kind", ["fork", "spawn"])
def test_errors_of_the_data_are_the_same(model: onnx.ModelProto, kind: str) -> None:
    with pool(kind) as executor:
        with pytest.raises(LookupError, match="number twenty"):
            rustq.calibrate(model, Lazy(refuse), executor=executor)
        bad = [image(n) for n in range(COUNT)]
        bad[30] = np.full_like(bad[30], np.nan)
        with pytest.raises(rustq.DataError, match="sample 30"):
            rustq.calibrate(model, bad, executor=executor)
        with pytest.raises(FileNotFoundError):
            rustq.calibrate(model, "gone.npz", executor=executor)
        with pytest.raises(rustq.DataError, match="empty"):
            rustq.calibrate(model, iter([]), executor=executor)
        # The pool is still of use.
        assert rustq.calibrate(model, Lazy(), executor=executor).samples == COUNT


def test_an_interrupt_cancels(model: onnx.ModelProto, tmp_path: Path) -> None:
    def stop(done: int, _: int | None) -> None:
        raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(KeyboardInterrupt):
            rustq.calibrate(
                model, Lazy(), executor=executor, progress=stop, resume=tmp_path / "kept"
            )
        again = rustq.calibrate(model, Lazy(), executor=executor, resume=tmp_path / "kept")
    assert again == rustq.calibrate(model, Lazy())


def test_nothing_is_kept_afterwards(model: onnx.ModelProto) -> None:
    before = threading.active_count()
    with ThreadPoolExecutor(2) as executor:
        rustq.calibrate(model, Lazy(), executor=executor)
        assert not shards._IDLE
    assert threading.active_count() == before


def test_calibrations_can_be_sent(expected: rustq.Calibration) -> None:
    assert pickle.loads(pickle.dumps(expected)) == expected


@pytest.mark.filterwarnings("ignore")
def test_dask(model: onnx.ModelProto, expected: rustq.Calibration) -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
        client.get_executor() as executor,
    ):
        for data in (Lazy(), (image(n) for n in range(COUNT))):
            assert rustq.calibrate(model, data, executor=executor) == expected
