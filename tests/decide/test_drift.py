"""Whether the images have changed: few false alarms for ever, and a change is noticed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.decide.drift import DriftPolicy, Shift, Watched, after, compare

POLICY = DriftPolicy(warm_up=200, window=100, cool_down=500, false_alarms=0.001)


def usual(rng: random.Random) -> float:
    """A confidence of a good model: mostly sure, often as sure as numbers allow."""
    return 1.0 if rng.random() < 0.3 else rng.betavariate(8, 1)


def dull(rng: random.Random) -> float:
    """Behind a blurred lens."""
    return rng.betavariate(4, 2)


def play(stream: Iterable[float], policy: DriftPolicy, watched: Watched | None = None) -> tuple[list[int], Watched]:
    """The images at which an alarm was given, and what is remembered."""
    watched, alarms = watched or Watched(), []
    for sample, confidence in enumerate(stream):
        before = watched.shift
        watched = after(watched, sample, confidence, policy)
        if watched.shift is not None and watched.shift != before:
            alarms.append(sample)
    return alarms, watched


def drawn(of: Callable[[random.Random], float], count: int, seed: int) -> list[float]:
    """A stream of independent images."""
    rng = random.Random(seed)
    return [of(rng) for _ in range(count)]


def test_a_long_stream_without_a_change_gives_as_few_alarms_as_the_policy_allows() -> None:
    """Half a million images and 5,000 windows, with fifty different references: at most 1 in 1,000, give or take."""
    alarms = sum(len(play(drawn(usual, 10_200, seed), replace(POLICY, cool_down=0))[0]) for seed in range(50))
    assert alarms <= 5 + 3 * 5**0.5


def test_the_rate_of_false_alarms_is_the_one_that_was_asked_for() -> None:
    """At one in ten there are enough of them to count; ties make the test err towards fewer."""
    policy = replace(POLICY, false_alarms=0.1, cool_down=0)
    windows = 20 * 100
    rate = sum(len(play(drawn(usual, 10_200, 1000 + seed), policy)[0]) for seed in range(20)) / windows
    assert 0.03 < rate < 0.12


@pytest.mark.parametrize("seed", range(10))
def test_a_change_is_noticed_within_two_windows(seed: int) -> None:
    """And the reason says in which direction, and where it began."""
    began = POLICY.warm_up + 10 * POLICY.window + 37
    alarms, watched = play(drawn(usual, began, seed) + drawn(dull, 300, 100 + seed), POLICY)
    assert len(alarms) == 1
    assert began < alarms[0] <= began + 2 * POLICY.window
    assert watched.shift is not None
    assert watched.shift.since > began - POLICY.window
    assert "the served model is less sure of them than at its beginning" in watched.shift.reason


def test_after_an_alarm_nobody_looks_for_a_while_and_it_passes_when_the_images_are_as_before() -> None:
    """One event a cool-down while the change lasts; none once it is over."""
    before, change = drawn(usual, 200, 1), drawn(dull, 1300, 2)
    alarms, watched = play([*before, *change], POLICY)
    assert alarms == [299, 899, 1499]
    assert watched.shift is not None
    assert watched.skip == POLICY.cool_down
    _, watched = play(drawn(usual, POLICY.cool_down + POLICY.window, 3), POLICY, watched)
    assert watched.shift is None


def test_nothing_is_compared_during_the_warm_up() -> None:
    """However the confidences lie."""
    alarms, watched = play([0.1] * 100 + [1.0] * 100, POLICY)
    assert alarms == []
    assert watched.window == ()


def test_the_reason_says_surer_too() -> None:
    """A lens cap makes some models sure."""
    assert "is surer of them" in Shift(since=1, distance=0.5, before=0.7, now=0.95).reason


def test_the_test_is_kolmogorov_and_smirnovs() -> None:
    """Against another implementation of it."""
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    rng = random.Random(5)
    for of in (usual, dull):
        one, other = [usual(rng) for _ in range(200)], [of(rng) for _ in range(100)]
        theirs = stats.ks_2samp(one, other, method="asymp")
        distance, chance = compare(one, other)
        assert distance == pytest.approx(theirs.statistic)
        assert chance == pytest.approx(theirs.pvalue, rel=0.5, abs=0.02)


VALUES = st.lists(st.floats(0, 1), min_size=5, max_size=40)


@given(one=VALUES, other=VALUES)
def test_the_distance_is_a_distance_and_the_chance_a_chance(one: list[float], other: list[float]) -> None:
    """Symmetric, nothing between equals, at most one."""
    distance, chance = compare(one, other)
    assert 0 <= distance <= 1
    assert 0 <= chance <= 1
    assert compare(other, one) == pytest.approx((distance, chance))
    assert compare(one, one) == (0.0, 1.0)
