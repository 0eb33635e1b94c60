"""Fake quantization where rustq will quantize: weights, what layers read, and what they make."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from rustq.calibration import Calibration
from rustq.config import QuantConfig
from rustq.errors import DataError, UnsupportedError
from rustq.frameworks import example
from rustq.frameworks.data import samples_of
from rustq.frameworks.torch import Inputs, evaluating, export, parameters_of, taken_from
from rustq.torch.flow import Call, Flow, recorded, traced
from rustq.torch.quantizers import ActivationQuantizer, WeightQuantizer
from rustq.torch.ranges import counted, looked_up

__all__ = ["EXAMPLE", "prepare_qat"]

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
SCHEMES = ("asym", "sym")
EXAMPLE = "_rustq_inputs"
"""Attribute of a prepared module: what it is exported with."""


def prepare_qat(
    module: Any,
    calibration: Any = None,
    *,
    scheme: str = "asym",
    weight_bits: int = 8,
    per_channel: bool = True,
    learn_scales: bool | None = None,
    example_inputs: Any = None,
    exclude: str | Sequence[str] = (),
    config: QuantConfig | None = None,
) -> Any:
    """A copy of a module that is trained with quantization in the loop.

    BatchNormalization behind a convolution or linear layer is folded into it, with the statistics
    that it has. Weights, what convolutions and linear layers read, and what convolutions make, are
    then fake-quantized, by torch's own operators: values are float32, on the grid of the integers,
    and gradients pass straight through. Train it as usual, a few epochs at a small rate.

    Args:
        module: a trained `torch.nn.Module`.
        calibration: samples to find the ranges of the activations by, in the forms that
            `rustq.quantize` takes data of torch in; the module is run on them, and rustq's
            calibration counts. A `rustq.Calibration` of the module serves as well, with
            `example_inputs`. `None`: ranges are those of the first batch in training.
        scheme: `"asym"`: activations are uint8 with a zero point; `"sym"`: int8, for TensorRT and
            ncnn.
        weight_bits: 2 to 8; integers are symmetric, such as -7 to 7 for 4 bits.
        per_channel: one scale for each output channel of a weight, or one for the whole weight.
        learn_scales: train the scales as well (LSQ). `None`: below 8 bits. Scales that are not
            learned follow the largest weights, and those of activations stay.
        example_inputs: what the module is called with, see `rustq.load`; without it, that of the
            data; without either, torch.fx traces the module.
        exclude: names of layers that stay float, or globs.
        config: `method`, `percentile` and `avoid_saturation` are used here.

    Returns:
        The copy, on the device of the module, in training mode. `state_dict`, optimizers and data
        parallelism work as with any module; make the optimizer afterwards.

    Raises:
        TypeError: not a module.
        ValueError: an argument is out of range.
        DataError: samples that do not fit, or a calibration of another module.
        UnsupportedError: a module that cannot be traced, without an example of its inputs; or one
            without a layer to quantize.
    """
    _check(module, scheme, weight_bits)
    config = config or QuantConfig()
    copied = copy.deepcopy(module)
    for part in copied.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False
    samples = _Samples(copied, calibration, example_inputs)
    flow = _flow(copied, samples)
    if _fold_norms(copied, flow):
        flow = _flow(copied, samples)
    patterns = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    layers = _layers(copied, flow, patterns)
    if not layers:
        raise UnsupportedError("the module calls no Conv1d, Conv2d, Conv3d or Linear to quantize")
    learned = weight_bits < 8 if learn_scales is None else learn_scales
    quantizers = _insert(copied, flow, layers, lambda: ActivationQuantizer(scheme, learned))
    _calibrate(module, copied, (flow, quantizers), calibration, samples, config)
    for name in {call.module for call in layers}:
        layer = copied.get_submodule(name)
        quantizer = WeightQuantizer(
            layer, weight_bits, per_channel, learned, config.avoid_saturation
        )
        parametrize.register_parametrization(layer, "weight", quantizer.to(layer.weight.device))
    setattr(copied, EXAMPLE, samples.inputs)
    return copied.train()


def _check(module: Any, scheme: str, weight_bits: int) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(module).__name__}")
    if scheme not in SCHEMES:
        raise ValueError(f"unknown scheme {scheme!r}: choose one of {', '.join(SCHEMES)}")
    if isinstance(weight_bits, bool) or not isinstance(weight_bits, int):
        raise TypeError(f"weight_bits must be an int, got {weight_bits!r}")
    if not 2 <= weight_bits <= 8:
        raise ValueError(f"weight_bits must be from 2 to 8, got {weight_bits}")
    if any(isinstance(part, ActivationQuantizer) for part in module.modules()):
        raise ValueError("the module is prepared already")


class _Samples:
    """What a module is called with.

    Attributes:
        inputs: an example for its export; `None` without any.
    """

    def __init__(self, module: Any, data: Any, given: Any) -> None:
        self._names, self._required = parameters_of(module)
        if isinstance(data, Calibration):
            data = None
        first, self._data = example(data, 2)
        first = first if given is None else [given]
        self._first = first[0] if first else None
        self.inputs = Inputs.of(module, first) if first else None

    @property
    def first(self) -> Mapping[str, Any] | None:
        """The first sample: arguments by name."""
        return None if self._first is None else self._taken(self._first)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return (self._taken(sample) for sample in samples_of(self._data))

    def _taken(self, sample: Any) -> Mapping[str, Any]:
        return taken_from(sample, self._names, self._required)

    def run(self, module: Any, feed: Mapping[str, Any]) -> Any:
        """Calls the module, without gradients, in evaluation mode, where it is."""
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        tensors = {name: torch.as_tensor(value).to(device) for name, value in feed.items()}
        with evaluating(module), torch.no_grad():
            return module(**tensors) if self._names else module(*tensors.values())


def _flow(module: Any, samples: _Samples) -> Flow:
    first = samples.first
    if first is None:
        return traced(module)
    return recorded(module, lambda: samples.run(module, first))


def _fold_norms(module: Any, flow: Flow) -> int:
    """Folds normalizations into the layers in front of them; returns how many."""
    counts, modules, folded = flow.counts(), dict(module.named_modules()), 0
    for call in flow.calls:
        layer, reader = modules.get(call.module), flow.sole_reader(call.output)
        if not call.module or not isinstance(layer, LAYERS) or reader is None:
            continue
        norm = modules.get(reader.module) if reader.module else None
        once = counts[call.module] == counts[reader.module] == 1
        if not isinstance(norm, NORMS) or not once or norm.running_mean is None:
            continue
        fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
        layer.weight, layer.bias = fuse(
            layer.weight,
            layer.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        parent, _, child = reader.module.rpartition(".")
        setattr(module.get_submodule(parent), child, nn.Identity())
        folded += 1
    return folded


def _layers(module: Any, flow: Flow, patterns: Sequence[str]) -> list[Call]:
    """The calls of layers whose weights are quantized."""
    modules = dict(module.named_modules())

    def is_one(name: str) -> bool:
        layer = modules.get(name)
        kept = any(pattern == name or fnmatchcase(name, pattern) for pattern in patterns)
        return isinstance(layer, LAYERS) and not kept and not parametrize.is_parametrized(layer)

    return [call for call in flow.calls if call.module and is_one(call.module)]


def _insert(module: Any, flow: Flow, layers: list[Call], make: Any) -> dict[Any, Any]:
    """Puts quantizers behind what makes the values that layers read or convolutions make, or, where
    a function makes them, in front of the layers that read them; returns them by value."""
    counts = flow.counts()
    read = {call.inputs[0] for call in layers}
    values = dict.fromkeys(call.inputs[0] for call in layers)
    for call in layers:
        result = _result(flow, call)
        if result in read or not isinstance(module.get_submodule(call.module), nn.Linear):
            values[result] = None
    for call in flow.calls:  # sums and the like of what is quantized
        if len(set(call.inputs)) > 1 and all(value in values for value in call.inputs):
            values[_result(flow, call)] = None
    quantizers: dict[Any, Any] = {}
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    taken: dict[tuple[str, str], Any] = {}
    for value in values:
        makers = [name for name in flow.made_by.get(value, []) if name and counts[name] <= 1]
        whole = [name for name in makers if _can_hold(module.get_submodule(name))]
        if whole:
            places = [(whole[0], "output_quantizer")]
        else:
            readers = [call.module for call in layers if call.inputs[0] == value]
            places = [(name, "input_quantizer") for name in dict.fromkeys(readers)]
        known = next((taken[place] for place in places if place in taken), None)
        quantizer = known if known is not None else make().to(device)
        for place in places:
            if place not in taken:
                _attach(module.get_submodule(place[0]), place[1], quantizer)
                taken[place] = quantizer
        if places:
            quantizers[value] = quantizer
    return quantizers


def _can_hold(part: Any) -> bool:
    """Whether a module runs a forward of its own: one with another child would call it."""
    return not isinstance(part, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def _result(flow: Flow, call: Call) -> Any:
    """What a layer makes, behind the ReLU that is one with it."""
    reader = flow.sole_reader(call.output)
    return reader.output if reader is not None and reader.rectifies else call.output


class _BeforeHook:
    """Quantizes the first argument. An object, so that copies of the module have their own."""

    def __init__(self, quantizer: Any) -> None:
        self.quantizer = quantizer

    def __call__(self, _: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.quantizer(args[0]), *args[1:])


class _BehindHook:
    """Quantizes the result."""

    def __init__(self, quantizer: Any) -> None:
        self.quantizer = quantizer

    def __call__(self, _: Any, args: Any, result: Any) -> Any:
        return self.quantizer(result)


def _attach(part: Any, name: str, quantizer: Any) -> None:
    part.add_module(name, quantizer)
    if name == "input_quantizer":
        part.register_forward_pre_hook(_BeforeHook(quantizer))
    else:
        part.register_forward_hook(_BehindHook(quantizer))


def _calibrate(
    module: Any,
    copied: Any,
    placed: tuple[Flow, Mapping[Any, Any]],
    calibration: Any,
    samples: _Samples,
    config: QuantConfig,
) -> None:
    """Gives the quantizers ranges, where there is something to take them from."""
    flow, quantizers = placed
    if isinstance(calibration, Calibration):
        if samples.inputs is None:
            raise DataError("with a Calibration, pass example_inputs as well")
        values = [(call.inputs[0], _result(flow, call)) for call in _layers(copied, flow, ())]
        content = export(
            module, [dict(zip(samples.inputs.names, samples.inputs.values, strict=True))]
        )
        joins = [(frozenset(call.inputs), _result(flow, call)) for call in flow.calls]
        looked_up(values, joins, quantizers, calibration, content, config)
    elif calibration is not None:

        def run() -> None:
            for feed in samples:
                samples.run(copied, feed)

        counted(list(dict.fromkeys(quantizers.values())), run, config)
