"""Criteria that look at no image: the paper's, and the control."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from edgetune.learn.criteria.base import Batch, filters, mean_of, untouchable
from edgetune.learn.groups import CoupledGroup


class MeanMagnitude:
    """
    Mean |w| of a filter: data enters through the fine-tuning before it.

    Source: arXiv 2006.08554 and its code: L1 norm over the number of weights, one ranking over all convolutions. Of
    coupled filters the mean counts. Differs from it in: hidden linear layers are ranked too.
    """

    adds_up = False

    def score(self, model: nn.Module, groups: Sequence[CoupledGroup], batches: Iterable[Batch]) -> list[torch.Tensor]:
        """See `Criterion.score`; `batches` is not read."""
        del batches
        modules = dict(model.named_modules())
        scores = []
        for group in groups:
            members = filters(modules, group)
            means = [modules[m.layer].weight.detach().abs().flatten(1).mean(dim=1) for m in members]
            scores.append(mean_of(means, members, group.channels) if members else untouchable(group))
        return scores


class Random:
    """A control: every channel is as good as another."""

    adds_up = False

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def score(self, model: nn.Module, groups: Sequence[CoupledGroup], batches: Iterable[Batch]) -> list[torch.Tensor]:
        """See `Criterion.score`; only the seed counts."""
        del model, batches
        generator = torch.Generator().manual_seed(self._seed)
        return [torch.rand(group.channels, generator=generator, dtype=torch.float64) for group in groups]
