"""NVIDIA's own parser and builder take what we write, and refuse what our lint finds.

Needs requirements-tensorrt.txt (`make test-tensorrt`); without it everything here is skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
import test_tensorrt as ours
import test_tensorrt_codes as codes

pytestmark = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="no tensorrt_rtx")

SCRIPT = Path(__file__).parent.parent / "benches" / "tensorrt_build.py"


def errors(model: onnx.ModelProto, path: Path) -> list[str]:
    onnx.save(model, path)
    command = [sys.executable, SCRIPT, "--here", path]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if ran.returncode:
        return [f"ended with {ran.returncode}"]
    found: list[str] = json.loads(ran.stdout.splitlines()[-1])["errors"]
    return found


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["classifier", "mobile", "squeeze_and_excite", "detector", "transformer"])  # fmt: skip
def test_takes_what_we_write(name: str, precision: str, tmp_path: Path) -> None:
    made = ours.quantized(ours.MODELS[name](), high_precision=precision)
    assert errors(made, tmp_path / "net.onnx") == []


@pytest.mark.parametrize("block", [0, 16, 32, 64])
def test_takes_weights_of_4_bits(block: int, tmp_path: Path) -> None:
    made = codes.coded(ours.zoo.transformer(), block_size=block)
    assert errors(made, tmp_path / "net.onnx") == []


def test_takes_a_dynamic_batch(tmp_path: Path) -> None:
    made = ours.quantized(ours.zoo.classifier(batch="batch"))
    assert errors(made, tmp_path / "net.onnx") == []


REFUSED = (
    "a zero point that is not 0",
    "zero point that is not int8",
    "1 scales, but 2 zero points",
    "not positive and finite",
    "quantized bias",
    "which is not int8",
    "is DynamicQuantizeLinear",
    "is QLinearConv",
)
"""The others TensorRT takes, but reads otherwise than they say, or in some versions only."""


@pytest.mark.parametrize("message", REFUSED)
def test_refuses_what_lint_finds(message: str, tmp_path: Path) -> None:
    kept: list[onnx.ModelProto] = []

    def change(model: onnx.ModelProto, nodes: Any) -> None:
        ours.BROKEN[message](model, nodes)
        kept.append(model)

    assert ours.broken(change)
    assert errors(kept[0], tmp_path / "net.onnx")
