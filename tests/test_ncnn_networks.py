"""Whole networks of well-known structure in ncnn, with random weights: float and int8."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import rustq
from builders import Feed, run
from ncnn_runtime import Case
from ncnn_runtime import run as run_ncnn

sys.path.append(str(Path(__file__).parent.parent / "benches"))
from networks import NETWORKS

NAMES = ("resnet18", "mobilenet_v3", "shufflenet_v2", "unet", "lstm", "vit", "mixed")

DYNAMIC = ("lstm", "vit", "mixed")
"""Those with layers that quantize as they go, which the simulation does not."""


def feed(model: rustq.Model, seed: int = 1) -> Feed:
    (value,) = model.inputs
    random = np.random.default_rng(seed)
    return {value.name: random.normal(size=value.shape or ()).astype(np.float32)}


@pytest.mark.parametrize("name", NAMES)
def test_float_and_int8(name: str, tmp_path: Path) -> None:
    model = rustq.load(NETWORKS[name]())
    one, output = feed(model), model.outputs[0].name
    samples = [feed(model, seed) for seed in (2, 3)]
    paths = {weights: tmp_path / f"{weights}.param" for weights in ("float32", "int8")}
    results = {}
    for weights, path in paths.items():
        config = rustq.QuantConfig(weights=weights, noise_price=0)
        results[weights] = rustq.quantize(model, samples, target="ncnn", config=config)
        results[weights].save(path)
    unbatched = [{key: array[0] for key, array in one.items()}]
    in_float, in_int8 = (
        found[0][0]
        for found in run_ncnn([Case(path, unbatched, [output]) for path in paths.values()])
    )
    expected = run(model, one)[0].reshape(in_float.shape)
    assert np.abs(in_float - expected).max() <= 1e-4 * np.abs(expected).max()
    layers = results["int8"].report.layers
    assert sum(layer.quantized for layer in layers) > len(layers) / 2
    scale = np.linalg.norm(expected)
    noise = np.linalg.norm(in_int8 - expected) / scale
    assert noise < 0.05
    simulated = run(results["int8"].to_onnx(), one)[0].reshape(in_float.shape)
    if name not in DYNAMIC:
        assert np.linalg.norm(simulated - expected) / scale == pytest.approx(noise, rel=0.3)
