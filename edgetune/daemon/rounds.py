"""
The round in the real world: makes events for `decide.rounds`, and performs the actions that it answers with.

What a power cut leaves is read from the disk, not from memory: `rounds/0042/spec.json` without an ended row in the
history is a round under way; a published candidate that `models/current` names was promoted.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine

from edgetune.clock import Clock
from edgetune.daemon import forecasts
from edgetune.daemon.parts import Events, ServiceTime, StoreThread
from edgetune.daemon.promotion import Promotion
from edgetune.daemon.round_records import RoundRecords
from edgetune.daemon.round_settings import RoundSettings, Trainer, forbidden
from edgetune.daemon.serving import Serving
from edgetune.daemon.spending import Spending
from edgetune.decide import rounds
from edgetune.decide.rounds import Action, Event, EventKind, Round
from edgetune.decide.trigger import Want
from edgetune.errors import EdgetuneError, NoSamplesError, StoreError
from edgetune.store.history import History
from edgetune.store.models import Models
from edgetune.types import (
    BreachKind,
    GateDecision,
    Measurement,
    RoundKind,
    RoundSpec,
    RoundState,
    TrainerOutcome,
    Verdict,
)

_STATE_KEY = "round"
_VERIFY_TIMEOUT_S = 600.0
_EXPECTED = (EdgetuneError, OSError)
_WITH_TRAINER = (RoundState.TRAINING, RoundState.PAUSED, RoundState.STOPPING)


class Rounds:
    """At most one round at a time, from wanted to recorded."""

    def __init__(
        self,
        *,
        records: RoundRecords,
        settings: RoundSettings,
        models: Models,
        history: History,
        store: StoreThread,
        events: Events,
        clock: Clock,
        service_time: ServiceTime,
        serving: Serving,
        make_trainer: Callable[[], Trainer],
    ) -> None:
        self.records = records
        self.settings = settings
        self._models, self._history, self._store = models, history, store
        self._events, self._clock, self._time, self._serving = events, clock, service_time, serving
        self._make_trainer = make_trainer
        self.machine = Round()
        self.spec: RoundSpec | None = None
        self.want: Want | None = None
        self.trainer: Trainer | None = None
        self.spending = Spending()
        self.failures = 0
        self.cooldown_ends_s = 0.0  # in service time
        self._entered_s = clock.now_s()
        self._last_tick_s = clock.now_s()
        self._sent_duty: float | None = None
        self._promotion = Promotion(models=models, records=records, store=store, serving=serving)
        self._event = Event(kind=EventKind.UNWANTED)  # the one whose actions are performed
        self._outcome = TrainerOutcome.FAILED
        self._arrived: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()  # (round, what happened to it)
        self._lock = asyncio.Lock()  # one event at a time, whoever brings it: the tick or an operator's request
        self._is_saved = True
        self._fault: BaseException | None = None
        self._unrecorded: Callable[[], None] | None = None  # the end of a round that the database did not take
        self._tasks: set[asyncio.Task[None]] = set()
        self._perform: dict[Action, Callable[[], Awaitable[None]]] = {
            Action.WRITE_SPEC: self._write_spec,
            Action.START_TRAINER: self._start_trainer,
            Action.PACE_TRAINER: self._pace_trainer,
            Action.PAUSE_TRAINER: self._pause_trainer,
            Action.RESUME_TRAINER: self._resume_trainer,
            Action.STOP_TRAINER: self._stop_trainer,
            Action.KILL_TRAINER: self._kill_trainer,
            Action.VERIFY_CANDIDATE: self._verify_candidate,
            Action.PROMOTE: self._promote,
            Action.SWAP: self._swap,
            Action.START_PROBATION: self._start_probation,
            Action.QUARANTINE: self._quarantine,
            Action.RECORD_OUTCOME: self._record_outcome,
        }

    # -------------------------------------------------------------------------------------------------- events

    @property
    def is_training(self) -> bool:
        """Whether a trainer process exists."""
        return self.trainer is not None

    @property
    def duty(self) -> float:
        """The share of the time in which a trainer may compute just now; 0 while none does."""
        if self.machine.state is not RoundState.TRAINING or self.trainer is None:
            return 0.0
        return 1.0 if self._sent_duty is None else self._sent_duty

    @property
    def is_unrecorded(self) -> bool:
        """Whether the database has not taken the end of the last round yet."""
        return self._unrecorded is not None

    async def tick(self, verdict: Verdict, want: Want, power: Measurement | None, *, is_held: bool = False) -> None:
        """
        Turn what has happened since the last tick into events and take them.

        Args:
            verdict: what the budget says.
            want: a round, or none.
            power: the board's now, in watts.
            is_held: no round may begin just now, for a reason that passes.
        """
        if self._fault is not None:
            raise self._fault
        async with self._lock:
            if not self._is_saved:
                await self._save_now_or_later()
            self._count(power)
            if not is_held:
                await self._look(verdict, want)

    def _count(self, power: Measurement | None) -> None:
        """The time that was trained, and what the board used meanwhile."""
        now_s = self._clock.now_s()
        last_s, self._last_tick_s = self._last_tick_s, now_s
        if self.machine.state is not RoundState.TRAINING:
            self.spending.rest()
            return
        joules = self.spending.add(now_s - last_s, power, now_s, duty=self.duty)
        if joules is not None and self.trainer is not None:
            self.trainer.set_energy(joules)

    async def _look(self, verdict: Verdict, want: Want) -> None:
        now_s = self._clock.now_s()
        before = self.machine.state
        if self._unrecorded is not None and not await self._is_recorded_now():
            return
        while not self._arrived.empty():
            await self._take_arrived(*self._arrived.get_nowait())
        overdue = self._overdue(now_s)
        if overdue is not None:
            await self._take(overdue)
        if self.machine.state is not before and self.machine.state is RoundState.IDLE:
            return  # `want` was asked for the world before this round ended
        is_own = self.spec is None and self.want is not None and self.want.kind is RoundKind.IMPRINT
        if (
            self.machine.state is RoundState.COOLDOWN
            and want.is_wanted
            and want.kind is RoundKind.IMPRINT
            and not is_own
        ):
            # What failed before was another thing and still waits for the end of its cool-down, see `trigger.consider`.
            # An imprint that could not even begin waits like any other round: nothing says what samples it had.
            await self._take(Event(kind=EventKind.COOLDOWN_OVER))
        if self.machine.state in (RoundState.IDLE, RoundState.HELD) and want.is_wanted:
            self.want = want
            await self._take(Event(kind=EventKind.WANTED, reason=want.reason))
        elif self.machine.state is RoundState.HELD and not want.is_wanted:
            await self._take(Event(kind=EventKind.UNWANTED, reason=want.reason))
        if self.machine.state is RoundState.SUSPENDED and now_s - self._entered_s < self.spending.resume_delay_s():
            return
        if verdict.breach is BreachKind.TOO_BIG and self.machine.state in (RoundState.TRAINING, RoundState.PAUSED):
            self.spending.memory_stops += 1
        await self._take(rounds.budget_event(verdict))

    async def _take_arrived(self, round_id: int, event: Event) -> None:
        """Take the word of a trainer or of a verification, unless the round has gone on without it."""
        is_verdict = event.kind in (EventKind.VERIFIED, EventKind.REFUSED)
        waiting = (RoundState.VERIFYING,) if is_verdict else _WITH_TRAINER
        if self.spec is not None and self.spec.round_id == round_id and self.machine.state in waiting:
            await self._take(event)
        elif is_verdict:
            self._promotion.discard()

    def _overdue(self, now_s: float) -> Event | None:
        state, for_s, limits = self.machine.state, now_s - self._entered_s, self.settings
        may_send = state in (RoundState.TRAINING, RoundState.PAUSED, RoundState.SUSPENDED)
        if may_send and self.spec is not None and (why := forbidden(self.spec, limits)):
            return Event(kind=EventKind.CANCEL_ASKED, reason=why)
        if state in (RoundState.TRAINING, RoundState.PAUSED) and (spent := self.spending.over_budget(limits)):
            return Event(kind=EventKind.DEADLINE_PASSED, reason=spent)
        if state is RoundState.TRAINING and self.trainer is not None:
            silent_s = self.trainer.silent_s()
            if silent_s > limits.stall_s:
                return Event(kind=EventKind.STALLED, reason=f"no progress for {silent_s:.0f} s (budgets.stall)")
        if state is RoundState.PAUSED and for_s > limits.paused_max_s:
            return Event(kind=EventKind.PAUSED_TOO_LONG, reason=f"paused for {for_s:.0f} s (budgets.paused_max)")
        if state is RoundState.STOPPING and for_s > limits.stop_grace_s:
            return Event(kind=EventKind.GRACE_OVER, reason=f"did not stop within {limits.stop_grace_s:.0f} s")
        if state is RoundState.SUSPENDED and (why := self.spending.expired(limits, self._time.now_s())):
            return Event(kind=EventKind.SPEC_EXPIRED, reason=why)
        if state is RoundState.VERIFYING and for_s > _VERIFY_TIMEOUT_S:
            return Event(kind=EventKind.TIMED_OUT, reason="the candidate could not be verified in time")
        if state is RoundState.COOLDOWN and self._time.now_s() >= self.cooldown_ends_s:
            return Event(kind=EventKind.COOLDOWN_OVER)
        return None

    async def cancel(self) -> None:
        """An operator's wish to end the round; it will not be promoted."""
        async with self._lock:
            await self._take(Event(kind=EventKind.CANCEL_ASKED, reason="cancelled by the operator"))

    async def _take(self, event: Event) -> None:
        """Step the machine and perform what it asks for, in order; only under the lock, one event at a time."""
        before = self.machine
        after, actions = rounds.step(before, event)
        for action in actions:
            try:
                await self._do(action, event)
            except _EXPECTED as error:
                failed = _failed(action, error)
                if failed is None:
                    # What is promoted stays promoted; the record is tried again at each tick, and at the next start.
                    await self._events.emit("round.unrecorded", str(error), level=logging.ERROR)
                    continue
                self.machine = after if failed.kind is EventKind.START_FAILED else before
                await self._take(failed)
                return
        self.machine = after
        if after.state is not before.state:
            self._entered_s = self._clock.now_s()
            await self._say(before, after)
        if after.state is not before.state or after.is_cancelled != before.is_cancelled:
            self._is_saved = False
            await self._save_now_or_later()

    async def _do(self, action: Action, event: Event) -> None:
        self._event = event
        await self._perform[action]()

    async def _say(self, before: Round, after: Round) -> None:
        number = "" if self.spec is None else f"round {self.spec.round_id} "
        await self._events.emit(
            f"round.{after.state.value}",
            f"{number}{before.state.value} -> {after.state.value}" + (f": {after.reason}" if after.reason else ""),
        )

    async def _save_now_or_later(self) -> None:
        """A full disk stops no round and no service: `tick` tries again."""
        with contextlib.suppress(StoreError):
            await self.save()
            self._is_saved = True

    async def save(self) -> None:
        """Keep what cannot be read from the disk otherwise."""
        await self._store(
            self._history.set_state,
            _STATE_KEY,
            {
                "round_id": None if self.spec is None else self.spec.round_id,
                "state": self.machine.state.value,
                "is_cancelled": self.machine.is_cancelled,
                **self.spending.as_state(),
                "failures": self.failures,
                "cooldown_ends_s": self.cooldown_ends_s,
            },
        )

    # ------------------------------------------------------------------------------------------------- actions

    async def _write_spec(self) -> None:
        assert self.want is not None
        manifest = self._serving.manifest()
        if manifest is None:
            raise NoSamplesError("no model is served, so there is nothing to start from")
        self.spec = None  # should writing it fail, no former round is blamed
        self.spending = Spending(self._time.now_s())
        self._promotion.forget()
        limits = self.settings
        self.spec = await self._store(
            self.records.write_spec, self.want, manifest, limits, generation=self._serving.generation
        )
        self._outcome = TrainerOutcome.KILLED

    async def _start_trainer(self) -> None:
        assert self.spec is not None
        most_mib = self.settings.recipe.memory_max_mib
        journal = await self._store(self.records.journal, self.spec.round_id)
        why = forecasts.why_none_fits(self.spec.history, most_mib) or forecasts.why_not_resumed(journal, most_mib)
        if why:
            self._outcome = TrainerOutcome.WILL_NOT_FIT
            await self._arrived.put((self.spec.round_id, rounds.exit_event(self._outcome, why)))
            return
        trainer = self._make_trainer()
        directory = self.records.directory(self.spec.round_id)
        await trainer.start(directory, nice=self.settings.nice, oom_score_adj=self.settings.oom_score_adj)
        self.spending.begin_start()
        self.trainer, self._sent_duty = trainer, None
        self._spawn(self._await_exit(trainer, self.spec.round_id))

    async def _await_exit(self, trainer: Trainer, round_id: int) -> None:
        end = await trainer.wait()
        self.trainer = None
        self._outcome = end.outcome
        message = f"{end.message} ({end.hint})" if end.hint else end.message
        await self._arrived.put((round_id, rounds.exit_event(end.outcome, message)))

    async def _pace_trainer(self) -> None:
        if self.trainer is not None and self._event.duty != self._sent_duty:
            self._sent_duty = self._event.duty
            self.trainer.set_duty(self._event.duty)

    async def _pause_trainer(self) -> None:
        if self.trainer is not None:
            self.trainer.pause()

    async def _resume_trainer(self) -> None:
        if self.trainer is not None:
            self.trainer.resume()

    async def _stop_trainer(self) -> None:
        if self.trainer is not None:
            self.trainer.stop()

    async def _kill_trainer(self) -> None:
        if self.trainer is not None:
            self.trainer.kill()

    async def _verify_candidate(self) -> None:
        assert self.spec is not None
        self._spawn(self._verify(self.spec))

    async def _verify(self, spec: RoundSpec) -> None:
        await self._arrived.put((spec.round_id, await self._promotion.verify(spec, self.settings.gate)))

    async def _promote(self) -> None:
        assert self.spec is not None
        await self._promotion.promote(self.spec)

    async def _swap(self) -> None:
        await self._promotion.swap()

    async def _start_probation(self) -> None:
        assert self.spec is not None
        await self._promotion.start_probation(self.spec, self.settings.probation.duration_s)

    async def _quarantine(self) -> None:
        if self.spec is not None:
            await self._promotion.quarantine(self.spec, self._event.reason or "its round was given up")

    async def _record_outcome(self) -> None:
        target = rounds.step(self.machine, self._event)[0].state
        if self.spec is None:
            self._cool_down()
        elif target is RoundState.SUSPENDED:
            await self._store(self.records.suspend, self.spec, self._event.reason)
        else:
            await self._finish(self.spec, self._event, is_promoted=target is RoundState.IDLE)

    def _cool_down(self) -> None:
        self.failures += 1
        limits = self.settings
        wait_s = limits.cooldown_s
        for _ in range(1, self.failures):  # a product that is too large is infinite, a power would raise
            wait_s *= limits.cooldown_factor
        self.cooldown_ends_s = self._time.now_s() + min(limits.cooldown_max_s, wait_s)

    async def _finish(self, spec: RoundSpec, ending: Event, *, is_promoted: bool) -> None:
        is_refused = ending.kind in (EventKind.REFUSED, EventKind.TIMED_OUT, EventKind.ACTION_FAILED)
        outcome = "promoted" if is_promoted else self._name_of(ending)
        if spec.kind is RoundKind.IMPRINT:
            pass  # says nothing about the next real round; when it may be tried again: `decide.imprinting`
        elif is_promoted:
            self.failures = 0
        else:
            self._cool_down()
        reason = self.machine.reason if self.machine.is_cancelled else ending.reason
        self._unrecorded = functools.partial(
            self.records.end,
            spec,
            outcome=outcome,
            message=reason,
            decision=self._promotion.decision,
            trained_s=self.spending.trained_s,
            trained_j=self.spending.trained_j,
            duty=self.spending.duty,
            is_energy_estimated=self.spending.is_energy_estimated,
            ended_service_s=self._time.now_s(),
            is_consumed=(is_promoted or is_refused) and spec.kind is not RoundKind.IMPRINT,
        )
        await self._store(self._unrecorded)
        self._unrecorded = None
        await self._events.emit(
            "round.ended", f"round {spec.round_id} {outcome}: {reason}", round=spec.round_id, outcome=outcome
        )
        candidates = (self._serving.served.version, self._serving.trial.fallback)
        protect = {version for version in candidates if version is not None}
        await self._store(self.records.tidy, keep=self.settings.versions_kept, protect=protect)

    async def _is_recorded_now(self) -> bool:
        """Try again what the database did not take. Until it does no round begins: the last one still holds its samples."""
        assert self._unrecorded is not None
        try:
            await self._store(self._unrecorded)
        except (StoreError, OSError):
            return False
        except EdgetuneError:
            self._unrecorded = None  # there is no row to write it into, nor will there be
            return True
        self._unrecorded = None
        await self._events.emit("round.recorded", "the end of the last round is written down now")
        return True

    def _name_of(self, ending: Event) -> str:
        if self.machine.is_cancelled or ending.kind is EventKind.CANCEL_ASKED:
            return "cancelled"
        if ending.kind in (EventKind.REFUSED, EventKind.TIMED_OUT, EventKind.ACTION_FAILED):
            return "refused"
        if ending.kind is EventKind.SPEC_EXPIRED:
            return "expired"
        return "not_started" if ending.kind is EventKind.START_FAILED else self._outcome.value

    # ------------------------------------------------------------------------------------------------ recovery

    async def recover(self) -> None:
        """Put the machine into the state that the disk implies, and finish what was begun."""
        saved = await self._store(self._history.get_state, _STATE_KEY) or {}
        self.failures = int(saved.get("failures", 0))
        self.cooldown_ends_s = float(saved.get("cooldown_ends_s", 0.0))
        self._entered_s = self._last_tick_s = self._clock.now_s()
        self.spec = await self._store(self.records.open_round)
        self.spending = Spending(self._time.now_s())
        if self.spec is not None and saved.get("round_id") == self.spec.round_id:
            self.spending = Spending.from_state(saved)
        else:
            saved = {**saved, "is_cancelled": False}
        if self.spec is None:
            await self._store(self.records.release_orphans)
            is_cooling = saved.get("state") == RoundState.COOLDOWN.value or self.failures > 0
            if is_cooling and self._time.now_s() < self.cooldown_ends_s:
                self.machine = Round(state=RoundState.COOLDOWN, reason="cool-down from before the restart")
            return
        is_cancelled = bool(saved.get("is_cancelled", False))
        published = self.spec.candidate_version in await self._store(self._models.versions)
        if published and await self._store(self._models.current) == self.spec.candidate_version:
            await self._finish_promotion(self.spec)
        elif is_cancelled:
            self.machine = Round(state=RoundState.SUSPENDED)
            if published:
                await self._store(self._models.quarantine, self.spec.candidate_version, "its round was cancelled")
            await self.cancel()
        elif published:
            self.machine = Round(state=RoundState.TRAINING)
            self._outcome = TrainerOutcome.PUBLISHED
            await self._take(rounds.exit_event(self._outcome, "before the restart"))
        else:
            self.machine = Round(state=RoundState.SUSPENDED, reason="interrupted by a restart")
            await self._say(Round(), self.machine)

    async def _finish_promotion(self, spec: RoundSpec) -> None:
        """The commit point was passed and the record was not: add it."""
        self._promotion.forget(GateDecision(is_promoted=True, reasons=("promoted before the restart",)))
        await self._start_probation()
        await self._finish(spec, Event(kind=EventKind.VERIFIED, reason="promoted before the restart"), is_promoted=True)
        self.machine = Round()
        await self.save()

    async def close(self) -> None:
        """Stop the trainer, giving it time to write its checkpoint."""
        trainer = self.trainer
        if trainer is None:
            return
        trainer.stop()
        try:
            await asyncio.wait_for(asyncio.gather(*self._tasks, return_exceptions=True), self.settings.stop_grace_s)
        except asyncio.TimeoutError:
            trainer.kill()
        await self.save()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._fault = task.exception()  # unexpected: the next tick ends the process, and start is recovery


def _failed(action: Action, error: Exception) -> Event | None:
    """The event that a failed action becomes; None where the round cannot be taken back any more."""
    if action in (Action.WRITE_SPEC, Action.START_TRAINER):
        return Event(kind=EventKind.START_FAILED, reason=str(error))
    if action is Action.PROMOTE:
        return Event(kind=EventKind.ACTION_FAILED, reason=str(error))
    return None
