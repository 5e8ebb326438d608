"""The trigger."""

from __future__ import annotations

from dataclasses import replace

from edgetune.decide.returning import Returned
from edgetune.decide.trigger import Concern, ManualRequest, ServedSummary, TriggerPolicy, Want, consider
from edgetune.types import BufferStats, ClassStats, RoundKind

POLICY = TriggerPolicy(new_samples=200, new_class_samples=20, min_interval_s=3600, max_interval_s=7 * 86400)
SERVED = ServedSummary(classes=("cat", "dog"), tuned_classes=("cat", "dog"), is_target_met=True)


def stats(new: int = 0, **classes: tuple[str, int]) -> BufferStats:
    """Classes as (status, training samples), each with 60 hold-out samples."""
    entries = tuple(
        ClassStats(label=label, status=status, training=n, validation=5, holdout=60, labelled_since_round=0)
        for label, (status, n) in (classes or {"cat": ("accepted", 100), "dog": ("accepted", 100)}).items()
    )
    return BufferStats(
        samples=0, labelled=0, unlabelled=0, duplicates=0, stored_bytes=0, quota_bytes=1, pinned=0, evicted=0,
        quarantined=0, new_labelled=new, classes=entries,
    )  # fmt: skip


def ask(
    of: BufferStats,
    *,
    since: float | None = 1e5,
    manual: ManualRequest | None = None,
    served: ServedSummary | None = SERVED,
) -> Want:
    """Consider with the usual policy."""
    return consider(of, POLICY, served, since_last_s=since, manual=manual)


def test_unlabelled_images_want_a_round_only_where_a_teacher_can_name_them() -> None:
    """Enough of them, with a policy that counts them; then no label is needed for training, but for the hold-out."""
    nameless = replace(stats(cat=("accepted", 0), dog=("accepted", 0)), unlabelled=1500, new_unlabelled=1200)
    taught = replace(POLICY, new_unlabelled=1000, learns_unlabelled=True)
    assert not ask(nameless).is_wanted
    want = consider(nameless, taught, SERVED, since_last_s=1e5)
    assert want.is_wanted
    assert "1200 of 1000 new unlabelled images" in want.reason
    few = consider(replace(nameless, new_unlabelled=999), taught, SERVED, since_last_s=1e5)
    assert not few.is_wanted
    assert "or 999 of 1000 new unlabelled images" in few.missing
    kept = replace(taught, new_unlabelled=None)  # the factory model's word, if it is asked for, makes no round worth it
    assert not consider(nameless, kept, SERVED, since_last_s=1e5).is_wanted
    by_hand = ManualRequest()
    assert consider(nameless, kept, SERVED, since_last_s=1e5, manual=by_hand).is_wanted
    assert not ask(nameless, manual=by_hand).is_wanted
    without_holdout = replace(nameless, classes=tuple(replace(c, holdout=10) for c in nameless.classes))
    assert any("20 of 50 hold-out" in m for m in consider(without_holdout, taught, SERVED, since_last_s=1e5).missing)


def test_what_is_missing_is_counted() -> None:
    """37 of 200 new samples."""
    want = ask(stats(new=37))
    assert not want.is_wanted
    assert "37 of 200 new samples" in want.missing


OWL = {"cat": ("accepted", 100), "dog": ("accepted", 100), "owl": ("accepted", 6)}


def test_a_class_to_imprint_is_wanted_at_once() -> None:
    """Neither the least interval nor a cool-down holds it; an operator's wish comes first, and the gate must be able to judge."""
    small = consider(stats(0, **OWL), POLICY, SERVED, since_last_s=1.0, cooling_s=900.0, to_imprint=["owl"])
    assert (small.is_wanted, small.kind, small.classes) == (True, RoundKind.IMPRINT, ("owl",))
    assert "'owl' with 6 training samples" in small.reason
    manual = consider(stats(0, **OWL), POLICY, SERVED, since_last_s=None, manual=ManualRequest(), to_imprint=["owl"])
    assert manual.kind is RoundKind.RESHAPE
    strict = replace(POLICY, holdout_min=121)  # the owl's own sixty do not count
    assert not consider(stats(0, **OWL), strict, SERVED, since_last_s=None, to_imprint=["owl"]).is_wanted


def test_a_round_that_trains_waits_for_the_end_of_a_cool_down() -> None:
    """And says so, also where an imprint has taken the place of the cool-down's state meanwhile."""
    want = consider(stats(new=200), POLICY, SERVED, since_last_s=None, cooling_s=600.0)
    assert (want.is_wanted, want.next_in_s) == (False, 600.0)
    assert want.missing == ("10 more minutes of the cool-down (triggers.cooldown)",)
    assert consider(stats(new=200), POLICY, SERVED, since_last_s=None, cooling_s=-5.0).is_wanted


def test_where_nothing_is_pruned_a_new_mix_of_classes_is_adapted_to() -> None:
    """There is no shape to find anew."""
    classes = {**OWL, "owl": ("accepted", 30)}
    assert ask(stats(0, **classes)).kind is RoundKind.RESHAPE
    want = consider(stats(0, **classes), replace(POLICY, prunes=False), SERVED, since_last_s=None)
    assert (want.is_wanted, want.kind) == (True, RoundKind.ADAPT)


def test_enough_new_samples_want_a_round_and_say_so() -> None:
    """The reason names the figures and the kind."""
    want = ask(stats(new=200))
    assert want.is_wanted
    assert want.kind is RoundKind.ADAPT
    assert "200 of 200 new samples" in want.reason


def test_nothing_is_wanted_without_a_model() -> None:
    """There is nothing to start from."""
    assert not ask(stats(new=500), served=None).is_wanted


def test_a_round_waits_for_the_least_interval() -> None:
    """And says how long."""
    want = ask(stats(new=200), since=600)
    assert not want.is_wanted
    assert want.next_in_s == 3000
    assert ask(stats(new=200), since=None).is_wanted


def test_a_few_new_samples_are_enough_after_the_longest_interval() -> None:
    """But not none."""
    assert ask(stats(new=1), since=8 * 86400).is_wanted
    assert not ask(stats(new=0), since=8 * 86400).is_wanted


def test_a_new_class_wants_a_round_once_accepted_and_reshapes() -> None:
    """The mix has changed; a pending class only asks for the operator's word."""
    seen = {"cat": ("accepted", 50), "dog": ("accepted", 50)}
    want = ask(stats(new=0, **seen, owl=("accepted", 20)))
    assert want.is_wanted
    assert want.kind is RoundKind.RESHAPE
    assert "'owl' is new" in want.reason
    pending = ask(stats(new=0, **seen, owl=("pending", 50)))
    assert not pending.is_wanted
    assert any("edgetune data accept owl" in missing for missing in pending.missing)
    assert any("5 of 20" in m for m in ask(stats(new=0, **seen, owl=("accepted", 5))).missing)


def test_a_factory_model_is_reshaped_first() -> None:
    """Its target is unmet."""
    assert (
        ask(stats(new=200), served=ServedSummary(classes=("cat",), tuned_classes=(), is_target_met=False)).kind
        is RoundKind.RESHAPE
    )


def test_no_round_is_begun_that_the_gate_would_refuse_for_its_hold_out() -> None:
    """Training in vain costs watts."""
    few = BufferStats(
        **{
            **{f: getattr(stats(new=500), f) for f in BufferStats.__slots__},
            "classes": tuple(
                ClassStats(
                    label=label, status="accepted", training=100, validation=5, holdout=5, labelled_since_round=0
                )
                for label in ("cat", "dog")
            ),
        }
    )
    want = ask(few)
    assert not want.is_wanted
    assert any("10 of 50 hold-out" in missing for missing in want.missing)


def test_the_hold_out_that_counts_is_the_gates() -> None:
    """Of the classes that are known; of the new ones where the board holds no other."""
    served = replace(SERVED, classes=("dog", "hen"))
    mixed = consider(stats(500, cat=("accepted", 100), dog=("accepted", 100)), POLICY, served, since_last_s=1e5)
    assert mixed.is_wanted, "sixty of the dog"
    strict = replace(POLICY, holdout_min=61)
    lacking = consider(stats(500, cat=("accepted", 100), dog=("accepted", 100)), strict, served, since_last_s=1e5)
    assert any("60 of 61 hold-out" in missing for missing in lacking.missing)
    marked = replace(served, marked=("cat",))
    both = consider(stats(500, cat=("accepted", 100), dog=("accepted", 100)), strict, marked, since_last_s=1e5)
    assert both.is_wanted, "an output that carries a mark is judged like another"
    new = stats(500, cat=("accepted", 100), owl=("accepted", 100))
    assert consider(new, replace(POLICY, holdout_min=120), served, since_last_s=1e5).is_wanted


def test_one_class_is_nothing_to_tell_apart() -> None:
    """Whatever asked for the round, unless it is forced."""
    one = stats(new=500, cat=("accepted", 500))
    assert not ask(one).is_wanted
    assert not ask(one, manual=ManualRequest()).is_wanted
    assert ask(one, manual=ManualRequest(is_forced=True)).is_wanted


def test_an_operator_need_not_wait_and_may_choose_the_kind() -> None:
    """Neither new samples nor the interval are needed."""
    want = ask(stats(new=0), since=1, manual=ManualRequest(kind=RoundKind.RESHAPE, by="root"))
    assert want.is_wanted
    assert want.kind is RoundKind.RESHAPE
    assert "root" in want.reason


def test_a_class_that_came_back_wants_a_round_in_the_factory_models_words() -> None:
    """The mix of classes has changed, so it reshapes; the interval holds for it as for any other reason."""
    back = Returned(label="owl", sightings=23, looked_at=150)
    seen = stats(new=0, cat=("accepted", 50), dog=("accepted", 50), owl=("accepted", 23))
    served = ServedSummary(
        classes=("cat", "dog", "owl"),
        tuned_classes=("cat", "dog"),
        absent_classes=frozenset({"owl"}),
        is_target_met=True,
    )
    want = consider(seen, POLICY, served, since_last_s=1e5, returned=[back])
    assert want.is_wanted
    assert want.kind is RoundKind.RESHAPE
    assert want.reason.startswith("the factory model sees 'owl' in 23 of the last 150 unlabelled images")
    soon = consider(seen, POLICY, served, since_last_s=600, returned=[back])
    assert not soon.is_wanted
    assert soon.next_in_s == 3000


def test_a_few_labelled_samples_of_an_absent_class_want_a_round() -> None:
    """As many as of a class that is new, not as many as of classes that the model was tuned to."""
    served = ServedSummary(
        classes=("cat", "dog", "owl"),
        tuned_classes=("cat", "dog"),
        absent_classes=frozenset({"owl"}),
        is_target_met=True,
    )

    def with_owls(count: int, new: int) -> Want:
        seen = stats(new=0, cat=("accepted", 50), dog=("accepted", 50), owl=("accepted", count))
        owls = tuple(replace(e, training_since_round=new) if e.label == "owl" else e for e in seen.classes)
        return consider(replace(seen, classes=owls), POLICY, served, since_last_s=1e5)

    assert "'owl', which this site had not shown, is back with 20 training samples" in with_owls(20, 20).reason
    assert with_owls(20, 20).is_wanted
    assert not with_owls(19, 19).is_wanted
    assert not with_owls(40, 19).is_wanted, "a round has used the others"


def test_a_concern_wants_a_round_once_there_are_labels_for_it() -> None:
    """Without them it says what it takes, before all else; another reason, and the interval, hold beside it."""
    dusk = Concern(reason="the images have changed", labelled=19)

    def ask_for(concern: Concern, new: int = 30, since: float = 1e5) -> Want:
        return consider(stats(new=new), POLICY, SERVED, since_last_s=since, concern=concern)

    unlabelled = ask_for(dusk)
    assert not unlabelled.is_wanted
    assert unlabelled.reason == "the images have changed"
    assert unlabelled.missing[:2] == ("19 of 20 new labels of such images: edgetune data next", "30 of 200 new samples")
    enough = replace(dusk, labelled=20)
    assert ask_for(enough).is_wanted
    assert ask_for(enough).reason.startswith("the images have changed; adapt")
    assert not ask_for(enough, since=600).is_wanted
    assert ask_for(dusk, new=200).reason.startswith("200 of 200 new samples")
    assert not consider(
        stats(new=30, cat=("accepted", 500)), POLICY, SERVED, since_last_s=1e5, concern=enough
    ).is_wanted
