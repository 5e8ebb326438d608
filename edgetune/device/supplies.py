"""
Batteries and mains as the kernel's power supply class shows them: laptops, UPS HATs with a driver, USB-C.

Units: uW, uV, uA, uWh, uAh, per cent.

Source: Documentation/ABI/testing/sysfs-class-power, Documentation/power/power_supply_class.rst.
"""

from __future__ import annotations

from pathlib import Path

from edgetune.device.sysfs import SensorValue, UnreadableError, possible_power_w, read_number, says, shown

_CLASS = "sys/class/power_supply"
_BATTERIES = frozenset({"Battery", "UPS"})
_FED = frozenset({"Charging", "Full", "Not charging"})
_NONE = f"nothing is shown under /{_CLASS}; a UPS HAT needs its kernel driver"


def battery_power(root: Path) -> SensorValue | None:
    """
    What discharging batteries give together, in watts; None without one or on mains (then it is not the board's power).

    Raises:
        UnreadableError: one discharges and does not say how much.
    """
    discharging = [supply for supply in _batteries(root) if says(supply / "status") == "Discharging"]
    if not discharging:
        return None
    source = "+".join(shown(root, supply) for supply in discharging)
    total_w = sum(_given_w(supply) for supply in discharging)
    return SensorValue(possible_power_w(total_w, source), source, 1e-6 * len(discharging))


def on_mains(root: Path) -> SensorValue:
    """
    1 when something feeds the board besides its batteries, else 0.

    Raises:
        UnreadableError: the board does not say.
    """
    outside = [supply for supply in _supplies(root) if says(supply / "type") not in _BATTERIES]
    for supply in outside:
        if says(supply / "online") in {"1", "2"}:  # 2: a source that can be programmed, as USB-C
            return SensorValue(1.0, shown(root, supply), 1.0)
    states = [(supply, says(supply / "status")) for supply in _batteries(root)]
    for supply, state in states:
        if state in _FED and not any(says(other / "type") == "Mains" for other in outside):
            return SensorValue(1.0, shown(root, supply), 1.0)
    for supply, state in states:
        if state == "Discharging" or outside:
            return SensorValue(0.0, shown(root, supply), 1.0)
    if states:
        raise UnreadableError(f"{states[0][0]} does not say whether it is charged")
    if outside:
        raise UnreadableError(
            "no supply says that it is online, and no battery is shown; the board may be fed past them"
        )
    raise UnreadableError(_NONE)


def battery_share(root: Path) -> SensorValue:
    """
    What is left in the batteries, of 1. Several are weighed by what they hold, or else the emptiest counts.

    Raises:
        UnreadableError: there is none, or one does not say.
    """
    batteries = _batteries(root)
    if not batteries:
        raise UnreadableError("the board has no battery" if _supplies(root) else _NONE)
    source = "+".join(shown(root, supply) for supply in batteries)
    if len(batteries) > 1:
        for unit in ("energy", "charge"):
            if all((supply / f"{unit}_full").exists() for supply in batteries):
                full = sum(read_number(supply / f"{unit}_full") for supply in batteries)
                now = sum(read_number(supply / f"{unit}_now") for supply in batteries)
                return SensorValue(_possible_share(now / full if full > 0 else -1, source), source, 1 / max(full, 1))
    return min((_share(root, supply) for supply in batteries), key=lambda share: share.value)


def _share(root: Path, supply: Path) -> SensorValue:
    source = shown(root, supply)
    return SensorValue(_possible_share(read_number(supply / "capacity") / 100, source), source, 0.01)


def _possible_share(value: float, where: str) -> float:
    if not 0 <= value <= 1.05:  # a fuel gauge that learns may say a little more than full
        raise UnreadableError(f"{where} says it is {value:.0%} full, which cannot be")
    return min(1.0, value)


def _given_w(supply: Path) -> float:
    """Some drivers count discharge below zero."""
    if (supply / "power_now").exists():
        return abs(read_number(supply / "power_now")) / 1e6
    return abs(read_number(supply / "voltage_now") * read_number(supply / "current_now")) / 1e12


def _supplies(root: Path) -> list[Path]:
    """Without those of a mouse or a pen, which are batteries too."""
    return [supply for supply in sorted(root.glob(f"{_CLASS}/*")) if says(supply / "scope") != "Device"]


def _batteries(root: Path) -> list[Path]:
    return [
        supply
        for supply in _supplies(root)
        if says(supply / "type") in _BATTERIES and says(supply / "present", default="1") != "0"
    ]
