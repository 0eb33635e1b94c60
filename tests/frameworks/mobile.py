"""A small mobile network for digits, and its training."""

from __future__ import annotations

from typing import Any

import torch
from digits import TEST, TRAIN
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

DATA = TensorDataset(torch.from_numpy(TRAIN[0][:, None]), torch.from_numpy(TRAIN[1]))


def block(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> list[Any]:
    """Convolution, normalization, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


class Inverted(nn.Module):
    """An inverted residual block."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        project = [nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        self.body = nn.Sequential(
            *block(channels, wide, 1), *block(wide, wide, groups=wide), *project
        )

    def forward(self, x: Any) -> Any:
        return x + self.body(x)


class Mobile(nn.Module):
    """Nine layers with weights, two skips, 16,000 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*block(1, 16))
        self.a = Inverted(16, 4)
        self.down = nn.Sequential(*block(16, 24, stride=2))
        self.b = Inverted(24, 4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(24, 10)

    def forward(self, image: Any) -> Any:
        x = self.b(self.down(self.a(self.stem(image))))
        return self.head(self.pool(x).flatten(1))


def trained(net: Any, epochs: int, rate: float, fresh: bool = True) -> Any:
    """Trains on digits, from new weights or those that are there."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # small products gain nothing by more
    if fresh:
        for module in net.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for x, y in DataLoader(DATA, batch_size=64, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        schedule.step()
    return net


@torch.no_grad()
def uneven(net: Mobile, spread: float) -> Mobile:
    """Multiplies the channels inside the blocks by e^-spread to e^spread, and divides what reads them: the function stays
    what it is, but one scale does not fit all channels."""
    random = torch.Generator().manual_seed(0)
    for part in (net.a, net.b):
        _, first, _, depthwise, second, _, last, _ = part.body
        for norm, reader in ((first, depthwise), (second, last)):
            factors = torch.exp((2 * torch.rand(norm.num_features, generator=random) - 1) * spread)
            norm.weight.mul_(factors)
            norm.bias.mul_(factors)
            along = (-1, 1, 1, 1) if reader.groups > 1 else (1, -1, 1, 1)
            reader.weight.div_(factors.view(along))
    return net


def score(net: Any) -> float:
    """Share of the test images that are told right, in percent."""
    was = net.training
    net.eval()
    with torch.no_grad():
        found = net(torch.from_numpy(TEST[0][:, None])).argmax(1).numpy()
    net.train(was)
    return 100 * float((found == TEST[1]).mean())
