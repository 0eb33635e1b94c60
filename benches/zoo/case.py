"""What a case of the zoo is, and how a model file is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Feed = dict[str, np.ndarray]
Outputs = list[np.ndarray]
Run = Callable[[Feed], Outputs]
Score = Callable[[Sequence[Outputs]], float]


@dataclass(frozen=True)
class Case:
    """A pretrained model with inputs to calibrate on, others to evaluate on, and a task score."""

    name: str
    model: Path
    calibration: list[Feed]
    """Inputs without labels; disjoint from `evaluation`."""
    evaluation: list[Feed]
    score: Score
    """All evaluation outputs, in order -> a score between 0 and 1, higher is better."""
    metric: str

    def run(self, model: Path | None = None, *, integers: bool = True) -> list[Outputs]:
        """The outputs for all evaluation inputs, of this model or of another in its place."""
        step = runner(model or self.model, integers=integers)
        return [step(feed) for feed in self.evaluation]


def runner(model: Path, *, integers: bool = True) -> Run:
    """A function that runs a model file with ONNX Runtime on one thread.

    Args:
        model: the file.
        integers: with ONNX Runtime's optimizations, which make integer kernels of operators between
            QuantizeLinear and DequantizeLinear; without, they compute in float.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not integers:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)
