"""
The daemon: builds every part, looks at the world once a tick, and lets `decide` say what to do.

A tick reads the board, asks the budget and the trigger, hands both to the round machine, and pings systemd's watchdog
last: a daemon that hangs anywhere in a tick is restarted. An expected fault is an event; an unexpected one ends the
process, because start is recovery.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from edgetune import config as configuration
from edgetune.clock import Clock
from edgetune.config import Config
from edgetune.daemon import settings
from edgetune.daemon import status as words
from edgetune.daemon.books import Books
from edgetune.daemon.budgeting import Budgeting
from edgetune.daemon.considering import Considering
from edgetune.daemon.ingest import Inbox, Ingest
from edgetune.daemon.ledger import Ledger
from edgetune.daemon.parts import Events, ServiceTime, StateLock, StoreThread
from edgetune.daemon.planning import Planning
from edgetune.daemon.rejecting import Rejecting
from edgetune.daemon.returning import Returning
from edgetune.daemon.round_records import RoundRecords, iso
from edgetune.daemon.round_settings import Trainer
from edgetune.daemon.rounds import Rounds
from edgetune.daemon.serving import Serving
from edgetune.daemon.watching import Watching
from edgetune.decide.trigger import ManualRequest, Want
from edgetune.device.board import Board, identify
from edgetune.device.memory_wall import MemoryWall
from edgetune.device.sensors import Sensors
from edgetune.device.systemd import Notifier
from edgetune.device.trainer_process import TrainerProcess
from edgetune.errors import ConfigError, ConflictError, SensorError, StoreError
from edgetune.images import ImageLimits
from edgetune.store.buffer import Buffer
from edgetune.store.history import History
from edgetune.store.models import Models
from edgetune.types import (
    BufferStats,
    Preprocess,
    Quantity,
    RoundKind,
    RoundState,
)

log = logging.getLogger("edgetune")

# While a round is under way the answer is for `status` alone.
_DECIDED = (RoundState.TRAINING, RoundState.PAUSED, RoundState.STOPPING, RoundState.SUSPENDED, RoundState.VERIFYING)
_CONSIDERED_EVERY_S = 30.0


class Daemon:
    """Everything that `edgetune run` holds. `open`, then `tick` for ever, then `close`."""

    def __init__(
        self,
        config: Config,
        config_path: Path,
        *,
        clock: Clock,
        sensors: Sensors | None = None,
        make_trainer: Callable[[], Trainer] | None = None,
        make_inbox: Callable[[], Inbox] | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        """Build the parts; nothing is touched before `open`. What is left out is this board's."""
        self.config, self.config_path, self.clock = config, config_path, clock
        state_dir = config.paths.state_dir
        self.image_limits = ImageLimits(max_bytes=config.inbox.max_file, max_pixels=int(config.inbox.max_pixels))
        self.stores_model_size = config.buffer.store == "model_size"
        self.store = StoreThread()
        self.buffer = Buffer(state_dir / "edgetune.db", settings.buffer_policy(config), clock=clock)
        self.history = History(
            self.buffer,
            clock=clock,
            readings_interval_s=config.buffer.readings_interval,
            readings_max_age_s=config.buffer.readings_max_age,
        )
        self.models = Models(state_dir / "models", quarantine=state_dir / "quarantine" / "models")
        self.events = Events(self.history, self.store)
        self.service_time = ServiceTime(clock, self.history)
        self.serving = Serving(
            models=self.models,
            buffer=self.buffer,
            history=self.history,
            store=self.store,
            events=self.events,
            clock=clock,
            service_time=self.service_time,
            threads=configuration.serving_threads(config),
            spinning=config.serving.spinning,
            image_limits=self.image_limits,
            keep_images=config.buffer.keep_prediction_images,
            rejecting=Rejecting(
                models=self.models,
                threads=configuration.serving_threads(config),
                clock=clock,
                below=config.serving.reject,
                sharpness=lambda version: self.watching.sharpness_of(version),  # noqa: PLW0108 - it is made below
            ),
        )
        records = RoundRecords(
            state_dir=state_dir, models=self.models, buffer=self.buffer, history=self.history, clock=clock
        )
        self.returning = Returning(
            models=self.models,
            buffer=self.buffer,
            history=self.history,
            records=records,
            store=self.store,
            events=self.events,
            clock=clock,
            serving=self.serving,
            image_limits=self.image_limits,
            policy=settings.return_policy(config),
            interval_s=config.triggers.returned_class_interval,
        )
        self.watching = Watching(
            buffer=self.buffer,
            history=self.history,
            store=self.store,
            events=self.events,
            clock=clock,
            serving=self.serving,
            image_limits=self.image_limits,
            policy=settings.watch_policy(config),
        )
        memory_wall = MemoryWall()
        self.rounds = Rounds(
            records=records,
            settings=settings.round_settings(config),
            models=self.models,
            history=self.history,
            store=self.store,
            events=self.events,
            clock=clock,
            service_time=self.service_time,
            serving=self.serving,
            make_trainer=make_trainer or (lambda: TrainerProcess(clock=clock, wall=memory_wall)),
        )
        self.planning = Planning(
            records=records,
            store=self.store,
            make_planner=lambda: TrainerProcess(clock=clock, wall=memory_wall, is_plan=True),
        )
        self._considering = Considering(
            buffer=self.buffer,
            history=self.history,
            store=self.store,
            service_time=self.service_time,
            serving=self.serving,
            returning=self.returning,
            watching=self.watching,
            rounds=self.rounds,
        )
        self.budgeting = Budgeting(
            sensors=sensors or settings.board_sensors(config, clock),
            ledger=ledger or Ledger(state_dir),
            memory_wall=memory_wall,
            serving=self.serving,
            rounds=self.rounds,
            history=self.history,
            store=self.store,
            service_time=self.service_time,
            clock=clock,
            events=self.events,
        )
        self.books = Books(
            buffer=self.buffer,
            history=self.history,
            store=self.store,
            events=self.events,
            service_time=self.service_time,
            serving=self.serving,
            rounds=self.rounds,
            budgeting=self.budgeting,
            clock=clock,
        )
        self.notifier = Notifier()
        self.inbox: Inbox | None = None
        self._make_inbox = make_inbox or (lambda: settings.inbox(config, self.preprocess(), self.image_limits, clock))
        self.ingest: Ingest | None = None
        self._walls_in = make_trainer is None
        self.want = Want(is_wanted=False, kind=RoundKind.ADAPT, reason="starting")
        self._considered_s = float("-inf")
        self.is_paused = False
        self._manual: ManualRequest | None = None
        self.loaded_at = iso(clock.wall_s())
        self.restart_keys: list[str] = []
        self._lock = StateLock(state_dir)
        self.started_s = clock.now_s()
        self._ingest_task: asyncio.Task[None] | None = None
        self._check_task: asyncio.Task[None] | None = None
        self.board: Board | None = None

    # ------------------------------------------------------------------------------------------- start and end

    async def open(self) -> None:
        """
        Take the state directory, put right what the last run left behind, and serve.

        Raises:
            ConflictError: another daemon holds the state directory.
            SensorError: a budget is set on something that this board cannot measure.
        """
        try:
            self._lock.take()
        except ConflictError:
            self.let_go()
            raise
        try:
            await self._open()
        except BaseException:
            await self.close()
            raise

    async def _open(self) -> None:
        await self.budgeting.check(self.config)
        self.board = await asyncio.to_thread(identify)
        if self._walls_in:
            self.budgeting.raise_wall(self.config)
        self.notifier.extend_timeout(600)  # a damaged database takes long to rebuild on an SD card
        said = await self.store(self.buffer.open)
        said += await self.store(self.models.recover)
        await self.store(self.service_time.load)
        await self.budgeting.open()
        for sentence in said:
            await self.events.emit("recovered", sentence, level=logging.WARNING)
        self.is_paused = bool(await self.store(self.history.get_state, "operator_paused"))
        await self.serving.load_current()
        await self._note_served()
        await self._apply_classes()
        await self.returning.load()
        await self.watching.load()
        await self.rounds.recover()
        self._start_ingest()
        await self.budgeting.name_never_affordable(self.config, board_mib=self.board.memory_mib)
        self._check_task = asyncio.create_task(self.books.check())

    async def _note_served(self) -> None:
        manifest = self.serving.manifest()
        if manifest is None:
            await self.events.emit("model.none", "no model is served: edgetune models import", level=logging.WARNING)
            return
        factory = await self.store(self.models.factory)
        named = manifest if factory is None else await self.store(self.models.manifest, factory)
        await self.store(self.buffer.set_factory_classes, named.classes)
        await self.events.emit("model.served", f"serving version {manifest.version}", version=manifest.version)

    def preprocess(self) -> Preprocess | None:
        """The served model's input; None while there is no model."""
        manifest = self.serving.manifest()
        return None if manifest is None else manifest.preprocess

    def _start_ingest(self) -> None:
        """Images wait in the inbox until a first model says at what size they are wanted."""
        preprocess = self.preprocess()
        if self.inbox is not None or (preprocess is None and self.stores_model_size):
            return
        self.inbox = self._make_inbox()
        self.inbox.start()
        self.ingest = Ingest(
            inbox=self.inbox, buffer=self.buffer, store=self.store, events=self.events, clock=self.clock
        )
        self._ingest_task = asyncio.create_task(self.ingest.forever())

    async def close(self, *, is_clean: bool = True) -> None:
        """Stop the trainer with a checkpoint, write what is unsaved, let the state directory go."""
        self.notifier.stopping("stopping")
        if self.inbox is not None:
            self.inbox.stop()
        tasks = [task for task in (self._ingest_task, self._check_task) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.notifier.extend_timeout(self.config.budgets.stop_grace + 10)
        for step in (
            self.returning.close,
            self.watching.close,
            self.rounds.close,
            self.serving.close,
            self.budgeting.save,
            *((self.serving.note_clean_stop,) if is_clean else ()),
            lambda: self.store(self.buffer.close),
        ):
            try:
                await step()
            except StoreError as error:
                log.warning("while stopping: %s", error)
        self.let_go()

    def let_go(self) -> None:
        """What the end of the process gives back in any case."""
        self.store.close()
        self.budgeting.sensors.close()
        self._lock.let_go()

    # ---------------------------------------------------------------------------------------------------- tick

    async def tick(self) -> None:
        """Look once, decide once, act once."""
        if self._ingest_task is not None and self._ingest_task.done():
            self._ingest_task.result()  # an unexpected fault there ends the process as one here does
        withheld = "paused by the operator: edgetune resume" if self.is_paused else ""
        reading = await self.budgeting.tick(self.config, withheld=withheld)
        self.planning.tick(self.budgeting.verdict)
        before = self.rounds.machine.state
        if before not in _DECIDED or self.clock.now_s() - self._considered_s >= _CONSIDERED_EVERY_S:
            self.want, self._considered_s = await self.consider(self._manual), self.clock.now_s()
        await self.rounds.tick(
            self.budgeting.verdict, self.want, reading.values.get(Quantity.POWER_W), is_held=self.planning.is_busy
        )
        now = self.rounds.machine.state
        if now is not before and now not in (RoundState.IDLE, RoundState.HELD):
            self._manual = None  # it was begun, well or badly
        is_round_active = now not in (RoundState.IDLE, RoundState.HELD, RoundState.COOLDOWN)
        await self.returning.tick(self.budgeting.verdict, is_round_active=is_round_active)
        await self.watching.tick(self.budgeting.verdict, is_round_active=is_round_active)
        if self.serving.rejecting.is_idle:
            await asyncio.to_thread(self.serving.rejecting.tidy)
        await self.books.keep(reading)
        if self.notifier.is_active:
            self.notifier.status(words.in_words(await self.status()))
            self.notifier.watchdog()

    async def consider(self, manual: ManualRequest | None) -> Want:
        """Is a round wanted?"""
        return await self._considering.consider(self.config, manual)

    @property
    def stats(self) -> BufferStats | None:
        """Of the buffer, as the last tick found it."""
        return self._considering.stats

    async def status(self) -> dict[str, Any]:
        """Everything `edgetune status` shows."""
        stats = self.stats if self.stats is not None else await self.store(self.buffer.stats)
        rows = await self.store(self.history.rounds, 5)
        last = next((row for row in rows if row["ended_at_s"] is not None), None)
        return words.whole(self, stats, last, await self.store(self.history.estimates, words.ESTIMATES_SHOWN))

    # ------------------------------------------------------------------------------------------ operator's acts

    def ask_for_round(self, request: ManualRequest) -> None:
        """Want a round at the next tick, and end a cool-down for it."""
        self._manual = request
        self.rounds.cooldown_ends_s = 0.0

    async def set_paused(self, is_paused: bool) -> dict[str, Any]:  # noqa: FBT001 - the one thing it is about
        """Withhold or allow training; persisted."""
        self.is_paused = is_paused
        await self.store(self.history.set_state, "operator_paused", is_paused)
        await self.events.emit("operator.paused" if is_paused else "operator.resumed", "by the operator")
        return {"paused": is_paused}

    async def cancel(self) -> None:
        """End the round under way."""
        self._manual = None
        await self.rounds.cancel()

    async def reload(self) -> dict[str, Any]:
        """
        Read the configuration again and swap it whole; also serve a first model that was imported since the start.

        Raises:
            ConfigError: it is not valid; the old one stays in force.
        SensorError: a new budget cannot be measured; likewise.
        """
        self.notifier.reloading()
        try:
            new = configuration.load(self.config_path)
            await self.budgeting.check(new)
        except (ConfigError, SensorError) as error:
            await self.events.emit("config.refused", error.message, level=logging.ERROR)
            raise
        finally:
            self.notifier.ready()
        changed = configuration.changed_keys(self.config, new)
        self.restart_keys = configuration.needs_restart(self.config, new)
        self.config = settings.merged(self.config, new)
        self.loaded_at = iso(self.clock.wall_s())
        self.budgeting.place_wall(self.config)
        self.rounds.settings = settings.round_settings(self.config)
        self.returning.policy = settings.return_policy(self.config)
        self.returning.interval_s = self.config.triggers.returned_class_interval
        self.watching.policy = settings.watch_policy(self.config)
        self.serving.rejecting.below = self.config.serving.reject
        await self.store(self.buffer.configure, settings.buffer_policy(self.config))
        await self._apply_classes()
        if self.serving.served.version is None:
            await self.serving.load_current()
            await self._note_served()
            self._start_ingest()
        await self.events.emit("config.reloaded", f"{len(changed)} keys changed", changed=changed)
        await self.budgeting.name_never_affordable(self.config, board_mib=self.board.memory_mib if self.board else None)
        return {"changed": changed, "needs_restart": self.restart_keys, "served": self.serving.served.version}

    async def _apply_classes(self) -> None:
        classes = self.config.classes
        await self.store(self.buffer.settle_classes, accepted=classes.accepted, refused=classes.refused)

    @contextlib.asynccontextmanager
    async def long_store_work(self) -> AsyncIterator[None]:
        """Keep systemd's watchdog quiet while the store's one thread compacts the database and ticks must wait."""

        async def ping() -> None:
            while True:
                self.notifier.watchdog()
                await asyncio.sleep(self.tick_interval_s())

        pings = asyncio.create_task(ping())
        try:
            yield
        finally:
            pings.cancel()

    def tick_interval_s(self) -> float:
        """Time between two ticks: the configured one, but often enough for systemd's watchdog."""
        watchdog_s = self.notifier.watchdog_interval_s()
        interval_s: float = self.config.budgets.interval
        return interval_s if watchdog_s is None else min(interval_s, watchdog_s / 2)
