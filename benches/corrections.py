"""Methods and corrections on the zoo, and whether what is best on some models is so on another.

    python benches/corrections.py                               # every case and setting
    python benches/corrections.py mobilenet_v2 magika           # some cases
    python benches/corrections.py --keep figures.jsonl          # goes on where it was stopped

A setting is a calibration method with one correction, or with none, or what rustq does by itself.
For each case: the output SQNR in dB. For each setting: mean and worst loss of score in points,
share of the multiply-accumulates in int8, CPU seconds and memory of quantizing, which runs in a
process of its own. The last table leaves one case out at a time: of the settings that have as much
in int8 as the default, the one that has the highest mean SQNR on the others is what it is given.
Prints markdown on standard output, progress on standard error.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zoo
from accuracy import sqnr
from markdown import table

DEFAULT = "default"
METHODS = ("minmax", "percentile", "entropy", "mse")
CORRECTIONS: Mapping[str, Mapping[str, Any]] = {
    "": {},
    "equalized": {"equalize": True},
    "bias": {"bias_correction": True},
    "learned, bias": {"rounding": "learned", "bias_correction": True},
    "equalized, learned, bias": {
        "equalize": True,
        "rounding": "learned",
        "bias_correction": True,
    },
}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    f"{method}, {name}".rstrip(", "): {"method": method, **correction}
    for method in METHODS
    for name, correction in CORRECTIONS.items()
} | {DEFAULT: {}}


AS_MUCH = 0.98
"""Of the default's mean share in int8, which a setting has to have to be compared with it: what has
less is accurate by being slow."""


@dataclass(frozen=True)
class Figures:
    """One case with one setting."""

    case: str
    setting: str
    loss: float
    sqnr: float
    share: float
    """Of the multiply-accumulates, in int8."""
    seconds: float
    """Of the processor."""
    mebibytes: float
    """Peak while quantizing, above what there was before."""


def quantized(name: str, setting: str, cache: str | None, path: Path) -> tuple[float, float, float]:
    """Quantizes a case into a file; seconds, mebibytes, and the share that runs in int8."""
    import rustq

    case = zoo.load(name, zoo.Store(cache))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    config = rustq.QuantConfig(**SETTINGS[setting])
    made = rustq.quantize(case.model, case.calibration, config=config)
    made.save(path)
    seconds = time.process_time() - started
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    macs = [(layer.macs or 0, layer.quantized) for layer in made.report.layers]
    share = sum(count for count, int8 in macs if int8) / max(1, sum(count for count, _ in macs))
    return seconds, grown / 1024, share


def measured(
    case: zoo.Case, settings: Iterable[str], cache: str | None, folder: Path
) -> Iterable[Figures]:
    """The figures of a case, one setting after the other."""
    reference = case.run()
    score = case.score(reference)
    path = folder / "quantized.onnx"
    for setting in settings:
        print(f"{case.name}: {setting}", file=sys.stderr, flush=True)
        with multiprocessing.get_context("spawn").Pool(1) as alone:
            made = alone.apply(quantized, (case.name, setting, cache, path))
        seconds, mebibytes, share = made
        outputs = case.run(path)
        loss = 100 * (score - case.score(outputs))
        decibels = sqnr(reference, outputs)
        yield Figures(case.name, setting, loss, decibels, share, seconds, mebibytes)


class Kept:
    """Figures that are known, in a file of one line each if there is one."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path and path.exists() else []
        self.figures = [Figures(**json.loads(line)) for line in lines]

    def missing(self, case: str) -> list[str]:
        """The settings that are not known of a case."""
        known = {each.setting for each in self.figures if each.case == case}
        return [setting for setting in SETTINGS if setting not in known]

    def add(self, figures: Figures) -> None:
        """Keeps one more."""
        self.figures.append(figures)
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps(asdict(figures)) + "\n")


def by_setting(figures: Sequence[Figures], cases: Sequence[str]) -> str:
    """A row for each setting: SQNR of every case, and what it costs."""
    rows = []
    for setting in SETTINGS:
        mine = {each.case: each for each in figures if each.setting == setting}
        known = list(mine.values())
        if not known:
            continue
        decibels = [f"{mine[case].sqnr:.1f}" if case in mine else "" for case in cases]
        losses = [each.loss for each in known]
        mean = [float(np.mean([getattr(each, what) for each in known])) for what in MEANS]
        rows.append(
            (
                setting,
                *decibels,
                f"{np.mean(losses):.2f}",
                f"{max(losses):.1f}",
                f"{100 * mean[0]:.0f} %",
                f"{mean[1]:.1f}",
                f"{mean[2]:.0f}",
            )
        )
    header = ("setting", *cases, "mean loss", "worst", "int8", "CPU s", "MiB")
    return table(header, rows)


MEANS = ("share", "seconds", "mebibytes")


def left_out(figures: Sequence[Figures], cases: Sequence[str]) -> str:
    """A row for each case: the setting that the others choose, what it gives, and what rustq does
    by itself."""
    known = {(each.case, each.setting): each for each in figures}

    def mean(what: str, setting: str, cases: Sequence[str] = cases) -> float:
        return float(np.mean([getattr(known[case, setting], what) for case in cases]))

    complete = [s for s in SETTINGS if all((case, s) in known for case in cases)]
    if DEFAULT not in complete:
        return ""
    least = AS_MUCH * mean("share", DEFAULT)
    settings = [s for s in complete if s != DEFAULT and mean("share", s) >= least]
    rows = []
    for case in cases:
        others = [other for other in cases if other != case]
        if not settings or not others:
            continue
        on_others = partial(mean, "sqnr", cases=others)
        chosen = known[case, max(settings, key=on_others)]
        best = max((known[case, setting] for setting in settings), key=lambda each: each.sqnr)
        own = known[case, DEFAULT]
        rows.append(
            (
                case,
                chosen.setting,
                *(f"{value:.1f}" for value in (chosen.sqnr, chosen.loss, own.sqnr, own.loss)),
                best.setting,
                f"{best.sqnr:.1f}",
            )
        )
    header = ("case", "the others choose", "SQNR", "loss", "default: SQNR", "loss", "best", "SQNR")
    return table(header, rows, names=2)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(zoo.CASES)}")
    parser.add_argument("--keep", type=Path, help="file that the figures are kept in")
    parser.add_argument("--cache", help=f"downloads; else ${zoo.CACHE_VARIABLE}, else cache/")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(zoo.CASES):
        parser.error(f"unknown case: {', '.join(sorted(unknown))}")
    cases, kept = options.cases or list(zoo.CASES), Kept(options.keep)
    store = zoo.Store(options.cache)
    with tempfile.TemporaryDirectory() as folder:
        for name in cases:
            if missing := kept.missing(name):
                case = zoo.load(name, store)
                for figures in measured(case, missing, options.cache, Path(folder)):
                    kept.add(figures)
    print(by_setting(kept.figures, cases))
    print()
    print(left_out(kept.figures, cases))


if __name__ == "__main__":
    main()
