"""How much a filter matters: criteria behind one protocol, found by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from edgetune.errors import ConfigError, EdgetuneError, UnprunableError
from edgetune.learn.criteria.activations import ClassActivation, ResponseMagnitude, ShareOfNonZeros
from edgetune.learn.criteria.base import Batch, Criterion
from edgetune.learn.criteria.gradients import Fisher, Taylor
from edgetune.learn.criteria.weights import MeanMagnitude, Random
from edgetune.learn.groups import CoupledGroup
from edgetune.types import CRITERIA

__all__ = ["Batch", "Criterion", "ask", "make_criterion", "score_with"]

_MEND = "mend it, or use another criterion"
_MAKERS: dict[str, Callable[[int, Callable[[], None]], Criterion]] = {
    "l1": lambda _seed, _beat: MeanMagnitude(),
    "taylor": lambda _seed, beat: Taylor(beat),
    "fisher": lambda _seed, beat: Fisher(beat),
    "activation": lambda _seed, beat: ResponseMagnitude(beat),
    "nonzeros": lambda _seed, beat: ShareOfNonZeros(beat),
    "class_activation": lambda _seed, beat: ClassActivation(beat),
    "class_activation_count": lambda _seed, beat: ClassActivation(beat, joins="count"),
    "random": lambda seed, _beat: Random(seed),
}


def make_criterion(name: str, *, seed: int, beat: Callable[[], None] = lambda: None) -> Criterion:
    """
    The criterion of that name.

    Args:
        name: one of CRITERIA, or "package.module:Class" of the user's own.
        seed: of the control "random".
        beat: called after every batch.

    Raises:
        ConfigError: there is none, or it is not a criterion.
    """
    if name in _MAKERS:
        return _MAKERS[name](seed, beat)
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ConfigError(
            f"unknown criterion {name!r}", hint=f"use {', '.join(CRITERIA)}, or package.module:Class of your own"
        )
    try:
        criterion = getattr(importlib.import_module(module), attribute)()
    except Exception as error:  # whatever the user's own module raises
        raise ConfigError(f"criterion {name!r} cannot be made: {error}") from error
    if not callable(getattr(criterion, "score", None)) or not hasattr(criterion, "adds_up"):
        raise ConfigError(f"criterion {name!r} needs `score` and `adds_up`", hint="see edgetune.learn.criteria.base")
    made: Criterion = criterion
    return made


def ask(
    criterion: Criterion, name: str, model: nn.Module, groups: Sequence[CoupledGroup], batches: Iterable[Batch]
) -> tuple[torch.Tensor, ...]:
    """
    What a criterion says, whatever that is; see `Criterion.score`.

    Raises:
        UnprunableError: one of the user's own fails.
    """
    try:
        return tuple(criterion.score(model, groups, batches))
    except EdgetuneError:
        raise
    except Exception as error:
        if name in _MAKERS:
            raise
        raise UnprunableError(f"criterion {name!r} failed: {type(error).__name__}: {error}", hint=_MEND) from error


def score_with(
    criterion: Criterion, name: str, model: nn.Module, groups: Sequence[CoupledGroup], batches: Iterable[Batch]
) -> tuple[torch.Tensor, ...]:
    """
    What a criterion says, if filters can be ranked by it; see `Criterion.score`.

    Raises:
        UnprunableError: one of the user's own fails or gives something else than scores, or a score is not a number.
    """
    scores = ask(criterion, name, model, groups, batches)
    if len(scores) != len(groups):
        raise UnprunableError(
            f"criterion {name!r} gave scores of {len(scores)} groups of filters; there are {len(groups)}", hint=_MEND
        )
    for group, score in zip(groups, scores, strict=True):
        if not isinstance(score, torch.Tensor) or tuple(score.shape) != (group.channels,):
            raise UnprunableError(
                f"criterion {name!r} gave no tensor [{group.channels}] for layer {group.name}", hint=_MEND
            )
        if torch.isnan(score).any():
            raise UnprunableError(
                f"the scores of the filters of layer {group.name} are not numbers",
                hint="the weights may hold NaN: edgetune models show; or use another criterion",
            )
    return scores
