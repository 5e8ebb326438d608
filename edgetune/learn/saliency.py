"""How much a filter matters: three criteria behind one protocol. Larger = keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from edgetune.errors import LossNotFiniteError, NoGradientError
from edgetune.learn.groups import CoupledGroup, Member

Batch = tuple[torch.Tensor, torch.Tensor]


class Criterion(Protocol):
    """Ranks the channels of coupled groups."""

    def score(self, model: nn.Module, groups: Sequence[CoupledGroup], batches: Iterable[Batch]) -> list[torch.Tensor]:
        """
        Score every channel of every group.

        Args:
            model: eval mode, one device.
            groups: of this model.
            batches: images [N, 3, H, W] float32, normalised; labels [N] int64. Read only by criteria that need data.

        Returns:
            for each group, scores [channels] float64 on the CPU, comparable between groups.
        """


class MeanMagnitude:
    """
    Mean |w| of a filter: data enters through the fine-tuning before it.

    Source: arXiv 2006.08554 and its code: L1 norm over the number of weights, one ranking over all convolutions. Of
    coupled filters the mean counts. Differs from it in: hidden linear layers are ranked too.
    """

    def score(self, model: nn.Module, groups: Sequence[CoupledGroup], batches: Iterable[Batch]) -> list[torch.Tensor]:
        """See `Criterion.score`; `batches` is not read."""
        del batches
        modules = dict(model.named_modules())
        scores = []
        for group in groups:
            parts = [
                _spread(_rows(modules[m.layer].weight.detach().abs()).mean(dim=1), m, group.channels)
                for m in _filters(modules, group)
            ]
            scores.append(torch.stack(parts).mean(dim=0) if parts else _untouchable(group))
        return scores


class Taylor:
    """
    First-order change of the loss when a channel is gated off, on the site's samples.

    For each batch the gradient of a channel's gate is sum(w * dL/dw) over its filter (and over scale and shift of its
    batch norm); squared, summed over the members of the group and averaged over the batches. Then divided by the
    group's largest score: unscaled, a global ranking empties the early layers.

    Source: Molchanov et al. 2019 (arXiv 1906.10771), equation 8; differs from it in: the group reduction, and the
    division by each group's maximum.

    Cost: one forward and backward per batch; memory of one training step without optimiser state.
    """

    def __init__(self, beat: Callable[[], None] = lambda: None) -> None:
        self._beat = beat  # called after every batch

    def score(self, model: nn.Module, groups: Sequence[CoupledGroup], batches: Iterable[Batch]) -> list[torch.Tensor]:
        """
        See `Criterion.score`.

        Raises:
            NoGradientError: there was no batch, or a filter is off the path to the loss.
            LossNotFiniteError: the loss is NaN or infinite.
        """
        modules = dict(model.named_modules())
        totals = [torch.zeros(group.channels, dtype=torch.float64) for group in groups]
        count = 0
        for images, labels in batches:
            model.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(model(images), labels)
            if not torch.isfinite(loss):
                raise LossNotFiniteError("the loss is not finite while filters are scored")
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            for total, group in zip(totals, groups, strict=True):
                for member in group.members:
                    if member.is_output:
                        total.add_(_gate_gradient(modules[member.layer], member, group.channels).square())
            count += 1
            self._beat()
        model.zero_grad(set_to_none=True)
        if count == 0:
            raise NoGradientError("there is no batch to score filters with")
        return [self._scaled(total / count, group, modules) for total, group in zip(totals, groups, strict=True)]

    @staticmethod
    def _scaled(scores: torch.Tensor, group: CoupledGroup, modules: dict[str, nn.Module]) -> torch.Tensor:
        if not _filters(modules, group):
            return _untouchable(group)
        largest = scores.max()
        return scores / largest if largest > 0 else scores


class Random:
    """A control: every channel is as good as another."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def score(self, model: nn.Module, groups: Sequence[CoupledGroup], batches: Iterable[Batch]) -> list[torch.Tensor]:
        """See `Criterion.score`; only the seed counts."""
        del model, batches
        generator = torch.Generator().manual_seed(self._seed)
        return [torch.rand(group.channels, generator=generator, dtype=torch.float64) for group in groups]


def make_criterion(name: str, *, seed: int, beat: Callable[[], None] = lambda: None) -> Criterion:
    """The criterion of that name: "l1", "taylor" or "random"; ValueError for another."""
    if name == "l1":
        return MeanMagnitude()
    if name == "taylor":
        return Taylor(beat)
    if name == "random":
        return Random(seed)
    raise ValueError(f"unknown criterion {name!r}; use l1, taylor or random")


def _filters(modules: dict[str, nn.Module], group: CoupledGroup) -> list[Member]:
    """The members that hold trainable filters of the group (frozen 0/1 shortcuts say nothing about importance)."""
    return [
        m
        for m in group.members
        if m.is_output
        and isinstance(modules[m.layer], (nn.Conv2d, nn.Linear))
        and modules[m.layer].weight.requires_grad
    ]


def _untouchable(group: CoupledGroup) -> torch.Tensor:
    """A group without trainable filters is left whole."""
    return torch.full((group.channels,), float("inf"), dtype=torch.float64)


def _rows(weight: torch.Tensor) -> torch.Tensor:
    return weight.reshape(weight.shape[0], -1)


def _spread(values: torch.Tensor, member: Member, channels: int) -> torch.Tensor:
    """Values of a layer's channels [F] -> sums over the group's channels [channels], float64 on the CPU."""
    picked = values.detach().to("cpu", torch.float64)[torch.tensor(member.indices)]
    return torch.zeros(channels, dtype=torch.float64).index_add_(0, torch.tensor(member.roots), picked)


def _gate_gradient(module: nn.Module, member: Member, channels: int) -> torch.Tensor:
    gate = torch.zeros(channels, dtype=torch.float64)
    for name, parameter in module.named_parameters(recurse=False):
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            raise NoGradientError(
                f"layer {member.layer} got no gradient for its {name}, so its filters cannot be ranked"
            )
        gate += _spread(_rows(parameter.detach() * parameter.grad).sum(dim=1), member, channels)
    return gate
