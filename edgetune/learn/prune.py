"""From scores to a smaller network: choose the channels of all groups together, then cut them out physically."""

from __future__ import annotations

import copy
import heapq
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from edgetune.errors import ModelError, UnprunableError
from edgetune.learn.cost import CostCounter, Size
from edgetune.learn.groups import CoupledGroup, find_groups
from edgetune.learn.network import Network, resize_layer

_FEWEST = 2  # channels left in any layer, as in arXiv 2006.08554's code
_TRIAL_TOLERANCE = 1e-6  # of the outputs' spread, in float64; rounding alone stays below 1e-12


@dataclass(frozen=True, slots=True)
class Limit:
    """What may be left of a network."""

    unit: str  # "parameters" or "macs"
    most: int


@dataclass(frozen=True, slots=True)
class Cut:
    """What is removed: for each group its channels, ascending."""

    removed: tuple[tuple[int, ...], ...]
    size: Size  # of what is left


@dataclass(frozen=True, slots=True)
class _Block:
    """Channels of one group that go together, so that what is left stays a multiple."""

    group: int
    order: int
    channels: tuple[int, ...]


class _Queue:
    """
    The blocks of all groups, cheapest first: by their mean score, or by the sum of their scores per unit saved.

    Blocks of one group go in order. Savings shrink as neighbours are cut, so a price can only rise: the cheapest is
    looked at again before it is taken, and put back if another has become cheaper.
    """

    def __init__(self, groups: Sequence[Sequence[_Block]], price: Callable[[_Block], float]) -> None:
        self._blocks = groups
        self._price = price
        self._paid = [float("-inf")] * len(groups)
        self._heap = [self._entry(blocks[0]) for blocks in groups if blocks]
        heapq.heapify(self._heap)

    def _entry(self, block: _Block) -> tuple[float, int, int]:
        # not cheaper than the one before it in its group, which had to go first
        return max(self._price(block), self._paid[block.group]), block.group, block.order

    def pop(self) -> _Block | None:
        """Take the cheapest block; None when there is none."""
        while self._heap:
            _, group, order = heapq.heappop(self._heap)
            block = self._blocks[group][order]
            entry = self._entry(block)
            if self._heap and entry > self._heap[0]:
                heapq.heappush(self._heap, entry)
                continue
            self._paid[group] = entry[0]
            if order + 1 < len(self._blocks[group]):
                heapq.heappush(self._heap, self._entry(self._blocks[group][order + 1]))
            return block
        return None


def choose_channels(
    model: nn.Module,
    groups: Sequence[CoupledGroup],
    scores: Sequence[torch.Tensor],
    *,
    limit: Limit,
    image: tuple[int, int],
    round_to: int,
    floors: Sequence[float],
    per_cost: bool,
) -> Cut:
    """
    Rank all groups' channels together and remove the lowest until the rest is within the limit.

    Channels go in blocks that leave a multiple of `round_to` (a group narrower than that is left whole). When the
    limit is passed, blocks that turn out not to be needed are given back, the dearest first.

    Args:
        model: that the groups belong to.
        groups: of this model.
        scores: for each group [channels], numbers; larger = keep; infinite = never remove.
        limit: what may be left of the model.
        image: height and width it is served with.
        round_to: kept channels are a multiple of this.
        floors: for each group 0..1, the least share of its channels that is kept.
        per_cost: weigh the sum of a block's scores against what it saves in the limit's unit (for scores that are
            changes of the loss); otherwise the mean of its scores counts.

    Returns:
        The cut; its size is above the limit when the floors were reached first.
    """
    counter = CostCounter(model, groups, *image)
    blocks = [_blocks(i, g, scores[i], round_to, floors[i]) for i, g in enumerate(groups)]

    def price(block: _Block) -> float:
        picked = scores[block.group][list(block.channels)]
        if not per_cost:
            return float(picked.mean())
        return float(picked.sum()) / max(1, counter.saving(block.group, block.channels, limit.unit))

    queue = _Queue(blocks, price)
    taken: list[_Block] = []
    done: set[int] = set()  # groups that give nothing more
    while counter.size.of(limit.unit) > limit.most:
        block = queue.pop()
        if block is None:
            break
        if block.group in done or counter.would_empty(block.group, block.channels):
            done.add(block.group)
            continue
        counter.remove(block.group, block.channels)
        taken.append(block)
    gone = [set[int]() for _ in groups]
    for block in taken:
        gone[block.group].update(block.channels)
    closed: set[int] = set()  # groups whose later block stays removed: an earlier one cannot come back
    for block in reversed(taken):
        if block.group in closed:
            continue
        counter.restore(block.group, block.channels)
        if counter.size.of(limit.unit) <= limit.most:
            gone[block.group].difference_update(block.channels)
        else:
            counter.remove(block.group, block.channels)
            closed.add(block.group)
    return Cut(tuple(tuple(sorted(channels)) for channels in gone), counter.size)


def even_floors(groups: Sequence[CoupledGroup], level: float) -> list[float]:
    """Every group keeps at least half of the share that the whole network keeps: nothing is starved."""
    return [(1 - level) / 2] * len(groups)


def residual_floors(model: nn.Module, groups: Sequence[CoupledGroup], level: float) -> list[float]:
    """
    The paper's floors: for residual groups (several filters write the same channels) alone.

    They keep 1 - level of their channels, below a level of one half `level` of them.

    Source: arXiv 2006.08554's code.
    """
    modules = dict(model.named_modules())
    least = 1 - level if level >= 0.5 else level
    return [least if _writers(modules, group) > 1 else 0.0 for group in groups]


def _writers(modules: Mapping[str, nn.Module], group: CoupledGroup) -> int:
    """Filters that put out the group's channels, depthwise ones aside: those read them too."""
    layers = [modules[m.layer] for m in group.members if m.is_output]
    return sum(
        isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and not 1 < m.groups == m.in_channels) for m in layers
    )


def _blocks(index: int, group: CoupledGroup, scores: torch.Tensor, round_to: int, floor_share: float) -> list[_Block]:
    """A group's channels in the order in which they may go, cut where a legal width is left."""
    if torch.isinf(scores).any():
        return []
    step = math.lcm(max(1, round_to), group.block_count)
    per_block = group.channels // group.block_count
    # rows of the matrix: the n-th least important channel of every block, so that each block loses as many
    order = torch.argsort(scores.reshape(group.block_count, per_block), dim=1, stable=True)
    order = (order + torch.arange(group.block_count)[:, None] * per_block).t().reshape(-1)
    floor = max(step, _FEWEST * group.block_count, math.ceil(group.channels * floor_share))
    widths = [w for w in range(group.channels // step * step, 0, -step) if floor <= w < group.channels]
    edges = [group.channels, *widths]
    return [
        _Block(index, number, tuple(int(c) for c in order[group.channels - wide : group.channels - narrow]))
        for number, (wide, narrow) in enumerate(itertools.pairwise(edges))
    ]


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
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)
    hint = "set pruning.level to 0% to fine-tune without pruning, or use another architecture"
    refused = f"{network.architecture} cannot be pruned"
    try:
        _mask_inputs(masked, groups, removed)
        cut_channels(cut, groups, removed)
        beat()
        with torch.no_grad():
            expected = masked(images)
    except (ModelError, RuntimeError, ValueError, IndexError) as error:
        raise UnprunableError(f"{refused}: {error}", hint=hint) from error
    try:
        with torch.no_grad():
            got = cut(images)
    except (RuntimeError, ValueError, IndexError) as error:
        raise UnprunableError(
            f"{refused}: with fewer channels its forward pass fails, as one with sizes written into it does ({error})",
            hint="let its code take sizes from the tensors, as in x.flatten(1); " + hint,
        ) from error
    spread = float((expected - expected.mean()).abs().max()) + 1e-30
    if got.shape != expected.shape or float((got - expected).abs().max()) > _TRIAL_TOLERANCE * spread:
        raise UnprunableError(
            f"{refused}: cutting channels changes what the others compute (a channel shuffle or a reshape mixes them)",
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
