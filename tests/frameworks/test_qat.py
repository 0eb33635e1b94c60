"""Training with quantization in the loop, in PyTorch: what it wins back, and that the file computes it."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import onnx  # noqa: E402
import rustq  # noqa: E402
import rustq.torch  # noqa: E402
from digits import TEST, TRAIN, accuracy  # noqa: E402
from mobile import DATA, Mobile, score, trained, uneven  # noqa: E402
from onnx import numpy_helper  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")

IMAGES = TEST[0][:, None]
CALIBRATION = [torch.from_numpy(TRAIN[0][i : i + 64, None]) for i in range(0, 256, 64)]


@pytest.fixture(scope="module")
def net() -> Any:
    """Of the function that it was trained to, but with channels of very different size."""
    return uneven(trained(Mobile(), 12, 3e-3), math.log(10))


def outputs(model: Any) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    content = model if isinstance(model, bytes) else model.to_bytes()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: IMAGES})[0]


def error(found: Any, expected: Any) -> float:
    """Relative. A value half-way between two integers may become either: sums depend on their
    order."""
    return float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))


def fake(module: Any) -> Any:
    module.eval()
    with torch.no_grad():
        return module(torch.from_numpy(IMAGES)).numpy()


@pytest.mark.parametrize("learned", [False, True])
def test_training_recovers_what_one_scale_for_a_tensor_costs(
    net: Any, learned: bool, tmp_path: Path
) -> None:
    plain = rustq.QuantConfig(
        per_channel=False, method="minmax", bias_correction=False, equalize=False, noise_price=0
    )
    before = accuracy(rustq.quantize(net, CALIBRATION, config=plain), IMAGES)
    qat = rustq.torch.prepare_qat(net, CALIBRATION, per_channel=False, learn_scales=learned)
    trained(qat, 8, 1e-3, fresh=False)
    after = score(qat)
    assert score(net) > 98
    assert before < 92
    assert after > before + 5
    assert after > 96
    path = rustq.torch.export(qat, tmp_path / "qat.onnx")
    assert error(outputs(path.read_bytes()), fake(qat)) < 0.02
    result = rustq.quantize(path)
    assert abs(accuracy(result, IMAGES) - after) < 0.6
    assert all(layer.quantized for layer in result.report.layers)


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt", "ascend", "ncnn"])
def test_the_file_is_for_every_target(net: Any, target: str, tmp_path: Path) -> None:
    scheme = "asym" if target in ("onnxruntime", "ascend") else "sym"
    qat = rustq.torch.prepare_qat(net, CALIBRATION, scheme=scheme)
    path = rustq.torch.export(qat, tmp_path / "qat.onnx")
    config = rustq.QuantConfig(input_shapes={"image": (1, 1, 8, 8)} if target == "ncnn" else {})
    result = rustq.quantize(path, target=target, config=config)
    assert result.report.notes[0].startswith("the scales of ")
    assert not any("stands for the given" in note for note in result.report.notes)
    if target == "onnxruntime":
        assert error(outputs(result), fake(qat)) < 0.05


def scales(path: Path) -> dict[str, Any]:
    graph = onnx.load(path).graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    return {n.name: constants[n.input[1]] for n in graph.node if n.op_type == "DequantizeLinear"}


def _quantizers(module: Any) -> list[Any]:
    return [p for p in module.modules() if isinstance(p, rustq.torch.ActivationQuantizer)]


def test_ranges_are_those_of_rustq(net: Any, tmp_path: Path) -> None:
    config = rustq.QuantConfig(method="percentile", percentile=99.0)
    qat = rustq.torch.prepare_qat(net, CALIBRATION, config=config)
    float_model = rustq.load(net, example_inputs=CALIBRATION[0])
    calibration = rustq.calibrate(float_model, [batch.numpy() for batch in CALIBRATION])
    low, high = calibration.range("image", "percentile", percentile=99.0)
    first = qat.stem[0].input_quantizer
    assert float(first.scale) == pytest.approx((high - low) / 255, rel=1e-6)
    looked_up = rustq.torch.prepare_qat(
        net, rustq.calibrate(net, CALIBRATION), example_inputs=CALIBRATION[0], config=config
    )
    both = zip(_quantizers(qat), _quantizers(looked_up), strict=True)
    assert all(float(a.scale) == pytest.approx(float(b.scale), rel=0.05) for a, b in both)
    with pytest.raises(rustq.DataError, match="example_inputs"):
        rustq.torch.prepare_qat(net, calibration)
    # Wider by the room that pairs of products need, but not more than twice.
    for layer in (qat.stem[0], qat.a.body[0], qat.head):
        weight = layer.parametrizations.weight
        limits = weight.original.detach().flatten(1).abs().amax(1)
        ratio = 127 * weight[0].scales(weight.original).detach() / limits
        assert (ratio > 0.999).all() and (ratio < 2.001).all()


def test_normalization_is_folded_and_the_module_left_alone(net: Any) -> None:
    before = copy.deepcopy(net.state_dict())
    qat = rustq.torch.prepare_qat(net, CALIBRATION)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in qat.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert any(isinstance(part, nn.BatchNorm2d) for part in net.modules())
    assert error(fake(qat), fake(net)) < 0.3
    copied = copy.deepcopy(qat)
    with torch.no_grad():
        copied.stem[0].parametrizations.weight.original.zero_()
    assert not np.allclose(fake(copied), fake(qat))


def test_exporting_leaves_the_module_trainable(net: Any, tmp_path: Path) -> None:
    qat = rustq.torch.prepare_qat(net, CALIBRATION, weight_bits=4)
    expected = fake(qat)
    qat.train()
    rustq.torch.export(qat, tmp_path / "one.onnx")
    assert qat.training
    np.testing.assert_array_equal(fake(qat), expected)
    trained(qat, 1, 1e-4, fresh=False)
    rustq.torch.export(qat, tmp_path / "two.onnx")
    assert outputs((tmp_path / "two.onnx").read_bytes()).shape == expected.shape


def test_scales_are_learned(net: Any) -> None:
    qat = rustq.torch.prepare_qat(net, CALIBRATION, weight_bits=4)
    learned = {n for n, _ in qat.named_parameters() if n.endswith(("scale", "step"))}
    before = {n: p.detach().clone() for n, p in qat.named_parameters() if n in learned}
    trained(qat, 1, 1e-3, fresh=False)
    after = dict(qat.named_parameters())
    assert any(n.endswith("step") for n in learned) and any(n.endswith("scale") for n in learned)
    assert all(not torch.equal(before[n], after[n]) for n in learned)


def test_state_is_saved_and_loaded(net: Any, tmp_path: Path) -> None:
    one = rustq.torch.prepare_qat(net, CALIBRATION, weight_bits=4)
    trained(one, 1, 1e-3, fresh=False)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    two = rustq.torch.prepare_qat(net, weight_bits=4, example_inputs=CALIBRATION[0])
    two.load_state_dict(torch.load(tmp_path / "state.pt"))
    np.testing.assert_array_equal(fake(one), fake(two))


def test_without_data_the_first_batch_counts(net: Any, tmp_path: Path) -> None:
    qat = rustq.torch.prepare_qat(net)  # traced
    with pytest.raises(rustq.DataError, match="nothing is known of the module's inputs"):
        rustq.torch.export(qat, tmp_path / "qat.onnx")
    with pytest.raises(rustq.DataError, match="has no range yet"):
        rustq.torch.export(qat, tmp_path / "qat.onnx", example_inputs=CALIBRATION[0])
    trained(qat, 1, 1e-3, fresh=False)
    path = rustq.torch.export(qat, tmp_path / "qat.onnx", example_inputs=CALIBRATION[0])
    assert error(outputs(path.read_bytes()), fake(qat)) < 0.02


class Dynamic(nn.Module):
    """What it calls depends on values; one layer is called twice, a ReLU three times, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Any) -> Any:
        x = self.relu(self.a(x.flatten(1)))
        if x.mean() > -1:
            x = self.relu(self.b(x)) + x
        return self.c(self.relu(self.b(x)))


def test_modules_that_cannot_be_traced_are_run() -> None:
    torch.manual_seed(0)
    with pytest.raises(rustq.UnsupportedError, match="pass calibration data, or example_inputs"):
        rustq.torch.prepare_qat(Dynamic())
    net = Dynamic()
    qat = rustq.torch.prepare_qat(net, CALIBRATION)
    with torch.no_grad():
        expected = net(torch.from_numpy(IMAGES)).numpy()
    assert 0 < float(np.abs(fake(qat) - expected).max()) < 0.1 * np.abs(expected).max()
    assert sum(isinstance(p, rustq.torch.WeightQuantizer) for p in qat.modules()) == 3


def test_attention(tmp_path: Path) -> None:
    """Its inner products are functions: they stay as they are."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    net = nn.Sequential(nn.Linear(8, 32), nn.TransformerEncoder(layer, 1), nn.Linear(32, 10))
    rows = [torch.from_numpy(TRAIN[0][:32])]
    qat = rustq.torch.prepare_qat(net, rows)
    path = rustq.torch.export(qat, tmp_path / "qat.onnx")
    qat.eval()
    with torch.no_grad():
        expected = qat(rows[0]).numpy()
    result = rustq.quantize(path)
    import onnxruntime as ort

    session = ort.InferenceSession(result.to_bytes(), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: rows[0].numpy()})[0]
    assert np.abs(found - expected).mean() < 0.02 * np.abs(expected).max()


def test_arguments_are_checked(net: Any, tmp_path: Path) -> None:
    prepare = rustq.torch.prepare_qat
    with pytest.raises(TypeError, match="expected a torch"):
        prepare("net")
    with pytest.raises(ValueError, match="unknown scheme"):
        prepare(net, CALIBRATION, scheme="both")
    with pytest.raises(ValueError, match="from 2 to 8"):
        prepare(net, CALIBRATION, weight_bits=9)
    with pytest.raises(ValueError, match="prepared already"):
        prepare(prepare(net, CALIBRATION), CALIBRATION)
    with pytest.raises(ValueError, match="not prepared"):
        rustq.torch.export(net, tmp_path / "net.onnx")
    with pytest.raises(rustq.UnsupportedError, match="to quantize"):
        prepare(nn.ReLU(), CALIBRATION)
    qat = prepare(net, DataLoader(DATA, batch_size=64), exclude=["head", "a.*"])
    kept = {n for n, p in qat.named_modules() if isinstance(p, rustq.torch.WeightQuantizer)}
    assert kept and not any(name.startswith(("head", "a.")) for name in kept)
