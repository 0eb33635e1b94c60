"""The same input gives the same output, byte for byte, whatever the run and the number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import random_feeds
from zoo import classifier, transformer

DIGESTS = """
import hashlib, json, sys
import numpy as np, rustq

model, data = sys.argv[1:]
feeds = [dict(np.load(data))]
results = {
    "dynamic": rustq.quantize(model),
    "asym": rustq.quantize(model, feeds, scheme="asym"),
    "sym": rustq.quantize(model, feeds, scheme="sym"),
    "fold": rustq.fold(model),
}
for name, result in results.items():
    print(name, hashlib.sha256(result.to_bytes()).hexdigest())
    if name != "fold":
        report = result.report.to_dict()
        del report["seconds"], report["summary"]  # which tells them, too
        print(name, hashlib.sha256(json.dumps(report, default=str).encode()).hexdigest())
"""


@pytest.mark.parametrize("make", [classifier, transformer])
def test_runs_and_threads(make: object, tmp_path: Path) -> None:
    model = make()  # type: ignore[operator]
    (feed,) = random_feeds(model, 1)
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "feed.npz", **feed)
    outputs = set()
    for threads, seed in (("1", "0"), ("2", "1"), ("7", "2")):
        done = subprocess.run(
            [sys.executable, "-c", DIGESTS, str(tmp_path / "m.onnx"), str(tmp_path / "feed.npz")],
            env={**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outputs.add(done.stdout)
    assert len(outputs) == 1, outputs
