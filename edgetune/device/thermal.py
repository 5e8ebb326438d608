"""
The temperature of the chip, from the kernel's thermal zones or else its hardware monitors, both in thousandths of a degree.

Source: Documentation/ABI/testing/sysfs-class-thermal and sysfs-class-hwmon.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgetune.device.sysfs import (
    SensorValue,
    UnreadableError,
    hwmon_chips,
    possible_temp_c,
    read_number,
    says,
    shown,
)

_STEP_C = 0.001  # of the file; what the chip resolves is not told
_CORE_ZONE = re.compile(r"cpu|soc|tj|pkg|package|coretemp|k10temp|acpitz", re.IGNORECASE)
# On the chip too, but they may be switched off while the board runs, or are not where it is hottest.
_OTHER_ZONE = re.compile(r"gpu|cv\d|dla|mcpu|(ao|pll|aux)-therm", re.IGNORECASE)


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
    readable: list[SensorValue] = []
    problems: list[str] = []
    has_core = False
    for path, name in _zones(root) or _monitors(root):
        is_core = _OTHER_ZONE.search(name) is None
        try:
            value = possible_temp_c(read_number(path) / 1000, str(path))
        except UnreadableError as error:
            if is_core:
                problems.append(str(error))
            continue
        readable.append(SensorValue(value, shown(root, path.parent), _STEP_C))
        has_core = has_core or is_core
    if has_core:
        return max(readable, key=lambda reading: reading.value)
    if problems:
        raise UnreadableError("; ".join(problems[:3]))
    return None


def _zones(root: Path) -> list[tuple[Path, str]]:
    zones = [(zone / "temp", says(zone / "type")) for zone in sorted(root.glob("sys/class/thermal/thermal_zone*"))]
    return [(path, name) for path, name in zones if _CORE_ZONE.search(name) or _OTHER_ZONE.search(name)]


def _monitors(root: Path) -> list[tuple[Path, str]]:
    chips = [(chip, name) for chip, name in hwmon_chips(root) if _CORE_ZONE.search(name)]
    return [(path, name) for chip, name in chips for path in sorted(chip.glob("temp*_input"))]
