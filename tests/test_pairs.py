"""Models that come with QuantizeLinear/DequantizeLinear pairs: their scales are kept, for every target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
from builders import Array, Net, run, saturates, session, sqnr
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from rustq import demo
from rustq.task import Task

TARGETS = ("onnxruntime", "tensorrt", "ascend", "ncnn")
DTYPES = {"int8": np.int8, "uint8": np.uint8}


class Pairs(Net):
    """A net with pairs, as exporters of trained quantization write them."""

    def pair(
        self,
        x: str,
        scale: float,
        zero: int = 0,
        dtype: str = "uint8",
        clip: tuple[int, int] | None = None,
        out: str = "",
    ) -> str:
        s, z = self.constant(scale), self.constant(zero, dtype=DTYPES[dtype])
        integers = self.op("QuantizeLinear", x, s, z)
        if clip:
            bounds = [self.constant(bound, dtype=DTYPES[dtype]) for bound in clip]
            integers = self.op("Clip", integers, *bounds)
        return self.op("DequantizeLinear", integers, s, z, out=out)

    def stored(self, codes: Array, scale: Any, axis: int = 0) -> str:
        """Weights as int8 and a scale for each index along an axis, or one."""
        q, s = self.constant(codes, dtype=np.int8), self.constant(scale)
        zeros = self.constant(np.zeros(np.shape(scale)), dtype=np.int8)
        return self.op(
            "DequantizeLinear", q, s, zeros, **({"axis": axis} if np.ndim(scale) else {})
        )

    def codes(self, *shape: int, limit: int = 127) -> Array:
        codes = self.random.integers(-limit, limit + 1, shape)
        codes.reshape(shape[0], -1)[:, 0] = limit
        return codes


def scales(model: Any) -> set[float]:
    """All scales of Q/DQ nodes; those of int32 biases apart."""
    model = rustq.fold(model).to_onnx()
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {
        float(value)
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        and constants.get(node.input[0], np.int8(0)).dtype != np.int32
        for value in np.ravel(constants[node.input[1]])
    }


def computed(model: Any, target: str = "onnxruntime", **options: Any) -> tuple[Any, Any]:
    """What the target computes of a model with pairs, and the report."""
    if target == "ncnn":
        fixed = {value.name: (1, *value.shape[1:]) for value in rustq.load(model).inputs}
        options["config"] = rustq.QuantConfig(input_shapes=fixed)
    result = rustq.quantize(model, options.pop("data", None), target=target, **options)
    outcome = (
        Task.of(model, None, target=target, **options).outcome() if target == "ascend" else None
    )
    proto = (
        onnx.load_model_from_string(outcome.computed.to_bytes()) if outcome else result.to_onnx()
    )
    return proto, result.report


def outputs(model: Any, x: Array, name: str = "x") -> Array:
    """One sample at a time: ncnn's files are for one."""
    literal = session(model, optimize=False)
    return np.concatenate([literal.run(None, {name: x[i : i + 1]})[0] for i in range(len(x))])


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self.feeds = iter(demo.calibration())

    def get_next(self) -> Any:
        return next(self.feeds, None)


@pytest.fixture(scope="module", params=["uint8 per channel", "int8 per tensor"])
def static(request: Any, tmp_path_factory: Any) -> Path:
    """What onnxruntime's quantize_static makes of the demo's network, BatchNormalization folded."""
    folder = tmp_path_factory.mktemp("static")
    float_path, path = folder / "float.onnx", folder / "qdq.onnx"
    rustq.fold(demo.model_path()).save(float_path)
    unsigned = request.param.startswith("uint8")
    quantize_static(
        float_path,
        path,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=unsigned,
        activation_type=QuantType.QUInt8 if unsigned else QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("data", [False, True])
def test_of_onnxruntime_for_every_target(static: Path, target: str, data: bool) -> None:
    model = onnx.load(static)
    proto, report = computed(static, target, data=demo.calibration() if data else None)
    images = demo.test_set()[0][:100]
    expected, found = outputs(model, images, "image"), outputs(proto, images, "image")
    # Others than ONNX Runtime add in float; a symmetric grid on what is never negative has half of the levels.
    steps = {"onnxruntime": 2}.get(target, 10)
    step = max(scales(model))
    assert np.abs(found - expected).max() < steps * step
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.98
    assert report.notes[0].startswith("the scales of 16 activations and 22 constants")
    if target == "onnxruntime":
        assert scales(proto) == scales(model)
        assert all(layer.quantized for layer in report.layers)
        fast = run(proto, {"image": images}, optimize=True)[0]
        assert saturates() or fast == pytest.approx(found, abs=2 * step)


def test_scales_and_integers_stay_exactly_what_they_were() -> None:
    net = Pairs()
    x = net.pair(net.input("x", "n", 3, 8, 8), 0.02, 128)
    codes, step = net.codes(16, 3, 3, 3), np.linspace(0.001, 0.02, 16, dtype=np.float32)
    bias = np.arange(16, dtype=np.int32) * 100
    s = (np.float32(0.02) * step).astype(np.float32)
    b = net.op("DequantizeLinear", net.constant(bias, dtype=np.int32), net.constant(s), axis=0)
    y = net.op("Relu", net.op("Conv", x, net.stored(codes, step), b, pads=[1] * 4))
    y = net.op("GlobalAveragePool", net.pair(y, 0.05))
    y = net.op("Flatten", net.pair(y, 0.01))
    gemm = net.op("Gemm", y, net.stored(net.codes(10, 16), 0.003), transB=1)
    model = net.model(net.pair(gemm, 0.1, 120, out="y"))
    proto, report = computed(model)
    assert scales(proto) == scales(model)
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert any(np.array_equal(value, codes) for value in constants.values())
    assert any(np.array_equal(value, bias) for value in constants.values())
    feed = {"x": net.random.normal(size=(8, 3, 8, 8))}
    feed = {name: value.astype(np.float32) for name, value in feed.items()}
    np.testing.assert_array_equal(run(proto, feed)[0], run(model, feed)[0])
    assert not any("without their given scales" in note for note in report.notes)


def test_batch_normalization_goes_into_weights_that_were_given() -> None:
    """As in TensorFlow's training: weights are quantized, and BatchNormalization stands behind."""
    net = Pairs()
    x = net.pair(net.input("x", "n", 4, 6, 6), 0.02, 0, "int8")
    weight = net.pair(net.weight(8, 4, 3, 3, fan_in=36), 0.004, 0, "int8")
    y = net.batch_norm(net.op("Conv", x, weight), 8)
    model = net.model(net.pair(net.op("Relu", y), 0.03, out="y"))
    proto, _ = computed(model)
    assert [n.op_type for n in proto.graph.node if "Linear" not in n.op_type] == ["Conv"]
    feed = {"x": net.random.normal(size=(4, 4, 6, 6)).astype(np.float32)}
    difference = np.abs(run(proto, feed)[0] - run(model, feed)[0])
    assert difference.max() < 0.031
    assert (difference > 1e-5).mean() < 0.02  # roundings that a bias on the int32 grid tips over


def test_weights_behind_a_transpose() -> None:
    net = Pairs()
    x = net.pair(net.input("x", "n", 12), 0.02, 0, "int8")
    weight = net.op(
        "Transpose", net.stored(net.codes(5, 12), [0.01, 0.02, 0.03, 0.04, 0.05]), perm=[1, 0]
    )
    model = net.model(net.op("MatMul", x, weight, out="y"))
    proto, _ = computed(model)
    assert scales(proto) == scales(model)
    feed = {"x": net.random.normal(size=(4, 12)).astype(np.float32)}
    np.testing.assert_allclose(run(proto, feed)[0], run(model, feed)[0], rtol=1e-5, atol=1e-5)


def test_a_pair_may_be_the_relu() -> None:
    """onnxruntime leaves a Relu away where the integers begin at 0; so may not who has none."""
    net = Pairs()
    x = net.pair(net.input("x", "n", 16, 6, 6), 0.02, 0, "int8")
    y = net.pair(net.op("Conv", x, net.stored(net.codes(16, 16, 1, 1), 0.003)), 0.04)
    model = net.model(net.op("Conv", y, net.stored(net.codes(16, 16, 1, 1), 0.003), out="y"))
    x = net.random.normal(size=(4, 16, 6, 6)).astype(np.float32)
    expected = outputs(model, x)
    for target in TARGETS:
        proto, _ = computed(model, target)
        error = np.abs(outputs(proto, x) - expected).max()
        assert error < (
            1e-4 if target in ("onnxruntime", "ascend") else 0.05 * np.abs(expected).max()
        )


@pytest.mark.parametrize("clip", [(-127, 127), (-7, 7), (0, 100)])
def test_integers_that_are_clipped(clip: tuple[int, int]) -> None:
    """As Brevitas and torch write fewer bits than 8, or a narrow range."""
    net = Pairs()
    scale = 3.0 / clip[1]
    x = net.pair(net.input("x", "n", 16, 6, 6), scale, 0, "int8", clip)
    model = net.model(net.op("Conv", x, net.stored(net.codes(8, 16, 3, 3, limit=7), 0.03), out="y"))
    x = 2 * net.random.normal(size=(4, 16, 6, 6)).astype(np.float32)
    expected = outputs(model, x)
    for target in TARGETS:
        proto, _ = computed(model, target)
        found = outputs(proto, x)
        # The narrow range saturates a step earlier than all that is written here.
        close = 0.01 if clip == (-127, 127) else 1e-4
        np.testing.assert_allclose(found, expected, atol=close * np.abs(expected).max())
        assert np.float32(scale) in {np.float32(s) for s in scales(proto)}


def test_missing_pairs_come_from_data_or_are_left_out() -> None:
    """As modelopt writes them: pairs in front of the products alone."""
    net = Pairs()
    x = net.input("x", "n", 16, 6, 6)
    first = net.op("Conv", net.pair(x, 0.02, 0, "int8"), net.stored(net.codes(16, 16, 1, 1), 0.003))
    second = net.pair(net.op("Add", first, x), 0.05, 0, "int8")
    model = net.model(net.op("Conv", second, net.stored(net.codes(16, 16, 1, 1), 0.003), out="y"))
    x = net.random.normal(size=(16, 16, 6, 6)).astype(np.float32)
    expected = outputs(model, x)
    alone, report = computed(model)
    np.testing.assert_allclose(outputs(alone, x), expected, atol=1e-4)
    reasons = {layer.op_type: layer.reason for layer in report.layers}
    assert "give calibration data" in reasons["Add"]
    assert any("computes them in float between their pairs" in note for note in report.notes)
    filled, report = computed(model, data=[x[i : i + 4] for i in range(0, 16, 4)])
    assert scales(alone) < scales(filled)
    assert sqnr(expected, outputs(filled, x)) > 25


def test_two_scales_for_one_value_stay_two() -> None:
    net = Pairs()
    x = net.op("Relu", net.input("x", "n", 16, 6, 6))
    a = net.op("Conv", net.pair(x, 0.02), net.stored(net.codes(8, 16, 1, 1), 0.003))
    b = net.op("Conv", net.pair(x, 0.07), net.stored(net.codes(8, 16, 1, 1), 0.003))
    model = net.model(net.op("Concat", a, b, axis=1, out="y"))
    x = net.random.normal(size=(2, 16, 6, 6)).astype(np.float32)
    for target in TARGETS:
        proto, _ = computed(model, target)
        close = 1e-4 if target in ("onnxruntime", "ascend") else 0.2
        np.testing.assert_allclose(outputs(proto, x), outputs(model, x), atol=close)


def test_what_is_moved_shares_the_scale() -> None:
    net = Pairs()
    x = net.pair(net.input("x", "n", 16, 8, 8), 0.02, 0, "int8")
    y = net.op("Conv", x, net.stored(net.codes(16, 16, 1, 1), 0.003))
    y = net.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = net.pair(y, 0.05, 0, "int8")
    y = net.op("Reshape", y, net.constant([0, -1], dtype=np.int64))
    model = net.model(net.op("Gemm", y, net.stored(net.codes(256, 20), 0.001), out="y"))
    x = net.random.normal(size=(2, 16, 8, 8)).astype(np.float32)
    for target in TARGETS:
        proto, report = computed(model, target)
        np.testing.assert_allclose(outputs(proto, x), outputs(model, x), rtol=1e-4, atol=1e-4)
        assert not any("without their given scales" in note for note in report.notes), report.notes


def test_what_cannot_be_kept_is_said() -> None:
    net = Pairs()
    x = net.pair(net.input("x", "n", 16), 0.02, 100)
    codes = net.codes(16, 16)
    codes[0, 0] = -128
    y = net.op("MatMul", x, net.stored(codes, 0.003))
    along_inputs = net.stored(net.codes(16, 16), np.linspace(0.001, 0.0137, 16), axis=0)
    model = net.model(net.op("MatMul", net.pair(y, 0.05, 90), along_inputs, out="y"))
    _, report = computed(model, "tensorrt")
    notes = "\n".join(report.notes)
    assert "TensorRT has no zero points" in notes
    assert "-127" in notes
    assert "quantized anew: 'n_matmul" in notes


def test_pairs_that_are_none_stay() -> None:
    net = Pairs()
    x = net.input("x", "n", 16)
    s, other, z = net.constant(0.1), net.constant(0.2), net.constant(0, dtype=np.int8)
    y = net.op("DequantizeLinear", net.op("QuantizeLinear", x, s, z), other, z)
    model = net.model(
        net.op("MatMul", net.pair(y, 0.3, 0, "int8"), net.stored(net.codes(16, 8), 0.1), out="y")
    )
    proto, report = computed(model)
    assert any("its scale is not that of" in note for note in report.notes)
    feed = {"x": net.random.normal(size=(4, 16)).astype(np.float32)}
    np.testing.assert_allclose(run(proto, feed)[0], run(model, feed)[0], rtol=1e-5, atol=1e-5)


def test_integers_without_pairs_are_named() -> None:
    def notes(result: rustq.QuantizedModel) -> list[str]:
        return [note for note in result.report.notes if "quantized already" in note]

    once = rustq.quantize(demo.model_path())
    twice = rustq.quantize(once.to_bytes())
    assert notes(once) == []
    (note,) = notes(twice)
    assert "MatMulInteger" in note
    assert "DynamicQuantizeLinear" not in note


def test_nothing_may_change_the_scales() -> None:
    net = Pairs()
    x = net.pair(net.input("x", "n", 16), 0.02, 100)
    model = net.model(net.op("MatMul", x, net.stored(net.codes(16, 8), 0.1), out="y"))
    data = [np.ones((2, 16), np.float32)]
    for knob in (
        {"equalize": True},
        {"bias_correction": True},
        {"rounding": "learned"},
        {"weights": "int4"},
    ):
        with pytest.raises(rustq.UnsupportedError, match="whose scales are kept"):
            rustq.quantize(model, data, config=rustq.QuantConfig(**knob))
    calibration = rustq.calibrate(model, data)
    assert scales(rustq.quantize(model, calibration).to_onnx()) >= scales(model)


def test_weights_alone_need_data() -> None:
    net = Pairs()
    x = net.input("x", "n", 16)
    model = net.model(net.op("MatMul", x, net.stored(net.codes(16, 8), 0.1), out="y"))
    with pytest.raises(rustq.DataError, match="its activations are not"):
        rustq.quantize(model)
    proto = rustq.quantize(
        model, [np.ones((2, 16), np.float32)], config=rustq.QuantConfig(noise_price=0)
    ).to_onnx()
    assert proto.graph.node


FILES = sorted((Path(__file__).parent / "data").glob("*.onnx"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_of_every_tool_for_every_target(path: Path, target: str) -> None:
    model = onnx.load(path)
    value = model.graph.input[0]
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
    x = np.random.default_rng(1).uniform(0, 1, (16, *shape)).astype(np.float32)
    expected = outputs(model, x, value.name)
    proto, report = computed(path, target)
    error = np.abs(outputs(proto, x, value.name) - expected).max()
    # The ranges of a few steps of TensorFlow's training are so wide that there are 5 steps in all.
    coarse = max(scales(model)) if path.stem == "tfmot" else 0
    close = 0.01 if target == "onnxruntime" else 0.07 if path.stem == "brevitas" else 0.02
    assert error <= 1.01 * coarse + close * np.abs(expected).max()
    assert report.notes[0].startswith("the scales of ")
    layers = [layer for layer in report.layers if layer.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(layers) == 4
    assert all(layer.quantized for layer in layers)
    if target == "onnxruntime" and path.stem not in ("modelopt", "tfmot"):
        # The others have BatchNormalization folded into the scales of the weights.
        assert scales(proto) == scales(model)
    if target == "onnxruntime":
        fast = run(proto, {value.name: x}, optimize=True)[0]
        near = np.abs(fast - expected).max() <= 1.01 * coarse + 0.05 * np.abs(expected).max()
        assert saturates() or near


@pytest.mark.parametrize("limit", [63, 127])
@pytest.mark.parametrize("op_type", ["Conv", "MatMul"])
def test_weights_that_may_saturate_without_vnni_are_named(op_type: str, limit: int) -> None:
    net = Pairs()
    if op_type == "Conv":
        x = net.pair(net.input("x", 1, 8, 6, 6), 0.02)
        weight = net.stored(net.codes(16, 8, 3, 3, limit=limit), np.full(16, 0.01))
        y = net.op("Conv", x, weight, name="crowded", pads=[1] * 4)
    else:
        x = net.pair(net.input("x", 4, 32), 0.02)
        weight = net.stored(net.codes(32, 16, limit=limit), np.full(16, 0.01), axis=1)
        y = net.op("MatMul", x, weight, name="crowded")
    model = net.model(net.pair(y, 0.5, 128))
    for roomy in (True, False):
        config = rustq.QuantConfig(avoid_saturation=roomy)
        notes = rustq.quantize(model, config=config).report.notes
        found = [note for note in notes if "without VNNI" in note and "'crowded'" in note]
        assert len(found) == (roomy and limit == 127), notes
