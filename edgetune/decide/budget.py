"""
Reading x Limits x last verdict -> may a trainer run now, how fast, and why not.

Memory and disk breaches *stop* a trainer, because a paused one gives no memory back; heat, watts and the hours of the
day *pause* it; near a limit and over the CPU's share it is *throttled*. Once paused or stopped, a value must come back
inside its limit by the hysteresis before work goes on. An unknown value of a budgeted quantity is over budget.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.types import BreachKind, Limits, Quantity, Reading, Verdict, VerdictKind

DUTY_MIN = 0.1  # below this a trainer makes so little progress that a pause is the honest word

_ORDER = (VerdictKind.RUN, VerdictKind.THROTTLE, VerdictKind.PAUSE, VerdictKind.STOP)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    quantity: Quantity
    limit: float | None
    is_floor: bool  # the value must stay above the limit, not below
    kind: VerdictKind
    breach: BreachKind


def rules(limits: Limits) -> tuple[_Rule, ...]:
    """The limits on measured quantities as a list; the CPU share only throttles."""
    q, v, b = Quantity, VerdictKind, BreachKind
    rows = (
        (q.MEM_AVAILABLE_MIB, limits.mem_available_min_mib, True, v.STOP, b.TOO_BIG),
        (q.TRAINER_RSS_MIB, limits.trainer_rss_max_mib, False, v.STOP, b.TOO_BIG),
        (q.DISK_FREE_MIB, limits.disk_free_min_mib, True, v.STOP, b.TOO_BIG),
        (q.SOC_TEMP_C, limits.soc_temp_max_c, False, v.PAUSE, b.TOO_HOT),
        (q.POWER_W, limits.power_max_w, False, v.PAUSE, b.TOO_HUNGRY),
        (q.CPU_SHARE, limits.cpu_share_max, False, v.THROTTLE, b.TOO_HUNGRY),
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
    """Whether the sum of the power is budgeted."""
    return limits.round_energy_max_j is not None


def judge(reading: Reading, limits: Limits, last: Verdict, *, is_training: bool, withheld: str = "") -> Verdict:
    """
    Say what a trainer may do now.

    Args:
        reading: the board as it is now.
        limits: the operator's budgets.
        last: the verdict before this one, for hysteresis and for the pace.
        is_training: a trainer process exists; without one its own memory is not judged.
        withheld: an operator's reason why nothing may run, or empty.

    Returns:
        The strictest of what the rules say, with the reasons of all that are at least as strict as a throttle.
    """
    was_blocked = last.kind in (VerdictKind.PAUSE, VerdictKind.STOP)
    kind, breach, duty = VerdictKind.RUN, BreachKind.NONE, 1.0
    reasons: list[str] = []
    for rule in rules(limits):
        if rule.quantity is Quantity.TRAINER_RSS_MIB and not is_training:
            continue
        # Hysteresis belongs to the limit that was broken: heat must not turn memory that is merely scarce into a stop.
        was_this = was_blocked and last.breach is rule.breach
        found, rule_duty, reason = _apply(rule, reading, limits.hysteresis, last.duty, was_blocked=was_this)
        if reason:
            reasons.append(reason)
        duty = min(duty, rule_duty)
        if _ORDER.index(found) > _ORDER.index(kind):
            kind, breach = found, rule.breach
    if _is_metered(limits) and limits.power_max_w is None and reading.value(Quantity.POWER_W) is None:
        kind, breach = max((kind, breach), (VerdictKind.PAUSE, BreachKind.TOO_HUNGRY), key=lambda x: _ORDER.index(x[0]))
        reasons.append(f"power_w unknown ({_why_unknown(reading, Quantity.POWER_W)}) and the round's energy is limited")
    for reason in filter(None, (withheld, _outside(limits.hours, reading.local_minute))):
        reasons.append(reason)
        if _ORDER.index(kind) < _ORDER.index(VerdictKind.PAUSE):
            kind, breach = VerdictKind.PAUSE, BreachKind.WITHHELD
    if kind in (VerdictKind.RUN, VerdictKind.THROTTLE):
        breach = BreachKind.NONE
    else:
        duty = 0.0
    return Verdict(kind=kind, duty=duty, breach=breach, reasons=tuple(reasons))


def _apply(
    rule: _Rule, reading: Reading, hysteresis: float, last_duty: float, *, was_blocked: bool
) -> tuple[VerdictKind, float, str]:
    limit = rule.limit
    assert limit is not None
    name = rule.quantity.value
    value = reading.value(rule.quantity)
    if value is None:
        kind = VerdictKind.PAUSE if rule.kind is VerdictKind.THROTTLE else rule.kind
        return kind, 0.0, f"{name} unknown ({_why_unknown(reading, rule.quantity)}) limit={limit:g}"
    words = f"{name} value={value:.4g} limit={limit:g}"
    if rule.quantity is Quantity.CPU_SHARE:
        return _pace(value, limit, last_duty if last_duty > 0 else 0.5, words)
    band = abs(limit) * hysteresis
    room = value - limit if rule.is_floor else limit - value
    if room < 0 or (was_blocked and room < band):
        return (
            rule.kind,
            0.0,
            words + (f" comes back at {limit + band if rule.is_floor else limit - band:g}" if room >= 0 else ""),
        )
    if rule.kind is VerdictKind.PAUSE and room < band:
        # Heat and watts follow the duty, so slow down before the limit is reached.
        return VerdictKind.THROTTLE, max(DUTY_MIN, room / band), words
    return VerdictKind.RUN, 1.0, ""


def _why_unknown(reading: Reading, quantity: Quantity) -> str:
    measurement = reading.values.get(quantity)
    return (measurement.why_unknown if measurement is not None else "no sensor") or "no reason given"


def _pace(value: float, limit: float, last_duty: float, words: str) -> tuple[VerdictKind, float, str]:
    """A duty in proportion: the trainer is one of several that use the CPU, and it is the one that yields."""
    wanted = last_duty * (limit / value) if value > 0 else 1.0
    duty = min(1.0, max(DUTY_MIN, min(wanted, last_duty * 1.25)))
    if duty < 1.0:
        return VerdictKind.THROTTLE, duty, words
    return VerdictKind.RUN, 1.0, ""


def _outside(hours: tuple[tuple[int, int], ...], local_minute: int) -> str:
    if not hours or any(_within(start, end, local_minute) for start, end in hours):
        return ""
    spans = ", ".join(f"{a // 60:02d}:{a % 60:02d}-{b // 60:02d}:{b % 60:02d}" for a, b in hours)
    return f"outside the allowed hours ({spans}), it is {local_minute // 60:02d}:{local_minute % 60:02d}"


def _within(start: int, end: int, minute: int) -> bool:
    return start <= minute < end if start <= end else (minute >= start or minute < end)
