"""Networks trained in Keras on real digits, exported, quantized and run in ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
pytest.importorskip("tf2onnx")

import rustq  # noqa: E402
from digits import TEST, TRAIN, accuracy  # noqa: E402
from keras import layers  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")


def cnn() -> Any:
    x = image = keras.Input((8, 8, 1), name="image")
    for width, stride in ((32, 1), (64, 2), (64, 1)):
        x = layers.Conv2D(width, 3, stride, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.8)(x))
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.8)(x))
    return keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


@keras.saving.register_keras_serializable()
class Place(layers.Layer):
    """Adds what says where a token is."""

    def build(self, shape: Any) -> None:
        self.place = self.add_weight(shape=shape[1:], initializer="zeros", name="place")

    def call(self, x: Any) -> Any:
        return x + self.place


def transformer() -> Any:
    rows = keras.Input((8, 8), name="rows")
    x = Place()(layers.Dense(64)(rows))
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, 16)(y, y)
        y = layers.Dense(128, activation="gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dense(64)(y)
    return keras.Model(rows, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


MAKERS = {"cnn": cnn, "transformer": transformer}


@pytest.fixture(scope="module", params=list(MAKERS))
def net(request: pytest.FixtureRequest) -> Any:
    keras.utils.set_random_seed(0)
    name = request.param
    model = MAKERS[name]()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(3e-3), loss)
    model.fit(
        images(model, TRAIN[0]),
        TRAIN[1],
        batch_size=64,
        epochs=14 if name == "cnn" else 25,
        verbose=0,
    )
    return model


def images(model: Any, raw: Any) -> Any:
    return raw[..., None] if len(model.input_shape) == 4 else raw


@pytest.fixture
def data(net: Any) -> Any:
    """With labels, as in training."""
    return tf.data.Dataset.from_tensor_slices((images(net, TRAIN[0]), TRAIN[1])).batch(32).take(8)


def test_trained_quantized_and_run(net: Any, data: Any) -> None:
    scores = net.predict(images(net, TEST[0]), verbose=0)
    expected = 100 * float((scores.argmax(1) == TEST[1]).mean())
    assert expected > 93
    result = rustq.quantize(net, data)
    assert result.calibration is not None and result.calibration.samples == 8
    assert accuracy(result, images(net, TEST[0])) > expected - 1
    if len(net.input_shape) == 4:
        # One Transpose of an input of one channel is a Reshape.
        assert "Transpose" not in result.op_counts
        assert "BatchNormalization" not in result.op_counts
        assert result.op_counts["Conv"] == 4
    assert rustq.compare(net, result, data).outputs[0].top1_agreement > 0.98


@pytest.mark.parametrize("form", ["net.keras", "net.h5", "saved"])
def test_files(form: str, data: Any, net: Any, tmp_path: Path) -> None:
    path = tmp_path / form
    if form == "saved":
        net.export(str(path), verbose=False)
    elif form == "net.h5" and len(net.input_shape) != 4:
        pytest.skip("Keras cannot read its own file of this network")
    else:
        net.save(path)
    scores = net.predict(images(net, TEST[0]), verbose=0)
    expected = 100 * float((scores.argmax(1) == TEST[1]).mean())
    model = rustq.load(path)
    assert abs(accuracy(model, images(net, TEST[0])) - expected) < 0.3
    assert accuracy(rustq.quantize(path, data), images(net, TEST[0])) > expected - 1


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "bad.keras"
    path.write_bytes(b"nothing")
    with pytest.raises(rustq.ModelError, match=r"bad\.keras: Keras cannot load it"):
        rustq.load(path)
    with pytest.raises(FileNotFoundError):
        rustq.load(tmp_path / "missing.keras")
