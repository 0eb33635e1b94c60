"""Prints the float score of each case: `python -m zoo [CASE ...]`."""

import sys

from . import CASES, Store, load

store = Store()
for name in sys.argv[1:] or CASES:
    case = load(name, store)
    score = case.score(case.run())
    counts = f"{len(case.calibration)} to calibrate, {len(case.evaluation)} to evaluate"
    print(f"{name:20}{score:.4f}  {case.metric}; {counts}", flush=True)
