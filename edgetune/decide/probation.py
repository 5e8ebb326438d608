"""What was seen since a promotion x what the fallback was like -> keep, roll back (naming the degradation), or wait."""

from __future__ import annotations

import enum
from dataclasses import dataclass

_UNLABELLED_PER_LABELLED = 5  # a figure without labels moves with the scene, so it needs more of them


class ProbationKind(str, enum.Enum):
    """What probation says now."""

    WAIT = "wait"
    PASSED = "passed"
    ROLL_BACK = "roll_back"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbationPolicy:
    """When a promoted version is taken back by itself."""

    duration_s: float = 86400.0
    feedback_min: int = 20
    accuracy_drop_max: float = 0.05
    confidence_drop_max: float = 0.15
    latency_ratio_max: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One version in service."""

    feedback: int = 0  # labelled predictions
    feedback_correct: int = 0
    predictions: int = 0  # kept ones, over all starts of the daemon
    mean_confidence: float | None = None  # probability of the top class, of these
    timed: int = 0  # predictions of one image since the version was loaded
    p50_ms: float | None = None  # of these


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbationVerdict:
    """What to do, and why."""

    kind: ProbationKind
    reason: str = ""


def judge(served: Observed, fallback: Observed, policy: ProbationPolicy, *, for_s: float) -> ProbationVerdict:
    """
    Compare a promoted version with the one it replaced.

    Args:
        served: the version on probation, since its promotion.
        fallback: the version before it, over the same length of time before that.
        policy: the operator's bounds.
        for_s: how long the version has been served, in seconds of up time.

    Returns:
        ROLL_BACK names the first degradation. Feedback is judged from `feedback_min` labels on both sides, confidence
        and latency each from five times as many predictions on both sides.
    """
    for reason in (
        _feedback(served, fallback, policy),
        _confidence(served, fallback, policy),
        _latency(served, fallback, policy),
    ):
        if reason:
            return ProbationVerdict(kind=ProbationKind.ROLL_BACK, reason=reason)
    if for_s >= policy.duration_s:
        return ProbationVerdict(kind=ProbationKind.PASSED, reason="probation over")
    return ProbationVerdict(kind=ProbationKind.WAIT)


def _feedback(served: Observed, fallback: Observed, policy: ProbationPolicy) -> str:
    if min(served.feedback, fallback.feedback) < policy.feedback_min:
        return ""
    before = fallback.feedback_correct / fallback.feedback
    after = served.feedback_correct / served.feedback
    if before - after <= policy.accuracy_drop_max or not _is_significant(served, fallback):
        return ""
    return f"labelled feedback fell from {before:.1%} ({fallback.feedback}) to {after:.1%} ({served.feedback})"


def _confidence(served: Observed, fallback: Observed, policy: ProbationPolicy) -> str:
    before, after = fallback.mean_confidence, served.mean_confidence
    if before is None or after is None:
        return ""
    is_enough = min(served.predictions, fallback.predictions) >= policy.feedback_min * _UNLABELLED_PER_LABELLED
    is_worse = is_enough and before - after > policy.confidence_drop_max
    return f"mean confidence fell from {before:.2f} to {after:.2f}" if is_worse else ""


def _latency(served: Observed, fallback: Observed, policy: ProbationPolicy) -> str:
    before, after = fallback.p50_ms, served.p50_ms
    if before is None or after is None:
        return ""
    is_enough = min(served.timed, fallback.timed) >= policy.feedback_min * _UNLABELLED_PER_LABELLED
    is_worse = is_enough and after > before * policy.latency_ratio_max
    return f"median latency rose from {before:.1f} ms to {after:.1f} ms" if is_worse else ""


def _is_significant(served: Observed, fallback: Observed) -> bool:
    """Two-proportion z test, one-sided at 95 %: different images, so nothing is paired here."""
    n1, n2 = served.feedback, fallback.feedback
    p1, p2 = served.feedback_correct / n1, fallback.feedback_correct / n2
    pooled = (served.feedback_correct + fallback.feedback_correct) / (n1 + n2)
    spread: float = (pooled * (1 - pooled) * (1 / n1 + 1 / n2)) ** 0.5
    return bool(spread > 0 and (p2 - p1) / spread > 1.645)
