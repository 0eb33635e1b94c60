"""From a model to ncnn's files: the demo model as a whole, the command line, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rustq
import zoo
from builders import Net, run
from ncnn_runtime import Case
from ncnn_runtime import run as run_ncnn
from rustq import demo
from rustq.cli import main
from rustq.targets import ncnn


def test_the_demo_model(tmp_path: Path) -> None:
    model = rustq.load(demo.model_path())
    images, labels = demo.test_set()
    images, labels = images[:300], labels[:300]
    cases = []
    for weights in ("float32", "float16", "int8"):
        path = tmp_path / f"{weights}.param"
        config = rustq.QuantConfig(weights=weights)
        rustq.quantize(model, demo.calibration(), target="ncnn", config=config).save(path)
        cases.append(Case(path, [{demo.INPUT: image} for image in images], [model.outputs[0].name]))
    found = [np.stack([scores for (scores,) in case]) for case in run_ncnn(cases)]
    expected = run(model, {demo.INPUT: images})[0]
    errors = [np.abs(scores - expected).max() / np.abs(expected).max() for scores in found]
    assert errors[0] <= 1e-4
    assert errors[1] <= 1e-2
    right = [float((scores.argmax(1) == labels).mean()) for scores in (expected, *found)]
    assert right[1] == right[0]
    assert right[3] >= right[0] - 0.01


def test_a_failure_writes_nothing(tmp_path: Path) -> None:
    net = Net()
    x = net.op("Relu", net.input("x", 1, 8))
    net.op("TopK", x, net.constant([3], dtype=np.int64), out="best", name="sort")
    net.nodes[-1].output.append("places")
    y = net.op("CumSum", "best", net.constant(1, dtype=np.int64), name="sum")
    model = net.model(y)
    with pytest.raises(rustq.UnsupportedError, match=r"'sort' \(TopK\).*sort in the application"):
        rustq.quantize(model, target="ncnn")
    path = tmp_path / "sort.onnx"
    rustq.load(model).save(path)
    assert main(["quantize", str(path), "--target", "ncnn"]) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["sort.onnx"]


def test_a_refusal_names_the_node_and_comes_before_the_calibration() -> None:
    model = zoo.looping()
    # A body that claims another rank than it computes, which runs all the same.
    [body] = [node.attribute[0].g for node in model.graph.node if node.op_type == "Loop"]
    body.output[0].type.tensor_type.shape.dim.add().dim_value = 1
    seen: list[int] = []

    def samples() -> Iterator[np.ndarray[Any, Any]]:
        for number in range(9):
            seen.append(number)
            yield np.ones((1, 16, 16, 16), np.float32)

    for data in (samples(), [*samples()]):
        seen.clear()
        with pytest.raises(rustq.UnsupportedError, match=r" \(Loop\) .*the loop unrolled"):
            rustq.quantize(model, data, target="ncnn")
        assert len(seen) <= 1


def test_all_that_is_unsupported_is_listed(tmp_path: Path, capsys: Any) -> None:
    net = Net()
    x = net.input("x", 1, 8)
    y = net.op("Relu", net.op("CumSum", net.op("CumSum", x, net.constant(1, dtype=np.int64), name="a"),
                              net.constant(1, dtype=np.int64), name="b"))  # fmt: skip
    path = tmp_path / "sums.onnx"
    rustq.load(net.model(y)).save(path)
    assert main(["quantize", str(path), "--target", "ncnn", "--list-unsupported", "--json"]) == 1
    listed = json.loads(capsys.readouterr().out)["unsupported"]
    assert [(entry["node"], entry["op_type"]) for entry in listed] == [
        ("a", "CumSum"),
        ("b", "CumSum"),
    ]
    assert main(["quantize", str(demo.model_path()), "--target", "ncnn", "--list-unsupported"]) == 0


def test_shapes_are_asked_for(tmp_path: Path) -> None:
    net = Net()
    y = net.op("Relu", net.conv(net.input("x", "N", 3, "H", "W"), 3, 4))
    model = net.model(y)
    float32 = {"weights": "float32"}
    with pytest.raises(rustq.UnsupportedError, match=r"input .x.*--input-shape"):
        rustq.quantize(model, target="ncnn", config=rustq.QuantConfig(**float32))
    given = rustq.QuantConfig(**float32, input_shapes={"x": (1, 3, 6, 8)})
    rustq.quantize(model, target="ncnn", config=given).save(tmp_path / "given.param")
    data = [np.zeros((2, 3, 6, 8), np.float32)]
    sampled = rustq.quantize(model, data, target="ncnn", config=rustq.QuantConfig(**float32))
    sampled.save(tmp_path / "sampled.param")
    for name in ("given", "sampled"):
        assert "0=8 1=6 2=3" in (tmp_path / f"{name}.param").read_text()
    with pytest.raises(rustq.ModelError, match="no input 'y'"):
        wrong = rustq.QuantConfig(**float32, input_shapes={"y": (1,)})
        rustq.quantize(model, target="ncnn", config=wrong)


def test_samples_of_other_shapes_than_the_file_count_in_the_ranges() -> None:
    net = Net()
    y = net.op("Relu", net.conv(net.input("x", "N", 3, 8, "W"), 3, 4))
    model = net.model(y)
    random = np.random.default_rng(0)
    data = [random.normal(size=(1, 3, 8, width)).astype(np.float32) for width in (8, 12, 10)]
    for samples in (data, iter(data)):
        result = rustq.quantize(model, samples, target="ncnn")
        assert result.calibration is not None
        assert result.calibration.range("x", method="minmax")[1] == max(s.max() for s in data)
        assert [note for note in result.report.notes if "no settings were tried" in note]
        assert result.report.layers[0].quantized
    alike = rustq.quantize(model, data[:1], target="ncnn")
    assert not [note for note in alike.report.notes if "no settings were tried" in note]


def test_inspect_finds_what_ncnn_would_not(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "demo.param"
    rustq.quantize(demo.model_path(), demo.calibration(), target="ncnn").save(path)
    assert main(["inspect", str(path)]) == 0
    assert "Convolution" in capsys.readouterr().out
    contents = ncnn.read(path)
    assert (contents.inputs, len(contents.outputs)) == ((demo.INPUT,), 1)
    assert contents.weight_bytes == path.with_suffix(".bin").stat().st_size
    weights = path.with_suffix(".bin").read_bytes()
    path.with_suffix(".bin").write_bytes(weights[:-4])
    assert main(["inspect", str(path)]) == 1
    assert "demo.param" in capsys.readouterr().err


def test_the_scheme_and_the_weights_of_other_targets() -> None:
    with pytest.raises(rustq.UnsupportedError, match=r"ncnn cannot run scheme 'asym', only 'sym'"):
        rustq.quantize(demo.model_path(), target="ncnn", scheme="asym")
    with pytest.raises(rustq.UnsupportedError, match=r"float16.*onnxruntime"):
        rustq.quantize(demo.model_path(), config=rustq.QuantConfig(weights="float16"))
