"""What a calibration does not depend on, on the zoo's models: way, order, shards, batches.

    python benches/calibration.py                 # every case
    python benches/calibration.py magika --samples 8

"nodes" and "blocks": these ways of counting (see `rustq.runner`) against the activations as outputs
of the model: "equal", or the largest difference of a limit relative to the width of its range.
"order" and "shards": the samples backwards, and in three parts merged, byte for byte. "batches of
4": the ranges of the same samples four at a time, where the model takes batches; what differs is
what ONNX Runtime itself computes otherwise then.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import rustq
import zoo
from markdown import table
from rustq import _rustq
from rustq.config import QuantConfig
from rustq.model import core_of
from rustq.preparing import prepare
from rustq.runner import Observation

CONFIG = QuantConfig(threads=1)


def counted(model: _rustq.Model, feeds: Sequence[zoo.Feed], way: str) -> rustq.Calibration:
    """A calibration by one way alone."""
    observation = Observation(model, CONFIG, (way,))
    for number, feed in enumerate(feeds):
        observation.observe(feed, number)
    return rustq.Calibration(observation.take())


def compared(expected: rustq.Calibration, found: rustq.Calibration) -> str:
    """Equal, or how far apart."""
    if expected == found:
        return "equal"
    if expected.tensors != found.tensors:
        return "other tensors"
    worst = 0.0
    for name in expected.tensors:
        one, two = (np.array(c.range(name, method="minmax")) for c in (expected, found))
        width = float(one[1] - one[0])
        if width > 0:
            worst = max(worst, float(np.abs(one - two).max()) / width)
    return f"{worst:.0e}" if worst else "equal ranges"


def batched(feeds: Sequence[zoo.Feed], size: int) -> list[zoo.Feed] | None:
    """Feeds of several samples, `None` if their shapes differ."""
    if len({tuple(array.shape for array in feed.values()) for feed in feeds}) > 1:
        return None
    parts = [feeds[i : i + size] for i in range(0, len(feeds), size)]
    return [{name: np.concatenate([f[name] for f in part]) for name in part[0]} for part in parts]


def row(case: zoo.Case, samples: int) -> list[str]:
    """The line of a case."""
    feeds = case.calibration[:samples]
    model, *_ = prepare(core_of(case.model))
    ways, reference = [], counted(model, feeds, "outputs")
    for way in ("nodes", "blocks"):
        try:
            ways.append(compared(reference, counted(model, feeds, way)))
        except rustq.RustqError:
            ways.append("–")
    whole = counted(model, feeds, "nodes")
    backwards = counted(model, feeds[::-1], "nodes")
    parts = [counted(model, feeds[i::3], "nodes") for i in range(3)]
    merged = parts[2] + parts[0] + parts[1]
    exact = [_bytes(other) == _bytes(whole) for other in (backwards, merged)]
    try:
        four = batched(feeds, 4)
        batches = compared(whole, counted(model, four, "nodes")) if four else "–"
    except rustq.RustqError:
        batches = "–"
    told = ["equal" if same else "DIFFERENT" for same in exact]
    return [case.name, str(len(whole.tensors)), *ways, *told, batches]


def _bytes(calibration: rustq.Calibration) -> bytes:
    content: bytes = calibration._core.to_bytes()
    return content


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="case", help="default: every one")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--cache", help=f"downloads; else ${zoo.CACHE_VARIABLE}, else cache/")
    options = parser.parse_args()
    store = zoo.Store(options.cache)
    head = ["case", "tensors", "way: nodes", "blocks", "order", "shards", "batches of 4"]
    rows = []
    for name in options.cases or zoo.CASES:
        rows.append(row(zoo.load(name, store), options.samples))
        print(rows[-1], file=sys.stderr, flush=True)
    print(table(head, rows))


if __name__ == "__main__":
    main()
