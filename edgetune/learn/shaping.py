"""From a ranking to a smaller network: how many channels each group keeps, in which multiples, and how fast that is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from edgetune.errors import OutOfReachError
from edgetune.learn.cost import Size
from edgetune.learn.depth import removed_exits
from edgetune.learn.groups import CoupledGroup
from edgetune.learn.latency import Stopwatch, cut_to_latency
from edgetune.learn.network import Network
from edgetune.learn.prune import Cut, Limit, choose_channels, cut_channels, even_floors
from edgetune.types import Preprocess, Pruning, Recipe
from edgetune.wire import to_plain

# Channel multiples that are tried when the recipe leaves the choice to a measurement.
MULTIPLES = (1, 4, 8, 16, 32)
# Of two candidates at the same level the faster one is taken, unless it keeps so much less of what the criterion values.
_KEPT_TOLERANCE = 0.05
_SPREAD = 1.05  # of two measurements of one latency on a board at rest


@dataclass(frozen=True, slots=True)
class Ranking:
    """The scores of a network's filters."""

    groups: tuple[CoupledGroup, ...]
    scores: tuple[torch.Tensor, ...]  # for each group [channels]
    adds_up: bool

    def kept_share(self, cut: Cut) -> float:
        """How much of all scores a cut leaves, 0..1."""
        finite = [score.clamp(max=1e30).clamp(min=0) for score in self.scores if not torch.isinf(score).any()]
        whole = float(sum(score.sum() for score in finite))
        gone = sum(
            float(score.clamp(min=0)[list(channels)].sum())
            for score, channels in zip(self.scores, cut.removed, strict=True)
            if channels
        )
        return 1 - gone / whole if whole > 0 else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A channel multiple that was timed in turn with the others."""

    round_to: int
    parameters: int
    latency_ratio: float  # see `Stopwatch.compared`
    median_ms: float
    ratio_quartiles: tuple[float, float] | None  # the lower and the upper one over the turns
    kept_share: float  # of the scores


@dataclass(frozen=True, slots=True)
class Shape:
    """What a cut made of a network."""

    network: Network
    cut: Cut
    round_to: int
    latency_ratio: float | None  # to the whole network's, by itself where the share is one of it; None: not timed
    candidates: tuple[Candidate, ...] = ()  # that it was chosen from; none: it was the only one


class Shaper:
    """Cuts as a recipe says."""

    def __init__(
        self, recipe: Recipe, preprocess: Preprocess, *, place: Callable[[Network], Network], beat: Callable[[], None]
    ) -> None:
        """`place` puts a network where it is trained, and returns it; `beat` is called after every candidate."""
        self._recipe, self._preprocess, self._place, self._beat = recipe, preprocess, place, beat

    def shape(
        self, network: Network, ranking: Ranking, *, share: float, whole: Size, stopwatch: Stopwatch | None
    ) -> Shape:
        """
        Cut a copy of a network down to a share of what the whole one costs.

        Where the recipe leaves the channel multiple open, each of MULTIPLES makes a candidate at that share, all are
        timed in turn with the whole network, and the fastest is taken that keeps nearly as much of the scores as the
        best of them. Where the share is one of the latency each was made fast enough by itself, and the one that keeps the most is taken.

        Args:
            network: that `ranking` is about.
            ranking: of its filters.
            share: 0..1, of the unit that the recipe's level is in.
            whole: what the unpruned network costs.
            stopwatch: times candidates; None only where nothing has to be timed.

        Raises:
            OutOfReachError: the share cannot be reached.
        """
        recipe = self._recipe
        candidates: list[Shape] = []
        for round_to in MULTIPLES if recipe.round_to is None else (recipe.round_to,):
            shape = self._shape(network, ranking, share=share, whole=whole, round_to=round_to, stopwatch=stopwatch)
            if shape is not None and all(shape.cut.removed != other.cut.removed for other in candidates):
                candidates.append(shape)
            self._beat()
        if not candidates:
            is_timed = recipe.level_of == "latency"
            why = "no network was as fast as that" if is_timed else "every layer has to keep some of its channels"
            if recipe.round_to is not None and recipe.round_to > 1:
                why += f", in multiples of {recipe.round_to}"
            raise OutOfReachError(
                f"{100 * (1 - share):.0f} % of the {recipe.level_of} cannot be removed: {why}",
                hint="set a lower pruning.level, or a smaller pruning.round_to",
            )
        if len(candidates) == 1 or stopwatch is None:
            return candidates[0]
        timed = stopwatch.compared([shape.network for shape in candidates])[:-1]
        ratios = [ratio for ratio, _ in timed]
        kept = [ranking.kept_share(shape.cut) for shape in candidates]
        if recipe.level_of == "latency":
            chosen = int(np.argmax(kept))
        else:
            good = [i for i in range(len(candidates)) if kept[i] >= max(kept) - _KEPT_TOLERANCE]
            chosen = min(good, key=lambda i: ratios[i])
        told = tuple(
            Candidate(
                round_to=shape.round_to,
                parameters=shape.cut.size.parameters,
                latency_ratio=round(ratio, 4),
                median_ms=round(latency.median_ms, 4),
                ratio_quartiles=latency.ratio_quartiles,
                kept_share=round(share_kept, 4),
            )
            for shape, (ratio, latency), share_kept in zip(candidates, timed, kept, strict=True)
        )
        found = candidates[chosen]
        by_itself = found.latency_ratio
        return replace(found, latency_ratio=ratios[chosen] if by_itself is None else by_itself, candidates=told)

    def _shape(
        self,
        network: Network,
        ranking: Ranking,
        *,
        share: float,
        whole: Size,
        round_to: int,
        stopwatch: Stopwatch | None,
    ) -> Shape | None:
        """One candidate; None when it does not reach the share."""
        cuts: dict[int, Cut] = {}

        def smaller(limit: Limit) -> Network:
            cut = choose_channels(
                network.module,
                ranking.groups,
                ranking.scores,
                limit=limit,
                image=(self._preprocess.height, self._preprocess.width),
                round_to=round_to,
                floors=even_floors(ranking.groups, 1 - share),
                per_cost=ranking.adds_up,
            )
            other = copy.deepcopy(network)
            cut_channels(other.module, ranking.groups, cut.removed)
            cuts[id(other.module)] = cut
            return self._place(other)

        if self._recipe.level_of != "latency":
            limit = Limit(self._recipe.level_of, round(whole.of(self._recipe.level_of) * share))
            found = smaller(limit)
            cut = cuts[id(found.module)]
            return Shape(found, cut, round_to, None) if cut.size.of(limit.unit) <= limit.most else None
        assert stopwatch is not None, "a latency has to be measured"
        found, ratio = cut_to_latency(
            smaller, macs=whole.macs, ratio=stopwatch.ratio, sure_ratio=stopwatch.sure_ratio, at_most=share
        )
        return Shape(found, cuts[id(found.module)], round_to, ratio) if ratio <= share * _SPREAD else None


def describe_cut(shape: Shape, ranking: Ranking) -> Mapping[str, Any]:
    """A cut for a journal; `groups` are those of the network that was cut, which trials before may have cut already."""
    return {
        "parameters": shape.cut.size.parameters,
        "macs": shape.cut.size.macs,
        "round_to": shape.round_to,
        "latency_ratio": shape.latency_ratio,
        "candidates": [to_plain(candidate) for candidate in shape.candidates],
        "removed_branches": list(removed_exits(shape.network.module)),
        "groups": [
            {"layer": g.name, "channels": g.channels, "kept": g.channels - len(gone)}
            for g, gone in zip(ranking.groups, shape.cut.removed, strict=True)
        ],
    }


def as_pruning(
    recipe: Recipe, *, level_asked: float, round_to: int, whole: Size, left: Size, latency_ratio: float | None
) -> Pruning:
    """A cut for a manifest: what was asked for, and what was achieved in the unit of the recipe's level."""
    if recipe.level_of == "latency":
        assert latency_ratio is not None, "a latency has to be measured"
        share = latency_ratio
    else:
        share = left.of(recipe.level_of) / whole.of(recipe.level_of)
    return Pruning(
        criterion=recipe.criterion,
        level_asked=level_asked,
        level_achieved=1 - share,
        round_to=round_to,
        level_of=recipe.level_of,
    )
