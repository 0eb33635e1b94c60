# ruff: noqa: E402 (the pools of threads read the environment when they are imported)
"""Times of `rustq.kernels` beside a copy of memory and beside other tools: `make bench`.

All in one process and on one thread, taking turns; the time is that of the fastest round. The
ratios of the column `x copy` are to a copy (C's memmove) of as many bytes as the kernel reads and
writes, of `x sum` to numpy's sum of the input: 1 is the speed of memory, more is faster. Beside a
time of another tool is how many times faster rustq is.
"""

from __future__ import annotations

import os

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(pool, "1")

import argparse
import ctypes
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import kernel_peers as peers
import numpy as np
from markdown import table
from rustq import kernels
from timing import pin

Array = np.ndarray[Any, Any]
SIZES = {"1 MiB": 1 << 18, "512 MiB": 1 << 27}
PART = 1 << 21  # 8 MiB, of which two fit into a cache that cores share
THREADED = {"1 MiB": 1 << 18, "8 MiB": PART}
LONG = 10_000_000  # nanoseconds: whatever takes so long is not in the cache
SCALE, ZERO, CHANNELS = 0.021, 3, 1024
NAMES = {"quantize": "quantize to int8", "dequantize": "dequantize int8"}
PEERS = ("numpy", "onnxruntime", "torch")


@dataclass(frozen=True)
class Row:
    """A kernel at work."""

    name: str
    run: Callable[[], object]
    others: peers.Peers
    moved: float = 0  # bytes read and written for each element
    summed: Array | None = None  # for kernels that only read
    asked: tuple[str, str] = ("", "")  # aimed at, in the cache and beyond: a ratio, or nanoseconds


def rows(size: int) -> Iterator[Row]:
    """All kernels, on `size` elements."""
    x = np.random.default_rng(0).standard_normal(size, np.float32)
    q, y = kernels.quantize(x, SCALE, ZERO), np.empty(size, np.float32)
    for kernel, given, out, moved, asked in (
        ("quantize", x, q, 5, ("≥ 0.45", "≥ 0.9")),
        ("dequantize", q, y, 5, ("≥ 0.8", "≥ 0.95")),
        ("fake_quantize", x, y, 8, ("", "")),
    ):
        call, others = getattr(kernels, kernel), getattr(peers, kernel)(given, SCALE, ZERO, out)
        run = partial(call, given, SCALE, ZERO, out=out)
        yield Row(NAMES.get(kernel, kernel), run, others, moved=moved, asked=asked)
    error = partial(kernels.quantization_error, x, SCALE, ZERO)
    yield Row("quantization_error", error, peers.quantization_error(x, SCALE, ZERO), summed=x)
    extremes = partial(kernels.min_max, x)
    yield Row("min_max", extremes, peers.min_max(x), summed=x, asked=("≥ 1.0", "≥ 0.95"))
    for name, axis, shape in (("rows", 0, (CHANNELS, -1)), ("columns", 1, (-1, CHANNELS))):
        matrix = x.reshape(shape)
        codes = q.reshape(shape)
        run = partial(kernels.absmax_quantize, matrix, axis, out=codes)
        others = peers.absmax_quantize(matrix, axis, codes)
        yield Row(f"absmax_quantize, {name}", run, others, moved=5, asked=("≥ 0.35", "≥ 0.4"))
    for name, values in (("Gaussian", x), ("ReLU", np.maximum(x, 0))):
        run, others = partial(kernels.histogram, values), peers.histogram(values)
        asked = "≤ 0.45 ns", "≤ 0.7 ns"
        yield Row(f"histogram, {name}", run, others, summed=values, asked=asked)
    four = kernels.quantize(x, 0.5, dtype="int4")
    yield Row("pack_int4", partial(kernels.pack_int4, four), peers.pack_int4(four), moved=1.5)
    packed = kernels.pack_int4(four)
    unpack, others = (
        partial(kernels.unpack_int4, packed, size),
        peers.unpack_int4(packed, np.empty(size, np.int8)),
    )
    yield Row("unpack_int4", unpack, others, moved=1.5)


def fastest(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Nanoseconds of the fastest round of each; they take turns."""
    best = dict.fromkeys(runs, float("inf"))
    end = time.monotonic() + seconds
    for number in range(2000):
        if number > 4 and time.monotonic() > end:
            break
        for name, run in runs.items():
            # What takes long need not be repeated as often as what it is compared with.
            if number % 8 and best[name] > 20 * best["rustq"]:
                continue
            if number == 0 or best[name] < LONG:
                run()  # so that the next one finds its own data in the cache
            start = time.perf_counter_ns()
            run()
            best[name] = min(best[name], time.perf_counter_ns() - start)
    return best


def memory(row: Row, size: int) -> Callable[[], object]:
    """The copy or the sum that a kernel is compared with."""
    if row.summed is not None:
        return row.summed.sum
    count = int(row.moved * size) // 2
    source, target = np.ones(count, np.uint8), np.ones(count, np.uint8)
    places = target.ctypes.data, source.ctypes.data
    # The arrays are arguments so that they live as long as the function.
    return lambda arrays=(source, target): ctypes.memmove(*places, count)


def measure(sizes: Sequence[str], seconds: float) -> Iterator[list[str]]:
    """Lines of the table."""
    for label in sizes:
        size = SIZES[label]
        for row in rows(size):
            runs = {"rustq": row.run, "memory": memory(row, size)} | row.others
            best = fastest(runs, seconds)
            ratio = f"{best['memory'] / best['rustq']:.2f}"
            yield [
                row.name,
                label,
                f"{best['rustq'] / size:.3f}",
                ratio if row.moved else "",
                "" if row.moved else ratio,
                row.asked[size >= PART],
                *(
                    f"{best[peer] / size:.2f} ({best[peer] / best['rustq']:.1f})"
                    if peer in best
                    else ""
                    for peer in PEERS
                ),
            ]


# ---------------------------------------------------------------------- two threads
def calls(count: int, size: int) -> dict[str, Callable[[], object]]:
    """A kernel on its own data for each of `count` threads."""
    x = np.random.default_rng(count).standard_normal(size, np.float32)
    q, y = np.empty(size, np.int8), np.empty(size, np.float32)
    kernels.quantize(x, SCALE, out=q)
    return {
        "quantize to int8": lambda: kernels.quantize(x, SCALE, out=q),
        "dequantize int8": lambda: kernels.dequantize(q, SCALE, out=y),
        "fake_quantize": lambda: kernels.fake_quantize(x, SCALE, out=y),
        "min_max": lambda: kernels.min_max(x),
        "absmax_quantize, rows": lambda: kernels.absmax_quantize(
            x.reshape(CHANNELS, -1), 0, out=q.reshape(CHANNELS, -1)
        ),
        "absmax_quantize, columns": lambda: kernels.absmax_quantize(
            x.reshape(-1, CHANNELS), 1, out=q.reshape(-1, CHANNELS)
        ),
        "histogram, Gaussian": lambda: kernels.histogram(x),
        "copy": lambda: ctypes.memmove(y.ctypes.data, x.ctypes.data, x.nbytes),
    }


def side_by_side(runs: Sequence[Callable[[], object]], times: int) -> float:
    """Seconds until as many threads have each called theirs so often."""
    start = threading.Barrier(len(runs) + 1)

    def work(run: Callable[[], object]) -> None:
        start.wait()
        for _ in range(times):
            run()

    threads = [threading.Thread(target=work, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    start.wait()
    begin = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begin


def one_call(size: int) -> dict[str, float]:
    """Nanoseconds of one call, by as many threads as this process was given."""
    return {name: fastest({"rustq": run}, 0.5)["rustq"] for name, run in calls(0, size).items()}


def in_a_process(threads: int, size: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one-call", str(size)]
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
    return json.loads(subprocess.check_output(command, env=environment, text=True))


def two_calls(size: int) -> dict[str, float]:
    """How much more two threads do that call side by side."""
    first, second = calls(0, size), calls(1, size)
    times = max(1, 20 * PART // size)
    found = {}
    for name in first:
        pairs = []
        for _ in range(10):
            alone = side_by_side([first[name]], times)
            pairs.append((alone, side_by_side([first[name], second[name]], times)))
        alone, both = (min(each) for each in zip(*pairs, strict=True))
        found[name] = 2 * alone / both
    return found


def shared_call(size: int) -> dict[str, float]:
    """How much sooner one call is done that two threads work on. Nobody shares out a copy."""
    one, two = (in_a_process(threads, size) for threads in (1, 2))
    return {name: one[name] / two[name] for name in one if name != "copy"}


def scaling() -> Iterator[list[str]]:
    """Each kernel's line of the table of two threads."""
    columns = [
        measured(size) for measured in (two_calls, shared_call) for size in THREADED.values()
    ]
    for name in columns[0]:
        yield [name, *(f"{column[name]:.2f}" if name in column else "" for column in columns)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--seconds", type=float, default=3, help="for each line")
    parser.add_argument("--threads", action="store_true", help="only the table of two threads")
    parser.add_argument("--one-call", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_call:
        print(json.dumps(one_call(arguments.one_call)))
        return
    print("two threads, times the work of one\n")
    head = ["kernel", *(f"two calls, {size} each" for size in THREADED)]
    head += [f"one call, {size}" for size in THREADED]
    print(table(head, list(scaling())), end="\n\n")
    if arguments.threads:
        return
    pin()
    head = ["kernel", "input", "ns per element", "x copy", "x sum", "asked", *PEERS]
    print("one thread\n")
    print(table(head, list(measure(arguments.sizes, arguments.seconds)), names=2))


if __name__ == "__main__":
    main()
