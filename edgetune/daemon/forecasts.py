"""What finished rounds teach this board's forecasts, and how far they were from theirs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgetune.decide import forecast
from edgetune.types import BoardHistory, Forecast, RoundFigures, StepPoint
from edgetune.wire import from_json, to_plain

KEY = "board_history"
_POINTS_MAX = 60
_ROUNDS_MAX = 20
_DUTIES_MAX = 5
_DUTY_LEAST = 0.01


def read(saved: Any) -> BoardHistory:
    """What was kept; empty where there is nothing, or nothing that this version understands."""
    with contextlib.suppress(ValueError):
        return BoardHistory() if saved is None else from_json(BoardHistory, json.dumps(saved))
    return BoardHistory()


def learn(
    history: BoardHistory,
    journal: Mapping[str, Any],
    *,
    trained_s: float,
    trained_j: float | None,
    duty: float | None = None,
) -> BoardHistory:
    """
    With what a round's trainer measured; the oldest are let go.

    Args:
        history: so far.
        journal: of the round.
        trained_s: seconds in which its trainer was at work.
        trained_j: joules of the board meanwhile; None: not measured.
        duty: the share of that time in which it was let compute; None: too little of it to tell.
    """
    duties = history.duties
    if duty is not None and (journal.get("forecast") or {}).get("fits"):  # others have not trained
        duties = (*duties, max(_DUTY_LEAST, round(duty, 3)))[-_DUTIES_MAX:]
    history = replace(history, bare_mib=journal.get("bare_mib") or history.bare_mib, duties=duties)
    measured = journal.get("measured")
    if not measured or measured.get("points") is None:
        return history
    points = tuple(from_json(StepPoint, json.dumps(point)) for point in measured["points"])
    rounds = history.rounds
    peaks = [point.peak_mib for point in points if point.peak_mib]
    power_w = None if trained_j is None or trained_s <= 0 else trained_j / trained_s
    if journal.get("starts") == 1 and "search" not in journal and peaks and measured.get("other_mib"):
        other_s = trained_s - measured["stepping_s"] - measured["slept_s"]
        figures = RoundFigures(
            other_s=max(0.1, other_s),
            other_share=measured["other_mib"] / max(peaks),
            power_w=power_w,
            is_reshape="pruned_first" in journal,
            ranking_share=measured.get("ranking_share"),
            cut=forecast.cut_of([point.workload for point in points]),
        )
        rounds = (*rounds, figures)
    elif power_w is not None:
        rounds = (*rounds, RoundFigures(power_w=power_w, is_reshape="pruned_first" in journal))
    return replace(history, points=(*history.points, *points)[-_POINTS_MAX:], rounds=rounds[-_ROUNDS_MAX:])


def why_none_fits(history: BoardHistory, memory_max_mib: float | None) -> str:
    """Why no trainer need be started: it would be over the budget before it has loaded its model; empty: it may not."""
    return "" if history.bare_mib is None else forecast.why_not_loaded(history.bare_mib, memory_max_mib)


def why_not_resumed(journal: Mapping[str, Any], memory_max_mib: float | None) -> str:
    """Why a round that was begun may not go on as it was planned: the budget was lowered since; empty: it may."""
    over = ""
    with contextlib.suppress(ValueError):  # no plan yet, or not a whole one: then the trainer makes one
        made = from_json(Forecast, json.dumps(journal.get("forecast")))
        over = forecast.excess(made, forecast.Allowance(peak_mib=memory_max_mib))
    return f"it was planned for a higher budget, and the next round is planned anew: {over}" if over else ""


def compare(journal: Mapping[str, Any], *, trained_s: float, trained_j: float | None) -> dict[str, Any]:
    """A round's forecast, what it took in the end, and the error of each figure; empty where it made no forecast."""
    if "forecast" not in journal:
        return {}
    made = from_json(Forecast, json.dumps(journal["forecast"]))
    told: dict[str, Any] = {"forecast": to_plain(made)}
    measured = journal.get("measured")
    if measured:
        step_s = measured["points"][-1]["step_s"] if measured["points"] else None
        actual = {
            "peak_mib": measured["peak_mib"],
            "step_s": None if step_s is None else step_s * forecast.in_parts(made.accumulation),
            "duration_s": round(trained_s, 1),
            "energy_j": trained_j,
        }
        told |= {"actual": actual, "forecast_error": forecast.errors(made, actual)}
    return told
