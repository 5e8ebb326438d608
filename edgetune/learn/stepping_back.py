"""
Back from a trained network towards the one that it began as, as far as what that one knew needs it.

Source: Wortsman et al. 2021, "Robust fine-tuning of zero-shot models" (arXiv 2109.01903): weights on the line between the two
know what both know. Differs from it in: how far is chosen by what has been lost, and batch norm's statistics are counted anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from edgetune.learn.data import Integers, LabelledImages, Normaliser
from edgetune.learn.network import Network

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # of the way from the one to the other
_BATCH = 64
_COUNTED_LEAST, _COUNTED = 16, 2048  # images that statistics are counted on


def step_back(
    network: Network,
    begun: Mapping[str, torch.Tensor],
    *,
    right: Callable[[], float],
    count: Callable[[], None],
    least: float,
) -> float:
    """
    Keep as much of a training as leaves the network right often enough.

    Args:
        network: trained; changed in place.
        begun: the state that its training began with.
        right: how often the network is right as it stands.
        count: counts its batch norm's statistics anew.
        least: how often it has to be.

    Returns:
        The share of the way from `begun` that is kept; where none of them is enough the one that is right most often.
    """
    trained = {name: tensor.detach().clone() for name, tensor in network.module.state_dict().items()}
    most, best, state = -1.0, 1.0, trained
    for share in SHARES:
        if share < 1:
            network.module.load_state_dict(_between(begun, trained, share))
            count()
        found = right()
        if found >= least:
            return share
        if found > most:
            most, best = found, share
            state = {name: tensor.detach().clone() for name, tensor in network.module.state_dict().items()}
    network.module.load_state_dict(state)
    return best


def images_of_a_look(training: int, validation: int) -> int:
    """How many images one share of `SHARES` takes, of so many: those that statistics are counted on, and those that are asked."""
    return min(training, _COUNTED) + validation


def _between(
    begun: Mapping[str, torch.Tensor], trained: Mapping[str, torch.Tensor], share: float
) -> dict[str, torch.Tensor]:
    """Numbers that count batches are not between two others."""
    return {
        name: torch.lerp(begun[name], end, share) if end.is_floating_point() else end for name, end in trained.items()
    }


def count_statistics(module: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """
    The running means and variances of all batch norms, as plain means over some batches [N, C, H, W].

    As `torch.optim.swa_utils.update_bn`, whose import takes much memory (see `learn.optimiser`), with all other layers at rest.
    """
    norms = [m for m in module.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for images in batches:
            module(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()


def keep_known(
    network: Network,
    begun: Network,
    *,
    known: Sequence[int],
    training: LabelledImages,
    validation: LabelledImages,
    drop_max: float,
    normaliser: Normaliser,
    beat: Callable[[], None],
) -> float:
    """
    Step back until a network is right about the classes that it knew before nearly as often as it was.

    Args:
        network: trained; changed in place.
        begun: as the training began.
        known: the classes that it knew then.
        training: whose images the statistics are counted on; its labels are not looked at.
        validation: on which both are asked.
        drop_max: 0..1, of the validation samples of these classes.
        normaliser: of the network's input.
        beat: called after every batch.

    Returns:
        The share of the training that is kept, see `step_back`; 1.0 where no sample is of such a class, or there are too few images to count on.
    """
    is_known = np.isin(validation.labels, known)
    if len(training) < _COUNTED_LEAST or not is_known.any():
        return 1.0

    def right(asked: Network) -> float:
        answers = _answers(asked.module, validation, normaliser, beat)
        return float((answers == validation.labels)[is_known].mean())

    def count() -> None:
        count_statistics(network.module, _spread(training, normaliser, beat))

    return step_back(
        network, begun.module.state_dict(), right=lambda: right(network), count=count, least=right(begun) - drop_max
    )


def _answers(module: nn.Module, data: LabelledImages, normaliser: Normaliser, beat: Callable[[], None]) -> Integers:
    module.eval()
    said = []
    with torch.no_grad():
        for images, _ in data.in_order(_BATCH):
            said.append(module(normaliser(images)).argmax(dim=1).cpu().numpy())
            beat()
    return np.concatenate(said)


def _spread(data: LabelledImages, normaliser: Normaliser, beat: Callable[[], None]) -> Iterator[torch.Tensor]:
    """Batches of images from all over the samples, all about as large: of a single image a batch norm may have no variance."""
    picked = np.linspace(0, len(data) - 1, min(len(data), _COUNTED)).round().astype(np.int64)
    for part in np.array_split(picked, math.ceil(len(picked) / _BATCH)):
        yield normaliser(data.images(part))
        beat()
