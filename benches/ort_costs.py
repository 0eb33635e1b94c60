"""Measure what ONNX Runtime (CPU, one thread) pays per operator in float and in int8 QDQ form.

The static cost model needs time = a + b*MACs + c*elements + d*weights per operator and domain.
This script builds small models, times them and fits those constants. Convolutions and matrix
products are timed as the difference of a long and a short chain, so that graph inputs, outputs and
layout changes cancel out; the rest is read from ONNX Runtime's per-node profile: ns per element
entering the operator at four sizes (first layer, a 3x3 stride-2 Conv of an image: leaving it).

    python benches/ort_costs.py [--seconds 0.3]

Prints constants (ns; "element" is the mean of in and out), median and worst error, raw points.
Products: qlinear (Q at the output), tofloat (Q, product, float out), qgemm (the same with a bias),
dynamic, nbits (only weights quantized). Concat is measured with equal scales on all its inputs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(0)
SHORT, LONG = 2, 8  # chain lengths; their time difference is divided by LONG - SHORT
Step = Callable[["Graph", str], str]
Make = Callable[["Graph", str, int], str]  # graph, input tensor, channels -> output tensor
Point = tuple[str, list[float], float]  # label, features, nanoseconds


class Graph:
    """A tiny ONNX builder; activations are uint8 per tensor, weights int8 per output channel."""

    def __init__(self, int8: bool, *shape: int) -> None:
        self.int8 = int8
        self.nodes: list[onnx.NodeProto] = []
        self.inits: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]

    def const(self, value: object, dtype: type = np.float32) -> str:
        name = f"c{len(self.inits)}"
        self.inits.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, **attrs: Any) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attrs))
        return name

    def dq(self, x: str, scale: Any, zero: Any, dtype: type, axis: int = 0) -> str:
        inputs = (x, self.const(scale), self.const(zero, dtype))
        return self.op("DequantizeLinear", *inputs, axis=axis)

    def q(self, x: str, scale: float = 0.05, zero: int = 128, back: float = 0) -> str:
        """Quantize and dequantize again (with the scale `back`), if this is an int8 graph."""
        if not self.int8:
            return x
        x = self.op("QuantizeLinear", x, self.const(scale), self.const(zero, np.uint8))
        return self.dq(x, back or scale, zero, np.uint8)

    def weight(self, *shape: int, axis: int) -> str:
        if not self.int8:
            return self.const(RNG.standard_normal(shape) * np.sqrt(shape[axis] / np.prod(shape)))
        w, n = self.const(RNG.integers(-127, 128, shape), np.int8), shape[axis]
        # Without an explicit zero point ONNX Runtime does not turn a Gemm into QGemm.
        return self.dq(w, np.full(n, 0.01), np.zeros(n), np.int8, axis)

    def bias(self, n: int) -> str:
        if not self.int8:
            return self.const(RNG.standard_normal(n))
        b, scale = self.const(RNG.integers(-999, 999, n), np.int32), np.float32(0.05)
        return self.dq(b, np.full(n, scale * np.float32(0.01)), np.zeros(n), np.int32)

    def conv(self, x: str, c: int, n: int, k: int = 1, group: int = 1, stride: int = 1) -> str:
        w, b = self.weight(n, c // group, k, k, axis=0), self.bias(n)
        attrs = {"kernel_shape": [k, k], "pads": [k // 2] * 4, "strides": [stride] * 2}
        return self.q(self.op("Relu", self.op("Conv", x, w, b, group=group, **attrs)), 0.05, 0)

    def product(self, x: str, k: int, n: int, form: str) -> str:
        if form == "dynamic":
            q, s, z = outs = [x + "q", x + "s", x + "z"]
            self.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], outs))
            w = self.const(RNG.integers(-127, 128, (k, n)), np.int8)
            y = self.op("Cast", self.op("MatMulInteger", q, w, z), to=1)
            return self.op("Mul", y, self.op("Mul", s, self.const(np.full(n, 0.001))))
        if form == "qgemm":
            return self.op("Gemm", self.q(x), self.weight(k, n, axis=1), self.bias(n))
        y = self.op("MatMul", self.q(x) if form == "tofloat" else x, self.weight(k, n, axis=1))
        return self.q(y) if form == "qlinear" else y

    def session(self, output: str, prof: str = "") -> tuple[ort.InferenceSession, ort.IOBinding]:
        out = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "g", self.inputs, [out], self.inits)
        opsets = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_profiling, options.profile_file_prefix = bool(prof), prof
        s = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        io = s.io_binding()
        value = RNG.normal(0, 2, s.get_inputs()[0].shape).astype(np.float32)
        io.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(value))
        io.bind_output(output)
        return s, io


def chain_cost(step: Step, int8: bool, shape: tuple[int, ...], first_q: bool, sec: float) -> float:
    """CPU ns of one step: low decile of each length, interleaved so that noise hits both alike."""
    pool = []
    for links in (SHORT, LONG):
        g = Graph(int8, *shape)
        x = g.q("x") if first_q else "x"
        for _ in range(links):
            x = step(g, x)
        pool.append((*g.session(x), list[int]()))
    end = time.perf_counter() + 2 * sec
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
        s, io = graph.session(output, f"{folder}/p")
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            s.run_with_iobinding(io)
        events = json.loads(Path(s.end_profiling()).read_text())
    seen = defaultdict[tuple[str, str], list[float]](list)
    for e in events:
        if e.get("cat") == "Node" and e["name"].endswith("_kernel_time"):
            seen[e["args"]["op_name"], e["name"]].append(e["dur"] * 1e3)
    low = {key: np.mean(np.sort(t)[: max(1, len(t) // 4)]) for key, t in seen.items()}
    return {kind: float(np.mean([t for (k, _), t in low.items() if k == kind])) for kind, _ in low}


def fit(points: list[Point]) -> tuple[np.ndarray, float, float]:
    """Non-negative least squares of the relative error: constants, median and worst |error|."""
    a = np.array([f for _, f, _ in points]) / np.array([[t] for _, _, t in points])
    best, best_loss = np.zeros(a.shape[1]), np.inf
    for mask in itertools.product((False, True), repeat=a.shape[1]):
        coef = np.zeros(a.shape[1])
        coef[list(mask)] = np.linalg.lstsq(a[:, mask], np.ones(len(a)), rcond=None)[0]
        loss = float(((a @ coef - 1) ** 2).sum())
        if (coef >= 0).all() and loss < best_loss:
            best, best_loss = coef, loss
    error = np.abs(a @ best - 1)
    return best, float(np.median(error)), float(error.max())


def conv_point(sec: float, int8: bool, dw: bool, c: int, n: int, k: int, hw: int) -> Point:
    """A step is the pair c -> n -> c; a depthwise Conv reports pixels in place of weights."""
    group, px, shape = c if dw else 1, hw * hw, (1, c, hw, hw)
    pair: Step = lambda g, x: g.conv(g.conv(x, c, n, k, group), n, c, k, group)  # noqa: E731
    weights = c // group * n * k * k
    row: list[float] = [1, weights * px, (c + n) / 2 * px, px if dw else weights]
    return f"{c}-{n} k{k} {hw}x{hw}", row, chain_cost(pair, int8, shape, True, sec) / 2


def matmul_point(sec: float, form: str, m: int, k: int, n: int) -> Point:
    pair: Step = lambda g, x: g.product(g.product(x, k, n, form), n, k, form)  # noqa: E731
    t = chain_cost(pair, form != "float", (m, k), form == "qlinear", sec) / 2
    return f"M{m} {k}-{n}", [1, m * k * n, m * (k + n) / 2, k * n], t


def act(kind: str, other: int = 0, **attrs: Any) -> Make:
    """An operator of x and of `other` convolutions of x."""
    return lambda g, x, c: g.q(g.op(kind, x, *[g.conv(x, c, c)] * other, **attrs), 0.05, 0)


def hardswish(g: Graph, x: str, c: int) -> str:
    """In int8: a saturating Add makes clip(x + 3, 0, 6), read back with a scale 6 times smaller."""
    if not g.int8:
        return g.op("Mul", x, g.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))
    three = g.dq(g.const(255, np.uint8), 3 / 255, 0, np.uint8)
    return g.q(g.op("Mul", x, g.q(g.op("Add", x, three), 6 / 255, 0, 1 / 255)))


UP = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
OPS: dict[str, Make] = {
    "First layer": lambda g, x, c: g.conv(x, 3, c, 3, stride=2), "Add": act("Add", 1),
    "Mul": act("Mul", 1), "Concat": act("Concat", 1, axis=1), "Sigmoid": act("Sigmoid"),
    "LeakyRelu": act("LeakyRelu", alpha=0.1), "HardSigmoid": act("HardSigmoid"),
    "SiLU": lambda g, x, c: g.q(g.op("Mul", x, g.q(g.op("Sigmoid", x), 1 / 255, 0))),
    "HardSwish": hardswish, "MaxPool": act("MaxPool", kernel_shape=[5, 5], pads=[2] * 4),
    "AveragePool": act("AveragePool", kernel_shape=[3, 3], pads=[1] * 4),
    "Resize": lambda g, x, c: g.q(g.op("Resize", x, "", g.const([1, 1, 2, 2]), **UP), 0.05, 0),
    "GlobalAveragePool": act("GlobalAveragePool"), "ReduceMean": act("ReduceMean", axes=[2, 3]),
}  # fmt: skip
CONVS = {  # channels in - out - kernel - size
    "1x1": "16-96-1-112 24-144-1-56 32-192-1-28 64-384-1-14 160-960-1-7 256-64-1-56 40-120-1-28",
    "3x3": "16-16-3-112 24-48-3-80 32-32-3-56 64-64-3-56 128-128-3-28 256-256-3-14",
    "dw C%16=0": "16-16-3-112 96-96-3-56 64-64-5-28 144-144-5-28 384-384-3-14 960-960-3-7",
    "dw C%16!=0": "24-24-3-56 40-40-5-28 72-72-5-28 88-88-3-28 120-120-5-28 200-200-3-14",
}
MATMUL = "1-256-256 1-512-2048 8-256-256 40-128-128 40-120-480 64-768-768 197-192-768 480-64-64"


def rows(text: str) -> list[list[int]]:
    return [[int(v) for v in item.split("-")] for item in text.split()]


def report(label: str, points: list[Point]) -> None:
    (a, b, c, d), median, worst = fit(points)
    terms = f"{a:.0f} + {b:.5f}/MAC + {c:.4f}/element + {d:.4f}/weight (dw: pixel)"
    print(f"{label}: {terms}, error {median:.0%} to {worst:.0%}")
    for name, row, t in points:
        print(f"    {name:20s} {t / 1e3:9.1f} us  {t / row[1]:.5f} ns/MAC", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.3, help="time spent on each model")
    sec = parser.parse_args().seconds
    names = {False: "float", True: "int8"}
    for (label, text), int8 in itertools.product(CONVS.items(), names):
        dw = label.startswith("dw")
        report(f"{label} {names[int8]}", [conv_point(sec, int8, dw, *r) for r in rows(text)])
    for form in ("float", "qlinear", "tofloat", "qgemm", "dynamic", "nbits"):
        report(f"matmul {form}", [matmul_point(sec, form, *r) for r in rows(MATMUL)])
    for (label, make), int8 in itertools.product(OPS.items(), names):
        cost, first = defaultdict[str, list[str]](list), label == "First layer"
        for c, hw in ((16, 14), (64, 28), (64, 56), (96, 112)):
            g = Graph(int8, 1, 3 if first else c, hw * (1 + first), hw * (1 + first))
            y = make(g, g.q("x") if first else g.conv(g.q("x"), c, c), c)
            y = y if first else g.conv(y, 2 * c if label == "Concat" else c, c)
            for kind, t in profile(g, y, sec).items():
                if first or kind not in ("Conv", "QLinearConv"):
                    cost[kind].append(f"{t / (c * hw * hw):.3f}")
        text = ", ".join(f"{kind} {'/'.join(v)}" for kind, v in cost.items())
        print(f"{label} {names[int8]}, ns per element: {text}", flush=True)


if __name__ == "__main__":
    main()
