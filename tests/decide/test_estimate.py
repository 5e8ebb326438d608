"""The accuracy without labels: against truth that is known because the answers are made up."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.decide.estimate import Answered, Estimate, Unknown, calibrate, estimate, probabilities

TEMPERATURE = 2.0


def made_up(count: int, seed: int, *, spread: float = 4.0, start: int = 0, classes: int = 4) -> list[Answered]:
    """Answers whose truth is drawn from the softmax at `TEMPERATURE`: that temperature calibrates them."""
    rng = random.Random(seed)
    answers = []
    for i in range(start, start + count):
        logits = tuple(rng.gauss(0, spread) for _ in range(classes))
        (truth,) = rng.choices(range(classes), probabilities(logits, 1 / TEMPERATURE))
        answers.append(Answered(logits=logits, group=str(i), truth=truth))
    return answers


def accuracy(answers: list[Answered]) -> float:
    """Of what is made up."""
    return sum(a.logits.index(max(a.logits)) == a.truth for a in answers) / len(answers)


def unlabelled(answers: list[Answered]) -> list[Answered]:
    """Without what nobody says."""
    return [replace(answer, truth=None) for answer in answers]


def found(window: list[Answered], labelled: list[Answered]) -> Estimate:
    """An estimate that there is."""
    result = estimate(unlabelled(window), labelled, calibrate(labelled))
    assert isinstance(result, Estimate), result
    return result


def test_the_temperature_is_the_likeliest_one() -> None:
    """As a search over a fine grid finds it, and near to the one that the answers were made with."""
    answers = made_up(400, 1)

    def loss(sharpness: float) -> float:
        return -sum(math.log(probabilities(a.logits, sharpness)[a.truth or 0]) for a in answers)

    sharpness = calibrate(answers)
    best = min((i / 1000 for i in range(300, 900)), key=loss)
    assert sharpness == pytest.approx(best, abs=0.001)
    assert 1 / sharpness == pytest.approx(TEMPERATURE, rel=0.2)


def test_answers_without_an_error_or_without_sense_have_a_temperature_too() -> None:
    """The range ends it: nobody is infinitely sure."""
    answers = made_up(100, 2)
    right = [replace(a, truth=a.logits.index(max(a.logits))) for a in answers]
    wrong = [replace(a, truth=a.logits.index(min(a.logits))) for a in answers]
    assert calibrate(right) == pytest.approx(20, abs=0.01)
    assert calibrate(wrong) == pytest.approx(0.05, abs=0.01)
    assert calibrate([replace(a, truth=None) for a in answers]) == 1.0
    assert calibrate([Answered(logits=(1.0, 1.0), group="", truth=0)] * 60) > 0


def test_without_a_shift_the_truth_lies_within_the_error_bar_as_often_as_it_says() -> None:
    """95 % of 150 sites, give or take; the bars are not wide enough to be right by themselves."""
    hits, errors = 0, []
    true = accuracy(made_up(50_000, 0))
    for seed in range(150):
        result = found(made_up(200, 2000 + seed), made_up(150, 1000 + seed))
        hits += abs(result.accuracy - true) <= result.error
        errors.append(result.error)
    assert 0.89 <= hits / 150 <= 0.995
    assert max(errors) < 0.2


@pytest.mark.parametrize("hard", [0.0, 0.5, 0.7])
def test_fewer_or_more_hard_images_are_noticed(hard: float) -> None:
    """A fifth of the labelled samples is hard, the rest is easy; with other shares it follows to ten points."""

    def mixed(count: int, share: float, seed: int) -> list[Answered]:
        many = round(count * share)
        return made_up(count - many, seed, spread=100) + made_up(many, seed + 1, spread=1, start=count)

    window = mixed(1000, hard, 7)
    result = found(window, mixed(1000, 0.2, 20))
    assert result.accuracy == pytest.approx(accuracy(window), abs=0.1)
    assert abs(result.accuracy - result.labelled_accuracy) > 0.08
    assert result.is_below(0.05) == (hard > 0.2)


def test_more_answers_make_the_error_smaller_and_twins_do_not() -> None:
    """Ten frames of one scene are one draw."""
    labelled, window = made_up(400, 3), made_up(60, 4)
    few = found(window, labelled).error
    assert found(made_up(600, 5), labelled).error < 0.75 * few
    assert found([*window] * 10, labelled).error > 0.85 * few
    assert found(window, [*labelled[:60]] * 10).error > found(window, labelled).error


def test_no_error_among_the_labelled_is_not_certainty() -> None:
    """Sixty right answers leave a few per cent open."""
    right = [replace(a, truth=a.logits.index(max(a.logits))) for a in made_up(60, 6)]
    result = found(right, right)
    assert result.accuracy > 0.9
    assert result.error > 0.02


def test_a_class_that_the_version_does_not_know_counts_as_wrong() -> None:
    """It cannot be right about it."""
    labelled = made_up(200, 9)
    strangers = [replace(a, truth=None) for a in labelled[:50]]
    result = found(labelled, strangers + labelled[50:])
    assert result.labelled_accuracy == pytest.approx(accuracy(labelled[50:]) * 150 / 200)
    assert result.accuracy < accuracy(labelled)


@pytest.mark.parametrize(
    ("window", "labelled", "why"),
    [
        (made_up(49, 1), made_up(200, 2), "49 of 50 answers to unlabelled images"),
        (made_up(60, 1), made_up(10, 2), "10 of 50 answers to labelled validation and hold-out images"),
        ([], [], "0 of 50 answers to unlabelled images"),
        (
            [replace(a, group="night") for a in made_up(60, 1)],
            made_up(200, 2),
            "the unlabelled images are of 1 scenes, 10 are wanted",
        ),
    ],
)
def test_too_few_answers_are_unknown_with_the_reason(
    window: list[Answered], labelled: list[Answered], why: str
) -> None:
    """Nothing is made up."""
    assert estimate(window, labelled, 1.0) == Unknown(why)


LOGITS = st.lists(st.floats(-60_000, 60_000, width=16), min_size=2, max_size=6).map(tuple)


@settings(max_examples=50)
@given(logits=LOGITS, sharpness=st.floats(0.05, 20))
def test_probabilities_are_probabilities(logits: tuple[float, ...], sharpness: float) -> None:
    """However far the logits are apart."""
    shares = probabilities(logits, sharpness)
    assert sum(shares) == pytest.approx(1)
    assert shares.index(max(shares)) == logits.index(max(logits))
