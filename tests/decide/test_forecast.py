"""Does a round fit, and how is it run: the ways are numbers here, no network is needed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.decide.forecast import (
    LEAST_OTHER_MIB,
    SHARES,
    Allowance,
    choose,
    choose_shorter,
    cut_of,
    errors,
    excess,
    in_parts,
    largest,
    paced,
    shares_of,
    spread,
    times,
    total,
    why_not_loaded,
)
from edgetune.types import Forecast, Interval, Workload


def about(likely: float, by: float = 1.2) -> Interval:
    """An interval around a number."""
    return Interval(low=likely / by, likely=likely, high=likely * by)


def way(mib: float = 400, seconds: float = 60, joules: float | None = None, **changes: object) -> Forecast:
    """A way to run a round."""
    fields: dict[str, object] = {
        "peak_mib": about(mib), "step_s": about(0.1), "duration_s": about(seconds),
        "energy_j": None if joules is None else about(joules), "batch_size": 64, "accumulation": 1, "threads": 2,
        "update": "full", "fits": False, "reason": "", "calibrated_on": 0,
    }  # fmt: skip
    return Forecast(**{**fields, **changes})  # type: ignore[arg-type]


def test_where_all_of_the_training_takes_too_long_as_much_of_it_as_fits_is_done() -> None:
    """With the number that did not fit; what no share helps is refused for what all of it would take."""

    def ways(share: float) -> list[Forecast]:
        asked.append(share)
        return [way(seconds=share * 100), way(mib=300, seconds=share * 130)]

    asked: list[float] = []
    assert choose_shorter(ways, Allowance(duration_s=100)).training == 1.0
    found = choose_shorter(ways, Allowance(duration_s=60))
    assert (found.fits, found.training) == (True, 0.5)
    assert "50% of the epochs" in found.reason
    assert "1.67min of 1min (budgets.round_time_max)" in found.reason, "of the best way, not of the last that was tried"
    refused = choose_shorter(ways, Allowance(duration_s=20))
    assert (refused.fits, refused.training) == (False, 1.0)
    asked.clear()
    assert not choose_shorter(ways, Allowance(peak_mib=100, duration_s=60)).fits
    assert set(asked) == {1.0}, "less training takes no less memory"


@pytest.mark.parametrize(("steps", "shares"), [(100, [1.0, 0.75, 0.5]), (10, [1.0]), (1000, list(SHARES))])
def test_no_round_trains_for_less_than_an_epoch(steps: int, shares: list[float]) -> None:
    """Of fifty steps."""
    assert shares_of(steps, 50) == shares


def test_work_is_paced_as_the_last_rounds_were() -> None:
    """The slower of two; a faster pace of now counts, a slower one does not. The ends hold the fastest and the slowest."""
    worked = Interval(low=80.0, likely=100.0, high=120.0)
    assert paced(worked, 0.5, ()) == Interval(low=160.0, likely=200.0, high=240.0)
    assert paced(worked, 0.1, (0.2, 0.8, 0.5)) == Interval(low=100.0, likely=200.0, high=1200.0)
    assert paced(worked, 1.0, (0.1, 0.1)).likely == 100.0, "the budgets allow more by now"


def test_without_budgets_everything_fits() -> None:
    """And nothing is said about it."""
    found = choose([way(mib=1e9, seconds=1e9, joules=1e9)], Allowance())
    assert (found.fits, found.reason) == (True, "")


@pytest.mark.parametrize(
    ("allowed", "words"),
    [
        (Allowance(peak_mib=450), "up to 480 MiB of 450 (budgets.trainer_memory_max)"),
        (Allowance(available_mib=-20), "up to 480 MiB of 0 (budgets.memory_available_min)"),
        (Allowance(duration_s=30), "1min of 30s (budgets.round_time_max)"),
        (Allowance(energy_j=1800), "1Wh of 0.5Wh (budgets.round_energy_max)"),
    ],
)
def test_a_refusal_names_the_number_and_the_budget(allowed: Allowance, words: str) -> None:
    """Memory by the upper end, time and energy by what is likely."""
    found = choose([way(joules=3600)], allowed)
    assert not found.fits
    assert words in found.reason


def test_memory_is_judged_by_its_upper_end_and_time_is_not() -> None:
    """440 MiB are likely to be enough, and not sure; 60 s are likely, and a round that takes longer is stopped."""
    assert excess(way(), Allowance(peak_mib=440)) != ""
    assert excess(way(), Allowance(peak_mib=480)) == ""
    assert excess(way(), Allowance(duration_s=60)) == ""


def test_what_a_teachers_process_holds_counts_with_the_round() -> None:
    """As the daemon's readings count it."""
    assert choose([way()], Allowance(peak_mib=500)).fits
    found = choose([way(beside_mib=50.0)], Allowance(peak_mib=500))
    assert not found.fits
    assert "up to 530 MiB of 500 (budgets.trainer_memory_max), 50 of them the teacher's" in found.reason
    assert choose([way(beside_mib=50.0)], Allowance(available_mib=500)).fits, (
        "what is available is so beside the teacher"
    )


def test_the_first_way_that_fits_is_taken_and_says_why_it_is_not_the_first() -> None:
    """With the wish's figures, and no way after it is looked at."""

    def ways() -> Iterator[Forecast]:
        yield way(mib=900)
        yield way(mib=600, batch_size=32, accumulation=2)
        yield way(mib=300, batch_size=16, accumulation=4)
        raise AssertionError("one way too many was looked at")

    found = choose(ways(), Allowance(peak_mib=500))
    assert (found.fits, found.batch_size, found.accumulation) == (True, 16, 4)
    assert found.reason == (
        "all layers, 4 batches of 16 images a step, because with all layers, 64 images a step it would take up to 1080 MiB of"
        " 500 (budgets.trainer_memory_max)"
    )


def test_an_energy_that_is_not_known_refuses_nothing() -> None:
    """The first round on a board measures it; the governor still stops it."""
    assert choose([way()], Allowance(energy_j=1.0)).fits


def test_what_cannot_be_loaded_is_named_with_its_number() -> None:
    """The libraries, the images and a model's first pass; without a budget all can."""
    assert why_not_loaded(200.0, None) == ""
    assert why_not_loaded(200.0, 200.0 + LEAST_OTHER_MIB) == ""
    words = why_not_loaded(200.0, 210.0 + LEAST_OTHER_MIB, loaded_mib=30.0)
    assert (
        words
        == f"any round takes at least {230 + LEAST_OTHER_MIB:.0f} MiB of 250 (budgets.trainer_memory_max), 200 of them Python's and torch's"
    )


@given(st.floats(1, 1e6), st.floats(1, 1e6), st.floats(1, 1e6), st.floats(1, 1e6))
def test_a_lower_budget_never_fits_more(mib: float, seconds: float, one: float, other: float) -> None:
    """Whatever the figures."""
    low, high = sorted((one, other))
    tight, roomy = (choose([way(mib, seconds)], Allowance(peak_mib=most, duration_s=most)) for most in (low, high))
    assert roomy.fits or not tight.fits


def test_intervals_add_multiply_and_compare_by_their_ends() -> None:
    """Parts of one forecast are wrong in the same direction."""
    one, two = Interval(low=1, likely=2, high=4), Interval(low=0, likely=3, high=3.5)
    assert total([one, two]) == Interval(low=1, likely=5, high=7.5)
    assert times(one, 10) == Interval(low=10, likely=20, high=40)
    assert times(one, two) == Interval(low=0, likely=6, high=14)
    assert largest([one, two]) == Interval(low=1, likely=3, high=4)


def test_what_was_seen_replaces_the_prior() -> None:
    """Its median, and its range or a tenth."""
    prior = about(100.0)
    assert spread([], prior) == prior
    assert spread([10.0], prior) == Interval(low=9.0, likely=10.0, high=11.0)
    assert spread([8.0, 10.0, 30.0], prior) == Interval(low=8.0, likely=10.0, high=30.0)


def workload(weights: float, macs: float, kept: float) -> Workload:
    """Of a network."""
    return Workload(
        kept_mib=kept, largest_mib=1.0, mega_macs=macs / 2, grouped_mega_macs=macs / 2, layers=3, mega_weights=weights
    )


def test_a_cut_is_told_as_powers_of_the_share_of_weights_that_it_left() -> None:
    """A quarter of the weights, half of the operations, all activations: powers of a half and of nothing."""
    cut = cut_of([workload(4.0, 8.0, 2.0), workload(1.0, 4.0, 2.0)])
    assert cut is not None
    assert (cut.macs, cut.kept) == (pytest.approx(0.5), pytest.approx(0.0))


@pytest.mark.parametrize(
    "phases",
    [
        [workload(4.0, 8.0, 2.0)],
        [workload(4.0, 8.0, 2.0)] * 2,
        [workload(4.0, 8.0, 2.0), workload(1.0, 8.0, 2.0)],
        [workload(4.0, 8.0, 2.0), workload(5.0, 4.0, 2.0)],
        [workload(4.0, 8.0, 2.0), workload(3.9, 4.0, 2.0)],
        [workload(0.0, 8.0, 2.0), workload(0.0, 4.0, 2.0)],
        [],
    ],
)
def test_where_nothing_was_cut_there_is_nothing_to_tell(phases: list[Workload]) -> None:
    """One phase, two of the same network, a grown head, hardly a weight less, none at all: no division by nothing."""
    assert cut_of(phases) is None


def test_the_powers_of_an_odd_cut_stay_within_reason() -> None:
    """Nine tenths of the weights and a tenth of the work: as a power of a small share it would forecast nothing at all."""
    cut = cut_of([workload(10.0, 100.0, 10.0), workload(9.0, 10.0, 1.0)])
    assert cut is not None
    assert (cut.macs, cut.kept) == (2.0, 2.0)


def test_a_step_in_parts_takes_longer_than_its_parts() -> None:
    """Memory is given back between them; a whole step is one."""
    assert in_parts(1) == 1.0
    assert in_parts(4) > 4.0


def test_errors_are_of_what_both_have() -> None:
    """A positive one: it took more than was said."""
    found = errors(way(mib=400, seconds=60), {"peak_mib": 420.0, "duration_s": 54.0, "energy_j": 10.0, "step_s": None})
    assert found == {"peak_mib": 0.05, "duration_s": -0.1}
