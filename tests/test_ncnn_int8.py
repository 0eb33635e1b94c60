"""int8 in ncnn: its arithmetic against a simulator, layer by layer, and what is exported when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ncnn_simulator as simulator
import numpy as np
import onnx
import pytest
import rustq
from builders import Net, run
from ncnn_runtime import Case, Crash
from ncnn_runtime import run as run_ncnn
from onnx import helper

Array = np.ndarray[Any, Any]
ALL_INT8 = rustq.QuantConfig(noise_price=0, method="minmax")


def image(net: Net, channels: int = 12) -> str:
    return net.input("x", 1, channels, 9, 11)


def conv(**attributes: Any) -> Callable[[Net], str]:
    outputs = attributes.pop("outputs", 10)
    return lambda net: net.conv(image(net), 12, outputs, **attributes)


def lstm(net: Net) -> str:
    x = net.op("Transpose", net.input("x", 1, 7, 6), perm=[1, 0, 2])
    weights = [net.weight(2, *shape, fan_in=6) for shape in ((20, 6), (20, 5), (40,))]
    net.nodes.append(
        helper.make_node(
            "LSTM", [x, *weights], ["y"], name="lstm", hidden_size=5, direction="bidirectional"
        )
    )
    merged = net.op("Transpose", "y", perm=[0, 2, 1, 3])
    return net.op("Reshape", merged, net.constant([7, 10], dtype=np.int64))


def dead(net: Net) -> str:
    weight = net.random.normal(size=(10, 12, 3, 3)).astype(np.float32)
    weight[3], weight[5] = 0, 1e-36
    return net.op("Conv", image(net), net.constant(weight), net.weight(10), pads=[1] * 4)


MODELS: dict[str, tuple[Callable[[Net], Any], float]] = {
    "convolution": (conv(), 1e-5),
    "1 x 1": (conv(kernel=1), 1e-5),
    "stride and dilation": (conv(strides=[2, 1], dilations=[1, 2], pads=[0, 1, 2, 3]), 1e-5),
    "depthwise": (conv(group=12, outputs=12), 1e-5),
    # ncnn takes an approximate reciprocal in this kernel.
    "depthwise of 8": (lambda net: net.conv(image(net, 16), 16, 16, group=16), 1e-3),
    "groups": (conv(group=2, outputs=16), 1e-5),
    "relu": (lambda net: net.op("Relu", conv()(net)), 1e-5),
    "leaky": (lambda net: net.op("LeakyRelu", conv()(net), alpha=0.1), 1e-5),
    "clip": (lambda net: net.op("Clip", conv()(net), net.constant(0.0), net.constant(1.0)), 1e-5),
    "dead channels": (dead, 1e-5),
    "inner product": (lambda net: net.linear(net.input("x", 1, 40), 40, 7), 1e-5),
    "inner product of rows": (
        lambda net: net.linear(net.input("x", 1, 6, 40), 40, 7, "MatMul"),
        1e-5,
    ),
    "lstm": (lstm, 2e-3),
    "embed": (
        lambda net: net.op("Gather", net.weight(8, 6), net.input("x", 1, 5, dtype=np.int64)),
        1e-6,
    ),
}


def array(value: onnx.ValueInfoProto, random: np.random.Generator) -> Array:
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    if value.type.tensor_type.elem_type == onnx.TensorProto.INT64:
        return random.integers(0, 8, shape)
    return random.normal(size=shape).astype(np.float32)


def feeds(model: onnx.ModelProto, count: int = 3) -> list[dict[str, Array]]:
    random = np.random.default_rng(2)
    return [{value.name: array(value, random) for value in model.graph.input} for _ in range(count)]


def unbatched(feed: dict[str, Array]) -> dict[str, Array]:
    return {name: value[0] for name, value in feed.items()}


def exported(
    model: onnx.ModelProto, path: Path, config: rustq.QuantConfig = ALL_INT8
) -> rustq.QuantizedModel:
    result = rustq.quantize(model, feeds(model), target="ncnn", config=config)
    assert result.save(path) == [path, path.with_suffix(".bin"), path.with_suffix(".table")]
    return result


def built(build: Callable[[Net], Any]) -> onnx.ModelProto:
    net = Net(seed=4)
    outputs = build(net)
    return net.model(*([outputs] if isinstance(outputs, str) else outputs))


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Array]]:
    """Per model: what ncnn, the simulator and ONNX Runtime, in float, compute."""
    folder, cases, others = tmp_path_factory.mktemp("int8"), [], []
    for number, (build, _) in enumerate(MODELS.values()):
        model, path = built(build), Path(folder, f"{number}.param")
        result = exported(model, path)
        assert any(layer.quantized for layer in result.report.layers), result.report
        feed, name = feeds(model)[0], model.graph.output[0].name
        simulated = simulator.run(simulator.load(path), unbatched(feed))[name]
        cases.append(Case(path, [unbatched(feed)], [name]))
        others.append([simulated, run(model, feed)[0]])
    found = run_ncnn(cases)
    return {
        name: [got[0][0], *other] for name, got, other in zip(MODELS, found, others, strict=True)
    }


@pytest.mark.parametrize("name", MODELS)
def test_layer(name: str, layers: dict[str, list[Array]]) -> None:
    found, simulated, in_float = (part.ravel() for part in layers[name])
    largest = np.abs(simulated).max()
    assert np.abs(found - simulated).max() <= MODELS[name][1] * largest
    noise = np.linalg.norm(found - in_float) / np.linalg.norm(in_float)
    assert noise < 0.03


def chained(net: Net) -> list[str]:
    x = net.op("Relu", net.conv(image(net), 12, 16))
    x = net.op("Relu", net.conv(x, 16, 16, group=16))
    a, b = net.conv(x, 16, 8, 1), net.op("Relu", net.conv(x, 16, 8))
    return [net.op("Add", a, b), net.op("Sigmoid", net.conv(b, 8, 4))]


def test_convolutions_hand_integers_to_each_other(tmp_path: Path) -> None:
    model, path = built(chained), tmp_path / "chain.param"
    exported(model, path)
    layers = simulator.load(path)
    kinds = [layer.get(8) for layer in layers if layer.kind.startswith("Convolution")]
    assert kinds == [102, 101, 2, 2, 2]
    feed, names = unbatched(feeds(model)[0]), [value.name for value in model.graph.output]
    blobs = simulator.run(layers, feed)
    for name, found in zip(names, run_ncnn([Case(path, [feed], names)])[0][0], strict=True):
        assert np.linalg.norm(found - blobs[name]) < 1e-2 * np.linalg.norm(blobs[name])


def test_no_winograd_where_its_sums_would_overflow(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", 1, 26, 8, 8)
    y = net.op("Conv", x, net.constant(np.full((26, 26, 3, 3), 1.0)), pads=[1] * 4)
    model, path = net.model(y), tmp_path / "sums.param"
    feed = {"x": np.ones((1, 26, 8, 8), np.float32)}
    rustq.quantize(model, [feed], target="ncnn", config=ALL_INT8).save(path)
    text = path.read_text()
    assert " 31=64" in text
    bare = tmp_path / "bare.param"
    bare.write_text(text.replace(" 31=64", ""))
    bare.with_suffix(".bin").write_bytes(path.with_suffix(".bin").read_bytes())
    one = [unbatched(feed)]
    guarded, unguarded = run_ncnn([Case(path, one, [y]), Case(bare, one, [y])])
    expected = run(model, feed)[0][0]
    np.testing.assert_allclose(guarded[0][0], expected, rtol=1e-5)
    assert not np.allclose(unguarded[0][0], expected, rtol=0.1), "the guard is not needed any more"
    small = built(conv(kernel=3))
    exported(small, path)
    assert "31=" not in path.read_text()


def test_the_table_holds_the_scales_of_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "chain.param"
    exported(built(chained), path)
    lines = path.with_suffix(".table").read_text().splitlines()
    assert all(line.strip() == line and line for line in lines)
    table = {
        key: np.array(values, np.float32) for key, *values in (line.split(" ") for line in lines)
    }
    for layer in simulator.load(path):
        if layer.get(8):
            np.testing.assert_array_equal(table.pop(f"{layer.name}_param_0"), layer.weights[2])
            np.testing.assert_array_equal(table.pop(layer.name), layer.weights[3])
    assert not table


def test_scales_are_127_by_the_largest_magnitude(tmp_path: Path) -> None:
    model, path = built(conv()), tmp_path / "conv.param"
    result = exported(model, path)
    (layer,) = result.report.layers
    largest = max(float(np.abs(feed["x"]).max()) for feed in feeds(model))
    assert layer.inputs[0].scale[0] == pytest.approx(largest / 127)
    assert layer.inputs[0].zero_point == (0,)
    assert (layer.quantized, layer.macs) == (True, 10 * 12 * 9 * 9 * 11)
    scales = simulator.load(path)[1].weights[2:]
    assert scales[1][0] == np.float32(127) / np.float32(largest)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    np.testing.assert_array_equal(scales[0], np.float32(127) / np.abs(weight).max(axis=(1, 2, 3)))


def test_layers_can_be_kept_float(tmp_path: Path) -> None:
    model, path = built(chained), tmp_path / "chain.param"
    name = model.graph.node[0].name
    result = exported(model, path, rustq.QuantConfig(noise_price=0, exclude=[name]))
    (layer,) = [layer for layer in result.report.layers if layer.name == name]
    assert (layer.quantized, layer.reason) == (False, "excluded by the configuration")
    assert simulator.load(path)[1].get(8) == 0
    assert name not in path.with_suffix(".table").read_text()


def test_what_int8_would_ruin_stays_float(tmp_path: Path) -> None:
    # One channel is 3000 times as large as the others, for which no integers are left then.
    net, loud = Net(), np.ones((16, 1, 1), np.float32)
    loud[5] = 3000
    weight = net.random.normal(size=(16, 1, 3, 3)) / loud[..., None]
    y = net.op("Conv", image(net, 16), net.constant(weight), group=16, name="ruined")
    model = net.model(y)
    data = [{"x": feed["x"] * loud} for feed in feeds(model)]
    (layer,) = rustq.quantize(model, data, target="ncnn").report.layers
    assert not layer.quantized
    assert "noise" in layer.reason
    (layer,) = rustq.quantize(model, data, target="ncnn", config=ALL_INT8).report.layers
    assert layer.quantized


def test_without_data_what_needs_no_ranges_is_int8(tmp_path: Path) -> None:
    result = rustq.quantize(built(lstm), target="ncnn")
    assert [(layer.op_type, layer.quantized) for layer in result.report.layers] == [("LSTM", True)]
    (layer,) = rustq.quantize(built(conv()), target="ncnn").report.layers
    assert (layer.quantized, layer.reason) == (
        False,
        "its input needs a range: give calibration data",
    )


def test_ncnn_crashes_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "bad.param"
    path.write_text("7767517\n1 1\n")
    path.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(Crash, match=r"bad\.param"):
        run_ncnn([Case(path, [{}], ["y"])])


def test_the_simulation_computes_what_ncnn_does(tmp_path: Path) -> None:
    model, path = built(conv()), tmp_path / "conv.param"
    result = exported(model, path)
    feed, names = feeds(model)[0], [value.name for value in model.graph.output]
    found = run_ncnn([Case(path, [unbatched(feed)], names)])[0][0][0]
    (simulated,) = run(result.to_onnx(), feed)
    np.testing.assert_allclose(simulated[0], found, atol=1e-5 * np.abs(found).max())
    output = rustq.compare(model, result, feeds(model)).outputs[0]
    assert 30 < (output.sqnr_db or 0) < 60


def test_as_many_layers_in_int8_as_a_limit_allows(tmp_path: Path) -> None:
    net, loud = Net(), np.ones((16, 1, 1), np.float32)
    loud[5] = 300
    x = net.op("Conv", image(net, 16), net.constant(net.random.normal(size=(16, 1, 3, 3)) / loud[..., None]),
               group=16, name="ruined", pads=[1] * 4)  # fmt: skip
    model = net.model(net.conv(net.op("Relu", net.conv(x, 16, 32)), 32, 8))
    data = [{"x": feed["x"] * loud} for feed in feeds(model)]
    everything = rustq.compare(
        model, rustq.quantize(model, data, target="ncnn", config=ALL_INT8), data
    )
    limited = rustq.quantize(model, data, target="ncnn", config=ALL_INT8, max_drop=0.001)
    kept = [layer.name for layer in limited.report.layers if not layer.quantized]
    assert kept == ["ruined"], limited.report
    assert (limited.report.drop or 1) <= 0.001
    assert "would hold the output SQNR" in "".join(limited.report.notes)
    (before,), (after,) = everything.outputs, rustq.compare(model, limited, data).outputs
    assert (before.sqnr_db or 0) < 30 < (after.sqnr_db or 0)
    found = rustq.sensitivity(model, data, target="ncnn", config=ALL_INT8)
    assert found.layers[0].name == "ruined"
    exact = rustq.sensitivity(model, data, target="ncnn", config=ALL_INT8, exact=True)
    assert exact.layers[0].name == "ruined"
