"""
Does the board see something else than it did? The served model's confidences, in the order of the images -> an alarm.

The first answers of a version, `warm_up` of them, are the reference. After them every full window of answers is compared with
it once, by the two-sample Kolmogorov-Smirnov test: so many false alarms in a thousand windows as the policy allows, however
long the stream is, and whatever the confidences are distributed like. Windows that are like the reference join it until it is
three times as long: a board whose first images are odd by chance would have ten times its share of false alarms else (10 of
100 windows seen). Near-twins would count as a shift of their own, so of
every group only the first image takes part. After an alarm nobody looks for the length of the cool-down; the alarm stands
until a later window is like the reference again, or another version is served.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

_TERMS = 100
_GROWTH = 3  # times the warm-up that the reference is in the end; longer ones would hide a slow change
_DIGITS = 4  # of a confidence: all of it is written at every look


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftPolicy:
    """How confidences are compared."""

    warm_up: int = 200  # images of a version's beginning that later ones are compared with
    window: int = 100  # images that are compared at once
    cool_down: int = 500  # images after an alarm that are not
    false_alarms: float = 0.001  # of the windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """A window that is not like the reference."""

    since: int  # the first sample of the window
    distance: float  # Kolmogorov-Smirnov's, 0..1
    before: float  # mean confidence of the reference
    now: float  # of the window

    @property
    def reason(self) -> str:
        """For the operator."""
        change = "surer" if self.now > self.before else "less sure"
        return (
            f"the images have changed: the served model is {change} of them than at its beginning"
            f" (mean confidence {self.before:.2f} -> {self.now:.2f})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What the watch remembers of a version's answers."""

    reference: tuple[float, ...] = ()
    window: tuple[tuple[int, float], ...] = ()  # (sample, confidence)
    skip: int = 0  # images of the cool-down that are still to come
    shift: Shift | None = None  # the alarm that stands


def after(watched: Watched, sample: int, confidence: float, policy: DriftPolicy) -> Watched:
    """
    Take one more answer into account.

    Args:
        watched: what was seen up to here.
        sample: the first of its group.
        confidence: probability of the version's best class for it, the same temperature for all of a version.
        policy: the operator's numbers; changed ones count from the next window on.
    """
    confidence = round(confidence, _DIGITS)
    if len(watched.reference) < policy.warm_up:
        return replace(watched, reference=(*watched.reference, confidence))
    if watched.skip:
        return replace(watched, skip=watched.skip - 1)
    window = (*watched.window, (sample, confidence))
    if len(window) < policy.window:
        return replace(watched, window=window)
    seen = [value for _, value in window]
    distance, chance = compare(watched.reference, seen)
    if chance > policy.false_alarms:
        grown = () if len(watched.reference) >= _GROWTH * policy.warm_up else tuple(seen)
        return replace(watched, reference=watched.reference + grown, window=(), shift=None)
    shift = Shift(
        since=window[0][0],
        distance=distance,
        before=sum(watched.reference) / len(watched.reference),
        now=sum(seen) / len(seen),
    )
    return replace(watched, window=(), skip=policy.cool_down, shift=shift)


def compare(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """
    The two-sample Kolmogorov-Smirnov test.

    Returns:
        The largest distance between the two distribution functions, and the chance of one as large when both are drawn
        from the same distribution: the asymptotic series with Stephens' correction for few samples (1970), which ties
        make smaller than it says.
    """
    distance, seen, total = 0.0, [0, 0], (len(one), len(other))
    merged = sorted([(value, 0) for value in one] + [(value, 1) for value in other])
    for i, (value, side) in enumerate(merged):
        seen[side] += 1
        if i + 1 == len(merged) or merged[i + 1][0] != value:
            distance = max(distance, abs(seen[0] / total[0] - seen[1] / total[1]))
    root = math.sqrt(total[0] * total[1] / sum(total))
    scaled = (root + 0.12 + 0.11 / root) * distance
    if scaled < 0.2:  # the series does not converge there, and its limit is 1
        return distance, 1.0
    series = sum((-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, _TERMS))
    return distance, min(1.0, max(0.0, 2 * series))
