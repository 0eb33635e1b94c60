"""Handwritten digits, from scikit-learn: 1,400 to train on, 397 to test on."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_digits

Array = np.ndarray[Any, Any]

_IMAGES = (load_digits().images / 16).astype(np.float32)
_LABELS = load_digits().target.astype(np.int64)
_ORDER = np.random.default_rng(0).permutation(len(_IMAGES))

TRAIN: tuple[Array, Array] = (_IMAGES[_ORDER[:1400]], _LABELS[_ORDER[:1400]])
TEST: tuple[Array, Array] = (_IMAGES[_ORDER[1400:]], _LABELS[_ORDER[1400:]])


def accuracy(model: Any, images: Array) -> float:
    """Of an ONNX model in ONNX Runtime, in percent."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    scores = session.run(None, {session.get_inputs()[0].name: images})[0]
    return 100 * float((scores.argmax(1) == TEST[1]).mean())
