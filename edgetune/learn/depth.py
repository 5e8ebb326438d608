"""
Whole residual branches taken out: fewer layers, where narrower ones would no longer be faster.

A layer costs time on the serving runtime however few channels it has, and many thin layers learn worse than fewer wide
ones. A branch here is what lies between a tensor and its sum with a shortcut; without it the shortcut is handed on.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from edgetune.learn.criteria import Batch
from edgetune.learn.empty import EmptyConv2d, replace_by_empty
from edgetune.learn.groups import CoupledGroup, find_groups
from edgetune.learn.network import Network, new_network, output_positions

# Above this share of the cost branches stay: at 0.75x width alone was as good or better, at 0.33x it was 10 points worse.
_WORTH_IT = 0.6
# How much of what is asked is done by depth, as powers of the share that is to be left: the first, and the next ones where
# that leaves so many layers that they have to be very thin to be fast enough, or are not at any width.
DEPTHS = (0.75, 1.0, 1.5)
_Norm = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True, slots=True)
class Branch:
    """Layers that can be emptied together."""

    inner: frozenset[str]  # convolutions and batch norms that lose all their channels
    exits: frozenset[str]  # convolutions that read only from those and give zeros from then on
    ends: frozenset[str]  # the batch norm right after each of the exits, or else the exit

    @property
    def name(self) -> str:
        """That of its last layer."""
        return min(self.exits)


def find_branches(module: nn.Module, groups: Sequence[CoupledGroup], height: int, width: int) -> tuple[Branch, ...]:
    """
    List the branches that may go, of any architecture: what matters is that the answer still depends on the image.

    Args:
        module: in eval mode.
        groups: of this module.
        height: of the images it is served with.
        width: the same.
    """
    modules = dict(module.named_modules())
    positions = output_positions(module, height, width)
    found = {branch for group in groups if (branch := _branch(modules, groups, group)) is not None}
    after = _norms_after(module, {name for branch in found for name in branch.exits}, height, width)
    possible = [
        branch
        for part in sorted(found, key=lambda branch: branch.name)
        if _is_summed(part, groups, positions)
        for branch in [replace(part, ends=frozenset(after.get(name, name) for name in part.exits))]
        if _depends_on_image(module, [branch], height, width)
    ]
    # of a branch and a part of it the whole
    whole = [b for b in possible if not any(b.inner < other.inner for other in possible)]
    return tuple(b for b in whole if _goes_cleanly(module, [b], height, width))


def _goes_cleanly(module: nn.Module, branches: Sequence[Branch], height: int, width: int) -> bool:
    """Whether the emptied network answers as with silent branches: not where layers are shared, or have two readers."""
    images, other = _some(module, height, width), copy.deepcopy(module)
    try:
        for branch in branches:
            remove_branch(other, branch)
        with torch.no_grad(), without(module, branches):
            expected = module(images)
            got = other(images)
    except (RuntimeError, ValueError, KeyError, AttributeError):
        return False
    return bool(torch.allclose(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())))


def _branch(modules: dict[str, nn.Module], groups: Sequence[CoupledGroup], group: CoupledGroup) -> Branch | None:
    """What goes with a group; None where a layer of it has channels of others too."""
    inner: set[str] = set()
    read: set[str] = set()
    open_groups, pending = list(groups), [group]
    while pending:
        taken = pending.pop()
        open_groups.remove(taken)
        for member in taken.members:
            if not _is_whole(modules[member.layer], len(set(member.indices)), is_output=member.is_output):
                return None
            (inner if member.is_output else read).add(member.layer)
        # a group that only emptied layers read is not needed any more
        pending = [g for g in open_groups if {m.layer for m in g.members if not m.is_output} <= inner]
    exits = read - inner
    return Branch(frozenset(inner), frozenset(exits), frozenset(exits)) if exits else None


def _is_whole(layer: nn.Module, count: int, *, is_output: bool) -> bool:
    if isinstance(layer, _Norm):
        return layer.num_features == count
    if not isinstance(layer, nn.Conv2d):
        return False
    return (layer.out_channels if is_output else layer.in_channels) == count


def _is_summed(branch: Branch, groups: Sequence[CoupledGroup], positions: dict[str, int]) -> bool:
    """Whether its exits give maps; those of a scale (squeeze-excite) are single values for each channel of a map."""
    for group in groups:
        writers = {m.layer for m in group.members if m.is_output}
        largest = max((positions[name] for name in writers if name in positions), default=0)
        if largest > 1 and any(positions[name] == 1 for name in branch.exits & writers):
            return False
    return True


def _norms_after(module: nn.Module, exits: set[str], height: int, width: int) -> dict[str, str]:
    """Of each of these convolutions the batch norm that takes what it gives."""
    given: dict[int, tuple[str, torch.Tensor]] = {}  # the tensors are held, so that no other gets their number
    after: dict[str, str] = {}

    def remember(name: str) -> Callable[..., None]:
        def hook(_layer: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            given[id(output)] = (name, output)

        return hook

    def recognise(name: str) -> Callable[..., None]:
        def hook(_layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if id(inputs[0]) in given:
                after[given[id(inputs[0])][0]] = name

        return hook

    hooks = []
    for name, layer in module.named_modules():
        if name in exits:
            hooks.append(layer.register_forward_hook(remember(name)))
        elif isinstance(layer, _Norm):
            hooks.append(layer.register_forward_pre_hook(recognise(name)))
    try:
        with torch.no_grad():
            module(_blank(module, height, width))
    finally:
        for hook in hooks:
            hook.remove()
    return after


def _some(module: nn.Module, height: int, width: int) -> torch.Tensor:
    """Noise, the same at every call."""
    noise = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    return noise.to(_blank(module, height, width))


def _blank(module: nn.Module, height: int, width: int) -> torch.Tensor:
    weight = next(module.parameters())
    return torch.zeros(1, 3, height, width, dtype=weight.dtype, device=weight.device)


@contextlib.contextmanager
def without(module: nn.Module, branches: Sequence[Branch]) -> Iterator[None]:
    """Let the branches give zeros for a while."""
    modules = dict(module.named_modules())
    ends = {name for branch in branches for name in branch.ends}
    hooks = [modules[name].register_forward_hook(lambda _layer, _inputs, output: output * 0) for name in sorted(ends)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _depends_on_image(module: nn.Module, branches: Sequence[Branch], height: int, width: int) -> bool:
    images = _some(module, height, width).requires_grad_()
    with without(module, branches), torch.enable_grad():
        (gradient,) = torch.autograd.grad(module(images).sum(), images)
    return bool(gradient.abs().max() > 0)


def remove_branch(module: nn.Module, branch: Branch) -> None:
    """Empty its layers, in place; what another branch has emptied already stays so."""
    modules = dict(module.named_modules())
    for name in sorted(branch.inner | branch.ends | branch.exits):
        layer = modules[name]
        if isinstance(layer, _Norm):
            replace_by_empty(module, name, {"num_features": 0})
        elif isinstance(layer, nn.Conv2d) and not isinstance(layer, EmptyConv2d):
            sizes = {"in_channels": layer.in_channels, "out_channels": layer.out_channels, "groups": 1}
            sizes["out_channels" if name in branch.inner else "in_channels"] = 0
            replace_by_empty(module, name, sizes)


def removed_exits(module: nn.Module) -> tuple[str, ...]:
    """The last layers of the branches that are gone."""
    return tuple(
        name for name, layer in module.named_modules() if isinstance(layer, EmptyConv2d) and layer.out_channels
    )


class Thinner:
    """Takes residual branches out of copies of a network; what it once found about the network it remembers."""

    def __init__(
        self,
        network: Network,
        batches: Sequence[Batch],
        *,
        image: tuple[int, int],
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Prepare; nothing is asked of the network yet.

        Args:
            network: not changed.
            batches: of the site's images, normalised, and labels.
            image: height and width it is served with.
            beat: called after every look at the batches.
        """
        self._network, self._batches, self._image, self._beat = network, batches, image, beat
        self._module = network.module.eval()
        self._macs = _macs_as_built(network, image)
        self._orders = {is_alone: self._order(is_alone=is_alone) for is_alone in (True, False)}

    def thin_out(self, *, share: float, depth: float = DEPTHS[0], is_alone: bool = True) -> Network:
        """
        Remove branches until depth has done its part of what is asked: what it leaves of the operations is about share**depth.

        Where little is asked none goes. Those go without which the loss rises least for the operations that they save.
        Operations are those of the unpruned architecture, so a network that was thinned out before is not again.

        Args:
            share: 0..1, of the unpruned network's cost that is to be left.
            depth: how much of it, see DEPTHS.
            is_alone: the loss without a branch is that of the network as given without it; otherwise of what is left when
                those before it have gone, which knows what they had in common, and says little once it is high.

        Returns:
            A copy without those branches, or the network itself where none goes.
        """
        if share > _WORTH_IT:
            return self._network
        module, whole = self._module, sum(self._macs.values())
        wanted = whole * share**depth
        left = whole - sum(self._macs[n] for n, layer in module.named_modules() if isinstance(layer, EmptyConv2d))
        self._orders[is_alone], order = itertools.tee(self._orders[is_alone])
        gone: list[Branch] = []
        for branch in order:
            saved = self._saved[branch]
            is_nearer = saved < left and left * math.sqrt(1 - saved / left) > wanted
            if not is_nearer or not _depends_on_image(module, [*gone, branch], *self._image):
                break
            gone.append(branch)
            left -= saved
        while gone and not _goes_cleanly(module, gone, *self._image):
            gone.pop()
        if not gone:
            return self._network
        other = copy.deepcopy(self._network)
        for branch in gone:
            remove_branch(other.module, branch)
        return other

    def _order(self, *, is_alone: bool) -> Iterator[Branch]:
        """All the branches, the one first without which the loss rises least for the operations that it saves."""
        gone: list[Branch] = []
        rated = dict(self._each_alone)
        while rated:
            branch = min(rated, key=lambda each: rated[each])
            yield branch
            gone.append(branch)
            rated.pop(branch)
            if not is_alone:
                rated = self._rated(gone)

    @functools.cached_property
    def _saved(self) -> dict[Branch, int]:
        """Each branch that may go, with the operations that are saved without it."""
        module, image = self._module, self._image
        branches = find_branches(module, find_groups(module, self._network.head, *image, self._beat), *image)
        return {branch: sum(self._macs.get(n, 0) for n in branch.inner | branch.exits) for branch in branches}

    @functools.cached_property
    def _each_alone(self) -> dict[Branch, float]:
        return self._rated(())

    def _rated(self, gone: Sequence[Branch]) -> dict[Branch, float]:
        """Of each branch that is there, by how much the loss is higher without it for the operations that it saves."""
        with without(self._module, gone):
            loss = _loss(self._module, self._batches)
        found = {}
        for branch, saved in self._saved.items():
            if branch not in gone:
                with without(self._module, [*gone, branch]):
                    found[branch] = (_loss(self._module, self._batches) - loss) / max(1, saved)
                self._beat()
        return found


def _loss(module: nn.Module, batches: Sequence[Batch]) -> float:
    with torch.no_grad():
        losses = [functional.cross_entropy(module(images), labels) for images, labels in batches]
    return float(torch.stack(losses).mean())


def _macs_as_built(network: Network, image: tuple[int, int]) -> dict[str, int]:
    """Operations of every layer of the architecture, before anything was pruned."""
    built = new_network(network.architecture, network.num_classes, network.builders).module
    layers = dict(built.named_modules())
    return {
        name: count * cast(torch.Tensor, layers[name].weight).numel()
        for name, count in output_positions(built, *image).items()
    }
