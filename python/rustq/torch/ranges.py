"""Ranges that a calibration has seen, for the quantizers of a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rustq import _rustq
from rustq.calibration import Calibration
from rustq.config import QuantConfig
from rustq.errors import DataError

__all__ = ["counted", "looked_up"]


def counted(quantizers: Sequence[Any], run: Callable[[], None], config: QuantConfig) -> None:
    """Gives quantizers the ranges that rustq finds in what they are given while `run` runs."""
    for quantizer in quantizers:
        quantizer.observer = _rustq.Calibration()
    run()
    for quantizer in quantizers:
        seen, quantizer.observer = Calibration(quantizer.observer), None
        if "x" in seen.tensors:
            quantizer.set_range(*_range(seen, "x", quantizer, config))


def looked_up(
    layers: Sequence[tuple[Any, Any]],
    joins: Sequence[tuple[frozenset[Any], Any]],
    quantizers: Mapping[Any, Any],
    calibration: Calibration,
    content: bytes,
    config: QuantConfig,
) -> None:
    """Gives quantizers the ranges of a calibration of the module.

    Args:
        layers: what each convolution and linear layer reads and makes, in the order of the calls.
        joins: what sums and the like read and make.
        quantizers: by what they quantize.
        calibration: of the model.
        content: the module as rustq exports it: its layers are in the order of the calls as well.
        config: how a range is chosen.

    Raises:
        DataError: the calibration is of another model, or the layers cannot be told.
    """
    from rustq.preparing import prepare

    prepared, *_ = prepare(_rustq.Model.from_bytes(content))
    calibration._core.check_model(prepared)
    graph = _Graph(prepared)
    named = graph.products()
    if len(named) != len(layers):
        raise DataError(
            f"the module calls {len(layers)} layers, its ONNX model has {len(named)}: pass the"
            " samples instead of their calibration"
        )
    names = {
        value: name
        for values, pair in zip(layers, named, strict=True)
        for value, name in zip(values, pair, strict=True)
    }
    for inputs, result in joins:
        made = graph.joined({names[value] for value in inputs if value in names})
        if made and len(inputs) > 1:
            names.setdefault(result, made)
    known = set(calibration.tensors)
    for value, name in names.items():
        quantizer = quantizers.get(value)
        if quantizer is not None and name in known:
            quantizer.set_range(*_range(calibration, name, quantizer, config))


class _Graph:
    """An ONNX graph, asked for what its nodes read and make, behind a Relu or Clip that is one
    with them."""

    def __init__(self, model: _rustq.Model) -> None:
        import onnx

        self._graph = onnx.load_model_from_string(model.to_bytes()).graph
        self._readers: dict[str, list[Any]] = {}
        for node in self._graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def products(self) -> list[tuple[str, str]]:
        """Of each product by weights."""
        constants = {tensor.name for tensor in self._graph.initializer}
        return [
            (node.input[0], self._made(node))
            for node in self._graph.node
            if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in constants
        ]

    def joined(self, names: set[str]) -> str | None:
        """What the node makes that reads these."""
        found = (node for node in self._graph.node if set(node.input) == names)
        return next(map(self._made, found), None)

    def _made(self, node: Any) -> str:
        made: str = node.output[0]
        behind = self._readers.get(made, [])
        if len(behind) == 1 and behind[0].op_type in ("Relu", "Clip"):
            made = behind[0].output[0]
        return made


def _range(
    calibration: Calibration, name: str, quantizer: Any, config: QuantConfig
) -> tuple[float, float]:
    return calibration.range(
        name, config.method, percentile=config.percentile, scheme=quantizer.scheme
    )
