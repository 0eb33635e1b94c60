"""Calibrating by the workers of an executor: processes, threads, or other machines.

The items of the data are dealt out in shards of consecutive ones. A worker answers a shard with
what it counted, and these parts are added up: exactly, in whatever order they come. Data that can
be read anywhere (a path, or a sequence that is cheap to send) are read by the workers; others are
read here, a few shards ahead.

A worker keeps the model's session for the next shard. It finds the model in a file, where it sees
this machine's files, and asks for it otherwise.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

from rustq import _rustq
from rustq.config import QuantConfig
from rustq.data import Feeds, Item, feeds, is_indexed
from rustq.errors import RustqError, WorkerError
from rustq.progress import Progress
from rustq.runner import Observation, channels_to_observe, ways
from rustq.tally import Tally

__all__ = ["collect_on"]

WORKERS = 16
"""Workers of an executor that does not tell how many it has."""

AHEAD = 2
"""Shards that are underway for each worker."""

SHARDS = 4
"""Shards for each worker, if they are long enough."""

SHORTEST, LONGEST = 8, 256
"""Items in a shard."""

ATTEMPTS = 3
"""Times that a shard is given to a worker before it is reported."""

SMALL = 1 << 20
"""Bytes that may be sent with every shard."""


@dataclass(frozen=True)
class Job:
    """What a worker has to know besides its shard."""

    key: str
    path: str
    config: QuantConfig
    ways: Sequence[str]
    source: Any = None  # where workers read the data themselves
    model: bytes | None = None  # for a worker that cannot see the file


@dataclass(frozen=True)
class Shard:
    """Consecutive items, read here or to be read by the worker."""

    start: int
    stop: int
    items: Sequence[Sequence[Any]] | None = None

    def __str__(self) -> str:
        return f"samples {self.start} to {self.stop - 1}"


@dataclass(frozen=True)
class Answer:
    """What a worker counted; or that it needs the model; or what is wrong with the data."""

    counted: bytes = b""
    needs_model: bool = False
    error: Exception | None = None


def collect_on(
    executor: Executor,
    model: _rustq.Model,
    data: Any,
    samples: Feeds,
    config: QuantConfig,
    tally: Tally,
    report: Progress,
) -> None:
    """Counts what is missing in `tally`, on the workers of `executor`.

    Raises:
        WorkerError: a worker died, again and again or for good. `tally` has what was counted.
    """
    with tempfile.TemporaryDirectory(prefix="rustq-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.to_bytes())
        source = _source(data)
        config = replace(config, threads=config.threads or 1)
        job = Job(str(path), str(path), config, ways(samples.length), source)
        workers = _workers(executor)
        with closing(_shards(samples, tally, workers, source is None)) as shards:
            crew = _Crew(executor, job, model, shards)
            try:
                for shard, counted in crew.answers(workers * AHEAD):
                    tally.add(_rustq.Calibration.from_bytes(counted), shard.start, shard.stop)
                    report(tally.items, samples.length)
                    if tally.due():
                        tally.save()
            except BaseException:
                crew.cancel()
                tally.save()
                raise
            finally:
                _forget()


class _Crew:
    """The shards that are underway."""

    def __init__(
        self, executor: Executor, job: Job, model: _rustq.Model, shards: Iterator[Shard]
    ) -> None:
        self._executor = executor
        self._job = job
        self._model = model
        self._shards = shards
        self._underway: dict[Future[Answer], tuple[Shard, int]] = {}

    def answers(self, most: int) -> Iterator[tuple[Shard, bytes]]:
        """Each shard with what was counted, in the order in which they are done."""
        while True:
            for shard in islice(self._shards, most - len(self._underway)):
                self._submit(self._job, shard, 1)
            if not self._underway:
                return
            for future in wait(self._underway, return_when=FIRST_COMPLETED).done:
                shard, attempt = self._underway.pop(future)
                answer = self._answer(future, shard, attempt)
                if answer is None:
                    continue
                if answer.error is not None:
                    raise answer.error
                if answer.needs_model:
                    self._submit(replace(self._job, model=self._model.to_bytes()), shard, attempt)
                    continue
                yield shard, answer.counted

    def cancel(self) -> None:
        """Takes back what no worker has begun."""
        for future in self._underway:
            future.cancel()

    def _submit(self, job: Job, shard: Shard, attempt: int) -> None:
        try:
            self._underway[self._executor.submit(work, job, shard)] = shard, attempt
        except BrokenExecutor as error:
            raise _lost(shard, error) from error

    def _answer(self, future: Future[Answer], shard: Shard, attempt: int) -> Answer | None:
        """The answer, or `None` after a failure that is not the shard's own: it is tried again."""
        try:
            return future.result()
        except BrokenExecutor as error:
            raise _lost(shard, error) from error
        except Exception as error:  # of the executor: those of the work are in its answer
            if attempt == ATTEMPTS:
                raise _lost(shard, error) from error
            self._submit(self._job, shard, attempt + 1)
            return None


def _lost(shard: Shard, error: BaseException) -> WorkerError:
    what = " ".join(str(error).split()) or type(error).__name__
    return WorkerError(f"a worker failed to calibrate {shard}, which are not counted: {what}")


def _source(data: Any) -> Any:
    """The data, if workers can read them: a path, or a sequence that is cheap to send."""
    if isinstance(data, str | os.PathLike):
        return os.fspath(data)
    paths = isinstance(data, list | tuple) and all(isinstance(x, str | os.PathLike) for x in data)
    if not is_indexed(data) or (isinstance(data, list | tuple) and not paths):
        return None
    try:
        return data if len(pickle.dumps(data)) <= SMALL else None
    except Exception:  # whatever a data set raises that cannot be sent: it is read here
        return None


def _workers(executor: Executor) -> int:
    """How many workers there are. `concurrent.futures` does not say, but most executors do."""
    for name in ("_max_workers", "num_workers"):
        number = getattr(executor, name, None)
        if isinstance(number, int) and number > 0:
            return number
    return WORKERS


def _shards(samples: Feeds, tally: Tally, workers: int, read: bool) -> Generator[Shard, None, None]:
    length = samples.length
    size = SHORTEST
    if length is not None:
        size = min(max(-(-length // (workers * SHARDS)), SHORTEST), LONGEST)
    if not read:
        for start, stop in tally.missing():
            assert stop is not None
            for at in range(start, stop, size):
                yield Shard(at, min(at + size, stop))
        return
    with closing(_numbered(samples, tally)) as items:
        held: list[list[Any]] = []
        start = 0
        for number, item in items:
            if held and (number != start + len(held) or len(held) == size):
                yield Shard(start, start + len(held), held)
                held = []
            start = start if held else number
            held.append(list(item))
        if held:
            yield Shard(start, start + len(held), held)


def _numbered(samples: Feeds, tally: Tally) -> Generator[tuple[int, Item], None, None]:
    """The items that are missing, with their numbers."""
    first = next(tally.missing(), None)
    if first is not None:
        items = zip(count(first[0]), samples.items(first[0]), strict=False)
        yield from ((number, item) for number, item in items if number not in tally)


# ---------------------------------------------------------------------- in the worker
_IDLE: dict[str, list[Observation]] = {}
_LOCK = threading.Lock()


def work(job: Job, shard: Shard) -> Answer:
    """Counts a shard, in the worker."""
    try:
        with _LOCK:
            idle = _IDLE.get(job.key)
            observation = idle.pop() if idle else None
        if observation is None:
            model = _model(job)
            if model is None:
                return Answer(needs_model=True)
            channels = channels_to_observe(model, job.config)
            observation = Observation(model, job.config, job.ways, channels)
        items = islice(_items(job, shard, observation), shard.stop - shard.start)
        for number, item in enumerate(items, start=shard.start):
            for feed in item:
                observation.observe(feed, number)
        counted = observation.take().to_bytes()
        with _LOCK:
            for key in [key for key in _IDLE if key != job.key]:
                del _IDLE[key]
            _IDLE.setdefault(job.key, []).append(observation)
        return Answer(counted)
    except Exception as error:
        return Answer(error=_sendable(error))


def _model(job: Job) -> _rustq.Model | None:
    if job.model is not None:
        return _rustq.Model.from_bytes(job.model)
    return _rustq.Model.open(Path(job.path)) if Path(job.path).exists() else None


def _items(job: Job, shard: Shard, observation: Observation) -> Iterator[Item]:
    if shard.items is not None:
        return iter(shard.items)
    return feeds(job.source, observation.inputs, job.config.images).items(shard.start)


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RustqError(f"{type(error).__name__}: {error}")
    return error


def _forget() -> None:
    """Lets go of the sessions of threads of this process."""
    with _LOCK:
        _IDLE.clear()
