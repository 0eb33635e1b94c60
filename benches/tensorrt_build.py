"""NVIDIA's own ONNX parser and builder on model files, without a GPU.

    python benches/tensorrt_build.py model.onnx …    # needs requirements-tensorrt.txt
    python benches/tensorrt_build.py model.onnx --shapes x=1x3x48x160,1x3x48x320,8x3x48x640

Prints a line for each file: seconds to parse and build and the engine's size, or what NVIDIA says
is wrong. Every file has a process of its own, because the builder may crash on models it should
refuse. Dynamic axes are built for 1 … 4, best at 2, or for the shapes given: the smallest, the best
and the largest. TensorRT for RTX shares its parser with
TensorRT; that it builds a model does not promise that TensorRT has an int8 kernel for each layer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

DYNAMIC = (1, 2, 4)
TIMEOUT = 300


@dataclass(frozen=True)
class Build:
    """What became of a file: empty `errors` means that there is an engine."""

    errors: list[str]
    seconds: float = 0
    engine_bytes: int = 0

    def __str__(self) -> str:
        if self.errors:
            return "; ".join(self.errors)
        return f"{self.seconds:.1f} s, engine of {self.engine_bytes / 1e6:.1f} MB"


Profile = dict[str, list[list[int]]]
"""For inputs by name: the smallest, the best and the largest shape."""


def build(path: Path, profile: Profile | None = None) -> Build:
    """Parse and build `path` in a process of its own, for these shapes of its inputs."""
    command = [sys.executable, __file__, "--here", str(path)]
    for name, shapes in (profile or {}).items():
        texts = ("x".join(map(str, shape)) for shape in shapes)
        command += ["--shapes", f"{name}={','.join(texts)}"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    if run.returncode != 0:
        lines = run.stderr.strip().splitlines() or [f"the builder ended with {run.returncode}"]
        return Build(lines[-1:])
    return Build(**json.loads(run.stdout.splitlines()[-1]))


def build_here(path: Path, given: Profile) -> Build:
    """The same in this process, which may not survive it."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    started = time.perf_counter()
    if not parser.parse_from_file(str(path)):
        errors = (parser.get_error(i) for i in range(parser.num_errors))
        return Build([f"{error.node_name()}: {error.desc()}" for error in errors])
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for i in range(network.num_inputs):
        value = network.get_input(i)
        if -1 in value.shape:
            shapes = [[n if length < 0 else length for length in value.shape] for n in DYNAMIC]
            profile.set_shape(value.name, *given.get(value.name, shapes))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return Build(["parsed, but not built"])
    return Build([], time.perf_counter() - started, engine.nbytes)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument(
        "--shapes", action="append", default=[], metavar="NAME=MIN,BEST,MAX", type=_shapes
    )
    parser.add_argument("--here", action="store_true", help="in this process; prints JSON")
    options = parser.parse_args()
    for path in options.models:
        if options.here:
            print(json.dumps(vars(build_here(path, dict(options.shapes)))))
        else:
            print(f"{path.name}: {build(path, dict(options.shapes))}", flush=True)


def _shapes(text: str) -> tuple[str, list[list[int]]]:
    name, _, shapes = text.rpartition("=")
    found = [[int(length) for length in shape.split("x")] for shape in shapes.split(",")]
    if len(found) != len(DYNAMIC):
        raise ValueError(text)
    return name, found


if __name__ == "__main__":
    main()
