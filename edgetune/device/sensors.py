"""
What the board reads now, each value with its source, its age and the step it makes, or with why it is unknown.

An unreadable, impossible or frozen sensor is unknown, and the budget takes unknown for over. psutil and /sys come
first; jtop and vcgencmd are asked for what they do not give. An estimate is made for power only, where the operator
asked for it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import psutil

from edgetune.clock import Clock, SystemClock
from edgetune.device import sysfs
from edgetune.device.board import identify
from edgetune.device.frozen import FrozenCheck
from edgetune.device.gpu_memory import gpu_memory
from edgetune.device.jtop import JtopProbe
from edgetune.device.mean_power import MeanPower
from edgetune.device.pressure import pressure
from edgetune.device.rails import RailPower
from edgetune.device.rapl import RaplPower
from edgetune.device.raspberry import Vcgencmd
from edgetune.device.supplies import battery_power, battery_share, on_mains
from edgetune.device.sysfs import SensorValue, UnreadableError
from edgetune.device.thermal import temperature
from edgetune.device.throttling import Throttling
from edgetune.device.trainer_process import process_family, process_rss_mib
from edgetune.types import Measurement, Quantity, Reading

_T = TypeVar("_T")

_MIB = 2**20
_MEMINFO_STEP_MIB = 1 / 1024
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / _MIB
_TICK_S = 0.01  # in which the kernel counts CPU time
_FROZEN_AFTER_S = 600.0
_LOAD_GAP_S = 0.05  # closer readings of the CPU's counters say nothing
_FIRST_ANSWER_S = 20.0  # how long a command, or jtop with its service, may take at the start
_ESTIMATE_SOURCE = "estimated from CPU use"
_NO_POWER = "the board has no power sensor that edgetune knows; budgets.estimate makes it up from CPU use"
_NO_TEMPERATURE = "the board has no temperature sensor that edgetune knows"


class CpuTimes(NamedTuple):
    """Seconds that all cores together have worked and existed."""

    busy_s: float
    total_s: float


class Sensors(Protocol):
    """Where readings come from: a board, or a fake one."""

    def read(self, trainer_pid: int | None) -> Reading:
        """All quantities now. Never raises: what cannot be read is None with a reason."""

    def supported(self) -> Mapping[Quantity, Measurement]:
        """What this board can measure: `value` is None where it cannot, and `why_unknown` says why."""

    def close(self) -> None:
        """End helper processes."""


class BoardSensors:
    """The sensors of the machine this runs on."""

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        clock: Clock | None = None,
        disk_path: Path = Path("/"),
        estimate: bool = False,
        idle_w: float | None = None,
        busy_w: float | None = None,
        jtop: JtopProbe | None = None,
        vcgencmd: Vcgencmd | None = None,
        cpu_times: Callable[[], CpuTimes] | None = None,
        frozen_after_s: float = _FROZEN_AFTER_S,
    ) -> None:
        """
        Take a first mark of the CPU's counters.

        Args:
            root: what stands above sys/ and proc/.
            clock: of monotonic and wall time.
            disk_path: whose file system must keep room: the state directory.
            estimate: make up power from CPU use where no sensor gives it, flagged as estimated.
            idle_w: power of the idle board, for the estimate.
            busy_w: power with all cores busy, for the estimate.
            jtop: a probe, on a Jetson.
            vcgencmd: the firmware's command, on a Raspberry Pi.
            cpu_times: default: psutil's.
            frozen_after_s: how long one unchanged value is believed while the load moves.
        """
        self._root = root
        self._clock: Clock = clock or SystemClock()
        self._disk_path = disk_path
        self._estimate = (idle_w, busy_w) if estimate and idle_w is not None and busy_w is not None else None
        self._jtop = jtop
        self._vcgencmd = vcgencmd
        self._cpu_times = cpu_times or _system_cpu_times
        kind = identify(root).kind
        self._shares_memory = kind == "jetson"
        self._throttling = Throttling(root, vcgencmd, is_raspberry=kind == "raspberry_pi")
        self._rails = RailPower(root)
        self._rapl = RaplPower(root)
        self._mean_power = MeanPower(self._boards_power)
        self._last_cpu: tuple[float, CpuTimes] | None = None
        self._last_share: tuple[float, float] | None = None  # and its step
        self._frozen = {quantity: FrozenCheck(frozen_after_s) for quantity in (Quantity.SOC_TEMP_C, Quantity.POWER_W)}
        self._take_cpu_mark()

    def read(self, trainer_pid: int | None) -> Reading:
        """All quantities now. Never raises: what cannot be read is None with a reason."""
        self._mean_power.keep_sampling(is_wanted=trainer_pid is not None)
        now_s, wall_s = self._clock.now_s(), self._clock.wall_s()
        q, cpu = Quantity, _measured(lambda: self._cpu_share(now_s))
        return Reading(
            at_s=now_s,
            wall_s=wall_s,
            local_minute=local_minute(wall_s),
            values={
                q.MEM_AVAILABLE_MIB: _measured(_memory),
                q.TRAINER_RSS_MIB: _measured(lambda: self._trainer_memory(trainer_pid)),
                q.SOC_TEMP_C: self._live(q.SOC_TEMP_C, _measured(self._temperature), cpu.value, now_s),
                q.POWER_W: self._power(now_s, cpu.value),
                q.CPU_SHARE: cpu,
                q.DISK_FREE_MIB: _measured(lambda: _disk(self._disk_path)),
                q.ON_MAINS: _measured(lambda: on_mains(self._root)),
                q.BATTERY_SHARE: _measured(lambda: battery_share(self._root)),
                q.IS_THROTTLED: _measured(self._throttling.read),
                q.MEM_PRESSURE: _measured(lambda: pressure(self._root, "memory")),
                q.CPU_PRESSURE: _measured(lambda: pressure(self._root, "cpu")),
                q.IO_PRESSURE: _measured(lambda: pressure(self._root, "io")),
            },
        )

    def supported(self) -> Mapping[Quantity, Measurement]:
        """
        What this board can measure, from up to two readings a moment apart (counters need two).

        Blocks for a tenth of a second, and where jtop or vcgencmd is asked until it has answered, 20 s at most; for the
        start and `doctor`.
        """
        reading = self._patiently(lambda: self.read(None))
        if any(measurement.value is None for measurement in reading.values.values()):
            time.sleep(2 * _LOAD_GAP_S)
            reading = self.read(None)
        return reading.values

    def gpu_memory(self) -> Measurement | None:
        """
        Where the memory that a trainer holds for the GPU can be seen, for `doctor`; the value is of no process.

        Blocks until jtop has answered, 20 s at most. None on a board whose GPU, if it has one, has a memory of its own.
        """
        if not self._shares_memory:
            return None
        return self._patiently(lambda: _measured(lambda: gpu_memory(self._root, self._jtop, ())))

    def close(self) -> None:
        """End the jtop probe, a command that still runs, and the thread that samples the power."""
        self._mean_power.keep_sampling(is_wanted=False)
        for helper in (self._jtop, self._vcgencmd):
            if isinstance(helper, JtopProbe):
                helper.stop()
            elif helper is not None:
                helper.close()

    # ------------------------------------------------------------------------------------------- inside

    def _patiently(self, read: Callable[[], _T]) -> _T:
        """Read again until jtop and the commands have had the time for a first answer."""
        found, waited_s = read(), 0.0
        while waited_s < _FIRST_ANSWER_S and any(
            helper is not None and helper.is_pending for helper in (self._jtop, self._vcgencmd)
        ):
            time.sleep(_LOAD_GAP_S)
            waited_s += _LOAD_GAP_S
            found = read()
        return found

    def _temperature(self) -> SensorValue:
        return self._first_of(
            _NO_TEMPERATURE,
            lambda: temperature(self._root),
            self._of_jtop("soc_temp_c", sysfs.possible_temp_c),
            None if self._vcgencmd is None else self._vcgencmd.temperature,
        )

    def _power(self, now_s: float, cpu_share: float | None) -> Measurement:
        measured = self._live(Quantity.POWER_W, _measured(self._measured_power), cpu_share, now_s)
        if measured.value is not None or self._estimate is None:
            return measured
        if cpu_share is None:
            return _unknown("the estimate needs the CPU's share, which is unknown")
        idle_w, busy_w = self._estimate
        return Measurement(value=idle_w + (busy_w - idle_w) * cpu_share, source=_ESTIMATE_SOURCE, is_estimated=True)

    def _measured_power(self) -> SensorValue:
        """The board's own monitors, averaged since the last look, before jtop."""
        jtop = self._of_jtop("power_w", sysfs.possible_power_w)
        return self._first_of(_NO_POWER, self._mean_power.value, jtop)

    def _boards_power(self) -> SensorValue | None:
        """Monitors of the board first; what a battery gives, or the processor alone, only where there is none."""
        found = self._rails.read()
        if found is None and self._vcgencmd is not None:
            found = self._vcgencmd.power()
        return found or battery_power(self._root) or self._rapl.read(self._clock.now_s())

    def _of_jtop(self, field: str, possible: Callable[[float, str], float]) -> Callable[[], SensorValue] | None:
        jtop = self._jtop
        if jtop is None:
            return None

        def read() -> SensorValue:
            found = jtop.value(field)
            possible(found.value, "jtop")
            return found

        return read

    def _first_of(self, absent: str, *readers: Callable[[], SensorValue | None] | None) -> SensorValue:
        """The first that gives a value; else all their reasons."""
        problems: list[str] = []
        for reader in readers:
            if reader is None:
                continue
            try:
                found = reader()
            except UnreadableError as error:
                problems.append(str(error))
                continue
            if found is not None:
                return found
            problems.append(absent)
        raise UnreadableError("; ".join(problems))

    def _live(self, quantity: Quantity, measured: Measurement, cpu_share: float | None, now_s: float) -> Measurement:
        check = self._frozen[quantity]
        why = check.judge(measured.value, cpu_share, now_s)
        if not why:
            return measured
        return Measurement(value=None, source=measured.source, why_unknown=why, age_s=check.still_s(now_s))

    def _trainer_memory(self, pid: int | None) -> SensorValue:
        """Resident memory and, where the GPU's is the system's, what is held of that. 0 without a trainer."""
        if pid is None or not psutil.pid_exists(pid):
            return SensorValue(0.0, "psutil", _PAGE_MIB)
        rss_mib = process_rss_mib(pid)
        if rss_mib is None and psutil.pid_exists(pid):
            raise UnreadableError(f"process {pid} cannot be looked at")
        if not self._shares_memory or rss_mib is None:
            return SensorValue(rss_mib or 0.0, "psutil", _PAGE_MIB)
        try:
            gpu = gpu_memory(self._root, self._jtop, process_family(pid))
        except UnreadableError as error:
            return SensorValue(rss_mib, f"psutil, without the GPU's memory ({error})", _PAGE_MIB)
        return SensorValue(rss_mib + gpu.value, f"psutil and {gpu.source}", _PAGE_MIB, gpu.age_s)

    def _cpu_share(self, now_s: float) -> SensorValue:
        if self._last_cpu is None:
            self._take_cpu_mark()
            raise UnreadableError("the CPU's counters cannot be read (is /proc mounted?)")
        (last_s, last), is_fresh = self._last_cpu, False
        gone_s = now_s - last_s
        if not 0 <= gone_s < _LOAD_GAP_S:
            times = self._take_cpu_mark()
            if times is not None and times.total_s > last.total_s:
                worked_s, existed_s = times.busy_s - last.busy_s, times.total_s - last.total_s
                share, step = min(1.0, max(0.0, worked_s / existed_s)), min(1.0, _TICK_S / existed_s)
                self._last_share, is_fresh = (share, step), True
        if self._last_share is None or not (is_fresh or 0 <= gone_s < _LOAD_GAP_S):
            raise UnreadableError("the CPU's counters have not moved yet")
        share, step = self._last_share
        return SensorValue(share, "psutil", step, 0.0 if is_fresh else gone_s)

    def _take_cpu_mark(self) -> CpuTimes | None:
        try:
            times = self._cpu_times()
        except (OSError, psutil.Error, RuntimeError, ValueError):
            self._last_cpu = None
            return None
        self._last_cpu = (self._clock.now_s(), times)
        return times


def local_minute(wall_s: float) -> int:
    """
    Minutes since local midnight as the wall shows them: at the end of summer time an hour comes twice, at its begin one not.

    The zone is looked up anew, so that `timedatectl set-timezone` needs no restart. A time that no calendar has is taken as UTC.
    """
    time.tzset()
    try:
        local = time.localtime(wall_s)
    except (OverflowError, OSError, ValueError):
        return int(wall_s // 60) % 1440
    return local.tm_hour * 60 + local.tm_min


def _measured(read: Callable[[], SensorValue]) -> Measurement:
    """A sensor's value, or why there is none; whatever else a driver or a library raises is a reason too."""
    try:
        found = read()
    except UnreadableError as error:
        return _unknown(str(error))
    except (OSError, psutil.Error, RuntimeError, ValueError) as error:
        return _unknown(f"{type(error).__name__}: {error}")
    return Measurement(value=found.value, source=found.source, resolution=found.resolution, age_s=found.age_s)


def _unknown(why: str) -> Measurement:
    return Measurement(value=None, source="none", why_unknown=why)


def _system_cpu_times() -> CpuTimes:
    times = psutil.cpu_times()
    # guest time is counted in user time already
    total_s = sum(value for name, value in times._asdict().items() if not name.startswith("guest"))
    return CpuTimes(total_s - times.idle - getattr(times, "iowait", 0.0), total_s)


def _memory() -> SensorValue:
    try:
        return SensorValue(psutil.virtual_memory().available / _MIB, "psutil", _MEMINFO_STEP_MIB)
    except (OSError, psutil.Error, RuntimeError, ValueError) as error:
        raise UnreadableError(f"cannot read /proc/meminfo: {error}") from error


def _disk(path: Path) -> SensorValue:
    try:
        step_mib = os.statvfs(path).f_frsize / _MIB
        return SensorValue(shutil.disk_usage(path).free / _MIB, str(path), step_mib)
    except OSError as error:
        raise UnreadableError(f"cannot ask {path} for its free space: {error.strerror}") from error
