"""
How fast a trainer may work: the duty that keeps every paced quantity, averaged over a window, under its limit.

What follows the trainer at once (watts, the CPU's share, pressures) is taken for `idle + gain * duty`. Both sides are
averaged over the same time, so that the gain which the trainer has been seen to have is free of the window's lag, and the
duty that it leads to is set, not searched for. Temperature follows late: its level and slope are those of a straight line
through the window, and the duty is moved until the level nears the limit at the slope that suits its distance (a PI
controller in velocity form: it goes on from the duty that was used, so that nothing winds up). Late predictions and a
firmware that lowers the clocks have no such model: they halve a cap, which comes back slowly. The least of all is sent.

A limit is approached to within what the averages of windows have been seen to stray. `decide.budget` judges them: what
comes over its limit all the same is met by the least duty for a few readings, then by a pause, which lasts a window at
least, and twice as long each time that it comes again soon.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edgetune.decide import budget
from edgetune.types import BreachKind, Limits, Quantity, Reading, Verdict, VerdictKind

DUTY_MIN = 0.1  # below this a trainer makes so little progress that a pause is the honest word

_FOLLOWS_AT_ONCE = (Quantity.POWER_W, Quantity.CPU_SHARE, Quantity.CPU_PRESSURE, Quantity.IO_PRESSURE)
_AVERAGED = (*_FOLLOWS_AT_ONCE, Quantity.SOC_TEMP_C)
_START = Verdict(kind=VerdictKind.RUN, duty=1.0)
_BLOCKED = (VerdictKind.PAUSE, VerdictKind.STOP)

_NOISE = 2.0  # standard errors that are kept free below a limit
_STRAY = 2.5  # likewise, once it has been seen how far a window's average strays
_KNOWN = 3.0  # windows of readings after which it has
_MARGIN_MIN = 0.003  # of the limit
_LESSER_SQUARE = 0.90  # the mean lesser square of two differences in a row, in variances of one reading, if normal
_MEMORY = 32  # windows after which a reading counts a third of a new one for the gain
_NEWS = 6.0  # standard errors that a window's average must be off for the memory to be no guide any more
_SURE = 3.0  # standard deviations of a reading
_SAMPLES_MIN = 4  # of which noise and slope can be told
_WORKED_MIN = 1.0  # readings at full duty that tell a gain
_UNTRIED = 0.25  # the duty until there is a gain
_GAIN_AGE_MAX_S = 3600.0  # a gain that is older was another round's, or another load's
_TELLS_RISE = 0.5  # duty
_RISE_C_PER_S = 0.3  # at full duty, until it has been seen: fast for a board with a heatsink
_RISE_MAX_C_PER_S = 3.0
_STARTS_AT = 0.8  # of the duty before, at each reading at rest
_CAP_STAYS = 10  # windows that a cap stays after it was lowered
_CAP_GROWS = 1.25  # a window, once it may
_BRAKES_MAX = 3  # readings
_AFTER_BRAKE = 0.97  # of the duty that led over a limit
_RESTS_MAX = 4  # doublings of a rest: 16 windows
_SOON = 20  # windows: a breach that comes again within them comes again soon


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One reading of what is paced."""

    at_s: float
    worked: float  # the duty in force since the reading before
    values: Mapping[Quantity, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Sums over many readings of one quantity, older ones counting less."""

    readings: float = 0.0
    value: float = 0.0
    worked: float = 0.0
    squares: float = 0.0  # of the differences of neighbours, each time the lesser of two in a row: a step is no noise
    strays: float = 0.0  # squares of how far the window's average was off what the gain led to
    last: float | None = None
    last_change: float = 0.0

    def with_reading(self, value: float, worked: float, keeps: float) -> Memory:
        """One more, the others counting `keeps` times as much as before."""
        change = 0.0 if self.last is None else value - self.last
        return Memory(
            readings=keeps * self.readings + 1.0,
            value=keeps * self.value + value,
            worked=keeps * self.worked + worked,
            squares=keeps * self.squares + min(abs(change), abs(self.last_change)) ** 2,
            strays=keeps * self.strays,
            last=value,
            last_change=change,
        )

    @property
    def noise(self) -> float:
        """The standard deviation of one reading about a slow course, after von Neumann."""
        return math.sqrt(self.squares / self.readings / _LESSER_SQUARE) if self.readings > _SAMPLES_MIN else 0.0

    def added(self, idle: float) -> float:
        """What full duty adds to `idle`."""
        return (self.value - idle * self.readings) / self.worked

    def margin(self, rows: int) -> float:
        """How far the average of so many readings, a window's, may lie above what it is led to."""
        if self.readings < _KNOWN * rows:
            return _NOISE * self.noise / math.sqrt(rows)
        return _STRAY * math.sqrt(self.strays / self.readings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What full duty adds to a quantity, how far below a limit that leaves in doubt, and when it was last seen."""

    value: float
    margin: float
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Governor:
    """
    What the governor knows, and what it says.

    Attributes:
        verdict: for the round machine; its duty for the trainer.
        samples: those of the last window.
        memories: of each quantity, over many windows.
        idle: the average of each quantity while nothing trained.
        gains: what training adds to it.
        averages: over the last window, of what is known now.
        rise_c_per_s: how fast full duty heats the chip at first.
        duty: the last that was found, unrounded; a pause leaves it.
        cap: the most that late predictions and throttled clocks leave.
        cap_until_s: it does not change before.
        braked: readings in a row that were met by the least duty.
        rests: pauses that came soon after each other.
        rest_from_s: when the last of them began.
    """

    verdict: Verdict = _START
    samples: tuple[Sample, ...] = ()
    memories: Mapping[Quantity, Memory] = field(default_factory=dict)
    idle: Mapping[Quantity, float] = field(default_factory=dict)
    gains: Mapping[Quantity, Gain] = field(default_factory=dict)
    averages: Mapping[Quantity, float] = field(default_factory=dict)
    rise_c_per_s: float = _RISE_C_PER_S
    duty: float = 1.0
    cap: float = 1.0
    cap_until_s: float = -math.inf
    braked: int = 0
    rests: int = 0
    rest_from_s: float = -math.inf


def step(
    now: Governor, reading: Reading, limits: Limits, *, worked: float, is_training: bool, withheld: str = ""
) -> Governor:
    """
    Take one reading.

    Args:
        now: what was known before.
        reading: the board as it is now, at any interval.
        limits: the operator's budgets; may be others than a moment ago.
        worked: the duty that was in force since the last reading; 0 while no trainer computes.
        is_training: a trainer process exists.
        withheld: an operator's reason why nothing may run, or empty.

    Returns:
        What is known now; `verdict` is what to do.
    """
    now = _learn(_see(now, reading, limits, worked), limits)
    averaged = with_averages(reading, now)
    verdict = budget.judge(averaged, limits, now.verdict, is_training=is_training, withheld=withheld)
    if verdict.kind is VerdictKind.RUN:
        now, verdict = _pace(replace(now, braked=0), averaged, limits)
    elif is_training and _may_brake(now, verdict):
        now = replace(now, duty=max(DUTY_MIN, _AFTER_BRAKE * now.duty), braked=now.braked + 1)
        verdict = replace(verdict, kind=VerdictKind.THROTTLE, duty=DUTY_MIN, breach=BreachKind.NONE)
    now = _rest(now, verdict, reading.at_s, limits.window_s, is_training=is_training)
    if verdict.kind not in _BLOCKED and (left_s := _rest_left_s(now, reading.at_s, limits.window_s)) > 0:
        reason = f"rests for another {left_s:.0f} s after being over budget {now.rests} times in a row"
        verdict = Verdict(kind=VerdictKind.PAUSE, duty=0.0, breach=BreachKind.TOO_HUNGRY, reasons=(reason,))
    return replace(now, verdict=verdict)


def with_averages(reading: Reading, now: Governor) -> Reading:
    """The reading, with what is paced averaged over the window."""
    found = {quantity: replace(reading.values[quantity], value=value) for quantity, value in now.averages.items()}
    return replace(reading, values={**reading.values, **found})


def _may_brake(now: Governor, verdict: Verdict) -> bool:
    """Whether an average that has just come over its limit may be met by the least duty."""
    is_pace = verdict.kind is VerdictKind.PAUSE and verdict.breach in (BreachKind.TOO_HOT, BreachKind.TOO_HUNGRY)
    is_known = not any(" unknown " in reason for reason in verdict.reasons)
    return is_pace and is_known and now.verdict.kind not in _BLOCKED and now.braked < _BRAKES_MAX


# ------------------------------------------------------------------------------------------------------ seeing


def _see(now: Governor, reading: Reading, limits: Limits, worked: float) -> Governor:
    """Remember what is limited; a clock that stands or goes back brings no new reading."""
    limited = {rule.quantity for rule in budget.rules(limits)}
    values = {q: value for q in _AVERAGED if q in limited and (value := reading.value(q)) is not None}
    worked = min(1.0, max(0.0, worked))
    kept = tuple(each for each in now.samples if reading.at_s - limits.window_s < each.at_s < reading.at_s)
    since_s = min(limits.window_s, reading.at_s - kept[-1].at_s) if kept else limits.window_s
    keeps = math.exp(-since_s / (_MEMORY * limits.window_s))
    seen = {q: now.memories.get(q, Memory()).with_reading(value, worked, keeps) for q, value in values.items()}
    sample = Sample(at_s=reading.at_s, worked=worked, values=values)
    return replace(now, samples=(*kept, sample), memories={**now.memories, **seen})


def _learn(now: Governor, limits: Limits) -> Governor:
    """What is there without a trainer, what one adds, and what each quantity's average is."""
    now = _learn_gains(now)
    newest, heat = now.samples[-1], Quantity.SOC_TEMP_C
    if heat not in newest.values:
        return now
    share = sum(each.worked for each in now.samples) / len(now.samples)
    if share > _TELLS_RISE:
        now = replace(now, rise_c_per_s=min(_RISE_MAX_C_PER_S, max(now.rise_c_per_s, _line(now)[1] / share)))
    lately = min(each.values.get(heat, -math.inf) for each in now.samples[-2:])
    limit = limits.soc_temp_max_c
    if limit is not None and lately - min(_SURE * now.memories[heat].noise, limits.hysteresis * limit) > limit:
        # Two in a row, and not by noise: what has become hot at once does not wait for an average.
        now = replace(now, averages={**now.averages, heat: max(lately, now.averages[heat])})
    return now


def _learn_gains(now: Governor) -> Governor:
    newest = now.samples[-1]
    idle, gains, memories, averages = dict(now.idle), dict(now.gains), dict(now.memories), {}
    for quantity in newest.values:
        memory = now.memories[quantity]
        rows = [(each.worked, each.values[quantity]) for each in now.samples if quantity in each.values]
        mean, worked = sum(value for _, value in rows) / len(rows), sum(share for share, _ in rows)
        averages[quantity] = mean
        if quantity not in _FOLLOWS_AT_ONCE:
            continue
        at_rest = [value for share, value in rows if share == 0]
        if len(at_rest) > 1:
            idle[quantity] = sum(at_rest) / len(at_rest)
        if worked < _WORKED_MIN:
            continue
        idle[quantity] = min(idle.get(quantity, 0.0), mean)
        rest, last = idle[quantity], gains.get(quantity)
        if quantity is Quantity.POWER_W:  # sampled, so that many windows know it better than one
            added = memory.added(rest)
            expected = rest + added * worked / len(rows)
            if added < 0 or abs(mean - expected) > _NEWS * memory.noise / math.sqrt(len(rows)):
                memory = _remembered(rows, memory.noise)
                added = memory.added(rest)
            else:
                averages[quantity] = expected
        else:  # counted by the kernel: the window was what it says
            added = (mean - rest) * len(rows) / worked
            expected = mean if last is None else rest + last.value * worked / len(rows)
        memories[quantity] = memory = replace(memory, strays=memory.strays + (mean - expected) ** 2)
        gains[quantity] = Gain(value=added, margin=memory.margin(len(rows)), at_s=newest.at_s)
    gains = {quantity: gain for quantity, gain in gains.items() if newest.at_s - gain.at_s < _GAIN_AGE_MAX_S}
    return replace(now, idle=idle, gains=gains, memories=memories, averages=averages)


def _remembered(rows: list[tuple[float, float]], noise: float) -> Memory:
    """A memory of one window alone, which keeps only how noisy the readings are."""
    values = [value for _, value in rows]
    return Memory(
        readings=len(rows),
        value=sum(values),
        worked=sum(share for share, _ in rows),
        squares=_LESSER_SQUARE * noise * noise * len(rows),
        last=values[-1],
    )


def _line(now: Governor) -> tuple[float, float]:
    """Level now and slope per second of the straight line of least squares through the temperatures of the window."""
    rows = [(each.at_s, each.values[Quantity.SOC_TEMP_C]) for each in now.samples if Quantity.SOC_TEMP_C in each.values]
    if len(rows) < _SAMPLES_MIN:
        return rows[-1][1], 0.0
    t, mean = sum(at for at, _ in rows) / len(rows), sum(value for _, value in rows) / len(rows)
    slope = sum((at - t) * (value - mean) for at, value in rows) / sum((at - t) ** 2 for at, _ in rows)
    return mean + slope * (rows[-1][0] - t), slope


# ------------------------------------------------------------------------------------------------------ pacing


def _pace(now: Governor, averaged: Reading, limits: Limits) -> tuple[Governor, Verdict]:
    """The least duty of all that limit it, and which they are."""
    now = _with_cap(now, averaged, limits)
    since_s = averaged.at_s - now.samples[-2].at_s if len(now.samples) > 1 else limits.window_s
    wanted: list[tuple[float, str]] = []
    for rule in budget.rules(limits):
        assert rule.limit is not None
        if rule.quantity in _FOLLOWS_AT_ONCE:
            duty = _at_once(now, rule.quantity, rule.limit, limits.hysteresis)
        elif rule.quantity is Quantity.SOC_TEMP_C:
            duty = _late(now, rule.limit, limits, since_s)
        elif rule.quantity is Quantity.SERVING_P99_MS:
            duty = now.cap
        else:
            continue
        value = averaged.value(rule.quantity)
        wanted.append((duty, f"{rule.quantity.value} value={value:.4g} limit={rule.limit:g}"))
    is_throttled = _is_throttled(averaged)
    if is_throttled or limits.serving_p99_max_ms is None:
        wanted.append((max(DUTY_MIN, now.cap), f"{Quantity.IS_THROTTLED.value} value={is_throttled:d} limit=0"))
    least, _ = min(wanted)
    if least < DUTY_MIN:
        reasons = tuple(f"{words} leaves a duty of {max(0.0, each):.2f}" for each, words in wanted if each < DUTY_MIN)
        return now, Verdict(kind=VerdictKind.PAUSE, duty=0.0, breach=BreachKind.TOO_HUNGRY, reasons=reasons)
    # What was too slow is mended slowly: the others on the board may be back in a moment.
    is_going_on = now.samples[-1].worked > 0 and now.verdict.kind not in _BLOCKED
    most = now.verdict.duty + since_s / limits.window_s if is_going_on else 1.0
    duty = min(1.0, most, least)
    now, told = replace(now, duty=duty), math.floor(duty * 100) / 100
    if told >= 1.0:
        return now, Verdict(kind=VerdictKind.RUN, duty=1.0)
    return now, Verdict(kind=VerdictKind.THROTTLE, duty=told, reasons=(min(wanted)[1],))


def _is_throttled(reading: Reading) -> bool:
    return (reading.value(Quantity.IS_THROTTLED) or 0.0) > 0


def _below(limit: float, margin: float, hysteresis: float) -> float:
    """Where the average is to be kept."""
    return limit - min(max(_MARGIN_MIN, hysteresis) * limit, max(_MARGIN_MIN * limit, margin))


def _at_once(now: Governor, quantity: Quantity, limit: float, hysteresis: float) -> float:
    """The duty at which the average meets its limit; a cautious one until it has been seen what training adds."""
    gain = now.gains.get(quantity)
    room = _below(limit, 0.0 if gain is None else gain.margin, hysteresis) - now.idle.get(quantity, 0.0)
    if room <= 0:
        return 0.0
    if gain is None:
        return _UNTRIED
    return room / gain.value if gain.value > 0 else 1.0


def _late(now: Governor, limit: float, limits: Limits, since_s: float) -> float:
    """The duty, moved so that the level nears the limit at the slope that suits its distance."""
    level, slope = _line(now)
    # The end of a line is twice as uncertain as its middle.
    margin = 2 * _NOISE * now.memories[Quantity.SOC_TEMP_C].noise / math.sqrt(len(now.samples))
    delay_s = 0.75 * limits.window_s
    room = _below(limit, margin, limits.hysteresis) - level
    is_working = now.samples[-1].worked > 0
    began = now.duty if is_working else _STARTS_AT * now.duty  # so that it comes to rest at a duty that suits the room
    moved = (room / (2 * delay_s) - slope) * since_s / (now.rise_c_per_s * delay_s)
    least = DUTY_MIN if room > 0 and not is_working else 0.0  # a board that idles near its limit may try
    return max(least, began + moved)


def _with_cap(now: Governor, reading: Reading, limits: Limits) -> Governor:
    """Lower the cap on late predictions or throttled clocks; give some back a window once all has long been calm."""
    at_s, p99_ms, most_ms = reading.at_s, reading.value(Quantity.SERVING_P99_MS), limits.serving_p99_max_ms
    late = p99_ms / most_ms if p99_ms and most_ms else 0.0
    is_throttled = _is_throttled(reading)
    if late > 1 or is_throttled:
        lowered_s = now.cap_until_s - _CAP_STAYS * limits.window_s
        if now.cap < 1 and at_s < lowered_s + limits.window_s:
            return now  # what was done about it has not shown yet
        share = 0.5 if is_throttled else min(0.9, max(0.5, 1 / late))
        cap = share * min(now.cap, now.duty)
        if late <= 1:
            cap = max(DUTY_MIN, cap)  # clocks that are low for another reason must not keep rounds from ending
        return replace(now, cap=cap, cap_until_s=at_s + _CAP_STAYS * limits.window_s)
    if now.cap < 1 and at_s >= now.cap_until_s:
        cap = min(1.0, _CAP_GROWS * max(DUTY_MIN, now.cap))
        return replace(now, cap=cap, cap_until_s=at_s + limits.window_s)
    return now


# ----------------------------------------------------------------------------------------------------- resting


def _rest(now: Governor, verdict: Verdict, at_s: float, window_s: float, *, is_training: bool) -> Governor:
    """Begin a rest when a trainer is paused for what it takes."""
    is_breach = verdict.kind is VerdictKind.PAUSE and verdict.breach is not BreachKind.WITHHELD
    if not (is_breach and is_training and now.verdict.kind not in _BLOCKED):
        return now
    is_again = now.rests > 0 and at_s - now.rest_from_s < _rest_s(now, window_s) + _SOON * window_s
    return replace(now, rests=now.rests + 1 if is_again else 1, rest_from_s=at_s)


def _rest_s(now: Governor, window_s: float) -> float:
    return float(window_s * 2 ** min(_RESTS_MAX, now.rests - 1))


def _rest_left_s(now: Governor, at_s: float, window_s: float) -> float:
    return now.rest_from_s + _rest_s(now, window_s) - at_s if now.rests > 0 else 0.0
