"""The gate."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from edgetune.decide.gate import chance_of_drop, chance_of_pairs, has_lost_accuracy, judge, largest_plausible_drop
from edgetune.types import AbsentClasses, ClassScore, Comparison, Cost, GatePolicy, Latency, Metrics

POLICY = GatePolicy()


def metrics(loss: float = 0.5, **correct: tuple[int, int]) -> Metrics:
    """Per class (correct, count)."""
    return Metrics(
        count=sum(n for _, n in correct.values()),
        correct=sum(c for c, _ in correct.values()),
        loss=loss,
        per_class={label: ClassScore(correct=c, count=n) for label, (c, n) in correct.items()},
    )


def compare(base: Metrics, candidate: Metrics, **changes: object) -> Comparison:
    """A candidate half the size and time of the base, and no more disagreement than the figures need."""
    gained = max(0, candidate.correct - base.correct)
    lost = max(0, base.correct - candidate.correct)
    fields = {
        "base": base,
        "candidate": candidate,
        "only_base_correct": lost,
        "only_candidate_correct": gained,
        "base_latency": Latency(median_ms=10, p90_ms=11, runs=50, threads=2),
        "candidate_latency": Latency(median_ms=5, p90_ms=6, runs=50, threads=2),
        "base_cost": Cost(parameters=1000, macs=1000, onnx_bytes=4000),
        "candidate_cost": Cost(parameters=500, macs=500, onnx_bytes=2000),
    }
    return Comparison(**{**fields, **changes})  # type: ignore[arg-type]


BASE = metrics(cat=(80, 100), dog=(80, 100))


def test_smaller_and_as_good_is_promoted_with_what_was_gained() -> None:
    """The reasons name the gains."""
    decision = judge(compare(BASE, BASE), POLICY)
    assert decision.is_promoted
    assert any("latency" in reason for reason in decision.reasons)
    assert any("parameters" in reason for reason in decision.reasons)


def test_a_loss_of_accuracy_is_refused_with_both_figures() -> None:
    """80.0 % to 75.0 % is more than a point."""
    decision = judge(compare(BASE, metrics(cat=(75, 100), dog=(75, 100))), POLICY)
    assert not decision.is_promoted
    assert "80.0%" in decision.reasons[0]
    assert "75.0%" in decision.reasons[0]


def test_one_class_cannot_pay_for_another() -> None:
    """The same accuracy overall, but the dogs are lost."""
    decision = judge(
        compare(BASE, metrics(cat=(98, 100), dog=(62, 100)), only_base_correct=18, only_candidate_correct=18), POLICY
    )
    assert not decision.is_promoted
    assert any("'dog'" in reason for reason in decision.reasons)


def test_a_new_class_cannot_pay_for_the_old_ones() -> None:
    """Fifty right answers of a class the base never knew do not hide twelve lost ones."""
    base = metrics(cat=(80, 100), dog=(80, 100), owl=(0, 50))
    candidate = metrics(cat=(74, 100), dog=(74, 100), owl=(50, 50))
    decision = judge(
        compare(base, candidate, new_classes=("owl",), only_base_correct=12, only_candidate_correct=50), POLICY
    )
    assert not decision.is_promoted
    assert "accuracy falls" in decision.reasons[0]


SAME_COST = {
    "candidate_latency": Latency(median_ms=10, p90_ms=11, runs=50, threads=2),
    "candidate_cost": Cost(parameters=1000, macs=1000, onnx_bytes=4000),
}


def test_where_no_old_sample_is_left_the_new_classes_decide() -> None:
    """They are as many as a hold-out has to have; what became of the old ones is told as unknown, one of them is too few."""
    base, candidate = metrics(owl=(0, 60)), metrics(owl=(51, 60))
    decision = judge(compare(base, candidate, new_classes=("owl",), **SAME_COST), POLICY)
    assert decision.is_promoted
    assert any("'owl', and is right on 51 of its 60" in reason for reason in decision.reasons)
    assert decision.warnings == ("no hold-out sample is of a class that was known: only the new ones were judged",)
    guess = judge(compare(base, metrics(owl=(29, 60)), new_classes=("owl",), **SAME_COST), POLICY)
    assert guess.reasons == (
        "is right on 29 of 60 hold-out samples, all of new classes, which alone can speak for it; needed are 50%",
    )
    few = compare(metrics(owl=(0, 49)), metrics(owl=(49, 49)), new_classes=("owl",), **SAME_COST)
    assert judge(few, POLICY).reasons == ("hold-out too small: 49 of 50 samples",)
    trickle = compare(metrics(cat=(1, 1), owl=(0, 60)), metrics(cat=(1, 1), owl=(60, 60)), new_classes=("owl",))
    assert judge(trickle, POLICY).reasons == ("hold-out too small: 1 of 50 samples of classes that were known",)
    absent = AbsentClasses(classes=10, count=100, base_correct=80, candidate_correct=20)
    lost = compare(base, candidate, new_classes=("owl",), absent=absent)
    assert judge(lost, POLICY).is_promoted, "told, not judged"
    assert not judge(lost, replace(POLICY, absent_drop_max=0.2)).is_promoted


def test_an_output_that_is_never_right_is_no_gain() -> None:
    """An imprinted row that answers nothing leaves the served version as it was."""
    before = metrics(cat=(80, 100), owl=(0, 20))
    silent = judge(compare(before, before, new_classes=("owl",), **SAME_COST), POLICY)
    assert not silent.is_promoted
    assert "nothing is gained" in silent.reasons[0]
    smaller = judge(compare(before, before, new_classes=("owl",)), POLICY)
    assert smaller.is_promoted
    assert smaller.warnings == ("has an output for 'owl' that is right on none of its 20 hold-out samples",)
    heard = judge(compare(before, metrics(cat=(80, 100), owl=(1, 20)), new_classes=("owl",), **SAME_COST), POLICY)
    assert heard.is_promoted
    unjudged = judge(compare(BASE, BASE, new_classes=("owl",), **SAME_COST), POLICY)
    assert unjudged.reasons == ("knows 'owl'",), "no hold-out sample says anything of it"


def test_a_class_named_as_protected_is_judged_by_what_there_is() -> None:
    """Four samples are too few for any other; where all are protected without a name, one sample cannot stop rounds."""
    base, candidate = metrics(cat=(80, 100), dog=(4, 4)), metrics(cat=(84, 100), dog=(3, 4))
    named = replace(POLICY, protected_drop_max=0.02, protected_classes=("dog",))
    decision = judge(compare(base, candidate), named)
    assert decision.reasons == ("protected class 'dog' falls from 4 to 3 of 4, allowed is a drop of 2 pp",)
    for other in (POLICY, replace(POLICY, protected_drop_max=0.02)):
        unjudged = judge(compare(base, candidate), other)
        assert unjudged.is_promoted
        assert "too few to judge it" in unjudged.warnings[0]


def test_a_class_that_the_candidate_no_longer_has_is_told() -> None:
    """Nobody could bring it back, and nobody should find out by chance."""
    decision = judge(compare(BASE, BASE, gone_classes=("owl",)), POLICY)
    assert decision.is_promoted
    words = "no longer knows 'owl': no training sample of it is left, and the factory model does not know it"
    assert decision.warnings == (words,)
    protected = judge(
        compare(BASE, BASE, gone_classes=("owl",)),
        replace(POLICY, protected_drop_max=0.02, protected_classes=("owl",)),
    )
    assert (protected.is_promoted, protected.reasons, protected.warnings) == (False, (words,), ())


def test_too_few_samples_promote_nothing() -> None:
    """The figure and the need are both named."""
    small = metrics(cat=(10, 12), dog=(10, 12))
    decision = judge(compare(small, small), POLICY)
    assert decision.reasons == ("hold-out too small: 24 of 50 samples",)


def test_disagreement_that_could_hide_a_loss_asks_for_more_samples() -> None:
    """Equal accuracy on 60 samples with 20 disagreements says little; on 6000 with 200 it says enough."""
    few = metrics(cat=(48, 60))
    decision = judge(compare(few, few, only_base_correct=10, only_candidate_correct=10), POLICY)
    assert "cannot be ruled out" in decision.reasons[0]
    many = metrics(cat=(4800, 6000))
    assert judge(compare(many, many, only_base_correct=100, only_candidate_correct=100), POLICY).is_promoted


def test_slower_on_this_board_is_refused_however_small() -> None:
    """Fewer filters are often not faster."""
    slow = Latency(median_ms=13, p90_ms=14, runs=50, threads=2)
    assert "slower on this board" in judge(compare(BASE, BASE, candidate_latency=slow), POLICY).reasons[0]


def test_what_turns_say_counts_where_the_clocks_medians_disagree() -> None:
    """On a busy board either of two medians may be that of a slow stretch."""
    unlucky = Latency(median_ms=13, p90_ms=40, runs=50, threads=2, ratio=0.7)
    decision = judge(compare(BASE, BASE, candidate_latency=unlucky), POLICY)
    assert decision.is_promoted
    assert "latency 10.00 ms to 13.00 ms, 0.70x in turn" in decision.reasons
    lucky = Latency(median_ms=7, p90_ms=8, runs=50, threads=2, ratio=1.2)
    assert "1.20x in turn" in judge(compare(BASE, BASE, candidate_latency=lucky), POLICY).reasons[0]


def timed(ratio: float, low: float, high: float) -> Latency:
    """A latency beside a base of 10 ms: the median over turns, and the quartiles."""
    return Latency(
        median_ms=10 * ratio, p90_ms=11 * ratio, runs=50, threads=2, ratio=ratio, ratio_quartiles=(low, high)
    )


def test_slower_is_what_three_turns_of_four_say() -> None:
    """Two equal networks differ by chance; a real slowing down of 3 % is refused where the board is quiet enough to tell."""
    noisy = judge(compare(BASE, BASE, candidate_latency=timed(1.08, 0.97, 1.25)), POLICY)
    assert noisy.is_promoted
    assert not any("latency" in reason for reason in noisy.reasons)
    (reason,) = judge(compare(BASE, BASE, candidate_latency=timed(1.03, 1.01, 1.05)), POLICY).reasons
    assert reason == (
        "slower on this board: 10.00 ms to 10.30 ms, 1.03x in turn (half of the turns 1.01 to 1.05x), allowed is 1.00x"
    )
    lenient = replace(POLICY, latency_ratio_max=1.1)
    assert judge(compare(BASE, BASE, candidate_latency=timed(1.03, 1.01, 1.05)), lenient).is_promoted
    assert not judge(compare(BASE, BASE, candidate_latency=timed(1.2, 1.11, 1.3)), lenient).is_promoted


@pytest.mark.parametrize(("undisturbed", "is_promoted"), [(1.04, True), (1.07, False), (None, True)])
def test_slower_is_also_what_the_median_and_the_undisturbed_runs_say(
    undisturbed: float | None, is_promoted: bool
) -> None:
    """Where a busy board spreads the turns; either of them alone may be chance."""
    spread = replace(timed(1.08, 0.97, 1.25), undisturbed_ratio=undisturbed)
    assert judge(compare(BASE, BASE, candidate_latency=spread), POLICY).is_promoted is is_promoted
    even = replace(timed(1.02, 0.9, 1.2), undisturbed_ratio=1.2)
    assert judge(compare(BASE, BASE, candidate_latency=even), POLICY).is_promoted


def test_faster_is_what_three_turns_of_four_say() -> None:
    """A median below the bound alone may be chance, and a swap for it is not worth while."""
    same = {"candidate_cost": Cost(parameters=1000, macs=1000, onnx_bytes=4000)}
    by_chance = judge(compare(BASE, BASE, candidate_latency=timed(0.93, 0.8, 1.02), **same), POLICY)
    assert by_chance.reasons[0].startswith("nothing is gained")
    faster = judge(compare(BASE, BASE, candidate_latency=timed(0.93, 0.9, 0.97), **same), POLICY)
    assert faster.reasons == ("latency 10.00 ms to 9.30 ms, 0.93x in turn (half of the turns 0.90 to 0.97x)",)
    little = judge(compare(BASE, BASE, candidate_latency=timed(0.97, 0.96, 0.98), **same), POLICY)
    assert little.reasons[0].startswith("nothing is gained")


def test_a_candidate_that_gains_nothing_is_not_worth_a_swap() -> None:
    """Same size, same speed, same accuracy."""
    same = {
        "candidate_latency": Latency(median_ms=10, p90_ms=11, runs=50, threads=2),
        "candidate_cost": Cost(parameters=1000, macs=1000, onnx_bytes=4000),
    }
    assert "nothing is gained" in judge(compare(BASE, BASE, **same), POLICY).reasons[0]
    better = metrics(cat=(85, 100), dog=(82, 100))
    assert judge(compare(BASE, better, **same), POLICY).is_promoted


def test_a_protected_class_is_refused_a_drop_that_others_are_allowed() -> None:
    """All of them, or those that are named; never more than any class may lose; chance excuses nothing."""
    base = metrics(cat=(190, 200), dog=(150, 200))
    fallen = compare(base, metrics(cat=(176, 200), dog=(164, 200)))  # 7 pp; p = 0.011
    strict = replace(POLICY, protected_drop_max=0.02)
    assert judge(fallen, POLICY).is_promoted
    decision = judge(fallen, strict)
    assert decision.reasons == ("protected class 'cat' falls from 190 to 176 of 200, allowed is a drop of 2 pp",)
    assert not judge(fallen, replace(strict, protected_classes=("cat",))).is_promoted
    assert judge(fallen, replace(strict, protected_classes=("dog",))).is_promoted
    loose = judge(compare(base, metrics(cat=(150, 200), dog=(190, 200))), replace(POLICY, protected_drop_max=0.5))
    assert loose.reasons == ("protected class 'cat' falls from 190 to 150 of 200, allowed is a drop of 10 pp",)
    chance = judge(compare(base, metrics(cat=(185, 200), dog=(155, 200))), strict)
    assert chance.reasons == ("protected class 'cat' falls from 190 to 185 of 200, allowed is a drop of 2 pp",)
    assert judge(compare(base, metrics(cat=(186, 200), dog=(155, 200))), strict).is_promoted


def test_a_protected_class_that_cannot_be_judged_is_named() -> None:
    """It was named, so its absence from the hold-out is told."""
    policy = replace(POLICY, protected_drop_max=0.02, protected_classes=("cat", "bittern"))
    decision = judge(compare(BASE, BASE), policy)
    assert decision.is_promoted
    assert decision.warnings == ("protected class 'bittern' has no hold-out sample: what became of it is unknown",)


def test_a_small_class_may_fall_by_chance_and_is_only_reported() -> None:
    """8 to 5 of 15 happens in one round in four when nothing has changed; 14 to 5 does not."""
    base = metrics(cat=(60, 100), ray=(8, 15), eel=(14, 15))
    by_chance = judge(compare(base, metrics(cat=(66, 100), ray=(5, 15), eel=(14, 15))), POLICY)
    assert by_chance.is_promoted
    assert any("'ray' falls from 8 to 5 of 15" in warning for warning in by_chance.warnings)
    real = judge(compare(base, metrics(cat=(75, 100), ray=(8, 15), eel=(5, 15))), POLICY)
    assert any("'eel' falls from 14 to 5 of 15" in reason for reason in real.reasons)


@pytest.mark.parametrize(("before", "after", "count"), [(8, 5, 15), (14, 5, 15), (80, 68, 100), (5, 5, 9), (0, 0, 4)])
def test_the_chance_of_a_drop_is_fishers(before: int, after: int, count: int) -> None:
    """Against counting every way to deal the right answers to the two models."""
    import random

    draw, hits, runs = random.Random(3), 0, 20_000
    answers = [1] * (before + after) + [0] * (2 * count - before - after)
    for _ in range(runs):
        draw.shuffle(answers)
        hits += sum(answers[:count]) <= after
    assert abs(hits / runs - chance_of_drop(before, after, count)) < 0.015


def test_a_loss_that_is_not_a_number_is_refused() -> None:
    """NaN compares with nothing."""
    assert not judge(compare(BASE, replace(BASE, loss=math.nan)), POLICY).is_promoted


def test_a_class_with_few_samples_is_reported_and_not_judged() -> None:
    """Three samples are no evidence."""
    base, candidate = metrics(cat=(95, 100), fox=(3, 3)), metrics(cat=(97, 100), fox=(1, 3))
    decision = judge(compare(base, candidate), POLICY)
    assert decision.is_promoted
    assert any("'fox'" in warning for warning in decision.warnings)


@pytest.mark.parametrize(("b", "c", "n"), [(0, 0, 200), (5, 5, 200), (20, 3, 100), (3, 20, 100)])
def test_the_bound_holds_at_its_stated_rate(b: int, c: int, n: int) -> None:
    """Simulated pairs with these true rates: the true drop lies under the bound in about 95 of 100 draws or more."""
    import random

    draw = random.Random(7)
    hits, runs = 0, 2000
    for _ in range(runs):
        outcomes = [draw.random() for _ in range(n)]
        only_base = sum(o < b / n for o in outcomes)
        only_candidate = sum(b / n <= o < (b + c) / n for o in outcomes)
        hits += largest_plausible_drop(only_base, only_candidate, n, 0.95) >= (b - c) / n
    assert hits / runs > 0.93


def test_classes_that_the_site_does_not_show_are_told_of_or_judged() -> None:
    """Unknown without reference images; a fall is a warning where they may be forgotten and a refusal where not."""
    keeping = replace(POLICY, absent_drop_max=0.05)
    for policy in (POLICY, keeping):
        assert not judge(compare(BASE, BASE), policy).warnings
        unknown = judge(compare(BASE, BASE, absent=AbsentClasses(classes=90)), policy)
        assert unknown.is_promoted
        assert "90 classes" in unknown.warnings[0]
        assert "unknown" in unknown.warnings[0]
    fallen = AbsentClasses(classes=90, count=200, base_correct=120, candidate_correct=100)
    forgotten = judge(compare(BASE, BASE, absent=fallen), POLICY)
    assert forgotten.is_promoted
    assert "60.0% to 50.0%" in forgotten.warnings[0]
    refused = judge(compare(BASE, BASE, absent=fallen), keeping)
    assert not refused.is_promoted
    assert "5.0 pp" in refused.reasons[0]
    kept = AbsentClasses(classes=90, count=200, base_correct=120, candidate_correct=111)
    assert judge(compare(BASE, BASE, absent=kept), keeping).is_promoted


def test_a_class_that_is_back_is_a_gain_and_excuses_nothing() -> None:
    """The hold-out has none of its images; what speaks against a candidate speaks all the same."""
    same = {
        "candidate_latency": Latency(median_ms=10, p90_ms=11, runs=50, threads=2),
        "candidate_cost": Cost(parameters=1000, macs=1000, onnx_bytes=4000),
    }
    decision = judge(compare(BASE, BASE, **same), POLICY, shown_anew=["owl"])
    assert decision.is_promoted
    assert decision.reasons == ("was shown 'owl', which the served version was not",)
    worse = compare(BASE, metrics(cat=(75, 100), dog=(75, 100)), **same)
    assert not judge(worse, POLICY, shown_anew=["owl"]).is_promoted


def test_the_chance_of_pairs_is_that_of_tossing_coins() -> None:
    """Against scipy's binomial test, whose figures these are; without a disagreement nothing is unlikely."""
    assert chance_of_pairs(0, 0) == 1.0
    assert chance_of_pairs(1, 0) == 0.5
    assert chance_of_pairs(8, 2) == pytest.approx(0.0546875)
    assert chance_of_pairs(30, 15) == pytest.approx(0.017848, abs=1e-5)


def test_accuracy_is_lost_only_where_it_is_refused_for_and_chance_does_not_explain_it() -> None:
    """One image worse, a fall that the bound allows, or one that as many wins beside it make likely, say nothing of labels."""
    assert not has_lost_accuracy(compare(BASE, metrics(cat=(79, 100), dog=(80, 100))), POLICY)
    fallen = metrics(cat=(75, 100), dog=(75, 100))
    assert has_lost_accuracy(compare(BASE, fallen), POLICY)
    assert not has_lost_accuracy(compare(BASE, fallen), replace(POLICY, accuracy_drop_max=0.06))
    by_chance = compare(BASE, fallen, only_base_correct=40, only_candidate_correct=30)
    assert "accuracy falls" in judge(by_chance, POLICY).reasons[0]
    assert not has_lost_accuracy(by_chance, POLICY)
    one_class = compare(BASE, metrics(cat=(98, 100), dog=(62, 100)), only_base_correct=18, only_candidate_correct=18)
    assert has_lost_accuracy(one_class, POLICY)
    few = compare(metrics(cat=(20, 20)), metrics(cat=(10, 20)))
    assert has_lost_accuracy(few, POLICY), "a class that falls by half is no chance, however small the hold-out"
    other = metrics(cat=(80, 100), dog=(60, 80))
    assert not has_lost_accuracy(compare(BASE, other), POLICY), "not measured on the same samples"
