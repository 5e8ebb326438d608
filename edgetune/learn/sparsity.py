"""
A student from its teacher: one block a group, and as wide as the teacher's activations are not zero.

Source: Zhao, Chen, Zhao 2022 (arXiv 2201.10947): for each ReLU the channels are counted whose map is at least so many per
cent zeros on an image, and as many are removed, on average. It does not say which channels: the student is built anew with
fewer of them and learns by transfer (`edgetune.learn.transfer`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from edgetune.errors import ModelError, UnprunableError, UsageError
from edgetune.learn.cifar import CifarResNet, convolved, count_learnt, projection, zero_padding
from edgetune.learn.network import Network, find_head
from edgetune.learn.wide_resnet import WideResNet, Widths

_GROUPS = 3
PERCENTS = tuple(range(100, 0, -1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Networks of three groups that differ in depth and widths alone."""

    shallow: str  # its architecture of one block a group; network.json says how a student's widths differ from it
    build: Callable[[int, Widths], nn.Module]  # that, of any widths: classes, widths -> module
    is_stem_free: bool  # whether the stem may be of another width than the end of the first group


_WIDE = Family(
    shallow="cifar:wrn10_10", build=lambda classes, w: WideResNet(1, w, classes, zero_padding), is_stem_free=True
)
_WIDE_PROJECTED = Family(
    shallow="cifar:wrn10_10p", build=lambda classes, w: WideResNet(1, w, classes, convolved), is_stem_free=True
)
_PADDED = Family(
    shallow="cifar:resnet8a",
    build=lambda classes, w: CifarResNet(1, classes, zero_padding, "shortcut", "linear", widths=w),
    is_stem_free=False,
)
_PROJECTED = Family(
    shallow="cifar:resnet8",
    build=lambda classes, w: CifarResNet(1, classes, projection, "downsample", "fc", widths=w),
    is_stem_free=False,
)
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("cifar:wrn28_10", "cifar:wrn10_10"), _WIDE),
    **dict.fromkeys(("cifar:wrn28_10p", "cifar:wrn10_10p"), _WIDE_PROJECTED),
    **dict.fromkeys(("cifar:resnet56a", "cifar:resnet20a", "cifar:resnet8a"), _PADDED),
    **dict.fromkeys(("cifar:resnet56", "cifar:resnet20", "cifar:resnet8"), _PROJECTED),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """Of one ReLU: how many channels are silent on an image, on average over the images."""

    channels: int
    silent: tuple[float, ...]  # at each of the thresholds that were asked for, 0..channels


def find_family(architecture: str) -> Family:
    """
    The family of a teacher.

    Raises:
        ModelError: it has none.
    """
    if architecture not in FAMILIES:
        raise ModelError(
            f"no student is known for {architecture}",
            hint=f"name the student's architecture; one is made for {', '.join(sorted(FAMILIES))}",
        )
    return FAMILIES[architecture]


def thin_student(architecture: str, num_classes: int, widths: Widths) -> Network:
    """
    A network of one block a group, with random weights; it is described, saved and exported like a pruned one.

    Args:
        architecture: of the teacher, or of the family's shallow network.
        num_classes: outputs.
        widths: of its layers.

    Raises:
        ModelError: the architecture has no family, or its layers cannot have these widths.
    """
    family = find_family(architecture)
    try:
        module = family.build(num_classes, widths)
    except ValueError as error:
        raise ModelError(f"a student of {architecture} cannot be built: {error}") from error
    return Network(module, family.shallow, num_classes, find_head(family.shallow, num_classes))


def measure_silence(
    module: nn.Module, batches: Iterable[torch.Tensor], percents: Sequence[int] = PERCENTS
) -> list[Silence]:
    """
    Count the silent channels of every ReLU, in the order in which the forward pass comes to them.

    A channel is silent on an image when at least so many per cent of its map are exactly zero. A ReLU that is used twice
    counts as two.

    Args:
        module: left in the mode that it was in; looked at in eval mode.
        batches: images [B, 3, H, W], normalised, on the module's device.
        percents: the thresholds, 1..100.

    Raises:
        UsageError: there is no image, or a threshold is none.

    Cost: one forward pass a batch.
    """
    if not all(1 <= percent <= 100 for percent in percents):
        raise UsageError("a threshold of zeros is 1 to 100 per cent")
    passed: list[tuple[int, torch.Tensor]] = []  # of each ReLU in turn: channels, and the sums [P] over this batch

    def count(_layer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        maps = output.detach().flatten(2) if output.dim() > 2 else output.detach()[:, :, None]
        zeros = (maps == 0).sum(dim=2)  # [B, C], whole numbers, so that no threshold is missed by rounding
        thresholds = torch.tensor(percents, device=maps.device) * maps.shape[2]
        passed.append((maps.shape[1], (100 * zeros[:, :, None] >= thresholds).sum(dim=(0, 1)).cpu()))

    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, (nn.ReLU, nn.ReLU6))]
    was_training = module.training
    images, channels, totals = 0, list[int](), list[torch.Tensor]()
    try:
        module.eval()
        for batch in batches:
            passed.clear()
            with torch.no_grad():
                module(batch)
            images += len(batch)
            channels = [width for width, _ in passed]
            totals = [sums + (totals[i] if totals else 0) for i, (_, sums) in enumerate(passed)]
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    if images == 0:
        raise UsageError("there is no image to look at")
    means = [tuple(float(number) / images for number in total) for total in totals]
    return [Silence(channels=width, silent=mean) for width, mean in zip(channels, means, strict=True)]


def thin_widths(network: Network, batches: Iterable[torch.Tensor], *, zeros_percent: int, round_to: int = 2) -> Widths:
    """
    The widths of a student, by what a network leaves at zero.

    The stem's is by the first ReLU, that of a group's end by the ReLU after its last block, and that inside a block by the
    ReLU between its convolutions, on average over the group's blocks. Widths are rounded up to a multiple, and no group
    ends narrower than the one before it, whose channels its shortcut leads on.

    Args:
        network: the teacher, of a family of FAMILIES; pruned or not.
        batches: images [B, 3, H, W], normalised, on the network's device.
        zeros_percent: 1..100, from which share of zeros on a channel is silent.
        round_to: channel multiple; the paper's table has even numbers.

    Raises:
        ModelError: the network is of no family.
        UsageError: there is no image.
    """
    return _widths(network, measure_silence(network.module, batches, [zeros_percent]), 0, round_to)


def widths_within(
    network: Network, batches: Iterable[torch.Tensor], *, parameters_max: int, round_to: int = 2
) -> tuple[int, Widths]:
    """
    The mildest threshold whose student has no more learnt parameters than this, and its widths.

    Args:
        network, batches, round_to: as for `thin_widths`.
        parameters_max: of the student.

    Raises:
        ModelError, UsageError: as for `thin_widths`.
        UnprunableError: at 1 % zeros the student is still larger.
    """
    family = find_family(network.architecture)
    silences = measure_silence(network.module, batches)
    fewest = 0
    for index, percent in enumerate(PERCENTS):
        widths = _widths(network, silences, index, round_to)
        with torch.device("meta"):
            fewest = count_learnt(family.build(network.num_classes, widths))
        if fewest <= parameters_max:
            return percent, widths
    raise UnprunableError(
        f"the smallest student that the activations of {network.architecture} suggest has {fewest:,} parameters, and "
        f"{parameters_max:,} are allowed",
        hint="allow more, or give the student's widths",
    )


def _widths(network: Network, silences: Sequence[Silence], index: int, round_to: int) -> Widths:
    """Those at the index-th threshold."""
    is_stem_free = find_family(network.architecture).is_stem_free
    blocks, rest = divmod(len(silences) - 1, 2 * _GROUPS)
    if rest or not blocks:
        raise ModelError(f"{network.architecture} has {len(silences)} ReLUs, not one and two for each of its blocks")
    left = [silence.channels - silence.silent[index] for silence in silences]  # stem, then inner and end of each block

    def width(kept: float, most: int) -> int:
        return min(most, max(1, -(-round(kept) // round_to)) * round_to)

    stem = width(left[0], silences[0].channels)
    groups: list[tuple[int, int]] = []
    outer = stem
    for group in range(_GROUPS):
        first, end = 2 * blocks * group + 1, 2 * blocks * (group + 1)
        inner = width(sum(left[first:end:2]) / blocks, max(s.channels for s in silences[first:end:2]))
        outer = max(outer, width(left[end], silences[end].channels))  # not narrower than the one before
        groups.append((inner, outer))
    return Widths(stem=stem if is_stem_free else groups[0][1], groups=tuple(groups))
