"""
How often is the served model right on what the board sees now, when nobody labels it? Answers with and without labels -> that.

Its confidence is calibrated on answers to validation and hold-out samples that people have labelled: one temperature, by
maximum likelihood (Guo et al. 2017, arXiv 1706.04599, section 4.2). On the same samples a threshold is found below which
as many answers lie as are wrong; the estimate is the share of recent unlabelled answers above it (average thresholded
confidence, Garg et al. 2022, arXiv 2201.04234). Without a shift it is right whatever the calibration is worth. Under one it
errs: mostly it says too much, though less so than the mean confidence does (docs/benchmarks.md has by how much), and too
little where the model becomes unsure and stays right. The error bar is that of the samples, not of this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

LABELLED_MIN = 50  # answers to labelled samples below which nothing is estimated
WINDOW_MIN = 50  # answers to unlabelled ones
GROUPS_MIN = 10  # of either: near-twins are one observation, and the error of a few cannot be told
_SHARPNESS = (
    0.05,
    20.0,
)  # the calibrated range; an inverse temperature beyond it says that there was no error, or no sense
_STEPS_MAX = 60
_EXACT = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The served version's answer to one sample."""

    logits: tuple[float, ...]  # finite
    group: str  # near-twins share it
    truth: int | None = None  # index of the class that people say; None: nobody does, or the version has no such class


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The accuracy on recent unlabelled images, without their labels."""

    accuracy: float
    error: float  # half of the 95 % interval, of both samplings
    labelled_accuracy: float  # on the labelled samples that it was calibrated on
    labelled: int
    unlabelled: int
    temperature: float

    def is_below(self, drop: float) -> bool:
        """Whether it lies below the accuracy on labelled samples by more than `drop`, error bar and all."""
        return self.accuracy + self.error < self.labelled_accuracy - drop


@dataclass(frozen=True, slots=True)
class Unknown:
    """Why there is no estimate."""

    why: str


def probabilities(logits: Sequence[float], sharpness: float = 1.0) -> list[float]:
    """The softmax of the logits times the sharpness."""
    top = max(logits)
    weights = [math.exp(sharpness * (logit - top)) for logit in logits]
    total = sum(weights)
    return [weight / total for weight in weights]


def calibrate(answers: Sequence[Answered]) -> float:
    """
    The inverse temperature that makes the truth of labelled answers likeliest; those without a truth are passed over.

    Newton's method on the negative log-likelihood, which is convex in it, held inside a shrinking bracket.

    Cost: classes x answers exponentials a step, some ten steps.
    """
    known = [(answer.logits, answer.logits[answer.truth]) for answer in answers if answer.truth is not None]
    low, high = _SHARPNESS
    sharpness = 1.0
    for _ in range(_STEPS_MAX if known else 0):
        slope, curvature = _derivatives(known, sharpness)
        low, high = (low, sharpness) if slope > 0 else (sharpness, high)
        wanted = sharpness - slope / curvature if curvature > 0 else low
        nearer = wanted if low < wanted < high else (low + high) / 2
        if abs(nearer - sharpness) < _EXACT:
            break
        sharpness = nearer
    return sharpness


def _derivatives(known: Sequence[tuple[tuple[float, ...], float]], sharpness: float) -> tuple[float, float]:
    """First and second, by the sharpness, of the negative log-likelihood of (logits, logit of the truth)."""
    slope = curvature = 0.0
    for logits, true in known:
        shares = probabilities(logits, sharpness)
        centre = sum(share * logit for share, logit in zip(shares, logits, strict=True))
        slope += centre - true
        curvature += sum(share * (logit - centre) ** 2 for share, logit in zip(shares, logits, strict=True))
    return slope, curvature


def estimate(unlabelled: Sequence[Answered], labelled: Sequence[Answered], sharpness: float) -> Estimate | Unknown:
    """
    Estimate the accuracy on unlabelled images.

    Args:
        unlabelled: the version's answers to the images that the board saw last.
        labelled: its answers to validation and hold-out samples that people have labelled. One of a class that the
            version does not know (`truth` None) counts as wrong.
        sharpness: calibrated on `labelled`.

    Returns:
        The estimate; its error is by the delta method from the sampling of both, groups counting as one draw each.
    """
    if missing := _missing(unlabelled, "unlabelled", WINDOW_MIN) or _missing(labelled, "labelled", LABELLED_MIN):
        return Unknown(missing)
    now = [max(probabilities(answer.logits, sharpness)) for answer in unlabelled]
    then = [max(probabilities(answer.logits, sharpness)) for answer in labelled]
    wrong = [answer.truth != answer.logits.index(max(answer.logits)) for answer in labelled]
    ranked = [*sorted(then), math.inf]
    threshold = ranked[sum(wrong)]
    below = [sure < threshold for sure in now]
    excess = [float(sure < threshold) - is_wrong for sure, is_wrong in zip(then, wrong, strict=True)]
    slope = _slope(now, ranked, sum(wrong))
    variance = _variance(below, unlabelled) + slope * slope * _variance(excess, labelled)
    return Estimate(
        accuracy=1 - _mean(below),
        error=1.96 * math.sqrt(variance),
        labelled_accuracy=1 - _mean(wrong),
        labelled=len(labelled),
        unlabelled=len(unlabelled),
        temperature=1 / sharpness,
    )


def _slope(now: Sequence[float], ranked: Sequence[float], wrong: int) -> float:
    """By how much the share below the threshold moves when as much more of the labelled answers is wrong."""
    count = len(ranked) - 1
    reach = max(5, count // 20)
    low, high = max(0, wrong - reach), min(count - 1, wrong + reach)
    among_them = 1 + sum(ranked[low] <= sure < ranked[high] for sure in now)
    return (among_them / len(now)) / ((high - low) / count)


def _missing(answers: Sequence[Answered], kind: str, wanted: int) -> str:
    where = "validation and hold-out " if kind == "labelled" else ""
    if len(answers) < wanted:
        return f"{len(answers)} of {wanted} answers to {kind} {where}images"
    groups = len({answer.group for answer in answers})
    return f"the {kind} {where}images are of {groups} scenes, {GROUPS_MIN} are wanted" if groups < GROUPS_MIN else ""


def _variance(values: Sequence[float], answers: Sequence[Answered]) -> float:
    """Of the mean of the values, those of one group not being independent of each other."""
    middle = _mean(values)
    parts = sorted(
        ((answer.group, value - middle) for answer, value in zip(answers, values, strict=True)), key=itemgetter(0)
    )
    sums = [sum(part for _, part in parts_of) for _, parts_of in groupby(parts, key=itemgetter(0))]
    # One surprise more than was seen: none at all in n draws does not mean that there will be none.
    return (len(sums) / (len(sums) - 1) * sum(each * each for each in sums) + 1) / len(values) ** 2


def _mean(values: Sequence[float]) -> float:
    """Of at least one value."""
    return sum(values) / len(values)
