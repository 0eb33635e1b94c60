"""The report as one HTML page that needs nothing but itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rustq.comparison import Comparison, compare
from rustq.config import QuantConfig
from rustq.fusion import fusion
from rustq.page.advice import Facts
from rustq.page.render import Sources, render

if TYPE_CHECKING:
    from rustq.model import QuantizedModel

__all__ = ["comparison_page", "quantization_page"]


def quantization_page(
    path: str | os.PathLike[str],
    result: QuantizedModel,
    *,
    model: Any = None,
    data: Any = None,
    config: QuantConfig | None = None,
    files: dict[str, Path] | None = None,
) -> Path:
    """Writes the page about a model that has just been quantized.

    Args:
        path: the file to write.
        result: what `rustq.quantize` made.
        model: the float model, see `rustq.load`.
        data: what to run both on, see `rustq.compare`; without a model and data, errors of the
            outputs and latency are left out. Models for another runtime than ONNX Runtime are
            compared by their QDQ form.
        config: what `result` was made with.
        files: files whose hashes are shown, by what they are to the reader.

    Raises:
        OSError: the file cannot be written.
        ModelError: ONNX Runtime does not accept one of the models.
        DataError: the data do not fit the models.
    """
    known = model is not None and data is not None
    measured = compare(model, result, data, config=config) if known else None
    serialized = result.to_bytes()
    facts = Facts(report=result.report, comparison=measured, fusion=fusion(serialized))
    sources = Sources(
        result.calibration, serialized, files or {}, (config or QuantConfig()).to_dict()
    )
    return _written(path, render(facts, sources))


def comparison_page(
    path: str | os.PathLike[str],
    comparison: Comparison,
    quantized: str | os.PathLike[str],
    *,
    files: dict[str, Path] | None = None,
) -> Path:
    """Writes the page about two models that were compared.

    Args:
        path: the file to write.
        comparison: what `rustq.compare` found.
        quantized: the quantized model's file.
        files: see `quantization_page`.

    Raises:
        OSError: a file cannot be read or written.
        ModelError: ONNX Runtime does not accept the quantized model.
    """
    facts = Facts(comparison=comparison, fusion=fusion(Path(quantized)))
    return _written(path, render(facts, Sources(files=files or {})))


def _written(path: str | os.PathLike[str], page: str) -> Path:
    from rustq import _rustq

    _rustq.write_together([(Path(path), page.encode())])
    return Path(path)
