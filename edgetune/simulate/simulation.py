"""The real daemon, day after day, in a simulated world: built, ticked, pulled from its power, and built again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgetune.config import Config, limits
from edgetune.daemon.core import Daemon
from edgetune.daemon.ledger import Ledger
from edgetune.decide.budget import rules
from edgetune.simulate.clock import SimulatedClock, SimulatedLoop
from edgetune.simulate.network import factory_facts
from edgetune.simulate.record import Record
from edgetune.simulate.scenario import Happening, Scenario
from edgetune.simulate.site import STORED_BYTES, SimulatedInbox
from edgetune.simulate.tiny import publish_factory
from edgetune.simulate.trainer import SimulatedTrainer
from edgetune.simulate.world import FullDisk, SimulatedSensors, World, let_grow
from edgetune.store import durable
from edgetune.types import Quantity, RoundState, VerdictKind

_MEMORY_DISK = Path("/dev/shm")  # noqa: S108 - a directory of its own is made there
# Time between two ticks. While a trainer computes it is the configured one, as on a board, and these where nothing changes: a
# round begins, goes on or ends this much later at most.
_IDLE_S, _PAUSED_S, _STEADY_S, _HELD_STEADY_S = 120.0, 10.0, 10.0, 6.0
_SETTLED_S = 60.0  # after which a chip is as warm as its board makes it
_FAR = 0.1  # from a limit, as a share of it: no board gets there within `_STEADY_S`
_STILL = 0.03  # of duty: a governor that moves it no further has found it
_AT_WORK = (RoundState.TRAINING, RoundState.STOPPING, RoundState.VERIFYING)


def simulate(config: Config, scenario: Scenario) -> Record:
    """
    Live through a scenario with a configuration.

    Returns:
        What happened.

    Raises:
        SensorError: a budget is set on something that this board cannot measure, as `edgetune run` says it.
    """
    parent = _MEMORY_DISK if _MEMORY_DISK.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="edgetune-simulate-", dir=parent) as root, _quiet():
        config = _for_simulation(config, Path(root), scenario)
        world = World(
            scenario, group_block_s=config.buffer.group_block, readings_interval_s=config.buffer.readings_interval
        )
        before = durable.use_file_system(FullDisk(world))
        try:
            return _live(config, world)
        finally:
            durable.use_file_system(before)


def _for_simulation(config: Config, root: Path, scenario: Scenario) -> Config:
    """
    The same configuration in a directory of its own, for images of a few bytes and without what looks into images.

    No image is drawn, so that the watches over the model's answers would see nothing but noise.
    """

    def changed(section: str, **keys: Any) -> Any:
        return getattr(config, section).model_copy(update=keys)

    quota = max(1, round(config.buffer.quota * STORED_BYTES / scenario.image_bytes))
    return config.model_copy(
        update={
            "paths": changed("paths", state_dir=root / "state", inbox_dir=None, runtime_dir=root / "run"),
            "buffer": changed("buffer", quota=quota),
            "triggers": changed("triggers", watch_interval=None, drift_window=None, returned_class_sightings=None),
            "serving": changed("serving", threads=1, reject=None),
        }
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What a daemon logs on a board is no news here; its events are in the record."""
    log = logging.getLogger("edgetune")
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before


def _live(config: Config, world: World) -> Record:
    facts = factory_facts(world.scenario.network, world.scenario.board.trains_gmac_per_s)
    publish_factory(config.paths.state_dir, world.scenario.classes, **facts)
    record = Record(config, world.scenario)
    while not world.is_over:
        clock = world.boot()
        loop = SimulatedLoop(clock)
        try:
            loop.run_until_complete(_between_boots(config, world, clock, record))
        finally:
            loop.close()
    return record


def _daemon(config: Config, world: World, clock: SimulatedClock) -> Daemon:
    scenario, budgets = world.scenario, config.budgets

    def make_trainer() -> SimulatedTrainer:
        world.trainer = SimulatedTrainer(clock, scenario.network, scenario.board.trains_gmac_per_s, seed=scenario.seed)
        return world.trainer

    return Daemon(
        config,
        config.paths.state_dir / "config.yaml",
        clock=clock,
        sensors=SimulatedSensors(
            world, clock, estimate=budgets.estimate, idle_w=budgets.estimated_idle, busy_w=budgets.estimated_busy
        ),
        make_trainer=make_trainer,
        ledger=Ledger(
            config.paths.state_dir, written=world.written_by, disk_written=lambda _: round(world.written_bytes)
        ),
        make_inbox=lambda: SimulatedInbox(world.camera, clock, taken=world.store),
    )


async def _between_boots(config: Config, world: World, clock: SimulatedClock, record: Record) -> None:
    """From one start of the board to its next one, or to the end."""
    daemon = _daemon(config, world, clock)
    await daemon.open()
    record.begin(world)
    off_s = 0.0
    try:
        off_s = await _tick_on(daemon, world, clock, record)
    finally:
        await record.collect(daemon, world)
        if off_s <= 0:  # else the power is gone: what is not on the disk is lost
            await daemon.close()
        await _drop(daemon)
    world.switch_off(abs(off_s))


async def _tick_on(daemon: Daemon, world: World, clock: SimulatedClock, record: Record) -> float:
    """Until the board goes off; for how many seconds, below zero where the system stops its services before."""
    pace, was_full = _Pace(), False
    while True:
        if was_full != world.is_disk_full:
            was_full = world.is_disk_full
            let_grow(daemon.buffer, is_allowed=not was_full)
        await daemon.tick()
        world.keep(0 if daemon.stats is None else daemon.stats.samples)
        record.note(daemon, world)
        if world.is_over:
            return 0.0
        wait_s = min(pace.interval_s(daemon), world.next_s() - world.elapsed_s)
        await clock.sleep(max(1e-3, wait_s))
        if world.supply.is_out:
            off_s = world.mains_back_s - world.elapsed_s
            record.befell(Happening(kind="battery_empty", at_s=world.elapsed_s, length_s=off_s))
            return off_s
        while (happening := world.take()) is not None:
            record.befell(happening)
            if happening.kind == "brown_out":
                return happening.length_s
            if happening.kind == "reboot":
                return -happening.length_s
            _befall(happening, world, clock)


def _befall(happening: Happening, world: World, clock: SimulatedClock) -> None:
    if happening.kind == "disk_full":
        world.full_until_s = world.elapsed_s + happening.length_s
    elif happening.kind == "mains_out":
        world.mains_back_s = world.elapsed_s + happening.length_s
    else:
        world.jump(happening.length_s, clock)


class _Pace:
    """How long until the next tick: as on a board wherever that can make a difference."""

    def __init__(self) -> None:
        """No trainer computes."""
        self._since_s = 0.0  # that one computes at one duty
        self._duty = 0.0

    def interval_s(self, daemon: Daemon) -> float:
        """In seconds."""
        fine_s, now_s, state = daemon.tick_interval_s(), daemon.clock.now_s(), daemon.rounds.machine.state
        if state not in _AT_WORK:
            self._since_s = now_s
            is_blocked = daemon.budgeting.verdict.kind in (VerdictKind.PAUSE, VerdictKind.STOP)
            return max(fine_s, _PAUSED_S if is_blocked and daemon.rounds.is_training else _IDLE_S)
        if state is not RoundState.TRAINING or abs(daemon.budgeting.verdict.duty - self._duty) > _STILL:
            self._since_s, self._duty = now_s, daemon.budgeting.verdict.duty
        if now_s - self._since_s <= _SETTLED_S:
            return fine_s
        is_free = daemon.budgeting.verdict.kind is VerdictKind.RUN and _is_far_from_limits(daemon)
        return max(fine_s, _STEADY_S if is_free else _HELD_STEADY_S)


def _is_far_from_limits(daemon: Daemon) -> bool:
    reading = daemon.budgeting.reading
    if reading is None:
        return False
    for rule in rules(limits(daemon.config)):
        value, limit = reading.value(rule.quantity), rule.limit
        if rule.quantity is Quantity.ON_MAINS:  # they are there or not, and when that changes is known
            continue
        if value is None or limit is None or (value - limit if rule.is_floor else limit - value) < _FAR * abs(limit):
            return False
    return True


async def _drop(daemon: Daemon) -> None:
    """Leave nothing of it running; on a board the end of the process does that."""
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    daemon.buffer.close()
    daemon.let_go()
