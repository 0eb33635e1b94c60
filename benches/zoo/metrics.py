"""Task scores. All are fractions, and higher is better."""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np
from scipy.stats import rankdata

from .case import Outputs, Score

Box = tuple[float, float, float, float]
"""left, top, right, bottom"""


def top1(accepted: Sequence[Container[int]]) -> Score:
    """Share of samples whose best class (in the first output) is one of the accepted ones."""

    def score(outputs: Sequence[Outputs]) -> float:
        best = np.concatenate([first.argmax(axis=-1).ravel() for first, *_ in outputs])
        return float(np.mean([int(b) in a for b, a in zip(best, accepted, strict=True)]))

    return score


def roc_auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Probability that a true sample scores higher than a false one (Mann-Whitney)."""
    ranks, positives = rankdata(scores), int(truth.sum())
    above = ranks[truth].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(truth) - positives)))


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left, 0) * max(bottom - top, 0)

    shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    return shared / (area(*a) + area(*b) - shared)


def box_f1(
    found: Sequence[Sequence[Box]], truth: Sequence[Sequence[Box]], enough: float = 0.5
) -> float:
    """F1 of boxes, matched greedily in the order in which they were found."""
    matched = 0
    for boxes, targets in zip(found, truth, strict=True):
        open_targets = list(targets)
        for box in boxes:
            overlaps = [overlap(box, target) for target in open_targets]
            if overlaps and max(overlaps) >= enough:
                del open_targets[int(np.argmax(overlaps))]
                matched += 1
    total = sum(map(len, found)) + sum(map(len, truth))
    return 2 * matched / max(total, 1)
