"""Removal of residual branches: the same answers as with silent branches, saved, exported, pruned again."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import onnx
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from conftest_site import draft_manifest

from edgetune.errors import ModelError
from edgetune.learn.depth import Branch, Thinner, find_branches, remove_branch, removed_exits, without
from edgetune.learn.empty import EmptyConv2d
from edgetune.learn.export import artefact_files, check_export, stage
from edgetune.learn.groups import find_groups
from edgetune.learn.network import Network, count_macs, count_parameters, new_network, rebuild, state_tensors
from edgetune.learn.prune import check_prunable, cut_channels
from edgetune.serve.engine import Engine
from edgetune.types import Preprocess

CLASSES = 5
# architecture -> (side of the images, branches that may go)
FAST = {
    "cifar:resnet20": (32, 9), "cifar:resnet20a": (32, 9), "cifar:mobilenet_v2": (32, 14),
    "torchvision:mobilenet_v3_small": (64, 6),  # squeeze-and-excite inside the branch, or not
    "cifar:squeezenet": (32, 3),  # three of its fire modules have a shortcut; each has two exits
    "cifar:alexnet": (32, 0),  # nothing but a chain
}  # fmt: skip
SLOW = {
    "torchvision:resnet18": (64, 8), "torchvision:resnet50": (64, 16), "torchvision:mobilenet_v2": (64, 10),
    "torchvision:efficientnet_b0": (64, 9), "torchvision:regnet_y_400mf": (64, 16),
}  # fmt: skip


@pytest.fixture(
    scope="module",
    params=[*FAST.items(), *(pytest.param(item, marks=pytest.mark.slow) for item in SLOW.items())],
    ids=lambda item: item[0],
)
def case(request: pytest.FixtureRequest) -> tuple[Network, int, int]:
    """A network in eval mode with batch norms that do something, the side of its images, the branches it has."""
    architecture, (side, count) = request.param
    torch.manual_seed(0)
    network = new_network(architecture, CLASSES)
    for layer in network.module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.3, 0.3)
    network.module.eval()
    return network, side, count


def branches_of(network: Network, side: int) -> tuple[Branch, ...]:
    """All that may go."""
    return find_branches(network.module, find_groups(network.module, network.head, side, side), side, side)


def every_second_gone(network: Network, side: int) -> tuple[Network, list[Branch]]:
    """A copy without every second branch."""
    gone = list(branches_of(network, side)[::2])
    other = copy.deepcopy(network)
    for branch in gone:
        remove_branch(other.module, branch)
    return other, gone


def images_of(side: int) -> torch.Tensor:
    """Three."""
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_every_residual_branch_is_found_and_nothing_else(case: tuple[Network, int, int]) -> None:
    """A chain has none, and a scale is not one."""
    network, side, count = case
    assert len(branches_of(network, side)) == count


def test_without_a_branch_the_answers_are_those_of_the_silent_branch(case: tuple[Network, int, int]) -> None:
    """Emptied layers are smaller and answer the same."""
    network, side, _ = case
    other, gone = every_second_gone(network, side)
    if not gone:
        pytest.skip("this architecture is a chain: it has no branch")
    images = images_of(side)
    with torch.no_grad():
        with without(network.module, gone):
            expected = network.module(images)
        got = other.module(images)
    assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert count_parameters(other.module) < count_parameters(network.module)
    assert count_macs(other.module, side, side) < count_macs(network.module, side, side)
    assert set(removed_exits(other.module)) == {name for branch in gone for name in branch.exits}


def test_it_is_saved_exported_trained_and_pruned_again(case: tuple[Network, int, int], tmp_path: Path) -> None:
    """What is emptied goes through everything that a network goes through."""
    network, side, _ = case
    other, gone = every_second_gone(network, side)
    if not gone:
        pytest.skip("this architecture is a chain: it has no branch")
    again = rebuild(other.describe(), state_tensors(other.module))
    again.module.eval()
    images = images_of(side)
    with torch.no_grad():
        assert torch.equal(again.module(images), other.module(images))
    assert again.describe() == other.describe()

    groups = check_prunable(other, side, side)
    cut_channels(
        other.module,
        groups,
        [tuple(range(g.channels // g.block_count // 2)) if g.block_count == 1 else () for g in groups],
    )
    preprocess = Preprocess(height=side, width=side, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    files = artefact_files(other, preprocess, lambda: None)
    stage(tmp_path, files, draft_manifest(other.architecture, CLASSES, preprocess))
    engine = Engine.load(tmp_path, threads=1)
    check_export(engine, other, preprocess)
    engine.close()

    other.module.train()
    other.module(images).square().sum().backward()
    for name, layer in other.module.named_modules():
        is_trained = isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.weight.requires_grad
        if is_trained and not isinstance(layer, EmptyConv2d):
            assert layer.weight.grad is not None, name


def batches_for(network: Network, side: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images, and what the network says they are."""
    images = images_of(side)
    with torch.no_grad():
        return [(images, network.module(images).argmax(dim=1))]


@pytest.fixture(scope="module")
def resnet() -> Network:
    """A ResNet20."""
    torch.manual_seed(0)
    network = new_network("cifar:resnet20", CLASSES)
    network.module.eval()
    return network


@pytest.mark.parametrize(("share", "count"), [(0.95, 0), (0.75, 0), (0.6, 3), (0.5, 4), (0.33, 5), (0.15, 7)])
def test_depth_does_three_quarters_of_the_way(resnet: Network, share: float, count: int) -> None:
    """Nine branches of 8 to 12 % of the operations: as many go as bring what is left nearest to share ** 0.75."""
    thin = Thinner(resnet, batches_for(resnet, 32), image=(32, 32)).thin_out(share=share)
    assert len(removed_exits(thin.module)) == count
    assert len(removed_exits(resnet.module)) == 0, "the network as given is not changed"
    assert (thin is resnet) == (count == 0)


def test_the_branch_that_is_missed_least_goes_first(resnet: Network) -> None:
    """Of the rises of the loss, each for the operations of its two convolutions, the least."""
    ((images, labels),) = batches_for(resnet, 32)
    with torch.no_grad():
        whole = float(nn.functional.cross_entropy(resnet.module(images), labels))
    rises = {}
    for branch in branches_of(resnet, 32):
        inputs = {"1": (16, 16), "2": (16, 32), "3": (32, 64)}[branch.name[5]]
        width, side = inputs[1], {"1": 32, "2": 16, "3": 8}[branch.name[5]]
        first = inputs[0] if branch.name[7] == "0" else width
        with without(resnet.module, [branch]), torch.no_grad():
            loss = nn.functional.cross_entropy(resnet.module(images), labels)
        rises[branch.name] = (float(loss) - whole) / (9 * side**2 * width * (first + width))
    thin = Thinner(resnet, batches_for(resnet, 32), image=(32, 32)).thin_out(share=0.6)
    assert min(rises, key=lambda name: rises[name]) in removed_exits(thin.module)
    assert max(rises, key=lambda name: rises[name]) not in removed_exits(thin.module)


@pytest.mark.parametrize("is_alone", [True, False])
def test_each_branch_is_judged_alone_or_by_what_is_left(resnet: Network, *, is_alone: bool) -> None:
    """The loss is asked for as it is and without each of the nine; or again without each of the eight that are left, and so on."""
    missing, asked = [0], []

    @contextlib.contextmanager
    def watched(module: nn.Module, gone: Sequence[Branch]) -> Iterator[None]:
        missing.append(len(gone))
        with without(module, gone):
            yield
        missing.pop()

    def loss(*_: object) -> float:
        asked.append(missing[-1])
        return float(len(asked))

    with mock.patch("edgetune.learn.depth.without", watched), mock.patch("edgetune.learn.depth._loss", loss):
        thin = Thinner(resnet, [], image=(32, 32)).thin_out(share=0.15, is_alone=is_alone)
    in_turn = [number for gone in range(8) for number in [gone] + (9 - gone) * [gone + 1]]
    assert asked == ([0] + 9 * [1] if is_alone else in_turn)
    assert len(removed_exits(thin.module)) == 7


def test_what_was_thinned_out_is_not_thinned_out_again(resnet: Network) -> None:
    """To the same share nothing more goes; to a smaller one only the difference."""
    batches = batches_for(resnet, 32)
    half = Thinner(resnet, batches, image=(32, 32)).thin_out(share=0.5)
    assert Thinner(half, batches, image=(32, 32)).thin_out(share=0.5) is half
    third = Thinner(half, batches, image=(32, 32)).thin_out(share=0.33)
    assert len(removed_exits(third.module)) == 5
    assert set(removed_exits(half.module)) < set(removed_exits(third.module))


def test_narrow_layers_do_not_count_as_missing_ones(resnet: Network) -> None:
    """Depth is measured by the layers of the architecture, so width that was cut before changes nothing."""
    narrow = copy.deepcopy(resnet)
    groups = find_groups(narrow.module, narrow.head, 32, 32)
    cut_channels(narrow.module, groups, [tuple(range(g.channels // 2)) for g in groups])
    thin = Thinner(narrow, batches_for(narrow, 32), image=(32, 32)).thin_out(share=0.5)
    assert len(removed_exits(thin.module)) == 4


def test_two_ways_that_make_up_for_each_other_do_not_both_go() -> None:
    """The last way from the image to the answer stays, whatever the loss says."""
    network = new_network("test_depth:parallel", CLASSES)
    network.module.eval()
    branches = branches_of(network, 8)
    assert len(branches) == 2
    thin = Thinner(network, batches_for(network, 8), image=(8, 8)).thin_out(share=0.02)
    assert len(removed_exits(thin.module)) == 1


class Parallel(nn.Module):
    """Two branches and no shortcut."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.right = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, H, W] -> logits."""
        x = self.stem(x)
        return self.head((self.left(x) + self.right(x)).mean(dim=(2, 3)))


def parallel(num_classes: int) -> nn.Module:
    """The builder."""
    return Parallel(num_classes)


def operations(network: Network, side: int) -> list[str]:
    """Of the exported graph."""
    preprocess = Preprocess(height=side, width=side, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    graph = artefact_files(network, preprocess, lambda: None)["model.onnx"]
    return [node.op_type for node in onnx.load_from_string(graph).graph.node]


def test_nothing_of_a_branch_is_left_in_the_exported_graph(resnet: Network) -> None:
    """Neither its layers nor the sum with it: two convolutions and an addition less for each."""
    before = operations(resnet, 32)
    thin = Thinner(resnet, batches_for(resnet, 32), image=(32, 32)).thin_out(share=0.33)
    after = operations(thin, 32)
    assert before.count("Conv") - after.count("Conv") == 10
    assert before.count("Add") - after.count("Add") == 5
    assert "ConstantOfShape" not in after
    assert "Shape" not in after


def test_a_damaged_description_of_empty_layers_is_refused(resnet: Network) -> None:
    """A dimension of 0 where a layer cannot be empty, or below it."""
    description = resnet.describe()
    tensors = state_tensors(resnet.module)
    for layer, sizes in (
        ("fc", {"in_features": 0, "out_features": 5}),
        ("layer1.0.conv1", {"in_channels": 0, "out_channels": -1, "groups": 1}),
        ("layer1.0.conv1", {"num_features": 0}),
    ):
        with pytest.raises(ModelError, match="cannot have the dimensions"):
            rebuild(replace(description, layers={layer: sizes}), tensors)


class Odd(Parallel):
    """What goes wrong where a branch is taken out by its layers alone."""

    def __init__(self, num_classes: int, kind: str) -> None:
        super().__init__(num_classes)
        self.kind, self.norm, self.wide = kind, nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        nn.init.constant_(self.norm.bias, 0.5)
        self.left[2].bias = self.right[2].bias = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, H, W] -> logits."""
        x = self.stem(x)
        if self.kind == "shared norm":
            x = x + self.norm(self.left(x))
            x = x + self.norm(self.right(x))
        elif self.kind == "two readers":
            y = self.left(x)
            x = x + self.norm(y) + y
        else:  # the sum spreads one value of each channel over the map that the branch gives
            x = self.wide(self.left(x) + x.mean(dim=(2, 3), keepdim=True))
        return self.head(torch.relu(x).mean(dim=(2, 3)))


def shared_norm(num_classes: int) -> nn.Module:
    """A builder."""
    return Odd(num_classes, "shared norm")


def two_readers(num_classes: int) -> nn.Module:
    """A builder."""
    return Odd(num_classes, "two readers")


def spread(num_classes: int) -> nn.Module:
    """A builder."""
    return Odd(num_classes, "spread")


@pytest.mark.parametrize("builder", ["shared_norm", "two_readers"])
def test_a_branch_whose_layers_serve_others_too_stays(builder: str) -> None:
    """Taking it out would change what the others compute."""
    network = new_network(f"test_depth:{builder}", CLASSES)
    network.module.eval()
    assert branches_of(network, 8) == ()
    assert Thinner(network, batches_for(network, 8), image=(8, 8)).thin_out(share=0.1) is network


def test_zeros_that_spread_the_other_side_of_a_sum_stay_in_the_graph(tmp_path: Path) -> None:
    """The exported graph answers like the network."""
    network = new_network("test_depth:spread", CLASSES)
    network.module.eval()
    (branch,) = branches_of(network, 8)
    remove_branch(network.module, branch)
    preprocess = Preprocess(height=8, width=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    stage(
        tmp_path, artefact_files(network, preprocess, lambda: None),
        draft_manifest(network.architecture, CLASSES, preprocess),
    )  # fmt: skip
    engine = Engine.load(tmp_path, threads=1)
    check_export(engine, network, preprocess)
    engine.close()
