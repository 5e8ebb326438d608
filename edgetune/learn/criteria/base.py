"""What a criterion is, and how values of layers become values of coupled channels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, cast

import torch
from torch import nn

from edgetune.learn.groups import CoupledGroup, Member

Batch = tuple[torch.Tensor, torch.Tensor]


class Criterion(Protocol):
    """
    Ranks the channels of coupled groups.

    A class of one's own, named "package.module:Class" in the configuration, needs no more than this; it is called
    without arguments.

    Attributes:
        adds_up: scores are changes of the loss: those of several channels add up, and are weighed against what the
            channels cost. Otherwise the mean of a block's scores counts, whatever it costs.
    """

    adds_up: bool

    def score(self, model: nn.Module, groups: Sequence[CoupledGroup], batches: Iterable[Batch]) -> list[torch.Tensor]:
        """
        Score every channel of every group.

        Args:
            model: eval mode, one device.
            groups: of this model.
            batches: images [N, 3, H, W] float32, normalised; labels [N] int64; every class about as often as any
                other. Read only by criteria that need data.

        Returns:
            for each group, scores [channels] float64 on the CPU; larger = keep; comparable between groups.
        """


def filters(modules: dict[str, nn.Module], group: CoupledGroup) -> list[Member]:
    """The members that hold trainable filters of the group (frozen 0/1 shortcuts and empty layers say nothing)."""
    return [
        m
        for m in group.members
        if m.is_output
        and isinstance(modules[m.layer], (nn.Conv2d, nn.Linear))
        and modules[m.layer].weight.requires_grad
        and cast(torch.Tensor, modules[m.layer].weight).numel()
    ]


def outputs(modules: dict[str, nn.Module], group: CoupledGroup) -> list[Member]:
    """The members whose output is the group's activation: its batch norms, or its filters where there are none."""
    norms = [m for m in group.members if isinstance(modules[m.layer], (nn.BatchNorm2d, nn.BatchNorm1d))]
    return norms or filters(modules, group)


def readers(group: CoupledGroup) -> list[Member]:
    """The members that read the group's channels: the columns that a cut takes away."""
    return [m for m in group.members if not m.is_output]


def untouchable(group: CoupledGroup) -> torch.Tensor:
    """The scores of a group without trainable filters: it is left whole."""
    return torch.full((group.channels,), float("inf"), dtype=torch.float64)


def spread(values: torch.Tensor, member: Member, channels: int) -> torch.Tensor:
    """Values of a layer's channels [..., F] -> sums over the group's channels [..., channels], float64 on the CPU."""
    picked = values.detach().to("cpu", torch.float64)[..., torch.tensor(member.indices)]
    zeros = torch.zeros(*picked.shape[:-1], channels, dtype=torch.float64)
    return zeros.index_add_(-1, torch.tensor(member.roots), picked)


def mean_of(values: Sequence[torch.Tensor], members: Sequence[Member], channels: int) -> torch.Tensor:
    """Values of layers' channels [..., F] each -> for each of the group's channels the mean of all that belong to it."""
    total = torch.stack([spread(v, m, channels) for v, m in zip(values, members, strict=True)]).sum(dim=0)
    count = sum(torch.bincount(torch.tensor(m.roots), minlength=channels) for m in members)
    return total / count
