"""What the board reads, and what its budgets say, in words. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edgetune import units
from edgetune.types import Measurement

QUANTITIES = {
    "mem_available_mib": ("memory available", "bytes", 2**20, "at least"),
    "trainer_rss_mib": ("trainer's memory", "bytes", 2**20, "at most"),
    "soc_temp_c": ("temperature", "temperature", 1, "at most"),
    "power_w": ("power", "power", 1, "at most"),
    "cpu_share": ("CPU", "share", 1, "at most"),
    "disk_free_mib": ("disk free", "bytes", 2**20, "at least"),
    "on_mains": ("on mains", "yes or no", 1, "at least"),
    "battery_share": ("battery", "share", 1, "at least"),
    "is_throttled": ("throttled", "yes or no", 1, "at most"),
    "mem_pressure": ("memory pressure", "share", 1, "at most"),
    "cpu_pressure": ("CPU pressure", "share", 1, "at most"),
    "io_pressure": ("IO pressure", "share", 1, "at most"),
    "serving_p99_ms": ("99 of 100 predictions within", "duration", 1e-3, "at most"),
    "energy_day_j": ("energy of the day's rounds", "energy", 1, "at most"),
    "written_day_mib": ("written today", "bytes", 2**20, "at most"),
}
_SENTENCES = {
    "on_mains": "the board is not on mains power (budgets.mains_only)",
    "is_throttled": "the board holds its clocks down by itself, for heat or low voltage",
}
# what is left out of `status` without a budget on it, and at which value it is said all the same
_QUIET = {"on_mains": 0.0, "is_throttled": 1.0, "mem_pressure": None, "cpu_pressure": None, "io_pressure": None}
_NUMBER = r"-?[\d.]+(?:e[+-]?\d+)?"
_REASON = re.compile(  # as decide/budget.py writes it
    rf"(?P<name>\w+) (?:value=(?P<value>{_NUMBER})|unknown (?P<why>\(.*\))) limit=(?P<limit>{_NUMBER})"
    rf"(?: comes back at (?P<back>{_NUMBER}))?(?: leaves a duty of (?P<duty>{_NUMBER}))?$"
)


def show_quantity(name: str, value: float) -> str:
    """A reading as people write it: ('soc_temp_c', 79.1) -> '79.1C'."""
    _label, kind, scale, _bound = QUANTITIES.get(name, (name, "", 1, ""))
    if kind == "yes or no":
        return "yes" if value else "no"
    return units.show(value * scale, kind) if kind else f"{value:g}"


def explain_source(name: str, measured: Measurement) -> str:
    """Where a value comes from, its step and its age: 'from /sys/class/hwmon/hwmon1 (VDD_IN), in steps of 40mW'."""
    if measured.is_estimated:
        return "estimated"
    kind = QUANTITIES[name][1]
    step = (
        ""
        if measured.resolution is None or kind == "yes or no"
        else f", in steps of {show_step(name, measured.resolution)}"
    )
    age = "" if measured.age_s == 0 else f", {measured.age_s:.1f} s old"
    return f"from {measured.source}{step}{age}"


def show_step(name: str, step: float) -> str:
    """The smallest step of a quantity, which `show_quantity` would round away."""
    _label, kind, scale, _bound = QUANTITIES.get(name, (name, "", 1, ""))
    if kind == "share":
        return f"{step:.2g}" if step < 1e-4 else f"{100 * step:.2g}%"
    if kind == "bytes":
        return units.show(max(1.0, step * scale), kind)
    return f"{step:.2g}{'W' if kind == 'power' else 'C' if kind == 'temperature' else ''}"


def explain(reason: str) -> str:
    """A budget's reason in words: 'soc_temp_c value=79.1 limit=80' -> 'temperature 79.1C, budget at most 80C'."""
    match = _REASON.match(reason)
    if match is None or match["name"] not in QUANTITIES:
        return reason
    if match["name"] in _SENTENCES and match["value"] is not None:
        return _SENTENCES[match["name"]]
    name = match["name"]
    label, _kind, _scale, bound = QUANTITIES[name]
    value = f"unknown {match['why']}" if match["value"] is None else show_quantity(name, float(match["value"]))
    back = f", goes on at {show_quantity(name, float(match['back']))}" if match["back"] else ""
    room = f", which would leave {float(match['duty']):.0%} of the time to train" if match["duty"] else ""
    return f"{label} {value}, budget {bound} {show_quantity(name, float(match['limit']))}{back}{room}"


def is_worth_a_line(name: str, reading: Mapping[str, Any]) -> bool:
    """Pressure, mains and the like only where a budget asks for them, or where all is not well."""
    if reading.get("limit") is not None or name not in _QUIET:
        return True
    return reading.get("value") == _QUIET[name]


def compare(name: str, reading: Mapping[str, Any]) -> tuple[str, bool]:
    """One reading against its budget: the words, and whether it is over budget or unknown under one."""
    label, _kind, _scale, bound = QUANTITIES.get(name, (name, "", 1, "limit"))
    value, limit = reading.get("value"), reading.get("limit")
    budget = "" if limit is None else f" (budget: {bound} {show_quantity(name, limit)})"
    if value is None:
        return f"{label} unknown: {reading.get('why_unknown') or 'no sensor'}{budget}", limit is not None
    is_over = limit is not None and (value < limit if bound == "at least" else value > limit)
    if name == "is_throttled" and value:
        return f"throttled: the board holds its clocks down - {reading.get('source')}", True
    estimated = " estimated" if reading.get("is_estimated") else ""
    estimated += " on average" if reading.get("is_average") else ""
    return f"{label} {show_quantity(name, value)}{estimated}{budget}{' - over budget' if is_over else ''}", is_over
