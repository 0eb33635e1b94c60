"""What quantizing starts from, made of a model, data and a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from rustq import _rustq
from rustq.calibration import Calibration
from rustq.collecting import collect
from rustq.config import QuantConfig, checked
from rustq.counting import count as count_multiplications
from rustq.errors import DataError, UnsupportedError
from rustq.frameworks import example, exported
from rustq.model import QuantizedModel, core_of
from rustq.pairs import check as check_kept
from rustq.preparing import first_shapes, prepare
from rustq.progress import Progress, reporting
from rustq.targets import TARGETS, Job, Outcome, Target
from rustq.targets import target as target_named

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from rustq.measuring import Sessions
    from rustq.report import Report

__all__ = ["Task"]

SPARED = "the outputs are poor with it in int8"
"""Why `Task.spared` are float."""


@dataclass(frozen=True)
class Task:
    """All that quantizing starts from.

    Attributes:
        source: the model as it was given.
        model: the same, folded and in an operator set that can express int8 per channel.
        calibration: what was seen of its activations; `None`: dynamic quantization.
        runtime: the target.
        scheme: one of the target's.
        config: every other choice.
        notes: what the user should know.
        inputs: what its layers multiply, if anything is corrected for that.
        shapes: of the inputs in the first sample; empty where there is no sample.
        method: what was asked for, where `config` has what was chosen instead.
        given: the parameters that the model came with; what has none follows the calibration, which
            has seen nothing if there are no data.
        spared: names of the nodes that stay float because the outputs were poor with them in int8.
        made: what the target makes of all this, if it has made it already.
    """

    source: _rustq.Model
    model: _rustq.Model
    calibration: Calibration | None
    runtime: Target
    scheme: str
    config: QuantConfig
    notes: tuple[str, ...] = ()
    inputs: _rustq.LayerInputs | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    method: str | None = None
    given: _rustq.Given | None = None
    spared: tuple[str, ...] = ()
    made: Outcome | None = None

    @classmethod
    def of(
        cls,
        model: Any,
        data: Any,
        *,
        scheme: str | None = None,
        target: str = "onnxruntime",
        config: QuantConfig | None = None,
        progress: bool | Progress = False,
        executor: Executor | None = None,
    ) -> Task:
        """Prepares a model and calibrates it; see `quantize`."""
        config = checked(config)
        runtime = target_named(target)
        scheme = runtime.scheme(scheme)
        runtime.check_weights(config.weights)
        _check(config, runtime)
        model, data = exported(model, data)
        source = core_of(model)
        # Where nothing is run, weights are checked when they are quantized: large ones are read
        # once less.
        in_float = config.weights.startswith("float")
        checked_later = data is None and runtime.name == "onnxruntime" and not in_float
        prepared, notes, given = prepare(source, check=not checked_later)
        if given is not None and checked_later:
            prepared.check_weights()
        if config.weights == "binary" and config.bias_correction is None:
            # The mean error of such weights is that for float inputs, which theirs are far from.
            config = replace(config, bias_correction=False)
        task = cls(source, prepared, None, runtime, scheme, config, tuple(notes))
        if given is not None and not in_float:
            return replace(task, given=given)._filled_in(data, progress, executor)
        if data is None or isinstance(data, Calibration):
            return task._with_calibration(data)
        if in_float:
            return replace(task, shapes=first_shapes(prepared, data, config))
        if config.activations == "float32" or config.weights in runtime.weights_alone:
            return task._with_weights_alone(data)
        return task._calibrated(data, progress, executor)

    def _with_calibration(self, calibration: Calibration | None) -> Task:
        """This task with what was seen before, or nothing."""
        if self.config.corrects:
            raise DataError(
                "rounding='learned' and bias_correction=True need the data themselves, to run some"
                " of them again: a calibration, or none, will not do"
            )
        if calibration is not None:
            calibration._core.check_model(self.model)
        return replace(self, calibration=calibration)

    def _with_weights_alone(self, data: Any) -> Task:
        """This task with what its layers multiply, where activations are not quantized."""
        from rustq.corrections import SPREAD, Excerpt, layer_inputs

        config = self.config
        if config.bias_correction is None:
            config = replace(config, bias_correction=True)
        inputs = None
        if config.corrects:
            few = list(islice(data, SPREAD)) if isinstance(data, Iterator) else data
            inputs = layer_inputs(self.model, Excerpt(few, config), config, None)
        return replace(self, config=config, inputs=inputs)

    def _calibrated(self, data: Any, progress: bool | Progress, executor: Executor | None) -> Task:
        """This task with what was seen of the activations, and what was chosen for that."""
        from rustq.corrections import Excerpt, layer_inputs

        model, config = self.model, self.config
        if not self.runtime.writes_onnx:  # before the time of a calibration
            first, data = example(data, 1) if isinstance(data, Iterator) else (data, data)
            self.runtime.check(model, config, first_shapes(model, first, config))
        excerpt = Excerpt(data, config)
        calibration, samples = collect(model, excerpt.data, config, progress, executor)
        notes = (*self.notes, *samples.notes)
        task = replace(self, calibration=calibration, shapes=samples.shapes, notes=notes)
        if config.method == "auto":
            from rustq.trials import chosen

            # A caller's own progress counts samples, which these are not.
            with reporting(progress is True, "trying settings") as report:
                return chosen(task, excerpt, report)
        if config.corrects or config.equalize:
            inputs = layer_inputs(model, excerpt, config, calibration.samples)
            task = replace(task, inputs=inputs)
        return task

    def _filled_in(self, data: Any, progress: bool | Progress, executor: Executor | None) -> Task:
        """This task, whose model came with scales, with a calibration for what has none."""
        assert self.given is not None
        check_kept(self.config)
        activations, constants = self.given.counts
        if data is None and not activations:
            raise DataError(
                "the model's weights are quantized and its activations are not: give calibration"
                " data"
            )
        shapes: Mapping[str, tuple[int, ...]] = {}
        notes = [
            f"the scales of {activations} activations and {constants} constants are those that the"
            " model came with"
        ]
        if data is None:
            calibration = Calibration(_rustq.Calibration(self.model))
        elif isinstance(data, Calibration):
            data._core.check_model(self.model)
            calibration = data
        else:
            calibration, samples = collect(self.model, data, self.config, progress, executor)
            shapes = samples.shapes
            notes += samples.notes
        notes = [*self.notes, *notes]
        return replace(self, calibration=calibration, shapes=shapes, notes=tuple(notes))

    @property
    def as_run(self) -> _rustq.Model:
        """The float model in the shapes that the target runs it in."""
        return self.runtime.as_run(self.model, self.config, self.shapes)

    @property
    def noise_price(self) -> float:
        """What was asked for, or the target's."""
        asked = self.config.noise_price
        return self.runtime.noise_prices[self.scheme] if asked is None else asked

    @property
    def sessions(self) -> Sessions:
        """How it and its quantized forms are run to be measured."""
        from rustq.measuring import Sessions

        return Sessions(self.config, self.runtime.session_options)

    def outcome(self, excluded: Sequence[str] = (), *, everything: bool = False) -> Outcome:
        """What the target makes of it with these nodes in float, besides those of the config."""
        from rustq.runner import observes_channels

        if self.made and not excluded and not everything:
            return self.made
        _rustq.trim_memory()  # what sessions before it have left
        excludes = self.config.excludes
        names = {name for name, op_type in self.model.nodes if excludes(name, op_type)}
        kept = sorted(names.union(excluded, self.spared))
        job = Job(
            self.model,
            self.calibration,
            self.scheme,
            self.config,
            kept,
            self.noise_price,
            everything,
            self.inputs,
            self.shapes,
            self.given,
            observes_channels(self.config, self.method),
        )
        outcome = self.runtime.make(job)
        for layer in outcome.layers:
            if layer["name"] in self.spared:
                layer["reason"] = SPARED
        return outcome

    def quantized(self, excluded: Sequence[str] = ()) -> QuantizedModel:
        """The quantized model, with these nodes in float, besides those of the config."""
        outcome = self.outcome(excluded)
        count_multiplications(self.model, outcome.layers, self.shapes)
        names = [name for name, _ in self.model.nodes]
        unused = self.config.unused_exclusions(names)
        misspelt = [f"exclude: no node is called '{name}'" for name in unused]
        calibration = self.calibration if self.calibration and self.calibration.samples else None
        report = _report(
            self.source,
            outcome.model,
            outcome.layers,
            [*self.notes, *misspelt, *outcome.notes],
            method=self.method or self.config.method,
            scheme=_scheme_of(self.scheme, self.calibration, self.config),
            target=self.runtime.name,
            weights=self.config.weights,
            size_after=self.runtime.size(outcome),
            samples=calibration.samples if calibration else None,
        )
        return QuantizedModel(outcome.model, report, calibration, self.runtime, outcome.files)


def _check(config: QuantConfig, runtime: Target) -> None:
    for other in TARGETS.values():
        for knob in other.knobs:
            if knob not in runtime.knobs and getattr(config, knob) != getattr(QuantConfig(), knob):
                raise UnsupportedError(f"{knob} is for the target {other.name}, not {runtime.name}")


def _scheme_of(scheme: str, calibration: Calibration | None, config: QuantConfig) -> str:
    """What the report calls it: the scheme where activations are quantized by ranges."""
    if config.weights.startswith("float"):
        return "float"
    if calibration is None and (config.codes or config.activations == "float32"):
        return "weights only"
    return scheme if calibration else "dynamic"


def _report(
    source: _rustq.Model,
    quantized: _rustq.Model,
    layers: list[dict[str, Any]],
    notes: list[str],
    **facts: Any,
) -> Report:
    from rustq.report import Report

    return Report.from_records(
        layers,
        notes=notes,
        size_before=source.byte_size,
        opset_before=source.opset or 0,
        opset_after=quantized.opset or 0,
        versions={"rustq": _rustq.__version__},
        **facts,
    )
