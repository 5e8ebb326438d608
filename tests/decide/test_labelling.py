"""Which samples are worth a label."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.decide.labelling import Candidate, next_questions


def candidate(sample: int, *logits: float, group: str | None = None) -> Candidate:
    """A sample in a scene of its own, unless said otherwise."""
    return Candidate(sample=sample, group=str(sample) if group is None else group, logits=logits)


def ask(
    *candidates: Candidate, count: int = 2, labelled: tuple[tuple[float, ...], ...] = (), sharpness: float = 1.0
) -> list[int]:
    """The samples that are asked about."""
    return [q.sample for q in next_questions(candidates, labelled, count=count, sharpness=sharpness)]


def test_a_question_says_what_the_model_takes_the_sample_for() -> None:
    """Its guess, the rival, and the margin between the two, not the confidence alone."""
    (question,) = next_questions([candidate(2, 3.0, 2.9, 0.0)], [], count=1)
    assert (question.sample, question.guess, question.rival) == (2, 0, 1)
    assert 0 < question.margin < 0.06
    assert 0.4 < question.confidence < 0.6


def test_every_guess_has_its_turn() -> None:
    """A class that is guessed seldom is not pushed out by a common one, however doubtful that is."""
    common = [candidate(i, 2.0 + i / 10, 2.0, 0.0) for i in range(10)]
    seldom = [candidate(20, 0.0, 5.0, 0.0), candidate(21, 0.0, 9.0, 0.0)]
    asked = ask(*common, *seldom, count=4)
    assert [sample >= 20 for sample in asked] == [False, True, False, True]


def test_of_one_guess_samples_are_drawn() -> None:
    """Neither those that came first nor the doubtful ones, whose margin falls with their number here."""
    asked = ask(*(candidate(i, 20.0 - i / 100, 0.0) for i in range(1000)), count=100)
    assert len(set(asked)) == 100
    assert 400 < sum(asked) / 100 < 600
    assert asked != sorted(asked)


def test_of_guesses_that_are_equally_little_known_the_commoner_comes_first() -> None:
    """One question alone is best about what stands for most images."""
    assert ask(candidate(1, 0.0, 3.0), candidate(2, 3.0, 0.0), candidate(3, 4.0, 0.0), count=1) in ([2], [3])


def test_what_labels_were_given_to_lately_waits() -> None:
    """Of that guess there are labels already; of the other there is none."""
    like, unlike = candidate(1, 3.0, 2.9, 0.0), candidate(2, 0.0, 9.0, 2.0)
    assert ask(like, unlike, count=1) == [1]
    assert ask(like, unlike, count=1, labelled=((3.0, 2.9, 0.0),)) == [2]


def test_of_one_group_one_sample_is_asked_about() -> None:
    """Whatever the others are taken for."""
    scene = [candidate(i, 3.0 + i, 2.9 + 2 * i, 0.0, group="door") for i in range(5)]
    first, second = ask(*scene, candidate(9, 0.0, 5.0, 4.0), count=5)
    assert {first < 5, second < 5} == {True, False}


def test_nothing_to_ask_about_is_no_question() -> None:
    """An empty queue."""
    assert ask(count=20) == []


CANDIDATES = st.lists(
    st.builds(
        lambda sample, group, logits: candidate(sample, *logits, group=str(group)),
        st.integers(0, 10_000),
        st.integers(0, 8),
        st.tuples(*[st.floats(-20, 20, width=16)] * 3),
    ),
    max_size=30,
    unique_by=lambda each: each.sample,
)


@settings(max_examples=60)
@given(candidates=CANDIDATES, count=st.integers(1, 12), data=st.data())
def test_the_order_of_the_samples_does_not_matter_and_groups_bound_the_questions(
    candidates: list[Candidate], count: int, data: st.DataObject
) -> None:
    """The same answers give the same questions, one a group, as many as there can be."""
    asked = ask(*candidates, count=count)
    assert ask(*data.draw(st.permutations(candidates)), count=count) == asked
    groups = {each.sample: each.group for each in candidates}
    assert len({groups[sample] for sample in asked}) == len(asked) == min(count, len(set(groups.values())))
