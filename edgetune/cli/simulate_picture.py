"""A simulation as a picture: heat, watts, what was done with rounds and why not, and what was served, over the days."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_GREEN, _LIGHT, _GREY = "tab:green", "yellowgreen", "0.75"
_HELD = ("tab:orange", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:cyan", "tab:olive")
_OUTCOMES = {"promoted": ("^", "tab:green"), "refused": ("v", "tab:orange")}
_NAMES = {
    "brown_out": "power cut",
    "mains_out": "mains out",
    "battery_empty": "battery empty",
    "reboot": "restart",
    "disk_full": "disk full",
    "clock_jump": "clock set",
}
_LABELS_MAX = 12  # of happenings: more would hide each other


def draw(answer: Mapping[str, Any], path: Path) -> None:
    """Draw it."""
    from matplotlib.figure import Figure

    keys = sorted({span["why"] for span in answer["spans"] if span["what"] == "withheld"})
    figure = Figure(figsize=(11, 7 + 0.25 * len(keys)), dpi=130, layout="constrained")
    heights = (2.2, 1.6, 1.0 + 0.3 * len(keys), 0.9)
    heat, watts, work, served = figure.subplots(4, 1, sharex=True, height_ratios=heights)
    _heat(heat, answer)
    _watts(watts, answer)
    _work(work, answer, keys)
    _served(served, answer)
    _days(served, answer)
    for axes in (heat, watts, work, served):
        axes.grid(axis="x", alpha=0.3)
        for each in answer["happened"]:
            axes.axvline(each["at_s"] / 3600, color="black", linewidth=0.8, linestyle=":")
    if len(answer["happened"]) <= _LABELS_MAX:
        for each in answer["happened"]:
            heat.annotate(
                _NAMES[each["kind"]], (each["at_s"] / 3600, 1.0), xycoords=("data", "axes fraction"), fontsize=7,
                rotation=30, ha="left", va="bottom",
            )  # fmt: skip
    board, site = answer["board"], answer["site"]
    figure.suptitle(f"{board['title']} ({board['cooling']}), {site['network']}: simulated", fontsize=11)
    figure.savefig(path)


def _over_time(answer: Mapping[str, Any], name: str) -> tuple[list[float], list[float]]:
    points = [(point["at_s"] / 3600, point[name]) for point in answer["timeline"] if point[name] is not None]
    return [x for x, _ in points], [y for _, y in points]


def _heat(axes: Any, answer: Mapping[str, Any]) -> None:
    axes.plot(*_over_time(answer, "temp_c"), color="tab:red", linewidth=0.8, label="chip")
    axes.plot(*_over_time(answer, "ambient_c"), color="tab:blue", linewidth=0.8, label="air")
    _limit(axes, answer["limits"].get("budgets.temperature_max"), "budgets.temperature_max")
    trip_c, highest_c = answer["board"]["trip_c"], answer["total"]["temp_max_c"] or 0.0
    if highest_c > trip_c - 10:
        axes.axhline(trip_c, color="0.3", linestyle=":", linewidth=1, label="firmware lowers the clocks")
    axes.set_ylabel("temperature [°C]")
    axes.set_ylim(top=axes.get_ylim()[1] + 8)
    axes.legend(fontsize=7, loc="upper left", ncols=4)


def _watts(axes: Any, answer: Mapping[str, Any]) -> None:
    is_measured = answer["board"]["power_sensor"] is not None
    label = "measured" if is_measured else "as it is: the board has no sensor"
    axes.plot(
        *_over_time(answer, "power_w" if is_measured else "power_true_w"),
        color="tab:purple",
        linewidth=0.8,
        label=label,
    )
    _limit(axes, answer["limits"].get("budgets.power_max"), "budgets.power_max")
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.set_ylabel("power [W]")
    axes.legend(fontsize=7, loc="lower left", ncols=3)
    if answer["site"]["battery_wh"] is not None:
        beside = axes.twinx()
        hours, shares = _over_time(answer, "battery")
        beside.plot(hours, [100 * share for share in shares], color="tab:green", linewidth=1, label="battery")
        _limit(beside, _percent(answer["limits"].get("budgets.battery_min")), "budgets.battery_min")
        beside.set_ylim(0, 140)
        beside.set_ylabel("battery [%]")
        beside.set_yticks([0, 50, 100])
        beside.legend(fontsize=7, loc="upper right", ncols=2)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _limit(axes: Any, limit: float | None, name: str) -> None:
    if limit is not None:
        axes.axhline(limit, color="black", linestyle="--", linewidth=1, label=name)


def _work(axes: Any, answer: Mapping[str, Any], keys: list[str]) -> None:
    bars: dict[tuple[int, float, str, str], list[tuple[float, float]]] = {}
    for span in answer["spans"]:
        where = _where(span, keys)
        if where is not None:
            bars.setdefault(where, []).append((span["from_s"] / 3600, (span["to_s"] - span["from_s"]) / 3600))
    for (row, height, colour, label), stretches in sorted(bars.items()):
        axes.broken_barh(stretches, (row - height / 2, height), color=colour, label=label or None)
    names = [f"held: {key.removeprefix('budgets.')}" for key in keys]
    axes.set_yticks(range(len(names) + 1), ["a round", *names], fontsize=8)
    axes.set_ylim(len(names) + 0.5, -1.2)
    if any(label for _, _, _, label in bars):
        axes.legend(fontsize=7, loc="upper left", ncols=3)


def _where(span: Mapping[str, Any], keys: list[str]) -> tuple[int, float, str, str] | None:
    """The row of a stretch, its bar's height and colour, and its name in the legend."""
    what = span["what"]
    if what == "withheld":
        row = keys.index(span["why"]) + 1
        return row, 0.8, _HELD[(row - 1) % len(_HELD)], ""
    return {
        "trains": (0, 0.8, _GREEN, "trains"),
        "slowed": (0, 0.8, _LIGHT, "trains, slowed by a budget"),
        "cooling down": (0, 0.15, _GREY, "cool-down after a round that failed"),
    }.get(what)


def _served(axes: Any, answer: Mapping[str, Any]) -> None:
    axes.step(*_over_time(answer, "version"), where="post", color="tab:blue", linewidth=1.2)
    top = max((point["version"] or 1 for point in answer["timeline"]), default=1)
    for each in answer["rounds"]:
        if each["ended_s"] is None or each["ended"] is None:
            continue
        marker, colour = _OUTCOMES.get(each["outcome"], ("x", "tab:red"))
        axes.scatter(each["ended_s"] / 3600, top + 0.9, marker=marker, color=colour, s=26)
    handles = [("^", "tab:green", "promoted"), ("v", "tab:orange", "refused"), ("x", "tab:red", "ended otherwise")]
    for marker, colour, label in handles:
        axes.scatter([], [], marker=marker, color=colour, s=26, label=label)
    axes.set_ylim(0.5, top + 1.6)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("version")
    axes.legend(fontsize=7, loc="lower right", ncols=3)


def _days(axes: Any, answer: Mapping[str, Any]) -> None:
    start, days = dt.datetime.fromisoformat(answer["site"]["start"]), answer["site"]["days"]
    step_h = 24 if days > 2 else 6 if days > 0.5 else 2
    ticks = range(0, int(days * 24) + 1, step_h)
    axes.set_xlim(0, days * 24)
    axes.set_xticks(ticks, [f"{start + dt.timedelta(hours=hour):%a %H:%M}" for hour in ticks], fontsize=8)
