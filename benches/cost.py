"""What quantizing costs: time against plain float inference, and peak memory.

    python benches/cost.py                   # four networks, every method of rustq
    python benches/cost.py --peer            # other tools beside it (an hour, 12 GB)
    python benches/cost.py --threads 2       # with two threads, and with two workers
    python benches/cost.py --only memory --samples 16 1024

Every figure comes from a fresh process on as many cores as threads, which reads its samples from a
file, one at a time (`cost_job.py`). Time is from loading the model to the saved file: that of the
processor, and that of the clock; the ways take turns, medians of `--repeat` rounds, and the ratios
are to float inference (session and runs, ONNX Runtime's default optimizations). onnxruntime is
measured without its preparation step, in its favour. Memory is the peak resident set size. Peers
besides onnxruntime have environments of their own, see `peers.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import peers
import timing
import zoo
from markdown import table
from zoo import graphs, transformers

HERE = Path(__file__).parent
METHODS = ("auto", "minmax", "percentile", "entropy", "mse", "ifmr")
PEERS = (
    "onnxruntime MinMax",
    "onnxruntime Entropy",
    "onnxruntime Percentile",
    "onnxsim minmax",
    "onnxsim percentile",
    "modelopt max",
    "modelopt entropy",
)
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "RAYON_NUM_THREADS",
)


@dataclass(frozen=True)
class Network:
    """A model, its input, and how many samples it is timed on."""

    name: str
    model: Path
    input: str
    count: int


def networks(store: zoo.Store) -> dict[str, Network]:
    """A small network with real weights, and three large ones with random weights."""
    made = {
        "resnet50": (graphs.resnet50, "image", 64),
        "vit_b_16": (transformers.vit_b_16, "image", 16),
        "bert_base": (transformers.bert_base, "ids", 16),
    }
    found = [Network("mobilenet_v2", zoo.load("mobilenet_v2", store).model, "image", 64)]
    for name, (build, entry, count) in made.items():
        path = store.derive(f"onnx/{name}.onnx", lambda path, build=build: onnx.save(build(), path))
        found.append(Network(name, path, entry, count))
    return {network.name: network for network in found}


def write_samples(store: zoo.Store, folder: Path, entry: str, count: int) -> Path:
    """Photographs as mobilenet_v2 takes them, repeated if there are too few, or random words."""
    path = folder / f"{entry}.npy"
    if entry == "image":
        case = zoo.load("mobilenet_v2", store)
        pictures = [feed[entry] for feed in (*case.calibration, *case.evaluation)]
        shape, dtype = (count, *pictures[0].shape[1:]), np.dtype(np.float32)
    else:
        random = np.random.default_rng(0)
        pictures = [random.integers(0, 30_522, (1, 128)) for _ in range(count)]
        shape, dtype = (count, 128), np.dtype(np.int64)
    with path.open("wb") as file:
        head: dict[str, Any] = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        for number in range(count):
            picture = pictures[number % len(pictures)]
            file.write(np.ascontiguousarray(picture, dtype).data)
    return path


@dataclass(frozen=True)
class Bench:
    """What all measurements of one network share."""

    network: Network
    samples: Path
    pythons: dict[str, Path]

    def run(self, way: str, count: int, threads: int) -> dict[str, float]:
        """One measurement in a fresh process; nothing if it fails."""
        print(f"{self.network.name}: {way}, {count}", file=sys.stderr, flush=True)
        python = self.pythons.get(way.partition(" ")[0], Path(sys.executable))
        arguments = [way, self.network.model, self.samples, count, threads]
        done = subprocess.run(
            [python, HERE / "cost_job.py", *map(str, arguments)],
            env=os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads)),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            print(f"{way}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            return {}
        result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return result

    def times(self, ways: Sequence[str], count: int, threads: int, repeat: int) -> str:
        """The table of seconds."""
        taken: dict[str, list[dict[str, float]]] = defaultdict(list)
        for _ in range(repeat):
            for way in ways:
                taken[way] += filter(None, [self.run(way, count, threads)])
        rows = []
        for way in ways:
            cells = []
            for clock in ("cpu", "wall"):
                seconds, floor = (middle(taken[w], clock) for w in (way, "float"))
                cells += [f"{seconds:.2f}", f"{seconds / floor:.2f}"]
            rows.append([way, *(cells if taken[way] else ["fails", "", "", ""])])
        title = f"{self.network.name}, {count} samples, {threads} thread{'s' * (threads > 1)}"
        return table([title, "CPU s", "x float", "wall s", "x float"], rows)

    def memory(self, ways: Sequence[str], counts: Sequence[int]) -> str:
        """The table of peak memory."""
        rows = []
        for way in ways:
            peaks = [self.run(way, count, 1).get("rss") for count in counts]
            known = [peak for peak in peaks if peak]
            growth = f"{100 * (known[-1] / known[0] - 1):+.1f} %" if all(peaks) else ""
            rows.append([way, *(f"{peak:.0f}" if peak else "fails" for peak in peaks), growth])
        head = [f"{self.network.name}, peak MiB", *(f"{count} samples" for count in counts)]
        return table([*head, "growth"], rows)


def middle(results: Iterable[dict[str, float]], clock: str) -> float:
    """The median; not a number where everything failed."""
    times = [result[clock] for result in results]
    return statistics.median(times) if times else float("nan")


def parsed() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="*", metavar="network", help="default: all four")
    parser.add_argument("--only", choices=("time", "memory"))
    parser.add_argument("--method", action="append", choices=METHODS, help="default: every one")
    parser.add_argument("--peer", action="append", nargs="?", const="", choices=("", *PEERS))
    parser.add_argument("--peer-memory", action="store_true", help="their memory: up to 30 GB")
    parser.add_argument("--folder", type=Path, help="environments of the peers, see peers.py")
    parser.add_argument("--count", type=int, help="samples for the times")
    parser.add_argument("--samples", type=int, nargs="+", default=[16, 256], help="for the memory")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeat", type=int, default=3, help="rounds for the times")
    parser.add_argument("--cache", help=f"downloads; else ${zoo.CACHE_VARIABLE}, else cache/")
    return parser.parse_args()


def main() -> None:
    """Print the tables."""
    options, tables = parsed(), []
    store = zoo.Store(options.cache)
    available = networks(store)
    if unknown := set(options.networks) - set(available):
        sys.exit(f"unknown network: {', '.join(sorted(unknown))}")
    timing.pin(max(options.threads))
    ours = [f"rustq {method}" for method in options.method or METHODS]
    wanted = options.peer or []
    others = PEERS if "" in wanted else wanted
    apart = {way.partition(" ")[0] for way in others} - {"onnxruntime"}
    folder = options.folder or store.root / "peers"
    pythons = {tool: peers.environment(tool, folder) for tool in apart}
    for name in options.networks or available:
        network = available[name]
        with tempfile.TemporaryDirectory() as scratch:
            count = options.count or network.count
            most = max(count, *options.samples)
            samples = write_samples(store, Path(scratch), network.input, most)
            bench = Bench(network, samples, pythons)
            for threads in options.threads if options.only != "memory" else []:
                workers = [f"{ours[0]}, {threads} workers"] if threads > 1 else []
                ways = ["float", *ours, *workers, *others]
                tables.append(bench.times(ways, count, threads, options.repeat))
            if options.only != "time":
                ways = ["float", *ours[:2], *(others if options.peer_memory else [])]
                tables.append(bench.memory(ways, options.samples))
            print("\n\n".join(tables), flush=True)
            tables = []
            print()


if __name__ == "__main__":
    main()
