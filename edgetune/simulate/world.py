"""All that is outside the daemon: the board, its load, its disk, its camera, the trainer, and what befalls them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path

from edgetune.simulate.board import BoardModel
from edgetune.simulate.clock import SimulatedClock
from edgetune.simulate.scenario import DAY_S, Happening, Scenario
from edgetune.simulate.site import Camera
from edgetune.simulate.supply import Supply
from edgetune.simulate.trainer import SimulatedTrainer
from edgetune.store import durable
from edgetune.store.buffer import Buffer
from edgetune.types import Measurement, Quantity, Reading

_MIB = 2**20
_NO_POWER = "the board has no power sensor that edgetune knows; budgets.estimate makes it up from CPU use"
_NO_SUPPLY = "the simulated board has nothing that tells; --battery gives it a battery"
_SAME = {
    Quantity.MEM_PRESSURE: Measurement(value=0.0, source="/proc/pressure/memory"),
    Quantity.IO_PRESSURE: Measurement(value=0.0, source="/proc/pressure/io"),
}
_POWER_SAMPLES = 4  # of a tick beside a trainer, as `device.mean_power` takes them of a Raspberry Pi 5
_DISK_FULL = 28  # ENOSPC
# Bytes written to an SSD with ext4 by the real buffer: a kept reading, a saved value, and a stored image, whose bytes go into
# the log and the database and take whole pages there.
_READING_BYTES, _VALUE_BYTES, _IMAGE_BYTES, _IMAGE_TIMES = 13_000, 8_200, 17_000, 3.5
_VALUES_PER_S = 2 / 60  # service time and the round's state, once a minute


class World:
    """
    One board's outside. Time comes to it from the clock that the daemon lives by.

    Attributes:
        elapsed_s: since the start of the simulation, whatever the board's clocks say.
        trainer: that runs, or ran last.
        supply: what feeds the board.
        energy_j: that the board has drawn, as it is and not as its sensor says.
        written_bytes: by edgetune, to disk.
    """

    def __init__(self, scenario: Scenario, *, group_block_s: float, readings_interval_s: float) -> None:
        """A board at rest, at the scenario's start."""
        self.scenario = scenario
        self.elapsed_s = 0.0
        self._offset_s = scenario.start.timestamp()  # of the board's wall clock
        self.board = BoardModel(scenario.board, ambient_c=self._ambient_c(), seed=scenario.seed)
        self.camera = Camera(scenario, group_block_s=group_block_s, wall_s=self.wall_s)
        self.trainer: SimulatedTrainer | None = None
        self.supply = Supply(scenario.battery_j)
        self.cpu_share = 0.0
        self.cpu_pressure = 0.0  # the share of the time in which somebody waits for a core
        self.energy_j = 0.0
        self.written_bytes = 0.0
        self._service_bytes = 0.0  # of this run of the service
        self.stored_mib = 0.0  # what edgetune keeps on the disk
        self.full_until_s = 0.0
        self.mains_back_s = 0.0
        self._books_bytes_per_s = _READING_BYTES / max(1.0, readings_interval_s) + _VALUE_BYTES * _VALUES_PER_S
        self._happenings = sorted(scenario.happenings, key=lambda happening: happening.at_s)

    # --------------------------------------------------------------------------------------------------- time

    def wall_s(self) -> float:
        """What the board's clock on the wall says."""
        return self._offset_s + self.elapsed_s

    def boot(self) -> SimulatedClock:
        """The clock of a board that has just been switched on."""
        self.trainer, self._service_bytes = None, 0.0
        return SimulatedClock(now_s=20.0, wall_s=self.wall_s(), passing=self._pass)

    def switch_off(self, seconds: float) -> None:
        """No power for so long: the board cools down, nobody works, the camera sees nothing."""
        self.trainer = None
        begin_s = self.elapsed_s
        self.elapsed_s += min(seconds, self.scenario.days * DAY_S - begin_s)
        self.board.rest(self.elapsed_s - begin_s)
        self.supply.is_on_mains = self.elapsed_s >= self.mains_back_s - 1e-6

    def _pass(self, seconds: float) -> None:
        self.elapsed_s += seconds
        self.board.ambient_c = self._ambient_c()
        trainer = self.trainer
        others = self.scenario.load * self.scenario.activity(self.elapsed_s)
        wanted = others + (0.0 if trainer is None else trainer.load)
        self.cpu_share, self.cpu_pressure = min(1.0, wanted), min(1.0, max(0.0, wanted - 1.0))
        drawn_j = self.board.step(seconds, self.cpu_share)
        self.energy_j += drawn_j
        self.supply.feed(seconds, drawn_j)
        self.supply.is_on_mains = self.elapsed_s >= self.mains_back_s - 1e-6
        self._write(self._books_bytes_per_s * seconds)
        if trainer is not None:
            before = trainer.written_so_far
            trainer.work(seconds, self.board.clock_share)
            self.written_bytes += trainer.written_so_far - before
        self.camera.watch(self.elapsed_s, seconds)

    def _ambient_c(self) -> float:
        return self.scenario.ambient.at(self.scenario.hour(self.elapsed_s))

    # ------------------------------------------------------------------------------------------- what befalls it

    def next_s(self) -> float:
        """When the next thing happens, or the end."""
        end_s = self.scenario.days * DAY_S
        ends = [end_s for end_s in (self.full_until_s, self.mains_back_s) if end_s > self.elapsed_s]
        return min([end_s, *ends, *(happening.at_s for happening in self._happenings[:1])])

    def take(self) -> Happening | None:
        """What happens now."""
        if self._happenings and self._happenings[0].at_s <= self.elapsed_s:
            return self._happenings.pop(0)
        return None

    def jump(self, by_s: float, clock: SimulatedClock) -> None:
        """The board's clock on the wall is set."""
        self._offset_s += by_s
        clock.set_wall(self.wall_s())

    @property
    def is_over(self) -> bool:
        """Whether all days have passed."""
        return self.elapsed_s >= self.scenario.days * DAY_S - 1e-6

    # ------------------------------------------------------------------------------------------------- the disk

    @property
    def is_disk_full(self) -> bool:
        """Whether something has filled it."""
        return self.elapsed_s < self.full_until_s

    def store(self, images: int) -> None:
        """So many images were written into the buffer."""
        self._write(images * (_IMAGE_TIMES * self.scenario.image_bytes + _IMAGE_BYTES))

    def _write(self, count: float) -> None:
        self.written_bytes += count
        self._service_bytes += count

    def written_by(self, pid: int | None) -> int | None:
        """Bytes that the service (None) or the trainer has written since it was started, as the kernel counts them."""
        if pid is None:
            return round(self._service_bytes)
        return None if self.trainer is None or self.trainer.pid != pid else self.trainer.written_so_far

    def keep(self, images: int) -> None:
        """So many images are in the buffer."""
        self.stored_mib = images * self.scenario.image_bytes / _MIB

    def disk_free_mib(self) -> float:
        """What is left."""
        if self.is_disk_full:
            return 0.0
        filled = self.stored_mib + self.scenario.disk_fill_mib_per_day * self.elapsed_s / DAY_S
        return max(0.0, self.scenario.disk_free_mib - filled)


class FullDisk(durable.FileSystem):
    """A file system that takes nothing while the world's disk is full."""

    def __init__(self, world: World) -> None:
        """All else is as it is."""
        self._world = world

    def write(self, path: Path, data: bytes) -> None:
        """Unless it is full."""
        self._refuse_if_full(path)
        super().write(path, data)

    def mkdir(self, path: Path) -> None:
        """Unless it is full."""
        self._refuse_if_full(path)
        super().mkdir(path)

    def symlink(self, path: Path, target: str) -> None:
        """Unless it is full."""
        self._refuse_if_full(path)
        super().symlink(path, target)

    def _refuse_if_full(self, path: Path) -> None:
        if self._world.is_disk_full:
            raise OSError(_DISK_FULL, "No space left on device", str(path))


def let_grow(buffer: Buffer, *, is_allowed: bool) -> None:
    """Whether the buffer's file may become larger; where not, SQLite itself says that the disk is full."""
    database = buffer.database
    pages = 2**31 if is_allowed else database.execute("PRAGMA page_count").fetchone()[0]
    database.execute(f"PRAGMA max_page_count = {pages}")


class SimulatedSensors:
    """What the board's sensors say."""

    def __init__(
        self, world: World, clock: SimulatedClock, *, estimate: bool, idle_w: float | None, busy_w: float | None
    ) -> None:
        """`estimate`, `idle_w` and `busy_w` as of `BoardSensors`."""
        self._world, self._clock = world, clock
        self._estimate = (idle_w, busy_w) if estimate and idle_w is not None and busy_w is not None else None

    def read(self, trainer_pid: int | None) -> Reading:
        """All quantities now."""
        del trainer_pid
        wall_s = self._clock.wall_s()
        local = time.localtime(wall_s)
        return Reading(
            at_s=self._clock.now_s(),
            wall_s=wall_s,
            local_minute=local.tm_hour * 60 + local.tm_min,
            values=self.supported(),
        )

    def supported(self) -> Mapping[Quantity, Measurement]:
        """All that there is, as it is now."""
        world, facts = self._world, self._world.scenario.board
        held_mib = 0.0 if world.trainer is None else world.trainer.rss_mib
        free_mib = max(0.0, facts.memory_mib - facts.at_rest_mib - held_mib)
        return {
            Quantity.MEM_AVAILABLE_MIB: Measurement(value=free_mib, source="psutil"),
            Quantity.TRAINER_RSS_MIB: Measurement(value=held_mib, source="psutil"),
            Quantity.SOC_TEMP_C: Measurement(
                value=world.board.read_temp_c(), source=facts.temp_sensor, resolution=facts.temp_resolution_c
            ),
            Quantity.POWER_W: self._power(),
            Quantity.CPU_SHARE: Measurement(value=world.cpu_share, source="psutil"),
            Quantity.DISK_FREE_MIB: Measurement(value=world.disk_free_mib(), source="the disk"),
            Quantity.IS_THROTTLED: Measurement(value=float(world.board.is_throttled), source="the firmware"),
            Quantity.CPU_PRESSURE: Measurement(value=world.cpu_pressure, source="/proc/pressure/cpu"),
            **_SAME,
            **self._supply(),
        }

    def _supply(self) -> dict[Quantity, Measurement]:
        supply = self._world.supply
        told = {Quantity.ON_MAINS: float(supply.is_on_mains), Quantity.BATTERY_SHARE: supply.share}
        if supply.share is None:
            return {quantity: Measurement(value=None, source="none", why_unknown=_NO_SUPPLY) for quantity in told}
        return {
            quantity: Measurement(value=value, source="/sys/class/power_supply") for quantity, value in told.items()
        }

    def _power(self) -> Measurement:
        board, facts = self._world.board, self._world.scenario.board
        samples = 1 if self._world.trainer is None else _POWER_SAMPLES
        said = [watts for _ in range(samples) if (watts := board.read_power_w()) is not None]
        if said:
            watts = statistics.fmean(said)
            return Measurement(value=watts, source=str(facts.power_sensor), resolution=facts.power_resolution_w)
        if self._estimate is None:
            return Measurement(value=None, source="none", why_unknown=_NO_POWER)
        idle_w, busy_w = self._estimate
        made_up_w = idle_w + (busy_w - idle_w) * self._world.cpu_share
        return Measurement(value=made_up_w, source="estimated from CPU use", is_estimated=True)

    def close(self) -> None:
        """Nothing runs."""
