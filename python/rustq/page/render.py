"""From facts to the page."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup, escape

from rustq import text
from rustq.comparison import COST_HEADER, OUTPUT_HEADER
from rustq.page.advice import Facts, advice
from rustq.page.charts import histogram
from rustq.report import LayerReport, Report, TensorParams

if TYPE_CHECKING:
    from rustq.calibration import Calibration

__all__ = ["Sources", "framed", "render"]

BINS = 80
PACKAGES = ("rustq", "onnxruntime", "onnx", "numpy")
HISTOGRAMS = 2000
"""Charts on a page at most: more would make it slow to open."""


@dataclass(frozen=True)
class Sources:
    """Where the details of a page come from; anything may be missing.

    Attributes:
        calibration: of the histograms of activations.
        model: of the weights' integers: a serialized QDQ model.
        files: the files the page is about, by what they are to the reader; their hashes are shown.
        config: every choice that was made, as `QuantConfig.to_dict` gives it.
    """

    calibration: Calibration | None = None
    model: bytes = b""
    files: Mapping[str, Path] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A layer as the page shows it."""

    layer: LayerReport
    error_db: float | None
    charts: list[tuple[str, str, Markup]]


def framed(facts: Facts) -> str:
    """The page in a frame of its own, for a notebook."""
    page = escape(render(facts, Sources()))
    return f'<iframe srcdoc="{page}" style="width: 100%; height: 40rem; border: 0"></iframe>'


def render(facts: Facts, sources: Sources) -> str:
    """The page as text."""
    report, comparison = facts.report, facts.comparison
    rows = _rows(report, sources) if report else []
    return _template().render(
        report=report,
        comparison=comparison,
        tiles=_tiles(facts),
        outputs=(OUTPUT_HEADER, comparison.output_rows()) if comparison else None,
        costs=(COST_HEADER, comparison.cost_rows()) if comparison else None,
        rows=rows,
        ranked=any(row.error_db is not None for row in rows),
        reasons=report.float_reasons() if report else {},
        fusion=facts.fusion,
        advice=advice(facts),
        versions={name: version(name) for name in PACKAGES} | _machine(),
        files=[(label, *_fingerprint(path)) for label, path in sources.files.items()],
        config=sources.config,
        decibels=text.decibels,
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rustq.page", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html")


def _machine() -> dict[str, str]:
    return {
        "Python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _tiles(facts: Facts) -> list[tuple[str, str, str]]:
    """The figures that people look for first: what, how much, and what it is about."""
    report, comparison = facts.report, facts.comparison
    tiles = []
    if facts.worst_db is not None and comparison:
        tiles.append(("output error", text.decibels(facts.worst_db), _outputs(comparison.samples)))
    if comparison:
        share = comparison.size_quantized / comparison.size_float
        tiles.append(("size", f"{100 * share:.0f} %", text.size(comparison.size_quantized)))
        if comparison.speedup is not None:
            speed = f"{comparison.speedup:.2f}×"
            tiles.append(("speed", speed, text.milliseconds(comparison.latency_quantized_ms)))
    elif report and report.size_before and report.size_after:
        share = report.size_after / report.size_before
        tiles.append(("size", f"{100 * share:.0f} %", text.size(report.size_after)))
    if report and (macs := report.mac_share()) is not None:
        tiles.append(("in int8", f"{100 * macs:.0f} %", "of the multiply-accumulates"))
    return tiles


def _outputs(samples: int) -> str:
    return f"SQNR of the worst output, {samples} sample{'' if samples == 1 else 's'}"


def _rows(report: Report, sources: Sources) -> list[Row]:
    """The layers, the largest error first."""
    calibration = sources.calibration
    seen = set(calibration.tensors) if calibration else set()
    weights = _weights(sources.model)
    left = HISTOGRAMS
    rows = []
    for layer in report.layers:
        charts: list[tuple[str, str, Markup]] = []
        tensors = (*layer.inputs, *layer.outputs)
        for tensor in tensors[: max(left, 0)]:
            if calibration and tensor.name in seen:
                charts.append((tensor.name, _grid(tensor), _of_activation(calibration, tensor)))
            elif tensor.name in weights:
                charts.append((tensor.name, _grid(tensor), _of_weights(weights[tensor.name])))
        left -= len(charts)
        errors = [e for e in (layer.activation_sqnr_db, layer.weight_sqnr_db) if e is not None]
        rows.append(Row(layer, min(errors, default=None), charts))
    return sorted(rows, key=lambda row: float("inf") if row.error_db is None else row.error_db)


def _grid(tensor: TensorParams) -> str:
    scales = tensor.scale
    scale = f"{scales[0]:.4g}" if len(scales) == 1 else f"{min(scales):.4g} … {max(scales):.4g}"
    zero = f", zero point {tensor.zero_point[0]}" if any(tensor.zero_point) else ""
    return f"{tensor.dtype}, scale {scale}{zero}"


def _of_activation(calibration: Calibration, tensor: TensorParams) -> Markup:
    counts, edges = calibration.histogram(tensor.name, BINS)
    low, high = float(edges[0]), float(edges[-1])
    return histogram(counts.tolist(), low, high, clip=tensor.range, step=tensor.scale[0])


def _of_weights(integers: Any) -> Markup:
    import numpy as np

    counts, _ = np.histogram(integers, bins=128, range=(-128, 128))
    return histogram(counts.tolist(), -128, 128)


def _fingerprint(path: Path) -> tuple[str, str, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return path.name, text.size(path.stat().st_size), digest


def _weights(model: bytes) -> dict[str, Any]:
    """The integers of the weights in a QDQ model, by the names that the float weights have."""
    import onnx
    from onnx import TensorProto, numpy_helper

    suffix, graph = "_quantized", onnx.load_model_from_string(model).graph
    return {
        tensor.name.removesuffix(suffix): numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.INT8 and tensor.name.endswith(suffix)
    }
