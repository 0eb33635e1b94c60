"""What corrections would gain that rustq does not make.

    python benches/left_out.py                     # every case
    python benches/left_out.py mobilenet_v2

For every case, in dB:

- absorbed: how much smaller the range of a value would be if each channel were less by the least
  that it was seen to be (high-bias absorption, Nagel et al. 2019, section 4.1.3). Of the values
  that nothing but 1x1 convolutions and matrix products read: any other would read the padding as
  something else. Those that int8 layers read, and the largest of all.
- clipped: how much less the squared error of the int8 weights of a layer would be if the limit of
  each channel were the best of 1, 0.98 … 0.7 times its largest magnitude; the largest of all.
- biases in sequence: the output SQNR, with channels as they are, and if the bias of one layer after
  the other also took up the mean error that comes from the layers before it; on evaluation inputs,
  and on those samples that the biases were corrected for.

Prints a markdown table.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import onnx
import onnxruntime
import rustq
import zoo
from accuracy import sqnr
from markdown import table
from onnx import numpy_helper

HEADER = (
    "case",
    "absorbed in int8",
    "absorbed, most",
    "clipped, most",
    "SQNR",
    "in sequence",
    "on its own samples",
    "in sequence there",
)
PRODUCTS = ("Conv", "Gemm", "MatMul")
SAMPLES, EVALUATED = 16, 64


class Net:
    """A model whose values can be looked at."""

    def __init__(self, model: rustq.Model | rustq.QuantizedModel) -> None:
        self.proto = onnx.load_model_from_string(model.to_bytes())
        self.constants = {tensor.name: tensor for tensor in self.proto.graph.initializer}
        self.producer = {name: node for node in self.proto.graph.node for name in node.output}

    @cached_property
    def products(self) -> list[onnx.NodeProto]:
        """The nodes that multiply by stored weights."""
        nodes = self.proto.graph.node
        return [n for n in nodes if n.op_type in PRODUCTS and n.input[1] in self.constants]

    def weights(self, node: onnx.NodeProto) -> np.ndarray:
        """One row for each output channel."""
        values = numpy_helper.to_array(self.constants[node.input[1]]).astype(np.float64)
        by_row = node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)
        return values.reshape(len(values), -1) if by_row else np.moveaxis(values, -1, 0)

    def is_point(self, node: onnx.NodeProto) -> bool:
        """Whether each output position sees one position of the input."""
        dims = self.constants[node.input[1]].dims if node in self.products else (0, 0, 0)
        return node in self.products and (node.op_type != "Conv" or set(dims[2:]) == {1})

    def run(self, feeds: Iterable[zoo.Feed], names: Sequence[str] = ()) -> Iterator[zoo.Outputs]:
        """These values for each feed, or the outputs."""
        proto, options = self.proto, onnxruntime.SessionOptions()
        if names:
            proto = onnx.ModelProto.FromString(proto.SerializeToString())
            del proto.graph.output[:]
            proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in names)
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
        return (session.run(None, feed) for feed in feeds)


def decibels(ratio: float) -> float:
    """A ratio of powers."""
    return 10 * math.log10(ratio) if ratio > 0 else 0.0


def absorbed(net: Net, feeds: Sequence[zoo.Feed]) -> dict[str, float]:
    """By value, how much smaller its range would be."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in net.proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = [
        v for v, nodes in readers.items() if v in net.producer and all(map(net.is_point, nodes))
    ]
    low: dict[str, np.ndarray] = {}
    high: dict[str, np.ndarray] = {}
    for values in net.run(feeds, found) if found else ():
        for name, value in zip(found, values, strict=True):
            channel = 1 if readers[name][0].op_type == "Conv" else value.ndim - 1
            others = tuple(axis for axis in range(value.ndim) if axis != channel)
            low[name] = np.minimum(low.get(name, np.inf), value.min(others))
            high[name] = np.maximum(high.get(name, -np.inf), value.max(others))

    def gain(name: str) -> float:
        least, most = low[name], high[name]
        below = min(0.0, float(least.min()))
        less = float((most - np.maximum(least, 0)).max()) - below
        return 2 * decibels((max(0.0, float(most.max())) - below) / less) if less > 0 else 0.0

    return {name: gain(name) for name in found}


def clipped(weights: np.ndarray) -> float:
    """How much less the squared error of the int8 weights of a layer would be."""
    limits = np.abs(weights).max(axis=1, keepdims=True)
    limits[limits == 0] = 1
    errors = []
    for share in np.arange(1, 0.69, -0.02):
        scale = share * limits / 127
        integers = np.clip(np.rint(weights / scale), -127, 127)
        errors.append(((integers * scale - weights) ** 2).sum(axis=1))
    best = np.min(errors, axis=0).sum()
    return decibels(errors[0].sum() / best) if best > 0 else 0.0


def in_sequence(net: Net, exact: Net, feeds: Sequence[zoo.Feed]) -> None:
    """Corrects the bias of one layer after the other for what the layers before it leave."""
    twins = {node.name: node for node in exact.proto.graph.node}
    for node in net.proto.graph.node:
        bias = net.producer.get(node.input[2]) if len(node.input) > 2 else None
        if bias is None or bias.op_type != "DequantizeLinear" or node.name not in twins:
            continue
        pairs = zip(
            net.run(feeds, node.output[:1]),
            exact.run(feeds, twins[node.name].output[:1]),
            strict=True,
        )
        errors = [actual - expected for [actual], [expected] in pairs]
        others = tuple(axis for axis in range(errors[0].ndim) if axis != 1)
        mean = np.mean([error.mean(others) for error in errors], axis=0)
        integers, scale = (net.constants[name] for name in bias.input[:2])
        less = numpy_helper.to_array(integers) - np.rint(mean / numpy_helper.to_array(scale))
        integers.CopyFrom(numpy_helper.from_array(less.astype(np.int32), integers.name))


def measure(case: zoo.Case) -> tuple[str, ...]:
    """The row of a case."""
    print(case.name, file=sys.stderr, flush=True)
    few = case.calibration[:: max(1, len(case.calibration) // SAMPLES)][:SAMPLES]
    exact = Net(rustq.fold(case.model))
    config = rustq.QuantConfig(equalize=False)  # so that values are what they are in float
    made = rustq.quantize(case.model, case.calibration, config=config)
    read = {t.name for layer in made.report.layers if layer.quantized for t in layer.inputs}
    gains = absorbed(exact, few)
    sets = (case.evaluation[:EVALUATED], few)
    references = [list(exact.run(inputs)) for inputs in sets]
    net = Net(made)

    def noise() -> list[float]:
        pairs = zip(references, sets, strict=True)
        return [sqnr(reference, list(net.run(inputs))) for reference, inputs in pairs]

    before = noise()
    in_sequence(net, exact, few)
    after = noise()
    figures = (
        max((gain for name, gain in gains.items() if name in read), default=0.0),
        max(gains.values(), default=0.0),
        max(clipped(exact.weights(node)) for node in exact.products),
        *(figure for pair in zip(before, after, strict=True) for figure in pair),
    )
    return case.name, *(f"{figure:.2f}" for figure in figures)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(zoo.CASES)}")
    parser.add_argument("--cache", help=f"downloads; else ${zoo.CACHE_VARIABLE}, else cache/")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(zoo.CASES):
        parser.error(f"unknown case: {', '.join(sorted(unknown))}")
    store = zoo.Store(options.cache)
    print(table(HEADER, [measure(zoo.load(name, store)) for name in options.cases or zoo.CASES]))


if __name__ == "__main__":
    main()
