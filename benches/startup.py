"""How long `import rustq` takes against `import numpy`, and how large the wheel is.

    python benches/startup.py [--wheel target/wheels/rustq-….whl]

Fresh interpreters take turns; the import is timed inside them (wall time, files in the page
cache), medians.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from markdown import table

TIMED = "from time import perf_counter as t; a = t(); import {}; print(t() - a)"


def import_seconds(module: str) -> float:
    """One import in a fresh interpreter."""
    command = [sys.executable, "-c", TIMED.format(module)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--modules", nargs="+", default=["numpy", "rustq"], help="first: the unit")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--wheel", type=Path, help="also print its size")
    options = parser.parse_args()

    times: dict[str, list[float]] = {module: [] for module in options.modules}
    for number in range(options.rounds + 1):
        for module, taken in times.items():
            seconds = import_seconds(module)
            taken += [seconds] if number else []  # the first round fills the caches
    medians = {module: statistics.median(taken) for module, taken in times.items()}
    unit = medians[options.modules[0]]
    rows = [[m, f"{1000 * s:.1f}", f"{s / unit:.2f}"] for m, s in medians.items()]
    print(table(["import", "ms", f"x {options.modules[0]}"], rows))
    if options.wheel:
        print(f"\n{options.wheel.name}: {options.wheel.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
