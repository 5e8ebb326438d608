"""Quantities as people write them ('10W', '1.5GiB', '75C', '30min', '20%') to numbers and back."""

from __future__ import annotations

import math
import re

_PLAIN = re.compile(r"^[+-]?\d[\d_]*(\.\d+)?$|^[+-]?\.\d+$")

_MIB = 1024.0 * 1024.0
UNITS: dict[str, dict[str, float]] = {
    "bytes": {
        "B": 1.0,
        "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
        "KiB": 1024.0, "MiB": _MIB, "GiB": _MIB * 1024, "TiB": _MIB * 1024 * 1024,
    },
    "duration": {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0},
    "energy": {"J": 1.0, "kJ": 1e3, "Wh": 3600.0, "kWh": 3.6e6},
    "power": {"mW": 1e-3, "W": 1.0, "kW": 1e3},
    "temperature": {"C": 1.0, "°C": 1.0},
    "share": {"%": 0.01},
    "points": {"pp": 0.01},
    "pixels": {"px": 1.0, "Mpx": 1e6},
}  # fmt: skip
EXAMPLES = {
    "bytes": "512MiB", "duration": "30min", "power": "10W", "energy": "20Wh", "temperature": "75C", "share": "20%", "points": "1pp",
    "pixels": "50Mpx",
}  # fmt: skip


def parse(text: object, kind: str, *, signed: bool = False) -> float:
    """
    Read a quantity.

    Args:
        text: what the operator wrote, for instance '1.5GiB'.
        kind: a key of `UNITS`.
        signed: allow numbers below zero.

    Returns:
        The quantity in the base unit: bytes, seconds, joules, watts, degrees Celsius, a share or difference of shares
        between 0 and 1 (20 % is 0.2, 1 pp is 0.01), or pixels.

    Raises:
        ValueError: with a sentence that says what was expected; for a bare number, NaN, infinity, an unknown unit,
            or a number below zero where none makes sense.
    """
    units = UNITS[kind]
    example = EXAMPLES[kind]
    if isinstance(text, bool) or not isinstance(text, str):
        if isinstance(text, (int, float)) and not isinstance(text, bool):
            raise ValueError(f"{text!r} has no unit; write it with one, for example {example!r}")
        raise ValueError(f"expected a {kind} such as {example!r}, not {text!r}")
    match = re.match(r"^\s*([+-]?(?:\d[\d_]*)?(?:\.\d+)?)\s*(\D*?)\s*$", text)
    if match is None or not _PLAIN.match(match.group(1) or ""):
        raise ValueError(f"expected a {kind} such as {example!r}, not {text!r}")
    number, unit = float(match.group(1).replace("_", "")), match.group(2)
    if not unit:
        raise ValueError(f"{text!r} has no unit; write it with one, for example {example!r}")
    if unit not in units:
        near = next((u for u in units if u.lower() == unit.lower()), None)
        known = ", ".join(units)
        raise ValueError(
            f"unknown unit {unit!r} in {text!r}; " + (f"did you mean {near!r}?" if near else f"use one of {known}")
        )
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not a finite number")
    if number < 0 and not signed:
        raise ValueError(f"{text!r} is below zero")
    if kind == "share" and number > 100:
        raise ValueError(f"{text!r} is more than 100 %")
    return number * units[unit]


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def show(value: float, kind: str) -> str:
    """Write a quantity in the base unit of `kind` the way people write it; `parse` reads it back to three digits."""
    if kind == "bytes":
        for unit in ("TiB", "GiB", "MiB", "KiB"):
            if value >= UNITS["bytes"][unit]:
                return f"{_short(value / UNITS['bytes'][unit])}{unit}"
        return f"{value:.0f}B"
    if kind == "duration":
        for unit in ("d", "h", "min", "s"):
            if value >= UNITS["duration"][unit] * (2 if unit == "d" else 1):
                return f"{_short(value / UNITS['duration'][unit])}{unit}"
        return f"{_short(value * 1000)}ms" if value else "0s"
    if kind == "energy":
        return f"{_short(value / UNITS['energy']['Wh'])}Wh"
    if kind == "power":
        return f"{_short(value)}W"
    if kind == "temperature":
        return f"{value:.4g}C"
    if kind == "pixels":
        return f"{_short(value / 1e6)}Mpx" if value >= 1e6 else f"{value:.0f}px"
    return f"{_short(value * 100)}{'%' if kind == 'share' else 'pp'}"
