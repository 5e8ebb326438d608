"""What the board reads, and what its budgets say, in words. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edgetune import units

QUANTITIES = {
    "mem_available_mib": ("memory available", "bytes", 2**20, "at least"),
    "trainer_rss_mib": ("trainer's memory", "bytes", 2**20, "at most"),
    "soc_temp_c": ("temperature", "temperature", 1, "at most"),
    "power_w": ("power", "power", 1, "at most"),
    "cpu_share": ("CPU", "share", 1, "at most"),
    "disk_free_mib": ("disk free", "bytes", 2**20, "at least"),
    "mem_pressure": ("waiting for memory", "share", 1, "at most"),
    "cpu_pressure": ("waiting for a core", "share", 1, "at most"),
    "io_pressure": ("waiting for the disk", "share", 1, "at most"),
    "battery_share": ("battery", "share", 1, "at least"),
    "on_mains": ("mains", "", 1, "at least"),
    "is_throttled": ("clocks held down by the board", "", 1, "at most"),
    "serving_p99_ms": ("99 of 100 predictions within", "duration", 1e-3, "at most"),
    "energy_day_j": ("energy of the day's rounds", "energy", 1, "at most"),
    "written_day_mib": ("written today", "bytes", 2**20, "at most"),
}
_SENTENCES = {
    "on_mains": "the board is not on mains power (budgets.mains_only)",
    "is_throttled": "the board holds its clocks down by itself, for heat or low voltage",
}
_YES_NO = ("on_mains", "is_throttled")
_NUMBER = r"-?[\d.]+(?:e[+-]?\d+)?"
_REASON = re.compile(  # as decide/budget.py writes it
    rf"(?P<name>\w+) (?:value=(?P<value>{_NUMBER})|unknown (?P<why>\(.*\))) limit=(?P<limit>{_NUMBER})"
    rf"(?: comes back at (?P<back>{_NUMBER}))?(?: leaves a duty of (?P<duty>{_NUMBER}))?$"
)


def show_quantity(name: str, value: float) -> str:
    """A reading as people write it: ('soc_temp_c', 79.1) -> '79.1C'."""
    _label, kind, scale, _bound = QUANTITIES.get(name, (name, "", 1, ""))
    return units.show(value * scale, kind) if kind else f"{value:g}"


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


def compare(name: str, reading: Mapping[str, Any]) -> tuple[str, bool]:
    """One reading against its budget: the words, and whether it is over budget or unknown under one."""
    label, _kind, _scale, bound = QUANTITIES.get(name, (name, "", 1, "limit"))
    value, limit = reading.get("value"), reading.get("limit")
    budget = "" if limit is None else f" (budget: {bound} {show_quantity(name, limit)})"
    if value is None:
        return f"{label} unknown: {reading.get('why_unknown') or 'no sensor'}{budget}", limit is not None
    is_over = limit is not None and (value < limit if bound == "at least" else value > limit)
    if name in _YES_NO:
        return f"{label}: {'yes' if value else 'no'}", is_over
    estimated = " estimated" if reading.get("is_estimated") else ""
    estimated += " on average" if reading.get("is_average") else ""
    return f"{label} {show_quantity(name, value)}{estimated}{budget}{' - over budget' if is_over else ''}", is_over
