"""The model and the data that ship in `rustq.demo` are what its documentation says."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from rustq import demo


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(demo.model_path())


@pytest.fixture(scope="module")
def session() -> ort.InferenceSession:
    return ort.InferenceSession(demo.model_path(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def raw() -> dict[str, np.ndarray]:
    with np.load(demo.data_path(), allow_pickle=False) as data:
        return dict(data)


def test_files_are_small() -> None:
    assert demo.model_path().stat().st_size <= 300_000
    assert demo.data_path().stat().st_size <= 50_000


def test_model_is_valid_and_widely_readable(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]


def test_model_has_what_a_quantizer_must_handle(model: onnx.ModelProto) -> None:
    ops = Counter(node.op_type for node in model.graph.node)
    assert ops["Conv"] == ops["BatchNormalization"] == 10
    assert {op: ops[op] for op in ("Add", "Clip", "GlobalAveragePool", "Gemm")} == {
        "Add": 2,
        "Clip": 2,
        "GlobalAveragePool": 1,
        "Gemm": 1,
    }
    assert ops["Relu"] > 0
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    groups = [a.i for node in convs for a in node.attribute if a.name == "group"]
    shapes = [weights[node.input[1]] for node in convs]
    depthwise = [s for s, g in zip(shapes, groups, strict=True) if g == s[0] > 1 and s[1] == 1]
    assert len(depthwise) == 2


def test_clip_bounds_are_scalars(model: onnx.ModelProto) -> None:
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Clip":
            low, high = (arrays[name] for name in node.input[1:])
            assert (low.shape, high.shape, float(low), float(high)) == ((), (), 0.0, 6.0)


def test_batch_norm_has_real_statistics(model: onnx.ModelProto) -> None:
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            _, scale, bias, mean, var = (arrays.get(name) for name in node.input)
            assert np.ptp(scale) > 0 and np.ptp(bias) > 0 and np.ptp(mean) > 0 and np.ptp(var) > 0
            assert np.all(var > 0)


def test_float_accuracy(model: onnx.ModelProto, session: ort.InferenceSession) -> None:
    recorded = {prop.key: prop.value for prop in model.metadata_props}["test_accuracy"]
    accuracy = demo.accuracy(lambda images: session.run(None, {demo.INPUT: images})[0])
    assert accuracy >= 0.98
    assert accuracy == pytest.approx(float(recorded), abs=1.5 / 600)  # one image may flip


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batch_is_dynamic(session: ort.InferenceSession, batch: int) -> None:
    images = demo.test_set()[0][:batch]
    together = session.run(None, {demo.INPUT: images})[0]
    apart = [session.run(None, {demo.INPUT: image[np.newaxis]})[0][0] for image in images]
    assert together.shape == (batch, 10)
    np.testing.assert_allclose(together, apart, atol=1e-4)


def test_calibration_and_test_images_are_disjoint(raw: dict[str, np.ndarray]) -> None:
    assert not set(raw["calibration_indices"].tolist()) & set(raw["test_indices"].tolist())
    calibration = {image.tobytes() for image in raw["calibration_images"]}
    test = {image.tobytes() for image in raw["test_images"]}
    assert (len(calibration), len(test)) == (96, 600)  # no image twice
    assert not calibration & test


def test_data_are_the_digits_their_indices_name(raw: dict[str, np.ndarray]) -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    for part in ("calibration", "test"):
        np.testing.assert_array_equal(raw[f"{part}_images"], digits.images[raw[f"{part}_indices"]])
    np.testing.assert_array_equal(raw["test_labels"], digits.target[raw["test_indices"]])


def test_every_digit_is_tested(raw: dict[str, np.ndarray]) -> None:
    assert np.bincount(raw["test_labels"], minlength=10).min() >= 30


def test_prepare_doubles_and_scales() -> None:
    image = np.zeros((1, 8, 8), np.uint8)
    image[0, 2, 5] = 16
    expected = np.zeros((1, 1, 16, 16), np.float32)
    expected[0, 0, 4:6, 10:12] = 1
    prepared = demo.prepare(image)
    np.testing.assert_array_equal(prepared, expected, strict=True)


@pytest.mark.parametrize("batch", [1, 32, 40, 1000])
def test_calibration_feeds_cover_every_image_once(raw: dict[str, np.ndarray], batch: int) -> None:
    feeds = demo.calibration(batch)
    assert all(set(feed) == {demo.INPUT} for feed in feeds)
    assert max(len(feed[demo.INPUT]) for feed in feeds) == min(batch, 96)
    together = np.concatenate([feed[demo.INPUT] for feed in feeds])
    np.testing.assert_array_equal(together, demo.prepare(raw["calibration_images"]))


def test_accuracy_counts_every_image() -> None:
    labels = iter(demo.test_set()[1])
    halves = iter(range(600))

    def right_every_second_time(images: np.ndarray) -> np.ndarray:
        answers = [(next(labels) + next(halves) % 2) % 10 for _ in images]
        return np.eye(10)[answers]

    assert demo.accuracy(right_every_second_time, batch=70) == 0.5
