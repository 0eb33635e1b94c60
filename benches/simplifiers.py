"""rustq and other tools that simplify ONNX models, each as one function from a file to a file."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import onnx


def rustq(source: Path, target: Path) -> None:
    import rustq

    rustq.fold(source).save(target)


def onnxsim(source: Path, target: Path) -> None:
    import onnxsim

    model, sound = onnxsim.simplify(onnx.load(source))
    if not sound:
        raise RuntimeError("onnxsim does not trust its result")
    onnx.save(model, target)


def onnxslim(source: Path, target: Path) -> None:
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), target)


def onnxoptimizer(source: Path, target: Path) -> None:
    import onnxoptimizer

    passes = onnxoptimizer.get_fuse_and_elimination_passes()
    onnx.save(onnxoptimizer.optimize(onnx.load(source), passes), target)


def onnxruntime(source: Path, target: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(target)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


TOOLS: dict[str, Callable[[Path, Path], None]] = {
    tool.__name__: tool for tool in (rustq, onnxsim, onnxslim, onnxoptimizer, onnxruntime)
}


def versions() -> str:
    """Name and version of each tool."""
    return ", ".join(f"{name} {version(name)}" for name in TOOLS)
