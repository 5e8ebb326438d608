"""
The board's power from INA monitors: INA3221 of every Jetson up to Orin, INA238 beside it on Thor, others on UPS HATs.

Under hwmon (JetPack 5 and later, other boards) an INA3221 gives millivolts and milliamperes a channel, INA238 and its
kin `power1_input` in microwatts. Under iio (JetPack 4: Nano, TX2, Xavier) `in_power<n>_input` is in milliwatts.

Source: Documentation/hwmon/ina3221.rst and ina238.rst; NVIDIA, "Software-Based Power Consumption Modeling" of the
developer guides of L4T 32 to 38; TI, INA3221 datasheet (40 uV a step of the shunt, 8 mV a step of the bus).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from edgetune.device.sysfs import (
    SensorValue,
    UnreadableError,
    hwmon_chips,
    possible_power_w,
    read_number,
    says,
    shown,
)

_INA = frozenset({"ina3221", "ina238", "ina237", "ina219", "ina220", "ina226", "ina230", "ina231", "ina2xx"})
_TOTAL_RAILS = ("VIN", "VIN_TOTAL", "VDD_MUX", "POM_5V_IN", "VDD_IN")  # the carrier board's input before the module's
_UNUSED_RAIL = re.compile(r"^NC\d?$|sum of", re.IGNORECASE)
_SHUNT_STEP_UV = 40.0
_OFFSET_W = 0.5  # a few milliamperes of offset on a rail that draws nothing
_JETPACK_4 = "sys/bus/i2c/drivers/ina3221x/*/iio*device*"
_CHANNELS = 3  # of an INA3221: in4 to in6 are shunt voltages, curr4 and in7 sums


@dataclass(frozen=True, slots=True)
class _Rail:
    label: str
    place: Path
    power: Path | None = None  # else current times voltage
    per_w: float = 1.0
    current_ma: Path | None = None
    voltage_mv: Path | None = None
    shunt_uohm: Path | None = None

    def value(self) -> SensorValue:
        """Watts, and the smallest step of them."""
        if self.power is not None:
            return SensorValue(self._drawn(read_number(self.power) / self.per_w), "", 1 / self.per_w)
        assert self.current_ma is not None
        assert self.voltage_mv is not None
        voltage_v = read_number(self.voltage_mv) / 1000
        value = self._drawn(voltage_v * read_number(self.current_ma) / 1000)
        return SensorValue(value, "", abs(voltage_v) * self._step_ma() / 1000)

    def _drawn(self, value: float) -> float:
        if -_OFFSET_W < value < 0:
            return 0.0
        if value < 0:
            raise UnreadableError(f"{self.place} ({self.label}) says {value:g} W, which cannot be")
        return value

    def _step_ma(self) -> float:
        """What one step of the shunt's voltage means: 8 mA over 5 milliohms."""
        if self.shunt_uohm is not None:
            try:
                return max(1.0, _SHUNT_STEP_UV * 1000 / read_number(self.shunt_uohm))
            except (UnreadableError, ZeroDivisionError):
                pass
        return 1.0


class RailPower:
    """Remembers which rails counted: without one that vanished the rest would be too low, or something else."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._counted: set[str] = set()

    def read(self) -> SensorValue | None:
        """
        The board's power, in watts: the rail that is its input, or else all rails added up. None on a board without any.

        Raises:
            UnreadableError: a rail that counts cannot be read, or one that has counted has vanished.
        """
        rails = _hwmon_rails(self._root) or _iio_rails(self._root)
        totals = [rail for name in _TOTAL_RAILS for rail in rails if rail.label.upper() == name]
        counted = totals[:1] or rails
        gone = self._counted - {rail.label for rail in counted}
        if gone:
            raise UnreadableError(f"the monitor of {', '.join(sorted(gone))} has vanished")
        if not counted:
            return None
        values = [rail.value() for rail in counted]
        names = "+".join(rail.label for rail in counted)
        source = f"{shown(self._root, counted[0].place)} ({names})"
        total_w = possible_power_w(sum(value.value for value in values), source)
        self._counted = {rail.label for rail in counted}
        return SensorValue(total_w, source, sum(value.resolution or 0.0 for value in values))


def _hwmon_rails(root: Path) -> list[_Rail]:
    chips = [(chip, name) for chip, name in hwmon_chips(root) if name in _INA]
    has_parts = any(name == "ina3221" for _, name in chips)
    rails: list[_Rail] = []
    for chip, name in chips:
        rails += _channels(chip) if name == "ina3221" else _whole_chip(chip, is_input=has_parts)
    return rails


def _whole_chip(chip: Path, *, is_input: bool) -> list[_Rail]:
    """A chip with one channel. Beside an INA3221 it is Thor's carrier board's input, of which the others are parts."""
    label = "VIN" if is_input else ""
    powers = sorted(chip.glob("power*_input"))
    if powers:
        return [
            _Rail(_label(chip, path.name.replace("_input", "_label"), label or chip.name), chip, path, per_w=1e6)
            for path in powers
        ]
    current, voltage = chip / "curr1_input", chip / "in1_input"
    if not (current.exists() and voltage.exists()):
        return []
    return [_Rail(_label(chip, "in1_label", label or chip.name), chip, current_ma=current, voltage_mv=voltage)]


def _channels(chip: Path) -> list[_Rail]:
    rails: list[_Rail] = []
    for channel in range(1, _CHANNELS + 1):
        current, voltage = chip / f"curr{channel}_input", chip / f"in{channel}_input"
        label = _label(chip, f"in{channel}_label", f"{chip.name} {channel}")
        is_off = says(chip / f"in{channel}_enable") == "0"
        if not current.exists() or not voltage.exists() or _UNUSED_RAIL.search(label) or is_off:
            continue
        shunt = chip / f"shunt{channel}_resistor"
        rails.append(_Rail(label, chip, current_ma=current, voltage_mv=voltage, shunt_uohm=shunt))
    return rails


def _iio_rails(root: Path) -> list[_Rail]:
    rails: list[_Rail] = []
    for path in sorted(root.glob(f"{_JETPACK_4}/in_power*_input")):
        channel = re.sub(r"\D", "", path.name)
        name = path.parent / f"rail_name_{channel}"
        if name.exists() and not os.access(name, os.R_OK):
            raise UnreadableError(
                f"{name} is for root alone: let a tmpfiles.d rule open rail_name_* and in_power*_input"
                " (docs/operations.md, Sensors), or install jetson-stats"
            )
        label = says(name, default=f"channel {channel}")
        if not _UNUSED_RAIL.search(label):
            rails.append(_Rail(label, path.parent, path, per_w=1e3))
    return rails


def _label(chip: Path, name: str, fallback: str) -> str:
    return says(chip / name) or says(chip / "label") or fallback
