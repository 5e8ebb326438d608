"""The round machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.decide.rounds import (
    IGNORED,
    TABLE,
    Action,
    Event,
    EventKind,
    IllegalEventError,
    Round,
    budget_event,
    diagram,
    exit_event,
    step,
)
from edgetune.types import BreachKind, RoundState, TrainerOutcome, Verdict, VerdictKind

A, E, S = Action, EventKind, RoundState


def play(*kinds: EventKind, start: Round | None = None) -> tuple[Round, list[Action]]:
    """Feed events to a machine and collect what it asks for."""
    now, actions = start or Round(), []
    for kind in kinds:
        now, more = step(now, Event(kind=kind, reason=kind.value))
        actions += more
    return now, actions


def test_a_round_that_goes_well_is_promoted_and_recorded_last() -> None:
    """Wanted, allowed, published, verified: the model is promoted before the reference changes and before the record."""
    now, actions = play(E.WANTED, E.ALLOWED, E.EXITED_PUBLISHED, E.VERIFIED)
    assert now.state is S.IDLE
    assert actions == [
        A.WRITE_SPEC, A.START_TRAINER, A.VERIFY_CANDIDATE, A.PROMOTE, A.SWAP, A.START_PROBATION, A.RECORD_OUTCOME,
    ]  # fmt: skip


def test_heat_pauses_and_memory_stops() -> None:
    """A paused process gives heat back, a stopped one memory too."""
    assert play(E.WANTED, E.ALLOWED, E.TOO_HOT)[1][-1] is A.PAUSE_TRAINER
    assert play(E.WANTED, E.ALLOWED, E.TOO_BIG)[1][-1] is A.STOP_TRAINER


def test_a_paused_trainer_is_woken_before_it_is_asked_to_stop() -> None:
    """A process under SIGSTOP does not act on SIGTERM."""
    for kind in (E.PAUSED_TOO_LONG, E.TOO_BIG, E.CANCEL_ASKED, E.DEADLINE_PASSED):
        _, actions = play(E.WANTED, E.ALLOWED, E.TOO_HOT, kind)
        assert actions[-2:] == [A.RESUME_TRAINER, A.STOP_TRAINER]


def test_a_stopped_round_goes_on_from_the_same_spec() -> None:
    """After a checkpoint only the trainer is started anew; no samples are chosen again."""
    now, actions = play(E.WANTED, E.ALLOWED, E.TOO_BIG, E.EXITED_CHECKPOINTED, E.ALLOWED)
    assert now.state is S.TRAINING
    assert actions.count(A.WRITE_SPEC) == 1
    assert actions.count(A.START_TRAINER) == 2


@pytest.mark.parametrize("ending", [E.EXITED_PUBLISHED, E.EXITED_CHECKPOINTED, E.EXITED_OTHER])
def test_a_cancelled_round_is_never_promoted(ending: EventKind) -> None:
    """Whatever the trainer managed to do before it ended, the round is over."""
    now, actions = play(E.WANTED, E.ALLOWED, E.CANCEL_ASKED, ending)
    assert now.state is S.COOLDOWN
    assert A.PROMOTE not in actions
    assert A.VERIFY_CANDIDATE not in actions


def test_cancelling_during_verification_quarantines_the_candidate() -> None:
    """The candidate was published before the operator's word, and is refused all the same."""
    now, actions = play(E.WANTED, E.ALLOWED, E.EXITED_PUBLISHED, E.CANCEL_ASKED, E.VERIFIED)
    assert now.state is S.COOLDOWN
    assert actions[-2:] == [A.QUARANTINE, A.RECORD_OUTCOME]


def test_a_cancelled_flag_does_not_outlive_its_round() -> None:
    """The next round is a new one."""
    now, _ = play(E.WANTED, E.ALLOWED, E.CANCEL_ASKED, E.EXITED_OTHER, E.COOLDOWN_OVER, E.WANTED, E.ALLOWED)
    assert not now.is_cancelled


def test_every_pair_is_in_the_table_or_ignored_or_raises_and_nothing_is_in_both() -> None:
    """An illegal event changes nothing."""
    assert not set(TABLE) & IGNORED
    for state in S:
        for kind in E:
            now = Round(state=state)
            if (state, kind) in TABLE:
                assert step(now, Event(kind=kind))[0].state is TABLE[state, kind][0]
            elif (state, kind) in IGNORED:
                after, actions = step(now, Event(kind=kind))
                assert (after.state, actions) == (now.state, ())
            else:
                with pytest.raises(IllegalEventError):
                    step(now, Event(kind=kind))


@given(st.lists(st.sampled_from(list(EventKind)), max_size=40))
def test_at_most_one_trainer_and_no_promotion_without_verified(kinds: list[EventKind]) -> None:
    """Over any sequence of legal events."""
    now, trainers = Round(), 0
    for kind in kinds:
        try:
            after, actions = step(now, Event(kind=kind))
        except IllegalEventError:
            continue
        if (
            kind in (E.EXITED_CHECKPOINTED, E.EXITED_PUBLISHED, E.EXITED_OTHER, E.START_FAILED)
            and (now.state, kind) in TABLE
        ):
            trainers -= 1
        trainers += actions.count(A.START_TRAINER)
        assert 0 <= trainers <= 1
        assert (A.PROMOTE in actions) == (kind is E.VERIFIED and not now.is_cancelled)
        now = after


def test_a_verdict_becomes_the_event_of_its_breach() -> None:
    """Run and throttle allow with their duty; the rest names what is wrong."""
    allowed = budget_event(Verdict(kind=VerdictKind.THROTTLE, duty=0.4))
    assert (allowed.kind, allowed.duty) == (E.ALLOWED, 0.4)
    hot = budget_event(Verdict(kind=VerdictKind.PAUSE, duty=0, breach=BreachKind.TOO_HOT, reasons=("soc_temp_c",)))
    assert (hot.kind, hot.reason) == (E.TOO_HOT, "soc_temp_c")


def test_only_published_and_checkpointed_are_good_ends() -> None:
    """Every other outcome ends the round in a cool-down."""
    kinds = {outcome: exit_event(outcome, "").kind for outcome in TrainerOutcome}
    assert kinds.pop(TrainerOutcome.PUBLISHED) is E.EXITED_PUBLISHED
    assert kinds.pop(TrainerOutcome.CHECKPOINTED) is E.EXITED_CHECKPOINTED
    assert set(kinds.values()) == {E.EXITED_OTHER}


def test_the_diagram_shows_every_row() -> None:
    """docs/architecture.md is made from it."""
    assert len(diagram().splitlines()) == len(TABLE) + 2
