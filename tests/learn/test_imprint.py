"""A classifier row computed from a few images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgetune.errors import ModelError
from edgetune.learn.imprint import (
    TAKEN_SHARE,
    answer_readily,
    best_threshold,
    features_of,
    hold_back,
    imprint,
    refit_head,
    right_without,
)
from edgetune.learn.network import Network, new_network, widen_head


class Blobs(nn.Module):
    """Images [N, 3, 4, 4] whose mean colour is the feature, made positive as after a ReLU."""

    def __init__(self, num_classes: int, *, is_convolution: bool) -> None:
        super().__init__()
        self.is_convolution = is_convolution
        self.head = nn.Conv2d(3, num_classes, 1) if is_convolution else nn.Linear(3, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = torch.relu(x)
        return self.head(x).mean(dim=(2, 3)) if self.is_convolution else self.head(x.mean(dim=(2, 3)))


CENTRES = torch.tensor([[4.0, 1.0, 1.0], [1.0, 4.0, 1.0], [1.0, 1.0, 4.0], [3.0, 3.0, 3.0]])


def _images(label: int, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = 0.3 * torch.randn(count, 3, 4, 4, generator=generator)
    return CENTRES[label].reshape(1, 3, 1, 1) + noise


def _network(outputs: int, *, is_convolution: bool) -> Network:
    """Right on the first `outputs` colours; rows of length 2."""
    module = Blobs(outputs, is_convolution=is_convolution)
    with torch.no_grad():
        for row in range(outputs):
            module.head.weight[row] = (2.0 * torch.eye(3)[row]).reshape(module.head.weight[row].shape)
        module.head.bias.zero_()
    return Network(module, "test:blobs", outputs, "head")


def _answers(network: Network, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network.module.eval()(images)


@pytest.mark.parametrize("is_convolution", [False, True])
def test_a_separable_new_class_is_right_at_once_and_the_old_logits_do_not_move(is_convolution: bool) -> None:
    """Five images imprint it; all of a hundred others are right, and all old ones still."""
    network = _network(2, is_convolution=is_convolution)
    old = {label: _images(label, 50, seed=label) for label in (0, 1)}
    before = {label: _answers(network, images) for label, images in old.items()}
    widen_head(network, ["red", "green"], ["red", "green", "blue"])
    others = features_of(network, [_images(label, 5, seed=10 + label) for label in (0, 1)])
    imprint(network, {2: features_of(network, [_images(2, 5, seed=7)])}, others)
    assert (_answers(network, _images(2, 100, seed=8)).argmax(dim=1) == 2).all()
    for label, images in old.items():
        now = _answers(network, images)
        assert torch.equal(now[:, :2], before[label]) and (now.argmax(dim=1) == label).all()
    rows = network.module.head.weight.detach().flatten(1).norm(dim=1)
    assert rows[2].item() == pytest.approx(rows[:2].mean().item())


def test_two_new_classes_at_once_are_told_from_each_other() -> None:
    """The second is written against the first; their colours need not be extreme."""
    network = _network(2, is_convolution=False)
    widen_head(network, ["red", "green"], ["red", "green", "blue", "grey"])
    others = features_of(network, [_images(label, 8, seed=10 + label) for label in (0, 1)])
    imprint(network, {row: features_of(network, [_images(row, 8, seed=row)]) for row in (2, 3)}, others)
    for label in range(4):
        right = (_answers(network, _images(label, 100, seed=20 + label)).argmax(dim=1) == label).float().mean()
        assert right >= 0.9


def test_a_new_class_takes_next_to_nothing_of_what_is_answered_right() -> None:
    """Of images half way to the new class too, which the others did not warn of; of its own it then gets less."""
    taken, mine = [], _images(2, 100, seed=8)
    warned = _images(0, 200, seed=5)
    warned += torch.tensor([-1.0, 0.0, 3.0]).reshape(1, 3, 1, 1)  # red, and bluer still; the head says red
    for is_told in (False, True):
        network = _network(2, is_convolution=False)
        widen_head(network, ["red", "green"], ["red", "green", "blue"])
        others = features_of(network, [_images(label, 5, seed=10 + label) for label in (0, 1)])
        right = features_of(network, [warned]) if is_told else None
        imprint(network, {2: features_of(network, [_images(2, 5, seed=7)])}, others, right)
        taken.append((_answers(network, warned).argmax(dim=1) == 2).float().mean().item())
        assert (_answers(network, mine).argmax(dim=1) == 2).float().mean() > 0.5
    assert taken[0] > 0.5
    assert taken[1] <= TAKEN_SHARE


@pytest.mark.parametrize("is_convolution", [False, True])
def test_new_rows_that_say_too_much_are_held_back_together(is_convolution: bool) -> None:
    """Of images like those that are right without them they then take the share; old logits and the new ones' gap stay."""
    network = _network(3, is_convolution=is_convolution)
    with torch.no_grad():
        network.module.head.bias[1:] += 6.0  # green and blue are new here, and eager
    red, unseen = torch.cat([_images(0, 200, seed=1), _images(1, 5, seed=2)]), _images(0, 200, seed=3)
    labels = torch.zeros(len(red), dtype=torch.int64)
    before = _answers(network, unseen)
    right = right_without(network, [1, 2], features_of(network, [red]), labels)
    assert len(right[0]) == len(red)  # the only class that is left
    right = right[0][:200], right[1][:200]
    shifts = hold_back(network, [1, 2], right, share=0.05)
    shift = shifts[1]
    assert shift == shifts[2]
    after = _answers(network, unseen)
    assert shift < 0
    assert 0.0 < (after.argmax(dim=1) != 0).float().mean() < 0.12
    assert torch.equal(after[:, 0], before[:, 0])
    assert torch.allclose(after[:, 1:], before[:, 1:] + shift, atol=1e-5)
    assert hold_back(network, [1, 2], right, share=0.05)[1] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("bias", [-9.0, 9.0], ids=["too seldom", "too often"])
def test_classes_that_no_image_shows_take_their_share_and_no_label_is_needed(bias: float) -> None:
    """Whether they were answered too seldom or too often; what the others say of each other stays."""
    network = _network(3, is_convolution=False)
    with torch.no_grad():
        network.module.head.bias[2] += bias
    seen = torch.cat([_images(0, 200, seed=1), _images(1, 200, seed=2)])
    others = torch.cat([_images(0, 200, seed=3), _images(1, 200, seed=4)])
    before = _answers(network, others)
    shift = answer_readily(network, [2], features_of(network, [seen]), share=0.05)
    after = _answers(network, others)
    assert shift * bias < 0
    assert 0.01 < (after.argmax(dim=1) == 2).float().mean() < 0.1
    assert torch.equal(after[:, :2], before[:, :2])
    assert answer_readily(network, [2], features_of(network, [seen[:19]]), share=0.05) == 0.0
    assert answer_readily(network, [0, 1, 2], features_of(network, [seen]), share=0.05) == 0.0


def test_new_rows_that_take_little_or_of_which_little_is_known_stay() -> None:
    """No shift where the share is kept to, and none from nineteen images."""
    network = _network(3, is_convolution=False)
    red, labels = features_of(network, [_images(0, 200, seed=1)]), torch.zeros(200, dtype=torch.int64)
    assert hold_back(network, [2], (red, labels), share=0.01) == {2: 0.0}
    with torch.no_grad():
        network.module.head.bias[2] += 6.5
    assert hold_back(network, [2], (red[:19], labels[:19]), share=0.01) == {2: 0.0}
    assert hold_back(network, [0, 1, 2], (red, labels), share=0.01) == {0: 0.0, 1: 0.0, 2: 0.0}
    assert hold_back(network, [2], (red, labels), share=0.0)[2] < -1.0
    assert (_answers(network, _images(0, 200, seed=3)).argmax(dim=1) == 0).all()


def test_the_new_row_that_takes_too_much_of_one_class_is_held_back_alone() -> None:
    """Of all old images blue takes few, of the red ones half: it is lowered until that is a tenth; the other new row stays."""
    network = _network(3, is_convolution=False)
    widen_head(network, ["red", "green", "blue"], ["red", "green", "blue", "none"])
    with torch.no_grad():
        network.module.head.weight[3], network.module.head.bias[3] = 0.0, -5.0
        network.module.head.bias[2] += 6.0
    many, few = features_of(network, [_images(1, 2000, seed=1)]), features_of(network, [_images(0, 40, seed=2)])
    labels = torch.tensor([1] * 2000 + [0] * 40)
    with torch.no_grad():
        network.module.head.weight[1, 1] += 2.0  # green is never in doubt
    right = torch.cat([many, few]), labels
    shifts = hold_back(network, [2, 3], right, share=0.05, class_share=0.1)
    assert shifts[3] == 0.0
    assert shifts[2] < 0.0
    logits = network.module.head(few)
    assert 0.0 < (logits[:, 2] > logits[:, 0]).float().mean() <= 0.125


def test_without_images_of_the_old_classes_the_new_one_wins_on_its_own() -> None:
    """About nine of ten of the images it was made from, and most of others like them."""
    network = _network(2, is_convolution=False)
    widen_head(network, ["red", "green"], ["red", "green", "blue"])
    mine = _images(2, 20, seed=3)
    imprint(network, {2: features_of(network, [mine])})
    assert (_answers(network, mine).argmax(dim=1) == 2).float().mean() >= 0.85
    assert (_answers(network, _images(0, 50, seed=4)).argmax(dim=1) == 0).all()


def test_what_is_answered_right_is_protected_where_there_is_nothing_else_of_the_old_classes() -> None:
    """Half of the new images are nearly what the head calls red: they are given up, and not the red ones."""
    network = _network(2, is_convolution=False)
    widen_head(network, ["red", "green"], ["red", "green", "blue"])
    right = torch.tensor([4.05, 1.0, 4.4]) + 0.02 * torch.rand(40, 3, generator=torch.Generator().manual_seed(1))
    mine = torch.tensor([[1.0, 1.0, 4.0], [4.0, 1.0, 4.0]]).repeat(10, 1)
    for others in (None, torch.empty(0, 3)):
        imprint(network, {2: mine}, others, right)
        with torch.no_grad():
            assert (network.module.head(right).argmax(dim=1) == 0).all()
            assert (network.module.head(mine).argmax(dim=1) == 2).float().mean() == 0.5


def test_the_features_are_what_the_head_reads() -> None:
    """The logits follow from them; batches are put together in order, and nothing is left behind."""
    torch.manual_seed(0)
    network = new_network("cifar:resnet20", 5)
    images = torch.randn(6, 3, 32, 32)
    features = features_of(network, [images[:4], images[4:]])
    assert features.shape == (6, 64)
    assert torch.allclose(network.module.fc(features), _answers(network, images), atol=1e-5)
    assert features_of(network, []).shape == (0, 64)
    assert not network.module.fc._forward_pre_hooks


def test_the_threshold_errs_least_and_lies_in_the_middle() -> None:
    """Both sides count the same, however many they are."""
    above, below = torch.tensor([3.0, 4.0, 5.0, 6.0]), torch.tensor([0.0, 1.0])
    assert best_threshold(above, below) == 2.0
    assert 1.0 < best_threshold(above, torch.tensor([0.0, 1.0, 4.5])) < 3.0  # one of three against two of four
    assert best_threshold(torch.tensor([1.0]), torch.tensor([0.0] * 9 + [2.0])) == 0.5


def test_the_threshold_is_found_where_the_values_are_however_many_they_are() -> None:
    """As trying every one of them finds it; on their own device, and without a table of each against each."""
    generator = torch.Generator().manual_seed(4)
    above, below = (torch.randn(n, generator=generator) + shift for n, shift in ((200, 1.0), (30, 0.0)))
    found = best_threshold(above, below)
    scores = [(above > t).double().mean() + (below < t).double().mean() for t in [*above, *below]]
    assert (above > found).double().mean() + (below < found).double().mean() >= max(scores)
    with torch.device("meta"):  # what a function makes without saying where comes to lie there
        assert best_threshold(above, below) == found
    many = torch.arange(100_000, dtype=torch.float32)
    assert best_threshold(many + 99_999, many) == pytest.approx(99_999, abs=1)


@pytest.mark.parametrize(
    ("features", "words"), [({1: torch.empty(0, 3)}, "no image"), ({0: torch.ones(1, 3), 1: torch.ones(1, 3)}, "scale")]
)
def test_what_cannot_be_imprinted_is_refused(features: dict[int, torch.Tensor], words: str) -> None:
    """A class without images, and a head without any trained row."""
    with pytest.raises(ModelError, match=words):
        imprint(_network(2, is_convolution=False), features)


def test_a_refitted_head_is_the_minimum_of_a_balanced_loss_and_leaves_other_rows_alone() -> None:
    """The gradient, computed by hand with numpy, is nothing there; a class of few images counts as much as one of many."""
    torch.manual_seed(0)
    network = _network(3, is_convolution=False)
    untouched = network.module.head.weight[1].clone(), network.module.head.bias[1].clone()
    labels = torch.tensor([0] * 60 + [2] * 6)
    features = torch.relu(torch.randn(66, 3) + CENTRES[labels] / 2)
    refit_head(network, features, labels, decay=0.01, steps=500)
    assert torch.equal(network.module.head.weight[1], untouched[0])
    assert torch.equal(network.module.head.bias[1], untouched[1])
    rows = network.module.head.weight.detach().double().numpy()[[0, 2]]
    bias = network.module.head.bias.detach().double().numpy()[[0, 2]]
    x, one_hot = features.double().numpy(), np.eye(2)[(labels == 2).long().numpy()]
    scores = np.exp(x @ rows.T + bias)
    wrong = scores / scores.sum(axis=1, keepdims=True) - one_hot
    wrong *= np.where(labels.numpy() == 2, 66 / (2 * 6), 66 / (2 * 60))[:, None]
    assert np.abs(wrong.T @ x / 66 + 2 * 0.01 * rows).max() < 2e-3
    assert np.abs(wrong.mean(axis=0)).max() < 2e-3


@pytest.mark.parametrize("is_convolution", [False, True])
def test_a_head_that_leans_to_the_newest_class_is_right_again_after_a_refit(is_convolution: bool) -> None:
    """As after a step without replay: everything is answered with the last class, until the head is fitted to some of each."""
    network = _network(3, is_convolution=is_convolution)
    with torch.no_grad():
        network.module.head.bias[2] = 20.0
    images = torch.cat([_images(label, 50, seed=label) for label in range(3)])
    truth = torch.arange(3).repeat_interleave(50)
    assert (_answers(network, images).argmax(dim=1) == truth).float().mean() < 0.4
    few = torch.cat([_images(label, 4, seed=30 + label) for label in range(3)])
    refit_head(network, features_of(network, [few]), torch.arange(3).repeat_interleave(4))
    assert (_answers(network, images).argmax(dim=1) == truth).all()
