"""Wide residual networks for small images, and the widths that a network of three groups may have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """Channels of a residual network with three groups of blocks."""

    stem: int
    groups: tuple[tuple[int, int], ...]  # of each: between a block's convolutions, and at its end

    def __post_init__(self) -> None:
        if min(self.stem, *(width for group in self.groups for width in group)) < 1:
            raise ValueError(f"a layer needs a channel: {self}")

    @classmethod
    def even(cls, stem: int, *groups: int) -> Widths:
        """Every block as wide inside as at its end."""
        return cls(stem=stem, groups=tuple((width, width) for width in groups))


def convolution(channels: int, width: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Without a bias; keeps H and W at stride 1; starts as He et al. 2015 (arXiv 1502.01852), by the outputs."""
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions; [N, C, H, W] -> [N, outer, H / stride, W / stride]."""

    def __init__(self, channels: int, inner: int, outer: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = convolution(channels, inner, 3, stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = convolution(inner, outer, 3)
        self._has_shortcut = shortcut is not None
        if shortcut is not None:
            self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the shortcut, of the input as it is, to the two convolutions."""
        y = self.conv2(self.relu2(self.bn2(self.conv1(self.relu1(self.bn1(x))))))
        return cast(torch.Tensor, y + (self.shortcut(x) if self._has_shortcut else x))


class WideResNet(nn.Module):
    """
    Three groups of pre-activation blocks for 32x32 images.

    WRN-28-10 has four blocks a group: 36,479,194 weights with 10 classes where 1x1 convolutions are the shortcuts, and
    36,220,634 that are learnt where these only pad with zeros. It has no dropout.

    Source: Zagoruyko, Komodakis 2016 (arXiv 1605.07146), table 1; differs from its code in: the shortcut reads a block's
    input before the batch norm also where it is a convolution, as in He et al. 2016 (arXiv 1603.05027).
    """

    # what a group has made, after its ReLU: that is where the next group, or the head, begins
    taps = ("layer2.0.relu1", "layer3.0.relu1", "relu")

    def __init__(
        self, blocks: int, widths: Widths, num_classes: int, shortcut: Callable[[int, int, int], nn.Module]
    ) -> None:
        """`shortcut` makes that of a group's first block of channels, width and stride."""
        super().__init__()
        self.conv1 = convolution(3, widths.stem, 3)
        channels = widths.stem
        for stage, (inner, outer) in enumerate(widths.groups, start=1):
            layers: list[nn.Module] = []
            for index in range(blocks):
                stride = 2 if stage > 1 and index == 0 else 1
                cut = shortcut(channels, outer, stride) if index == 0 else None
                layers.append(PreActivationBlock(channels, inner, outer, stride, cut))
                channels = outer
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, H, W] float32 -> logits [N, num_classes]."""
        x = self.conv1(x)
        for stage in (1, 2, 3):
            x = getattr(self, f"layer{stage}")(x)
        x = self.avgpool(self.relu(self.bn1(x)))
        return cast(torch.Tensor, self.fc(torch.flatten(x, 1)))
