"""The float export beside that of pnnx, ncnn's own converter, both in ncnn.

Needs requirements-pnnx.txt (`make test-pnnx`); without it everything here is skipped.
"""

from __future__ import annotations

import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import rustq
from builders import Array
from ncnn_runtime import Case, run
from rustq import demo
from test_ncnn_networks import NAMES, NETWORKS, feed

SPEC = find_spec("pnnx")
pytestmark = pytest.mark.skipif(SPEC is None, reason="no pnnx")


def convert(model: rustq.Model, folder: Path) -> Path:
    """pnnx's files. What its exit status says means nothing: ncnn has to load them."""
    assert SPEC is not None and SPEC.origin is not None
    model.save(folder / "net.onnx")
    (value,) = model.inputs
    shape = ",".join(map(str, value.shape or ()))
    program = Path(SPEC.origin).with_name("pnnx")
    subprocess.run(
        [program, "net.onnx", f"inputshape=[{shape}]", "fp16=0"],
        cwd=folder, capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    return folder / "net.ncnn.param"


def both(model: rustq.Model, one: dict[str, Array], folder: Path) -> tuple[Array, Array]:
    """What ncnn computes with our files and with pnnx's, which has names of its own."""
    config = rustq.QuantConfig(weights="float32")
    rustq.quantize(model, target="ncnn", config=config).save(folder / "ours.param")
    (array,) = (array[0] for array in one.values())
    ours, theirs = run(
        [
            Case(folder / "ours.param", [dict.fromkeys(one, array)], [model.outputs[0].name]),
            Case(convert(model, folder), [{"in0": array}], ["out0"]),
        ]
    )
    return ours[0][0], theirs[0][0]


@pytest.mark.parametrize("name", NAMES)
def test_networks(name: str, tmp_path: Path) -> None:
    model = rustq.load(NETWORKS[name]())
    ours, theirs = both(model, feed(model), tmp_path)
    assert np.abs(ours - theirs.reshape(ours.shape)).max() <= 1e-4 * np.abs(theirs).max()


def test_the_demo_model(tmp_path: Path) -> None:
    image = demo.test_set()[0][:1]
    onnx_model = rustq.load(demo.model_path()).to_onnx()
    for value in (*onnx_model.graph.input, *onnx_model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    ours, theirs = both(rustq.load(onnx_model), {demo.INPUT: image}, tmp_path)
    assert np.abs(ours - theirs.reshape(ours.shape)).max() <= 1e-4 * np.abs(theirs).max()
