"""Networks trained in PyTorch on real digits, exported, quantized and run in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import rustq  # noqa: E402
import rustq.frameworks.torch as exporter  # noqa: E402
from digits import TEST, TRAIN, accuracy  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")


def block(inputs: int, outputs: int, **more: Any) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, **more)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [
            *block(1, 32),
            *block(32, 64, stride=2),
            *block(64, 64, groups=64),
            *block(64, 64),
        ]
        self.layers = nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
        )

    def forward(self, image: Any) -> Any:
        return self.layers(image)


class Transformer(nn.Module):
    """A row of pixels is a token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 64)
        self.place = nn.Parameter(torch.zeros(1, 8, 64))
        layer = nn.TransformerEncoderLayer(
            64, 4, 128, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, rows: Any) -> Any:
        return self.head(self.encoder(self.embed(rows) + self.place).mean(1))


def images(net: nn.Module, raw: Any) -> Any:
    return torch.from_numpy(raw[:, None] if isinstance(net, Cnn) else raw)


def trained(net: nn.Module, epochs: int, rate: float = 3e-3) -> nn.Module:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # small products gain nothing by more
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    data = TensorDataset(images(net, TRAIN[0]), torch.from_numpy(TRAIN[1]))
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate)
    for _ in range(epochs):
        for x, y in DataLoader(data, batch_size=64, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net


@pytest.fixture(scope="module", params=[Cnn, Transformer])
def net(request: pytest.FixtureRequest) -> nn.Module:
    return trained(request.param(), 8 if request.param is Cnn else 16)


@pytest.fixture
def loader(net: nn.Module) -> Any:
    """With labels, as in training."""
    data = TensorDataset(images(net, TRAIN[0][:256]), torch.from_numpy(TRAIN[1][:256]))
    return DataLoader(data, batch_size=32)


def float_accuracy(net: nn.Module) -> float:
    net.eval()
    with torch.no_grad():
        scores = net(images(net, TEST[0])).numpy()
    net.train()
    return 100 * float((scores.argmax(1) == TEST[1]).mean())


def test_trained_quantized_and_run(net: nn.Module, loader: Any) -> None:
    expected = float_accuracy(net)
    assert expected > 93
    result = rustq.quantize(net, loader)
    assert net.training  # as it was
    found = accuracy(result, images(net, TEST[0]).numpy())
    assert found > expected - 1, (expected, found)
    assert "BatchNormalization" not in result.op_counts
    report = rustq.compare(net, result, loader)
    assert report.outputs[0].top1_agreement > 0.98


@pytest.mark.parametrize("way", ["by_dynamo", "by_torchscript"])
def test_both_exporters_keep_normalization_and_an_open_batch(
    net: nn.Module, loader: Any, way: str
) -> None:
    inputs = exporter.Inputs.of(net, [next(iter(loader))])
    with exporter.evaluating(net), exporter.silence():
        model = rustq.load(getattr(exporter, way)(net, inputs, True))
    if isinstance(net, Cnn):
        assert model.op_counts["BatchNormalization"] == 4
        assert "BatchNormalization" not in rustq.fold(model).op_counts
    (value,) = model.inputs
    assert value.name == ("image" if isinstance(net, Cnn) else "rows")
    assert not isinstance(value.shape[0], int)
    assert abs(accuracy(model, images(net, TEST[0]).numpy()) - float_accuracy(net)) < 0.3


def test_data_in_the_forms_of_torch(loader: Any) -> None:
    net = Cnn()
    shape = loader.dataset[0][0].shape
    if len(shape) != 3:
        pytest.skip("for the network of images")
    counts = [
        rustq.calibrate(net, data).samples
        for data in (loader, loader.dataset, (x for x, _ in loader))
    ]
    assert counts == [8, 256, 8]


def test_dynamic_and_low_bit() -> None:
    net = trained(Transformer(), 12)
    batch = torch.from_numpy(TEST[0])
    model = rustq.load(net, example_inputs=batch[:1])
    for config in (rustq.QuantConfig(), rustq.QuantConfig(weights="int4")):
        result = rustq.quantize(model, config=config)
        assert accuracy(result, TEST[0]) > float_accuracy(net) - 1.5


def test_a_module_that_cannot_be_exported() -> None:
    class Bad(nn.Module):
        def forward(self, x: Any) -> Any:
            raise RuntimeError("no way")

    with pytest.raises(rustq.ModelError, match="no way"):
        rustq.load(Bad(), example_inputs=torch.zeros(1, 3))


def test_inputs_by_name() -> None:
    class Two(nn.Module):
        def forward(self, ids: Any, mask: Any, scale: float = 1.0) -> Any:
            return (ids * mask).sum(1) * scale

    sample = {
        "mask": torch.ones(1, 5),
        "ids": np.ones((1, 5), np.float32),
        "labels": torch.zeros(1),
    }
    model = rustq.load(Two(), example_inputs=sample)
    assert {value.name for value in model.inputs} == {"ids", "mask"}
