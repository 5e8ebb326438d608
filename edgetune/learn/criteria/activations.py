"""Criteria that look at what the channels answer: a forward pass and no gradient."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional

from edgetune.errors import NoGradientError
from edgetune.learn.criteria.base import Batch, filters, mean_of, outputs, untouchable
from edgetune.learn.groups import CoupledGroup

_TOP_SHARE = 0.5  # of a group's channels that count as the strongest of an image


class _Responses:
    """
    Looks at each image's response of each channel: the mean of what is above zero in its map, or its share of zeros.

    Cost: one forward pass a batch.
    """

    adds_up = False

    def __init__(self, beat: Callable[[], None] = lambda: None) -> None:
        self._beat = beat  # called after every batch

    def score(self, model: nn.Module, groups: Sequence[CoupledGroup], batches: Iterable[Batch]) -> list[torch.Tensor]:
        """
        See `Criterion.score`.

        Raises:
            NoGradientError: there was no batch.
        """
        modules = dict(model.named_modules())
        sums: dict[tuple[int, int], torch.Tensor] = {}  # (group, class) -> [channels]
        counts: dict[int, int] = {}  # class -> images
        for images, labels in batches:
            responses = self._responses(model, modules, groups, images)
            for label in sorted(set(labels.tolist())):
                mine = (labels == label).cpu()
                counts[label] = counts.get(label, 0) + int(mine.sum())
                for i, response in enumerate(responses):
                    votes = self._vote(response[mine]).masked_fill(torch.isnan(response[mine]), math.nan)
                    part = votes.sum(dim=0)
                    sums[i, label] = sums[i, label] + part if (i, label) in sums else part
            self._beat()
        if not counts:
            raise NoGradientError("there is no batch to score filters with")
        scores = []
        for i, group in enumerate(groups):
            means = torch.stack([sums[i, label] / count for label, count in sorted(counts.items())])
            scores.append(self._over_classes(means) if filters(modules, group) else untouchable(group))
        return scores

    def _responses(
        self, model: nn.Module, modules: dict[str, nn.Module], groups: Sequence[CoupledGroup], images: torch.Tensor
    ) -> list[torch.Tensor]:
        """For each group [N, channels], float64."""
        layers = {m.layer for group in groups for m in outputs(modules, group)}
        with torch.no_grad(), _watched({layer: modules[layer] for layer in sorted(layers)}, self._measure) as seen:
            model(images)
        result = []
        for group in groups:
            members = outputs(modules, group)
            none = torch.zeros(len(images), group.channels, dtype=torch.float64)
            result.append(mean_of([seen[m.layer] for m in members], members, group.channels) if members else none)
        return result

    @staticmethod
    def _measure(maps: torch.Tensor) -> torch.Tensor:
        """One layer's outputs [N, C, ...] -> [N, C]."""
        return functional.relu(maps).flatten(2).mean(dim=2) if maps.dim() > 2 else functional.relu(maps)

    def _vote(self, responses: torch.Tensor) -> torch.Tensor:
        """Responses [N, channels] -> what is averaged over the images of a class [N, channels]."""
        return responses

    def _over_classes(self, means: torch.Tensor) -> torch.Tensor:
        """Means of the classes [K, channels] -> scores [channels]; every class weighs the same."""
        return means.mean(dim=0)


class ResponseMagnitude(_Responses):
    """
    Mean response of a channel after its ReLU, relative to the strongest of its group.

    Source: Molchanov et al. 2017 (arXiv 1611.06440), the "activation" criterion with a mean, scaled by layer; differs
    from it in: the scale is the group's largest score.
    """

    def _over_classes(self, means: torch.Tensor) -> torch.Tensor:
        score = means.mean(dim=0)
        largest = score.max()
        return score / largest if largest > 0 else score


class ShareOfNonZeros(_Responses):
    """
    How much of a channel's map is above zero: one minus the average percentage of zeros.

    Source: Hu et al. 2016 (arXiv 1607.03250), APoZ.
    """

    @staticmethod
    def _measure(maps: torch.Tensor) -> torch.Tensor:
        above = (maps > 0).to(torch.float64)
        return above.flatten(2).mean(dim=2) if maps.dim() > 2 else above


class ClassActivation(_Responses):
    """
    How often a channel is among the strongest half of its group, in the class that needs it most.

    For each image the channels with the largest responses get a vote; a channel's score is its largest share of votes
    over the classes ("or"), or the mean of its shares ("count").

    Source: the idea of OCAP (per-image top channels, joined over a class's images), written from its description;
    differs from it in: shares instead of a set, so that channels can be ranked between groups.
    """

    def __init__(self, beat: Callable[[], None] = lambda: None, *, joins: str = "or") -> None:
        super().__init__(beat)
        self._joins = joins

    def _vote(self, responses: torch.Tensor) -> torch.Tensor:
        strongest = responses.topk(max(1, int(responses.shape[1] * _TOP_SHARE)), dim=1).indices
        return torch.zeros_like(responses).scatter_(1, strongest, 1.0) * (responses > 0)

    def _over_classes(self, means: torch.Tensor) -> torch.Tensor:
        return means.max(dim=0).values if self._joins == "or" else means.mean(dim=0)


@contextlib.contextmanager
def _watched(
    layers: dict[str, nn.Module], measure: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[dict[str, torch.Tensor]]:
    """Measure the outputs of these layers at the forward pass, [N, C] each."""
    seen: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, object, torch.Tensor], None]:
        def look(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            maps = output.detach()
            is_none = torch.isnan(maps).flatten(2).any(dim=2) if maps.dim() > 2 else torch.isnan(maps)
            seen[name] = measure(maps).masked_fill(is_none, math.nan)  # comparing would hide it

        return look

    hooks = [module.register_forward_hook(watch(name)) for name, module in layers.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
