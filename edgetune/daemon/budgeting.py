"""What the board can afford: its readings, how fast a trainer may work, what the day has used, and the wall round its memory."""

from __future__ import annotations

import asyncio
import logging
import shutil
from dataclasses import replace

from edgetune import config as configuration
from edgetune.clock import Clock
from edgetune.config import Config
from edgetune.daemon import settings
from edgetune.daemon.ledger import STATE_KEY, Ledger
from edgetune.daemon.parts import Events, ServiceTime, StoreThread
from edgetune.daemon.round_settings import Trainer
from edgetune.daemon.rounds import Rounds
from edgetune.daemon.serving import Serving
from edgetune.decide import governor
from edgetune.decide.governor import Governor
from edgetune.device.memory_wall import MemoryWall
from edgetune.device.sensors import Sensors
from edgetune.errors import SensorError
from edgetune.store.history import History
from edgetune.types import Measurement, Quantity, Reading, Verdict

log = logging.getLogger("edgetune")


class Budgeting:
    """
    Looks at the board once a tick and says what a trainer may take.

    Attributes:
        governor: what it knows and says.
        ledger: the day's account.
        memory_wall: the trainer's control group.
        sensors: of the board, real or simulated.
        reading: the last; None before the first tick.
        never_affordable: a sentence for each budget that no round can ever keep on this board.
    """

    def __init__(
        self, *, sensors: Sensors, ledger: Ledger, memory_wall: MemoryWall, serving: Serving, rounds: Rounds,
        history: History, store: StoreThread, service_time: ServiceTime, clock: Clock, events: Events,
    ) -> None:  # fmt: skip
        """Nothing is touched before `check` and `open`."""
        self.sensors, self.ledger, self.memory_wall = sensors, ledger, memory_wall
        self.never_affordable: list[str] = []
        self._serving, self._rounds, self._events = serving, rounds, events
        self._history, self._store, self._service_time, self._clock = history, store, service_time, clock
        self.governor = Governor()
        self.reading: Reading | None = None
        self._last_trainer: tuple[int, Trainer] | None = None
        self._wall_mib: float | None = None  # where the wall stands; None: nowhere

    @property
    def verdict(self) -> Verdict:
        """What the budget says now."""
        return self.governor.verdict

    async def check(self, config: Config) -> None:
        """
        A budget that this board cannot measure would withhold every round for ever; say so at once.

        Raises:
            SensorError: there is one.
        """
        supported = await asyncio.to_thread(self.sensors.supported)
        problems = settings.unmeasurable(config, {**supported, **self._own_measurements(config)})
        if problems:
            raise SensorError("\n".join(problems), hint="take the key out; for power, budgets.estimate makes one up")

    async def name_never_affordable(self, config: Config, *, board_mib: float | None) -> None:
        """Say which budgets no round can ever keep on a board of this size; predictions are served all the same."""
        disk = await asyncio.to_thread(shutil.disk_usage, config.paths.state_dir)
        self.never_affordable = settings.never_affordable(config, board_mib=board_mib, disk_mib=disk.total / 2**20)
        for sentence in self.never_affordable:
            await self._events.emit("budget.impossible", sentence, level=logging.WARNING)

    async def open(self) -> None:
        """Go on with the day's account, once the database is open."""
        saved = await self._store(self._history.get_state, STATE_KEY)
        self.ledger.load(saved, wall_s=self._clock.wall_s(), service_s=self._service_time.now_s())

    def raise_wall(self, config: Config) -> None:
        """A control group for the trainer, where the kernel and systemd allow it."""
        why_not = self.memory_wall.open()
        if why_not:
            log.info("no control group keeps the trainer's memory below its budget, readings do: %s", why_not)
        self.place_wall(config)

    def place_wall(self, config: Config) -> None:
        """Put the wall where the configuration wants it: nearer only when no trainer runs, which the kernel might kill for it."""
        wanted = configuration.limits(config).trainer_rss_max_mib
        is_nearer = wanted is not None and (self._wall_mib is None or wanted < self._wall_mib)
        if wanted == self._wall_mib or (is_nearer and self._rounds.is_training):
            return  # readings stop a trainer that holds more than its new limit, with a checkpoint
        try:
            self.memory_wall.limit(wanted)
        except OSError as error:
            log.warning("the limit of the trainer's control group cannot be set: %s", error)
        self._wall_mib = wanted

    async def tick(self, config: Config, *, withheld: str) -> Reading:
        """
        Look once and judge once.

        Args:
            config: as it is now.
            withheld: an operator's reason why nothing may run, or empty.
        """
        trainer = self._rounds.trainer
        self.place_wall(config)
        reading = self.reading = await self._look(config)
        self.governor = governor.step(
            self.governor,
            reading,
            configuration.limits(config),
            worked=self._rounds.duty,
            is_training=trainer is not None and trainer.pid is not None,
            withheld=withheld,
        )
        return reading

    async def _look(self, config: Config) -> Reading:
        """The board and the day's account as they are now."""
        trainer = self._rounds.trainer
        pid = None if trainer is None else trainer.pid
        if self._last_trainer is not None and self._last_trainer[0] != pid:
            self.ledger.trainer_ended(self._last_trainer[0], self._last_trainer[1].written_bytes)
        self._last_trainer = None if trainer is None or pid is None else (pid, trainer)
        reading = await asyncio.to_thread(self.sensors.read, pid)
        await asyncio.to_thread(
            self.ledger.take,
            reading.values.get(Quantity.POWER_W),
            is_training=self._rounds.duty > 0,
            trainer_pid=pid,
            now_s=reading.at_s,
            wall_s=reading.wall_s,
            service_s=self._service_time.now_s(),
        )
        return replace(reading, values={**reading.values, **self._own_measurements(config)})

    def _own_measurements(self, config: Config) -> dict[Quantity, Measurement]:
        """What the service measures by itself: the day's account, and how late its own predictions are."""
        p99 = Measurement(value=self._serving.p99_ms(config.budgets.window), source="the service's own predictions")
        return {**self.ledger.measurements(), Quantity.SERVING_P99_MS: p99}

    async def save(self) -> None:
        """Service time and the day's account, in one commit."""
        states = {**self._service_time.as_state(), STATE_KEY: self.ledger.as_state()}
        await self._store(self._history.set_states, states)
