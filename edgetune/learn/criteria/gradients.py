"""Criteria that ask the loss: what happens to it on the site's images when a channel is gated off."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional

from edgetune.errors import LossNotFiniteError, NoGradientError, NoSamplesError
from edgetune.learn.criteria.base import Batch, filters, readers, spread, untouchable
from edgetune.learn.groups import CoupledGroup


class _GateGradients(abc.ABC):
    """
    Squares of the loss's derivative with respect to a gate on each channel, where the subclass says what is squared.

    A gate multiplies a channel in all the places where layers read it: what cutting takes away, and no place twice
    (a depthwise convolution and its batch norms hand a channel on). In eval mode the samples of a batch do not mix:
    the derivatives of each sample come out of one backward pass.

    Cost: one forward and backward a batch; memory of one training step, and the gated activations once more.
    """

    adds_up = True

    def __init__(self, beat: Callable[[], None] = lambda: None) -> None:
        self._beat = beat  # called after every batch

    def score(self, model: nn.Module, groups: Sequence[CoupledGroup], batches: Iterable[Batch]) -> list[torch.Tensor]:
        """
        See `Criterion.score`.

        Raises:
            NoSamplesError: an image has no label (a label below 0).
            NoGradientError: there was no batch, or a filter is off the path to the loss.
            LossNotFiniteError: the loss is NaN or infinite.
        """
        modules = dict(model.named_modules())
        totals = [torch.zeros(group.channels, dtype=torch.float64) for group in groups]
        count = 0
        for images, labels in batches:
            for total, gradient in zip(totals, self._gradients(model, groups, images, labels), strict=True):
                total.add_(self._square(gradient, labels.cpu()))
            count += 1
            self._beat()
        if count == 0:
            raise NoGradientError("there is no batch to score filters with")
        return [
            total / count if filters(modules, group) else untouchable(group)
            for total, group in zip(totals, groups, strict=True)
        ]

    @abc.abstractmethod
    def _square(self, gradient: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Derivatives [N, channels] of each sample's loss, labels [N] -> scores [channels]."""

    def _gradients(
        self, model: nn.Module, groups: Sequence[CoupledGroup], images: torch.Tensor, labels: torch.Tensor
    ) -> list[torch.Tensor]:
        """For each group [N, channels]: derivatives of each sample's own loss."""
        if (unlabelled := int((labels < 0).sum())) > 0:
            raise NoSamplesError(
                f"{unlabelled} of {len(labels)} images have no label, and {type(self).__name__.lower()} asks the loss",
                hint="label them, or rank with a criterion that needs no label: l1, activation, nonzeros, class_activation",
            )
        modules = dict(model.named_modules())
        layers = {m.layer for group in groups for m in readers(group)}
        with _gated({layer: modules[layer] for layer in sorted(layers)}, len(images)) as gates:
            loss = functional.cross_entropy(model(images), labels, reduction="sum")
            if not torch.isfinite(loss):
                raise LossNotFiniteError("the loss is not finite while filters are scored")
            names = list(gates)
            gradients = torch.autograd.grad(loss, [gates[name] for name in names], allow_unused=True)
        by_layer = dict(zip(names, gradients, strict=True))
        result = []
        for group in groups:
            total = torch.zeros(len(images), group.channels, dtype=torch.float64)
            for member in readers(group):
                gradient = by_layer[member.layer]
                if gradient is None:
                    raise NoGradientError(f"layer {member.layer} got no gradient, so its filters cannot be ranked")
                total += spread(gradient, member, group.channels)
            result.append(total)
        return result


class Taylor(_GateGradients):
    """
    First-order change of the loss when a channel is gated off, on the site's samples.

    The square of the derivative of each class's mean loss, averaged over the classes of a batch: what matters to one
    class only is not lost among the others, however few samples it has.

    Source: Molchanov et al. 2019 (arXiv 1906.10771), equation 8, with gates; differs from it in: the gate of a coupled
    group stands in all its places, and classes are squared one by one.
    """

    def _square(self, gradient: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        present, index = torch.unique(labels, return_inverse=True)
        sums = torch.zeros(len(present), gradient.shape[1], dtype=torch.float64).index_add_(0, index, gradient)
        means = sums / torch.bincount(index)[:, None]
        return means.square().mean(dim=0)


class Fisher(_GateGradients):
    """
    Second-order change of the loss, with the empirical Fisher information in the place of the Hessian.

    The mean of squares over samples, each class weighing the same.

    Source: Theis et al. 2018 (arXiv 1801.05787), equation 9: half the mean over samples of the squared derivative of
    a gate; differs from it in: the gate of a coupled group stands in all its places, and classes weigh the same.
    """

    def _square(self, gradient: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        present, index = torch.unique(labels, return_inverse=True)
        weights = 1.0 / (torch.bincount(index)[index] * len(present)).to(torch.float64)
        return 0.5 * (gradient.square() * weights[:, None]).sum(dim=0)


@contextlib.contextmanager
def _gated(layers: dict[str, nn.Module], count: int) -> Iterator[dict[str, torch.Tensor]]:
    """Multiply what these layers read by gates of one, [N, channels] each, filled at the forward pass."""
    gates: dict[str, torch.Tensor] = {}

    def gate(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
        def multiply(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            maps, *others = inputs
            shape = (count, maps.shape[1])
            if name not in gates:  # a layer that is applied again has the same gate
                gates[name] = torch.ones(shape, dtype=maps.dtype, device=maps.device, requires_grad=True)
            return maps * gates[name].reshape(*shape, *[1] * (maps.dim() - 2)), *others

        return multiply

    hooks = [module.register_forward_pre_hook(gate(name)) for name, module in layers.items()]
    try:
        yield gates
    finally:
        for hook in hooks:
            hook.remove()
