"""Keras 3: models, and `.keras` and `.h5` files, by Keras's own export to ONNX."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rustq.errors import ModelError
from rustq.frameworks.tensorflow import repaired

__all__ = ["export"]


def export(model: Any, samples: Sequence[Any]) -> bytes:
    """The model, or the one in this file, as the bytes of an ONNX model."""
    if isinstance(model, str | os.PathLike):
        model = _loaded(Path(model))
    import keras

    if keras.backend.backend() == "tensorflow":
        import tf2onnx  # noqa: F401 - Keras needs it there, and says so less clearly

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            _call(model)
            model.export(str(path), format="onnx", verbose=False)
        except Exception as error:  # Keras and tf2onnx raise what they like
            raise ModelError(f"Keras could not export the model: {error}") from error
        return repaired(path)


def _call(model: Any) -> None:
    """Runs a model with known inputs once: Keras exports only what it has seen run."""
    import keras

    def zeros(value: Any) -> Any:
        return keras.ops.zeros([length or 1 for length in value.shape], value.dtype)

    if isinstance(model, keras.Sequential):
        model(zeros(model.inputs[0]))
    elif getattr(model, "inputs", None):
        model(keras.tree.map_structure(zeros, model.input))


def _loaded(path: Path) -> Any:
    path.stat()
    import keras

    try:
        return keras.saving.load_model(path, compile=False)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path}: Keras cannot load it: {error}") from error
