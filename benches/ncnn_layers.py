"""Which layers the error of an int8 model in ncnn comes from: each of them alone in int8.

    python benches/ncnn_layers.py mobilenet_v2                # the costliest 20 layers
    python benches/ncnn_layers.py ppocr_rec --samples 8 --all

Every layer in turn is the only one on integers, in ncnn itself, and the error of the outputs is
measured against the float export. Prints the share of each in the sum of these errors, its own
SQNR, what the report says of it (the SQNR of its weights and of its input, its share of the
multiply-accumulates), and, as the last line, the SQNR with all of them in int8 beside what the sum
of the errors would give. Markdown on standard output.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import zoo
from markdown import table
from ncnn_scores import CASES, Exported, sqnr

HEADER = ("layer", "operator", "error", "SQNR dB", "of its weights", "of its input", "MACs")


def decibels(value: float | None) -> str:
    """A table cell."""
    return "" if value is None else f"{value:.1f}"


def rows(exported: Exported, method: str) -> list[tuple[float, tuple[str, ...]]]:
    """For each layer in int8 the energy of its error, relative to the outputs, and its cells."""
    exported.export("float", weights="float32")
    reference = exported.run("float")
    everything = exported.export("all", noise_price=0, method=method).report
    together = sqnr(reference, exported.run("all"))
    layers = [layer for layer in everything.layers if layer.quantized]
    macs = sum(layer.macs or 0 for layer in everything.layers)
    found = []
    for layer in layers:
        others = [other.name for other in layers if other is not layer]
        exported.export("one", noise_price=0, method=method, exclude=others)
        ratio = sqnr(reference, exported.run("one"))
        print(f"{layer.name}: {ratio:.1f} dB", file=sys.stderr, flush=True)
        own = decibels(layer.weight_sqnr_db), decibels(layer.activation_sqnr_db)
        share = f"{(layer.macs or 0) / macs:.1%}"
        found.append(
            (10 ** (-ratio / 10), (layer.name, layer.op_type, decibels(ratio), *own, share))
        )
    found.sort(reverse=True)
    total = sum(error for error, _ in found)
    cells = [
        (error, (name, op_type, f"{error / total:.0%}", *more))
        for error, (name, op_type, *more) in found
    ]
    sums = f"{together:.1f}, sum {-10 * np.log10(total):.1f}"
    return [*cells, (total, ("all", "", "100 %", sums, "", "", ""))]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--samples", type=int, default=16, help="of the evaluation (%(default)s)")
    parser.add_argument("--method", default="auto", help="calibration method")
    parser.add_argument("--all", action="store_true", help="every layer, not just 20")
    parser.add_argument("--cache", help=f"downloads; else ${zoo.CACHE_VARIABLE}, else cache/")
    options = parser.parse_args()
    case = zoo.load(options.case, zoo.Store(options.cache))
    with tempfile.TemporaryDirectory() as folder:
        exported = Exported(case, Path(folder), samples=options.samples)
        lines = [cells for _, cells in rows(exported, options.method)]
    print(table(HEADER, lines if options.all else [*lines[:-1][:20], lines[-1]], names=2))


if __name__ == "__main__":
    main()
