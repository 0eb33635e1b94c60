"""Speed and size of quantized models in ONNX Runtime on one thread.

    python benches/speed.py [CASE ...] [--scheme sym] [--seconds 20]

The float model, rustq's and onnxruntime's own per-channel QDQ model take turns in one process, on
one core, over the same inputs; medians. The clock is the thread's CPU time, which other programs
on the machine disturb less than the wall time (`--wall`); with one thread both mean the same on a
quiet machine. Sizes are in kB of 1000 bytes; `least` is what int8 weights, their scales and
biases, and what stays float take by themselves, and `graph` what nodes and names take.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import timing
import variants
import zoo
from anatomy import Anatomy
from markdown import table
from variants import Variant

INPUTS = 8


def measure(
    case: zoo.Case, ways: Sequence[Variant], seconds: float, wall: bool
) -> tuple[dict[str, float], dict[str, Anatomy]]:
    """Milliseconds of the float and the quantized models, and what the quantized files hold."""
    runs, files = {"float": zoo.runner(case.model)}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for way in ways:
            made = variants.attempt(way, case, Path(scratch))
            if not made.error:
                runs[way.name], files[way.name] = zoo.runner(made.path), Anatomy(made.path)
        clock = time.perf_counter if wall else time.thread_time
        feeds = case.evaluation[:INPUTS]
        return timing.interleaved(runs, feeds, seconds, clock), files


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(zoo.CASES)}")
    parser.add_argument("--scheme", choices=("asym", "sym"), default="asym")
    parser.add_argument("--no-rustq", action="store_true", help="only the peer")
    parser.add_argument("--seconds", type=float, default=20, help="to measure each case for")
    parser.add_argument("--core", type=int, help="the core to run on; default the last")
    parser.add_argument("--wall", action="store_true", help="wall time instead of CPU time")
    parser.add_argument("--cache", help=f"downloads; else ${zoo.CACHE_VARIABLE}, else cache/")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(zoo.CASES):
        parser.error(f"unknown case: {', '.join(sorted(unknown))}")

    timing.pin(core=options.core)
    ways = [] if options.no_rustq else [variants.rustq(options.scheme)]
    ways.append(variants.onnxruntime(per_channel=True))
    store = zoo.Store(options.cache)
    ratios: dict[str, list[float]] = {way.name: [] for way in ways}
    times, sizes = [], []
    for name in options.cases or zoo.CASES:
        print(name, file=sys.stderr, flush=True)
        case = zoo.load(name, store)
        ms, files = measure(case, ways, options.seconds, options.wall)
        row = [name, f"{ms['float']:.3f}"]
        for way in ways:
            if way.name not in ms:
                row += ["fails", ""]
                continue
            ratios[way.name].append(ms["float"] / ms[way.name])
            row += [f"{ms[way.name]:.3f}", f"{ratios[way.name][-1]:.2f}"]
            file = files[way.name]
            least = file.least_size()
            over = f"{100 * (file.size / least - 1):.1f} %"
            size = (case.model.stat().st_size, file.size, least, file.graph_size())
            sizes.append([name, way.name, *(f"{each / 1000:.0f}" for each in size), over])
        times.append(row)
    means = [f"{statistics.geometric_mean(r):.2f}" if r else "" for r in ratios.values()]
    times.append(["geometric mean", "", *(cell for mean in means for cell in ("", mean))])

    print(table(["case", "float ms", *(c for w in ways for c in (f"{w.name} ms", "ratio"))], times))
    print()
    header = ["case", "quantized by", "float kB", "int8 kB", "least kB", "graph kB", "over least"]
    print(table(header, sizes, names=2))


if __name__ == "__main__":
    main()
