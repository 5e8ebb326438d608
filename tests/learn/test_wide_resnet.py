"""Wide residual networks and their thin students: the printed sizes, the blocks by hand, and the life of a pruned network."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))

from conftest_site import draft_manifest

from edgetune.errors import ModelError
from edgetune.learn.cifar import RESNET_WIDTHS, CifarResNet, convolved, count_learnt, zero_padding
from edgetune.learn.export import artefact_files, check_export, stage
from edgetune.learn.network import NetworkDescription, build, count_parameters, load_network, rebuild, state_tensors
from edgetune.learn.prune import check_prunable, cut_channels
from edgetune.learn.sparsity import FAMILIES, thin_student
from edgetune.learn.wide_resnet import PreActivationBlock, WideResNet, Widths
from edgetune.serve.engine import Engine
from edgetune.types import Preprocess

TEACHER = 36_220_634
# channels that are left of WRN-10-10 at each threshold of zeros, and what they come to (arXiv 2201.10947's first code)
TABLE = {
    "none": (Widths(stem=16, groups=((160, 160), (320, 320), (640, 640))), 7_176_794, 80.19),
    "100%": (Widths(stem=14, groups=((120, 138), (286, 272), (94, 640))), 2_000_968, 94.48),
    "90%": (Widths(stem=12, groups=((96, 132), (226, 266), (60, 622))), 1_422_850, 96.07),
    "80%": (Widths(stem=12, groups=((68, 110), (104, 246), (24, 582))), 595_174, 98.36),
    "70%": (Widths(stem=12, groups=((54, 78), (48, 210), (8, 498))), 226_262, 99.375),
    "50%": (Widths(stem=10, groups=((42, 30), (16, 104), (2, 300))), 45_976, 99.87),
}
SMALL = Widths(stem=4, groups=((6, 8), (5, 12), (10, 16)))
SIZE = Preprocess(height=32, width=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def lively(module: nn.Module) -> nn.Module:
    """Batch norms that would be missed if they were left out or mixed up; in eval mode."""
    torch.manual_seed(3)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 2.0)
    return module.eval()


def on_meta(architecture: str) -> nn.Module:
    """Only the shapes."""
    with torch.device("meta"):
        return build(architecture, 10)


def test_the_teacher_has_the_printed_size() -> None:
    """With parameter-free shortcuts and with projections; a frozen shortcut is in the state and is not learnt."""
    assert count_learnt(on_meta("cifar:wrn28_10")) == TEACHER
    assert count_learnt(on_meta("cifar:wrn28_10p")) == count_parameters(on_meta("cifar:wrn28_10p")) == 36_479_194
    shortcuts = 16 * 160 + 160 * 320 + 320 * 640
    assert count_parameters(on_meta("cifar:wrn28_10")) == TEACHER + shortcuts


@pytest.mark.parametrize("row", TABLE)
def test_a_student_has_the_printed_size(row: str) -> None:
    """Every row of the table to the last parameter."""
    widths, parameters, removed = TABLE[row]
    with torch.device("meta"):
        learnt = count_learnt(thin_student("cifar:wrn28_10", 10, widths).module)
    assert learnt == parameters
    assert abs(100 * (1 - learnt / TEACHER) - removed) < 0.006


def test_projections_make_the_students_larger() -> None:
    """The row of the headline has 348,158 with them: 99.05 % removed instead of 99.375 %."""
    with torch.device("meta"):
        assert count_learnt(thin_student("cifar:wrn28_10p", 10, TABLE["70%"][0]).module) == 348_158
    assert count_learnt(on_meta("cifar:wrn10_10")) == TABLE["none"][1]


def by_hand(module: WideResNet, x: torch.Tensor) -> torch.Tensor:
    """The network from torch's functions and slices alone, in eval mode: no block, no frozen convolution."""

    def activated(x: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
        y = functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return functional.relu(y)

    x = functional.conv2d(x, module.conv1.weight, padding=1)
    for group in (1, 2, 3):
        for index, block in enumerate(module.get_submodule(f"layer{group}")):
            assert isinstance(block, PreActivationBlock)
            step = 2 if group > 1 and index == 0 else 1
            y = functional.conv2d(activated(x, block.bn1), block.conv1.weight, padding=1, stride=step)
            y = functional.conv2d(activated(y, block.bn2), block.conv2.weight, padding=1)
            more = y.shape[1] - x.shape[1]
            x = y + functional.pad(x[:, :, ::step, ::step], (0, 0, 0, 0, more // 2, more - more // 2))
    return functional.linear(activated(x, module.bn1).mean(dim=(2, 3)), module.fc.weight, module.fc.bias)


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_network_answers_as_its_formula(blocks: int) -> None:
    """Batch norm and ReLU before each convolution, every second pixel and zeros on both sides in the shortcuts."""
    torch.manual_seed(0)
    module = lively(WideResNet(blocks, SMALL, 7, zero_padding))
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(module(images), by_hand(module, images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["cifar:wrn28_10", "cifar:wrn28_10p", "cifar:resnet56a", "cifar:resnet20"])
def test_a_student_is_described_rebuilt_and_served_like_a_pruned_network(architecture: str, tmp_path: Path) -> None:
    """Through network.json and weights.safetensors, and in ONNX Runtime, it answers as in memory."""
    torch.manual_seed(0)
    student = thin_student(
        architecture, 7, SMALL if FAMILIES[architecture].is_stem_free else Widths(stem=8, groups=SMALL.groups)
    )
    lively(student.module)
    described = NetworkDescription.from_json(student.describe().to_json())
    assert described.architecture == FAMILIES[architecture].shallow
    again = rebuild(described, state_tensors(student.module))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.module.eval()(images), student.module(images))
    assert count_learnt(again.module) == count_learnt(student.module)
    files = artefact_files(student, SIZE, lambda: None)
    stage(tmp_path, files, draft_manifest(student.architecture, 7, SIZE))
    check_export(Engine.load(tmp_path, threads=1), student, SIZE)
    assert load_network(tmp_path).describe() == described


@pytest.mark.parametrize("shortcut", [zero_padding, convolved])
@pytest.mark.parametrize("blocks", [1, 2])
def test_pruning_follows_the_channels(shortcut: object, blocks: int) -> None:
    """Through the shortcuts and the batch norms in front: cutting channels that nobody reads changes no answer."""
    architecture = "cifar:wrn10_10" if shortcut is zero_padding else "cifar:wrn10_10p"
    network = thin_student(architecture, 7, SMALL)
    torch.manual_seed(0)
    network.module = lively(WideResNet(blocks, SMALL, 7, shortcut))  # type: ignore[arg-type]
    groups = check_prunable(network, 32, 32)
    assert {group.channels for group in groups} == {4, 6, 8, 5, 12, 10, 16}, "the stem and the end of each group too"
    other = copy.deepcopy(network)
    cut_channels(other.module, groups, [(0,)] * len(groups))
    with torch.no_grad():
        assert other.module(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    frozen = [name for name, p in other.module.named_parameters() if not p.requires_grad]
    assert frozen == ([f"layer{g}.0.shortcut.weight" for g in (1, 2, 3)] if shortcut is zero_padding else [])


def test_a_zero_padded_shortcut_has_nowhere_to_put_channels_that_are_too_many() -> None:
    """A group that ends narrower than the one before it is refused with the two widths."""
    with pytest.raises(ModelError, match="cannot lead 12 channels into 8"):
        thin_student("cifar:wrn28_10", 10, Widths(stem=4, groups=((4, 12), (4, 8), (4, 16))))
    assert thin_student("cifar:wrn28_10p", 10, Widths(stem=4, groups=((4, 12), (4, 8), (4, 16)))).num_classes == 10


def test_impossible_students_are_refused() -> None:
    """A ResNet's first stage adds to the stem; no layer is empty; a network without a family has no student."""
    with pytest.raises(ModelError, match="as wide as the stem"):
        thin_student("cifar:resnet56a", 10, SMALL)
    with pytest.raises(ValueError, match="needs a channel"):
        Widths(stem=4, groups=((0, 4), (4, 4), (4, 4)))
    with pytest.raises(ModelError, match="no student is known for torchvision:resnet18"):
        thin_student("torchvision:resnet18", 10, SMALL)


def test_resnets_are_what_they_were() -> None:
    """Widths that are not said are those of the paper, and weights are drawn in the same order."""
    torch.manual_seed(0)
    plain = build("cifar:resnet8a", 10)
    torch.manual_seed(0)
    said = CifarResNet(1, 10, zero_padding, "shortcut", "linear", widths=RESNET_WIDTHS)
    pairs = zip(plain.state_dict().items(), said.state_dict().items(), strict=True)
    assert all(name == other and torch.equal(one, two) for (name, one), (other, two) in pairs)
    assert count_learnt(on_meta("cifar:resnet20a")) == 269_722, "with ten classes, as the public checkpoint"
