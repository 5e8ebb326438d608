"""
How small may the network become? Trials so far -> the next one, or the end. Knows nothing of networks.

A trial takes a network that is there, cuts it to a share of what the whole one costs, retrains it, and tells whether its
validation accuracy is within the operator's tolerance of the target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

_FIRST_FACTOR = 0.5  # of what is left, at the first step
_LAST_FACTOR = 0.88  # a step that would remove less than 12 % ends the search: it is not worth its epochs
_DAPR_TRIALS = 6
_DAPR_GRAIN = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One that was made."""

    share: float  # 0..1 of the whole network's cost that was left
    is_success: bool
    is_limit: bool = False  # it took the whole retraining to succeed: what is smaller will not


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """The next one."""

    share: float  # 0..1 of the whole network's cost to leave
    from_best: bool  # start from the last success; otherwise from the tuned, unpruned network


class Strategy(Protocol):
    """A rule of proposals; it remembers nothing, so a search goes on after a kill from the list of its trials."""

    def propose(self, trials: Sequence[Trial]) -> Proposal | None:
        """The next trial, or None when the search is over."""


@dataclass(frozen=True, slots=True)
class Steps:
    """
    Halve what is left; after a failure go back to the last success and take a smaller step (the square root).

    Each trial starts from the last success, which is nearly what is looked for, so a few epochs tell.

    Args:
        target: small enough; None: as small as it goes.
        floor: no trial leaves less than this share.
    """

    target: float | None = None
    floor: float = 0.02

    def propose(self, trials: Sequence[Trial]) -> Proposal | None:
        """See `Strategy.propose`."""
        factor, best, failed = _FIRST_FACTOR, 1.0, 0.0  # the last: from the network that the next trial starts from
        if any(trial.is_limit for trial in trials):
            return None
        for trial in trials:
            if trial.is_success:
                best, failed = min(best, trial.share), 0.0
            else:
                factor, failed = math.sqrt(factor), max(failed, trial.share)
        least = self.floor if self.target is None else max(self.floor, self.target)
        while factor <= _LAST_FACTOR and max(best * factor, least) <= failed:
            factor = math.sqrt(factor)  # the same cut of the same network fails again
        share = best * factor if best * factor > least * (1 + 1e-9) else least  # no last trial for a rounding error
        if factor > _LAST_FACTOR or share >= best:
            return None
        return Proposal(share=share, from_best=best < 1.0)


@dataclass(frozen=True, slots=True)
class Dapr:
    """
    Binary search from one half: remove more after a success, less after a failure, rounded up to 5 %, six trials.

    Source: arXiv 2006.08554's code. Differs from it in: what was tried is not tried again, and success is told on
    validation samples.
    """

    def propose(self, trials: Sequence[Trial]) -> Proposal | None:
        """See `Strategy.propose`."""
        low, high, tried = 0.0, 1.0, set[int]()  # removed shares: works, does not
        for trial in trials:
            removed = 1 - trial.share
            tried.add(round(removed / _DAPR_GRAIN))
            low, high = (max(low, removed), high) if trial.is_success else (low, min(high, removed))
        step = math.ceil((low + high) / 2 / _DAPR_GRAIN - 1e-9)
        if len(trials) >= _DAPR_TRIALS or step in tried or step * _DAPR_GRAIN >= 1:
            return None
        return Proposal(share=1 - step * _DAPR_GRAIN, from_best=False)


def is_hopeless(scores: Sequence[float], wanted: float, epochs_left: int) -> bool:
    """
    Whether a trial can be given up: at the pace of its best epoch-to-epoch gain of late it will not get there.

    Args:
        scores: validation accuracy after each epoch so far, 0..1.
        wanted: what it has to reach.
        epochs_left: of the trial.
    """
    if len(scores) < 2 or max(scores) >= wanted:
        return False
    gain = max(scores) - max(scores[:-2], default=scores[0]) if len(scores) > 2 else scores[-1] - scores[0]
    pace = max(gain / min(2, len(scores) - 1), 0.0)
    return max(scores) + pace * epochs_left < wanted
