"""Stochastic gradient descent for a process that has little memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.optim.sgd import sgd


class Sgd:
    """
    What `torch.optim.SGD` does, by the same function of torch.

    The class itself imports the compiler of torch 2 when it is made, which nothing here compiles with: 72 MiB and two
    seconds of a trainer (torch 2.13 on x86).

    Args:
        parameters: by name.
        learning_rate: of the next step; may be set before each.
        momentum: 0: none.
        nesterov: Nesterov's form of it.
        weight_decay: L2 penalty.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        learning_rate: float,
        momentum: float,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        self.learning_rate = learning_rate
        self.momentum_buffers: dict[str, torch.Tensor] = {}  # of the parameters that have been changed
        self._parameters = dict(parameters)
        self._momentum, self._nesterov, self._weight_decay = momentum, nesterov, weight_decay

    def restore(self, momentum_buffers: Mapping[str, torch.Tensor]) -> None:
        """Go on with the buffers of a checkpoint, copied to where the parameters are."""
        for name, buffer in momentum_buffers.items():
            self.momentum_buffers[name] = torch.empty_like(self._parameters[name]).copy_(buffer)

    def forget_gradients(self) -> None:
        """Let the gradients go, and their memory."""
        for parameter in self._parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters that have a gradient."""
        names = [name for name, parameter in self._parameters.items() if parameter.grad is not None]
        parameters: list[torch.Tensor] = [self._parameters[name] for name in names]
        buffers = [self.momentum_buffers.get(name) for name in names]
        sgd(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            buffers,
            has_sparse_grad=False,
            foreach=False,
            fused=False,
            weight_decay=self._weight_decay,
            momentum=self._momentum,
            lr=self.learning_rate,
            dampening=0.0,
            nesterov=self._nesterov,
            maximize=False,
        )
        self.momentum_buffers.update(
            {name: made for name, made in zip(names, buffers, strict=True) if made is not None}
        )
