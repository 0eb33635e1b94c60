"""A small trained model and real data that ship with the package.

`digits.onnx` classifies handwritten digits. `digits.npz` holds images it was not trained on: a few
to calibrate with and others, with labels, to measure accuracy on. Both were written by
`scripts/train_demo.py`; nothing here needs more than numpy.

>>> from rustq import demo
>>> [feed["image"].shape for feed in demo.calibration()]
[(32, 1, 16, 16), (32, 1, 16, 16), (32, 1, 16, 16)]
>>> images, labels = demo.test_set()
>>> images.shape, labels.shape
((600, 1, 16, 16), (600,))

The images are from "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak, UCI
Machine Learning Repository, https://doi.org/10.24432/C50P49, licensed CC BY 4.0, in the copy that
scikit-learn's `load_digits` returns. The pixels are unchanged; the split into training, calibration
and test images is ours, at random with a fixed seed, and the training images are not included.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["INPUT", "accuracy", "calibration", "data_path", "model_path", "prepare", "test_set"]

INPUT = "image"
"""Name of the model's one input, float32 of shape `[N, 1, 16, 16]`."""


def model_path() -> Path:
    """Return the path of the float32 ONNX model, whose BatchNormalization is not yet folded."""
    return Path(__file__).with_name("digits.onnx")


def data_path() -> Path:
    """Return the path of the raw images, the labels, and the images' indices in `load_digits`."""
    return Path(__file__).with_name("digits.npz")


def prepare(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn raw images `[N, 8, 8]` of 0 to 16 into model input `[N, 1, 16, 16]` of 0 to 1.

    Each pixel is doubled both ways.
    """
    doubled = images.repeat(2, axis=1).repeat(2, axis=2)
    return doubled[:, np.newaxis].astype(np.float32) / np.float32(16)


def calibration(batch: int = 32) -> list[dict[str, NDArray[np.float32]]]:
    """Return the calibration images as feeds of at most `batch` images each.

    None of them is in the training or the test set.
    """
    images = prepare(_load("calibration_images"))
    return [{INPUT: images[start : start + batch]} for start in range(0, len(images), batch)]


def test_set() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return the test images, as model input, and the digit that each one shows."""
    return prepare(_load("test_images")), _load("test_labels")


def accuracy(run: Callable[[NDArray[np.float32]], NDArray[Any]], batch: int = 100) -> float:
    """Return the share of the test set that `run` classifies correctly.

    `run` maps a batch of at most `batch` images to scores `[N, 10]`.
    """
    images, labels = test_set()
    correct = 0
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        correct += int(np.count_nonzero(run(images[part]).argmax(axis=1) == labels[part]))
    return correct / len(images)


def _load(name: str) -> NDArray[np.uint8]:
    with np.load(data_path()) as data:
        array: NDArray[np.uint8] = data[name]
    return array
