"""The budget's verdicts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.decide.budget import budgeted, judge
from edgetune.types import BreachKind, Limits, Measurement, Quantity, Reading, Verdict, VerdictKind

RUN = Verdict(kind=VerdictKind.RUN, duty=1.0)
ORDER = [VerdictKind.RUN, VerdictKind.THROTTLE, VerdictKind.PAUSE, VerdictKind.STOP]
GOOD = {
    Quantity.MEM_AVAILABLE_MIB: 2000.0,
    Quantity.TRAINER_RSS_MIB: 500.0,
    Quantity.SOC_TEMP_C: 50.0,
    Quantity.POWER_W: 5.0,
    Quantity.CPU_SHARE: 0.2,
    Quantity.DISK_FREE_MIB: 9000.0,
    Quantity.ON_MAINS: 1.0,
    Quantity.BATTERY_SHARE: 0.9,
    Quantity.MEM_PRESSURE: 0.0,
    Quantity.CPU_PRESSURE: 0.1,
    Quantity.IO_PRESSURE: 0.1,
    Quantity.SERVING_P99_MS: 12.0,
    Quantity.ENERGY_DAY_J: 3600.0,
    Quantity.WRITTEN_DAY_MIB: 100.0,
}
LIMITS = Limits(
    mem_available_min_mib=300, trainer_rss_max_mib=1500, soc_temp_max_c=80, power_max_w=10, cpu_share_max=0.8,
    disk_free_min_mib=500, mains_only=True, battery_share_min=0.4, mem_pressure_max=0.3, cpu_pressure_max=0.9,
    io_pressure_max=0.5, serving_p99_max_ms=50, energy_per_day_max_j=72_000, writes_per_day_max_mib=2048,
)  # fmt: skip


def reading(minute: int = 720, **changes: float | None) -> Reading:
    """A good board, changed in the named quantities."""
    values = {**GOOD, **{Quantity(name): value for name, value in changes.items()}}
    measured = {
        q: Measurement(value=v, source="test", why_unknown="" if v is not None else "gone") for q, v in values.items()
    }
    return Reading(at_s=0, wall_s=0, local_minute=minute, values=measured)


@pytest.mark.parametrize(
    ("change", "kind", "breach"),
    [
        ({"mem_available_mib": 299}, VerdictKind.STOP, BreachKind.TOO_BIG),
        ({"trainer_rss_mib": 1501}, VerdictKind.STOP, BreachKind.TOO_BIG),
        ({"mem_pressure": 0.31}, VerdictKind.STOP, BreachKind.TOO_BIG),
        ({"disk_free_mib": 499}, VerdictKind.STOP, BreachKind.TOO_BIG),
        ({"soc_temp_c": 80.5}, VerdictKind.PAUSE, BreachKind.TOO_HOT),
        ({"power_w": 10.5}, VerdictKind.PAUSE, BreachKind.TOO_HUNGRY),
        ({"on_mains": 0.0}, VerdictKind.PAUSE, BreachKind.WITHHELD),
        ({"battery_share": 0.39}, VerdictKind.PAUSE, BreachKind.WITHHELD),
        ({"energy_day_j": 72_001}, VerdictKind.PAUSE, BreachKind.WITHHELD),
        ({"written_day_mib": 2049}, VerdictKind.PAUSE, BreachKind.WITHHELD),
    ],
)
def test_each_breach_has_its_answer_and_names_itself(
    change: dict[str, float], kind: VerdictKind, breach: BreachKind
) -> None:
    """Memory and disk stop; heat, watts and what is used up pause; the reason has value and limit."""
    verdict = judge(reading(**change), LIMITS, RUN, is_training=True)
    assert (verdict.kind, verdict.breach) == (kind, breach)
    for name in change:
        assert any(name in reason and "limit=" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("change", [{}, {"cpu_share": 0.95}, {"io_pressure": 0.9}, {"serving_p99_ms": 90.0}])
def test_what_a_slower_trainer_takes_less_of_pauses_nothing(change: dict[str, float]) -> None:
    """The governor paces it."""
    assert judge(reading(**change), LIMITS, RUN, is_training=True) == RUN


@pytest.mark.parametrize("quantity", list(GOOD))
def test_unknown_is_over_budget(quantity: Quantity) -> None:
    """A budgeted quantity without a value allows nothing, and says why it has none."""
    verdict = judge(reading(**{quantity.value: None}), LIMITS, RUN, is_training=True)
    assert verdict.kind in (VerdictKind.PAUSE, VerdictKind.STOP)
    assert verdict.duty == 0
    assert any("gone" in reason for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("limits", "whose"),
    [(Limits(round_energy_max_j=3600), "the round's"), (Limits(energy_per_day_max_j=1e9), "the day's")],
)
def test_a_limit_on_energy_needs_the_power_to_be_known(limits: Limits, whose: str) -> None:
    """No limit on watts: any power will do, and none will not."""
    assert Quantity.POWER_W in budgeted(limits)
    assert judge(reading(power_w=900), limits, RUN, is_training=True) == RUN
    verdict = judge(reading(power_w=None), limits, RUN, is_training=True)
    assert (verdict.kind, verdict.breach) == (VerdictKind.PAUSE, BreachKind.TOO_HUNGRY)
    assert verdict.reasons == (f"power_w unknown (gone) and {whose} energy is limited",)


def test_a_quantity_without_a_limit_is_not_looked_at() -> None:
    """No limit, no verdict, known or not."""
    assert judge(reading(soc_temp_c=None, power_w=900, on_mains=0.0), Limits(), RUN, is_training=True) == RUN
    assert budgeted(Limits()) == ()


def test_work_goes_on_only_well_inside_the_limit() -> None:
    """80 C pauses; 78 C is not yet enough to go on, 75 C is."""
    limits = Limits(soc_temp_max_c=80)
    paused = judge(reading(soc_temp_c=81), limits, RUN, is_training=True)
    assert judge(reading(soc_temp_c=78), limits, paused, is_training=True).kind is VerdictKind.PAUSE
    assert judge(reading(soc_temp_c=75.9), limits, paused, is_training=True).kind is VerdictKind.RUN


def test_a_plug_and_a_days_sum_have_no_hysteresis() -> None:
    """Back on mains is on mains, and what is left of the day is left, whatever withheld a moment ago."""
    paused = judge(reading(), LIMITS, RUN, is_training=True, withheld="paused by the operator")
    assert judge(reading(energy_day_j=71_900, written_day_mib=2047), LIMITS, paused, is_training=True) == RUN


def test_the_trainers_memory_counts_only_while_there_is_a_trainer() -> None:
    """Before the start it has none, and none is not unknown."""
    assert judge(reading(trainer_rss_mib=None), LIMITS, RUN, is_training=False).kind is VerdictKind.RUN


@pytest.mark.parametrize(("minute", "is_allowed"), [(23 * 60, True), (3 * 60, True), (6 * 60, False), (12 * 60, False)])
def test_hours_may_span_midnight(minute: int, is_allowed: bool) -> None:
    """22:00-06:00 is the night."""
    verdict = judge(reading(minute), Limits(hours=((22 * 60, 6 * 60),)), RUN, is_training=True)
    assert (verdict.kind is VerdictKind.RUN) == is_allowed
    assert is_allowed or verdict.breach is BreachKind.WITHHELD


def test_an_operators_pause_withholds() -> None:
    """His word is the reason."""
    verdict = judge(reading(), LIMITS, RUN, is_training=True, withheld="paused by the operator")
    assert (verdict.kind, verdict.breach) == (VerdictKind.PAUSE, BreachKind.WITHHELD)
    assert "paused by the operator" in verdict.reasons


_FLOORS = (Quantity.MEM_AVAILABLE_MIB, Quantity.DISK_FREE_MIB, Quantity.ON_MAINS, Quantity.BATTERY_SHARE)


@given(
    values=st.fixed_dictionaries({q: st.floats(0, 20000, allow_nan=False) for q in GOOD}),
    which=st.sampled_from(list(GOOD)),
    by=st.floats(0, 5000),
    last=st.sampled_from(
        [RUN, replace(RUN, kind=VerdictKind.PAUSE, duty=0.0), replace(RUN, kind=VerdictKind.THROTTLE, duty=0.3)]
    ),
)
def test_a_worse_reading_never_loosens_the_verdict(
    values: dict[Quantity, float], which: Quantity, by: float, last: Verdict
) -> None:
    """Less memory, more heat: never more allowed than before."""
    worse = {**values, which: values[which] + (-by if which in _FLOORS else by)}

    def verdict(of: dict[Quantity, float]) -> Verdict:
        return judge(reading(**{q.value: v for q, v in of.items()}), LIMITS, last, is_training=True)

    before, after = verdict(values), verdict(worse)
    assert ORDER.index(after.kind) >= ORDER.index(before.kind)
    assert after.duty <= before.duty
