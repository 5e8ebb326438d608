"""A simulation as plain data: what `edgetune simulate --json` prints, and what the words and the picture are made from."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from edgetune.config import limits
from edgetune.daemon import settings
from edgetune.decide.budget import rules
from edgetune.simulate.record import Day, Moment, Record
from edgetune.simulate.scenario import DAY_S

_POINTS_MAX = 2000  # of the timeline: more are no use to an eye
_WH = 3600.0
_MIB = 2**20


def report(record: Record) -> dict[str, Any]:
    """Everything about a simulation; times are local, and lengths in seconds."""
    days = [_day(record, number, record.days[number]) for number in sorted(record.days)]
    return {
        "board": _board(record),
        "site": _site(record),
        "days": days,
        "total": _total(days),
        "rounds": [_round(record, number) for number in sorted(record.rounds)],
        "happened": [
            {"kind": each.kind, "at": _time(record, each.at_s), "at_s": each.at_s, "length_s": each.length_s}
            for each in record.happenings
        ],
        "limits": _limits(record),
        "boots": record.boots,
        "images": record.images,
        "spans": _spans(record.moments),
        "timeline": _thinned(record.moments),
    }


def _board(record: Record) -> dict[str, Any]:
    facts = record.scenario.board
    return {
        "name": facts.name, "title": facts.title, "cores": facts.cores, "memory_mib": facts.memory_mib,
        "idle_w": facts.idle_w, "busy_w": facts.busy_w, "trip_c": facts.trip_c, "cooling": facts.cooling,
        "power_sensor": facts.power_sensor, "sources": list(facts.sources),
    }  # fmt: skip


def _site(record: Record) -> dict[str, Any]:
    scenario = record.scenario
    return {
        "start": scenario.start.isoformat(timespec="minutes"), "days": scenario.days, "seed": scenario.seed,
        "ambient_c": [scenario.ambient.low_c, scenario.ambient.high_c], "arrivals_per_h": scenario.arrivals_per_h,
        "pattern": scenario.pattern, "labelled": scenario.labelled, "classes": list(scenario.classes),
        "network": scenario.network.name, "load": scenario.load,
        "battery_wh": None if scenario.battery_j is None else round(scenario.battery_j / _WH, 2),
    }  # fmt: skip


def _limits(record: Record) -> dict[str, float]:
    """Key -> limit, of those on measured quantities, in the quantity's unit."""
    found = {settings.budget_key(rule.quantity, record.config): rule.limit for rule in rules(limits(record.config))}
    return {key: limit for key, limit in found.items() if limit is not None}


def _day(record: Record, number: int, day: Day) -> dict[str, Any]:
    within = [id_ for id_, (_, end_s) in record.spans.items() if int(end_s // DAY_S) == number]
    ended = [record.rounds[id_] for id_ in within if record.rounds.get(id_, {}).get("outcome")]
    return {
        "day": number + 1,
        "date": (record.scenario.start + dt.timedelta(days=number)).date().isoformat(),
        "images": day.images,
        "rounds": {outcome: sum(row["outcome"] == outcome for row in ended) for outcome in _outcomes(ended)},
        "promoted": [row["details"]["candidate_version"] for row in ended if row["outcome"] == "promoted"],
        "wanted_s": round(day.wanted_s),
        "trained_s": round(day.trained_s),
        "withheld_s": _rounded(day.withheld_s),
        "slowed_s": _rounded(day.slowed_s),
        "over_s": _rounded(day.over_s),
        "over_longest_ticks": dict(day.over_longest_ticks),
        "energy_wh": round(day.energy_j / _WH, 2),
        "written_mib": round(day.written_bytes / _MIB, 1),
        "temp_max_c": round(day.temp_max_c, 1),
        "power_max_w": round(day.power_max_w, 2),
        "battery_min": None if day.battery_min is None else round(day.battery_min, 3),
        "throttled_s": round(day.throttled_s),
        "missing": day.missing,
    }


def _outcomes(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted({str(row["outcome"]) for row in rows})


def _total(days: list[dict[str, Any]]) -> dict[str, Any]:
    sums: dict[str, Any] = {
        name: round(sum(day[name] for day in days), 2)
        for name in ("images", "wanted_s", "trained_s", "energy_wh", "written_mib", "throttled_s")
    }
    for name in ("rounds", "withheld_s", "slowed_s", "over_s"):
        keys = sorted({key for day in days for key in day[name]})
        sums[name] = {key: sum(day[name].get(key, 0) for day in days) for key in keys}
    longest = [day["over_longest_ticks"] for day in days]
    sums["over_longest_ticks"] = {key: max(each.get(key, 0) for each in longest) for key in sums["over_s"]}
    sums["temp_max_c"] = max((day["temp_max_c"] for day in days), default=None)
    left = [day["battery_min"] for day in days if day["battery_min"] is not None]
    sums["battery_min"] = min(left, default=None)
    sums["power_max_w"] = max((day["power_max_w"] for day in days), default=None)
    return sums


def _round(record: Record, number: int) -> dict[str, Any]:
    row = record.rounds[number]
    details = row["details"]
    begin_s, end_s = record.spans.get(number, (None, None))
    return {
        "id": number,
        "kind": row["kind"],
        "outcome": row["outcome"] or row["state"],
        "reason": row["reason"],
        "message": row["message"],
        "began": _time(record, begin_s),
        "ended": _time(record, end_s) if row["outcome"] else None,
        "began_s": begin_s,
        "ended_s": end_s,
        "trained_s": details.get("trained_s"),
        "forecast_s": (details.get("forecast") or {}).get("duration_s", {}).get("likely"),
        "training": (details.get("forecast") or {}).get("training"),
        "energy_wh": None if details.get("trained_j") is None else round(details["trained_j"] / _WH, 2),
        "version": details.get("candidate_version"),
        "accuracy_before": (details.get("summary") or {}).get("accuracy_before"),
        "accuracy_after": (details.get("summary") or {}).get("accuracy_after"),
    }


def _time(record: Record, elapsed_s: float | None) -> str | None:
    if elapsed_s is None:
        return None
    return (record.scenario.start + dt.timedelta(seconds=elapsed_s)).isoformat(timespec="minutes")


def _rounded(seconds: Mapping[str, float]) -> dict[str, int]:
    return {key: round(value) for key, value in sorted(seconds.items())}


def _spans(moments: list[Moment]) -> list[dict[str, Any]]:
    """Stretches in which a round was under way: what was done with it, and by which key it was held or slowed."""
    found: list[dict[str, Any]] = []
    for moment, after in pairwise(moments):
        what = _doing(moment)
        if not what:
            continue
        last = found[-1] if found else None
        why = moment.why if what in ("withheld", "slowed") else ""
        if last is not None and (last["what"], last["why"], last["to_s"]) == (what, why, round(moment.at_s, 1)):
            last["to_s"] = round(after.at_s, 1)
        else:
            found.append({"from_s": round(moment.at_s, 1), "to_s": round(after.at_s, 1), "what": what, "why": why})
    return found


def _doing(moment: Moment) -> str:
    if moment.state in ("idle", "cooldown"):
        return "cooling down" if moment.state == "cooldown" else ""
    if moment.verdict in ("pause", "stop"):
        return "withheld"
    if moment.state == "training":
        return "slowed" if moment.verdict == "throttle" else "trains"
    return "between"


def _thinned(moments: list[Moment]) -> list[dict[str, Any]]:
    """Of each short stretch the hottest moment."""
    if not moments:
        return []
    stretch_s = max(1.0, (moments[-1].at_s - moments[0].at_s) / _POINTS_MAX)
    kept = [moments[0]]
    begun_s = moments[0].at_s
    for moment in moments[1:]:
        if moment.at_s - begun_s >= stretch_s:
            kept.append(moment)
            begun_s = moment.at_s
        elif (moment.temp_c or 0.0, moment.power_true_w) > (kept[-1].temp_c or 0.0, kept[-1].power_true_w):
            kept[-1] = moment
    return [_moment(moment) for moment in kept]


def _moment(moment: Moment) -> dict[str, Any]:
    return {
        "at_s": round(moment.at_s, 1), "ambient_c": round(moment.ambient_c, 1),
        "temp_c": None if moment.temp_c is None else round(moment.temp_c, 2),
        "power_w": None if moment.power_w is None else round(moment.power_w, 2),
        "power_true_w": round(moment.power_true_w, 2), "cpu_share": round(moment.cpu_share, 3),
        "state": moment.state, "verdict": moment.verdict, "why": moment.why, "duty": round(moment.duty, 3),
        "version": moment.version, "battery": None if moment.battery is None else round(moment.battery, 3),
    }  # fmt: skip
