"""A round's forecast in words, and how far the round was from it. Pure: dicts in, text out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgetune import units

_MIB = 2**20


def _memory(mib: float) -> str:
    return units.show(mib * _MIB, "bytes")


def _duration(seconds: float) -> str:
    return units.show(seconds, "duration")


def _energy(joules: float) -> str:
    return units.show(joules, "energy")


_SHOWN: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("peak_mib", "peak", _memory),
    ("duration_s", "time", _duration),
    ("energy_j", "energy", _energy),
)
_STEP = ("step_s", "a step", _duration)


def forecast_words(forecast: Mapping[str, Any], budgets: Mapping[str, float | None]) -> str:
    """'fits: peak 480MiB of 1.5GiB (450MiB to 520MiB), time 9min of 2h (...); all layers, 64 images a step, 2 threads'."""
    parts = []
    for name, word, show in _SHOWN:
        interval, limit = forecast.get(name), budgets.get(name)
        if interval is None:
            parts.append(f"{word} not known yet: no round was measured here")
            continue
        of = "" if limit is None else f" of {show(limit)}"
        span = f"{word} {show(interval['likely'])}{of} ({show(interval['low'])} to {show(interval['high'])})"
        if name == "peak_mib" and forecast.get("beside_mib"):
            span += f" and {show(forecast['beside_mib'])} of the teacher's process"
        parts.append(span)
    size, count, threads = forecast["batch_size"], forecast["accumulation"], forecast["threads"]
    batches = f"{size} images a step" if count == 1 else f"{count} batches of {size} images a step"
    how = f"update {forecast['update']}, {batches}, {threads} thread{'' if threads == 1 else 's'}"
    known = forecast["calibrated_on"]
    learnt = f"learnt from {known} round{'' if known == 1 else 's'} here" if known else "no round was measured here yet"
    lines = [f"{'fits' if forecast['fits'] else 'does not fit'}: {', '.join(parts)}", f"  {how}; {learnt}"]
    if forecast["reason"]:
        lines.append(f"  {'note' if forecast['fits'] else 'because'}: {forecast['reason']}")
    return "\n".join(lines)


def met_lines(details: Mapping[str, Any]) -> list[str]:
    """What a round took, beside its forecast: 'peak 492MiB, 2.5% above its forecast'."""
    forecast, actual = details.get("forecast"), details.get("actual")
    if not forecast:
        return []
    if not actual:
        return forecast_words(forecast, {}).splitlines()
    errors = details.get("forecast_error") or {}
    parts = []
    for name, word, show in (*_SHOWN, _STEP):
        value, error = actual.get(name), errors.get(name)
        if value is not None and error is not None:
            side = "above" if error >= 0 else "below"
            parts.append(f"{word} {show(value)}, {abs(error):.1%} {side} its forecast")
    shorter = [f"trained shorter: {forecast['reason']}"] if forecast.get("training", 1) < 1 else []
    return shorter + ([f"took {'; '.join(parts)}"] if parts else [])
