"""The small-image networks of the papers and of public CIFAR checkpoints, under the names those checkpoints use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import nn

from edgetune.learn.wide_resnet import WideResNet, Widths, convolution


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; [N, C, H, W] -> [N, width, H / stride, W / stride]."""

    def __init__(
        self, channels: int, width: int, stride: int, shortcut: nn.Module | None, shortcut_name: str, *, inner: int
    ) -> None:
        """`inner`: channels between the two."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self._shortcut = shortcut_name if shortcut is not None else ""
        if shortcut is not None:
            self.add_module(shortcut_name, shortcut)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the shortcut to the two convolutions."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        shortcut = x if not self._shortcut else getattr(self, self._shortcut)(x)
        return cast(torch.Tensor, self.relu(y + shortcut))


def projection(channels: int, width: int, stride: int) -> nn.Module:
    """A learned shortcut: 1x1 convolution and batch norm, named as in torchvision."""
    return nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))


def zero_padding(channels: int, width: int, stride: int) -> nn.Module:
    """
    The parameter-free shortcut of the CIFAR ResNets, as a frozen 1x1 convolution with weights 0 and 1.

    Equal to taking every second pixel and padding (width - channels) / 2 empty channels on both sides; written as a
    convolution so that pruning can follow the channels through it. Its weights are in the state and in `count_parameters`;
    `count_learnt` leaves them out.

    Raises:
        ValueError: the width is less than the channels.
    """
    if width < channels:
        raise ValueError(f"a zero-padded shortcut cannot lead {channels} channels into {width}")
    conv = nn.Conv2d(channels, width, 1, stride, bias=False)
    start = (width - channels) // 2
    weight = torch.zeros(width, channels, 1, 1)
    index = torch.arange(channels)
    weight[start + index, index] = 1.0
    conv.weight = nn.Parameter(weight, requires_grad=False)
    return conv


def convolved(channels: int, width: int, stride: int) -> nn.Module:
    """A learned shortcut: a 1x1 convolution alone, as in wide residual networks."""
    return convolution(channels, width, 1, stride)


def count_learnt(module: nn.Module) -> int:
    """How many weights training can change: without those of zero-padded shortcuts, or of layers that are frozen."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


RESNET_WIDTHS = Widths.even(16, 16, 32, 64)


class CifarResNet(nn.Module):
    """ResNet for 32x32 images: three stages, of 16, 32 and 64 channels if not said (He et al. 2015, section 4.2)."""

    def __init__(
        self,
        blocks: int,
        num_classes: int,
        shortcut: Callable[[int, int, int], nn.Module],
        shortcut_name: str,
        head: str,
        *,
        widths: Widths = RESNET_WIDTHS,
    ) -> None:
        """`widths`: as wide at the end of the first stage as the stem, for there the shortcut is the input itself."""
        super().__init__()
        channels = widths.stem
        if widths.groups[0][1] != channels:
            raise ValueError(f"the first stage of a ResNet ends as wide as the stem: {widths}")
        self.conv1 = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        for stage, (inner, width) in enumerate(widths.groups, start=1):
            layers: list[nn.Module] = []
            for index in range(blocks):
                stride = 2 if stage > 1 and index == 0 else 1
                cut = shortcut(channels, width, stride) if stage > 1 and index == 0 else None
                layers.append(BasicBlock(channels, width, stride, cut, shortcut_name, inner=inner))
                channels = width
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self._head = head
        self.add_module(head, nn.Linear(channels, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, H, W] float32 -> logits [N, num_classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            x = getattr(self, f"layer{stage}")(x)
        return cast(torch.Tensor, getattr(self, self._head)(torch.flatten(self.avgpool(x), 1)))


def resnet(depth: int) -> Callable[[int], nn.Module]:
    """ResNet with 1x1 projections and the head `fc`; depth 20 with 100 classes has 278,324 parameters."""
    return lambda num_classes: CifarResNet((depth - 2) // 6, num_classes, projection, "downsample", "fc")


def resnet_zero_padded(depth: int) -> Callable[[int], nn.Module]:
    """ResNet with parameter-free shortcuts and the head `linear`."""
    return lambda num_classes: CifarResNet((depth - 2) // 6, num_classes, zero_padding, "shortcut", "linear")


def wide_resnet(
    depth: int, widening: int, shortcut: Callable[[int, int, int], nn.Module] = zero_padding
) -> Callable[[int], nn.Module]:
    """WRN-depth-widening; its shortcuts have no parameters unless told otherwise."""
    widths = Widths.even(16, 16 * widening, 32 * widening, 64 * widening)
    return lambda num_classes: WideResNet((depth - 4) // 6, widths, num_classes, shortcut)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1; a shortcut (1x1 where the width changes) at stride 1."""

    def __init__(self, channels: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = expansion * channels
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity() if channels == width else projection(channels, width, 1)
        if stride != 1:
            del self.shortcut
        self._is_residual = stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, width, H / stride, W / stride]."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return cast(torch.Tensor, y + self.shortcut(x) if self._is_residual else y)


# expansion, width, blocks, stride: Sandler et al. 2018, table 2, with the strides of the stem and of the second row
# taken out for 32x32 images.
_MOBILENET_V2: Sequence[tuple[int, int, int, int]] = (
    (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


class CifarMobileNetV2(nn.Module):
    """MobileNetV2 for 32x32 images; with 100 classes it has 2,412,212 parameters."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.relu = nn.ReLU(inplace=True)
        blocks: list[nn.Module] = []
        channels = 32
        for expansion, width, count, first_stride in _MOBILENET_V2:
            for index in range(count):
                blocks.append(InvertedResidual(channels, width, expansion, first_stride if index == 0 else 1))
                channels = width
        self.layers = nn.Sequential(*blocks)
        self.conv2 = nn.Conv2d(channels, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(1280, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, H, W] float32 -> logits [N, num_classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(self.layers(x))))
        return cast(torch.Tensor, self.linear(torch.flatten(self.avgpool(x), 1)))


class CifarAlexNet(nn.Module):
    """AlexNet for 32x32 images: five convolutions and one linear layer; with 100 classes it has 2,495,396 weights."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)  # does nothing at 32x32; larger images are pooled
        self.classifier = nn.Linear(256, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, H, W] float32, H and W at least 29 -> logits [N, num_classes]."""
        return cast(torch.Tensor, self.classifier(torch.flatten(self.avgpool(self.features(x)), 1)))


def normalised(channels: int, width: int, kernel: int) -> nn.Module:
    """Convolution with a bias, batch norm and ReLU that keep H and W."""
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    )


class Fire(nn.Module):
    """Squeeze 1x1, then expand 1x1 beside expand 3x3, half of the width each (Iandola et al. 2016, section 3.2)."""

    def __init__(self, channels: int, width: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = normalised(channels, squeezed, 1)
        self.expand_1x1 = normalised(squeezed, width // 2, 1)
        self.expand_3x3 = normalised(squeezed, width // 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, channels, H, W] -> [N, width, H, W]."""
        x = self.squeeze(x)
        return torch.cat([self.expand_1x1(x), self.expand_3x3(x)], dim=1)


# width, squeezed width, whether the input is added to the output, whether a pooling follows: of the modules 2 to 9
_SQUEEZENET: Sequence[tuple[int, int, bool, bool]] = (
    (128, 16, False, False), (128, 16, True, False), (256, 32, False, True), (256, 32, True, False),
    (384, 48, False, False), (384, 48, True, False), (512, 64, False, True), (512, 64, False, False),
)  # fmt: skip


class CifarSqueezeNet(nn.Module):
    """SqueezeNet with batch norm and shortcuts for 32x32 images; with 100 classes it has 781,156 parameters."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*cast(nn.Sequential, normalised(3, 96, 3)), nn.MaxPool2d(2, 2))
        channels = 96
        for number, (width, squeezed, _, _) in enumerate(_SQUEEZENET, start=2):
            self.add_module(f"fire{number}", Fire(channels, width, squeezed))
            channels = width
        self.conv10 = nn.Conv2d(channels, num_classes, 1)
        self.avg = nn.AdaptiveAvgPool2d(1)
        self.maxpool = nn.MaxPool2d(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, H, W] float32 -> logits [N, num_classes]."""
        x = self.stem(x)
        for number, (_, _, is_residual, is_pooled) in enumerate(_SQUEEZENET, start=2):
            y = getattr(self, f"fire{number}")(x)
            x = x + y if is_residual else y
            x = self.maxpool(x) if is_pooled else x
        return torch.flatten(self.avg(self.conv10(x)), 1)


CIFAR_BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "resnet8": resnet(8),
    "resnet20": resnet(20),
    "resnet56": resnet(56),
    "resnet8a": resnet_zero_padded(8),
    "resnet20a": resnet_zero_padded(20),
    "resnet56a": resnet_zero_padded(56),
    "wrn10_10": wide_resnet(10, 10),
    "wrn28_10": wide_resnet(28, 10),
    "wrn10_10p": wide_resnet(10, 10, convolved),  # p: the shortcuts are projections
    "wrn28_10p": wide_resnet(28, 10, convolved),
    "mobilenet_v2": CifarMobileNetV2,
    "alexnet": CifarAlexNet,
    "squeezenet": CifarSqueezeNet,
}
