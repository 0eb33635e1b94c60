"""Memory and time of quantizing models of gigabytes.

    python benches/large.py [--gigabytes 1.5 8] [--rounds 3] [--folder .] [--peer]

For each size a model of random float32 weights is written: products of 4096 x 4096 in a chain, and
an embedding table of an eighth of the size. Up to 2 GB the weights are in the model's file, above
in one beside it. A fresh process does a piece of work and saves the result; after it, another one
reads the same input once and writes as many bytes as that result has, with a sync: the unit of
time. The input is in the page cache if it fits there; medians.

Memory is sampled every 2 ms from `/proc` (Linux): `anonymous` is what the process itself takes
(RssAnon + RssShmem), without the pages of mapped files, which belong to the page cache; `resident`
is the peak of everything, mapped pages included (VmHWM). Both are beyond `import`: what the process
has before it opens the model is subtracted.

`dynamic` quantizes without data, `int8` and `int4` the weights alone, `static` calibrates on two
samples and runs the float model for that; `fold` writes the model as large as it was. `--peer` lets
onnxruntime's `quantize_dynamic` do what `dynamic` does, which takes three times the model's size in
memory. A result above 2 GiB has to be in two files by itself.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markdown import table
from onnx import TensorProto, helper

WIDTH = 4096
PROTOBUF_LIMIT = 2**31 - 1

BEGIN = """
import sys, time
import rustq
def ready():
    global wall, cpu
    print("ready", flush=True)
    sys.stdin.readline()
    wall, cpu = time.perf_counter(), time.process_time()
"""
END = """
print(time.perf_counter() - wall, time.process_time() - cpu)
"""
WORK = {
    "open": """
ready()
rustq.load(sys.argv[1])
""",
    "dynamic": """
ready()
rustq.quantize(sys.argv[1]).save(sys.argv[2])
""",
    "int8": """
config = rustq.QuantConfig(activations="float32")
ready()
rustq.quantize(sys.argv[1], config=config).save(sys.argv[2])
""",
    "int4": """
config = rustq.QuantConfig(weights="int4")
ready()
rustq.quantize(sys.argv[1], config=config).save(sys.argv[2])
""",
    "fold": """
ready()
rustq.fold(sys.argv[1]).save(sys.argv[2])
""",
    "static": """
import numpy as np
import onnxruntime
feeds = [np.array([[1, 2, number]]) for number in range(2)]
ready()
rustq.quantize(sys.argv[1], feeds, config=rustq.QuantConfig(method="minmax")).save(sys.argv[2])
""",
    "peer": """
from onnxruntime.quantization import QuantType, quantize_dynamic
ready()
quantize_dynamic(sys.argv[1], sys.argv[2], per_channel=True, weight_type=QuantType.QInt8,
                 use_external_data_format=sys.argv[3] == "1")
""",
    "once": """
import os
part = bytearray(1 << 24)
ready()
for name in sys.argv[4:]:
    with open(name, "rb", buffering=0) as file:
        while file.readinto(part):
            pass
with open(sys.argv[2], "wb", buffering=0) as file:
    left = int(sys.argv[3])
    while left:
        left -= file.write(memoryview(part)[:left])
    os.fsync(file.fileno())
""",
}


DEFAULT = ["open", "dynamic", "int8", "int4", "fold", "static"]


@dataclass
class Cost:
    """Of one process: wall and CPU seconds, and bytes beyond those it began with."""

    wall: float
    cpu: float
    anonymous: int
    resident: int


def status(pid: int) -> dict[str, int]:
    """The sizes in `/proc/PID/status`, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pairs = (line.split(":", 1) for line in lines if line.endswith(" kB"))
    return {name: 1024 * int(value.split()[0]) for name, value in pairs}


def own(sizes: dict[str, int]) -> int:
    """Memory that is not that of a file."""
    return sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0)


def cost(work: str, *arguments: object) -> Cost:
    """Runs a piece of work in a process of its own."""
    command = [sys.executable, "-c", BEGIN + WORK[work] + END, *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"{work} failed")
        before = status(process.pid)
        anonymous = resident = 0
        process.stdin.write("\n")
        process.stdin.flush()
        while process.poll() is None:
            now = status(process.pid)
            anonymous = max(anonymous, own(now) - own(before))
            resident = max(resident, now.get("VmHWM", 0) - before["VmHWM"])
            time.sleep(0.002)
        if process.returncode:
            raise SystemExit(f"{work} failed")
        wall, cpu = map(float, process.stdout.read().split())
    return Cost(wall, cpu, anonymous, resident)


def write_model(path: Path, size: int) -> list[Path]:
    """Writes a model with weights of about `size` bytes; returns its files."""
    rows = size // 8 // (4 * WIDTH)
    layers = max((size - size // 8) // (4 * WIDTH * WIDTH), 1)
    shapes = [("table", (rows, WIDTH))] + [(f"w{i}", (WIDTH, WIDTH)) for i in range(layers)]
    nodes = [helper.make_node("Gather", ["table", "ids"], ["x0"], name="embedding")]
    for i in range(layers):
        nodes.append(
            helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"product{i}")
        )
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 3])
    out = helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, [1, 3, WIDTH])
    graph = helper.make_graph(nodes, "large", [ids], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    beside = path.with_name("weights.bin")
    random = np.random.default_rng(0)
    apart = size > PROTOBUF_LIMIT - (1 << 24)
    with beside.open("wb") as file:
        for name, shape in shapes:
            tensor = model.graph.initializer.add(name=name, dims=shape, data_type=TensorProto.FLOAT)
            start = file.tell()
            for first in range(0, shape[0], WIDTH):
                part = random.standard_normal((min(WIDTH, shape[0] - first), WIDTH), np.float32)
                part /= np.float32(WIDTH**0.5)
                if apart:
                    file.write(part.data)
                else:
                    tensor.raw_data += part.tobytes()
            if apart:
                tensor.data_location = TensorProto.EXTERNAL
                entries = {"location": beside.name, "offset": start, "length": file.tell() - start}
                for key, value in entries.items():
                    tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString())
    if apart:
        return [path, beside]
    beside.unlink()
    return [path]


def measure(folder: Path, gigabytes: float, works: list[str], rounds: int) -> list[list[str]]:
    """A row for each piece of work on a model of this size."""
    source, result = folder / "large.onnx", folder / "out" / "int8.onnx"
    result.parent.mkdir()
    files = write_model(source, round(gigabytes * 1e9))
    size = sum(file.stat().st_size for file in files)
    large = int(size > PROTOBUF_LIMIT)
    taken: dict[str, list[tuple[Cost, Cost]]] = {work: [] for work in works}
    written = dict.fromkeys(works, 0)
    for _ in range(rounds):
        for work, costs in taken.items():
            done = cost(work, source, result, large)
            sizes = _emptied(result.parent)
            written[work] = sum(sizes)
            if written[work] > PROTOBUF_LIMIT and len(sizes) != 2:
                raise SystemExit(f"{work}: a result above 2 GiB is not in two files: {sizes}")
            once = cost("once", source, result, written[work], *files)
            _emptied(result.parent)
            costs.append((done, once))
            print(work, written[work], done, f"once {once.wall:.2f} s", file=sys.stderr, flush=True)
    for file in files:
        file.unlink()
    result.parent.rmdir()
    rows = []
    for work, costs in taken.items():
        unit = statistics.median(once.wall for _, once in costs)
        wall, cpu, anonymous, resident = (
            statistics.median(getattr(done, field) for done, _ in costs)
            for field in ("wall", "cpu", "anonymous", "resident")
        )
        figures = (f"{wall:.2f}", f"{unit:.2f}", f"{wall / unit:.2f}", f"{cpu:.2f}")
        megabytes = [f"{value / 1e6:.0f}" for value in (anonymous, resident)]
        rows.append([f"{size / 1e9:.2f}", work, f"{written[work] / 1e9:.2f}", *figures, *megabytes])
    return rows


def _emptied(folder: Path) -> list[int]:
    """Removes the files that were written; returns how large they were."""
    sizes = []
    for file in folder.iterdir():
        sizes.append(file.stat().st_size)
        file.unlink()
    return sizes


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gigabytes", nargs="+", type=float, default=[1.5, 8])
    parser.add_argument("--work", nargs="+", choices=WORK, default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(), help="with room for twice the size")
    parser.add_argument("--peer", action="store_true", help="onnxruntime's quantize_dynamic too")
    options = parser.parse_args()
    works = [*options.work, *(["peer"] if options.peer else [])]
    header = ["GB", "work", "out GB", "s", "once s", "x once", "CPU s"]
    header += ["anonymous MB", "resident MB"]
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for gigabytes in options.gigabytes:
            rows += measure(Path(folder), gigabytes, works, options.rounds)
    print(table(header, rows))


if __name__ == "__main__":
    main()
