"""The same input gives the same output, byte for byte, whatever the run, the threads and the processor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import rustq
from builders import random_feeds
from rustq import demo
from zoo import classifier, transformer

DIGESTS = """
import hashlib, json, sys
import numpy as np, rustq

model, data = sys.argv[1:]
feeds = [dict(np.load(data))]
knobs = {
    "sym": {},
    "learned": {"rounding": "learned", "bias_correction": True, "method": "mse"},
    "int4": {"weights": "int4"},
    "int4 learned": {"weights": "int4", "rounding": "learned", "activations": "float32"},
    "log2": {"weights": "log2"},
}
results = {
    "fold": rustq.fold(model),
    "dynamic": rustq.quantize(model),
    "asym": rustq.quantize(model, feeds, scheme="asym"),
}
for name, options in knobs.items():
    results[name] = rustq.quantize(model, feeds, scheme="sym", config=rustq.QuantConfig(**options))
weights = {
    "int8 weights": {"activations": "float32"},
    "int4 weights": {"weights": "int4"},
    "uint4 weights": {"weights": "uint4", "block_size": 16},
    "binary weights": {"weights": "binary"},
}
for name, options in weights.items():
    results[name] = rustq.quantize(model, config=rustq.QuantConfig(**options))
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
    for threads, seed in (("1", "0"), ("2", "1"), ("5", "2")):
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


WITHOUT_DATA = """
import hashlib, sys
import rustq

model, calibration = sys.argv[1:]
seen = rustq.Calibration.load(calibration)
ways = {
    "dynamic": (None, {}),
    "int4": (None, {"weights": "int4"}),
    "mse": (seen, {"method": "mse"}),
    "entropy": (seen, {"method": "entropy", "weights": "int4"}),
}
for name, (data, knobs) in ways.items():
    result = rustq.quantize(model, data, config=rustq.QuantConfig(**knobs))
    print(name, hashlib.sha256(result.to_bytes()).hexdigest())
"""

EMULATOR = shutil.which("qemu-x86_64")
PROCESSORS = {"SSE4.2": "Nehalem", "AVX2": "Haswell"}
"""By their widest vectors; QEMU emulates none with AVX-512, for which there is `make test-avx512`."""


@pytest.mark.skipif(EMULATOR is None, reason="needs qemu-user")
def test_instruction_sets(tmp_path: Path) -> None:
    """Of the demo's calibration, since ONNX Runtime's floats do depend on the processor."""
    calibration = tmp_path / "demo.calibration"
    rustq.calibrate(demo.model_path(), demo.calibration()).save(calibration)
    command = [sys.executable, "-c", WITHOUT_DATA, str(demo.model_path()), str(calibration)]
    outputs = {"this machine": _output(command)}
    for name, processor in PROCESSORS.items():
        # NumPy's OpenBLAS does not know every processor that QEMU is when it runs on another.
        known = os.environ | {"OPENBLAS_CORETYPE": processor}
        outputs[name] = _output([str(EMULATOR), "-cpu", processor, *command], known)
    assert len(set(outputs.values())) == 1, outputs


def _output(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout
