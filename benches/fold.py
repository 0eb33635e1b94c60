"""Folding against the simplifiers people use: time, what is left, and whether the result is right.

python benches/fold.py                # exports torchvision's networks first (needs torch)
python benches/fold.py --models DIR   # networks exported before, see torchvision_models.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime as ort
import simplifiers
import torchvision_models
from onnx import TensorProto, helper, numpy_helper

TIMED = ("mobilenet_v2", "resnet50", "vit_b_16")


def median(run: Callable[[], object], repeats: int) -> float:
    """Seconds of wall clock, the first run left out."""
    return medians(run, repeats, time.perf_counter)[0]


def medians(
    run: Callable[[], object], repeats: int, *clocks: Callable[[], float]
) -> tuple[float, ...]:
    """Seconds by each clock, the first run left out."""
    times = []
    for _ in range(repeats + 1):
        started = [clock() for clock in clocks]
        run()
        times.append([clock() - start for clock, start in zip(clocks, started, strict=True)])
    return tuple(statistics.median(column) for column in zip(*times[1:], strict=True))


def outputs(model: Path) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    feeds = {i.name: random.normal(size=i.shape).astype(np.float32) for i in session.get_inputs()}
    return session.run(None, feeds)


def difference(expected: list[np.ndarray], found: list[np.ndarray]) -> float:
    """Largest deviation, relative to the largest value."""
    pairs = zip(expected, found, strict=True)
    return max(float(np.abs(x - y).max() / np.abs(x).max()) for x, y in pairs)


def counted(path: Path) -> tuple[int, int]:
    nodes = onnx.load(path, load_external_data=False).graph.node
    return sum(node.op_type == "BatchNormalization" for node in nodes), len(nodes)


def residual_net(blocks: int) -> bytes:
    """Conv, BatchNormalization, Relu, Add, over and over: four nodes a block."""
    random, nodes, constants = np.random.default_rng(0), [], []

    def constant(name: str, *shape: int) -> str:
        values = random.uniform(0.5, 1, shape).astype(np.float32)
        constants.append(numpy_helper.from_array(values, name))
        return name

    x = "x"
    for i in range(blocks):
        parameters = [constant(f"{p}{i}", 8) for p in ("scale", "bias", "mean", "var")]
        nodes += [
            helper.make_node("Conv", [x, constant(f"w{i}", 8, 8, 1, 1)], [f"conv{i}"]),
            helper.make_node("BatchNormalization", [f"conv{i}", *parameters], [f"norm{i}"]),
            helper.make_node("Relu", [f"norm{i}"], [f"relu{i}"]),
            helper.make_node("Add", [x, f"relu{i}"], [f"add{i}"]),
        ]
        x = f"add{i}"
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8, 4, 4]) for n in ("x", x)]
    graph = helper.make_graph(nodes, "net", sides[:1], sides[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def left_over(folder: Path, target: Path) -> None:
    print("\n| network | BatchNormalization | nodes | largest relative difference |")
    print("|---|---|---|---|")
    for name in torchvision_models.NAMES:
        source = folder / f"{name}.onnx"
        simplifiers.rustq(source, target)
        (norms, nodes), (norms_left, nodes_left) = counted(source), counted(target)
        error = difference(outputs(source), outputs(target))
        print(f"| {name} | {norms} → {norms_left} | {nodes} → {nodes_left} | {error:.1e} |")


def beside(taken: tuple[float, ...], own: tuple[float, ...]) -> str:
    """Cells of a table: milliseconds, and how many times rustq's they are."""
    return " | ".join(f"{t * 1e3:.0f} | {t / o:.1f}" for t, o in zip(taken, own, strict=True))


def on_the_disk(data: bytes, target: Path) -> None:
    """What no tool can be faster than that waits until its file is on the disk."""
    with target.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def timings(folder: Path, target: Path, repeats: int) -> None:
    print(f"\nload → fold → save, clock and processor, one run; {simplifiers.versions()}")
    print("rustq waits until the file is on the disk, the others do not.\n")
    print("| network | tool | ms | ÷ rustq | CPU ms | ÷ rustq | BatchNormalization left |")
    print("|---|---|---|---|---|---|---|")
    for name in TIMED:
        source, own = folder / f"{name}.onnx", ()
        for tool, simplify in simplifiers.TOOLS.items():
            target.unlink(missing_ok=True)
            if hasattr(os, "sync"):
                os.sync()  # what others wrote is not to be waited for
            try:
                clocks = time.perf_counter, time.process_time
                taken = medians(lambda s=simplify, p=source: s(p, target), repeats, *clocks)
            except Exception as error:  # whatever a peer raises is its result
                print(f"| {name} | {tool} | {type(error).__name__} | | | | |")
                continue
            own = own or taken
            print(f"| {name} | {tool} | {beside(taken, own)} | {counted(target)[0]} |", flush=True)
            if taken is own:
                write = partial(on_the_disk, target.read_bytes(), target)
                cells = beside(medians(write, repeats, *clocks), own)
                print(f"| {name} | its bytes, only written | {cells} | |", flush=True)


def limits(folder: Path, repeats: int) -> None:
    import rustq

    print("\n| network | fold alone ÷ one copy of the file's bytes in memory |\n|---|---|")
    for name in TIMED:
        model = rustq.load(folder / f"{name}.onnx")
        data = np.fromfile(folder / f"{name}.onnx", np.uint8)
        ratio = median(lambda m=model: rustq.fold(m), repeats) / median(data.copy, repeats)
        print(f"| {name} | {ratio:.1f} |")
    per_node = []
    for blocks in (50, 500):
        model = rustq.load(residual_net(blocks))
        per_node.append(median(lambda m=model: rustq.fold(m), repeats) / (4 * blocks))
    print(f"\ntime per node, 2,000 nodes ÷ 200 nodes: {per_node[1] / per_node[0]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, help="folder of exported networks")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with TemporaryDirectory() as scratch:
        folder = options.models or Path(scratch)
        for name in torchvision_models.NAMES:
            if not (folder / f"{name}.onnx").exists():
                torchvision_models.export(name, folder / f"{name}.onnx")
        target = Path(scratch) / "folded.onnx"
        left_over(folder, target)
        timings(folder, target, options.repeats)
        limits(folder, options.repeats)


if __name__ == "__main__":
    main()
