"""Back towards the network that a training began with: how far, with which statistics, and by whose word."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from test_finetune import SIZE, noisy_data, normaliser, tiny_network
from test_tuner import same_bits

from edgetune.learn.data import Images
from edgetune.learn.mixtures import Mixtures
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


def test_where_nothing_is_enough_the_training_stays_as_it_is(pair: tuple[Network, Network]) -> None:
    """To the last bit: whether it is good enough the gate decides."""
    begun, trained = pair
    as_it_was = copy.deepcopy(trained)
    kept = step_back(trained, begun.module.state_dict(), right=lambda: 0.1, count=lambda: None, least=0.5)
    assert kept == 1.0
    assert same_bits(trained, as_it_was)


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


def brightest(images: Images) -> np.ndarray:  # type: ignore[type-arg]
    """A teacher of three classes, by colour; what is grey it calls a fourth one, which no image shows."""
    logits = images.astype(np.float32).mean(axis=(1, 2))
    return np.concatenate([logits, logits.min(axis=1, keepdims=True) + 10], axis=1)


def kept_of(trained: Network, begun: Network, *, drop_max: float, are_shuffled: bool = False) -> float:
    """On images of which the teacher says what the beginning says of them."""
    training, validation = noisy_data(40, 1), noisy_data(40, 2)
    if are_shuffled:
        validation = replace(validation, labels=validation.labels[::-1].copy())
    mixtures = Mixtures(lambda images: words_of(begun, images), (0, 1, 2), {3})
    return keep_known(
        trained, begun, mixtures=mixtures, training=training, validation=validation, drop_max=drop_max,
        normaliser=normaliser(), beat=lambda: None,
    )  # fmt: skip


def words_of(network: Network, images: Images) -> np.ndarray:  # type: ignore[type-arg]
    """What a network says, as a teacher would."""
    network.module.eval()
    with torch.no_grad():
        return network.module(normaliser()(images)).numpy()  # type: ignore[no-any-return]


def test_what_was_lost_comes_back_and_no_label_is_looked_at() -> None:
    """A training after which another class is always answered is taken back where not all may be lost."""
    begun = tiny_network()
    count_statistics(begun.module, [normaliser()(images) for images, _ in noisy_data(40, 1).in_order(64)])
    logits = torch.from_numpy(words_of(begun, noisy_data(40, 2).images(np.arange(40))))
    usual, other = int(logits.argmax(dim=1).mode().values), int(logits.mean(dim=0).argmin())
    turned = copy.deepcopy(begun)
    head = dict(turned.module.named_modules())[turned.head]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.bias[other] += 1.5 * (logits[:, usual] - logits[:, other]).median()
    free, bound, shuffled = (copy.deepcopy(turned) for _ in range(3))
    assert kept_of(free, begun, drop_max=1.0) == 1.0
    share = kept_of(bound, begun, drop_max=0.4)
    assert 0.5 <= share < 1.0
    assert kept_of(shuffled, begun, drop_max=0.4, are_shuffled=True) == share
    assert same_bits(bound, shuffled)


@pytest.mark.parametrize("images", [15, 16, 65, 129])
def test_statistics_are_never_counted_on_a_single_image(images: int) -> None:
    """Batches are about as large as each other; of fewer than 16 images none are counted."""
    begun = tiny_network()
    trained = copy.deepcopy(begun)
    seen: list[int] = []
    layer = next(layer for layer in trained.module.modules() if isinstance(layer, nn.BatchNorm2d))
    layer.register_forward_pre_hook(lambda norm, given: seen.append(len(given[0])) if norm.training else None)
    mixtures = Mixtures(lambda shown: np.eye(3, dtype=np.float32)[np.zeros(len(shown), int)], (0, 1, 2), {2})
    kept = keep_known(
        trained, begun, mixtures=mixtures, training=noisy_data(images, 1), validation=noisy_data(8, 2), drop_max=-2.0,
        normaliser=normaliser(), beat=lambda: None,
    )  # fmt: skip
    assert kept == 1.0, "nothing is right more than always"
    assert sum(seen) == (5 * images if images >= 16 else 0)
    assert not seen or min(seen) >= 16


def test_where_the_teacher_names_only_what_no_image_shows_nothing_is_taken_back() -> None:
    """There is nothing to go by."""
    begun = tiny_network()
    trained = copy.deepcopy(begun)
    mixtures = Mixtures(lambda images: np.ones((len(images), 1), np.float32), (2,), {2})
    kept = keep_known(
        trained, begun, mixtures=mixtures, training=noisy_data(16, 1), validation=noisy_data(8, 2), drop_max=0.0,
        normaliser=normaliser(), beat=lambda: None,
    )  # fmt: skip
    assert kept == 1.0
    assert same_bits(trained, begun)


def test_a_teachers_words_are_the_students_numbers() -> None:
    """And -1 for what no image shows."""
    images = np.zeros((4, SIZE.height, SIZE.width, 3), np.uint8)
    for i in range(3):
        images[i, :, :, i] = 200
    images[3] = 255
    mixtures = Mixtures(brightest, (4, 2, 7, 9), {9})
    assert mixtures.words(images).tolist() == [4, 2, 7, -1]
