"""The rules that propose trials: sequences worked by hand, and what must hold whatever the trials say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.decide.search import Dapr, Proposal, Steps, Strategy, Trial, is_hopeless

SHARES_MAX = 200  # far more than any rule may ask for
LAST_STEP = 0.5 ** (1 / 4)  # 0.841: the smallest step that is tried; the next square root would remove 8 %


def search(strategy: Strategy, is_good: Callable[[float], bool]) -> list[tuple[Proposal, bool]]:
    """Every proposal and what the oracle said, to the end."""
    trials: list[Trial] = []
    made: list[tuple[Proposal, bool]] = []
    while (proposal := strategy.propose(trials)) is not None:
        made.append((proposal, is_good(proposal.share)))
        trials.append(Trial(share=proposal.share, is_success=made[-1][1]))
        assert len(trials) < SHARES_MAX, "it never ends"
    return made


def told_by(answers: str) -> Callable[[float], bool]:
    """An oracle that goes through "+" and "-" whatever is asked; after the last one it fails."""
    left = list(answers)
    return lambda _: bool(left) and left.pop(0) == "+"


def best_of(made: list[tuple[Proposal, bool]]) -> float:
    """The smallest share that worked."""
    return min((proposal.share for proposal, is_good in made if is_good), default=1.0)


R2, R4 = 0.5**0.5, 0.5**0.25  # the steps after one and two failures


@pytest.mark.parametrize(
    ("strategy", "answers", "expected"),
    [
        (Steps(), "---", [(0.5, False), (R2, False), (R4, False)]),
        (
            Steps(floor=0.1),
            "++++++",
            [(0.5, False), (0.25, True), (0.125, True), (0.1, True)],  # the floor itself, and then the end
        ),
        (
            Steps(),
            "+-+--",  # 0.25 fails from the network at 0.5, 0.354 works, and a half step from there is 0.25 again
            [(0.5, False), (0.25, True), (0.5 * R2, True), (0.25, True), (0.5 * R2 * R4, True)],
        ),
        (Steps(target=0.3), "++", [(0.5, False), (0.3, True)]),
        (Steps(target=0.6), "+", [(0.6, False)]),
        (Steps(target=0.6), "-+-", [(0.6, False), (R2, False), (0.6, True)]),  # R2 * R4 is below it
    ],
)
def test_steps_halve_and_take_smaller_steps_after_failures(
    strategy: Steps, answers: str, expected: list[tuple[float, bool]]
) -> None:
    """Sequences worked by hand: share and where each trial starts from."""
    made = search(strategy, told_by(answers))[: len(expected)]
    assert [proposal.from_best for proposal, _ in made] == [from_best for _, from_best in expected]
    assert [proposal.share for proposal, _ in made] == pytest.approx([share for share, _ in expected], rel=1e-12)


def test_what_took_the_whole_retraining_is_the_end() -> None:
    """A success at the limit is the last trial, however much smaller the next step would be."""
    trials = [Trial(share=0.5, is_success=True), Trial(share=0.25, is_success=False)]
    assert Steps().propose(trials) is not None
    assert Steps().propose([*trials, Trial(share=0.35, is_success=True, is_limit=True)]) is None


def test_a_search_in_steps_is_over_when_no_step_is_worth_it() -> None:
    """Three failures in a row leave the network as it is; the square root of 0.841 would remove 8 %."""
    assert len(search(Steps(), lambda _: False)) == 3
    assert len(search(Steps(target=0.3), told_by("++"))) == 2


@pytest.mark.parametrize(
    ("answers", "removed"),
    [
        ("++++++", [50, 75, 90, 95]),  # 87.5 is rounded up to 90; after 95 comes 100, which nothing is left of
        ("------", [50, 25, 15, 10, 5]),  # 12.5 -> 15, 7.5 -> 10; half of 5 is 5 again, which was tried
        ("+-++--", [50, 75, 65, 70]),  # 62.5 -> 65; between 70 and 75 lies nothing
        ("-+-+--", [50, 25, 40, 35]),  # 37.5 -> 40; 32.5 -> 35; 37.5 -> 40 was tried
        ("-++---", [50, 25, 40, 45]),
        ("+---+-", [50, 75, 65, 60, 55]),  # 57.5 -> 60
        ("++--+-", [50, 75, 90, 85, 80]),  # 82.5 -> 85
        ("+--+--", [50, 75, 65, 60]),
    ],
)
def test_dapr_is_the_papers_binary_search(answers: str, removed: list[int]) -> None:
    """50 % first, then halfway towards more or less, rounded up to 5 %, every trial from the unpruned network."""
    made = search(Dapr(), told_by(answers))
    assert [100 * (1 - proposal.share) for proposal, _ in made] == pytest.approx(removed, abs=1e-6)
    assert not any(proposal.from_best for proposal, _ in made)


RULES = st.one_of(
    st.just(Dapr()),
    st.builds(
        Steps,
        target=st.none() | st.floats(0.01, 0.99),
        floor=st.floats(0.005, 0.3),
    ),
)


@given(RULES, st.floats(0.0, 1.0))
def test_the_result_is_within_a_step_of_what_is_possible(strategy: Strategy, threshold: float) -> None:
    """Where every share from the threshold on works: nothing a step smaller than the result would have worked."""
    made = search(strategy, lambda share: share >= threshold)
    best = best_of(made)
    if isinstance(strategy, Dapr):
        assert best - 0.05 < threshold + 1e-9 or best == pytest.approx(0.05)
    else:
        least = max(strategy.floor, strategy.target or 0.0)
        assert best == least or best * LAST_STEP < threshold or least / best > LAST_STEP
        assert best >= least


@given(st.floats(0.03, 0.97), st.floats(0.0, 1.0))
def test_a_target_within_reach_is_reached_exactly_and_ends_the_search(target: float, threshold: float) -> None:
    """No share below it is ever asked for, and after it nothing is."""
    made = search(Steps(target=target), lambda share: share >= threshold)
    assert all(proposal.share >= target for proposal, _ in made)
    if target >= threshold:
        assert best_of(made) == target == made[-1][0].share


@given(RULES, st.randoms(use_true_random=False))
def test_a_search_ends_whatever_the_oracle_says(strategy: Strategy, random: object) -> None:
    """Also where a smaller network works and a larger one does not; shares of successes only fall."""
    made = search(strategy, lambda _: random.random() < 0.6)  # type: ignore[attr-defined]  # a random.Random
    assert len(made) <= (6 if isinstance(strategy, Dapr) else 40)
    assert all(0 < proposal.share < 1 for proposal, _ in made)
    good = [proposal.share for proposal, is_good in made if is_good]
    assert all(later < earlier for earlier, later in pairwise(good))


@given(st.floats(0.005, 0.3), st.randoms(use_true_random=False))
def test_the_number_of_steps_is_bounded(floor: float, random: object) -> None:
    """Four failures at most, and successes that each remove 7 % or more of what is left, down to the floor."""
    made = search(Steps(floor=floor), lambda _: random.random() < 0.8)  # type: ignore[attr-defined]
    assert sum(not is_good for _, is_good in made) <= 4
    assert len(made) <= 4 + math.ceil(math.log(floor) / math.log(0.93)) + 1


@given(RULES, st.randoms(use_true_random=False))
def test_no_trial_is_made_twice(strategy: Strategy, random: object) -> None:
    """The same share cut from the same network would give the same network: it is never asked for again."""
    made = search(strategy, lambda _: random.random() < 0.5)  # type: ignore[attr-defined]
    start, seen = 1.0, set[tuple[float, float]]()
    for proposal, is_good in made:
        trial = (start if proposal.from_best else 1.0, round(proposal.share, 9))
        assert trial not in seen
        seen.add(trial)
        start = min(start, proposal.share) if is_good else start


@pytest.mark.parametrize("target", [0.75, 0.8, 0.9])
def test_a_target_that_fails_is_not_tried_again_from_the_same_network(target: float) -> None:
    """A target less than a first step away: after its failure something between it and the whole network is tried."""
    shares = [proposal.share for proposal, _ in search(Steps(target=target), lambda _: False)]
    assert shares[0] == target
    assert all(share > target for share in shares[1:])


@given(RULES, st.randoms(use_true_random=False))
def test_a_search_goes_on_from_the_list_of_its_trials(strategy: Strategy, random: object) -> None:
    """From any prefix, written to a file and read back, the next proposal is the one that was made."""
    made = search(strategy, lambda _: random.random() < 0.5)  # type: ignore[attr-defined]
    trials = [Trial(share=proposal.share, is_success=is_good) for proposal, is_good in made]
    for count, (proposal, _) in enumerate(made):
        plain = json.loads(json.dumps([[trial.share, trial.is_success] for trial in trials[:count]]))
        again = [Trial(share=share, is_success=is_success) for share, is_success in plain]
        assert strategy.propose(again) == proposal
    assert strategy.propose(trials) is None


@pytest.mark.parametrize(
    ("scores", "wanted", "epochs_left", "is_over"),
    [
        ([], 0.9, 4, False),  # nothing is known
        ([0.1], 0.9, 4, False),  # one epoch has no pace
        ([0.5, 0.6], 0.9, 4, False),  # 0.1 an epoch: 1.0
        ([0.5, 0.6], 0.9, 2, True),  # 0.8
        ([0.5, 0.6], 0.8, 2, False),  # 0.8 is enough
        ([0.5, 0.6], 0.9, 0, True),  # no epoch left
        ([0.7, 0.7], 0.9, 100, True),  # flat: no pace at all
        ([0.7, 0.7, 0.7], 0.7001, 100, True),
        ([0.8, 0.6, 0.4], 0.9, 100, True),  # falling
        ([0.9, 0.1], 0.9, 0, False),  # was there already
        ([0.2, 0.4, 0.6], 0.9, 2, False),  # 0.2 an epoch: 1.0
        ([0.2, 0.4, 0.6], 0.9, 1, True),  # 0.8
        ([0.1, 0.6, 0.7, 0.7], 0.9, 3, True),  # of late 0.05 an epoch, whatever it was at first: 0.85
        ([0.1, 0.6, 0.7, 0.7], 0.9, 4, False),  # 0.9, on the line
        ([0.6, 0.3, 0.65], 0.7, 2, False),  # a fall between is forgiven
    ],
)
def test_a_trial_is_given_up_when_its_pace_cannot_reach_what_is_wanted(
    scores: list[float], wanted: float, epochs_left: int, is_over: bool
) -> None:
    """Rising fast enough goes on; too slow, flat and falling do not."""
    assert is_hopeless(scores, wanted + (-1e-9 if not is_over else 0), epochs_left) is is_over
    assert not is_hopeless([0.25, 0.5], 1.0, 2), "exactly there, without rounding"


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0, 1), st.integers(0, 20))
def test_more_epochs_and_a_lower_mark_never_make_a_trial_hopeless(
    scores: list[float], wanted: float, epochs_left: int
) -> None:
    """The verdict is monotone in both."""
    if not is_hopeless(scores, wanted, epochs_left):
        assert not is_hopeless(scores, wanted, epochs_left + 1)
        assert not is_hopeless(scores, wanted - 0.1, epochs_left)
