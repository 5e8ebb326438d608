"""
Power and temperature as the kernel publishes them under /sys, in the units of the kernel's documentation.

Every reader is given the file system's root, so that a recorded tree can stand in for a board. A value that cannot be
right is no value: `UnreadableError` says why.

Source: Documentation/ABI/testing/sysfs-class-hwmon, -thermal, -power; Documentation/hwmon/ina3221.rst, ina238.rst;
Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TEMP_MIN_C = -40.0  # jtop and some drivers report -256 C for a sensor that is switched off
TEMP_MAX_C = 150.0
POWER_MAX_W = 2000.0

_CORE_ZONE = re.compile(r"cpu|soc|tj|pkg|package|coretemp|k10temp|acpitz", re.IGNORECASE)
_OTHER_ZONE = re.compile(r"gpu|cv\d|dla|mcpu|ao-therm", re.IGNORECASE)  # may be switched off while the board runs
_INA = frozenset({"ina3221", "ina238", "ina237", "ina219", "ina220", "ina226", "ina230", "ina231", "ina2xx"})
_TOTAL_RAIL = re.compile(r"^(VDD_IN|POM_5V_IN|VIN|VIN_TOTAL|TOT\w*)$", re.IGNORECASE)
_UNUSED_RAIL = re.compile(r"^NC$|sum of", re.IGNORECASE)


class UnreadableError(Exception):
    """The sensor is there and gives nothing that can be used."""


@dataclass(frozen=True, slots=True)
class SensorValue:
    """A number in degrees Celsius or watts and where it was read."""

    value: float
    source: str


@dataclass(frozen=True, slots=True)
class EnergyMark:
    """A RAPL counter at one moment."""

    energy_uj: int
    at_s: float


def read_text(path: Path) -> str:
    """
    The one line of a sysfs file.

    Raises:
        UnreadableError: absent, forbidden, or the driver returned an error.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip().strip("\0")
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror or error}") from error


def read_number(path: Path) -> float:
    """
    A sysfs file that holds one number.

    Raises:
        UnreadableError: as for `read_text`, or it holds something else.
    """
    text = read_text(path)
    try:
        number = float(text)
    except ValueError:
        raise UnreadableError(f"{path} reads {text[:40]!r}, which is no number") from None
    if not math.isfinite(number):
        raise UnreadableError(f"{path} reads {text[:40]!r}")
    return number


def temperature(root: Path) -> SensorValue | None:
    """
    The hottest part of the chip, in degrees Celsius.

    Zones of CPU, SoC and package count, and GPU and accelerators while they are on; PMIC, battery, Wi-Fi and board
    zones do not (the PMIC's of older Jetsons says 100 for ever).

    Returns:
        None when the board has no such sensor.

    Raises:
        UnreadableError: it has some, and no core one gives a possible value.
    """
    candidates = _zones(root) or _hwmon_temperatures(root)
    readable: list[SensorValue] = []
    problems: list[str] = []
    has_core = False
    for path, name in candidates:
        is_core = _OTHER_ZONE.search(name) is None
        try:
            readable.append(
                SensorValue(possible_temp_c(read_number(path) / 1000, str(path)), _shown(root, path.parent))
            )
            has_core = has_core or is_core
        except UnreadableError as error:
            if is_core:
                problems.append(str(error))
    if has_core:
        return max(readable, key=lambda reading: reading.value)
    if problems:
        raise UnreadableError("; ".join(problems[:3]))
    return None


def possible_temp_c(value: float, where: str) -> float:
    """
    The value, if a running chip can have it. Exactly 0 is what a dead sensor says.

    Raises:
        UnreadableError: it cannot.
    """
    if not TEMP_MIN_C < value < TEMP_MAX_C or value == 0:
        raise UnreadableError(f"{where} says {value:g} C, which cannot be")
    return value


def possible_power_w(value: float, where: str) -> float:
    """
    The value, if a board can draw it.

    Raises:
        UnreadableError: it cannot.
    """
    if not 0 < value < POWER_MAX_W:
        raise UnreadableError(f"{where} says {value:g} W, which cannot be")
    return value


def hwmon_power(root: Path) -> SensorValue | None:
    """
    The board's power from INA monitors, in watts.

    A rail that is the board's input (VDD_IN) is the whole; else all rails are added. INA3221 gives millivolts and
    milliamperes a channel, INA238 and its kin give `power1_input` in microwatts.

    Raises:
        UnreadableError: a rail that counts cannot be read: a sum without it would be too low.
    """
    rails: list[tuple[str, Path, Path | None]] = []
    for chip in sorted(root.glob("sys/class/hwmon/hwmon*")):
        try:
            if read_text(chip / "name").lower() in _INA:
                rails.extend(_rails(chip))
        except UnreadableError:
            continue
    whole = [rail for rail in rails if _TOTAL_RAIL.match(rail[0])]
    counted = whole[:1] or rails
    if not counted:
        return None
    total_w = sum(_rail_w(first, second) for _, first, second in counted)
    names = "+".join(label for label, _, _ in counted)
    source = f"{_shown(root, counted[0][1].parent)} ({names})"
    return SensorValue(possible_power_w(total_w, source), source)


def battery_power(root: Path) -> SensorValue | None:
    """
    What a discharging battery gives, in watts; None without one or on mains (then it is not the board's power).

    Raises:
        UnreadableError: it discharges and does not say how much.
    """
    for supply in sorted(root.glob("sys/class/power_supply/*")):
        try:
            is_discharging = read_text(supply / "type") == "Battery" and read_text(supply / "status") == "Discharging"
        except UnreadableError:
            continue
        if not is_discharging:
            continue
        if (supply / "power_now").exists():
            value = abs(read_number(supply / "power_now")) / 1e6
        else:  # microvolts and microamperes; some drivers count discharge below zero
            value = abs(read_number(supply / "voltage_now") * read_number(supply / "current_now")) / 1e12
        return SensorValue(possible_power_w(value, str(supply)), _shown(root, supply))
    return None


class RaplPower:
    """CPU package power from energy counters: two readings make one value, wrap-around included."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._marks: dict[Path, EnergyMark] = {}

    def read(self, now_s: float) -> SensorValue | None:
        """
        Mean power since the last call, in watts; None without counters.

        Raises:
            UnreadableError: not allowed (the kernel gives the counters to root only), or this is the first reading.
        """
        zones = self._zones()
        if not zones:
            return None
        total_w, is_complete = 0.0, True
        for zone in zones:
            mark = EnergyMark(int(read_number(zone / "energy_uj")), now_s)
            last = self._marks.get(zone)
            if last is not None and now_s <= last.at_s:
                raise UnreadableError("asked twice at the same moment")
            self._marks[zone] = mark
            if last is None:
                is_complete = False
            else:
                total_w += self._spent_uj(zone, last, mark) / 1e6 / (mark.at_s - last.at_s)
        if not is_complete:
            raise UnreadableError("the energy counter needs a second reading")
        source = "+".join(_shown(self._root, zone) for zone in zones)
        return SensorValue(possible_power_w(total_w, source), source)

    def _zones(self) -> Sequence[Path]:
        tops = [zone for zone in sorted(self._root.glob("sys/class/powercap/*-rapl:*")) if zone.name.count(":") == 1]
        for zone in tops:
            try:
                if read_text(zone / "name") == "psys":  # the whole platform: the others are parts of it
                    return [zone]
            except UnreadableError:
                continue
        return tops

    @staticmethod
    def _spent_uj(zone: Path, last: EnergyMark, mark: EnergyMark) -> float:
        spent = mark.energy_uj - last.energy_uj
        return spent if spent >= 0 else spent + read_number(zone / "max_energy_range_uj")


def _zones(root: Path) -> list[tuple[Path, str]]:
    found: list[tuple[Path, str]] = []
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        try:
            name = read_text(zone / "type")
        except UnreadableError:
            continue
        if _CORE_ZONE.search(name) or _OTHER_ZONE.search(name):
            found.append((zone / "temp", name))
    return found


def _hwmon_temperatures(root: Path) -> list[tuple[Path, str]]:
    found: list[tuple[Path, str]] = []
    for chip in sorted(root.glob("sys/class/hwmon/hwmon*")):
        try:
            name = read_text(chip / "name")
        except UnreadableError:
            continue
        if _CORE_ZONE.search(name):
            found.extend((path, name) for path in sorted(chip.glob("temp*_input")))
    return found


def _rails(chip: Path) -> list[tuple[str, Path, Path | None]]:
    """Label, then the file in microwatts and None, or the files in millivolts and milliamperes."""
    powers = sorted(chip.glob("power*_input"))
    if powers:
        return [(_label(chip, path.name.replace("_input", "_label"), chip.name), path, None) for path in powers]
    rails: list[tuple[str, Path, Path | None]] = []
    for current in sorted(chip.glob("curr*_input")):
        number = current.name[len("curr") : -len("_input")]
        voltage = chip / f"in{number}_input"
        label = _label(chip, f"in{number}_label", f"{chip.name} {number}")
        if not voltage.exists() or _UNUSED_RAIL.search(label) or _is_switched_off(chip / f"in{number}_enable"):
            continue
        rails.append((label, voltage, current))
    return rails


def _label(chip: Path, name: str, fallback: str) -> str:
    for candidate in (name, "label"):
        try:
            return read_text(chip / candidate)
        except UnreadableError:
            continue
    return fallback


def _is_switched_off(path: Path) -> bool:
    try:
        return read_text(path) == "0"
    except UnreadableError:
        return False


def _rail_w(first: Path, second: Path | None) -> float:
    value = read_number(first) / 1e6 if second is None else read_number(first) * read_number(second) / 1e6
    if value < 0 and second is not None and value > -0.5:
        return 0.0  # a few milliamperes of offset on a rail that draws nothing
    if value < 0:
        raise UnreadableError(f"{first} says {value:g} W, which cannot be")
    return value


def _shown(root: Path, path: Path) -> str:
    return "/" + path.relative_to(root).as_posix()
