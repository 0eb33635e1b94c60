"""Ascend: the record file is read by protobuf, and the arithmetic it describes is run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
import zoo
from ascend_simulation import read_record, simulated
from builders import Net, random_feeds, run, sqnr
from click.testing import CliRunner
from onnx import numpy_helper
from rustq import QuantConfig, demo
from rustq.cli import commands


def exported(model: Any, tmp_path: Path, feeds: Any = None, **more: Any) -> tuple[Any, Any, Any]:
    """The float model, its record, and the result, by way of files: every layer in int8, and
    nothing tried on samples."""
    config = replace(more.pop("config", QuantConfig()), noise_price=0.0)
    given = isinstance(feeds, rustq.Calibration)
    seen = feeds if given else rustq.calibrate(model, feeds or random_feeds(model))
    result = rustq.quantize(model, seen, target="ascend", config=config, **more)
    files = result.save(tmp_path / "net.onnx")
    assert [file.name for file in files][:2] == ["net.onnx", "net.record.txt"]
    return onnx.load(files[0]), read_record(files[1].read_text("utf-8")), result


def deconvolution(group: int = 1) -> onnx.ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input("image", 1, 16, 8, 8), 16, 32))
    weight = net.weight(32, 8, 2, 2, fan_in=32)
    more = {"group": group} if group > 1 else {}
    y = net.op("ConvTranspose", x, weight, net.weight(8 * group, fan_in=9), strides=[2, 2], **more)
    return net.model(net.linear(net.op("Flatten", y), 8 * group * 256, 12))


MODELS = {
    "classifier": zoo.classifier(),
    "mobile": zoo.mobile(),
    "squeeze_and_excite": zoo.squeeze_and_excite(),
    "detector": zoo.detector(),
    "transformer": zoo.transformer(),
    "deconvolution": deconvolution(),
    "grouped deconvolution": deconvolution(4),
}


@pytest.mark.parametrize("scheme", ["asym", "sym"])
@pytest.mark.parametrize("name", MODELS)
def test_the_deployed_arithmetic_is_close_to_float(name: str, scheme: str, tmp_path: Path) -> None:
    model = MODELS[name]
    feeds = random_feeds(model)
    config = QuantConfig(ascend_qdq=True)
    written, record, _ = exported(model, tmp_path, feeds, scheme=scheme, config=config)
    onnx.checker.check_model(written, full_check=True)
    deployed = simulated(written, record)
    explicit = onnx.load(tmp_path / "net.qdq.onnx")
    onnx.checker.check_model(explicit, full_check=True)
    expected, found, pairs = (run(m, feeds[0]) for m in (model, deployed, explicit))
    for e, f, p in zip(expected, found, pairs, strict=True):
        assert sqnr(e, f) > 25
        # The file of pairs says the same, but for roundings that tip over.
        assert sqnr(f, p) > sqnr(e, f) + 6 or sqnr(f, p) > 45


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_has_an_entry_and_scales_per_channel_where_they_may_be(
    name: str, tmp_path: Path
) -> None:
    written, record, result = exported(MODELS[name], tmp_path)
    weights = {t.name: numpy_helper.to_array(t) for t in written.graph.initializer}
    expected = {}
    for node in written.graph.node:
        names = {a.name for a in node.attribute}
        if node.op_type == "Conv":
            assert {"group", "dilations", "strides", "pads", "kernel_shape"} <= names
            expected[node.name] = weights[node.input[1]].shape[0]
        elif node.op_type == "ConvTranspose":
            group = next(a.i for a in node.attribute if a.name == "group")
            expected[node.name] = weights[node.input[1]].shape[1] * group
        elif node.op_type == "Gemm" or (node.op_type == "MatMul" and node.input[1] in weights):
            assert node.op_type == "MatMul" or {"transA", "transB", "alpha", "beta"} <= names
            expected[node.name] = 1
    assert {key: len(entry.scale_w) for key, entry in record.items()} == expected
    quantized = {layer.name for layer in result.report.layers if layer.quantized}
    assert quantized == set(record)


def test_scales_and_offsets_are_those_of_ifmr(tmp_path: Path) -> None:
    model = zoo.classifier()
    feeds = random_feeds(model)
    calibration = rustq.calibrate(model, feeds)
    written, record, _ = exported(model, tmp_path, calibration)
    weights = {t.name: numpy_helper.to_array(t) for t in written.graph.initializer}
    for node in written.graph.node:
        if node.name not in record:
            continue
        entry, weight = record[node.name], weights[node.input[1]]
        low, high = calibration.range(node.input[0], method="ifmr")
        assert entry.scale_d == pytest.approx((high - low) / 255, rel=1e-6)
        assert entry.offset_d == round(-low / entry.scale_d) - 128
        most = np.abs(weight).reshape(len(weight), -1).max(1) if node.op_type == "Conv" else None
        most = np.array([np.abs(weight).max()]) if most is None else most
        assert np.array(entry.scale_w, np.float32) == pytest.approx(most / 127, rel=1e-6)
    assert any(entry.offset_d not in (0, -128) for entry in record.values())


def test_symmetric_has_no_offset(tmp_path: Path) -> None:
    _, record, _ = exported(zoo.classifier(), tmp_path, scheme="sym")
    assert {entry.offset_d for entry in record.values()} == {0}


def test_a_bias_that_does_not_fit_names_the_layer(tmp_path: Path) -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input("image", 1, 4, 8, 8), 4, 8))
    weight = net.constant(np.full((8, 8, 1, 1), 1e-9))
    y = net.op("Conv", x, weight, net.constant(np.full(8, 100.0)), name="narrow")
    model = net.model(y)
    feeds = random_feeds(model)
    with pytest.raises(
        rustq.ModelError, match=r"node 'narrow': the bias 100 of channel 0 .* int32"
    ):
        rustq.quantize(model, feeds, target="ascend")
    _, record, _ = exported(model, tmp_path, feeds, config=QuantConfig(exclude="narrow"))
    assert "narrow" not in record and len(record) == 1


def test_a_channel_next_to_dead_leaves_room_for_its_bias(tmp_path: Path) -> None:
    net = Net()
    weight = net.random.normal(size=(8, 4, 3, 3))
    weight[3] *= 1e-9
    model = net.model(
        net.op(
            "Conv", net.input("image", 1, 4, 8, 8), net.constant(weight), net.constant([5.0] * 8)
        )
    )
    feeds = random_feeds(model)
    written, record, _ = exported(model, tmp_path, feeds)
    expected, found = run(model, feeds[0])[0], run(simulated(written, record), feeds[0])[0]
    assert sqnr(expected, found) > 30
    assert np.abs(found[:, 3] - 5).max() < 1e-4


def test_nodes_get_names_of_their_own(tmp_path: Path) -> None:
    model = zoo.classifier()
    for node in model.graph.node:
        node.name = ""
    model.graph.node[0].name = 'a "name"\\é'
    written, record, _ = exported(model, tmp_path)
    names = [node.name for node in written.graph.node]
    assert len(set(names)) == len(names) and "" not in names
    assert set(record) <= set(names) and 'a "name"\\é' in record


def test_one_calibration_serves_every_target(tmp_path: Path) -> None:
    model = zoo.detector()
    calibration = rustq.calibrate(model, random_feeds(model))
    rustq.quantize(model, calibration, target="onnxruntime")
    rustq.quantize(model, calibration, target="tensorrt")
    assert exported(model, tmp_path, calibration)[1]


def test_needs_data() -> None:
    with pytest.raises(rustq.UnsupportedError, match=r"ascend .* without calibration data"):
        rustq.quantize(demo.model_path(), target="ascend")


def test_command_line(tmp_path: Path) -> None:
    samples = tmp_path / "samples.npz"
    np.savez(samples, image=demo.calibration()[0]["image"][:8])
    model = tmp_path / "digits.onnx"
    model.write_bytes(Path(demo.model_path()).read_bytes())
    arguments = ["quantize", str(model), "--data", str(samples), "--target", "ascend"]
    done = CliRunner().invoke(commands, [*arguments, "--ascend-qdq"])
    assert done.exit_code == 0, done.output
    stem = tmp_path / "digits.int8"
    assert f"{stem}.record.txt" in done.output.replace("\n", "")
    assert "amct_onnx.save_model" in done.output and "atc --framework=5" in done.output
    listed = CliRunner().invoke(commands, [*arguments, "--json"])
    files = json.loads(listed.output)["files"]
    assert [Path(file).name for file in files] == ["digits.int8.onnx", "digits.int8.record.txt"]
