"""The report as one HTML page that needs nothing but itself, or the same as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rustq.comparison import Comparison, compare
from rustq.config import QuantConfig
from rustq.fusion import Fusion, fusion
from rustq.page.advice import advice
from rustq.page.facts import Facts, Scores, Sources, contents
from rustq.page.render import render

if TYPE_CHECKING:
    from rustq import _rustq
    from rustq.measuring import Metric
    from rustq.model import QuantizedModel
    from rustq.report import Report

__all__ = ["comparison_page", "quantization_page"]

_NOTHING: Mapping[str, float] = {}
SAMPLES = 16
"""Feeds that the layers' shares of the error are measured on."""


def quantization_page(
    path: str | os.PathLike[str],
    result: QuantizedModel,
    *,
    model: Any = None,
    data: Any = None,
    config: QuantConfig | None = None,
    metric: Metric | None = None,
    files: dict[str, Path] | None = None,
    seen: bool = False,
) -> Path:
    """Writes the page about a model that has just been quantized.

    Args:
        path: the file to write; what ends in `.json` gets the same as JSON (docs/report.md).
        result: what `rustq.quantize` made.
        model: the float model, see `rustq.load`.
        data: what to run both on, see `rustq.compare`; without a model and data, errors of the
            outputs and latency are left out. Models for another runtime than ONNX Runtime are
            compared by their QDQ form.
        config: what `result` was made with.
        metric: see `rustq.quantize`; it is called for both models, if the float one is given.
        files: files whose hashes are shown, by what they are to the reader.
        seen: whether `data` are what it was calibrated on.

    Raises:
        OSError: the file cannot be written.
        ModelError: ONNX Runtime does not accept one of the models.
        DataError: the data do not fit the models.
        ValueError: `metric` did not return a finite number.
    """
    from rustq.frameworks import exported
    from rustq.measuring import repeatable

    config = config or QuantConfig()
    measured, scores = None, None
    shares = _NOTHING
    if model is not None and data is not None:
        model, data = exported(model, repeatable(data))
        measured = compare(model, result, data, config=config)
        shares = _shares_of(model, result, data, config)
    if model is not None and metric is not None:
        scores = _scores(model, result, metric, config)
    serialized = result.to_bytes()
    facts = Facts(
        report=result.report,
        comparison=measured,
        fusion=_fusion(serialized, result.report.target),
        shares=shares,
        scores=scores,
        seen=seen,
    )
    return _written(path, facts, Sources(result.calibration, serialized, files or {}, config))


def comparison_page(
    path: str | os.PathLike[str],
    comparison: Comparison,
    quantized: str | os.PathLike[str],
    *,
    model: Any = None,
    data: Any = None,
    config: QuantConfig | None = None,
    files: dict[str, Path] | None = None,
) -> Path:
    """Writes the page about two models that were compared.

    Args:
        path: see `quantization_page`.
        comparison: what `rustq.compare` found.
        quantized: the quantized model's file.
        model: the float model; with it and `data`, what is quantized is read off the file, and each
            layer's share of the error is measured.
        data: see `rustq.compare`.
        config: what the models were compared with.
        files: see `quantization_page`.

    Raises:
        OSError: a file cannot be read or written.
        ModelError: ONNX Runtime does not accept the quantized model.
    """
    report, shares = None, _NOTHING
    content = Path(quantized).read_bytes()
    if model is not None and data is not None:
        report, shares = _read_off(model, content, data, config or QuantConfig())
    facts = Facts(report, comparison, fusion(Path(quantized)), shares)
    return _written(path, facts, Sources(model=content if report else b"", files=files or {}))


def _read_off(
    model: Any, quantized: bytes, data: Any, config: QuantConfig
) -> tuple[Report | None, Mapping[str, float]]:
    """The layers of a quantized file and their shares, as far as it has the float model's names."""
    from rustq.api import as_model
    from rustq.model import core_of
    from rustq.page.reading import read_report
    from rustq.preparing import prepared

    folded = prepared(as_model(model))
    report = read_report(folded, quantized)
    if report is None:
        return None, _NOTHING
    return report, _shares(folded, core_of(quantized), report, data, config)


def _shares_of(
    model: Any, result: QuantizedModel, data: Any, config: QuantConfig
) -> Mapping[str, float]:
    """Each int8 layer's share of the error of the outputs, if it can be measured here."""
    from rustq.api import as_model
    from rustq.preparing import prepared

    if not result._target.measured:
        return _NOTHING
    folded, options = prepared(as_model(model)), result._target.session_options
    return _shares(folded, result._core, result.report, data, config, options)


def _shares(
    folded: _rustq.Model,
    quantized: _rustq.Model,
    report: Report,
    data: Any,
    config: QuantConfig,
    options: Mapping[str, Any] = _NOTHING,
) -> Mapping[str, float]:
    from rustq import attribution
    from rustq.data import feeds
    from rustq.measuring import Sessions
    from rustq.runner import inputs_of_model

    samples = islice(feeds(data, inputs_of_model(quantized), config.images), SAMPLES)
    run_as = Sessions(config, options)
    return attribution.shares(folded, quantized, report.layers, list(samples), run_as)


def _scores(model: Any, result: QuantizedModel, metric: Metric, config: QuantConfig) -> Scores:
    from rustq.api import as_model
    from rustq.measuring import Sessions, scored

    options = result._target.session_options
    return Scores(
        model=scored(metric, as_model(model)._core, Sessions(config)),
        quantized=scored(metric, result._core, Sessions(config, options)),
    )


def _fusion(serialized: bytes, target: str) -> Fusion | None:
    """What the target makes of a model, or will make of it by its rules."""
    from rustq.fusion_rules import expected

    return fusion(serialized) if target == "onnxruntime" else expected(serialized, target)


def _written(path: str | os.PathLike[str], facts: Facts, sources: Sources) -> Path:
    from rustq import _rustq

    path = Path(path)
    if path.suffix.lower() == ".json":
        found = contents(facts, sources, advice(facts))
        content = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)
    else:
        content = render(facts, sources)
    _rustq.write_together([(path, content.encode())])
    return path
