"""What quantizing costs: CPU time against plain float inference, and peak memory.

    python benches/cost.py          # mobilenet_v2 and a ResNet-50-sized net, every method of rustq
    python benches/cost.py --peer   # onnxruntime's methods beside it (several minutes, 8 GB)
    python benches/cost.py --only memory --samples 16 256

Every figure comes from a fresh process on one core with one thread, which reads its images from a
file, one at a time. CPU time is the process's own from loading the model to the saved file
(imports are done before); the ways take turns, medians of `--repeat` rounds, and the ratio is to
float inference (session and runs, ONNX Runtime's default optimizations). onnxruntime is measured
without its preparation step, in its favour. Memory is the process's peak resident set size.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import timing
import variants
import zoo
from markdown import table
from zoo import graphs

SHAPE = (1, 3, 224, 224)
METHODS = ("auto", "minmax", "percentile", "entropy", "mse", "ifmr")
PEER_METHODS = ("MinMax", "Entropy", "Percentile")
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "RAYON_NUM_THREADS",
)


class Images:
    """Images in a file of float32 pixels, read one at a time: their number costs no memory."""

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[zoo.Feed]:
        with self.path.open("rb") as file:
            for _ in range(self.count):
                pixels = np.fromfile(file, np.float32, int(np.prod(SHAPE)))
                yield {"image": pixels.reshape(SHAPE)}


@dataclass(frozen=True)
class Job:
    """One measurement: `way` is "float", "rustq METHOD" or "ORT METHOD"."""

    way: str
    model: str
    images: str
    count: int

    def run(self) -> dict[str, float]:
        """Do it in a fresh process; {"cpu": seconds, "rss": MiB}."""
        environment = os.environ | dict.fromkeys(THREAD_VARIABLES, "1")
        arguments = [self.way, self.model, self.images, str(self.count)]
        command = [sys.executable, __file__, "--job", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{self.way}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            return {}
        result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return result


def work(way: str, model: str, images: str, count: str) -> None:
    """The body of a job: prints its result as JSON."""
    tool, _, method = way.partition(" ")
    feeds = Images(Path(images), int(count))
    importlib.import_module("onnxruntime")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "int8.onnx"
        if tool == "rustq":
            import rustq

            for part in ("api", "data", "report", "runner"):
                importlib.import_module(f"rustq.{part}")  # not part of the work
            start = time.process_time()
            config = rustq.QuantConfig(method=method, threads=1)
            rustq.quantize(model, feeds, config=config).save(path)
        elif tool == "ORT":
            importlib.import_module("onnxruntime.quantization")  # not part of the work
            single_threaded()
            start = time.process_time()
            variants.quantize_static(Path(model), feeds, path, method=method)
        else:
            start = time.process_time()
            run = zoo.runner(Path(model))
            for feed in feeds:
                run(feed)
        cpu = time.process_time() - start
    print(json.dumps({"cpu": cpu, "rss": peak_mebibytes()}))


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


def single_threaded() -> None:
    """Give every session one thread: onnxruntime's quantizer has no option for it."""
    import onnxruntime

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, model: Any, sess_options: Any = None, **rest: Any) -> None:
            sess_options = sess_options or onnxruntime.SessionOptions()
            sess_options.intra_op_num_threads = 1
            super().__init__(model, sess_options, **rest)

    onnxruntime.InferenceSession = Session


def models(store: zoo.Store) -> dict[str, Path]:
    """The two networks: a small one with real weights, a large one with random weights."""

    def fill(path: Path) -> None:
        onnx.save(graphs.resnet50(), path)

    return {
        "mobilenet_v2": zoo.load("mobilenet_v2", store).model,
        "resnet50": store.derive("onnx/resnet50.onnx", fill),
    }


def write_images(store: zoo.Store, path: Path, count: int) -> None:
    """Real photographs as mobilenet_v2 takes them; they repeat if there are too few."""
    case = zoo.load("mobilenet_v2", store)
    pictures = [feed["image"] for feed in (*case.calibration, *case.evaluation)]
    with path.open("wb") as file:
        for number in range(count):
            file.write(np.ascontiguousarray(pictures[number % len(pictures)]).data)


def times(
    name: str, model: Path, images: Path, ways: Sequence[str], options: argparse.Namespace
) -> str:
    """The table of CPU seconds for one network."""
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(options.repeat):
        for way in ways:
            print(f"{name}: time of {way}", file=sys.stderr, flush=True)
            result = Job(way, str(model), str(images), options.images).run()
            taken[way] += [result["cpu"]] if result else []
    floor, rows = statistics.median(taken["float"]), []
    for way in ways:
        cells = ["fails", ""]
        if taken[way]:
            seconds = statistics.median(taken[way])
            cells = [f"{seconds:.2f}", f"{seconds / floor:.2f}"]
        rows.append([way, *cells])
    return table([f"{name}, {options.images} images", "CPU s", "x float"], rows)


def memory(name: str, model: Path, images: Path, ways: Sequence[str], counts: Sequence[int]) -> str:
    """The table of peak memory for one network."""
    rows = []
    for way in ways:
        peaks = []
        for count in counts:
            print(f"{name}: memory of {way}, {count} images", file=sys.stderr, flush=True)
            peaks.append(Job(way, str(model), str(images), count).run().get("rss"))
        known = [peak for peak in peaks if peak]
        growth = f"{100 * (known[-1] / known[0] - 1):+.1f} %" if len(known) == len(peaks) else ""
        rows.append([way, *(f"{peak:.0f}" if peak else "fails" for peak in peaks), growth])
    return table([f"{name}, peak MiB", *(f"{count} images" for count in counts), "growth"], rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", metavar="model", help="mobilenet_v2, resnet50")
    parser.add_argument("--only", choices=("time", "memory"))
    parser.add_argument("--method", action="append", choices=METHODS, help="default: every one")
    parser.add_argument("--peer", action="store_true", help="also the times of onnxruntime")
    parser.add_argument("--peer-memory", action="store_true", help="also its memory: up to 30 GB")
    parser.add_argument("--no-rustq", action="store_true", help="leave rustq out")
    parser.add_argument("--images", type=int, default=64, help="for the times")
    parser.add_argument("--samples", type=int, nargs="+", default=[16, 256], help="for the memory")
    parser.add_argument("--repeat", type=int, default=3, help="rounds for the times")
    parser.add_argument("--core", type=int, help="the core to run on; default the last")
    parser.add_argument("--cache", help=f"downloads; else ${zoo.CACHE_VARIABLE}, else cache/")
    parser.add_argument("--job", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        work(*options.job)
        return

    timing.pin(options.core)
    ours = [] if options.no_rustq else [f"rustq {m}" for m in options.method or METHODS]
    peers = [f"ORT {method}" for method in PEER_METHODS]
    store, tables = zoo.Store(options.cache), []
    available = models(store)
    if unknown := set(options.models) - set(available):
        parser.error(f"unknown model: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch) / "images.f32"
        write_images(store, images, max(options.images, *options.samples))
        for name in options.models or available:
            common = (name, available[name], images)
            if options.only != "memory":
                ways = ["float", *ours, *(peers if options.peer else [])]
                tables.append(times(*common, ways, options))
            if options.only != "time":
                ways = ["float", *ours[:2], *(peers if options.peer_memory else [])]
                tables.append(memory(*common, ways, options.samples))
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
