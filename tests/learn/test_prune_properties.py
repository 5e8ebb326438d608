"""Pruning on random small networks: what is cut is what was planned, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

from edgetune.errors import UnprunableError
from edgetune.learn.criteria import make_criterion
from edgetune.learn.groups import find_groups, overlaps
from edgetune.learn.network import Network, count_macs, count_parameters
from edgetune.learn.prune import Limit, check_prunable, choose_channels, cut_channels, even_floors

WIDTH = 8


class Squeeze(nn.Module):
    """What a map is multiplied by, a channel: a squeeze and an excitation, arXiv 1709.01507."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, WIDTH, 1)
        self.excite = nn.Conv2d(WIDTH, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N, C, H, W] -> factors [N, C, 1, 1]."""
        return torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean(dim=(2, 3), keepdim=True)))))


class Block(nn.Module):
    """One of the ways in which channels are coupled."""

    def __init__(self, kind: str, channels: int, width: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "residual":
            width = channels
        groups = {"depthwise": channels, "grouped": 2}.get(kind, 1)
        width = channels if kind == "depthwise" else width
        self.conv = nn.Conv2d(channels, width, 3, 1, 1, groups=groups, bias=kind != "residual")
        self.norm = nn.BatchNorm2d(width)
        self.side = nn.Conv2d(channels, WIDTH, 1) if kind == "concatenated" else None
        self.scale = Squeeze(width) if kind == "squeezed" else None
        self.width = width + (WIDTH if kind == "concatenated" else 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Channels in, `width` channels out."""
        y = self.norm(self.conv(x))
        if self.side is not None:
            y = torch.cat([y, self.side(x)], dim=1)
        if self.scale is not None:
            y = y * self.scale(y)
        return torch.relu(x + y if self.kind == "residual" else y)


class Net(nn.Module):
    """A stem, blocks, and a head on pooled or flattened features."""

    def __init__(self, blocks: list[tuple[str, int]], is_flat: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, 1, 1)
        channels, layers = WIDTH, []
        for kind, width in blocks:
            layers.append(Block(kind, channels, width))
            channels = layers[-1].width
        self.blocks = nn.Sequential(*layers)
        self.is_flat = is_flat
        self.head = nn.Linear(channels * (16 if is_flat else 1), 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, 4, 4] -> logits [N, 5]."""
        x = self.blocks(self.stem(x))
        return self.head(torch.flatten(x, 1) if self.is_flat else x.mean(dim=(2, 3)))


KINDS = st.sampled_from(["plain", "residual", "depthwise", "grouped", "concatenated", "squeezed"])
BLOCKS = st.lists(st.tuples(KINDS, st.sampled_from([8, 12, 16])), min_size=1, max_size=4)


def random_net(blocks: list[tuple[str, int]], is_flat: bool, seed: int) -> Net:
    """With random batch norm statistics too, so that nothing is equal by luck."""
    torch.manual_seed(seed)
    net = Net(blocks, is_flat).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.normal_()
            module.running_var.uniform_(0.5, 2)
    return net


@settings(max_examples=60, deadline=None)
@given(BLOCKS, st.booleans(), st.integers(0, 999), st.sampled_from([1, 2, 4]), st.sampled_from([0.2, 0.5, 0.8]))
@example([("concatenated", 8), ("residual", 8)], False, 0, 4, 0.8)
def test_cutting_silent_filters_changes_nothing(
    blocks: list[tuple[str, int]], is_flat: bool, seed: int, round_to: int, level: float
) -> None:
    """Filters whose weights, bias, scale and shift are zero can be cut: equal outputs, the planned size and widths."""
    # torch-pruning maps a concatenation that is then flattened wrongly; the trial refuses it (see below)
    assume(not (is_flat and any(kind == "concatenated" for kind, _ in blocks)))
    net = random_net(blocks, is_flat, seed)
    groups = find_groups(net, "head", 4, 4)
    assert not overlaps(groups)
    scores = make_criterion("random", seed=seed).score(net, groups, [])
    whole = count_parameters(net)
    cut = choose_channels(
        net, groups, scores, limit=Limit("parameters", int(whole * (1 - level))), image=(4, 4), round_to=round_to,
        floors=even_floors(groups, level), per_cost=False,
    )  # fmt: skip
    modules = dict(net.named_modules())
    with torch.no_grad():
        for group, gone in zip(groups, cut.removed, strict=True):
            assert not gone or (group.channels - len(gone)) % round_to == 0
            assert group.channels - len(gone) >= 2
            for member in group.members:
                if member.is_output:
                    rows = [i for i, r in zip(member.indices, member.roots, strict=True) if r in set(gone)]
                    for parameter in modules[member.layer].parameters(recurse=False):
                        parameter[rows] = 0
    images = torch.randn(3, 3, 4, 4, dtype=torch.float64)
    expected = net(images)
    cut_channels(net, groups, cut.removed)
    assert (count_parameters(net), count_macs(net, 4, 4)) == (cut.size.parameters, cut.size.macs)
    torch.testing.assert_close(net(images), expected)
    assert net.head.out_features == 5


@settings(max_examples=20, deadline=None)
@given(BLOCKS, st.booleans(), st.integers(0, 999))
def test_cutting_nothing_is_identical(blocks: list[tuple[str, int]], is_flat: bool, seed: int) -> None:
    """Keep-all leaves every bit."""
    net = random_net(blocks, is_flat, seed)
    groups = find_groups(net, "head", 4, 4)
    before = copy.deepcopy(net.state_dict())
    cut_channels(net, groups, [() for _ in groups])
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_groups_that_are_wrong_are_found_out_before_any_work() -> None:
    """The trial compares a cut copy with a masked one, and so refuses what the graph maps wrongly."""
    net = random_net([("concatenated", 8)], is_flat=True, seed=0)
    with pytest.raises(UnprunableError):
        check_prunable(Network(net, "test:net", 5, "head"), 4, 4)
