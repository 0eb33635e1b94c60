"""Accuracy of quantized models on real tasks, with real data.

    python benches/accuracy.py                                  # every case, rustq asym and sym
    python benches/accuracy.py mobilenet_v2 mnist_cnn --peer    # some cases, onnxruntime too
    python benches/accuracy.py --method entropy --method mse    # other calibration methods as well

For every case and way to quantize: the task score, the loss against the float model in points
(hundredths), the signal-to-quantization-noise ratio of the outputs (energies of all float outputs
over all evaluation inputs), how many layers with weights run in int8, and the CPU seconds of
quantizing. The second table sums up: mean and worst loss. Prints markdown on standard output,
progress on standard error.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import variants
import zoo
from anatomy import Anatomy
from markdown import table
from variants import Variant

HEADER = ("case", "quantized by", "score", "loss", "SQNR dB", "int8 layers", "CPU s")
SUMMARY = ("quantized by", "mean loss", "worst loss", "worst case", "mean SQNR dB", "fails")


@dataclass(frozen=True)
class Result:
    """One case, quantized one way; the numbers are NaN where that failed."""

    case: str
    variant: str
    score: float = math.nan
    loss: float = math.nan
    sqnr: float = math.nan
    layers: str = ""
    cpu_seconds: float = math.nan

    @property
    def failed(self) -> bool:
        """Whether there is no quantized model, or none that runs."""
        return math.isnan(self.loss)

    def row(self) -> Sequence[str]:
        """The cells of HEADER."""
        if self.failed:
            return self.case, self.variant, "fails", "", "", "", ""
        numbers = f"{self.score:.4f}", f"{self.loss:.2f}", f"{self.sqnr:.1f}"
        return self.case, self.variant, *numbers, self.layers, f"{self.cpu_seconds:.1f}"


def sqnr(reference: Sequence[zoo.Outputs], outputs: Sequence[zoo.Outputs]) -> float:
    """10 log10(signal energy / error energy) over all float outputs, in dB."""
    signal = noise = 0.0
    for expected, actual in zip(reference, outputs, strict=True):
        for e, a in zip(expected, actual, strict=True):
            if e.dtype.kind == "f":
                wide = e.astype(np.float64)
                signal += float(np.sum(wide**2))
                noise += float(np.sum((wide - a) ** 2))
    return 10 * math.log10(signal / noise) if noise else math.inf


def measure(case: zoo.Case, ways: Sequence[Variant], folder: Path) -> list[Result]:
    """Quantize one case every way, and evaluate."""
    reference = case.run()
    float_score = case.score(reference)
    results = [Result(case.name, "float", float_score, 0, math.inf, "", 0)]
    for way in ways:
        print(f"{case.name}: {way.name}", file=sys.stderr, flush=True)
        made = variants.attempt(way, case, folder)
        if made.error:
            results.append(Result(case.name, way.name))
            continue
        outputs = case.run(made.path)
        score = case.score(outputs)
        done, total = Anatomy(made.path).int8_layers()
        results.append(
            Result(
                case=case.name,
                variant=way.name,
                score=score,
                loss=100 * (float_score - score),
                sqnr=sqnr(reference, outputs),
                layers=f"{done}/{total}",
                cpu_seconds=made.cpu_seconds,
            )
        )
    return results


def summary(results: Sequence[Result], way: Variant) -> Sequence[str]:
    """The cells of SUMMARY for one way to quantize."""
    mine = [result for result in results if result.variant == way.name]
    good = [result for result in mine if not result.failed]
    fails = ", ".join(result.case for result in mine if result.failed)
    if not good:
        return way.name, "", "", "", "", fails
    worst = max(good, key=lambda result: result.loss)
    mean = np.mean([result.loss for result in good])
    quality = np.mean([result.sqnr for result in good])
    return way.name, f"{mean:.2f}", f"{worst.loss:.2f}", worst.case, f"{quality:.1f}", fails


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(zoo.CASES)}")
    parser.add_argument(
        "--method", action="append", default=[], help="also this calibration method"
    )
    parser.add_argument(
        "--peer", action="store_true", help="also onnxruntime's static quantization"
    )
    parser.add_argument("--no-rustq", action="store_true", help="leave rustq out")
    parser.add_argument("--keep", type=Path, help="folder for the quantized models")
    parser.add_argument("--cache", help=f"downloads; else ${zoo.CACHE_VARIABLE}, else cache/")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(zoo.CASES):
        parser.error(f"unknown case: {', '.join(sorted(unknown))}")

    methods = () if options.no_rustq else (None, *options.method)
    ways = [variants.rustq(scheme, method) for method in methods for scheme in ("asym", "sym")]
    if options.peer:
        ways += [variants.onnxruntime(per_channel=each) for each in (False, True)]
    store, results = zoo.Store(options.cache), []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.cases or zoo.CASES:
            results += measure(zoo.load(name, store), ways, folder)
    print(table(HEADER, (result.row() for result in results), names=2))
    print()
    print(table(SUMMARY, (summary(results, way) for way in ways)))


if __name__ == "__main__":
    main()
