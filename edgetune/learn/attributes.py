"""
What a training step of a network consists of, counted without running one: the attributes a forecast is made from.

Of each layer its shape and size; of the whole network the bytes that autograd keeps for an image. Source of the idea:
Rajagopal and Bouganis, "perf4sight" (arXiv 2108.05580); differs from it in: kept activations are asked of autograd itself
and not summed up from shapes, so that in-place layers and shared storages count as they do in a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from edgetune.learn.network import show
from edgetune.types import Workload

_FLOAT_BYTES = 4
_MIB = 2**20
_KINDS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d)
_TILE = 32  # channels that a GEMM's tile holds: narrower layers take as long


@dataclass(frozen=True, slots=True)
class Layer:
    """One use of a layer with weights, for one image."""

    kind: str  # "dense": kernel larger than 1x1; "pointwise", "grouped", "linear", "norm"
    kernel: int  # height times width
    groups: int
    in_channels: int
    out_channels: int
    in_positions: int
    out_positions: int

    @property
    def weights(self) -> int:
        """Without a bias."""
        if self.kind == "norm":
            return 2 * self.out_channels
        return self.kernel * self.out_channels * self.in_channels // self.groups

    @property
    def macs(self) -> int:
        """Of a forward pass; the gradients of the inputs and of the weights take as many each."""
        return 0 if self.kind == "norm" else self.weights * self.out_positions

    @property
    def tiled_macs(self) -> float:
        """As if channels came in whole tiles, and 3x3 kernels of stride 1 by Winograd's algorithm (a multiplication for 2.25)."""
        tiles = math.ceil(self.in_channels * self.kernel / _TILE) * math.ceil(self.out_channels / _TILE)
        is_winograd = self.kernel == 9 and self.in_positions == self.out_positions
        return tiles * _TILE * _TILE * self.out_positions / (2.25 if is_winograd else 1.0)

    @property
    def floats(self) -> int:
        """Read and written by a forward pass."""
        return self.in_channels * self.in_positions + self.out_channels * self.out_positions


def layers_of(module: nn.Module, image: torch.Tensor, only: Collection[nn.Module] | None = None) -> list[Layer]:
    """
    The layers with weights in the order in which they run.

    Args:
        module: in any mode, which is left as it was.
        image: [1, 3, H, W] on the module's device.
        only: those to look at; None: all.
    """
    found: list[Layer] = []

    def look(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        found.append(_layer(layer, inputs[0], output))

    watched = [m for m in module.modules() if isinstance(m, _KINDS) and (only is None or m in only)]
    show(module, image, [layer.register_forward_hook(look) for layer in watched])
    return [layer for layer in found if layer.out_channels > 0]


def workload(layers: Sequence[Layer], *, kept_bytes: float, trained: Sequence[Layer] | None = None) -> Workload:
    """
    What a forecast is made from.

    Args:
        layers: of the network.
        kept_bytes: that autograd keeps for one image.
        trained: those of them that a step updates; None: all.
    """
    updated = layers if trained is None else trained

    def work(of: Callable[[Layer], float]) -> float:  # a backward pass is as much as two forward passes
        return (sum(map(of, layers)) + 2 * sum(map(of, updated))) / 3e6

    return Workload(
        kept_mib=kept_bytes / _MIB,
        largest_mib=max((_FLOAT_BYTES * layer.floats for layer in layers if layer.kind != "norm"), default=0) / _MIB,
        mega_macs=work(lambda layer: layer.tiled_macs if layer.kind in ("dense", "pointwise") else 0.0),
        grouped_mega_macs=work(lambda layer: layer.macs if layer.kind == "grouped" else 0.0),
        layers=len(layers),
        mega_weights=sum(layer.weights for layer in updated) / 1e6,
    )


def _layer(layer: nn.Module, given: torch.Tensor, made: torch.Tensor) -> Layer:
    in_positions, out_positions = math.prod(given.shape[2:]), math.prod(made.shape[2:])
    in_channels, out_channels = int(given.shape[1]), int(made.shape[1])
    if isinstance(layer, nn.Conv2d):
        kernel = math.prod(cast(tuple[int, int], layer.kernel_size))
        if layer.groups > 1:
            return Layer("grouped", kernel, layer.groups, in_channels, out_channels, in_positions, out_positions)
        kind = "dense" if kernel > 1 else "pointwise"
        return Layer(kind, kernel, 1, in_channels, out_channels, in_positions, out_positions)
    kind = "linear" if isinstance(layer, nn.Linear) else "norm"
    return Layer(kind, 1, 1, in_channels, out_channels, in_positions, out_positions)
