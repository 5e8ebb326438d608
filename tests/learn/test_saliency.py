"""The three criteria and the choice of channels, against computations that share no code with them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))

from tiny_nets import TinyNet

from edgetune.errors import LossNotFiniteError, NoGradientError
from edgetune.learn.groups import CoupledGroup, find_groups
from edgetune.learn.network import count_parameters
from edgetune.learn.prune import choose_channels, cut_channels
from edgetune.learn.saliency import Batch, MeanMagnitude, Random, Taylor, make_criterion

# Which layers of TinyNet share their channels, read off its forward pass: the residual sum couples the stem and the
# left branch, the depthwise convolution follows the expansion.
COUPLED = {
    16: {"stem.0": "stem.1", "left.0": "left.1"},
    32: {"expand.0": "expand.1", "depth.0": "depth.1"},
}


@pytest.fixture
def net() -> nn.Module:
    """In eval mode and double precision, with batch norms that do something."""
    torch.manual_seed(3)
    net = TinyNet(5).double()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.fixture
def batches() -> list[Batch]:
    """Three batches of different size."""
    generator = torch.Generator().manual_seed(4)
    return [
        (torch.randn(n, 3, 12, 12, generator=generator, dtype=torch.float64), torch.arange(n) % 5) for n in (6, 4, 7)
    ]


def groups_of(net: nn.Module) -> tuple[CoupledGroup, ...]:
    """Both groups of the tiny net."""
    groups = find_groups(net, "head", 12, 12)
    assert sorted(group.channels for group in groups) == [16, 32]
    return groups


def gated_gradients(net: nn.Module, layers: list[str], channels: int, batch: Batch) -> list[torch.Tensor]:
    """dL/dgate of gates, all 1, that multiply the outputs of the layers: autograd alone."""
    gates = [torch.ones(channels, dtype=torch.float64, requires_grad=True) for _ in layers]
    hooks = [
        net.get_submodule(layer).register_forward_hook(lambda _m, _i, output, gate=gate: output * gate[:, None, None])
        for layer, gate in zip(layers, gates, strict=True)
    ]
    loss = functional.cross_entropy(net(batch[0]), batch[1])
    for hook in hooks:
        hook.remove()
    return list(torch.autograd.grad(loss, gates))


def test_taylor_scores_are_the_squared_gradients_of_gates(net: nn.Module, batches: list[Batch]) -> None:
    """Equal to gates on every convolution and batch norm of the group, squared, summed, averaged, scaled to 1."""
    groups = groups_of(net)
    scores = Taylor().score(net, groups, batches)
    assert all(parameter.grad is None for parameter in net.parameters())
    for group, got in zip(groups, scores, strict=True):
        layers = [layer for pair in COUPLED[group.channels].items() for layer in pair]
        total = torch.zeros(group.channels, dtype=torch.float64)
        for batch in batches:
            for gradient in gated_gradients(net, layers, group.channels, batch):
                total += gradient**2
        expected = total / total.max()
        torch.testing.assert_close(got, expected)
        assert len(expected.unique()) > group.channels // 2, "scores that are all equal would prove nothing"


def test_a_gate_gradient_predicts_the_change_of_the_loss(net: nn.Module, batches: list[Batch]) -> None:
    """The computation above is what it says: closing one gate by a millionth changes the loss by its gradient."""
    (gradient,) = gated_gradients(net, ["depth.1"], 32, batches[0])
    norm = net.get_submodule("depth.1")
    before = functional.cross_entropy(net(batches[0][0]), batches[0][1]).item()
    step = 1e-6
    with torch.no_grad():
        norm.weight[7] *= 1 - step
        norm.bias[7] *= 1 - step
    after = functional.cross_entropy(net(batches[0][0]), batches[0][1]).item()
    assert (before - after) / step == pytest.approx(gradient[7].item(), rel=1e-3, abs=1e-8)


def test_l1_scores_are_the_mean_magnitudes_of_coupled_filters(net: nn.Module) -> None:
    """Weight by weight in plain Python; batch norms do not count."""
    groups = groups_of(net)
    for group, got in zip(groups, MeanMagnitude().score(net, groups, []), strict=True):
        layers = [net.get_submodule(layer) for layer in COUPLED[group.channels]]
        for channel in range(group.channels):
            means = []
            for layer in layers:
                weights = [abs(w) for w in layer.weight[channel].flatten().tolist()]
                means.append(sum(weights) / len(weights))
            assert got[channel].item() == pytest.approx(sum(means) / len(means), rel=1e-12)


def test_a_frozen_layer_says_nothing_about_importance(net: nn.Module) -> None:
    """With the left branch frozen only the stem is ranked; with both frozen the group is never cut."""
    net.get_submodule("left.0").weight.requires_grad_(False)
    groups = groups_of(net)
    stem = net.get_submodule("stem.0").weight.detach().abs().flatten(1).mean(dim=1)
    index = [group.channels for group in groups].index(16)
    torch.testing.assert_close(MeanMagnitude().score(net, groups, [])[index], stem)
    net.get_submodule("stem.0").weight.requires_grad_(False)
    scores = MeanMagnitude().score(net, groups, [])
    assert scores[index].isinf().all()
    cut = choose_channels(net, groups, scores, parameters_max=0, round_to=1, level=0.9)
    assert cut.removed[index] == ()
    assert cut.removed[1 - index] != ()


def test_random_scores_depend_on_the_seed_alone(net: nn.Module, batches: list[Batch]) -> None:
    """Other weights and other data rank the same; another seed ranks otherwise, and no channel is favoured."""
    groups = groups_of(net)
    first = Random(5).score(net, groups, batches)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    again = Random(5).score(net, groups, [])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1][: len(first[0])])
    many = torch.stack([torch.cat(Random(seed).score(net, groups, [])) for seed in range(400)])
    assert many.unique(dim=0).shape[0] == 400
    # the mean of 400 uniform numbers has a standard deviation of 0.0144
    assert (many.mean(dim=0) - 0.5).abs().max() < 5 * 0.0144
    assert many.min() >= 0
    assert many.max() < 1


@pytest.mark.parametrize("criterion", ["l1", "taylor", "random"])
@pytest.mark.parametrize("share", [0.35, 0.6])
def test_the_lowest_channels_go_and_not_one_too_many(
    net: nn.Module, batches: list[Batch], criterion: str, share: float
) -> None:
    """In each group the removed score lowest; really cutting gives the size; one channel back would be too large."""
    groups = groups_of(net)
    scores = make_criterion(criterion, seed=1).score(net, groups, batches)
    parameters_max = int(count_parameters(net) * share)
    cut = choose_channels(net, groups, scores, parameters_max=parameters_max, round_to=1, level=1 - share)
    assert size_after(net, groups, cut.removed) == cut.parameters <= parameters_max
    assert any(cut.removed)
    for index, (gone, score) in enumerate(zip(cut.removed, scores, strict=True)):
        kept = [channel for channel in range(len(score)) if channel not in gone]
        if not gone:  # an unscaled criterion may spare a whole group
            continue
        assert score[list(gone)].max() <= score[kept].min()
        fewer = list(cut.removed)
        fewer[index] = tuple(channel for channel in gone if channel != max(gone, key=lambda c: score[c].item()))
        assert size_after(net, groups, fewer) > parameters_max


def size_after(net: nn.Module, groups: tuple[CoupledGroup, ...], removed: Sequence[Sequence[int]]) -> int:
    """Parameters of a copy that was really cut."""
    other = copy.deepcopy(net)
    cut_channels(other, groups, removed)
    return count_parameters(other)


def test_a_ranking_without_data_or_gradient_is_refused(net: nn.Module, batches: list[Batch]) -> None:
    """No batch, a layer that the loss does not reach, and a loss that is not finite each have their error."""
    groups = groups_of(net)
    with pytest.raises(NoGradientError, match="no batch"):
        Taylor().score(net, groups, [])
    with pytest.raises(LossNotFiniteError):
        Taylor().score(net, groups, [(batches[0][0] * float("nan"), batches[0][1])])
    hook = net.get_submodule("left").register_forward_hook(lambda _m, _i, output: torch.zeros_like(output))
    with pytest.raises(NoGradientError, match="left"):
        Taylor().score(net, groups, batches)
    hook.remove()
    with pytest.raises(ValueError, match="l2"):
        make_criterion("l2", seed=0)
