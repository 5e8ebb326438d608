"""
What the board reads now: memory, temperature, power, CPU and disk, each with its source or with why it is unknown.

An unreadable, impossible or frozen sensor is unknown, and the budget takes unknown for over. psutil and /sys come
first; jtop is asked for what they do not give. An estimate is made for power only, where the operator asked for it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import psutil

from edgetune.clock import Clock, SystemClock
from edgetune.device import sysfs
from edgetune.device.jtop import JtopProbe
from edgetune.device.sysfs import SensorValue, UnreadableError
from edgetune.device.trainer_process import process_rss_mib
from edgetune.types import Measurement, Quantity, Reading

_MIB = 2**20
_FROZEN_AFTER_S = 600.0
_LOAD_MOVED = 0.3  # of all cores: a chip whose load moves by this much in ten minutes does not stay at one value
_LOAD_GAP_S = 0.05  # the kernel counts CPU time in steps of 10 ms; closer readings say nothing
_ESTIMATE_SOURCE = "estimated from CPU use"


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
        cpu_times: Callable[[], CpuTimes] | None = None,
        frozen_after_s: float = _FROZEN_AFTER_S,
    ) -> None:
        """
        Take a first mark of the CPU's counters.

        Args:
            root: what stands above sys/.
            clock: of monotonic and wall time.
            disk_path: whose file system must keep room: the state directory.
            estimate: make up power from CPU use where no sensor gives it, flagged as estimated.
            idle_w: power of the idle board, for the estimate.
            busy_w: power with all cores busy, for the estimate.
            jtop: a started probe, on a Jetson.
            cpu_times: default: psutil's.
            frozen_after_s: how long one unchanged value is believed while the load moves.
        """
        self._root = root
        self._clock: Clock = clock or SystemClock()
        self._disk_path = disk_path
        self._estimate = (idle_w, busy_w) if estimate and idle_w is not None and busy_w is not None else None
        self._jtop = jtop
        self._cpu_times = cpu_times or _system_cpu_times
        self._rapl = sysfs.RaplPower(root)
        self._last_cpu: tuple[float, CpuTimes] | None = None
        self._last_share: float | None = None
        self._frozen = {quantity: _FrozenCheck(frozen_after_s) for quantity in (Quantity.SOC_TEMP_C, Quantity.POWER_W)}
        self._take_cpu_mark()

    def read(self, trainer_pid: int | None) -> Reading:
        """All quantities now. Never raises: what cannot be read is None with a reason."""
        now_s, wall_s = self._clock.now_s(), self._clock.wall_s()
        local = time.localtime(wall_s)
        cpu = self._cpu_share(now_s)
        return Reading(
            at_s=now_s,
            wall_s=wall_s,
            local_minute=local.tm_hour * 60 + local.tm_min,
            values={
                Quantity.MEM_AVAILABLE_MIB: _memory(),
                Quantity.TRAINER_RSS_MIB: _trainer_rss(trainer_pid),
                Quantity.SOC_TEMP_C: self._live(Quantity.SOC_TEMP_C, self._temperature(), cpu.value, now_s),
                Quantity.POWER_W: self._power(now_s, cpu.value),
                Quantity.CPU_SHARE: cpu,
                Quantity.DISK_FREE_MIB: _disk(self._disk_path),
            },
        )

    def supported(self) -> Mapping[Quantity, Measurement]:
        """
        What this board can measure, from up to two readings a moment apart (counters need two).

        Blocks for a tenth of a second; for the start and `doctor`.
        """
        reading = self.read(None)
        if any(measurement.value is None for measurement in reading.values.values()):
            time.sleep(2 * _LOAD_GAP_S)
            reading = self.read(None)
        return reading.values

    def close(self) -> None:
        """End the jtop probe."""
        if self._jtop is not None:
            self._jtop.stop()

    # ------------------------------------------------------------------------------------------- inside

    def _temperature(self) -> Measurement:
        problem = "the board has no temperature sensor that edgetune knows"
        try:
            found = sysfs.temperature(self._root)
        except UnreadableError as error:
            found, problem = None, str(error)
        return self._or_jtop(found, problem, "soc_temp_c")

    def _power(self, now_s: float, cpu_share: float | None) -> Measurement:
        measured = self._live(Quantity.POWER_W, self._measured_power(now_s), cpu_share, now_s)
        if measured.value is not None or self._estimate is None:
            return measured
        if cpu_share is None:
            return Measurement(
                value=None, source="none", why_unknown="the estimate needs the CPU's share, which is unknown"
            )
        idle_w, busy_w = self._estimate
        return Measurement(value=idle_w + (busy_w - idle_w) * cpu_share, source=_ESTIMATE_SOURCE, is_estimated=True)

    def _measured_power(self, now_s: float) -> Measurement:
        found: SensorValue | None = None
        problem = "the board has no power sensor that edgetune knows; budgets.estimate makes it up from CPU use"
        problems: list[str] = []
        readers: tuple[Callable[[], SensorValue | None], ...] = (
            lambda: sysfs.hwmon_power(self._root),
            lambda: sysfs.battery_power(self._root),
            lambda: self._rapl.read(now_s),
        )
        for reader in readers:
            try:
                found = found or reader()
            except UnreadableError as error:
                problems.append(str(error))
                break  # a better sensor that fails is not replaced by one that measures something else
        return self._or_jtop(found, "; ".join(problems) or problem, "power_w")

    def _or_jtop(self, found: SensorValue | None, problem: str, field: str) -> Measurement:
        if found is not None:
            return Measurement(value=found.value, source=found.source)
        if self._jtop is None:
            return Measurement(value=None, source="none", why_unknown=problem)
        value, why = self._jtop.value(field)
        try:
            if value is not None:
                check = sysfs.possible_temp_c if field == "soc_temp_c" else sysfs.possible_power_w
                return Measurement(value=check(value, "jtop"), source="jtop")
        except UnreadableError as error:
            why = str(error)
        return Measurement(value=None, source="none", why_unknown=f"{problem}; {why}")

    def _live(self, quantity: Quantity, measured: Measurement, cpu_share: float | None, now_s: float) -> Measurement:
        why = self._frozen[quantity].judge(measured.value, cpu_share, now_s)
        return Measurement(value=None, source=measured.source, why_unknown=why) if why else measured

    def _cpu_share(self, now_s: float) -> Measurement:
        if self._last_cpu is None:
            self._take_cpu_mark()
            return Measurement(
                value=None, source="none", why_unknown="the CPU's counters cannot be read (is /proc mounted?)"
            )
        (last_s, last), is_fresh = self._last_cpu, False
        if now_s - last_s >= _LOAD_GAP_S:
            times = self._take_cpu_mark()
            if times is not None and times.total_s > last.total_s:
                share = (times.busy_s - last.busy_s) / (times.total_s - last.total_s)
                self._last_share, is_fresh = min(1.0, max(0.0, share)), True
        if self._last_share is None or not (is_fresh or now_s - last_s < _LOAD_GAP_S):
            return Measurement(value=None, source="none", why_unknown="the CPU's counters have not moved yet")
        return Measurement(value=self._last_share, source="psutil")

    def _take_cpu_mark(self) -> CpuTimes | None:
        try:
            times = self._cpu_times()
        except (OSError, psutil.Error, RuntimeError, ValueError):
            self._last_cpu = None
            return None
        self._last_cpu = (self._clock.now_s(), times)
        return times


class _FrozenCheck:
    """Tells a sensor that is stuck from a board that is steady: the load moved and the value did not."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._value: float | None = None
        self._since_s = 0.0
        self._load = (1.0, 0.0)  # lowest and highest share since then

    def judge(self, value: float | None, cpu_share: float | None, now_s: float) -> str:
        """Why the value is not believed; empty when it is."""
        if value is None or value != self._value:
            self._value, self._since_s, self._load = value, now_s, (1.0, 0.0)
        if value is None:
            return ""
        if cpu_share is not None:
            self._load = (min(self._load[0], cpu_share), max(self._load[1], cpu_share))
        still_s, moved = now_s - self._since_s, self._load[1] - self._load[0]
        if still_s < self._after_s or moved < _LOAD_MOVED:
            return ""
        return f"frozen: has said {value:g} for {still_s / 60:.0f} min while the CPU's load moved by {moved:.0%}"


def _system_cpu_times() -> CpuTimes:
    times = psutil.cpu_times()
    # guest time is counted in user time already
    total_s = sum(value for name, value in times._asdict().items() if not name.startswith("guest"))
    return CpuTimes(total_s - times.idle - getattr(times, "iowait", 0.0), total_s)


def _memory() -> Measurement:
    try:
        return Measurement(value=psutil.virtual_memory().available / _MIB, source="psutil")
    except (OSError, psutil.Error, RuntimeError, ValueError) as error:
        return Measurement(value=None, source="none", why_unknown=f"cannot read /proc/meminfo: {error}")


def _trainer_rss(pid: int | None) -> Measurement:
    """0 without a trainer: nothing is known to hold nothing."""
    if pid is None or not psutil.pid_exists(pid):
        return Measurement(value=0.0, source="psutil")
    rss_mib = process_rss_mib(pid)
    if rss_mib is None and psutil.pid_exists(pid):
        return Measurement(value=None, source="none", why_unknown=f"process {pid} cannot be looked at")
    return Measurement(value=rss_mib or 0.0, source="psutil")


def _disk(path: Path) -> Measurement:
    try:
        return Measurement(value=shutil.disk_usage(path).free / _MIB, source=str(path))
    except OSError as error:
        return Measurement(
            value=None, source="none", why_unknown=f"cannot ask {path} for its free space: {error.strerror}"
        )
