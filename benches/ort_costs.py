"""Measure what ONNX Runtime (CPU, one thread) pays per operator in float and in int8 QDQ form.

The static cost model needs time = a + b*MACs + c*elements + d*weights per operator and domain. This script
builds small models, times them and fits those constants. Convolutions and matrix products are timed as the
difference between a long and a short chain, so that graph inputs, outputs and layout changes cancel out;
the rest is read from ONNX Runtime's per-node profile: ns per element entering the operator, at four sizes
(for the first layer, the 3x3 stride-2 convolution of an image: per element leaving it).

    python benches/ort_costs.py [--seconds 0.3]

Prints constants (ns; "element" is the mean of in and out), median and worst error, raw points. Products: qlinear (Q
at the output), tofloat (Q, product, float out), qgemm (the same with bias), dynamic, nbits (only weights quantized).
Concat and Add are measured with equal scales; a Concat that must rescale its inputs costs several times more.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

RNG, SHORT, LONG = np.random.default_rng(0), 2, 8  # chain lengths; the difference is divided by LONG - SHORT
Make = Callable[["Graph", str, int], str]  # graph, input tensor, channels -> output tensor
Point = tuple[str, list[float], float]  # label, features, nanoseconds


class Graph:
    """A tiny ONNX builder; activations are uint8 per tensor, weights int8 per output channel."""

    def __init__(self, int8: bool, *shape: int) -> None:
        self.int8 = int8
        self.nodes: list[onnx.NodeProto] = []
        self.inits: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]

    def const(self, value: object, dtype: type) -> str:
        name = f"c{len(self.inits)}"
        self.inits.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, **attrs: Any) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attrs))
        return name

    def q(self, x: str, scale: float = 0.05, zero: int = 128) -> str:
        """Quantize and dequantize again, if this is an int8 graph."""
        if not self.int8:
            return x
        s, z = self.const(scale, np.float32), self.const(zero, np.uint8)
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, s, z), s, z)

    def weight(self, shape: tuple[int, ...], axis: int) -> str:
        if not self.int8:
            return self.const(RNG.standard_normal(shape) / np.sqrt(np.prod(shape) / shape[axis]), np.float32)
        # Without an explicit zero point ONNX Runtime does not turn a Gemm into QGemm.
        s, z = self.const(np.full(shape[axis], 0.01), np.float32), self.const(np.zeros(shape[axis]), np.int8)
        return self.op("DequantizeLinear", self.const(RNG.integers(-127, 128, shape), np.int8), s, z, axis=axis)

    def bias(self, n: int) -> str:
        if not self.int8:
            return self.const(RNG.standard_normal(n), np.float32)
        scale = self.const(np.full(n, np.float32(0.05) * np.float32(0.01)), np.float32)
        return self.op("DequantizeLinear", self.const(RNG.integers(-999, 999, n), np.int32), scale, axis=0)

    def conv(self, x: str, cin: int, cout: int, k: int = 1, group: int = 1, stride: int = 1) -> str:
        w, b = self.weight((cout, cin // group, k, k), 0), self.bias(cout)
        y = self.op("Conv", x, w, b, kernel_shape=[k, k], pads=[k // 2] * 4, group=group, strides=[stride] * 2)
        return self.q(self.op("Relu", y), 0.05, 0)

    def product(self, x: str, k: int, n: int, form: str) -> str:
        if form == "dynamic":
            self.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], [x + "q", x + "s", x + "z"]))
            w = self.const(RNG.integers(-127, 128, (k, n)), np.int8)
            y = self.op("Cast", self.op("MatMulInteger", x + "q", w, x + "z"), to=1)
            return self.op("Mul", y, self.op("Mul", x + "s", self.const(np.full(n, 0.001), np.float32)))
        if form == "qgemm":
            return self.op("Gemm", self.q(x), self.weight((k, n), 1), self.bias(n))
        y = self.op("MatMul", self.q(x) if form == "tofloat" else x, self.weight((k, n), 1))
        return self.q(y) if form == "qlinear" else y

    def session(self, output: str, profile: str = "") -> tuple[ort.InferenceSession, ort.IOBinding]:
        out = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "g", self.inputs, [out], self.inits)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        s = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        io = s.io_binding()
        value = RNG.normal(0, 2, s.get_inputs()[0].shape).astype(np.float32)
        io.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(value))
        io.bind_output(output)
        return s, io


def chain_cost(build: Callable[[int], tuple[Graph, str]], seconds: float) -> float:
    """CPU time of one link (ns): low decile of each length, runs interleaved so that noise hits both alike."""
    pool = [(*graph.session(out), list[int]()) for graph, out in map(build, (SHORT, LONG))]
    end = time.perf_counter() + 2 * seconds
    while time.perf_counter() < end or len(pool[0][2]) < 8:
        for s, io, seen in pool:
            s.run_with_iobinding(io)  # bring this model back into the caches
            t = time.thread_time_ns()
            s.run_with_iobinding(io)
            seen.append(time.thread_time_ns() - t)
    short, long = (float(np.quantile(seen, 0.1)) for _, _, seen in pool)
    return (long - short) / (LONG - SHORT)


def profile(graph: Graph, output: str, seconds: float) -> dict[str, float]:
    """Kernel time (ns) per operator type; low quartile over runs, mean over nodes of one type."""
    with tempfile.TemporaryDirectory() as folder:
        s, io = graph.session(output, os.path.join(folder, "p"))
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            s.run_with_iobinding(io)
        with open(s.end_profiling()) as f:
            events = json.load(f)
    seen: dict[tuple[str, str], list[float]] = defaultdict(list)
    for e in events:
        if e.get("cat") == "Node" and e["name"].endswith("_kernel_time"):
            seen[e["args"]["op_name"], e["name"]].append(e["dur"] * 1e3)
    kinds = defaultdict[str, list[float]](list)
    for (kind, _), times in seen.items():
        kinds[kind].append(float(np.mean(np.sort(times)[: max(1, len(times) // 4)])))
    return {kind: float(np.mean(times)) for kind, times in kinds.items()}


def fit(points: list[Point]) -> tuple[np.ndarray, float, float]:
    """Non-negative least squares on relative error; returns constants, median and worst |error|."""
    a = np.array([f for _, f, _ in points]) / np.array([[t] for _, _, t in points])
    best, best_loss = np.zeros(a.shape[1]), np.inf
    for mask in itertools.product((False, True), repeat=a.shape[1]):
        coef = np.zeros(a.shape[1])
        coef[list(mask)] = np.linalg.lstsq(a[:, mask], np.ones(len(a)), rcond=None)[0]
        loss = float(((a @ coef - 1) ** 2).sum())
        if (coef >= 0).all() and loss < best_loss:
            best, best_loss = coef, loss
    return best, float(np.median(np.abs(a @ best - 1))), float(np.abs(a @ best - 1).max())


def conv_point(int8: bool, c: int, n: int, k: int, hw: int, dw: bool, seconds: float) -> Point:
    """One link is the pair c -> n -> c; a depthwise convolution reports pixels in place of weights."""

    def build(links: int) -> tuple[Graph, str]:
        g = Graph(int8, 1, c, hw, hw)
        x = g.q("x")
        for _ in range(links):
            x = g.conv(g.conv(x, c, n, k, c if dw else 1), n, c, k, c if dw else 1)
        return g, x

    px, weights = hw * hw, (1 if dw else c) * n * k * k
    row: list[float] = [1, weights * px, (c + n) / 2 * px, px if dw else weights]
    return f"{c}-{n} k{k} {hw}x{hw}", row, chain_cost(build, seconds) / 2


def matmul_point(form: str, m: int, k: int, n: int, seconds: float) -> Point:
    def build(links: int) -> tuple[Graph, str]:
        g = Graph(form != "float", m, k)
        x = g.q("x") if form == "qlinear" else "x"
        for _ in range(links):
            x = g.product(g.product(x, k, n, form), n, k, form)
        return g, x

    return f"M{m} {k}-{n}", [1, m * k * n, m * (k + n) / 2, k * n], chain_cost(build, seconds) / 2


def act(kind: str, two: bool = False, **attrs: Any) -> Make:
    return lambda g, x, c: g.q(g.op(kind, x, *([g.conv(x, c, c)] * two), **attrs), 0.05, 0)


def hardswish(g: Graph, x: str, c: int) -> str:
    """In int8: a saturating Add makes clip(x + 3, 0, 6), read back with a scale six times smaller."""
    if not g.int8:
        return g.op("Mul", x, g.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))
    zero = g.const(0, np.uint8)
    three = g.op("DequantizeLinear", g.const(255, np.uint8), g.const(3 / 255, np.float32), zero)
    gate = g.op("QuantizeLinear", g.op("Add", x, three), g.const(6 / 255, np.float32), zero)
    return g.q(g.op("Mul", x, g.op("DequantizeLinear", gate, g.const(1 / 255, np.float32), zero)))


UP = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
TWO, FIVE = {"kernel_shape": [2, 2], "strides": [2, 2]}, {"kernel_shape": [5, 5], "pads": [2] * 4}
OPS: dict[str, Make] = {
    "First layer": lambda g, x, c: g.conv(x, 3, c, 3, stride=2), "Add": act("Add", True), "Mul": act("Mul", True),
    "Concat": act("Concat", True, axis=1), "Sigmoid": act("Sigmoid"), "LeakyRelu": act("LeakyRelu", alpha=0.1),
    "SiLU": lambda g, x, c: g.q(g.op("Mul", x, g.q(g.op("Sigmoid", x), 1 / 255, 0))), "HardSwish": hardswish,
    "HardSigmoid": act("HardSigmoid"), "Tanh": act("Tanh"), "Softmax": act("Softmax", axis=1),
    "MaxPool 2x2": act("MaxPool", **TWO), "MaxPool 5x5 s1": act("MaxPool", **FIVE),
    "AveragePool 2x2": act("AveragePool", **TWO), "AveragePool 5x5 s1": act("AveragePool", **FIVE),
    "GlobalAveragePool": act("GlobalAveragePool"), "ReduceMean": act("ReduceMean", axes=[2, 3]),
    "Resize": lambda g, x, c: g.q(g.op("Resize", x, "", g.const([1, 1, 2, 2], np.float32), **UP), 0.05, 0),
}  # fmt: skip
SHAPES = (
    "16-96-112 24-144-56 32-192-28 64-384-14 96-576-14 160-960-7 64-64-56 256-64-56 128-512-28 40-120-28",  # 1x1
    "16-16-112 24-48-80 32-32-56 64-64-56 128-128-28 256-256-14",  # 3x3: channels in, out, size; next two: c, k, size
    "16-3-112 32-3-112 96-3-56 64-5-28 144-5-28 240-5-14 192-3-28 384-3-14 672-5-14 960-3-7",
    "24-3-56 40-5-28 72-5-28 88-3-28 120-5-28 200-3-14",
    "1-256-256 1-512-2048 1-1280-1000 8-256-256 40-128-128 40-120-480 64-768-768 197-192-768 480-64-64",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.3, help="time spent on each model")
    sec = parser.parse_args().seconds

    def report(label: str, last: str, points: list[Point]) -> None:
        (a, b, c, d), median, worst = fit(points)
        print(f"{label}: {a:.0f} + {b:.5f}/MAC + {c:.4f}/element + {d:.4f}/{last}, error {median:.0%} to {worst:.0%}")
        for name, row, t in points:
            print(f"    {name:20s} {t / 1e3:9.1f} us  {t / row[1]:.5f} ns/MAC", flush=True)

    d1, d3, even, odd, mm = ([tuple(map(int, item.split("-"))) for item in text.split()] for text in SHAPES)
    for int8, name in ((False, "float"), (True, "int8")):
        for k, shapes in ((1, d1), (3, d3)):
            report(f"conv {k}x{k} {name}", "weight", [conv_point(int8, c, n, k, s, False, sec) for c, n, s in shapes])
        for rest, shapes in (("C%16=0", even), ("C%16!=0", odd)):
            report(f"depthwise {rest} {name}", "pixel", [conv_point(int8, c, c, k, s, True, sec) for c, k, s in shapes])
    for form in ("float", "qlinear", "tofloat", "qgemm", "dynamic", "nbits"):
        report(f"matmul {form}", "weight", [matmul_point(form, m, k, n, sec) for m, k, n in mm])
    for (label, make), int8 in itertools.product(OPS.items(), (False, True)):
        cost, first = defaultdict[str, list[str]](list), label == "First layer"
        for c, hw in ((16, 14), (64, 28), (64, 56), (96, 112)):
            g = Graph(int8, 1, 3 if first else c, hw * (1 + first), hw * (1 + first))
            y = make(g, g.q("x") if first else g.conv(g.q("x"), c, c), c)
            y = y if first else g.conv(y, 2 * c if label == "Concat" else c, c)
            for kind, t in profile(g, y, sec).items():
                if first or kind not in ("Conv", "QLinearConv"):
                    cost[kind].append(f"{t / (c * hw * hw):.3f}")
        text = ", ".join(f"{kind} {'/'.join(v)}" for kind, v in cost.items())
        print(label, f"{'int8' if int8 else 'float'}, ns per element: {text}", flush=True)


if __name__ == "__main__":
    main()
