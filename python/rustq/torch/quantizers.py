"""Fake quantization: torch's own operators, on rustq's grids.

`y = s · (clamp(round(x / s) + z, qmin, qmax) - z)`; the gradient passes straight through where
nothing is clamped. A learned scale has the gradient of Learned Step Size Quantization (Esser et
al. 2020), times 1 / √(n · qmax) for n values that share it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from rustq import _rustq

__all__ = ["ActivationQuantizer", "StoredWeights", "WeightQuantizer"]

SMALLEST = float(np.finfo(np.float32).tiny)
CANDIDATES = 24
"""Scales that are tried for weights below 8 bits, from a third of the largest magnitude up."""


class ActivationQuantizer(nn.Module):  # type: ignore[misc]
    """Fake quantization of an activation: 8 bits, one scale.

    Attributes:
        scale: float32, of shape []; a parameter if it is learned.
        zero_point: int32, of shape [].
        qmin: smallest integer.
        qmax: largest integer.
        observer: what calibration counts in while it runs.
    """

    scale: Any
    zero_point: Any
    ready: Any

    def __init__(self, scheme: str, learned: bool) -> None:
        super().__init__()
        self.scheme, self.learned = scheme, learned
        self.qmin, self.qmax = (0, 255) if scheme == "asym" else (-127, 127)
        self.observer: _rustq.Calibration | None = None
        self.exporting = False
        scale = torch.tensor(1.0)
        if learned:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))
        self.register_buffer("ready", torch.tensor(False))

    def forward(self, x: Any) -> Any:
        """A float32 tensor of any shape, on the grid."""
        if self.exporting:
            return self._pair(x)
        if self.observer is not None:
            values = np.ascontiguousarray(x.detach().cpu().float().numpy())
            self.observer.observe(["x"], [values])
            return x
        if not self.ready:
            low, high = x.detach().aminmax()
            self.set_range(float(low), float(high))
        if self.learned:
            factor = 1.0 / math.sqrt(x.numel() * self.qmax)
            scale, zero = self._positive().reshape(1), self.zero_point.to(x.dtype).reshape(1)
            return torch._fake_quantize_learnable_per_tensor_affine(
                x, scale, zero, self.qmin, self.qmax, factor
            )
        return torch.fake_quantize_per_tensor_affine(
            x, self.scale, self.zero_point, self.qmin, self.qmax
        )

    def set_range(self, low: float, high: float) -> None:
        """Lays the grid over a range, as rustq does: see docs/formulas.md."""
        low, high = min(low, 0.0), max(high, 0.0)
        if self.scheme == "asym":
            scale = max(float(np.float32((high - low) / 255)), SMALLEST) if high > low else 1.0
            zero = min(round(-low / scale), 255)
        else:
            limit = max(high, -low)
            scale, zero = max(float(np.float32(limit / 127)), SMALLEST) if limit else 1.0, 0
        with torch.no_grad():
            self.scale.fill_(scale)
            self.zero_point.fill_(zero)
            self.ready.fill_(True)

    def _positive(self) -> Any:
        return self.scale.abs().clamp_min(SMALLEST)

    def for_export(self) -> None:
        """Has `forward` be a QuantizeLinear/DequantizeLinear pair in what torch exports."""
        dtype = torch.uint8 if self.scheme == "asym" else torch.int8
        self.register_buffer("stored_scale", self._positive().detach().clone())
        self.register_buffer("stored_zero", self.zero_point.to(dtype))
        self.exporting = True

    def _pair(self, x: Any) -> Any:
        scale, zero = self.stored_scale, self.stored_zero
        q = _operator("QuantizeLinear", (x, scale, zero), x.shape, zero.dtype)
        return _operator("DequantizeLinear", (q, scale, zero), x.shape, torch.float32)

    def extra_repr(self) -> str:
        """For `print`."""
        return f"{self.scheme}, learned={self.learned}"


class WeightQuantizer(nn.Module):  # type: ignore[misc]
    """Fake quantization of weights: symmetric, a scale for each output channel or one for all.

    Attributes:
        bits: of an integer: -(2**(bits - 1) - 1) to 2**(bits - 1) - 1.
        step: float32, of shape [channels] or [1]: the learned scales; `None`: they follow the
            largest magnitudes.
    """

    step: Any

    def __init__(self, layer: Any, bits: int, per_channel: bool, learned: bool, room: bool) -> None:
        super().__init__()
        self.bits, self.per_channel, self.learned = bits, per_channel, learned
        self.qmax = 2 ** (bits - 1) - 1
        weight = layer.weight.detach()
        depthwise = getattr(layer, "groups", 1) == weight.shape[0] and weight.shape[1] == 1
        self.room = room and bits == 8 and not depthwise
        self.step = nn.Parameter(self._best(weight)) if learned else None

    def forward(self, weight: Any) -> Any:
        """Weights with their output channels along the first axis, on the grid."""
        scale = self.scales(weight)
        if not self.per_channel:
            if self.learned:
                factor = 1.0 / math.sqrt(weight.numel() * self.qmax)
                return torch._fake_quantize_learnable_per_tensor_affine(
                    weight, scale, torch.zeros_like(scale), -self.qmax, self.qmax, factor
                )
            zero = torch.zeros((), dtype=torch.int32, device=weight.device)
            return torch.fake_quantize_per_tensor_affine(
                weight, scale[0], zero, -self.qmax, self.qmax
            )
        if self.learned:
            factor = 1.0 / math.sqrt(weight[0].numel() * self.qmax)
            return torch._fake_quantize_learnable_per_channel_affine(
                weight, scale, torch.zeros_like(scale), 0, -self.qmax, self.qmax, factor
            )
        zeros = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_channel_affine(
            weight, scale, zeros, 0, -self.qmax, self.qmax
        )

    def scales(self, weight: Any) -> Any:
        """The scales, of shape [channels] or [1]."""
        if self.step is not None:
            return self.step.abs().clamp_min(SMALLEST)
        return self._limits(weight.detach()) / self.qmax

    def _limits(self, weight: Any) -> Any:
        """Largest magnitude of each channel, or of the sums of pairs where they need room: x86
        processors without VNNI add two products in 16 bits."""
        rows = weight.flatten(1)
        limits = rows.abs().amax(1)
        if self.room:
            # The sum runs over positions and, innermost, over the channels.
            inner = weight.movedim(1, -1).flatten(1)
            even = inner[:, : inner.shape[1] // 2 * 2]
            pairs = even.unflatten(1, (-1, 2)).sum(2).abs()
            if pairs.shape[1]:
                limits = torch.maximum(limits, pairs.amax(1))
        if not self.per_channel:
            limits = limits.amax(0, keepdim=True)
        return torch.where(limits > 0, limits, torch.ones_like(limits)).clamp_min(
            SMALLEST * self.qmax
        )

    def _best(self, weight: Any) -> Any:
        """The scales of the least squared error, of those tried."""
        whole = self._limits(weight) / self.qmax
        if self.bits == 8:
            return whole
        rows = weight.flatten(1) if self.per_channel else weight.flatten().unsqueeze(0)
        best, least = whole, torch.full_like(whole, math.inf)
        for share in torch.linspace(1 / 3, 1, CANDIDATES):
            scale = whole * share
            codes = (rows / scale[:, None]).round().clamp(-self.qmax, self.qmax)
            error = (rows - codes * scale[:, None]).square().sum(1)
            best = torch.where(error < least, scale, best)
            least = torch.minimum(error, least)
        return best

    def extra_repr(self) -> str:
        """For `print`."""
        return f"{self.bits} bits, per_channel={self.per_channel}, learned={self.learned}"


class StoredWeights(nn.Module):  # type: ignore[misc]
    """Weights as integers behind a DequantizeLinear, in what torch exports."""

    def __init__(self, quantizer: WeightQuantizer, weight: Any) -> None:
        super().__init__()
        scale = quantizer.scales(weight).detach()
        codes = (weight.detach() / scale.reshape(-1, *[1] * (weight.ndim - 1))).round()
        zeros = torch.zeros(len(scale), dtype=torch.int8)
        self.axis = {"axis": 0} if quantizer.per_channel else {}
        self.register_buffer("codes", codes.clamp(-quantizer.qmax, quantizer.qmax).to(torch.int8))
        self.register_buffer("scale", scale if self.axis else scale[0].clone())
        self.register_buffer("zeros", zeros if self.axis else zeros[0].clone())

    def forward(self, weight: Any) -> Any:
        """The weights, whatever is given."""
        inputs = (self.codes, self.scale, self.zeros)
        shape = self.codes.shape
        return _operator("DequantizeLinear", inputs, shape, torch.float32, **self.axis)


def _operator(op_type: str, inputs: Any, shape: Any, dtype: Any, **attributes: Any) -> Any:
    """An operator of ONNX, for torch's exporter."""
    return torch.onnx.ops.symbolic(
        op_type, inputs, attributes, dtype=dtype, shape=tuple(shape), version=18
    )
