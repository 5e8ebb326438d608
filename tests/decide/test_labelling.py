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


def test_the_least_certain_come_first_and_say_why() -> None:
    """The margin between the two best classes, not the confidence alone."""
    sure, unsure = candidate(1, 9.0, 0.0, 0.0), candidate(2, 3.0, 2.9, 0.0)
    first, second = next_questions([sure, unsure], [], count=2)
    assert (first.sample, first.guess, first.rival) == (2, 0, 1)
    assert 0 < first.margin < 0.06
    assert second.sample == 1
    assert second.confidence > 0.99


def test_near_twins_are_not_asked_about_twice() -> None:
    """Of two doubts that are the same one waits, although it is more doubtful than the next."""
    twins = (candidate(1, 3.0, 2.99, 0.0), candidate(2, 3.0, 2.98, 0.0))
    other = candidate(3, 0.0, 3.0, 2.5)
    assert ask(*twins, other) == [1, 3]
    assert ask(*twins, other, count=3) == [1, 2, 3]


def test_of_one_group_one_sample_is_asked_about() -> None:
    """The least certain of it, however different the others are."""
    scene = [candidate(i, 3.0 + i, 2.9, 0.0, group="door") for i in range(5)]
    assert ask(*scene, candidate(9, 0.0, 5.0, 4.0), count=5) == [0, 9]


def test_what_is_like_a_sample_labelled_lately_waits() -> None:
    """Its label would say the same again."""
    like, unlike = candidate(1, 3.0, 2.9, 0.0), candidate(2, 0.0, 3.0, 2.0)
    assert ask(like, unlike, count=1) == [1]
    assert ask(like, unlike, count=1, labelled=((3.0, 2.9, 0.0),)) == [2]


def test_certain_answers_are_no_diversity() -> None:
    """A thousand different sure answers do not push out the doubtful ones: those alone are compared."""
    sure = [candidate(100 + i, *(20.0 if c == i % 5 else 0.0 for c in range(5))) for i in range(100)]
    doubtful = [candidate(i, *(2.0 if c in (i % 5, (i + 1) % 5) else 0.0 for c in range(5))) for i in range(16)]
    assert set(ask(*sure, *doubtful, count=2)) <= set(range(16))


def test_sure_answers_come_last_where_doubts_are_few() -> None:
    """They differ from the doubtful ones more than those from each other, and their labels would say nothing."""
    doubtful = [candidate(i, 1.0 + i / 50, 1.0) for i in range(6)]
    sure = [candidate(100 + i, 30.0 * (i % 2), 30.0 * (1 - i % 2)) for i in range(10)]
    assert set(ask(*sure, *doubtful, count=6)) == set(range(6))


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
