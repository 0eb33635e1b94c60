"""ONNX Runtime, which runs the float model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rustq import _rustq
from rustq.errors import DataError, ModelError

if TYPE_CHECKING:
    from rustq.config import QuantConfig
    from rustq.progress import Progress
    from rustq.samples import Feed

__all__ = ["Observation", "session"]

CPU = "CPUExecutionProvider"


def session(
    model: bytes | str | os.PathLike[str],
    *,
    threads: int | None = None,
    providers: Iterable[str] = ("CPUExecutionProvider",),
    optimized: Path | None = None,
) -> Any:
    """An `onnxruntime.InferenceSession` with all of its optimizations.

    Args:
        model: a serialized model, or the path of a file.
        threads: threads within an operator, `None` for ONNX Runtime's choice.
        providers: execution providers in order of preference.
        optimized: where ONNX Runtime is to write what it made of the model.

    Raises:
        ModelError: ONNX Runtime does not accept the model.
    """
    options = _options(threads)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return _session(model, options, providers)


def _options(threads: int | None, *, observing: bool = False) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    if observing:
        options.register_custom_ops_library(_rustq.__file__)
    return options


def _session(
    model: bytes | str | os.PathLike[str], options: Any, providers: Iterable[str] = (CPU,)
) -> Any:
    import onnxruntime as ort

    source = model if isinstance(model, bytes) else str(Path(model))
    try:
        return ort.InferenceSession(source, options, providers=list(providers))
    except Exception as error:  # the classes of onnxruntime's exceptions are not public
        raise ModelError(f"ONNX Runtime cannot load the model: {_first_line(error)}") from error


class Observation:
    """A float model whose activations are counted while it runs.

    Each way counts the same numbers; the first one possible is taken:

    - `"nodes"`: nodes of the graph count, each right after its value was computed;
    - `"outputs"`: the activations are outputs, counted after each inference and let go before the
      next one starts.
    """

    WAYS = ("nodes", "outputs")

    def __init__(
        self, model: _rustq.Model, config: QuantConfig, ways: Sequence[str] = WAYS
    ) -> None:
        self._wanted = model.values_to_observe()
        self._names: list[str] = []
        self._observers: _rustq.Observers | None = None
        self._parallel = config.threads != 1
        for way in _possible(config, bool(self._wanted), ways):
            self.way = way
            try:
                self.session = getattr(self, f"_with_{way}")(model, config)
                return
            except Exception:
                if way == ways[-1]:
                    raise

    def _with_outputs(self, model: _rustq.Model, config: QuantConfig) -> Any:
        outputs = self._wanted or [name for name, *_ in model.outputs]
        serialized = model.with_outputs(outputs).to_bytes()
        made = _session(serialized, _options(config.threads), _names(config.providers))
        floats = ("tensor(float)", "tensor(float16)", "tensor(double)")
        self._names = [o.name for o in made.get_outputs() if o.type in floats and self._wanted]
        self._observers = None
        return made

    def _with_nodes(self, model: _rustq.Model, config: QuantConfig) -> Any:
        return _session(
            self._observed(model, config).to_bytes(), _options(config.threads, observing=True)
        )

    def _observed(self, model: _rustq.Model, config: QuantConfig) -> _rustq.Model:
        threads = config.threads or os.cpu_count() or 1
        self._observers = _rustq.Observers(self._wanted, threads)
        return self._observers.inserted(model)

    def run(self, feeds: Iterable[Feed], calibration: _rustq.Calibration, report: Progress) -> None:
        """Runs every feed and adds what it saw to `calibration`.

        Raises:
            DataError: ONNX Runtime does not accept a feed.
        """
        total = getattr(feeds, "length", None)
        done = 0
        for done, feed in enumerate(feeds, start=1):
            try:
                values = self.session.run(self._names or None, feed)
            except Exception as error:
                raise DataError(
                    f"ONNX Runtime cannot run sample {done - 1}: {_first_line(error)}"
                ) from error
            if self._observers is None:
                arrays = [_float32(v) for v in values[: len(self._names)]]
                calibration.observe(self._names, arrays, self._parallel)
                del arrays
            # The next inference then gets the same memory, which is still in the cache.
            del values
            report(done, total)
        if self._observers is not None:
            calibration.collect(self._observers, done)


def _possible(config: QuantConfig, wanted: bool, ways: Sequence[str]) -> list[str]:
    """Those of `ways` that count right on these providers."""
    import onnxruntime as ort

    version = tuple(int(part) for part in ort.__version__.split(".")[:2])
    # ONNX Runtime 1.18 overwrites a value in place before a node without outputs has read it.
    inside = wanted and _names(config.providers) == (CPU,) and version >= (1, 20)
    return [way for way in ways if way == "outputs" or inside]


def _float32(values: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    if values.dtype == np.float32 and values.flags.c_contiguous:
        return values  # type: ignore[no-any-return]
    return np.ascontiguousarray(values, dtype=np.float32)


def _names(providers: str | Iterable[str]) -> Sequence[str]:
    return (providers,) if isinstance(providers, str) else tuple(providers)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
