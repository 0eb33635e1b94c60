"""ncnn itself, in a process of its own: a file that it does not like ends the process.

    results = run([Case("model.param", [{"image": array}], ["scores"])])

As a program it is that process: it reads cases from a pickle and writes what comes out to another.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """A model and what to run it on. Inputs have no batch axis; nor have outputs."""

    param: Path
    feeds: list[dict[str, Array]]
    outputs: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    """Of `ncnn.Net.opt`."""


class Crash(Exception):
    """ncnn did not survive a model, or refused it."""


def run(cases: list[Case]) -> list[list[list[Array]]]:
    """For each case, each feed and each output an array.

    Raises:
        Crash: naming the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, got = Path(folder, "cases"), Path(folder, "results")
        given.write_bytes(pickle.dumps(cases))
        done = subprocess.run(
            [sys.executable, __file__, given, got], capture_output=True, text=True, check=False
        )
        results: list[Any] = []
        if got.exists():
            with got.open("rb") as stream:
                while len(results) < len(cases) and (result := _next(stream)) is not None:
                    results.append(result)
    if len(results) < len(cases):
        raise Crash(
            f"{cases[len(results)].param}: exit status {done.returncode}\n{done.stderr[-2000:]}"
        )
    return results


def _next(stream: Any) -> Any:
    try:
        return pickle.load(stream)
    except EOFError:
        return None


def _run(case: Case) -> list[list[Array]]:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = 1
    # Float is to be float32, whatever the processor has.
    exact = dict.fromkeys(
        ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"), False
    )
    for name, value in (exact | case.options).items():
        setattr(net.opt, name, value)
    if net.load_param(str(case.param)) or net.load_model(str(case.param.with_suffix(".bin"))):
        raise Crash(f"{case.param}: ncnn does not load it")
    return [_infer(ncnn, net, feed, case.outputs) for feed in case.feeds]


def _infer(ncnn: Any, net: Any, feed: dict[str, Array], outputs: list[str]) -> list[Array]:
    extractor = net.create_extractor()
    for name, array in feed.items():
        # int64 ids are int32 in ncnn. The array has to live until it is copied.
        dtype = np.int32 if array.dtype.kind == "i" else np.float32
        array = np.ascontiguousarray(array, dtype)
        if extractor.input(name, ncnn.Mat(array).clone()):
            raise Crash(f"there is no input {name}")
    results = []
    for name in outputs:
        status, mat = extractor.extract(name)
        if status:
            raise Crash(f"output {name}: status {status}")
        results.append(np.array(mat))
    return results


def main() -> None:
    """Runs the cases of one pickle."""
    given, got = map(Path, sys.argv[1:])
    with got.open("wb") as stream:
        for case in pickle.loads(given.read_bytes()):
            pickle.dump(_run(case), stream)
            stream.flush()


if __name__ == "__main__":
    from ncnn_runtime import main as run_here  # so that pickles name the module

    run_here()
