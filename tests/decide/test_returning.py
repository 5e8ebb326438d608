"""When a class that the site had not shown counts as returned."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from edgetune.decide.returning import ReturnPolicy, Sighted, absent_classes, is_worth_asking, returned

POLICY = ReturnPolicy(sightings=12, window=400, confidence=0.7, groups_min=3)
LAMP = frozenset({"lamp"})


def sighted(label: str, sightings: int, groups: int | None = None, errors: int = 0) -> Sighted:
    """Each in a scene of its own, unless said otherwise."""
    return Sighted(label=label, sightings=sightings, groups=sightings if groups is None else groups, errors=errors)


def back(*seen: Sighted, looked_at: int = 400, controls: int = 400, policy: ReturnPolicy = POLICY) -> list[str]:
    """Which classes have returned."""
    return [each.label for each in returned(seen, looked_at=looked_at, controls=controls, policy=policy)]


def test_a_class_has_returned_once_it_is_sighted_often_enough() -> None:
    """Neither one sighting less, nor a class beside it that was seen a few times."""
    assert back(sighted("lamp", 12), sighted("clock", 11), looked_at=150) == ["lamp"]


def test_twins_of_one_scene_are_one_error_of_the_factory_model() -> None:
    """A camera that looks at the same thing all day sights it a hundred times."""
    assert not back(sighted("lamp", 300, groups=2))
    assert back(sighted("lamp", 300, groups=3))


def test_a_class_that_the_factory_model_sees_here_by_error_must_be_seen_far_more_often() -> None:
    """Behind a noisy camera everything is a forest to it."""
    assert not back(sighted("forest", 20, errors=20))
    assert not back(sighted("forest", 60, errors=20))
    assert back(sighted("forest", 69, errors=20))
    assert back(sighted("lamp", 12, errors=1)), "an error in four hundred is nothing beside three in a hundred"
    assert not back(sighted("lamp", 12, errors=2))


def test_few_controls_say_little() -> None:
    """Without any, nothing has returned; with some dozens, only what is seen in many images."""
    assert not back(sighted("lamp", 400), controls=0)
    assert not back(sighted("lamp", 80), controls=40)
    assert back(sighted("lamp", 90), controls=40)


def test_a_policy_of_one_sighting_asks_for_no_more_scenes_than_sightings() -> None:
    """Or it could never be met."""
    assert back(sighted("lamp", 1), looked_at=1, policy=replace(POLICY, sightings=1))


def test_the_class_seen_most_often_comes_first_and_its_reason_is_in_words() -> None:
    """The operator reads it as the reason of a round."""
    seen = [sighted("clock", 15), sighted("lamp", 23)]
    first, _ = returned(seen, looked_at=150, controls=400, policy=POLICY)
    assert first.reason == (
        "the factory model sees 'lamp' in 23 of the last 150 unlabelled images where the served model does not: a class"
        " that this site had not shown is back"
    )


def test_absent_is_what_the_factory_model_knows_and_the_round_did_not_show() -> None:
    """A new class is not the factory model's to see, and a handful of samples does not show a class."""
    absent = absent_classes(("cat", "dog", "lamp", "clock"), ("cat", "dog", "lamp", "owl"), {"cat": 50, "dog": 4})
    assert absent == {"dog", "lamp"}


def test_only_an_absent_class_that_the_factory_model_is_sure_of_is_worth_asking_about() -> None:
    """Asking the served model costs time."""
    assert is_worth_asking(("lamp", 0.7), LAMP, POLICY)
    assert not is_worth_asking(("lamp", 0.69), LAMP, POLICY)
    assert not is_worth_asking(("cat", 0.99), LAMP, POLICY)


COUNTS = st.integers(0, 400)


@given(
    seen=st.builds(sighted, st.just("lamp"), COUNTS, COUNTS, st.integers(0, 40)),
    controls=COUNTS,
    wanted=st.integers(1, 50),
    more=st.integers(0, 50),
)
def test_more_sightings_fewer_errors_and_a_looser_policy_never_take_a_return_back(
    seen: Sighted, controls: int, wanted: int, more: int
) -> None:
    """What counts as returned keeps counting."""
    policy = replace(POLICY, sightings=wanted)
    if back(seen, controls=controls, policy=policy):
        often = replace(seen, sightings=seen.sightings + more, groups=seen.groups + more)
        assert back(often, controls=controls, policy=policy)
        assert back(replace(seen, errors=max(0, seen.errors - more)), controls=controls, policy=policy)
        assert back(seen, controls=controls + more, policy=policy)
        assert back(seen, controls=controls, policy=replace(policy, sightings=max(1, wanted - more)))
