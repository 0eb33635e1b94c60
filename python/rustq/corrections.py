"""The inputs of the layers on a few samples, which rounding and bias are corrected for."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from rustq import _rustq
from rustq.data import feeds
from rustq.measuring import Sessions
from rustq.runner import inputs_of_model

if TYPE_CHECKING:
    from rustq.config import QuantConfig

__all__ = ["Excerpt", "layer_inputs"]

SAMPLES = 16
"""Samples that are run for the corrections, and of an iterator those that can be read again."""
SPREAD = 64
"""Samples among which they are chosen, evenly."""


class Excerpt:
    """Data to calibrate on, of which a few samples can be read again, those of an iterator too.

    Attributes:
        data: what to calibrate on, in place of the original.
    """

    def __init__(self, data: Any) -> None:
        self._first: list[Any] | None = [] if isinstance(data, Iterator) else None
        self.data = data if self._first is None else self._remembered(data, self._first)

    def _remembered(self, data: Iterator[Any], first: list[Any]) -> Iterator[Any]:
        for sample in data:
            if len(first) < SAMPLES:
                first.append(deepcopy(sample))  # its maker may use the memory again
            yield sample

    def feeds(
        self, model: _rustq.Model, config: QuantConfig, calibrated: int, count: int = SAMPLES
    ) -> Iterator[Any]:
        """At most `count` of the `calibrated` samples, evenly spread, as feeds of this model."""
        again = self.data if self._first is None else self._first
        among = min(calibrated, SPREAD) if self._first is None else SAMPLES
        samples = feeds(again, inputs_of_model(model), config.images)
        # Each place on a line of `count` steps is taken by the first sample at or after it.
        return (feed for i, feed in enumerate(islice(samples, among)) if -i * count % among < count)


def layer_inputs(
    model: _rustq.Model, excerpt: Excerpt, config: QuantConfig, calibrated: int
) -> _rustq.LayerInputs:
    """Means of what the layers of a prepared model multiply, and second moments if weights are
    rounded by them."""
    seen = _rustq.LayerInputs(model, config.rounding == "learned")
    if not seen.values:
        return seen
    runner = Sessions(config).session(model.with_outputs(seen.values))
    for feed in excerpt.feeds(model, config, calibrated):
        values = zip(seen.values, runner.run(seen.values, feed), strict=True)
        floats = {name: np.ascontiguousarray(v) for name, v in values if v.dtype == np.float32}
        seen.observe(list(floats), list(floats.values()))
    return seen
