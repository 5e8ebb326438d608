"""
CPU package power of x86 boards, from the kernel's energy counters in microjoules.

Source: Documentation/power/powercap/powercap.rst; Intel SDM, volume 3B, "RAPL Domains": the package holds core and uncore,
memory is a domain of its own, psys is the whole platform.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgetune.device.sysfs import POWER_MAX_W, SensorValue, UnreadableError, possible_power_w, read_number, says, shown

_STEP_J = 2**-14  # of a counter, as processors of the last years have it; older ones count finer
_FORBIDDEN = "the energy counters are for root alone: docs/operations.md, Sensors, opens them to the service"


@dataclass(frozen=True, slots=True)
class _Mark:
    """A counter at one moment."""

    energy_uj: float
    at_s: float


class RaplPower:
    """Two readings make one value, wrap-around included."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._marks: dict[Path, _Mark] = {}

    def read(self, now_s: float) -> SensorValue | None:
        """
        Mean power since the last call, in watts; None without counters.

        Raises:
            UnreadableError: not allowed (the kernel gives the counters to root only), this is the first reading, or the
                last is so long ago that a counter may have gone round more than once.
        """
        zones = self._zones()
        if not zones:
            return None
        try:
            marks = {zone: _Mark(read_number(zone / "energy_uj"), now_s) for zone in zones}
        except UnreadableError as error:
            self._marks = {}
            forbidden = isinstance(error.__cause__, PermissionError)
            raise UnreadableError(f"{error}; {_FORBIDDEN}" if forbidden else str(error)) from error
        last, self._marks = self._marks, marks
        watts = {zone: self._watts(zone, last.get(zone), marks[zone]) for zone in zones}
        whole = [zone for zone in zones if _is_platform(zone)]
        counted = [zone for zone in whole if watts[zone] > 0] or [zone for zone in zones if zone not in whole]
        source = "+".join(shown(self._root, zone) for zone in counted)
        power_w = possible_power_w(sum(watts[zone] for zone in counted), source)
        return SensorValue(power_w, source, len(counted) * _STEP_J / (now_s - last[zones[0]].at_s))

    def _watts(self, zone: Path, last: _Mark | None, mark: _Mark) -> float:
        if last is None or mark.at_s <= last.at_s:
            raise UnreadableError("the energy counter needs a second reading")
        spent_uj, gone_s = mark.energy_uj - last.energy_uj, mark.at_s - last.at_s
        range_uj = read_number(zone / "max_energy_range_uj") if (zone / "max_energy_range_uj").exists() else 0.0
        if 0 < range_uj < gone_s * POWER_MAX_W * 1e6:
            raise UnreadableError(f"the energy counter may have gone round in {gone_s:.0f} s; the next reading counts")
        if spent_uj < 0:
            spent_uj += range_uj
        return spent_uj / 1e6 / gone_s

    def _zones(self) -> list[Path]:
        """The platform's zone, the packages, and dram: core and uncore are in their package."""
        zones = sorted(self._root.glob("sys/class/powercap/*-rapl:*"))
        return [zone for zone in zones if zone.name.count(":") == 1 or says(zone / "name") == "dram"]


def _is_platform(zone: Path) -> bool:
    """All others are parts of it; on some boards its counter stands still, and they count."""
    return says(zone / "name") == "psys"
