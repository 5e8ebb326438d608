"""Silent channels counted by hand, and the widths that follow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from edgetune.errors import ModelError, UnprunableError, UsageError
from edgetune.learn.cifar import CifarResNet, count_learnt, zero_padding
from edgetune.learn.network import Network, new_network
from edgetune.learn.sparsity import Silence, measure_silence, thin_student, thin_widths, widths_within
from edgetune.learn.wide_resnet import WideResNet, Widths

Array = npt.NDArray[np.float64]


class Pointwise(nn.Module):
    """1x1 convolutions that numpy can do; one ReLU used twice, another in a head without maps; dropout in training."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 5, 1)
        self.two = nn.Conv2d(5, 4, 1)
        self.drop = nn.Dropout(0.9)
        self.relu = nn.ReLU(inplace=True)
        self.hidden = nn.Linear(4, 6)
        self.last = nn.ReLU6()
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images -> logits."""
        x = self.relu(self.two(self.relu(self.drop(self.one(x)))))
        return self.head(self.last(self.hidden(x.mean(dim=(2, 3)))))


def counted(maps: Array, percent: int) -> float:
    """Of [N, C, H, W]: silent channels of an image, on average; one map after the other."""
    silent = 0
    for image in maps:
        for channel in image:
            silent += np.count_nonzero(channel == 0) / channel.size >= percent / 100 - 1e-12
    return silent / len(maps)


def pointwise(layer: nn.Conv2d, maps: Array) -> Array:
    """ReLU of a 1x1 convolution."""
    weight = layer.weight.detach().double().numpy()[:, :, 0, 0]
    bias = layer.bias.detach().double().numpy()[:, None, None]
    return np.maximum(np.einsum("oc,nchw->nohw", weight, maps) + bias, 0)


def test_silent_channels_are_those_that_numpy_counts() -> None:
    """In the order of the calls, over batches of unlike sizes, at several thresholds."""
    torch.manual_seed(1)
    module = Pointwise().train()
    images = torch.randn(7, 3, 5, 4)
    percents = (100, 75, 50, 25, 5)
    got = measure_silence(module, [images[:4], images[4:6], images[6:]], percents)
    one = pointwise(module.one, images.double().numpy())
    two = pointwise(module.two, one)
    hidden = two.mean(axis=(2, 3)) @ module.hidden.weight.detach().double().numpy().T
    hidden = np.maximum(hidden + module.hidden.bias.detach().double().numpy(), 0)[:, :, None, None]
    assert [silence.channels for silence in got] == [5, 4, 6]
    for silence, maps in zip(got, (one, two, hidden), strict=True):
        assert silence.silent == pytest.approx([counted(maps, percent) for percent in percents])
    assert len(set(got[0].silent + got[1].silent)) > 5, "the example tells the thresholds apart"
    assert module.training
    assert all(not layer._forward_hooks for layer in module.modules())


@pytest.mark.parametrize(("zeros", "is_silent"), [(54, False), (55, True), (56, True)])
def test_a_threshold_is_met_exactly(zeros: int, is_silent: bool) -> None:
    """55 zeros of 100 are 55 %, though 0.55 * 100 is a little more than 55 in floating point."""
    assert 0.55 * 100 > 55
    maps = torch.ones(1, 1, 10, 10)
    maps.view(-1)[:zeros] = -1
    assert measure_silence(nn.ReLU(), [maps], [55]) == [Silence(channels=1, silent=(float(is_silent),))]


def test_without_an_image_or_with_a_threshold_of_nothing_there_is_no_count() -> None:
    """Both are said."""
    with pytest.raises(UsageError, match="no image"):
        measure_silence(Pointwise(), [], [50])
    with pytest.raises(UsageError, match="1 to 100 per cent"):
        measure_silence(Pointwise(), [torch.zeros(1, 3, 2, 2)], [0])


def silenced(norm: nn.BatchNorm2d, dead: int) -> None:
    """Let the first channels be zero after the ReLU, and the others never."""
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.fill_(1.0)
        norm.bias[:dead] = -1.0


def wide(blocks: int) -> Network:
    """A small teacher of the WRN family."""
    torch.manual_seed(0)
    module = WideResNet(blocks, Widths(stem=8, groups=((20, 16), (24, 24), (40, 32))), 10, zero_padding)
    return Network(module, "cifar:wrn28_10", 10, "fc")


def norms_of(module: WideResNet, group: int, index: int) -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
    """A block's."""
    block = module.get_submodule(f"layer{group}.{index}")
    return block.bn1, block.bn2


def test_widths_are_what_is_left_where_it_belongs() -> None:
    """Stem by the first ReLU, a group's end by the one after it, inside it the mean over its blocks."""
    network = wide(2)
    module = network.module
    assert isinstance(module, WideResNet)
    dead = {(1, 0): (3, 7), (1, 1): (16, 2), (2, 0): (6, 10), (2, 1): (24, 11), (3, 0): (4, 37), (3, 1): (32, 40)}
    for (group, index), (before, inside) in dead.items():
        bn1, bn2 = norms_of(module, group, index)
        silenced(bn1, before)
        silenced(bn2, inside)
    silenced(module.bn1, 1)
    images = torch.randn(5, 3, 32, 32)
    # 8-3; (20-7 + 20-2)/2, 16-6; (24-10 + 24-11)/2, 24-4; (40-37 + 40-40)/2, 32-1
    expected = Widths(stem=5, groups=((16, 10), (14, 20), (2, 31)))
    for percent in (1, 50, 100):  # all of a map or none of it
        assert thin_widths(network, [images], zeros_percent=percent, round_to=1) == expected
    even = Widths(stem=6, groups=((16, 10), (14, 20), (2, 32)))
    assert thin_widths(network, [images], zeros_percent=70) == even
    eights = Widths(stem=8, groups=((16, 16), (16, 24), (8, 32)))
    assert thin_widths(network, [images[:2], images[2:]], zeros_percent=70, round_to=8) == eights


def test_a_resnet_is_as_wide_at_its_first_stages_end_as_at_its_stem() -> None:
    """There the input itself is the shortcut: the wider of the two counts; the widths can be built."""
    torch.manual_seed(0)
    network = Network(CifarResNet(2, 10, zero_padding, "shortcut", "linear"), "cifar:resnet56a", 10, "linear")
    silenced(network.module.bn1, 12)
    for name, layer in network.module.named_modules():
        if name.endswith("bn1") and name != "bn1":
            silenced(layer, 6)
    # with the branches silent, the stages hand the stem's four live channels on
    for name, layer in network.module.named_modules():
        if name.endswith("bn2"):
            silenced(layer, layer.num_features)
            layer.bias.data.zero_()
    widths = thin_widths(network, [torch.randn(2, 3, 16, 16)], zeros_percent=100)
    assert widths == Widths(stem=4, groups=((10, 4), (26, 4), (58, 4)))
    network.module.get_submodule("layer1.1.bn2").bias.data[:6] = 1.0
    widths = thin_widths(network, [torch.randn(2, 3, 16, 16)], zeros_percent=100)
    assert widths == Widths(stem=10, groups=((10, 10), (26, 10), (58, 10)))
    student = thin_student(network.architecture, 10, widths)
    assert student.module(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_no_group_ends_narrower_than_the_one_before() -> None:
    """What a zero-padded shortcut leads on needs a place; a layer without a live channel keeps the least."""
    network = wide(1)
    module = network.module
    assert isinstance(module, WideResNet)
    for group, dead in ((1, 0), (2, 4), (3, 22)):
        bn1, bn2 = norms_of(module, group, 0)
        silenced(bn1, dead)
        silenced(bn2, bn2.num_features)
    silenced(module.bn1, 32)
    widths = thin_widths(network, [torch.randn(2, 3, 32, 32)], zeros_percent=90)
    assert widths == Widths(stem=8, groups=((2, 12), (2, 12), (2, 12)))
    assert count_learnt(thin_student("cifar:wrn28_10", 10, widths).module) > 0


def test_the_mildest_threshold_within_a_size_is_found() -> None:
    """One percent more and the student would be too large; each threshold is the one that `thin_widths` takes."""
    network = wide(1)
    images = [torch.randn(2, 3, 16, 16)]

    def size(percent: int) -> int:
        return count_learnt(
            thin_student("cifar:wrn28_10", 10, thin_widths(network, images, zeros_percent=percent)).module
        )

    sizes = {percent: size(percent) for percent in (90, 52, 30)}
    assert sizes[90] > sizes[52] > sizes[30]
    percent, widths = widths_within(network, images, parameters_max=sizes[52])
    assert widths == thin_widths(network, images, zeros_percent=percent)
    assert 52 <= percent < 90
    assert size(percent) <= sizes[52] < size(percent + 1)
    assert widths_within(network, images, parameters_max=10**9)[0] == 100
    with pytest.raises(UnprunableError, match="and 10 are allowed"):
        widths_within(network, images, parameters_max=10)


def strange(make: Callable[[int], nn.Module], architecture: str) -> Network:
    """A network under another's name."""
    return Network(make(10), architecture, 10, "fc")


def test_a_network_without_a_family_or_with_other_relus_has_no_widths() -> None:
    """Both are said by name."""
    images = [torch.zeros(1, 3, 32, 32)]
    with pytest.raises(ModelError, match="no student is known for cifar:alexnet"):
        thin_widths(new_network("cifar:alexnet", 10), images, zeros_percent=50)
    with pytest.raises(ModelError, match="no student is known"):
        widths_within(new_network("cifar:alexnet", 10), images, parameters_max=10)
    with pytest.raises(ModelError, match="has 3 ReLUs"):
        thin_widths(strange(lambda _: Pointwise(), "cifar:wrn28_10"), images, zeros_percent=50)
