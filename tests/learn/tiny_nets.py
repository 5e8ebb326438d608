"""Small networks for tests, as a user's own module would hold them."""

from __future__ import annotations

import torch
from torch import nn


class TinyNet(nn.Module):
    """Stem, one residual block, one depthwise block; dropout makes the random state matter."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))
        self.expand = nn.Sequential(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.depth = nn.Sequential(nn.Conv2d(32, 32, 3, 2, 1, groups=32, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(32, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, H, W] -> logits."""
        x = self.stem(x)
        x = torch.relu(x + self.left(x))
        x = self.depth(self.expand(x))
        return self.head(self.drop(x.mean(dim=(2, 3))))


def tiny(num_classes: int) -> nn.Module:
    """The builder."""
    return TinyNet(num_classes)


def steady(num_classes: int) -> nn.Module:
    """The builder of the same without dropout: the same on every torch and every processor."""
    module = TinyNet(num_classes)
    module.drop.p = 0.0
    return module


def two_heads(num_classes: int) -> nn.Module:
    """A builder that no round can widen."""
    return nn.ModuleDict({"one": nn.Linear(4, num_classes), "two": nn.Linear(4, num_classes)})


class Exploding(TinyNet):
    """Its loss is never finite."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """NaN in training, finite otherwise (so that it can be imported)."""
        y = super().forward(x)
        return y / 0.0 * 0.0 if self.training else y


def exploding(num_classes: int) -> nn.Module:
    """The builder of a network whose training loss is NaN."""
    return Exploding(num_classes)


class Hungry(TinyNet):
    """There is never enough memory to train it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """torch's own words for it, in training."""
        if self.training:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried")
        return super().forward(x)


def hungry(num_classes: int) -> nn.Module:
    """The builder of a network that needs more memory than there is."""
    return Hungry(num_classes)


class Gated(TinyNet):
    """Beside the others a layer with one channel for every pixel, of which none can be cut."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.gate = nn.Conv2d(3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images -> logits, the bright parts louder."""
        return super().forward(x * torch.sigmoid(self.gate(x)))


def gated(num_classes: int) -> nn.Module:
    """A network with a layer that cannot be pruned."""
    return Gated(num_classes)


class Boom:
    """A criterion of a user's own, which fails."""

    adds_up = True

    def score(self, *_: object) -> None:
        """Nothing."""
        raise ValueError("boom")
