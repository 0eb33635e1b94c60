"""torchvision's networks as ONNX files: BatchNormalization kept, random weights and statistics.

    python benches/torchvision_models.py FOLDER [NAME ...]

Folding is about structure, so nothing is downloaded. Needs torch, torchvision and onnx.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

NAMES = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "inception_v3",
    "shufflenet_v2_x1_0",
    "efficientnet_b0",
    "densenet121",
    "unet",
    "vit_b_16",
)
SIDE = {"inception_v3": 299}
OPSET = 17


def unet() -> Any:
    """Two levels down, two up: ConvTranspose and BatchNormalization, skips by concatenation."""
    import torch
    from torch import nn

    def block(inputs: int, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for depth in (inputs, outputs):
            convolution = nn.Conv2d(depth, outputs, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    def up(inputs: int, outputs: int) -> nn.Sequential:
        convolution = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.ModuleList([block(3, 16), block(16, 32), block(32, 64)])
            self.up = nn.ModuleList([up(64, 32), up(32, 16)])
            self.merge = nn.ModuleList([block(64, 32), block(32, 16)])
            self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(16, 2, 1)

        def forward(self, x: Any) -> Any:
            first = self.down[0](x)
            second = self.down[1](self.pool(first))
            y = self.up[0](self.down[2](self.pool(second)))
            y = self.merge[0](torch.cat([y, second], 1))
            y = self.merge[1](torch.cat([self.up[1](y), first], 1))
            return self.head(y)

    return UNet()


def build(name: str, seed: int = 0) -> Any:
    """The network, with statistics as if it had been trained, in evaluation mode."""
    import torch
    import torchvision

    torch.manual_seed(seed)
    model = unet() if name == "unet" else torchvision.models.get_model(name, weights=None)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
        # A transformer's head starts with zeros, and with it every output.
        elif isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.05)
    return model.eval()


def export(name: str, path: Path) -> None:
    """Writes the network to `path`, one image per batch."""
    import torch

    side = SIDE.get(name, 224)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            build(name),
            (torch.zeros(1, 3, side, side),),
            path,
            input_names=["input"],
            output_names=["output"],
            opset_version=OPSET,
            # Otherwise the exporter folds BatchNormalization itself.
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            dynamo=False,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", default=NAMES)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        path = options.folder / f"{name}.onnx"
        if not path.exists():
            export(name, path)
        print(path)


if __name__ == "__main__":
    main()
