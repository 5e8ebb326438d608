"""Probation."""

from __future__ import annotations

from edgetune.decide.probation import Observed, ProbationKind, ProbationPolicy, judge

POLICY = ProbationPolicy(duration_s=3600, feedback_min=20)
GOOD = Observed(feedback=100, feedback_correct=90, predictions=1000, mean_confidence=0.9, timed=1000, p50_ms=5.0)


def test_a_version_as_good_as_its_fallback_passes_after_its_time() -> None:
    """And waits before."""
    assert judge(GOOD, GOOD, POLICY, for_s=10).kind is ProbationKind.WAIT
    assert judge(GOOD, GOOD, POLICY, for_s=3600).kind is ProbationKind.PASSED


def test_each_degradation_is_named() -> None:
    """Feedback, confidence, latency."""
    worse = {
        "labelled feedback": Observed(feedback=100, feedback_correct=60),
        "mean confidence": Observed(predictions=1000, mean_confidence=0.6),
        "median latency": Observed(timed=1000, p50_ms=11.0),
    }
    for word, observed in worse.items():
        verdict = judge(observed, GOOD, POLICY, for_s=10)
        assert verdict.kind is ProbationKind.ROLL_BACK
        assert word in verdict.reason


def test_a_few_observations_or_a_fall_within_chance_roll_nothing_back() -> None:
    """Nineteen wrong answers are too few; 17 of 20 against 19 of 20 is chance."""
    assert judge(Observed(feedback=19, feedback_correct=0), GOOD, POLICY, for_s=10).kind is ProbationKind.WAIT
    pair = Observed(feedback=20, feedback_correct=17), Observed(feedback=20, feedback_correct=19)
    assert judge(*pair, POLICY, for_s=10).kind is ProbationKind.WAIT


def test_an_unused_version_is_not_compared() -> None:
    """No predictions, no verdict but the clock's."""
    assert judge(Observed(), GOOD, POLICY, for_s=10).kind is ProbationKind.WAIT
