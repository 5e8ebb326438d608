"""Which channels must be removed together: torch-pruning's dependency graph as plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgetune.errors import MissingLibraryError, UnprunableError

_NORMS = (nn.BatchNorm2d, nn.BatchNorm1d, nn.GroupNorm, nn.LayerNorm, nn.PReLU)  # they have channels, but no filters
_PRUNABLE = (nn.Conv2d, nn.BatchNorm2d, nn.BatchNorm1d, nn.Linear)


@dataclass(frozen=True, slots=True)
class Member:
    """One side of one layer that a coupled group reaches."""

    layer: str
    is_output: bool  # True: rows of the weight (and all of a batch norm); False: its input columns
    indices: tuple[int, ...]  # channels of the layer
    roots: tuple[int, ...]  # for each of them, the group's channel that it belongs to


@dataclass(frozen=True, slots=True)
class CoupledGroup:
    """Channels 0..channels-1, each of which is removed from every member or from none."""

    name: str  # of the layer that the group was found from
    channels: int
    block_count: int  # of grouped convolutions: as many channels must go from each of so many equal blocks
    members: tuple[Member, ...]


def find_groups(
    model: nn.Module, head: str, height: int, width: int, beat: Callable[[], None] = lambda: None
) -> tuple[CoupledGroup, ...]:
    """
    Trace the model and list the groups that may be pruned.

    Left whole: the head's outputs, groups that touch a layer other than convolution, batch norm and linear, grouped
    convolutions with one channel a block, and groups that overlap another one.

    Args:
        model: on one device; is put into eval mode.
        head: name of the output layer.
        height: of the images it is served with.
        width: the same.
        beat: called after every group.

    Raises:
        UnprunableError: the model cannot be traced, or nothing in it can be pruned.
        MissingLibraryError: torch-pruning is not installed.
    """
    names = {module: name for name, module in model.named_modules()}
    seen: set[tuple[str, bool, int]] = set()
    found: list[CoupledGroup] = []
    for traced in _trace(model, head, height, width):
        beat()
        group = _as_plain(traced, names)
        if group is None:
            continue
        channels = {(m.layer, m.is_output, index) for m in group.members for index in m.indices}
        if not channels & seen:
            found.append(group)
        seen |= channels
    if not found:
        raise UnprunableError("no layer of this architecture can be pruned", hint="set pruning.level to 0%")
    return tuple(found)


def _trace(model: nn.Module, head: str, height: int, width: int) -> Iterator[Any]:
    try:
        import torch_pruning
    except ImportError as error:
        raise MissingLibraryError(
            f"torch-pruning cannot be imported: {error}", hint="install it: pip install 'edgetune[train]'"
        ) from error
    weight = next(model.parameters())
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:  # the tracer follows gradients, and a frozen layer has none
        parameter.requires_grad_(True)
    try:
        images = torch.zeros(1, 3, height, width, dtype=weight.dtype, device=weight.device)
        graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=images, verbose=False)
        ignored = [dict(model.named_modules())[head]]
        yield from graph.get_all_groups(ignored_layers=ignored, root_module_types=[nn.Conv2d, nn.Linear])
    except (ArithmeticError, LookupError, ValueError, RuntimeError, AttributeError, TypeError, AssertionError) as error:
        raise UnprunableError(
            f"the dependency graph of this architecture cannot be traced (channel shuffles, as in ShuffleNet, and "
            f"attention are not supported): {type(error).__name__}: {error}",
            hint="set pruning.level to 0% to fine-tune without pruning, or use another architecture",
        ) from error
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _as_plain(traced: Any, names: dict[nn.Module, str]) -> CoupledGroup | None:
    """One group of torch-pruning as plain data, or None when it must be left whole."""
    members: list[Member] = []
    blocks = 1
    channels = len(traced[0].idxs)
    for item in traced:
        module = item.dep.target.module
        if isinstance(module, nn.Parameter) or (_has_weights(module) and not isinstance(module, _PRUNABLE)):
            return None
        if not isinstance(module, _PRUNABLE):
            continue  # an operation without weights: add, concat, flatten
        member = Member(names[module], _is_output(item, module), tuple(item.idxs), tuple(item.root_idxs))
        if max(member.indices, default=0) >= _size(module, is_output=member.is_output):
            return None  # torch-pruning does not follow a padding of channels
        count = _block_count(module, member, channels)
        if count == 0:
            return None
        blocks = math.lcm(blocks, count)
        members.append(member)
    if channels % blocks or channels // blocks < 2:
        return None
    return CoupledGroup(members[0].layer, channels, blocks, tuple(members))


def _has_weights(module: Any) -> bool:
    return isinstance(module, nn.Module) and next(module.parameters(), None) is not None


def _is_output(item: Any, module: nn.Module) -> bool:
    if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)) or _is_depthwise(module):
        return True
    return "out_channels" in item.dep.handler.__name__


def _size(module: Any, *, is_output: bool) -> int:
    if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
        return int(module.num_features)
    if isinstance(module, nn.Conv2d):
        return int(module.out_channels if is_output else module.in_channels)
    return int(module.weight.shape[0 if is_output else 1])


def _is_depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.groups > 1
        and module.groups == module.out_channels == module.in_channels
    )


def _block_count(module: nn.Module, member: Member, channels: int) -> int:
    """Blocks a grouped convolution demands; 0 when the group cannot be pruned for it."""
    if not isinstance(module, nn.Conv2d) or module.groups == 1 or _is_depthwise(module):
        return 1
    is_whole = member.indices == member.roots == tuple(range(channels))
    side = module.out_channels if member.is_output else module.in_channels
    return module.groups if is_whole and side == channels else 0


def left_whole(model: nn.Module, head: str, groups: Sequence[CoupledGroup]) -> tuple[str, ...]:
    """The layers that keep all their filters whatever is cut, in the model's order; the output layer is not counted."""
    written = {member.layer for group in groups for member in group.members if member.is_output}
    return tuple(
        name
        for name, module in model.named_modules()
        if _has_weights(module)
        and next(module.children(), None) is None
        and not isinstance(module, _NORMS)
        and name not in written | {head}
    )


def overlaps(groups: Sequence[CoupledGroup]) -> bool:
    """Whether a channel is in two groups; never so for what `find_groups` returns."""
    channels = [(m.layer, m.is_output, index) for g in groups for m in g.members for index in m.indices]
    return len(channels) != len(set(channels))
