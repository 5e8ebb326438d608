"""Back towards the network that a training began with: how far, and with which statistics."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from test_finetune import noisy_data, normaliser, tiny_network
from test_tuner import same_bits

from edgetune.learn.data import LabelledImages
from edgetune.learn.network import Network
from edgetune.learn.stepping_back import count_statistics, keep_known, step_back


@pytest.fixture
def pair() -> tuple[Network, Network]:
    """As a training began, and as it ended: every weight and running mean is one more, every variance twice as large."""
    begun = tiny_network()
    trained = copy.deepcopy(begun)
    with torch.no_grad():
        for name, tensor in trained.module.state_dict().items():
            if tensor.is_floating_point():
                tensor.mul_(2.0) if name.endswith("running_var") else tensor.add_(1.0)
    return begun, trained


def way(network: Network, begun: Network) -> float:
    """How far from the beginning the first weight is, as a share."""
    (first, was), *_ = zip(network.module.parameters(), begun.module.parameters(), strict=True)
    return float((first - was).detach().mean())


def told_by_the_way(network: Network, begun: Network) -> float:
    """Right less often, the further it has gone: 0.9 at the beginning, 0.8 at the end."""
    return 0.9 - 0.1 * way(network, begun)


@pytest.mark.parametrize(("least", "share"), [(0.7, 1.0), (0.805, 0.9), (0.829, 0.7), (0.85, 0.5)])
def test_as_much_is_kept_as_is_right_often_enough(pair: tuple[Network, Network], least: float, share: float) -> None:
    """And the statistics are counted anew for every step back, not for the training as it ended."""
    begun, trained = pair
    counted: list[float] = []
    kept = step_back(
        trained, begun.module.state_dict(), right=lambda: told_by_the_way(trained, begun) + 1e-6,
        count=lambda: counted.append(way(trained, begun)), least=least,
    )  # fmt: skip
    assert kept == share
    assert way(trained, begun) == pytest.approx(share, abs=1e-5)
    assert len(counted) == round(10 * (1 - share))


def test_where_nothing_is_enough_what_is_right_most_often_is_taken(pair: tuple[Network, Network]) -> None:
    """Of equals the one that keeps most, to the last bit: whether it is good enough the gate decides."""
    begun, trained = pair
    as_it_was, other = copy.deepcopy(trained), copy.deepcopy(trained)
    kept = step_back(trained, begun.module.state_dict(), right=lambda: 0.1, count=lambda: None, least=0.5)
    assert kept == 1.0
    assert same_bits(trained, as_it_was)
    right = iter((0.1, 0.2, 0.4, 0.3, 0.4, 0.1))
    kept = step_back(other, begun.module.state_dict(), right=lambda: next(right), count=lambda: None, least=0.5)
    assert kept == 0.8
    assert way(other, begun) == pytest.approx(0.8, abs=1e-5)


def test_statistics_are_means_over_the_batches() -> None:
    """As computed apart; nothing but batch norms has learnt or dropped anything, and their momentum is as before."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3, momentum=0.3))
    batches = [torch.randn(50, 3, 4, 4) * (scale + 1) + scale for scale in range(4)]
    count_statistics(module, iter(batches))
    norm = module[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    means = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in batches])
    variances = torch.stack([batch.transpose(0, 1).flatten(1).var(dim=1) for batch in batches])
    assert torch.allclose(norm.running_mean, means.mean(dim=0), atol=1e-5)
    assert torch.allclose(norm.running_var, variances.mean(dim=0), atol=1e-4)
    assert norm.momentum == 0.3
    assert not any(layer.training for layer in module.modules())


def kept_of(trained: Network, begun: Network, *, drop_max: float, known: Sequence[int] = (0, 1, 2)) -> float:
    """On images that the beginning is right about, all of them."""
    training, validation = noisy_data(40, 1), noisy_data(40, 2)
    validation = replace(validation, labels=logits_of(begun, validation).argmax(dim=1).numpy())
    return keep_known(
        trained, begun, known=known, training=training, validation=validation, drop_max=drop_max,
        normaliser=normaliser(), beat=lambda: None,
    )  # fmt: skip


def logits_of(network: Network, data: LabelledImages) -> torch.Tensor:
    """What a network says of all of them."""
    network.module.eval()
    with torch.no_grad():
        return network.module(normaliser()(data.images(np.arange(len(data)))))  # type: ignore[no-any-return]


def test_what_was_lost_comes_back() -> None:
    """A training after which another class is always answered is taken back where not all may be lost, of classes that were known."""
    begun = tiny_network()
    count_statistics(begun.module, [normaliser()(images) for images, _ in noisy_data(40, 1).in_order(64)])
    logits = logits_of(begun, noisy_data(40, 2))
    usual, other = int(logits.argmax(dim=1).mode().values), int(logits.mean(dim=0).argmin())
    turned = copy.deepcopy(begun)
    head = dict(turned.module.named_modules())[turned.head]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.bias[other] += 1.5 * (logits[:, usual] - logits[:, other]).median()
    free, bound, unknown = (copy.deepcopy(turned) for _ in range(3))
    assert kept_of(free, begun, drop_max=1.0) == 1.0
    assert 0.5 <= kept_of(bound, begun, drop_max=0.4) < 1.0
    assert kept_of(unknown, begun, drop_max=0.4, known=(other,)) == 1.0


@pytest.mark.parametrize("images", [15, 16, 65, 129])
def test_statistics_are_never_counted_on_a_single_image(images: int) -> None:
    """Batches are about as large as each other; of fewer than 16 images none are counted."""
    begun = tiny_network()
    trained = copy.deepcopy(begun)
    seen: list[int] = []
    layer = next(layer for layer in trained.module.modules() if isinstance(layer, nn.BatchNorm2d))
    layer.register_forward_pre_hook(lambda norm, given: seen.append(len(given[0])) if norm.training else None)
    kept = keep_known(
        trained, begun, known=(0, 1, 2), training=noisy_data(images, 1), validation=noisy_data(8, 2), drop_max=-2.0,
        normaliser=normaliser(), beat=lambda: None,
    )  # fmt: skip
    assert kept == 1.0, "nothing is right more than always"
    assert sum(seen) == (5 * images if images >= 16 else 0)
    assert not seen or min(seen) >= 16


def test_where_no_sample_is_of_a_class_that_was_known_nothing_is_taken_back() -> None:
    """There is nothing to go by."""
    begun = tiny_network()
    trained = copy.deepcopy(begun)
    kept = keep_known(
        trained, begun, known=(7,), training=noisy_data(16, 1), validation=noisy_data(8, 2), drop_max=0.0,
        normaliser=normaliser(), beat=lambda: None,
    )  # fmt: skip
    assert kept == 1.0
    assert same_bits(trained, begun)
