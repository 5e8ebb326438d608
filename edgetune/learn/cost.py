"""What a network costs, and what is left of it while channels are chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from edgetune.learn.groups import CoupledGroup
from edgetune.learn.network import Network, count_macs, count_parameters, output_positions
from edgetune.types import Preprocess


@dataclass(frozen=True, slots=True)
class Size:
    """Of a network: what can be counted without running it on a board."""

    parameters: int
    macs: int  # multiply-accumulates of convolutions and linear layers for one image

    def of(self, unit: str) -> int:
        """One of the two by its name, "parameters" or "macs"."""
        return self.parameters if unit == "parameters" else self.macs


def size_of(network: Network, preprocess: Preprocess) -> Size:
    """What a network costs."""
    macs = count_macs(network.module, preprocess.height, preprocess.width)
    return Size(count_parameters(network.module), macs)


class CostCounter:
    """How large a network would be, kept up to date as channels of its groups go and come back; nothing is cut."""

    def __init__(self, model: nn.Module, groups: Sequence[CoupledGroup], height: int, width: int) -> None:
        self._modules = dict(model.named_modules())
        self._groups = groups
        self._positions = output_positions(model, height, width)
        # rows and columns that are left of every layer's weight
        self._left = {m.layer: [self._rows(m.layer), self._columns(m.layer)] for group in groups for m in group.members}
        fixed = sum(
            self._positions[name] * cast(torch.Tensor, self._modules[name].weight).numel()
            for name in self._positions
            if name not in self._left
        )
        changing = [self._count(layer) for layer in self._left]
        self.size = Size(count_parameters(model), fixed + sum(size.macs for size in changing))

    def remove(self, group: int, channels: Sequence[int]) -> None:
        """Take channels of a group out."""
        self._change(group, channels, -1)

    def restore(self, group: int, channels: Sequence[int]) -> None:
        """Put them back."""
        self._change(group, channels, 1)

    def would_empty(self, group: int, channels: Sequence[int]) -> bool:
        """Whether a layer would have none left: of a concatenation that a sum couples, each part is a layer."""
        self.remove(group, channels)
        is_empty = any(0 in self._left[member.layer] for member in self._groups[group].members)
        self.restore(group, channels)
        return is_empty

    def saving(self, group: int, channels: Sequence[int], unit: str) -> int:
        """What removing these channels would save now, in a unit of `Size.of`."""
        before = self.size
        self.remove(group, channels)
        saved = before.of(unit) - self.size.of(unit)
        self.restore(group, channels)
        return saved

    def _change(self, group: int, channels: Sequence[int], sign: int) -> None:
        gone = set(channels)
        layers = {m.layer for m in self._groups[group].members}
        before = [self._count(layer) for layer in layers]
        for member in self._groups[group].members:
            count = sum(root in gone for root in member.roots)
            module = self._modules[member.layer]
            if not member.is_output and isinstance(module, nn.Conv2d):
                count //= module.groups
            self._left[member.layer][0 if member.is_output else 1] += sign * count
        after = [self._count(layer) for layer in layers]
        self.size = Size(
            self.size.parameters + sum(s.parameters for s in after) - sum(s.parameters for s in before),
            self.size.macs + sum(s.macs for s in after) - sum(s.macs for s in before),
        )

    def _rows(self, layer: str) -> int:
        weight = self._modules[layer].weight
        return int(cast(torch.Tensor, weight).shape[0]) if weight is not None else 0

    def _columns(self, layer: str) -> int:
        module = self._modules[layer]
        return int(module.weight.shape[1]) if isinstance(module, (nn.Conv2d, nn.Linear)) else 1

    def _count(self, layer: str) -> Size:
        module = self._modules[layer]
        rows, columns = self._left[layer]
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            return Size(2 * rows if module.affine else 0, 0)
        weights = rows * columns * math.prod(cast(torch.Tensor, module.weight).shape[2:])
        return Size(weights + (rows if module.bias is not None else 0), weights * self._positions[layer])
