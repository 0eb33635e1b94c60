"""The layers as a page shows them: ranked, each with the charts of its weights and activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from rustq.page.charts import histogram
from rustq.page.facts import Sources
from rustq.report import LayerReport, Report, TensorParams

if TYPE_CHECKING:
    import onnx

    from rustq.calibration import Calibration

__all__ = ["Row", "rows"]

BINS = 80
CHARTS = 2000
"""On a page at most: more would make it slow to open."""
CODES = {"INT8": (-128, 127), "INT4": (-8, 7), "UINT4": (0, 15), "UINT8": (0, 255)}
"""The least and the greatest integer, by the types that weights are stored in."""


@dataclass(frozen=True)
class Chart:
    """A drawing, and what it is of.

    Attributes:
        name: the tensor.
        about: how it is stored.
        drawing: an SVG element.
    """

    name: str
    about: str
    drawing: Markup


@dataclass(frozen=True)
class Row:
    """A layer as the page shows it.

    Attributes:
        id: of its charts in the document.
        layer: what became of it.
        share: of the outputs' error, `None` if not measured.
        error_db: the lower SQNR of its weights and its output, `None` if neither was measured.
        charts: of its weights and the activations it reads and makes.
    """

    id: str
    layer: LayerReport
    share: float | None
    error_db: float | None
    charts: list[Chart]

    @property
    def rank(self) -> tuple[float, float]:
        """The largest error first."""
        return -(self.share or 0), float("inf") if self.error_db is None else self.error_db


def rows(report: Report, shares: Mapping[str, float], sources: Sources) -> list[Row]:
    """The layers, the largest error first."""
    weights = _weights(sources.model)
    left = CHARTS
    found = []
    for number, layer in enumerate(report.layers):
        charts = [*weights.get(layer.name, ()), *_activations(layer, sources.calibration)]
        charts = charts[: max(left, 0)]
        left -= len(charts)
        errors = [e for e in (layer.activation_sqnr_db, layer.weight_sqnr_db) if e is not None]
        share = shares.get(layer.name)
        found.append(Row(f"layer{number}", layer, share, min(errors, default=None), charts))
    return sorted(found, key=lambda row: row.rank)


def _activations(layer: LayerReport, calibration: Calibration | None) -> Iterator[Chart]:
    seen = set(calibration.tensors) if calibration else set()
    for side, tensors in (("reads", layer.inputs), ("makes", layer.outputs)):
        for tensor in tensors:
            if calibration and tensor.name in seen:
                yield Chart(f"{side} {tensor.name}", _stored(tensor), _seen(calibration, tensor))


def _stored(tensor: TensorParams) -> str:
    zero = f", zero point {tensor.zero_point[0]}" if any(tensor.zero_point) else ""
    return f"{tensor.dtype}, scale {_span(tensor.scale)}{zero}"


def _span(scales: Any) -> str:
    low, high = min(scales), max(scales)
    return f"{low:.4g}" if low == high else f"{low:.4g} … {high:.4g} ({len(scales)} channels)"


def _seen(calibration: Calibration, tensor: TensorParams) -> Markup:
    counts, edges = calibration.histogram(tensor.name, BINS)
    low, high = float(edges[0]), float(edges[-1])
    return histogram(counts.tolist(), low, high, clip=tensor.range, step=tensor.scale[0])


# ----------------------------------------------------------------------------- weights
def _weights(model: bytes) -> dict[str, list[Chart]]:
    """Charts of the integers of the weights in a quantized model, by the layers' names."""
    import onnx

    graph = onnx.load_model_from_string(model).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    decoded = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    found: dict[str, list[Chart]] = {}
    for node in graph.node:
        if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
            continue
        for name in node.input:
            pair = decoded.get(name)
            integers = constants.get(pair.input[0] if pair else name)
            if integers is not None and len(integers.dims) > 1:
                scale = constants.get(pair.input[1]) if pair else None
                charts = found.setdefault(node.name or node.output[0], [])
                charts.extend(_of_weights(integers, scale))
    return found


def _of_weights(integers: onnx.TensorProto, scale: onnx.TensorProto | None) -> Iterator[Chart]:
    import numpy as np
    import onnx

    kind = onnx.TensorProto.DataType.Name(integers.data_type)
    if kind not in CODES:
        return
    low, high = CODES[kind]
    values = onnx.numpy_helper.to_array(integers).astype(np.int64).ravel()
    counts = np.bincount(values - low, minlength=high - low + 1)
    scales = [] if scale is None else onnx.numpy_helper.to_array(scale).ravel().tolist()
    spread = f", scale {_span(scales)}" if scales else ""
    about = f"{kind.lower()} codes{spread}"
    name = integers.name.removesuffix("_quantized")
    yield Chart(f"weights {name}", about, histogram(counts.tolist(), low, high))
