"""How much a filter matters: criteria behind one protocol, found by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from edgetune.errors import ConfigError
from edgetune.learn.criteria.activations import ClassActivation, ResponseMagnitude, ShareOfNonZeros
from edgetune.learn.criteria.base import Batch, Criterion
from edgetune.learn.criteria.gradients import Fisher, Taylor
from edgetune.learn.criteria.weights import MeanMagnitude, Random

__all__ = ["CRITERIA", "Batch", "Criterion", "make_criterion"]

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
CRITERIA = tuple(_MAKERS)


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
