"""ONNX Runtime, which runs the float model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rustq.errors import DataError, ModelError

if TYPE_CHECKING:
    from rustq import _rustq
    from rustq.config import QuantConfig
    from rustq.progress import Progress
    from rustq.samples import Feed

__all__ = ["Observation", "session"]


def session(
    model: bytes | str | os.PathLike[str],
    *,
    threads: int | None = None,
    providers: Iterable[str] = ("CPUExecutionProvider",),
) -> Any:
    """An `onnxruntime.InferenceSession` with all of its optimizations.

    Args:
        model: a serialized model, or the path of a file.
        threads: threads within an operator, `None` for ONNX Runtime's choice.
        providers: execution providers in order of preference.

    Raises:
        ModelError: ONNX Runtime does not accept the model.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    source = model if isinstance(model, bytes) else str(Path(model))
    try:
        return ort.InferenceSession(source, options, providers=list(providers))
    except Exception as error:  # the classes of onnxruntime's exceptions are not public
        raise ModelError(f"ONNX Runtime cannot load the model: {_first_line(error)}") from error


class Observation:
    """A float model whose activations are counted while it runs.

    Each inference's activations are counted and let go before the next one starts.
    """

    def __init__(self, model: _rustq.Model, config: QuantConfig) -> None:
        wanted = model.values_to_observe()
        outputs = wanted or [name for name, *_ in model.outputs]
        serialized = model.with_outputs(outputs).to_bytes()
        threads, providers = config.threads, config.providers
        self._parallel = threads != 1
        self.session = session(serialized, threads=threads, providers=_names(providers))
        floats = ("tensor(float)", "tensor(float16)", "tensor(double)")
        self._names = [o.name for o in self.session.get_outputs() if o.type in floats and wanted]

    def run(self, feeds: Iterable[Feed], calibration: _rustq.Calibration, report: Progress) -> None:
        """Runs every feed and adds what it saw to `calibration`.

        Raises:
            DataError: ONNX Runtime does not accept a feed.
        """
        total = getattr(feeds, "length", None)
        for done, feed in enumerate(feeds, start=1):
            try:
                values = self.session.run(self._names or None, feed)
            except Exception as error:
                raise DataError(
                    f"ONNX Runtime cannot run sample {done - 1}: {_first_line(error)}"
                ) from error
            arrays = [_float32(v) for v in values[: len(self._names)]]
            calibration.observe(self._names, arrays, self._parallel)
            # The next inference then gets the same memory, which is still in the cache.
            del values, arrays
            report(done, total)


def _float32(values: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    if values.dtype == np.float32 and values.flags.c_contiguous:
        return values  # type: ignore[no-any-return]
    return np.ascontiguousarray(values, dtype=np.float32)


def _names(providers: str | Iterable[str]) -> Sequence[str]:
    return (providers,) if isinstance(providers, str) else tuple(providers)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
