"""Pruning on the structures of real networks: residual, depthwise, grouped, concatenated, squeeze-and-excite."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgetune.learn.vision import torchvision_models

sys.path.insert(0, str(Path(__file__).parent))

from conftest_site import draft_manifest

from edgetune.errors import ModelError, UnprunableError
from edgetune.learn.export import artefact_files, check_export, served_module, stage
from edgetune.learn.groups import CoupledGroup, left_whole, overlaps
from edgetune.learn.importer import load_weights
from edgetune.learn.network import (
    Network,
    count_macs,
    count_parameters,
    load_network,
    new_network,
    rebuild,
    state_tensors,
)
from edgetune.learn.prune import Cut, Limit, check_prunable, choose_channels, cut_channels, even_floors
from edgetune.serve.engine import Engine
from edgetune.types import Preprocess

CLASSES = 7
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-10}  # of the largest value; float32 was seen to differ by 3e-6
FAST = {
    "cifar:alexnet": 32, "cifar:resnet20": 32, "cifar:resnet20a": 32, "cifar:mobilenet_v2": 32, "cifar:squeezenet": 32,
    "torchvision:mobilenet_v3_small": 64,  # squeeze-and-excite, hard swish
    "torchvision:squeezenet1_1": 64,  # concatenation, a head that is a convolution
    "torchvision:regnet_y_400mf": 64,  # convolutions in groups of 8 channels, squeeze-and-excite
}  # fmt: skip
SLOW = {
    "torchvision:resnet18": 64, "torchvision:mobilenet_v2": 64,
    "torchvision:efficientnet_b0": 64,  # squeeze-and-excite on depthwise layers
    "torchvision:googlenet": 64,  # four ways side by side, concatenated
    "torchvision:densenet121": 64,  # each layer reads the concatenation of all before it
    "torchvision:resnext50_32x4d": 64,  # convolutions in 32 groups
    "torchvision:convnext_tiny": 64,  # layer norms and layer scales: what they touch is left whole
}  # fmt: skip


class TwoHeaded(nn.Module):
    """Two answers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, num_classes), nn.Linear(3, num_classes)


def two_headed(num_classes: int) -> nn.Module:
    """A builder of one's own."""
    return TwoHeaded(num_classes)


@dataclass(frozen=True, slots=True)
class Trial:
    """A network cut to half of its parameters by random scores, and what it was before."""

    network: Network  # after the cut
    masked: nn.Module  # before it, the filters that were cut silent
    groups: tuple[CoupledGroup, ...]
    cut: Cut
    parameters_max: int
    side: int

    @property
    def preprocess(self) -> Preprocess:
        """Square images."""
        return Preprocess(height=self.side, width=self.side, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


@pytest.fixture(
    scope="module",
    params=[*FAST.items(), *(pytest.param(item, marks=pytest.mark.slow) for item in SLOW.items())],
    ids=lambda item: item[0],
)
def trial(request: pytest.FixtureRequest) -> Iterator[Trial]:
    """One network after the other; torch's threads are for the machine's other users."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make_trial(*request.param)
    torch.set_num_threads(threads)


def make_trial(architecture: str, side: int) -> Trial:
    """Find the groups (with the proof that they are right), choose at random, and cut."""
    torch.manual_seed(0)
    network = new_network(architecture, CLASSES)
    groups = check_prunable(network, side, side)
    return cut_in_half(network, groups, side)


def cut_in_half(network: Network, groups: tuple[CoupledGroup, ...], side: int) -> Trial:
    """
    Lively weights, random scores, half of the parameters.

    The filters that go are silenced first, then the batch norms see the images, then they are cut: statistics that
    were taken beside them would make the signal fade from layer to layer.
    """
    enliven(network.module)
    scores = [torch.rand(group.channels, dtype=torch.float64) for group in groups]
    parameters_max = count_parameters(network.module) // 2
    cut = choose_channels(
        network.module,
        groups,
        scores,
        limit=Limit("parameters", parameters_max),
        image=(side, side),
        round_to=1,
        floors=even_floors(groups, 0.5),
        per_cost=False,
    )
    masked = network.module
    silence(masked, groups, cut)
    masked.train()
    with torch.no_grad():
        masked(pictures(side))
        for layer in masked.modules():
            if isinstance(layer, nn.BatchNorm2d):  # a filter that hardly answers would amplify rounding
                layer.running_var.clamp_(min=float(layer.running_var.mean()))
    network.module = copy.deepcopy(masked.eval())
    cut_channels(network.module, groups, cut.removed)
    return Trial(network, masked, groups, cut, parameters_max, side)


def enliven(module: nn.Module) -> None:
    """Random weights, biases and scales everywhere: what is forgotten or mixed up changes the answer."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.3, 0.9)  # larger against the biases, and fifty layers amplify rounding
            nn.init.uniform_(layer.bias, -1, 1)
            layer.momentum = 1  # the statistics are those of the last batch
        elif isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(layer.weight) if layer.weight.requires_grad else None
            nn.init.uniform_(layer.bias, -0.1, 0.1) if layer.bias is not None else None
    for name, parameter in module.named_parameters():
        if name.endswith("layer_scale"):  # ConvNeXt's start at a millionth
            nn.init.uniform_(parameter, 0.5, 1.5)


def pictures(side: int) -> torch.Tensor:
    """Always the same coarse coloured patterns [16, 3, side, side]: unlike noise, they differ after pooling too."""
    coarse = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=(side, side), mode="bilinear")


def silence(module: nn.Module, groups: tuple[CoupledGroup, ...], cut: Cut) -> None:
    """
    Make the filters that are to be cut give zero, in place.

    It silences what writes a channel; the trial of `check_prunable` silences what reads it.
    """
    layers = dict(module.named_modules())
    with torch.no_grad():
        for group, removed in zip(groups, cut.removed, strict=True):
            gone = set(removed)
            for member in group.members:
                rows = [i for i, root in zip(member.indices, member.roots, strict=True) if root in gone]
                for parameter in layers[member.layer].parameters(recurse=False) if member.is_output else ():
                    parameter[rows] = 0


def assert_close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Within a share of the largest expected value."""
    assert got.shape == expected.shape
    assert float((got - expected).detach().abs().max()) <= tolerance * float(expected.detach().abs().max())


def assert_same_answers(masked: nn.Module, cut: nn.Module, side: int) -> None:
    """In float32 and in float64, on images that the network tells apart."""
    for dtype, tolerance in ROUNDING.items():
        images = pictures(side)[:4].to(dtype)
        with torch.no_grad():
            expected = copy.deepcopy(masked).to(dtype)(images)
            got = copy.deepcopy(cut).to(dtype)(images)
        spread = float(expected.std(dim=0).max())
        assert spread > 0.01 * float(expected.abs().max()), "answers that do not vary prove nothing"
        assert_close(got, expected, tolerance)


def test_groups_do_not_overlap_and_the_plan_is_kept(trial: Trial) -> None:
    """No channel is in two groups; what is left has the planned size, within the limit, and no layer is emptied."""
    assert not overlaps(trial.groups)
    module = trial.network.module
    size = (count_parameters(module), count_macs(module, trial.side, trial.side))
    assert size == (trial.cut.size.parameters, trial.cut.size.macs)
    assert 0.98 * trial.parameters_max < size[0] <= trial.parameters_max, "blocks not needed must be given back"
    for group, removed in zip(trial.groups, trial.cut.removed, strict=True):
        assert group.channels - len(removed) >= max(2, group.channels // 4)


def test_every_layer_between_the_image_and_the_head_can_be_pruned(trial: Trial) -> None:
    """Only the head keeps its outputs; ConvNeXt's are held by layer norms and scales."""
    written = {member.layer for group in trial.groups for member in group.members if member.is_output}
    layers = {n for n, m in trial.network.module.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    if trial.network.architecture == "torchvision:convnext_tiny":
        assert len(written) == 18  # the inner layer of each block
    else:
        assert layers - written == {trial.network.head}


def test_the_cut_network_answers_as_the_masked_one(trial: Trial) -> None:
    """Silent filters and absent ones make no difference."""
    assert_same_answers(trial.masked, trial.network.module, trial.side)


def test_the_cut_network_learns_as_the_masked_one(trial: Trial) -> None:
    """Every kept weight gets the gradient that it gets beside silent filters, and a finite one in training."""
    images = pictures(trial.side)[:4]
    # in float64: a rectifier at zero that rounding tips over changes a gradient, not an answer
    masked, cut = copy.deepcopy(trial.masked).double(), copy.deepcopy(trial.network.module).double()
    for module in (masked, cut):
        module(images.double()).square().mean().backward()
    with torch.no_grad():  # the gradients in the places of the weights: then they can be cut like them
        for parameter in masked.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    cut_channels(masked, trial.groups, trial.cut.removed)
    expected = dict(masked.named_parameters())
    for name, parameter in cut.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert_close(parameter.grad, expected[name], ROUNDING[torch.float64])
    cut = copy.deepcopy(trial.network.module).train()
    cut(images).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in cut.parameters() if p.requires_grad)


def test_the_cut_network_survives_saving_and_export(trial: Trial, tmp_path: Path) -> None:
    """Through network.json and safetensors bit for bit; in ONNX as exactly as a self-test asks."""
    network, preprocess = trial.network, trial.preprocess
    files = artefact_files(network, preprocess, lambda: None)
    stage(tmp_path, files, draft_manifest(network.architecture, CLASSES, preprocess))
    again = load_network(tmp_path)
    assert again.describe() == network.describe()
    before, after = state_tensors(network.module), state_tensors(again.module)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    pixels = pictures(trial.side)[:4].permute(0, 2, 3, 1) * torch.tensor(preprocess.std) + torch.tensor(preprocess.mean)
    images = (pixels * 255).clip(0, 255).to(torch.uint8)
    with torch.no_grad():
        expected = served_module(network, preprocess)(images)
        assert torch.equal(served_module(again, preprocess)(images), expected)
    engine = Engine.load(tmp_path, threads=1)
    check_export(engine, network, preprocess)
    assert_close(torch.from_numpy(engine.predict(images.numpy())), expected, 10 * ROUNDING[torch.float32])


def test_a_network_with_a_channel_shuffle_is_refused() -> None:
    """The sentence names the cause and the way out."""
    with pytest.raises(UnprunableError, match="channel shuffles, as in ShuffleNet") as refusal:
        check_prunable(new_network("torchvision:shufflenet_v2_x0_5", CLASSES), 64, 64)
    assert "pruning.level" in refusal.value.hint


@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_weights_of_auxiliary_heads_are_passed_over() -> None:
    """Torchvision's file of GoogLeNet holds two more heads, which only its first training needs; anything else is left over."""
    trained = torchvision_models().googlenet(weights=None, num_classes=CLASSES, init_weights=False)
    names = tuple(f"class {number}" for number in range(CLASSES))
    network = new_network("torchvision:googlenet", CLASSES)
    load_weights(network, trained.state_dict(), names)
    images = pictures(64)[:1]
    with torch.no_grad():
        assert torch.equal(network.module.eval()(images), trained.eval()(images))
    with pytest.raises(ModelError, match="aux3"):
        load_weights(network, {**trained.state_dict(), "aux3.weight": torch.ones(1)}, names)


def test_a_network_with_two_heads_of_its_own_is_refused() -> None:
    """Which of them is to be served is not for us to say."""
    with pytest.raises(ModelError, match=r"exactly one layer .* one, other"):
        new_network("test_structures:two_headed", CLASSES)


def test_a_network_whose_names_have_versions_is_rebuilt() -> None:
    """Torchvision's MNASNet loads a state dictionary only together with its metadata."""
    network = new_network("torchvision:mnasnet0_5", CLASSES)
    again = rebuild(network.describe(), state_tensors(network.module))
    images = pictures(64)[:1]
    assert torch.equal(again.module.eval()(images), network.module.eval()(images))


Middle = Callable[[nn.ModuleDict, torch.Tensor], torch.Tensor]


def conv(channels: int = 16, width: int = 16, groups: int = 1) -> nn.Conv2d:
    """3x3."""
    return nn.Conv2d(channels, width, 3, 1, 1, groups=groups)


class Small(nn.Module):
    """A stem of 16 channels, a middle, and a head on pooled features."""

    def __init__(self, layers: dict[str, nn.Module], middle: Middle) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.layers = nn.ModuleDict(layers)
        self.middle = middle
        with torch.no_grad():
            width = middle(self.layers, torch.zeros(1, 16, 8, 8)).shape[1]
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, 16, 16] -> logits."""
        return self.head(self.middle(self.layers, self.stem(x)).mean(dim=(2, 3)))


def excited(m: nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
    """Channels scaled by what two linear layers make of their means."""
    x = m["a"](x)
    gate = m["grow"](F.relu(m["shrink"](x.mean(dim=(2, 3)))))
    return m["b"](x * torch.sigmoid(gate)[:, :, None, None])


def shuffled(m: nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
    """Two halves dealt like cards."""
    count, channels, height, width = x.shape
    return m["b"](m["a"](x).view(count, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape))


# name: layers, middle, and those whose outputs must be left whole
PRUNED: dict[str, tuple[dict[str, nn.Module], Middle, set[str]]] = {
    "a layer used twice": ({"a": conv(), "b": conv()}, lambda m, x: m["b"](F.relu(m["a"](F.relu(m["a"](x))))), set()),
    "one branch read by two batch norms": (
        {"a": conv(), "n": nn.BatchNorm2d(16), "o": nn.BatchNorm2d(16)},
        lambda m, x: F.relu(m["n"](m["a"](x))) + F.relu(m["o"](x)),
        set(),
    ),
    "squeeze and excite": ({"a": conv(), "b": conv(), "shrink": nn.Linear(16, 4), "grow": nn.Linear(4, 16)}, excited, set()),
    "concatenation with a sum": ({"a": conv(), "b": conv(32)}, lambda m, x: m["b"](torch.cat([x, x + m["a"](x)], 1)), set()),
    "a sum with a concatenation": ({"a": conv(), "b": conv(16, 32)}, lambda m, x: torch.cat([x, m["a"](x)], 1) + m["b"](x), set()),
    "groups of four": ({"a": conv(16, 32, groups=4), "b": conv(32)}, lambda m, x: m["b"](F.relu(m["a"](x))), set()),
    "groups that read a concatenation": (
        {"a": conv(), "b": conv(), "c": conv(32, 16, groups=2)},
        lambda m, x: m["c"](torch.cat([m["a"](x), m["b"](x)], 1)),
        {"a", "b"},
    ),
    "two filters for each channel": (
        {"a": conv(), "b": conv(16, 32, groups=16), "c": conv(32)},
        lambda m, x: m["c"](m["b"](m["a"](x))),
        {"a"},
    ),
    "a slope for each channel": ({"a": conv(), "p": nn.PReLU(16), "b": conv()}, lambda m, x: m["b"](m["p"](m["a"](x))), {"a"}),
    "a group norm": ({"a": conv(), "n": nn.GroupNorm(4, 16), "b": conv()}, lambda m, x: m["b"](m["n"](m["a"](x))), {"a"}),
    "a gate for each pixel": (
        {"a": conv(), "gate": conv(16, 1), "b": conv()},
        lambda m, x: m["b"](m["a"](x) * torch.sigmoid(m["gate"](x))),
        {"a", "gate"},
    ),
    "pixels made of channels": (
        {"a": conv(16, 64), "b": conv()},
        lambda m, x: m["b"](F.pixel_shuffle(m["a"](x), 2)),
        {"a"},
    ),
    "a transposed convolution": (
        {"a": conv(), "t": nn.ConvTranspose2d(16, 16, 2, 2), "b": conv()},
        lambda m, x: m["b"](F.relu(m["t"](m["a"](x)))),
        {"a"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", PRUNED)
def test_a_small_structure_is_pruned_where_it_can_be(form: str) -> None:
    """The other layers are cut and the answers stay; a layer that something unknown reads keeps its outputs."""
    torch.manual_seed(0)
    layers, middle, whole = PRUNED[form]
    network = Network(copy.deepcopy(Small(layers, middle)), "test:small", CLASSES, "head")
    groups = check_prunable(network, 16, 16)
    assert not overlaps(groups)
    kept = {name for name in left_whole(network.module, network.head, groups) if name != "layers.t"}
    assert kept == {f"layers.{name}" for name in whole}
    made = cut_in_half(network, groups, 16)
    assert any(made.cut.removed)
    assert_same_answers(made.masked, network.module, 16)


REFUSED: dict[str, tuple[dict[str, nn.Module], Middle]] = {
    "halves": ({"a": conv(8, 8), "b": conv()}, lambda m, x: m["b"](torch.cat([m["a"](x[:, :8]), x[:, 8:]], 1))),
    "chunks": ({"a": conv()}, lambda m, x: torch.cat([chunk * 2 for chunk in m["a"](x).chunk(2, 1)], 1)),
    "a channel shuffle": ({"a": conv(), "b": conv()}, shuffled),
    "a softmax over channels": ({"a": conv(), "b": conv()}, lambda m, x: m["b"](F.softmax(m["a"](x), 1))),
    "a norm over channels": ({"a": conv(), "b": conv()}, lambda m, x: m["b"](F.normalize(m["a"](x)))),
    "a mean over channels": ({"a": conv(), "b": conv()}, lambda m, x: m["b"](x - m["a"](x).mean(1, keepdim=True))),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_a_small_structure_that_mixes_channels_is_refused(form: str) -> None:
    """Never pruned wrongly, whatever the dependency graph makes of it."""
    torch.manual_seed(0)
    network = Network(Small(*REFUSED[form]), "test:small", CLASSES, "head")
    with pytest.raises(UnprunableError) as refusal:
        check_prunable(network, 16, 16)
    assert "pruning.level" in refusal.value.hint


class HardCoded(nn.Module):
    """Its forward pass knows how many channels there were."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.head = nn.Linear(8 * 16, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, 8, 8] -> logits."""
        return self.head(F.relu(self.conv(x)).view(-1, 128))


def hard_coded(num_classes: int) -> nn.Module:
    """The builder."""
    return HardCoded(num_classes)


def test_shapes_that_are_written_into_the_forward_pass_are_refused_with_a_sentence() -> None:
    """Before any work, and the network is what it was."""
    network = new_network("test_structures:hard_coded", CLASSES)
    before = state_tensors(network.module)
    with pytest.raises(UnprunableError, match=r"hard_coded cannot be pruned: .* sizes written into it") as caught:
        check_prunable(network, 8, 8)
    assert "x.flatten(1)" in caught.value.hint
    assert "pruning.level" in caught.value.hint
    after = state_tensors(network.module)
    assert all(torch.equal(before[name], after[name]) for name in before)
