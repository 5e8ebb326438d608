"""
Reading x Limits x last verdict -> may a trainer run now, and why not.

Memory and disk breaches *stop* a trainer, because a paused one gives no memory back; heat, watts, a battery, a day's
account that is used up and the hours of the day *pause* it; what a slower trainer takes less of is for `decide.governor`
to pace. Once paused or stopped, a value must come back inside its limit by the hysteresis before work goes on. An unknown
value of a budgeted quantity is over budget.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from edgetune.types import BreachKind, Limits, Quantity, Reading, Verdict, VerdictKind

_ORDER = (VerdictKind.RUN, VerdictKind.THROTTLE, VerdictKind.PAUSE, VerdictKind.STOP)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    quantity: Quantity
    limit: float | None
    is_floor: bool  # the value must stay above the limit, not below
    kind: VerdictKind
    breach: BreachKind

    @property
    def has_hysteresis(self) -> bool:
        """Sums of a day and a plug that is in or out do not waver about their limit."""
        return self.quantity not in (Quantity.ON_MAINS, Quantity.ENERGY_DAY_J, Quantity.WRITTEN_DAY_MIB)


@functools.lru_cache(maxsize=8)
def rules(limits: Limits) -> tuple[_Rule, ...]:
    """The limits on measured quantities as a list; what only throttles is paced and never paused for its value."""
    q, v, b = Quantity, VerdictKind, BreachKind
    rows = (
        (q.MEM_AVAILABLE_MIB, limits.mem_available_min_mib, True, v.STOP, b.TOO_BIG),
        (q.TRAINER_RSS_MIB, limits.trainer_rss_max_mib, False, v.STOP, b.TOO_BIG),
        (q.MEM_PRESSURE, limits.mem_pressure_max, False, v.STOP, b.TOO_BIG),
        (q.DISK_FREE_MIB, limits.disk_free_min_mib, True, v.STOP, b.TOO_BIG),
        (q.SOC_TEMP_C, limits.soc_temp_max_c, False, v.PAUSE, b.TOO_HOT),
        (q.POWER_W, limits.power_max_w, False, v.PAUSE, b.TOO_HUNGRY),
        (q.CPU_SHARE, limits.cpu_share_max, False, v.THROTTLE, b.TOO_HUNGRY),
        (q.CPU_PRESSURE, limits.cpu_pressure_max, False, v.THROTTLE, b.TOO_HUNGRY),
        (q.IO_PRESSURE, limits.io_pressure_max, False, v.THROTTLE, b.TOO_HUNGRY),
        (q.SERVING_P99_MS, limits.serving_p99_max_ms, False, v.THROTTLE, b.TOO_HUNGRY),
        (q.ON_MAINS, 1.0 if limits.mains_only else None, True, v.PAUSE, b.WITHHELD),
        (q.BATTERY_SHARE, limits.battery_share_min, True, v.PAUSE, b.WITHHELD),
        (q.ENERGY_DAY_J, limits.energy_per_day_max_j, False, v.PAUSE, b.WITHHELD),
        (q.WRITTEN_DAY_MIB, limits.writes_per_day_max_mib, False, v.PAUSE, b.WITHHELD),
    )
    return tuple(
        _Rule(quantity=quantity, limit=limit, is_floor=floor, kind=kind, breach=breach)
        for quantity, limit, floor, kind, breach in rows
        if limit is not None
    )


def budgeted(limits: Limits) -> tuple[Quantity, ...]:
    """The quantities that a limit needs, so that the daemon can ask at start whether this board measures them."""
    found = tuple(rule.quantity for rule in rules(limits))
    return (*found, Quantity.POWER_W) if _is_metered(limits) and Quantity.POWER_W not in found else found


def _is_metered(limits: Limits) -> bool:
    """Whether a sum of the power is budgeted."""
    return limits.round_energy_max_j is not None or limits.energy_per_day_max_j is not None


def judge(reading: Reading, limits: Limits, last: Verdict, *, is_training: bool, withheld: str = "") -> Verdict:
    """
    Say whether a trainer may work now, at whatever pace.

    Args:
        reading: the board as it is now; what is paced, averaged.
        limits: the operator's budgets.
        last: the verdict before this one, for hysteresis.
        is_training: a trainer process exists; without one its own memory is not judged.
        withheld: an operator's reason why nothing may run, or empty.

    Returns:
        The strictest of what the rules say, with all their reasons.
    """
    was_blocked = last.kind in (VerdictKind.PAUSE, VerdictKind.STOP)
    kind, breach = VerdictKind.RUN, BreachKind.NONE
    reasons: list[str] = []
    for rule in rules(limits):
        if rule.quantity is Quantity.TRAINER_RSS_MIB and not is_training:
            continue
        # Hysteresis belongs to the limit that was broken: heat must not turn memory that is merely scarce into a stop.
        was_this = was_blocked and last.breach is rule.breach
        found, reason = _apply(rule, reading, limits.hysteresis, was_blocked=was_this)
        if reason:
            reasons.append(reason)
        if _ORDER.index(found) > _ORDER.index(kind):
            kind, breach = found, rule.breach
    if _is_metered(limits) and limits.power_max_w is None and reading.value(Quantity.POWER_W) is None:
        kind, breach = max((kind, breach), (VerdictKind.PAUSE, BreachKind.TOO_HUNGRY), key=lambda x: _ORDER.index(x[0]))
        whose = "the round's" if limits.round_energy_max_j is not None else "the day's"
        reasons.append(f"power_w unknown ({_why_unknown(reading, Quantity.POWER_W)}) and {whose} energy is limited")
    for reason in filter(None, (withheld, _outside(limits.hours, reading.local_minute))):
        reasons.append(reason)
        if _ORDER.index(kind) < _ORDER.index(VerdictKind.PAUSE):
            kind, breach = VerdictKind.PAUSE, BreachKind.WITHHELD
    duty = 1.0 if kind is VerdictKind.RUN else 0.0
    return Verdict(kind=kind, duty=duty, breach=breach, reasons=tuple(reasons))


def _apply(rule: _Rule, reading: Reading, hysteresis: float, *, was_blocked: bool) -> tuple[VerdictKind, str]:
    limit = rule.limit
    assert limit is not None
    name = rule.quantity.value
    value = reading.value(rule.quantity)
    if value is None:
        kind = VerdictKind.PAUSE if rule.kind is VerdictKind.THROTTLE else rule.kind
        return kind, f"{name} unknown ({_why_unknown(reading, rule.quantity)}) limit={limit:g}"
    is_only_paced = rule.kind is VerdictKind.THROTTLE and not was_blocked
    band = abs(limit) * hysteresis if rule.has_hysteresis else 0.0
    room = value - limit if rule.is_floor else limit - value
    if is_only_paced or not (room < 0 or (was_blocked and room < band)):
        return VerdictKind.RUN, ""
    kind = VerdictKind.PAUSE if rule.kind is VerdictKind.THROTTLE else rule.kind
    back = f" comes back at {limit + band if rule.is_floor else limit - band:g}" if room >= 0 else ""
    return kind, f"{name} value={value:.4g} limit={limit:g}{back}"


def _why_unknown(reading: Reading, quantity: Quantity) -> str:
    measurement = reading.values.get(quantity)
    return (measurement.why_unknown if measurement is not None else "no sensor") or "no reason given"


def _outside(hours: tuple[tuple[int, int], ...], local_minute: int) -> str:
    if not hours or any(_within(start, end, local_minute) for start, end in hours):
        return ""
    spans = ", ".join(f"{a // 60:02d}:{a % 60:02d}-{b // 60:02d}:{b % 60:02d}" for a, b in hours)
    return f"outside the allowed hours ({spans}), it is {local_minute // 60:02d}:{local_minute % 60:02d}"


def _within(start: int, end: int, minute: int) -> bool:
    return start <= minute < end if start <= end else (minute >= start or minute < end)
