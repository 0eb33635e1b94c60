"""The inputs of the layers on a few samples, which rounding and bias are corrected for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from rustq import _rustq
from rustq.comparison import run
from rustq.data import feeds
from rustq.measuring import Sessions
from rustq.runner import inputs_of_model

if TYPE_CHECKING:
    from rustq.config import QuantConfig
    from rustq.samples import Feed

__all__ = ["Excerpt", "LayerInputs", "layer_inputs"]

HALF, LEAST, MOST = 2, 8, 16
"""Samples that tell the means of what layers multiply: half of those that were calibrated on, and
so many at least and at most."""
SPREAD = 64
"""Samples among which they are chosen, evenly, and that tell second moments: of fewer, weights are
rounded for what these samples have in common. With 16, an image classifier had a third of the error
on them that it had on others, and there more than with weights rounded to the nearest."""


class Excerpt:
    """Data to calibrate on, of which a few samples can be read again, those of an iterator too.

    Attributes:
        data: what to calibrate on, in place of the original.
        most: samples that are run for the corrections, at most; more if weights are to be rounded
            by them, and that is not one of several trials.
    """

    def __init__(self, data: Any, config: QuantConfig) -> None:
        self.most = SPREAD if config.rounding == "learned" else MOST
        self._first: list[Any] | None = [] if isinstance(data, Iterator) else None
        self.data = data if self._first is None else self._remembered(data, self._first)

    def _remembered(self, data: Iterator[Any], first: list[Any]) -> Iterator[Any]:
        for sample in data:
            if len(first) < self.most:
                first.append(deepcopy(sample))  # its maker may use the memory again
            yield sample

    def feeds(
        self, model: _rustq.Model, config: QuantConfig, calibrated: int | None, *counts: int
    ) -> Iterator[tuple[Feed, list[bool]]]:
        """Samples as feeds of this model, out of those `calibrated`, of which there are as many as
        the data say if that is `None`: for each of the counts at most so many, evenly spread, and
        with each feed which of the counts it is one of."""
        again = self.data if self._first is None else self._first
        samples = feeds(again, inputs_of_model(model), config.images)
        if calibrated is None:
            # One of them may be a batch, of several feeds.
            calibrated = max(samples.length or SPREAD, *counts)
        among = min(calibrated, SPREAD if self._first is None else self.most)
        for at, feed in enumerate(islice(samples, among)):
            # Each place on a line of `count` steps is taken by the first sample at or after it.
            chosen = [-at * count % among < count for count in counts]
            if any(chosen):
                yield feed, chosen


class LayerInputs:
    """Means of what the layers of a prepared model multiply, and second moments if weights are
    rounded by them: on a few samples, on which the model may be run for more than that.

    Attributes:
        seen: what was found.
    """

    def __init__(self, model: _rustq.Model, config: QuantConfig) -> None:
        self._model, self._config = model, config
        self._products = config.rounding == "learned"
        self.seen = _rustq.LayerInputs(model, self._products)

    def runs(
        self,
        excerpt: Excerpt,
        calibrated: int | None,
        names: Sequence[str] = (),
        count: int = 0,
    ) -> Iterator[tuple[Feed, list[Any]]]:
        """Runs the model, and gives for `count` samples the feed and these values of the model."""
        layers = self.seen.values
        exposed = [*names, *(value for value in layers if value not in names)]
        if not exposed:
            return
        runner = Sessions(self._config).session(self._model.with_outputs(exposed))
        counts = self._count(excerpt.most, calibrated) if layers else 0, count
        chosen = excerpt.feeds(self._model, self._config, calibrated, *counts)
        for at, (feed, (for_layers, for_caller)) in enumerate(chosen):
            wanted = exposed if for_layers else list(names)
            values = dict(zip(wanted, run(runner, wanted, feed, at), strict=True))
            if for_layers:
                self._observe({name: values[name] for name in layers})
            if for_caller:
                yield feed, [values[name] for name in names]

    def _count(self, most: int, calibrated: int | None) -> int:
        """Samples that corrections are made by."""
        if self._products or calibrated is None:
            return most
        return min(max(calibrated // HALF, LEAST), most)

    def _observe(self, values: dict[str, Any]) -> None:
        floats = {
            name: np.ascontiguousarray(value)
            for name, value in values.items()
            if value.dtype == np.float32
        }
        self.seen.observe(list(floats), list(floats.values()))


def layer_inputs(
    model: _rustq.Model, excerpt: Excerpt, config: QuantConfig, calibrated: int | None
) -> _rustq.LayerInputs:
    """What the layers of a prepared model multiply, see `LayerInputs`."""
    inputs = LayerInputs(model, config)
    for _ in inputs.runs(excerpt, calibrated):
        pass
    return inputs.seen
