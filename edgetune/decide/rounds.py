"""
The life of a round as one table.

A round is one attempt to make a better model. The daemon turns what it sees (a trigger, a verdict of the budget, the
end of the trainer process, an operator's wish) into events, calls `step`, and performs the actions that come back, in
order. The machine knows no process, file or clock: whoever holds it can lose power at any moment, and `recover` in the
daemon puts it into the state that the disk implies.

Three rules are not in the table because they hold everywhere:

* A cancelled round is never promoted: once CancelAsked was seen, any exit of the trainer counts as Exited(other).
* Pairs that are legal and mean nothing stand on `IGNORED` and change nothing.
* Every other pair is a fault of the caller: it raises and changes nothing.

No state of a round can stop predictions.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from edgetune.types import BreachKind, RoundState, TrainerOutcome, Verdict, VerdictKind

S = RoundState


class EventKind(str, enum.Enum):
    """What can happen to a round."""

    WANTED = "Wanted"
    UNWANTED = "Unwanted"
    CANCEL_ASKED = "CancelAsked"
    ALLOWED = "Allowed"
    TOO_HOT = "TooHot"
    TOO_HUNGRY = "TooHungry"
    WITHHELD = "Withheld"
    TOO_BIG = "TooBig"
    PAUSED_TOO_LONG = "PausedTooLong"
    DEADLINE_PASSED = "DeadlinePassed"
    STALLED = "Stalled"
    GRACE_OVER = "GraceOver"
    EXITED_CHECKPOINTED = "Exited(checkpointed)"
    EXITED_PUBLISHED = "Exited(published)"
    EXITED_OTHER = "Exited(other)"
    START_FAILED = "StartFailed"
    VERIFIED = "Verified"
    REFUSED = "Refused"
    TIMED_OUT = "TimedOut"
    ACTION_FAILED = "ActionFailed"
    SPEC_EXPIRED = "SpecExpired"
    COOLDOWN_OVER = "CooldownOver"


class Action(str, enum.Enum):
    """What the daemon does."""

    WRITE_SPEC = "WriteSpec"
    START_TRAINER = "StartTrainer"
    PACE_TRAINER = "PaceTrainer"
    PAUSE_TRAINER = "PauseTrainer"
    RESUME_TRAINER = "ResumeTrainer"
    STOP_TRAINER = "StopTrainer"
    KILL_TRAINER = "KillTrainer"
    VERIFY_CANDIDATE = "VerifyCandidate"
    PROMOTE = "Promote"
    SWAP = "Swap"
    START_PROBATION = "StartProbation"
    QUARANTINE = "Quarantine"
    RECORD_OUTCOME = "RecordOutcome"


E, A = EventKind, Action


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, with the words for it."""

    kind: EventKind
    reason: str = ""
    duty: float = 1.0  # of Allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Where the round machine stands."""

    state: RoundState = S.IDLE
    reason: str = ""  # why the state was entered
    duty: float = 1.0
    is_cancelled: bool = False


class IllegalEventError(AssertionError):
    """The caller made an event that cannot happen in this state."""


_VERIFY = (S.VERIFYING, (A.VERIFY_CANDIDATE,))
# A trainer that was killed or cancelled may have published just before: an ungated version must not stay.
_OVER = (S.COOLDOWN, (A.QUARANTINE, A.RECORD_OUTCOME))
_PAUSE = (S.PAUSED, (A.PAUSE_TRAINER,))
_STOP = (S.STOPPING, (A.STOP_TRAINER,))
_WAKE_AND_STOP = (S.STOPPING, (A.RESUME_TRAINER, A.STOP_TRAINER))  # a stopped process does not act on SIGTERM
_REFUSE = _OVER

TABLE: dict[tuple[RoundState, EventKind], tuple[RoundState, tuple[Action, ...]]] = {
    (S.IDLE, E.WANTED): (S.HELD, ()),
    (S.HELD, E.UNWANTED): (S.IDLE, ()),
    (S.HELD, E.CANCEL_ASKED): (S.IDLE, ()),
    (S.HELD, E.ALLOWED): (S.TRAINING, (A.WRITE_SPEC, A.START_TRAINER)),
    (S.TRAINING, E.ALLOWED): (S.TRAINING, (A.PACE_TRAINER,)),
    (S.TRAINING, E.TOO_HOT): _PAUSE,
    (S.TRAINING, E.TOO_HUNGRY): _PAUSE,
    (S.TRAINING, E.WITHHELD): _PAUSE,
    (S.PAUSED, E.ALLOWED): (S.TRAINING, (A.RESUME_TRAINER, A.PACE_TRAINER)),
    (S.PAUSED, E.PAUSED_TOO_LONG): _WAKE_AND_STOP,
    (S.PAUSED, E.TOO_BIG): _WAKE_AND_STOP,
    (S.PAUSED, E.CANCEL_ASKED): _WAKE_AND_STOP,
    (S.PAUSED, E.DEADLINE_PASSED): _WAKE_AND_STOP,
    (S.TRAINING, E.TOO_BIG): _STOP,
    (S.TRAINING, E.CANCEL_ASKED): _STOP,
    (S.TRAINING, E.DEADLINE_PASSED): _STOP,
    (S.TRAINING, E.STALLED): (S.STOPPING, (A.KILL_TRAINER,)),
    (S.STOPPING, E.GRACE_OVER): (S.STOPPING, (A.KILL_TRAINER,)),
    (S.STOPPING, E.EXITED_CHECKPOINTED): (S.SUSPENDED, (A.RECORD_OUTCOME,)),
    (S.TRAINING, E.EXITED_CHECKPOINTED): (S.SUSPENDED, (A.RECORD_OUTCOME,)),
    (S.PAUSED, E.EXITED_CHECKPOINTED): (S.SUSPENDED, (A.RECORD_OUTCOME,)),
    (S.SUSPENDED, E.ALLOWED): (S.TRAINING, (A.START_TRAINER,)),
    (S.SUSPENDED, E.CANCEL_ASKED): _OVER,
    (S.SUSPENDED, E.SPEC_EXPIRED): _OVER,
    (S.TRAINING, E.EXITED_PUBLISHED): _VERIFY,
    (S.PAUSED, E.EXITED_PUBLISHED): _VERIFY,
    (S.STOPPING, E.EXITED_PUBLISHED): _VERIFY,
    (S.TRAINING, E.EXITED_OTHER): _OVER,
    (S.PAUSED, E.EXITED_OTHER): _OVER,
    (S.STOPPING, E.EXITED_OTHER): _OVER,
    (S.TRAINING, E.START_FAILED): _OVER,
    (S.VERIFYING, E.VERIFIED): (S.IDLE, (A.PROMOTE, A.SWAP, A.START_PROBATION, A.RECORD_OUTCOME)),
    (S.VERIFYING, E.REFUSED): _REFUSE,
    (S.VERIFYING, E.TIMED_OUT): _REFUSE,
    (S.VERIFYING, E.ACTION_FAILED): _REFUSE,
    (S.COOLDOWN, E.COOLDOWN_OVER): (S.IDLE, ()),
}

_BREACHES = (E.TOO_HOT, E.TOO_HUNGRY, E.WITHHELD, E.TOO_BIG)
IGNORED: frozenset[tuple[RoundState, EventKind]] = frozenset(
    # What the budget says matters only while a trainer runs or waits to.
    [(state, event) for state in (S.IDLE, S.STOPPING, S.VERIFYING, S.COOLDOWN) for event in (*_BREACHES, E.ALLOWED)]
    + [(state, event) for state in (S.HELD, S.SUSPENDED) for event in _BREACHES]
    + [(S.PAUSED, event) for event in (E.TOO_HOT, E.TOO_HUNGRY, E.WITHHELD)]
    # A round under way is neither wanted anew nor dropped because the trigger is content by now.
    + [(state, event) for state in S if state is not S.IDLE for event in (E.WANTED,)]
    + [(state, event) for state in S if state is not S.HELD for event in (E.UNWANTED,)]
    # Cancelling where there is nothing to cancel; in STOPPING only the flag is raised.
    + [(state, E.CANCEL_ASKED) for state in (S.IDLE, S.STOPPING, S.VERIFYING, S.COOLDOWN)]
    # The grace of a stop or a stall may run out in the same tick in which the trainer ended.
    + [(S.STOPPING, E.STALLED), (S.STOPPING, E.DEADLINE_PASSED), (S.STOPPING, E.PAUSED_TOO_LONG)]
    + [(S.SUSPENDED, E.GRACE_OVER), (S.COOLDOWN, E.GRACE_OVER), (S.VERIFYING, E.GRACE_OVER)]
)


def step(now: Round, event: Event) -> tuple[Round, tuple[Action, ...]]:
    """
    Take one event.

    Args:
        now: where the machine stands.
        event: what happened.

    Returns:
        Where it stands now, and what the daemon has to do, in order. Unchanged and nothing for an ignored pair.

    Raises:
        IllegalEventError: this cannot happen in this state; nothing changed.
    """
    kind = event.kind
    if now.is_cancelled and kind in (E.EXITED_CHECKPOINTED, E.EXITED_PUBLISHED):
        kind = E.EXITED_OTHER
    key = (now.state, kind)
    if key in TABLE:
        state, actions = TABLE[key]
        if kind is E.VERIFIED and now.is_cancelled:
            state, actions = _REFUSE
    elif key in IGNORED:
        state, actions = now.state, ()
    else:
        raise IllegalEventError(f"{kind.value} cannot happen in {now.state.value}")
    asks_cancel = kind is E.CANCEL_ASKED and now.state in (S.TRAINING, S.PAUSED, S.STOPPING, S.VERIFYING)
    is_cancelled = (now.is_cancelled or asks_cancel) and state in (S.TRAINING, S.PAUSED, S.STOPPING, S.VERIFYING)
    duty = event.duty if kind is E.ALLOWED else now.duty
    reason = event.reason if state is not now.state else now.reason
    if state is now.state and asks_cancel:
        reason = event.reason
    return replace(now, state=state, reason=reason, duty=duty, is_cancelled=is_cancelled), actions


_BREACH_EVENT = {
    BreachKind.TOO_HOT: E.TOO_HOT,
    BreachKind.TOO_HUNGRY: E.TOO_HUNGRY,
    BreachKind.TOO_BIG: E.TOO_BIG,
    BreachKind.WITHHELD: E.WITHHELD,
}


def budget_event(verdict: Verdict) -> Event:
    """The event that a verdict of the budget becomes."""
    if verdict.kind in (VerdictKind.RUN, VerdictKind.THROTTLE):
        return Event(kind=E.ALLOWED, duty=verdict.duty, reason="; ".join(verdict.reasons) or "within budget")
    return Event(kind=_BREACH_EVENT[verdict.breach], reason="; ".join(verdict.reasons))


def exit_event(outcome: TrainerOutcome, message: str) -> Event:
    """The event that the end of a trainer process becomes."""
    kind = {TrainerOutcome.PUBLISHED: E.EXITED_PUBLISHED, TrainerOutcome.CHECKPOINTED: E.EXITED_CHECKPOINTED}
    return Event(
        kind=kind.get(outcome, E.EXITED_OTHER), reason=f"{outcome.value}: {message}" if message else outcome.value
    )


def diagram() -> str:
    """The table as a Mermaid state diagram, for docs/architecture.md."""
    lines = ["stateDiagram-v2", "    [*] --> idle"]
    for (state, event), (target, actions) in TABLE.items():
        does = f" / {', '.join(a.value for a in actions)}" if actions else ""
        lines.append(f"    {state.value} --> {target.value}: {event.value}{does}")
    return "\n".join(lines)
