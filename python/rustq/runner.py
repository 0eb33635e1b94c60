"""ONNX Runtime, which runs the float model."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rustq import _rustq
from rustq.errors import DataError, ModelError, UnsupportedError
from rustq.model import Model
from rustq.samples import InputInfo, as_array, described, is_float

if TYPE_CHECKING:
    from rustq.config import QuantConfig
    from rustq.samples import Feed

__all__ = [
    "Observation",
    "Run",
    "channels_to_observe",
    "inputs_of_model",
    "lanes",
    "observes_channels",
    "session",
    "ways",
]

CPU = "CPUExecutionProvider"

FEW = 20

MOST_LANES = 4
"""Samples that are run at once, at most: each needs memory for its activations."""

_WEIGHTS_APART = {
    "session.disable_prepacking": "1",
    "session.optimized_model_external_initializers_file_name": "optimized.weights",
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}
"""For a session that only optimizes: its weights go to a file that the next session maps."""


SMALL = 1 << 22
"""Bytes of a model up to which it is handed over in memory. ONNX Runtime copies such a model three
times; of one in a file it keeps only the packed weights."""

LARGE = 1 << 29
"""Bytes of a model from which on its weights are not copied, neither as they are nor packed, which
would make it faster."""

Run = Callable[["Feed"], Sequence[Any] | Mapping[str, Any]]
"""Runs a model on a feed: the values of its outputs, in their order or by name."""


def session(
    model: bytes | str | os.PathLike[str] | _rustq.Model,
    *,
    threads: int | None = None,
    providers: Iterable[Any] = (CPU,),
    options: Mapping[str, Any] | None = None,
    optimized: Path | None = None,
) -> Any:
    """An `onnxruntime.InferenceSession` with all of its optimizations.

    Args:
        model: a serialized model, the path of a file, or a native model, whose large weights are
            read where they are.
        threads: threads within an operator, `None` for ONNX Runtime's choice.
        providers: execution providers in order of preference, each a name, or a pair of a name and
            a dict of its options.
        options: see `QuantConfig.session_options`.
        optimized: where ONNX Runtime is to write what it made of the model.

    Raises:
        ModelError: ONNX Runtime does not accept the model.
        ValueError: it has no such option.
    """
    made = _options(threads, options)
    if optimized is not None:
        made.optimized_model_filepath = str(optimized)
    return _session(model, made, providers)


def _options(
    threads: int | None, more: Mapping[str, Any] | None = None, *, observing: bool = False
) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    for name, value in (more or {}).items():
        if "." in name:
            options.add_session_config_entry(name, str(value))
        elif hasattr(options, name):
            setattr(options, name, value)
        else:
            raise ValueError(f"session_options: onnxruntime.SessionOptions has no {name!r}")
    if observing:
        options.register_custom_ops_library(_rustq.__file__)
    return options


def _session(
    model: bytes | str | os.PathLike[str] | _rustq.Model,
    options: Any,
    providers: Iterable[Any] = (CPU,),
) -> Any:
    import onnxruntime as ort

    if isinstance(model, _rustq.Model):
        return _session_of(model, options, providers)
    source = model if isinstance(model, bytes) else str(Path(model))
    _rustq.trim_memory()  # what sessions before it have left
    try:
        return ort.InferenceSession(source, options, providers=list(providers))
    except Exception as error:  # the classes of onnxruntime's exceptions are not public
        raise ModelError(f"ONNX Runtime cannot load the model: {_first_line(error)}") from error


def _session_of(model: _rustq.Model, options: Any, providers: Iterable[Any]) -> Any:
    """Large weights are mapped from where they are, or from a file that is written for them."""
    if model.byte_size <= SMALL:
        return _session(model.to_bytes(), options, providers)
    if model.byte_size > LARGE:
        options.add_session_config_entry("session.disable_prepacking", "1")
    referring, folder = model.referring()
    if folder is not None and referring.byte_size <= SMALL:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder.absolute())
        )
        return _session(referring.to_bytes(), options, providers)
    with tempfile.TemporaryDirectory(prefix="rustq-", ignore_cleanup_errors=True) as temporary:
        path = Path(temporary) / "model.onnx"
        _rustq.write_together([(path, model)], external_data=True, scratch=True)
        return _session(path, options, providers)


def inputs_of_model(model: _rustq.Model) -> list[InputInfo]:
    """The inputs that a model must be fed.

    Raises:
        UnsupportedError: an input is not a tensor, or has a dtype that numpy does not know.
    """
    return described(Model(model).inputs)


class Observation:
    """A float model whose activations are counted while it runs.

    Each way counts the same numbers; the first one possible is taken:

    - `"blocks"`: nodes of the graph count, each right after its value was computed, in the layout
      in which ONNX Runtime computes convolutions: in blocks of channels, without a plain copy;
    - `"nodes"`: nodes of the graph count, in the plain layout;
    - `"outputs"`: the activations are outputs, counted after each inference and let go before the
      next one starts.

    `channels` asks for the extremes of each channel of some tensors as well: their axis, by name.
    `lanes` is how many feeds shall be observed at once, each by its share of the threads: most
    models cannot keep two threads as busy within an operator.

    Attributes:
        way: the way taken.
        lanes: how many threads may call `observe` at once; 1 where outputs are counted.
        runs: inferences since the last `take`.
    """

    WAYS = ("blocks", "nodes", "outputs")

    def __init__(
        self,
        model: _rustq.Model,
        config: QuantConfig,
        ways: Sequence[str] = WAYS,
        channels: Mapping[str, int] | None = None,
        lanes: int = 1,
    ) -> None:
        self.runs = 0
        self._counting = threading.Lock()
        self._model = model
        self._channels = channels or {}
        self._wanted = model.values_to_observe()
        self._names: list[str] | None = None
        self._observers: _rustq.Observers | None = None
        self._seen = _rustq.Calibration()
        self._parallel = config.threads != 1
        self._who = "ONNX Runtime" if config.runner is None else "the runner"
        for way in _possible(config, bool(self._wanted), model.op_counts, ways):
            self.way, self.lanes, share = way, 1, config
            if way != "outputs" and lanes > 1:
                self.lanes = lanes
                share = replace(config, threads=max(1, _threads(config) // lanes))
            try:
                self._run: Run = getattr(self, f"_with_{way}")(model, share)
                return
            except ValueError:
                raise
            except Exception:
                if way == ways[-1]:
                    raise

    @property
    def inputs(self) -> list[InputInfo]:
        """What has to be fed."""
        return inputs_of_model(self._model)

    def _with_outputs(self, model: _rustq.Model, config: QuantConfig) -> Run:
        self._names = self._wanted or [name for name, *_ in model.outputs]
        shown = model.with_outputs(self._names)
        self._observers = None
        if config.runner is not None:
            return config.runner(shown.to_bytes(), tuple(self._names))
        made = _session(
            shown, _options(config.threads, config.session_options), _names(config.providers)
        )
        return partial(made.run, None)

    def _with_blocks(self, model: _rustq.Model, config: QuantConfig) -> Run:
        import onnxruntime as ort

        inserted = self._observed(model, config)
        assert self._observers is not None
        with tempfile.TemporaryDirectory(prefix="rustq-", ignore_cleanup_errors=True) as folder:
            optimized = Path(folder) / "optimized.onnx"
            options = _options(config.threads, observing=True)
            options.optimized_model_filepath = str(optimized)
            for name, value in _WEIGHTS_APART.items():
                options.add_session_config_entry(name, value)
            _session(inserted, options)
            moved = self._observers.moved(_rustq.Model.from_bytes(optimized.read_bytes()))
            if moved is None:
                raise UnsupportedError("no value is in blocks")
            optimized.write_bytes(moved.to_bytes())
            options = _options(config.threads, observing=True)
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            return partial(_session(optimized, options).run, None)

    def _with_nodes(self, model: _rustq.Model, config: QuantConfig) -> Run:
        options = _options(config.threads, config.session_options, observing=True)
        made = _session(self._observed(model, config), options)
        return partial(made.run, None)

    def _observed(self, model: _rustq.Model, config: QuantConfig) -> _rustq.Model:
        threads = _threads(config)
        self._observers = _rustq.Observers(self._wanted, self.lanes, threads, self._channels)
        return self._observers.inserted(model)

    def observe(self, feed: Feed, number: int) -> None:
        """Runs a feed, which belongs to sample `number`, and counts what it makes.

        Raises:
            DataError: the feed cannot be run.
        """
        try:
            values = self._run(feed)
        except Exception as error:
            raise DataError(
                f"{self._who} cannot run sample {number}: {_first_line(error)}"
            ) from error
        if self._observers is None and self._wanted:
            arrays = self._floats(values)
            self._seen.observe(list(arrays), list(arrays.values()), self._parallel, self._channels)
        with self._counting:
            self.runs += 1

    def _floats(self, values: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
        """The values that are wanted, by name, without those that are not floating-point."""
        names = self._names or []
        if not isinstance(values, Mapping):
            if len(values) != len(names):
                raise DataError(
                    f"the runner returned {len(values)} values for {len(names)} outputs"
                )
            values = dict(zip(names, values, strict=True))
        if missing := [name for name in names if name not in values]:
            raise DataError(f"the runner returned no value for output '{missing[0]}'")
        arrays = {name: as_array(values[name], f"output '{name}'") for name in names}
        return {name: _float32(array) for name, array in arrays.items() if is_float(array.dtype)}

    def take(self) -> _rustq.Calibration:
        """What was counted since the last time."""
        taken, self._seen = self._seen, _rustq.Calibration()
        if self._observers is not None:
            taken.collect(self._observers, self.runs)
        elif not self._wanted:
            taken.add_runs(self.runs)
        self.runs = 0
        return taken

    def run(self, feeds: Iterable[Feed], calibration: _rustq.Calibration) -> None:
        """Runs every feed and adds what it saw to `calibration`.

        Raises:
            DataError: a feed cannot be run.
        """
        for number, feed in enumerate(feeds):
            self.observe(feed, number)
        calibration.add(self.take())


def ways(samples: int | None) -> Sequence[str]:
    """Those that pay for so many samples: to optimize a graph first, and run it in a second
    session, takes about as long as `FEW` of them gain."""
    return Observation.WAYS[samples is not None and samples < FEW :]


def lanes(config: QuantConfig, samples: int | None) -> int:
    """How many of so many samples to run at once, unless the user says how they are run."""
    if config.session_options or config.runner is not None:
        return 1
    return max(1, min(_threads(config), MOST_LANES, MOST_LANES if samples is None else samples))


def _threads(config: QuantConfig) -> int:
    return config.threads or os.cpu_count() or 1


def channels_to_observe(model: _rustq.Model, config: QuantConfig) -> Mapping[str, int]:
    """Whose channels are counted one by one, along which axis: none where nobody will ask, since it
    costs a copy of many values."""
    return model.channels_to_observe() if observes_channels(config) else {}


def observes_channels(config: QuantConfig, method: str | None = None) -> bool:
    """Whether channels are counted one by one for this configuration; where it was chosen among
    several, `method` is what was asked for."""
    if config.equalize is False and method is None:
        return False
    return bool(config.equalize) or (method or config.method) == "auto"


def _possible(
    config: QuantConfig, wanted: bool, operators: Container[str], ways: Sequence[str]
) -> list[str]:
    """Those of `ways` that count right on these providers."""
    import onnxruntime as ort

    version = tuple(int(part) for part in ort.__version__.split(".")[:2])
    # ONNX Runtime 1.18 overwrites a value in place before a node without outputs has read it.
    inside = (
        wanted
        and config.runner is None
        and _names(config.providers) == (CPU,)
        and version >= (1, 20)
    )
    # Only convolutions are computed in blocks, and only with all optimizations.
    blocks = inside and "Conv" in operators and not config.session_options
    possible = {"blocks": blocks, "nodes": inside, "outputs": True}
    return [way for way in ways if possible[way]]


def _float32(values: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    if values.dtype == np.float32 and values.flags.c_contiguous:
        return values  # type: ignore[no-any-return]
    return np.ascontiguousarray(values, dtype=np.float32)


def _names(providers: Any) -> Sequence[Any]:
    return (providers,) if isinstance(providers, str) else tuple(providers)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
