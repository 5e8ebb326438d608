"""Every criterion against a computation that shares no code with it: autograd on one image at a time, plain loops."""

from __future__ import annotations

import copy
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))

from tiny_nets import TinyNet

from edgetune.errors import ConfigError, LossNotFiniteError, NoGradientError, NoSamplesError, UnprunableError
from edgetune.learn.criteria import Batch, make_criterion, score_with
from edgetune.learn.groups import CoupledGroup, find_groups
from edgetune.types import CRITERIA

GRADIENT_CRITERIA = ("taylor", "fisher")
ACTIVATION_CRITERIA = ("activation", "nonzeros", "class_activation", "class_activation_count")
DATA_CRITERIA = GRADIENT_CRITERIA + ACTIVATION_CRITERIA


class TorchvisionStyle(TinyNet):
    """The same function with every ReLU and the residual sum in place, as torchvision's ResNets have them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, H, W] -> logits."""
        x = self.stem(x)
        y = self.left(x)
        y += x
        y = y.relu_()
        logits: torch.Tensor = self.head(self.drop(self.depth(self.expand(y)).mean(dim=(2, 3))))
        return logits


class PlainNet(nn.Module):
    """No batch norm; a hidden linear layer behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 6, 3, 2, 1)
        self.two = nn.Conv2d(6, 4, 3, 2, 1)
        self.hidden = nn.Linear(4 * 9, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, 12, 12] -> logits."""
        x = torch.relu(self.two(torch.relu(self.one(x))))
        logits: torch.Tensor = self.head(torch.relu(self.hidden(x.flatten(1))))
        return logits


class FlatNorm(PlainNet):
    """A batch norm over flattened maps: nine of its features belong to one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(36)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, 12, 12] -> logits."""
        x = self.two(torch.relu(self.one(x)))
        logits: torch.Tensor = self.head(torch.relu(self.hidden(torch.relu(self.norm(x.flatten(1))))))
        return logits


class HalfNormed(nn.Module):
    """The residual sum of a branch with batch norm and a stem without one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.left = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, 12, 12] -> logits."""
        x = self.stem(x)
        logits: torch.Tensor = self.head(torch.relu(x + self.left(x)).mean(dim=(2, 3)))
        return logits


class Twice(nn.Module):
    """A convolution and a batch norm that are applied two times in a row, behind a stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.again = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, 12, 12] -> logits."""
        logits: torch.Tensor = self.head(self.again(self.again(self.stem(x))).mean(dim=(2, 3)))
        return logits


class Joined(nn.Module):
    """The sum of a branch of twelve channels and of two branches, of four and of eight, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12))
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4))
        self.rest = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, 12, 12] -> logits."""
        both = torch.cat([self.first(x), self.rest(x)], dim=1)
        logits: torch.Tensor = self.head(torch.relu(both + self.whole(x)).mean(dim=(2, 3)))
        return logits


Places = dict[str, int]  # layer -> the group's channel that its first one belongs to

# Where a coupled group's channels come out, read off each net's forward pass. In TinyNet the residual sum couples the
# stem and the left branch, and the depthwise convolution follows the expansion.
COUPLED: dict[type[nn.Module], dict[int, Places]] = {
    TinyNet: {16: {"stem.1": 0, "left.1": 0}, 32: {"expand.1": 0, "depth.1": 0}},
    TorchvisionStyle: {16: {"stem.1": 0, "left.1": 0}, 32: {"expand.1": 0, "depth.1": 0}},
    PlainNet: {6: {"one": 0}, 4: {"two": 0}, 8: {"hidden": 0}},
    FlatNorm: {6: {"one": 0}, 4: {"norm": 0}, 8: {"hidden": 0}},
    HalfNormed: {8: {"stem": 0, "left.1": 0}},
    Twice: {8: {"stem.1": 0, "again.1": 0}},
    Joined: {12: {"whole.1": 0, "first.1": 0, "rest.1": 4}},
}
# A gate in front of a depthwise convolution would count the channel a second time.
LAST: dict[type[nn.Module], Places] = {TinyNet: {"depth.1": 0}, TorchvisionStyle: {"depth.1": 0}}
KINDS: dict[str, Callable[[], nn.Module]] = {
    "tiny": lambda: TinyNet(5),
    "in-place": lambda: TorchvisionStyle(5),
    "no-batch-norm": PlainNet,
    "flat-norm": FlatNorm,
    "joined": Joined,
    "half-normed": HalfNormed,
    "applied-twice": Twice,
}


def layer_of(net: nn.Module, name: str) -> Any:
    """A layer by its name; what it is only the test knows."""
    return net.get_submodule(name)


def lively(net: nn.Module) -> nn.Module:
    """In eval mode and double precision, with batch norms that do something."""
    torch.manual_seed(3)
    layer: Any
    for layer in net.double().modules():
        if isinstance(layer, (nn.BatchNorm2d, nn.BatchNorm1d)):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
        elif isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(layer.weight, std=0.3)
    return net.eval()


@pytest.fixture
def net() -> nn.Module:
    """The tiny net."""
    return lively(TinyNet(5))


def images_of(count: int, seed: int) -> torch.Tensor:
    """Noise."""
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def batches() -> list[Batch]:
    """Of different sizes; classes that are rare, missing in a batch, and seen once among twenty others."""
    labels = [[0, 1, 2, 3, 4, 0], [0] * 12 + [1] * 5 + [2] * 3 + [4], [3, 3, 1, 0]]
    return [(images_of(len(part), seed), torch.tensor(part)) for seed, part in enumerate(labels)]


def groups_of(net: nn.Module) -> tuple[CoupledGroup, ...]:
    """Those of the net, which are the expected ones."""
    groups = find_groups(net, "head", 12, 12)
    assert sorted(group.channels for group in groups) == sorted(COUPLED[type(net)])
    return groups


# ------------------------------------------------------------------------------------------------- loss


def gate_derivatives(net: nn.Module, places: Places, channels: int, batch: Batch) -> list[list[float]]:
    """For each image dL/dgate of its own loss, where ONE gate tensor multiplies the outputs of all layers."""
    rows = []
    for image, label in zip(*batch, strict=True):
        gate = torch.ones(channels, dtype=torch.float64, requires_grad=True)

        def close(
            _m: nn.Module, _i: object, output: torch.Tensor, *, first: int, gate: torch.Tensor = gate
        ) -> torch.Tensor:
            features = output.shape[1]
            mine = gate[first : first + features]
            # a layer behind a flatten has several features for each channel, one after the other
            return output * mine.repeat_interleave(features // len(mine)).reshape(1, -1, *[1] * (output.dim() - 2))

        hooks = [
            layer_of(net, layer).register_forward_hook(partial(close, first=first)) for layer, first in places.items()
        ]
        loss = functional.cross_entropy(net(image[None]), label[None])
        for hook in hooks:
            hook.remove()
        rows.append(torch.autograd.grad(loss, gate)[0].tolist())
    return rows


def taylor_of(rows: list[float], labels: list[int]) -> float:
    """The square of each class's mean derivative, averaged over the classes that are there."""
    squares = []
    for label in set(labels):
        mine = [value for value, of in zip(rows, labels, strict=True) if of == label]
        squares.append((sum(mine) / len(mine)) ** 2)
    return sum(squares) / len(squares)


def fisher_of(rows: list[float], labels: list[int]) -> float:
    """Half the mean of each class's mean square."""
    means = []
    for label in set(labels):
        mine = [value**2 for value, of in zip(rows, labels, strict=True) if of == label]
        means.append(sum(mine) / len(mine))
    return 0.5 * sum(means) / len(means)


BY_HAND: dict[str, Callable[[list[float], list[int]], float]] = {"taylor": taylor_of, "fisher": fisher_of}


def expected_from_gates(net: nn.Module, name: str, places: Places, channels: int, batches: list[Batch]) -> list[float]:
    """The mean over batches of a criterion's value of each channel."""
    totals = [0.0] * channels
    for batch in batches:
        rows = gate_derivatives(net, places, channels, batch)
        for channel in range(channels):
            totals[channel] += BY_HAND[name]([row[channel] for row in rows], batch[1].tolist()) / len(batches)
    return totals


@pytest.mark.parametrize("name", GRADIENT_CRITERIA)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_the_loss_are_those_of_gates_image_by_image(name: str, kind: str, batches: list[Batch]) -> None:
    """One gate stands in all places of a coupled group; each image's loss is differentiated alone."""
    net = lively(KINDS[kind]())
    groups = groups_of(net)
    scores = make_criterion(name, seed=0).score(net, groups, iter(batches))
    for group, got in zip(groups, scores, strict=True):
        places = LAST[type(net)] if group.channels == 32 else COUPLED[type(net)][group.channels]
        expected = expected_from_gates(net, name, places, group.channels, batches)
        assert (got.dtype, got.device.type) == (torch.float64, "cpu")
        assert got.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-18)
        assert len(set(expected)) > group.channels // 2, "scores that are all equal would prove nothing"


def test_a_gates_derivative_predicts_the_change_of_the_loss(net: nn.Module, batches: list[Batch]) -> None:
    """The reference above is what it says: what reads a channel reads a millionth less."""
    image, label = batches[0][0][2:3], batches[0][1][2:3]
    derivative = gate_derivatives(net, {"depth.1": 0}, 32, (image, label))[0]
    channel = max(range(32), key=lambda c: abs(derivative[c]))
    before = functional.cross_entropy(net(image), label).item()
    step = 1e-6
    with torch.no_grad():
        layer_of(net, "head").weight[:, channel] *= 1 - step
    after = functional.cross_entropy(net(image), label).item()
    assert (before - after) / step == pytest.approx(derivative[channel], rel=1e-3)


@pytest.mark.parametrize("name", CRITERIA)
def test_images_without_a_label_are_refused_by_what_asks_the_loss_and_taken_by_the_rest(
    name: str, net: nn.Module
) -> None:
    """In a sentence that names what would do, and the network is as it was."""
    groups, before = groups_of(net), copy.deepcopy(net.state_dict())
    batches = [(images_of(4, 1), torch.tensor([0, -1, 1, -1]))]
    if name in GRADIENT_CRITERIA:
        with pytest.raises(NoSamplesError, match=f"2 of 4 images have no label, and {name} asks the loss") as caught:
            make_criterion(name, seed=0).score(net, groups, batches)
        assert "activation" in caught.value.hint
    else:
        assert len(make_criterion(name, seed=0).score(net, groups, batches)) == len(groups)
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[key])


@pytest.mark.parametrize("name", GRADIENT_CRITERIA)
def test_one_image_among_twenty_weighs_as_much_as_the_twenty(name: str, net: nn.Module) -> None:
    """The score is the mean of what each class alone would give; more of the common class changes nothing."""
    groups = groups_of(net)
    common, rare = images_of(20, 1), images_of(1, 2)
    criterion = make_criterion(name, seed=0)

    def score(images: torch.Tensor, labels: list[int]) -> list[torch.Tensor]:
        return criterion.score(net, groups, [(images, torch.tensor(labels))])

    both = score(torch.cat([common, rare]), [3] * 20 + [1])
    more = score(torch.cat([common, rare, common, common]), [3] * 20 + [1] + [3] * 40)
    for together, many, one, other in zip(both, more, score(common, [3] * 20), score(rare, [1]), strict=True):
        torch.testing.assert_close(together, (one + other) / 2, rtol=1e-9, atol=0)
        torch.testing.assert_close(many, together, rtol=1e-9, atol=0)


def test_fisher_sees_what_cancels_out_within_a_class_and_taylor_does_not(net: nn.Module) -> None:
    """What separates the two: Fisher is at least half of Taylor, and more where images disagree."""
    groups, batch = groups_of(net), (images_of(12, 5), torch.tensor([0, 1, 2] * 4))
    taylor, fisher = (make_criterion(name, seed=0).score(net, groups, [batch]) for name in GRADIENT_CRITERIA)
    for first, second in zip(taylor, fisher, strict=True):
        assert (second >= 0.5 * first * (1 - 1e-9)).all()
        assert (second > 0.6 * first).any()
    single = (images_of(3, 6), torch.tensor([0, 1, 2]))  # one image a class: nothing to cancel out
    taylor, fisher = (make_criterion(name, seed=0).score(net, groups, [single]) for name in GRADIENT_CRITERIA)
    for first, second in zip(taylor, fisher, strict=True):
        torch.testing.assert_close(second, first / 2, rtol=1e-9, atol=0)


# ------------------------------------------------------------------------------------------------- answers


def maps_of(net: nn.Module, layer: str, channels: int, images: torch.Tensor) -> list[list[list[float]]]:
    """What a layer puts out, before anything that follows: [image][channel] -> its values."""
    kept: list[torch.Tensor] = []
    hook = layer_of(net, layer).register_forward_hook(lambda _m, _i, output: kept.append(output.detach().clone()))
    net(images)
    hook.remove()
    (maps,) = kept
    values: list[list[list[float]]] = maps.reshape(len(images), min(channels, maps.shape[1]), -1).tolist()
    return values


def mean_above_zero(values: list[float]) -> float:
    """Of a map after its ReLU."""
    return sum(max(value, 0.0) for value in values) / len(values)


def share_above_zero(values: list[float]) -> float:
    """One minus the percentage of zeros."""
    return sum(value > 0 for value in values) / len(values)


def responses(
    net: nn.Module, places: Places, channels: int, batches: list[Batch], measure: Callable[[list[float]], float]
) -> dict[int, list[list[float]]]:
    """For each class its images' responses [channels], the mean over the layers that have the channel."""
    found: dict[int, list[list[float]]] = {}
    for images, labels in batches:
        maps = {layer: maps_of(net, layer, channels, images) for layer in places}
        for i, label in enumerate(labels.tolist()):
            row = []
            for c in range(channels):
                having = [layer for layer, first in places.items() if 0 <= c - first < len(maps[layer][i])]
                row.append(sum(measure(maps[layer][i][c - places[layer]]) for layer in having) / len(having))
            found.setdefault(label, []).append(row)
    return found


def class_means(found: dict[int, list[list[float]]], channel: int) -> list[float]:
    """Of one channel, for each class."""
    return [sum(row[channel] for row in rows) / len(rows) for rows in found.values()]


def votes(found: dict[int, list[list[float]]]) -> dict[int, list[list[float]]]:
    """1 for the half of the channels that answers an image most, 0 for the others and for what does not answer."""
    result: dict[int, list[list[float]]] = {}
    for label, rows in found.items():
        for row in rows:
            strongest = sorted(range(len(row)), key=lambda c: -row[c])[: len(row) // 2]
            result.setdefault(label, []).append([float(c in strongest and row[c] > 0) for c in range(len(row))])
    return result


def expected_from_answers(
    net: nn.Module, name: str, places: Places, channels: int, batches: list[Batch]
) -> list[float]:
    """Scores of a criterion that looks at answers, in loops."""
    measure = share_above_zero if name == "nonzeros" else mean_above_zero
    found = responses(net, places, channels, batches, measure)
    if name.startswith("class_activation"):
        found = votes(found)
    over_classes = [class_means(found, c) for c in range(channels)]
    if name == "class_activation":
        return [max(means) for means in over_classes]
    scores = [sum(means) / len(means) for means in over_classes]
    return [score / max(scores) for score in scores] if name == "activation" else scores


@pytest.mark.parametrize("name", ACTIVATION_CRITERIA)
@pytest.mark.parametrize("kind", ["tiny", "in-place", "no-batch-norm", "flat-norm", "joined"])
def test_scores_of_answers_are_those_of_plain_loops(name: str, kind: str, batches: list[Batch]) -> None:
    """Image by image and value by value; every class weighs the same over all batches."""
    net = lively(KINDS[kind]())
    groups = groups_of(net)
    scores = make_criterion(name, seed=0).score(net, groups, iter(batches))
    for group, got in zip(groups, scores, strict=True):
        expected = expected_from_answers(net, name, COUPLED[type(net)][group.channels], group.channels, batches)
        assert (got.dtype, got.device.type) == (torch.float64, "cpu")
        assert got.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert 0 <= got.min() <= got.max() <= 1
        assert len(set(expected)) > 1, "scores that are all equal would prove nothing"


@pytest.mark.parametrize("name", ACTIVATION_CRITERIA)
def test_a_common_class_has_no_more_say_than_a_rare_one(name: str, net: nn.Module) -> None:
    """The common class's images three times, in batches of their own: the same scores."""
    groups = groups_of(net)
    common, rare = images_of(20, 1), images_of(1, 2)
    mixed = (torch.cat([common, rare]), torch.tensor([3] * 20 + [1]))
    alone = (common, torch.tensor([3] * 20))
    criterion = make_criterion(name, seed=0)
    first, again = criterion.score(net, groups, [mixed]), criterion.score(net, groups, [alone, mixed, alone])
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_filter_that_one_class_needs_counts_fully_only_when_classes_are_joined_by_or() -> None:
    """Two of four channels answer class 0, the others class 1, 2 and 3: shares of 1 and 1, means of 1/4 and 3/4."""
    net = PlainNet().double().eval()
    with torch.no_grad():
        for parameter in net.two.parameters():
            parameter.zero_()
        net.one.weight.zero_()
        nn.init.zeros_(layer_of(net, "one").bias)
        net.one.weight[0, 0, 1, 1], net.one.weight[1, 0, 1, 1] = 1.0, -1.0  # brightness, darkness
        net.two.weight[0, 0, 1, 1] = net.two.weight[1, 0, 1, 1] = 1.0
        net.two.weight[2, 1, 1, 1] = net.two.weight[3, 1, 1, 1] = 1.0
    groups = [group for group in groups_of(net) if group.channels == 4]
    sign = torch.tensor([1.0, -1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    batch = (sign[:, None, None, None].expand(5, 3, 12, 12), torch.tensor([0, 1, 2, 3, 0]))
    (joined,) = make_criterion("class_activation", seed=0).score(net, groups, [batch])
    (counted,) = make_criterion("class_activation_count", seed=0).score(net, groups, [batch])
    assert joined.tolist() == [1.0, 1.0, 1.0, 1.0]
    assert counted.tolist() == [0.25, 0.25, 0.75, 0.75]


def test_a_filter_that_never_answers_scores_zero_and_a_dead_group_is_not_divided_by_zero(batches: list[Batch]) -> None:
    """All channels of the layer below zero: zeros, and no NaN."""
    net = lively(PlainNet())
    with torch.no_grad():
        layer_of(net, "two").weight.zero_()
        layer_of(net, "two").bias.fill_(-1.0)
    groups = [group for group in groups_of(net) if group.channels == 4]
    for name in ACTIVATION_CRITERIA:
        (score,) = make_criterion(name, seed=0).score(net, groups, batches)
        assert score.tolist() == [0.0] * 4


# ------------------------------------------------------------------------------------------------- weights


def test_l1_scores_are_the_mean_magnitudes_of_coupled_filters(net: nn.Module) -> None:
    """Weight by weight in plain Python; batch norms do not count."""
    groups = groups_of(net)
    filters = {16: ["stem.0", "left.0"], 32: ["expand.0", "depth.0"]}
    for group, got in zip(groups, make_criterion("l1", seed=0).score(net, groups, []), strict=True):
        layers = [layer_of(net, layer) for layer in filters[group.channels]]
        for channel in range(group.channels):
            means = []
            for layer in layers:
                weights = [abs(w) for w in layer.weight[channel].flatten().tolist()]
                means.append(sum(weights) / len(weights))
            assert got[channel].item() == pytest.approx(sum(means) / len(means), rel=1e-12)


def test_l1_scores_are_means_of_the_filters_that_a_channel_has() -> None:
    """Each channel of the sum has two filters, one of twelve and one of four or of eight: their mean, not a third."""
    net = lively(Joined())
    (group,) = groups_of(net)
    (got,) = make_criterion("l1", seed=0).score(net, [group], [])
    whole, first, rest = (
        layer_of(net, layer).weight.detach().abs().flatten(1).mean(dim=1) for layer in ("whole.0", "first.0", "rest.0")
    )
    torch.testing.assert_close(got, (whole + torch.cat([first, rest])) / 2)


def test_a_frozen_layer_says_nothing_about_magnitude(net: nn.Module) -> None:
    """With the left branch frozen only the stem is ranked."""
    layer_of(net, "left.0").weight.requires_grad_(False)
    groups = groups_of(net)
    stem = layer_of(net, "stem.0").weight.detach().abs().flatten(1).mean(dim=1)
    index = [group.channels for group in groups].index(16)
    torch.testing.assert_close(make_criterion("l1", seed=0).score(net, groups, [])[index], stem)


@pytest.mark.parametrize("name", [name for name in CRITERIA if name != "random"])
def test_a_group_without_a_filter_that_learns_is_never_to_be_cut(
    name: str, net: nn.Module, batches: list[Batch]
) -> None:
    """Both filters of the residual sum frozen: infinite; the other group is ranked as ever."""
    groups = groups_of(net)
    before = make_criterion(name, seed=0).score(net, groups, batches)
    for layer in ("stem.0", "left.0"):
        layer_of(net, layer).weight.requires_grad_(False)
    for group, was, got in zip(groups, before, make_criterion(name, seed=0).score(net, groups, batches), strict=True):
        if group.channels == 16:
            assert got.tolist() == [float("inf")] * 16
        else:
            torch.testing.assert_close(got, was)


def test_random_scores_depend_on_the_seed_alone(net: nn.Module, batches: list[Batch]) -> None:
    """Other weights and other data rank the same; another seed ranks otherwise, and no channel is favoured."""
    groups = groups_of(net)
    first = make_criterion("random", seed=5).score(net, groups, batches)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    again = make_criterion("random", seed=5).score(net, groups, [])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1][: len(first[0])])
    many = torch.stack([torch.cat(make_criterion("random", seed=seed).score(net, groups, [])) for seed in range(400)])
    assert len({tuple(row) for row in many.tolist()}) == 400
    # the mean of 400 uniform numbers has a standard deviation of 0.0144
    assert (many.mean(dim=0) - 0.5).abs().max() < 5 * 0.0144
    assert many.min() >= 0
    assert many.max() < 1


# ------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", CRITERIA)
def test_scoring_leaves_the_network_as_it_was(name: str, net: nn.Module, batches: list[Batch]) -> None:
    """No hook, no gradient, no changed weight or statistic; the same scores again."""
    groups, state = groups_of(net), copy.deepcopy(net.state_dict())
    first = make_criterion(name, seed=1).score(net, groups, batches)
    again = make_criterion(name, seed=1).score(net, groups, batches)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert [score.shape for score in first] == [(group.channels,) for group in groups]
    assert all(torch.equal(state[key], tensor) for key, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("name", CRITERIA)
def test_in_place_layers_do_not_change_a_score(name: str, batches: list[Batch]) -> None:
    """ReLUs and a residual sum that overwrite what the batch norm put out, with the same weights."""
    plain, in_place = lively(TinyNet(5)), lively(TorchvisionStyle(5))
    in_place.load_state_dict(plain.state_dict())
    for module in in_place.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    torch.testing.assert_close(in_place(batches[0][0]), plain(batches[0][0]))
    criterion = make_criterion(name, seed=1)
    expected, got = (criterion.score(net, groups_of(net), batches) for net in (plain, in_place))
    for one, other in zip(expected, got, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", DATA_CRITERIA)
def test_every_batch_is_reported_and_no_batch_is_refused(name: str, net: nn.Module, batches: list[Batch]) -> None:
    """A beat after each, so that a slow board is not taken for a stuck one."""
    beats: list[int] = []
    groups, seen = groups_of(net), 0

    def counted() -> Iterator[Batch]:
        nonlocal seen
        for batch in batches:
            assert len(beats) == seen, "a beat follows each batch before the next is read"
            seen += 1
            yield batch

    criterion = make_criterion(name, seed=0, beat=lambda: beats.append(1))
    criterion.score(net, groups, counted())
    assert len(beats) == seen == len(batches)
    with pytest.raises(NoGradientError, match="no batch"):
        criterion.score(net, groups, [])


@pytest.mark.parametrize("name", GRADIENT_CRITERIA)
def test_a_loss_that_cannot_rank_filters_is_refused(name: str, net: nn.Module, batches: list[Batch]) -> None:
    """A layer that the loss does not reach, and a loss that is not finite, each have their error and leave no hook."""
    groups, criterion = groups_of(net), make_criterion(name, seed=0)
    with pytest.raises(LossNotFiniteError):
        criterion.score(net, groups, [(batches[0][0] * float("nan"), batches[0][1])])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    hook = layer_of(net, "left").register_forward_hook(lambda _m, _i, output: torch.zeros_like(output))
    with pytest.raises(NoGradientError, match="left"):
        criterion.score(net, groups, batches)
    hook.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_is_made_by_its_name_and_says_whether_scores_add_up(name: str) -> None:
    """Only changes of the loss are weighed against what channels cost."""
    assert make_criterion(name, seed=0).adds_up is (name in GRADIENT_CRITERIA)


USERS_OWN = """
import torch

class Ascending:
    adds_up = False

    def score(self, model, groups, batches):
        return [torch.arange(group.channels, dtype=torch.float64) for group in groups]

class Asks(Ascending):
    def __init__(self, what):
        pass

class NoScore:
    adds_up = True

class NoAddsUp:
    score = Ascending.score

class ScoreIsNoMethod:
    adds_up = True
    score = 3
"""


def test_a_criterion_of_the_users_own_is_found_by_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: nn.Module
) -> None:
    """A class in a package on the path, with nothing of ours in it."""
    (tmp_path / "users_package").mkdir()
    (tmp_path / "users_package" / "ranking.py").write_text(USERS_OWN)
    monkeypatch.syspath_prepend(tmp_path)
    groups = groups_of(net)
    scores = make_criterion("users_package.ranking:Ascending", seed=3).score(net, groups, [])
    assert [score.tolist() for score in scores] == [list(range(group.channels)) for group in groups]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("l2", r"unknown criterion 'l2'"),
        ("", r"unknown criterion ''"),
        ("users_ranking:", r"unknown criterion 'users_ranking:'"),
        (":Ascending", r"criterion ':Ascending' cannot be made"),
        ("users_no_module:Ranking", r"'users_no_module:Ranking' cannot be made: No module named 'users_no_module'"),
        ("users_ranking:Missing", r"'users_ranking:Missing' cannot be made: .*no attribute 'Missing'"),
        ("users_ranking:Asks", r"'users_ranking:Asks' cannot be made: .*what"),
        ("users_ranking:NoScore", r"'users_ranking:NoScore' needs `score` and `adds_up`"),
        ("users_ranking:NoAddsUp", r"'users_ranking:NoAddsUp' needs `score` and `adds_up`"),
        ("users_ranking:ScoreIsNoMethod", r"'users_ranking:ScoreIsNoMethod' needs `score` and `adds_up`"),
        ("users_typo:Ranking", r"'users_typo:Ranking' cannot be made"),
        ("users_stops:Ranking", r"'users_stops:Ranking' cannot be made: no licence"),
    ],
)
def test_a_criterion_that_cannot_be_used_is_refused_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, sentence: str
) -> None:
    """It names the criterion and what is wrong, and the hint goes on from there."""
    (tmp_path / "users_ranking.py").write_text(USERS_OWN)
    (tmp_path / "users_typo.py").write_text("class Ranking\n")
    (tmp_path / "users_stops.py").write_text("raise ValueError('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=sentence) as caught:
        make_criterion(name, seed=0)
    assert caught.value.hint
    if "unknown" in sentence:
        assert all(known in caught.value.hint for known in CRITERIA)


# ------------------------------------------------------------------------------------------ what cannot rank filters


class Says:
    """A criterion of the user's own that says what it is told to."""

    adds_up = False

    def __init__(self, scores: Any) -> None:
        self._scores = scores

    def score(self, model: nn.Module, groups: Sequence[CoupledGroup], batches: Iterable[Batch]) -> Any:
        """What it was told; an error is raised."""
        if isinstance(self._scores, Exception):
            raise self._scores
        return self._scores(groups)


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        (KeyError("layer4"), r"criterion 'mine:Own' failed: KeyError: 'layer4'"),
        (lambda _: None, r"criterion 'mine:Own' failed: TypeError"),
        (
            lambda groups: [torch.ones(g.channels) for g in groups[1:]],
            r"gave scores of 1 groups of filters; there are 2",
        ),
        (lambda groups: [[1.0] * g.channels for g in groups], r"gave no tensor \[\d+\] for layer"),
        (lambda groups: [torch.ones(g.channels + 1) for g in groups], r"gave no tensor \[\d+\] for layer"),
        (lambda groups: [torch.full((g.channels,), math.nan) for g in groups], r"layer \S+ are not numbers"),
    ],
)
def test_what_no_filters_can_be_ranked_by_is_refused_with_a_sentence(scores: Any, sentence: str) -> None:
    """Whatever a user's own criterion gives or raises."""
    net = lively(TinyNet(5)).eval()
    groups = find_groups(net, "head", 12, 12)
    with pytest.raises(UnprunableError, match=sentence):
        score_with(Says(scores), "mine:Own", net, groups, [])


def test_an_error_of_ours_keeps_its_name() -> None:
    """A criterion that needs labels says so itself; it is no failure of the criterion."""
    net = lively(TinyNet(5)).eval()
    groups = find_groups(net, "head", 12, 12)
    with pytest.raises(NoSamplesError):
        score_with(Says(NoSamplesError("no labels")), "mine:Own", net, groups, [])


@pytest.mark.parametrize("name", [name for name in CRITERIA if name != "random"])
def test_a_weight_that_is_not_a_number_is_never_hidden(name: str) -> None:
    """Comparing hides NaN: every criterion that looks at the network refuses to rank filters by it."""
    torch.manual_seed(0)
    net = lively(TinyNet(5)).eval()
    groups = find_groups(net, "head", 12, 12)
    with torch.no_grad():
        next(m for m in net.modules() if isinstance(m, nn.Conv2d)).weight[0] = math.nan
    batch = (torch.randn(6, 3, 12, 12, dtype=next(net.parameters()).dtype), torch.arange(6) % 3)
    with pytest.raises((UnprunableError, LossNotFiniteError)):
        score_with(make_criterion(name, seed=0), name, net, groups, [batch])


def test_the_documented_criterion_of_ones_own_ranks_filters() -> None:
    """As it stands in docs/compress.md: by the size of the batch norms' factors."""
    page = (Path(__file__).parents[2] / "docs" / "compress.md").read_text(encoding="utf-8")
    _, example, _ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)  # noqa: S102 - our own page
    net = lively(TinyNet(5)).eval()
    groups = find_groups(net, "head", 12, 12)
    scores = score_with(names["BatchNormScale"](), "mine:BatchNormScale", net, groups, [])
    modules = dict(net.named_modules())
    for group, score in zip(groups, scores, strict=True):
        expected = [0.0] * group.channels
        for member in group.members:
            layer = modules[member.layer]
            if isinstance(layer, nn.BatchNorm2d):
                for index, root in zip(member.indices, member.roots, strict=True):
                    expected[root] += abs(float(layer.weight.detach()[index]))
        assert score.tolist() == pytest.approx(expected)
        assert max(expected) > 0
