"""What is left in the place of layers whose channels are all gone: PyTorch itself computes nothing with no channels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


class EmptyConv2d(nn.Conv2d):
    """
    A convolution that reads or gives no channel, with weights [out, 0, ...] or [0, in, ...] and no bias.

    Gives zeros [N, out_channels, H', W'] whatever it is given: the sum over nothing. Where it has no output channel
    either it gives one of zeros, for the layers between (a pooling takes no empty tensor) and for another empty
    convolution to ignore.
    """

    def __init__(self, layer: nn.Conv2d, sizes: Mapping[str, int]) -> None:
        """Take the geometry of `layer`; `sizes` are its new in_channels, out_channels and groups."""
        super().__init__(1, 1, 1, bias=False)
        self.kernel_size, self.stride = layer.kernel_size, layer.stride
        self.padding, self.dilation = layer.padding, layer.dilation
        self.in_channels, self.out_channels, self.groups = sizes["in_channels"], sizes["out_channels"], 1
        self.weight = nn.Parameter(
            layer.weight.detach().new_empty(self.out_channels, self.in_channels, *layer.kernel_size),
            requires_grad=layer.weight.requires_grad,
        )
        self.train(layer.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102 - the class says it
        y = x.new_zeros(x.shape[0], max(1, self.out_channels), *self._size(int(x.shape[2]), int(x.shape[3])))
        if torch.is_grad_enabled() and self.weight.requires_grad:
            y = y + self.weight.sum()  # of no elements, or of what nobody reads: the tracer of groups follows gradients
        return y

    def _size(self, *sides: int) -> tuple[int, ...]:
        if self.padding == "same":
            return sides
        padding = (0, 0) if isinstance(self.padding, str) else self.padding
        return tuple(
            (side + 2 * padding[i] - self.dilation[i] * (self.kernel_size[i] - 1) - 1) // self.stride[i] + 1
            for i, side in enumerate(sides)
        )


class EmptyNorm(nn.Identity):
    """A batch norm between empty convolutions, or after one: it hands on what it is given."""

    num_features = 0


def is_empty(sizes: Mapping[str, int]) -> bool:
    """Whether a layer of these dimensions reads or gives nothing."""
    return any(sizes.get(name) == 0 for name in ("in_channels", "out_channels", "num_features"))


def replace_by_empty(model: nn.Module, name: str, sizes: Mapping[str, int]) -> None:
    """Put the empty layer of these dimensions in the place of the layer `name`, a Conv2d or BatchNorm2d."""
    layer = model.get_submodule(name)
    parent, _, child = name.rpartition(".")
    new = EmptyConv2d(layer, sizes) if isinstance(layer, nn.Conv2d) else EmptyNorm()
    setattr(model.get_submodule(parent), child, new)
