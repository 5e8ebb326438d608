"""A simulation in words: days as a table, rounds as a list, and why there were not more. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from edgetune import units
from edgetune.cli.base import columns

_KINDS = {
    "brown_out": "the power went, for {}",
    "mains_out": "the mains went, for {}",
    "battery_empty": "the battery was empty and the board off, for {}",
    "reboot": "the system restarted, in {}",
    "disk_full": "the disk was full, for {}",
    "clock_jump": "the clock was set by {}",
}
_ROUNDS_SHOWN = 20
_KEYS_SHOWN = 2
_REASON_MAX = 72
_TICKS_MAX = 2  # over a limit that the tick after the next must have ended
MODELS = "The board, the images and the trainer are models; accuracies are made up. See docs/simulate.md."


def describe(answer: Mapping[str, Any]) -> str:
    """What `edgetune simulate` says, top to bottom."""
    return "\n".join(
        [
            *_head(answer),
            "",
            _days(answer),
            "",
            *_rounds(answer["rounds"]),
            "",
            *_reasons(answer),
            *_happened(answer["happened"]),
            *([f"drawn in {answer['plot']}"] if "plot" in answer else []),
            "",
            MODELS,
        ]
    )


def _head(answer: Mapping[str, Any]) -> list[str]:
    board, site = answer["board"], answer["site"]
    low_c, high_c = site["ambient_c"]
    air = f"{low_c:g}C" if low_c == high_c else f"{low_c:g}C to {high_c:g}C"
    sensor = "" if board["power_sensor"] else ", which cannot measure its power"
    battery = "" if site["battery_wh"] is None else f"; a battery of {site['battery_wh']:g} Wh"
    return [
        f"{board['title']}, {board['cooling']}, {board['idle_w']:g} W to {board['busy_w']:g} W{sensor}{battery}; air of {air}",
        f"{site['network']}; {site['arrivals_per_h']:g} images an hour of {len(site['classes'])} classes, "
        f"{site['labelled']:.0%} labelled; {site['days']:g} days from {_day(site['start'])} on; seed {site['seed']}",
    ]


def _days(answer: Mapping[str, Any]) -> str:
    is_slow = any(day["slowed_s"] for day in answer["days"])
    rows = [
        (
            "day",
            "images",
            "rounds",
            "trained",
            *(["slowed"] if is_slow else []),
            "withheld",
            "energy",
            "written",
            "highest" if answer["total"]["battery_min"] is None else "highest, battery",
            "serves",
        )
    ]
    version = 1
    for day in answer["days"]:
        version = max([version, *day["promoted"]])
        slowed = [_hours(sum(day["slowed_s"].values()))] if is_slow else []
        rows.append(
            (
                _day(day["date"]), str(day["images"]), _counted(day["rounds"]), _hours(day["trained_s"]), *slowed,
                _by_key(day["withheld_s"]), f"{day['energy_wh']:.1f} Wh", f"{day['written_mib']:.0f} MiB",
                _highest(day), f"v{version}",
            )
        )  # fmt: skip
    total = answer["total"]
    slowed = [_hours(sum(total["slowed_s"].values()))] if is_slow else []
    rows.append(
        (
            "all", f"{total['images']:.0f}", _counted(total["rounds"]), _hours(total["trained_s"]), *slowed,
            _by_key(total["withheld_s"]), f"{total['energy_wh']:.1f} Wh", f"{total['written_mib']:.0f} MiB",
            _highest(total), "",
        )
    )  # fmt: skip
    return columns(rows, right=(1,))


def _rounds(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rounds:
        return ["no round began"]
    shown = rounds[-_ROUNDS_SHOWN:]
    rows = [("round", "kind", "began", "ended", "forecast", "trained", "energy", "outcome", "")]
    for each in shown:
        energy = "-" if each["energy_wh"] is None else f"{each['energy_wh']:.1f} Wh"
        forecast, trained = ("-" if each[name] is None else _hours(each[name]) for name in ("forecast_s", "trained_s"))
        rows.append(
            (
                str(each["id"]), each["kind"], _when(each["began"]), _when(each["ended"]), forecast, trained, energy,
                each["outcome"], _first(each["message"] or each["reason"], each["outcome"]),
            )
        )  # fmt: skip
    more = [f"({len(rounds) - len(shown)} earlier rounds: --json)"] if len(rounds) > len(shown) else []
    return [*columns(rows, right=(0,)).split("\n"), *more]


def _first(text: str, outcome: str) -> str:
    """What matters of a reason, beside the outcome."""
    head = text.partition(";")[0].removeprefix(f"{outcome}: ").removeprefix("the round does not fit: ")
    return head if len(head) <= _REASON_MAX else f"{head[: _REASON_MAX - 3]}..."


def _reasons(answer: Mapping[str, Any]) -> list[str]:
    total, lines = answer["total"], []
    for key, seconds in sorted(total["withheld_s"].items(), key=lambda entry: -entry[1]):
        lines.append(
            f"withheld {_hours(seconds)} of the {_hours(total['wanted_s'])} a round was wanted or under way: {key}"
        )
    for key, seconds in sorted(total["slowed_s"].items(), key=lambda entry: -entry[1]):
        lines.append(f"slowed down for {_hours(seconds)} of the {_hours(total['trained_s'])} a trainer computed: {key}")
    for key in answer["limits"]:
        over_s, ticks = total["over_s"].get(key, 0), total["over_longest_ticks"].get(key, 0)
        if over_s:
            tail = (
                f"never for more than {ticks} readings in a row"
                if ticks <= _TICKS_MAX
                else f"once for {ticks} readings in a row"
            )
            lines.append(f"over {key} while a trainer computed: {_hours(over_s)}, {tail}")
    if total["throttled_s"]:
        lines.append(
            f"the board's firmware lowered the clocks for {_hours(total['throttled_s'])} (from {answer['board']['trip_c']:g}C on)"
        )
    last = answer["days"][-1]["missing"] if answer["days"] else ""
    if last:
        lines.append(f"at the end, the next round needs: {last}")
    images = answer["images"]
    if images["waiting"] or images["evicted"]:
        lines.append(f"{images['evicted']} images were evicted (buffer.quota), {images['waiting']} wait in the inbox")
    quiet = [day for day in answer["days"] if not day["wanted_s"] and day["missing"]]
    if quiet and quiet[-1] is not answer["days"][-1]:
        lines.append(f"no round was wanted on {_day(quiet[0]['date'])}: {quiet[0]['missing']}")
    return lines


def _happened(happened: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for each in happened:
        sign = "-" if each["length_s"] < 0 else "+" if each["kind"] == "clock_jump" else ""
        lines.append(
            f"{_when(each['at'])}: " + _KINDS[each["kind"]].format(sign + units.show(abs(each["length_s"]), "duration"))
        )
    return lines


def _highest(sums: Mapping[str, Any]) -> str:
    """The warmest, the most watts, and where there is a battery the least that was left of it."""
    words = f"{sums['temp_max_c']:.0f}C {sums['power_max_w']:.1f}W"
    return words if sums["battery_min"] is None else f"{words} {sums['battery_min']:.0%}"


def _counted(outcomes: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()) or "-"


def _by_key(seconds: Mapping[str, int]) -> str:
    """'11 h hours, 20 min temperature_max': the most first, and no more than fit into a row."""
    most = sorted(((key, value) for key, value in seconds.items() if value), key=lambda entry: -entry[1])
    shown = [f"{_hours(value)} {key.removeprefix('budgets.')}" for key, value in most[:_KEYS_SHOWN]]
    return ", ".join([*shown, *["..."][: len(most) - len(shown)]]) or "-"


def _hours(seconds: float) -> str:
    if seconds < 60:  # a minute
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def _day(text: str) -> str:
    return dt.datetime.fromisoformat(text).strftime("%a %d %b")


def _when(text: str | None) -> str:
    return "-" if text is None else dt.datetime.fromisoformat(text).strftime("%a %H:%M")
