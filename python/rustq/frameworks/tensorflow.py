"""TensorFlow: SavedModel folders, by tf2onnx."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from rustq.errors import ModelError

__all__ = ["export", "repaired"]

OPSET = 18


def repaired(path: Path) -> bytes:
    """What tf2onnx wrote, without operators that ONNX does not have: erfc(x) = 1 - erf(x)."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(path)
    graph, nodes = model.graph, []
    for node in graph.node:
        if node.op_type != "Erfc":
            nodes.append(node)
            continue
        (output,) = node.output
        inner, one = f"{output}_erf", f"{output}_one"
        graph.initializer.append(numpy_helper.from_array(np.ones((), np.float32), one))
        nodes.append(helper.make_node("Erf", node.input, [inner], f"{node.name}_erf"))
        nodes.append(helper.make_node("Sub", [one, inner], [output], node.name))
    del graph.node[:]
    graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def export(model: Any, samples: Sequence[Any]) -> bytes:
    """The model in this folder as the bytes of an ONNX model.

    tf2onnx runs in a process of its own, as its documentation has it: TensorFlow need not be loaded
    into this one.
    """
    for package in ("tensorflow", "tf2onnx"):
        if find_spec(package) is None:
            raise ModuleNotFoundError(name=package)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        words = ["-m", "tf2onnx.convert", "--saved-model", os.fspath(model), "--output", str(path)]
        done = subprocess.run(
            [sys.executable, *words, "--opset", str(OPSET)],
            capture_output=True,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
            check=False,
        )
        if done.returncode or not path.exists():
            lines = done.stderr.strip().splitlines() or ["it wrote nothing"]
            raise ModelError(f"{model}: tf2onnx could not convert it: {lines[-1]}")
        return repaired(path)
