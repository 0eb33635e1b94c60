"""What quantization did: layer by layer, and in one paragraph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from rustq import text
from rustq.plain import plain

__all__ = ["LayerReport", "Report", "TensorParams"]

FAMILIES = (
    ("convolution", "convolutions", ("Conv", "ConvTranspose", "ConvInteger")),
    ("matrix product", "matrix products", ("Gemm", "MatMul", "MatMulInteger")),
    ("recurrent layer", "recurrent layers", ("LSTM", "GRU", "RNN")),
)
"""The operators that hold weights and do the multiplying: name, plural, operator types."""

FLOAT_HEADER = ("products", "other nodes", "stay float because", "such as")
"""Products are what the summary counts: convolutions, matrix products, recurrent layers."""

MOST_REASONS = 3
"""That a summary names."""


@dataclass(frozen=True, kw_only=True)
class TensorParams:
    """How a tensor is stored: `real = scale * (quantized - zero_point)`.

    Attributes:
        name: the tensor's name in the float model.
        dtype: `"int8"`, `"uint8"`, `"int32"`, …
        scale: one value, or one per channel.
        zero_point: as many values as `scale`.
        axis: the channel axis, or `None` for one scale.
        range: the smallest and largest real value that the grid was made for, or `None`.
    """

    name: str
    dtype: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None
    range: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What became of a node.

    Attributes:
        name: the node's name, or that of its first output where it has none.
        op_type: its ONNX operator type.
        quantized: whether it computes on integers, or, where only weights are quantized, its
            weights are.
        weights: number format of its weights; empty if they are float, or there are none.
        reason: why it stayed float, or what was done.
        inputs: how its quantized inputs, weights included, are stored.
        outputs: how its quantized outputs are stored.
        activation_sqnr_db: signal-to-quantization-noise ratio of its output, in dB; infinite if
            exact, `None` if not measured.
        weight_sqnr_db: the same for its weight.
        corrections: what was done to lose less, a line each: channels on one scale, weights rounded
            for the layer's results, the bias corrected.
        macs: multiply-accumulates with weights for one sample, `None` if its shapes are not known.
        output_sqnr_db: for a layer that `max_drop` left in float, the model's output SQNR in dB if
            its int8 form were the only error, estimated; else `None`.
    """

    name: str
    op_type: str
    quantized: bool
    reason: str = ""
    weights: str = ""
    inputs: tuple[TensorParams, ...] = ()
    outputs: tuple[TensorParams, ...] = ()
    activation_sqnr_db: float | None = None
    weight_sqnr_db: float | None = None
    corrections: tuple[str, ...] = ()
    macs: int | None = None
    output_sqnr_db: float | None = None

    @property
    def remark(self) -> str:
        """Why it stayed float, or what was done, in a line."""
        return "; ".join(filter(None, (self.reason, *self.corrections)))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> LayerReport:
        """From a dict with these fields as keys; `inputs` and `outputs` are lists of such dicts.

        A scale or zero point may be one number. Fields with a default may be missing.

        Raises:
            TypeError: a key is unknown or a needed one is missing.
        """
        values = dict(record)
        for side in ("inputs", "outputs"):
            values[side] = tuple(_params(entry) for entry in values.get(side) or ())
        values["corrections"] = tuple(values.get("corrections") or ())
        return cls(**values)


def _params(record: Mapping[str, Any]) -> TensorParams:
    values = dict(record)
    for key in ("scale", "zero_point"):
        value = values[key]
        values[key] = tuple(value) if isinstance(value, Iterable) else (value,)
    if values.get("range") is not None:
        values["range"] = tuple(values["range"])
    return TensorParams(**values)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What quantization did.

    Attributes:
        layers: one entry per node of the float model, in its order.
        notes: what is worth knowing, one line each, such as "tensor x is constant zero".
        size_before: bytes of the model that was given; 0 if not known.
        size_after: bytes of the quantized model; 0 if not known.
        opset_before: ONNX opset of the model that was given.
        opset_after: ONNX opset of the quantized model.
        scheme: `"asym"`, `"sym"`, `"dynamic"` where no data was given, or `"weights only"`.
        target: the runtime it was made for.
        weights: number format of the weights.
        method: how ranges were chosen.
        samples: number of calibration feeds, `None` for dynamic quantization.
        seconds: wall-clock time of the whole work.
        versions: versions of rustq and of what it ran on.
        max_drop: the limit that was asked for, `None` without one.
        drop: what was measured against it; see `rustq.quantize`.
    """

    layers: tuple[LayerReport, ...]
    notes: list[str] = field(default_factory=list)
    size_before: int = 0
    size_after: int = 0
    opset_before: int = 0
    opset_after: int = 0
    scheme: str = ""
    target: str = ""
    weights: str = "int8"
    method: str = ""
    samples: int | None = None
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    max_drop: float | None = None
    drop: float | None = None

    @classmethod
    def from_records(cls, layers: Iterable[Mapping[str, Any]], **facts: Any) -> Report:
        """From one dict per layer, see `LayerReport.from_record`, and the other fields by name.

        Raises:
            TypeError: a key or fact is unknown or a needed one is missing.
        """
        return cls(layers=tuple(LayerReport.from_record(layer) for layer in layers), **facts)

    def summary(self, *, reasons: bool = True) -> str:
        """One paragraph: how much runs in int8, what stayed float and why, the size, the time.

        "52 of 54 convolutions in int8 (99.1 % of the multiply-accumulates). …"

        Args:
            reasons: say why those stayed float that did not; `float_rows` has that for all nodes.
        """
        counted = [count for family in FAMILIES if (count := self._count(*family))]
        share = self.mac_share()
        macs = "" if share is None else f" ({100 * share:.1f} % of the multiply-accumulates)"
        form = "in int8" if self.weights == "int8" else f"with {self.weights} weights"
        finer = sum(_is_heavy(layer) and layer.weights == "int8" for layer in self.layers)
        if finer and self.weights != "int8":
            form += f", the {finer} smallest with int8"
        sentences = [
            f"{_listed(counted)} {form}{macs}."
            if counted
            else "No convolution, matrix product or recurrent layer to quantize."
        ]
        heavy = [(len(names), why) for why, names in self.float_reasons(heavy=True).items()]
        if reasons and heavy:
            named = [f"{count} ({why})" for count, why in heavy[:MOST_REASONS]]
            if rest := heavy[MOST_REASONS:]:
                named.append(f"{sum(count for count, _ in rest)} for other reasons")
            sentences.append(f"Left in float: {'; '.join(named)}.")
        if self.size_before and self.size_after:
            sentences.append(
                f"{text.size(self.size_before)} became {text.size(self.size_after)}"
                f" ({100 * self.size_after / self.size_before:.0f} %)"
                + (f" in {self.seconds:.1f} s." if self.seconds else ".")
            )
        return " ".join(sentences)

    def float_reasons(self, *, heavy: bool | None = None) -> dict[str, list[str]]:
        """The names of the nodes that stayed float, by reason, the most frequent reason first.

        Args:
            heavy: `True` for only those that do the multiplying, which a summary counts, `False`
                for only the others.
        """
        names: dict[str, list[str]] = {}
        for layer in self.layers:
            if not layer.quantized and heavy in (None, _is_heavy(layer)):
                names.setdefault(layer.reason or "no reason recorded", []).append(layer.name)
        return dict(sorted(names.items(), key=lambda entry: -len(entry[1])))

    def float_rows(self) -> list[tuple[str, ...]]:
        """What stayed float as text, in the columns of `FLOAT_HEADER`: a row for each reason."""
        heavy, others = self.float_reasons(heavy=True), self.float_reasons(heavy=False)
        rows = []
        for reason, names in self.float_reasons().items():
            counts = (str(len(nodes.get(reason, ()))) for nodes in (heavy, others))
            rows.append((*counts, reason, ", ".join(names[:2]) + ", …" * (len(names) > 2)))
        return rows

    def op_counts(self) -> dict[str, tuple[int, int]]:
        """Per operator type, how many nodes run in int8 and how many there are."""
        total = Counter(layer.op_type for layer in self.layers)
        done = Counter(layer.op_type for layer in self.layers if layer.quantized)
        return {op_type: (done[op_type], total[op_type]) for op_type in total}

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values; infinite numbers become `None`."""
        return {"summary": self.summary()} | {
            entry.name: plain(getattr(self, entry.name)) for entry in fields(self)
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """`to_dict` as JSON text."""
        import json

        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    def _repr_html_(self) -> str:
        from rustq.page.facts import Facts
        from rustq.page.render import framed

        return framed(Facts(report=self))

    def __str__(self) -> str:
        rows = [
            (
                layer.name,
                layer.op_type,
                (layer.weights or "int8") if layer.quantized else "float",
                text.decibels(layer.weight_sqnr_db),
                text.decibels(layer.activation_sqnr_db),
                layer.remark,
            )
            for layer in self.layers
        ]
        header = ("layer", "op", "runs in", "weight SQNR", "output SQNR", "what was done, or why")
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([self.summary(), "", text.table(header, rows), *notes])

    def _count(self, name: str, plural: str, op_types: Sequence[str]) -> str:
        layers = [layer for layer in self.layers if layer.op_type in op_types]
        if not layers:
            return ""
        done = sum(layer.quantized for layer in layers)
        return f"{done} of {len(layers)} {name if len(layers) == 1 else plural}"

    def mac_share(self) -> float | None:
        """The share of multiply-accumulates with weights in int8, `None` if not all are known."""
        heavy = [layer for layer in self.layers if _is_heavy(layer)]
        macs = [layer.macs for layer in heavy if layer.macs is not None]
        if len(macs) != len(heavy) or not sum(macs):
            return None
        return sum(layer.macs or 0 for layer in heavy if layer.quantized) / sum(macs)


def _is_heavy(layer: LayerReport) -> bool:
    return any(layer.op_type in op_types for _, _, op_types in FAMILIES)


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
