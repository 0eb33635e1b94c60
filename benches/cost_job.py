"""One measurement of `cost.py`, in a process of its own: prints seconds and peak memory as JSON.

    python cost_job.py WAY MODEL SAMPLES COUNT THREADS

WAY is "float", "rustq METHOD", "rustq METHOD, 2 workers", "onnxruntime METHOD", or a tool and a
setting of `peer_tools.py`; it runs in the environment of that tool, so nothing but numpy is needed
besides. Everything is imported before the clock starts; what counts is from loading the model to
the saved file.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Work = Callable[[Path], None]


class Samples:
    """The samples of an `.npy` file called like the input, read one at a time: their number costs
    no memory."""

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            (_, *self.shape), _, self.dtype = np.lib.format.read_array_header_1_0(file)
            self.start = file.tell()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not 0 <= number < self.count:
            raise IndexError(number)
        size = int(np.prod(self.shape))
        offset = self.start + number * size * self.dtype.itemsize
        values = np.fromfile(self.path, self.dtype, size, offset=offset)
        return {self.path.stem: values.reshape(1, *self.shape)}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[number] for number in range(self.count))


def plain(_: str, model: Path, samples: Samples, threads: int) -> Work:
    """Inference of the float model."""
    import onnxruntime

    def work(path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for feed in samples:
            session.run(None, feed)

    return work


def rustq(method: str, model: Path, samples: Samples, threads: int) -> Work:
    """The whole of rustq.quantize; with workers, each on one thread."""
    import rustq

    for part in ("api", "data", "report", "runner", "shards"):
        importlib.import_module(f"rustq.{part}")
    method, _, workers = method.partition(", ")

    def work(path: Path) -> None:
        config = rustq.QuantConfig(method=method, threads=1 if workers else threads)
        if not workers:
            rustq.quantize(model, samples, config=config).save(path)
            return
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(int(workers.split()[0])) as executor:
            rustq.quantize(model, samples, config=config, executor=executor).save(path)

    return work


def onnxruntime(method: str, model: Path, samples: Samples, threads: int) -> Work:
    """quantize_static without its preparation step, in its favour."""
    import onnxruntime
    import variants

    importlib.import_module("onnxruntime.quantization")

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]
        """The quantizer has no option for the number of threads."""

        def __init__(self, model: Any, sess_options: Any = None, **rest: Any) -> None:
            sess_options = sess_options or onnxruntime.SessionOptions()
            sess_options.intra_op_num_threads = threads
            super().__init__(model, sess_options, **rest)

    onnxruntime.InferenceSession = Session
    return lambda path: variants.quantize_static(model, samples, path, method=method)


def other(way: str, model: Path, samples: Samples, threads: int) -> Work:
    """Another tool at a setting, with the threads that variables of the environment give it."""
    import peer_tools

    tool, _, setting = way.partition(" ")
    importlib.import_module({"modelopt": "modelopt.onnx.quantization"}.get(tool, tool))
    return lambda path: peer_tools.TOOLS[tool](
        model, list(samples), path, **dict(peer_tools.SETTINGS[tool][setting])
    )


WAYS: dict[str, Callable[[str, Path, Samples, int], Work]] = {
    "float": plain,
    "rustq": rustq,
    "onnxruntime": onnxruntime,
}


def peak_mebibytes() -> float:
    """The peak resident set size of this process.

    Linux's getrusage would do, but it remembers the parent's peak across fork and exec.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    """Do the work."""
    way, model, path, count, threads = sys.argv[1:]
    tool, _, method = way.partition(" ")
    samples = Samples(Path(path), int(count))
    make = WAYS.get(tool)
    if make is not None:
        work = make(method, Path(model), samples, int(threads))
    else:
        work = other(way, Path(model), samples, int(threads))
    with tempfile.TemporaryDirectory() as scratch:
        before, start = os.times(), time.perf_counter()
        work(Path(scratch) / "int8.onnx")
        wall = time.perf_counter() - start
        cpu = sum(os.times()[:4]) - sum(before[:4])
    print(json.dumps({"cpu": cpu, "wall": wall, "rss": peak_mebibytes()}))


if __name__ == "__main__":
    main()
