"""Size, score and speed of weights below 8 bits.

    python benches/low_bit.py                              # the four of docs/low-bit.md
    python benches/low_bit.py mnist_cnn --seconds 10

Weights alone, and with int8 activations, each rounded to the nearest and by learning. The models
take turns in one process on one core; medians of the thread's CPU time, as a ratio to the float
model's. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import rustq
import timing
import zoo
from accuracy import sqnr
from markdown import table

CASES = ("mnist_cnn", "mobilenet_v2", "ppocr_rec", "minilm_l3")
FORMATS = ("int8", "int4", "uint4", "log2", "binary")
HEADER = ("case", "weights", "activations", "rounding", "size", "loss", "SQNR dB", "speed-up")
INPUTS = 8


def settings() -> Iterator[rustq.QuantConfig]:
    """All that are measured."""
    for weights, activations, rounding in itertools.product(
        FORMATS, ("float32", "int8"), ("nearest", "learned")
    ):
        yield rustq.QuantConfig(weights=weights, activations=activations, rounding=rounding)
    alone = rustq.QuantConfig(weights="int4", activations="float32", rounding="nearest")
    for size, rounding in itertools.product((0, 128), ("nearest", "learned")):
        yield replace(alone, block_size=size, rounding=rounding)
    yield replace(alone, quant_format="qdq")
    yield rustq.QuantConfig(activations="int16", rounding="nearest")


def label(config: rustq.QuantConfig) -> tuple[str, str, str]:
    """What a row is called."""
    weights = config.weights
    weights += {None: "", 0: ", per channel"}.get(config.block_size, f", {config.block_size}")
    weights += ", qdq" if config.quant_format == "qdq" else ""
    return weights, config.activations.removesuffix("32"), str(config.rounding)


def measure(case: zoo.Case, seconds: float, folder: Path) -> list[tuple[str, ...]]:
    """The rows of a case."""
    reference = case.run()
    float_score, float_size = case.score(reference), case.model.stat().st_size
    runs, rows = {"float": zoo.runner(case.model)}, {}
    for config in settings():
        name = label(config)
        print(case.name, *name, file=sys.stderr, flush=True)
        path = folder / f"{case.name}-{'-'.join(name)}.onnx"
        rustq.quantize(case.model, case.calibration, config=config).save(path)
        outputs = case.run(path)
        loss = 100 * (float_score - case.score(outputs))
        size = path.stat().st_size / float_size
        rows[str(path)] = (
            *name,
            f"{100 * size:.1f} %",
            f"{loss:.1f}",
            f"{sqnr(reference, outputs):.1f}",
        )
        runs[str(path)] = zoo.runner(path)
    feeds = case.evaluation[:INPUTS]
    ms = timing.interleaved(runs, feeds, seconds, time.thread_time)
    return [(case.name, *row, f"{ms['float'] / ms[path]:.2f}×") for path, row in rows.items()]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="case", default=CASES, help="of the zoo")
    parser.add_argument("--seconds", type=float, default=20, help="to time each case for")
    parser.add_argument("--cache", help=f"downloads; else ${zoo.CACHE_VARIABLE}, else cache/")
    options = parser.parse_args()
    timing.pin()
    store, rows = zoo.Store(options.cache), []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.cases:
            rows += measure(zoo.load(name, store), options.seconds, Path(scratch))
    print(table(HEADER, rows, names=4))


if __name__ == "__main__":
    main()
