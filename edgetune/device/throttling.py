"""
Whether the board holds its own clocks down, for heat, current or a low voltage: what the operator has not asked for.

Each board has its own signs: the flags of a Raspberry Pi's firmware and its voltage alarm; on a Jetson the cooling devices of
its alerts and the counters of over-current events; elsewhere the kernel's frequency cooling and Intel's counters.

Source: Documentation/ABI/testing/sysfs-class-thermal; NVIDIA, "Thermal Management" and "Over-Current Throttling" of the Jetson
developer guides; arch/x86/kernel/cpu/mce/therm_throt.c.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgetune.device.raspberry import Vcgencmd, throttled
from edgetune.device.sysfs import SensorValue, UnreadableError, hwmon_chips, read_number, says, shown

# Not pwm-fan, which is no throttling, nor hot-surface-alert, which warns people.
_COOLING = re.compile(r"throttle-alert$|-balanced$|(cpu|dev)freq|^Processor$", re.IGNORECASE)
_COUNTERS = (
    "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/package_throttle_count",
    "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count",
)
_NONE = "this board does not say whether it holds its clocks down"


class Throttling:
    """Counters make it need a memory: one that has risen since the last look is a yes."""

    def __init__(self, root: Path, vcgencmd: Vcgencmd | None, *, is_raspberry: bool) -> None:
        """`is_raspberry`: the firmware's flags are the one full answer, so that without them it is unknown."""
        self._root, self._vcgencmd, self._is_raspberry = root, vcgencmd, is_raspberry
        self._counts: dict[Path, float] = {}

    def read(self) -> SensorValue:
        """
        1 when it does now or has since the last look, else 0.

        Raises:
            UnreadableError: the board does not say, or could not be asked.
        """
        problems: list[str] = []
        signs = [*self._flags(problems), *self._alarms(), *self._cooling(), *self._events()]
        for why, value in signs:
            if value.value:
                return SensorValue(1.0, f"{value.source} ({why})", 1.0, value.age_s)
        if problems:
            raise UnreadableError("; ".join(problems))
        if not signs:
            raise UnreadableError(_NONE)
        return signs[0][1]

    def _flags(self, problems: list[str]) -> list[tuple[str, SensorValue]]:
        if not self._is_raspberry:
            return []
        try:
            found = throttled(self._root, self._vcgencmd)
        except UnreadableError as error:
            problems.append(str(error))
            return []
        if found is None:
            problems.append("the firmware is not asked: vcgencmd is not used here")
        return [] if found is None else [found]

    def _alarms(self) -> list[tuple[str, SensorValue]]:
        """The Raspberry Pi's driver looks every two seconds and forgets what is over."""
        return [
            ("the supply's voltage is low", self._sign(chip / "in0_lcrit_alarm", says(chip / "in0_lcrit_alarm") == "1"))
            for chip, name in hwmon_chips(self._root)
            if name == "rpi_volt" and (chip / "in0_lcrit_alarm").exists()
        ]

    def _cooling(self) -> list[tuple[str, SensorValue]]:
        signs = []
        for device in sorted(self._root.glob("sys/class/thermal/cooling_device*")):
            name, state = says(device / "type"), says(device / "cur_state")
            if _COOLING.search(name) and state.isdecimal():
                signs.append((f"{name} is at {state}", self._sign(device, state.strip("0") != "")))
        return signs

    def _events(self) -> list[tuple[str, SensorValue]]:
        paths = [path for pattern in _COUNTERS for path in sorted(self._root.glob(pattern))]
        for chip, name in hwmon_chips(self._root):
            if name == "soctherm_oc":
                paths += sorted(chip.glob("oc*_event_cnt"))
        signs = []
        for path in paths:
            try:
                count = read_number(path)
            except UnreadableError:
                continue
            last = self._counts.get(path, count)
            self._counts[path] = count
            signs.append((f"{count - last:.0f} events more", self._sign(path, count > last)))
        return signs

    def _sign(self, path: Path, is_so: bool) -> SensorValue:  # noqa: FBT001  the sign itself
        return SensorValue(float(is_so), shown(self._root, path), 1.0)
