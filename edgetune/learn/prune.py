"""From scores to a smaller network: choose the channels of all groups together, then cut them out physically."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from edgetune.errors import UnprunableError
from edgetune.learn.groups import CoupledGroup, find_groups
from edgetune.learn.network import Network, count_parameters, resize_layer

_FEWEST = 2  # channels left in any layer, as in arXiv 2006.08554's code
_TRIAL_TOLERANCE = 1e-6  # of the outputs' spread, in float64; rounding alone stays below 1e-12


@dataclass(frozen=True, slots=True)
class Cut:
    """What is removed: for each group its channels, ascending."""

    removed: tuple[tuple[int, ...], ...]
    parameters: int  # that are left


@dataclass(frozen=True, slots=True)
class _Block:
    """Channels of one group that go together, so that what is left stays a multiple."""

    score: float
    group: int
    order: int
    channels: tuple[int, ...]


def choose_channels(
    model: nn.Module,
    groups: Sequence[CoupledGroup],
    scores: Sequence[torch.Tensor],
    *,
    parameters_max: int,
    round_to: int,
    level: float,
) -> Cut:
    """
    Rank all groups' channels together and remove the lowest until few enough parameters are left.

    Channels go in blocks that leave a multiple of `round_to` (a group narrower than that is left whole); a group
    keeps at least half of the share (1 - level) of its channels. When the target is passed, blocks that turn out not
    to be needed are given back, the most important first.

    Args:
        model: that the groups belong to.
        groups: of this model.
        scores: for each group [channels]; larger = keep; infinite = never remove.
        parameters_max: what may be left of the model.
        round_to: kept channels are a multiple of this.
        level: share of parameters to remove; sets the floor of each group only.

    Returns:
        The cut; its `parameters` is above `parameters_max` when the floors were reached first.
    """
    counter = _ParameterCounter(model, groups)
    blocks = sorted(
        (b for i, g in enumerate(groups) for b in _blocks(i, g, scores[i], round_to, level)),
        key=lambda block: (block.score, block.group, block.order),
    )
    taken: list[_Block] = []
    for block in blocks:
        if counter.parameters <= parameters_max:
            break
        counter.remove(block.group, block.channels)
        taken.append(block)
    kept_back: set[_Block] = set()
    closed: set[int] = set()  # groups whose later block stays removed: an earlier one cannot come back
    for block in reversed(taken):
        if block.group in closed:
            continue
        counter.restore(block.group, block.channels)
        if counter.parameters <= parameters_max:
            kept_back.add(block)
        else:
            counter.remove(block.group, block.channels)
            closed.add(block.group)
    gone: list[list[int]] = [[] for _ in groups]
    for block in taken:
        if block not in kept_back:
            gone[block.group].extend(block.channels)
    return Cut(tuple(tuple(sorted(channels)) for channels in gone), counter.parameters)


def _blocks(index: int, group: CoupledGroup, scores: torch.Tensor, round_to: int, level: float) -> list[_Block]:
    """A group's channels in the order in which they may go, cut where a legal width is left."""
    if not torch.isfinite(scores).all():
        return []
    step = math.lcm(max(1, round_to), group.block_count)
    per_block = group.channels // group.block_count
    # rows of the matrix: the n-th least important channel of every block, so that each block loses as many
    order = torch.argsort(scores.reshape(group.block_count, per_block), dim=1, stable=True)
    order = (order + torch.arange(group.block_count)[:, None] * per_block).t().reshape(-1)
    floor = max(step, _FEWEST * group.block_count, math.ceil(group.channels * (1 - level) / 2))
    widths = [w for w in range(group.channels // step * step, 0, -step) if floor <= w < group.channels]
    blocks: list[_Block] = []
    start = 0
    for number, kept in enumerate(widths):
        end = group.channels - kept
        picked = order[start:end]
        mean = float(scores[picked].mean())
        score = max(mean, blocks[-1].score) if blocks else mean  # blocks of one group go in order
        blocks.append(_Block(score, index, number, tuple(int(c) for c in picked)))
        start = end
    return blocks


class _ParameterCounter:
    """How many parameters are left, kept up to date as channels go and come back."""

    def __init__(self, model: nn.Module, groups: Sequence[CoupledGroup]) -> None:
        self._modules = dict(model.named_modules())
        self._groups = groups
        self._sizes = {
            m.layer: [self._rows(m.layer), self._columns(m.layer)] for group in groups for m in group.members
        }
        self.parameters = count_parameters(model)

    def _rows(self, layer: str) -> int:
        module = self._modules[layer]
        return int(cast(torch.Tensor, module.weight).shape[0]) if module.weight is not None else 0

    def _columns(self, layer: str) -> int:
        module = self._modules[layer]
        return int(module.weight.shape[1]) if isinstance(module, (nn.Conv2d, nn.Linear)) else 1

    def remove(self, group: int, channels: Sequence[int]) -> None:
        """Take channels of a group out."""
        self._change(group, channels, -1)

    def restore(self, group: int, channels: Sequence[int]) -> None:
        """Put them back."""
        self._change(group, channels, 1)

    def _change(self, group: int, channels: Sequence[int], sign: int) -> None:
        gone = set(channels)
        layers = {m.layer for m in self._groups[group].members}
        self.parameters -= sum(self._count(layer) for layer in layers)
        for member in self._groups[group].members:
            count = sum(root in gone for root in member.roots)
            module = self._modules[member.layer]
            if not member.is_output and isinstance(module, nn.Conv2d):
                count //= module.groups
            self._sizes[member.layer][0 if member.is_output else 1] += sign * count
        self.parameters += sum(self._count(layer) for layer in layers)

    def _count(self, layer: str) -> int:
        module = self._modules[layer]
        rows, columns = self._sizes[layer]
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            return 2 * rows if module.affine else 0
        kernel = math.prod(module.weight.shape[2:])
        count: int = rows * columns * kernel + (rows if module.bias is not None else 0)
        return count


def cut_channels(model: nn.Module, groups: Sequence[CoupledGroup], removed: Sequence[Sequence[int]]) -> None:
    """
    Remove the channels physically, in place. Gradients are dropped; frozen layers stay frozen.

    Args:
        model: that the groups belong to.
        groups: of this model.
        removed: for each group, the channels to remove.
    """
    rows, columns = _gone_indices(groups, removed)
    modules = dict(model.named_modules())
    for layer in sorted(rows.keys() | columns.keys()):
        _cut_layer(modules[layer], rows.get(layer, set()), columns.get(layer, set()))


def _gone_indices(
    groups: Sequence[CoupledGroup], removed: Sequence[Sequence[int]]
) -> tuple[dict[str, set[int]], dict[str, set[int]]]:
    rows: dict[str, set[int]] = {}
    columns: dict[str, set[int]] = {}
    for group, channels in zip(groups, removed, strict=True):
        gone = set(channels)
        for member in group.members if gone else ():
            side = rows if member.is_output else columns
            side.setdefault(member.layer, set()).update(
                index for index, root in zip(member.indices, member.roots, strict=True) if root in gone
            )
    return rows, columns


def _keep(size: int, gone: set[int]) -> torch.Tensor:
    return torch.tensor([index for index in range(size) if index not in gone], dtype=torch.long)


def _cut_layer(module: nn.Module, rows: set[int], columns: set[int]) -> None:
    if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
        keep = _keep(module.num_features, rows)
        names = [n for n in ("weight", "bias", "running_mean", "running_var") if getattr(module, n) is not None]
        _replace(module, {n: getattr(module, n)[keep] for n in names}, {"num_features": len(keep)})
        return
    if isinstance(module, nn.Linear):
        keep, inputs = _keep(module.out_features, rows), _keep(module.in_features, columns)
        sizes = {"in_features": len(inputs), "out_features": len(keep)}
        tensors = {"weight": module.weight[keep][:, inputs]}
    elif isinstance(module, nn.Conv2d):
        keep = _keep(module.out_channels, rows)
        sizes, tensors = _cut_convolution(module, keep, columns)
    else:
        raise UnprunableError(f"a {type(module).__name__} cannot be cut")
    if module.bias is not None:
        tensors["bias"] = module.bias[keep]
    _replace(module, tensors, sizes)


def _cut_convolution(
    module: nn.Conv2d, keep: torch.Tensor, columns: set[int]
) -> tuple[dict[str, int], dict[str, torch.Tensor]]:
    if module.groups > 1 and module.groups == module.in_channels == module.out_channels:
        size = len(keep)
        return {"in_channels": size, "out_channels": size, "groups": size}, {"weight": module.weight[keep]}
    inputs = _keep(module.in_channels, columns)
    per_group = module.in_channels // module.groups
    sizes = {"in_channels": len(inputs), "out_channels": len(keep), "groups": module.groups}
    # each group of filters reads its own block of inputs: pick its columns from what is left of that block
    parts = []
    filters = module.out_channels // module.groups
    for block in range(module.groups):
        own_rows = keep[(keep >= block * filters) & (keep < (block + 1) * filters)]
        own = inputs[(inputs >= block * per_group) & (inputs < (block + 1) * per_group)] - block * per_group
        parts.append(module.weight[own_rows][:, own])
    return sizes, {"weight": torch.cat(parts)}


def _replace(module: nn.Module, tensors: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> None:
    kept = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    resize_layer(module, sizes)
    with torch.no_grad():
        for name, tensor in kept.items():
            getattr(module, name).copy_(tensor)


def check_prunable(
    network: Network, height: int, width: int, beat: Callable[[], None] = lambda: None
) -> tuple[CoupledGroup, ...]:
    """
    Prune a copy of the network and compare: the proof, before any work, that its groups are right.

    In one copy the input weights of some channels are zero, from the other the channels are cut: their outputs must
    be equal. ShuffleNet fails here, because a channel shuffle mixes channels in a way the graph does not follow.

    Returns:
        The groups of the network.

    Raises:
        UnprunableError: with the reason.
    """
    masked = copy.deepcopy(network.module).to("cpu", torch.float64).eval()
    groups = find_groups(masked, network.head, height, width, beat)
    removed = [tuple(_every_second_low(group)) for group in groups]
    cut = copy.deepcopy(masked)
    _mask_inputs(masked, groups, removed)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)
    hint = "set training.level to 0% to fine-tune without pruning, or use another architecture"
    try:
        cut_channels(cut, groups, removed)
        beat()
        with torch.no_grad():
            expected, got = masked(images), cut(images)
    except (RuntimeError, ValueError, IndexError) as error:
        raise UnprunableError(f"{network.architecture} cannot be pruned: {error}", hint=hint) from error
    spread = float((expected - expected.mean()).abs().max()) + 1e-30
    if got.shape != expected.shape or float((got - expected).abs().max()) > _TRIAL_TOLERANCE * spread:
        raise UnprunableError(
            f"{network.architecture} cannot be pruned: cutting channels changes what the others compute "
            "(a channel shuffle or a reshape mixes them)",
            hint=hint,
        )
    return groups


def _every_second_low(group: CoupledGroup) -> list[int]:
    """An irregular choice that takes as many channels from every block: 0, 2, ... of its lower half."""
    per_block = group.channels // group.block_count
    count = max(1, per_block // 2)
    return [b * per_block + i for b in range(group.block_count) for i in range(0, count, 2)]


def _mask_inputs(model: nn.Module, groups: Sequence[CoupledGroup], removed: Sequence[Sequence[int]]) -> None:
    modules = dict(model.named_modules())
    _, columns = _gone_indices(groups, removed)
    with torch.no_grad():
        for layer, gone in columns.items():
            module = modules[layer]
            weight = module.weight
            if not isinstance(module, nn.Conv2d) or module.groups == 1:
                weight[:, sorted(gone)] = 0
                continue
            per_group, filters = module.in_channels // module.groups, module.out_channels // module.groups
            for index in gone:
                block, column = divmod(index, per_group)
                weight[block * filters : (block + 1) * filters, column] = 0
