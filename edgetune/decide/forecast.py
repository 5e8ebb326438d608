"""
Does a round fit, and how is it run so that it does? Ways to run it, best first -> the first that fits, or why none does.

Memory is judged by the upper end of its interval, because nothing may pass that limit; time and energy by what is likely,
because a round that passes those is stopped in time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgetune import units
from edgetune.types import Cut, Forecast, Interval, Workload

_GIVING_BACK = 1.3  # a step in parts gives memory back before each: 1.2 to 1.5 times as long on two shared x86 cores
_CUT_LEAVES_MOST = 0.9  # of the weights: powers of a share near one say nothing of a smaller share
SHARES = (1.0, 0.75, 0.5, 0.35, 0.25)  # of a round's epochs, where all of them take too long
LEAST_OTHER_MIB = 40.0  # that any round takes beside what its process held before: a model and its first pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What a round may take; None: any."""

    peak_mib: float | None = None
    available_mib: float | None = None  # what the process may grow to before too little is left for others
    duration_s: float | None = None
    energy_j: float | None = None


def excess(forecast: Forecast, allowed: Allowance) -> str:
    """The number that does not fit, with the budget's key; empty: all fit."""
    found = []
    for limit, key, beside_mib in (
        (allowed.peak_mib, "trainer_memory_max", forecast.beside_mib),
        (allowed.available_mib, "memory_available_min", 0.0),  # the teacher runs already
    ):
        up_to = forecast.peak_mib.high + beside_mib
        if limit is not None and up_to > limit:
            whose = f", {beside_mib:.0f} of them the teacher's" if beside_mib else ""
            found.append(f"it would take up to {up_to:.0f} MiB of {max(0.0, limit):.0f} (budgets.{key}){whose}")
    if allowed.duration_s is not None and forecast.duration_s.likely > allowed.duration_s:
        needed, most = (units.show(round(s), "duration") for s in (forecast.duration_s.likely, allowed.duration_s))
        found.append(f"it would take {needed} of {most} (budgets.round_time_max)")
    energy = forecast.energy_j
    if allowed.energy_j is not None and energy is not None and energy.likely > allowed.energy_j:
        needed, most = (units.show(j, "energy") for j in (energy.likely, allowed.energy_j))
        found.append(f"it would take {needed} of {most} (budgets.round_energy_max)")
    return "; ".join(found)


def why_not_loaded(bare_mib: float, memory_max_mib: float | None, loaded_mib: float = 0.0) -> str:
    """
    Why a round need not even load its model: there is no room for that; empty: there may be.

    Args:
        bare_mib: that a trainer takes with its libraries alone.
        memory_max_mib: the budget; None: any.
        loaded_mib: of the images and weights, as far as they are known.
    """
    least_mib = bare_mib + loaded_mib + LEAST_OTHER_MIB
    if memory_max_mib is None or least_mib <= memory_max_mib:
        return ""
    return (
        f"any round takes at least {least_mib:.0f} MiB of {memory_max_mib:.0f} (budgets.trainer_memory_max), "
        f"{bare_mib:.0f} of them Python's and torch's"
    )


def choose(ways: Iterable[Forecast], allowed: Allowance) -> Forecast:
    """
    The first way that fits; where none does, the last one, which `fits` not.

    Args:
        ways: at least one, best first; looked at no further than needed. The `reason` that one comes with is kept.
        allowed: the budgets.
    """
    first, wish, last = "", "", None
    for way in ways:
        why = excess(way, allowed)
        first, wish = first or why, wish or describe_way(way)
        if not why:
            told = f"{describe_way(way)}, because with {wish} {first}" if first else ""
            return replace(way, fits=True, reason="; ".join(filter(None, (way.reason, told))))
        last = replace(way, fits=False, reason=why)
    assert last is not None, "there is a way to run a round"
    return last


def choose_shorter(
    ways: Callable[[float], Iterable[Forecast]], allowed: Allowance, shares: Sequence[float] = SHARES
) -> Forecast:
    """
    The first way that fits with as much of the training as can be had; where none does, why all of it does not.

    A site whose samples grow in number would else pass a budget of time one day, and never learn again.

    Args:
        ways: best first, with so much of the training, 0..1; see `choose`.
        allowed: the budgets.
        shares: that are tried, the first is 1.
    """
    whole = choose(ways(shares[0]), allowed)
    if whole.fits or excess(whole, replace(allowed, duration_s=None, energy_j=None)):
        return whole  # memory does not depend on how long is trained
    why = excess(next(iter(ways(shares[0]))), allowed)
    for share in shares[1:]:
        chosen = choose(ways(share), allowed)
        if chosen.fits:
            told = f"{share:.0%} of the epochs, because with all of them {why}"
            return replace(chosen, training=share, reason="; ".join(filter(None, (told, chosen.reason))))
    return whole


def shares_of(steps: int, epoch_steps: int) -> list[float]:
    """Of SHARES those that leave an epoch at least: less is no training."""
    return [share for share in SHARES if share == 1 or share * steps >= epoch_steps]


def describe_way(forecast: Forecast) -> str:
    """How a round would be run: 'the last stage from latents, 4 batches of 16 a step'."""
    what = {
        "full": "all layers",
        "tail": "the last stage",
        "head": "the output layer",
        "latent": "the last stage, from latents",
    }[forecast.update]
    if forecast.accumulation == 1:
        return f"{what}, {forecast.batch_size} images a step"
    return f"{what}, {forecast.accumulation} batches of {forecast.batch_size} images a step"


def in_parts(count: int) -> float:
    """What a step in so many parts takes, in steps of the size of a part."""
    return count * _GIVING_BACK if count > 1 else 1.0


def total(parts: Sequence[Interval]) -> Interval:
    """Of a sum whose parts are wrong in the same direction: the ends add up."""
    return Interval(low=sum(p.low for p in parts), likely=sum(p.likely for p in parts), high=sum(p.high for p in parts))


def times(interval: Interval, factor: Interval | float) -> Interval:
    """Of a product, likewise."""
    by = factor if isinstance(factor, Interval) else Interval(low=factor, likely=factor, high=factor)
    return Interval(low=interval.low * by.low, likely=interval.likely * by.likely, high=interval.high * by.high)


def paced(worked: Interval, now: float, before: Sequence[float]) -> Interval:
    """
    How long work takes at the pace that budgets allow: likely at the slower one of the last two rounds', or at a faster one of now.

    The pace of one moment says little: after a hot day the first minutes of a night's round are the slowest. Older rounds
    may have had other budgets, or another season.

    Args:
        worked: seconds of it.
        now: duty at present, 0..1 and above 0; likely where no round has told.
        before: duties of earlier rounds, the last one last.
    """
    known = before[-2:]
    usual = max(now, min(known)) if known else now
    return Interval(
        low=worked.low / max([now, *known]), likely=worked.likely / usual, high=worked.high / min([now, *known])
    )


def largest(parts: Sequence[Interval]) -> Interval:
    """Of the largest of several."""
    return Interval(low=max(p.low for p in parts), likely=max(p.likely for p in parts), high=max(p.high for p in parts))


def spread(values: Sequence[float], prior: Interval) -> Interval:
    """
    Of the next of these values: around their median, as far as they have differed, and by no less than a tenth.

    Args:
        values: seen so far, positive.
        prior: what is said when there are none.
    """
    if not values:
        return prior
    ordered = sorted(values)
    middle = ordered[len(ordered) // 2]
    return Interval(low=min(ordered[0], 0.9 * middle), likely=middle, high=max(ordered[-1], 1.1 * middle))


def cut_of(workloads: Sequence[Workload]) -> Cut | None:
    """What a cut between the first and the last of a round's phases left; None: there was none that could be seen."""
    if len(workloads) < 2:
        return None
    (weights, macs, kept), left = (_sizes(workloads[place]) for place in (0, -1))
    if min(weights, macs, kept) <= 0:
        return None
    weights, macs, kept = (of / whole for of, whole in zip(left, (weights, macs, kept), strict=True))
    if not (0 < weights <= _CUT_LEAVES_MOST and 0 < macs < 1 and 0 < kept <= 1):
        return None
    powers = (math.log(macs, weights), math.log(kept, weights))
    return Cut(macs=min(max(powers[0], 0.1), 2.0), kept=min(powers[1], 2.0))


def _sizes(work: Workload) -> tuple[float, float, float]:
    return work.mega_weights, work.mega_macs + work.grouped_mega_macs, work.kept_mib


def errors(forecast: Forecast, actual: dict[str, float | None]) -> dict[str, float]:
    """
    How far a finished round was from its forecast: (actual - forecast) / forecast of each quantity that both have.

    Args:
        forecast: as made before it began.
        actual: "peak_mib", "step_s", "duration_s", "energy_j"; None: not measured.
    """
    said: dict[str, Any] = {
        "peak_mib": forecast.peak_mib,
        "step_s": forecast.step_s,
        "duration_s": forecast.duration_s,
        "energy_j": forecast.energy_j,
    }
    found = {}
    for name, interval in said.items():
        value = actual.get(name)
        if interval is not None and value is not None and interval.likely > 0:
            found[name] = round(value / interval.likely - 1, 4)
    return found
