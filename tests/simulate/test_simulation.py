"""The real daemon in a simulated world: what budgets promise, what befalls a board, and that it comes out the same each time."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest

from edgetune import config as configuration
from edgetune.config import Config
from edgetune.errors import SensorError
from edgetune.simulate.board import BOARDS, DailyAmbient
from edgetune.simulate.network import NETWORKS
from edgetune.simulate.record import Record
from edgetune.simulate.report import report
from edgetune.simulate.scenario import Scenario, happenings
from edgetune.simulate.simulation import simulate

# A site where rounds come soon: much is seen, all of it is labelled, and each image is a group of its own.
BUSY = Scenario(
    days=0.12, arrivals_per_h=200.0, pattern="even", labelled=1.0, network=NETWORKS["resnet18"], disk_free_mib=20_000.0
)
SOON = """
triggers: {new_samples: 60, imprint_samples: null}
gate: {holdout_min: 10, accuracy_risk_max: 50pp, class_drop_max: 50pp}
buffer: {group_block: 0s, quota: 500MiB}
"""


def config(budgets: str = "{}") -> Config:
    """Rounds soon, under these budgets."""
    return configuration.parse(f"{SOON}\nbudgets: {budgets}\n")


def befallen(kind: str, *moments: str, **changes: Any) -> Scenario:
    """The busy site, and something that happens to it."""
    scenario = replace(BUSY, **changes)
    return replace(scenario, happenings=happenings(kind, moments, days=scenario.days))


def outcomes(record: Record) -> list[tuple[int, str]]:
    """Every round that has ended, and how."""
    return [(number, row["outcome"]) for number, row in sorted(record.rounds.items()) if row["outcome"]]


def test_a_hot_afternoon_exceeds_no_limit_for_long() -> None:
    """The averages that a budget is about are over it for two readings in a row at most, and rounds go on."""
    hot = replace(BUSY, ambient=DailyAmbient(low_c=34.0, high_c=44.0))

    record = simulate(config('{temperature_max: 78C, power_max: "6.5W"}'), hot)

    told = report(record)["total"]
    assert told["trained_s"] > 600
    assert told["slowed_s"]
    assert max(told["over_longest_ticks"].values(), default=0) <= 2
    assert told["temp_max_c"] < 80


@pytest.mark.slow
def test_a_week_of_hot_afternoons_exceeds_no_limit_for_long() -> None:
    """The same on every day of a week."""
    hot = replace(BUSY, days=7.0, arrivals_per_h=60.0, pattern="door", ambient=DailyAmbient(low_c=22.0, high_c=42.0))

    record = simulate(config('{temperature_max: 75C, power_max: "7W"}'), hot)

    told = report(record)["total"]
    assert told["trained_s"] > 3600
    assert max(told["over_longest_ticks"].values(), default=0) <= 2


def test_rounds_run_within_the_hours_alone() -> None:
    """A round that is wanted before waits for them, and the time it waits is told by the key."""
    record = simulate(config('{hours: ["01:00-02:00"]}'), BUSY)

    told = report(record)
    assert told["rounds"]
    assert all(3600 <= each["began_s"] < 2 * 3600 for each in told["rounds"])
    assert told["total"]["withheld_s"]["budgets.hours"] > 1200
    assert not any(span["what"] in ("trains", "slowed") and span["to_s"] > 2 * 3600 + 60 for span in told["spans"])


def test_a_days_energy_is_a_wall() -> None:
    """No round trains on once the day's joules are used up."""
    record = simulate(config('{energy_per_day_max: "1Wh"}'), BUSY)

    told = report(record)["total"]
    assert told["withheld_s"]["budgets.energy_per_day_max"] > 3600
    assert 0 < told["trained_s"] < 3600 / BUSY.board.idle_w
    assert told["over_longest_ticks"]["budgets.energy_per_day_max"] <= 2


@pytest.mark.parametrize("kind", ["reboot", "brown_out"])
def test_a_round_goes_on_after_a_restart(kind: str) -> None:
    """With its number, from its checkpoint: it does not begin anew, and nothing is lost."""
    calm = simulate(config(), BUSY)
    began_s, ended_s = calm.spans[1]
    middle = dt.timedelta(seconds=(began_s + ended_s) / 2)
    moment = f"1/{middle.seconds // 3600:02d}:{middle.seconds // 60 % 60:02d}+2min"

    record = simulate(config(), befallen(kind, moment))

    assert record.boots == 2
    assert outcomes(record)[0] == (1, "promoted")
    assert record.spans[1][0] == began_s
    trained_s, calm_s = (each.rounds[1]["details"]["trained_s"] for each in (record, calm))
    assert trained_s < 1.2 * calm_s  # not once more from the beginning
    assert sum(record.images.values()) == sum(day.images for day in record.days.values())


def test_a_clock_that_jumps_ten_years_changes_no_round() -> None:
    """Durations are no dates: the same rounds end the same way at the same time, and nothing is evicted or given up."""
    calm = simulate(config(), BUSY)

    jumped = simulate(config(), befallen("clock_jump", "1/00:40+3650d", "1/01:30-3650d"))

    assert outcomes(jumped) == outcomes(calm)
    for number, (began_s, ended_s) in calm.spans.items():
        assert jumped.spans[number] == pytest.approx((began_s, ended_s), abs=300)
    assert jumped.images["evicted"] == 0


def test_a_full_disk_loses_no_image() -> None:
    """What comes meanwhile waits in the inbox; once there is room again, all of it is in the buffer."""
    record = simulate(config(), befallen("disk_full", "1/00:40+1h"))

    told = report(record)
    came = told["total"]["images"]
    assert record.images["stored"] + record.images["waiting"] == came
    assert record.images["waiting"] < 10
    assert record.images["evicted"] == 0
    assert told["total"]["withheld_s"]["budgets.disk_free_min"] > 1800
    assert any(began_s > 1.6 * 3600 for began_s, _ in record.spans.values())


def test_the_same_seed_gives_the_same_days() -> None:
    """And another one others."""
    scenario = replace(BUSY, days=0.08, ambient=DailyAmbient(low_c=40.0, high_c=45.0))
    budgets = "{temperature_max: 78C}"

    first, again = (report(simulate(config(budgets), scenario)) for _ in range(2))
    other = report(simulate(config(budgets), replace(scenario, seed=1)))

    assert first == again
    assert first["timeline"] != other["timeline"]


def test_rounds_wait_for_the_mains_and_for_the_battery() -> None:
    """Nothing trains away from the mains, nor before the battery is full enough, and both are told by their keys."""
    away = befallen("mains_out", "00:20+40min", days=0.2, battery_j=10 * 3600.0)

    record = simulate(config("{mains_only: true, battery_min: 85%}"), away)

    told = report(record)["total"]
    assert set(told["withheld_s"]) == {"budgets.mains_only", "budgets.battery_min"}
    assert told["battery_min"] < 0.85
    assert told["trained_s"] > 0
    for span in report(record)["spans"]:
        if span["what"] in ("trains", "slowed"):
            assert not (1200 < span["from_s"] < 3600 or 1200 + 10 < span["to_s"] < 3600)


def test_an_empty_battery_is_a_power_cut_until_the_mains_are_back() -> None:
    """The board is off meanwhile, and goes on after it with what it had."""
    away = befallen("mains_out", "00:30+60min", battery_j=1.0 * 3600)

    record = simulate(config(), away)

    cut, empty = record.happenings
    assert (cut.kind, empty.kind) == ("mains_out", "battery_empty")
    assert empty.at_s == pytest.approx(1800 + 3600 / 5, rel=0.4)  # an hour's watt at about five
    assert empty.at_s + empty.length_s == pytest.approx(1800 + 3600)
    assert record.boots == 2
    assert report(record)["total"]["battery_min"] == 0
    assert not [moment for moment in record.moments if empty.at_s < moment.at_s < 5400 - 1]


def test_a_budget_that_the_board_cannot_measure_is_refused_as_by_the_daemon() -> None:
    """A Pi 4 has no power sensor; with the estimate it has one."""
    pi4 = replace(BUSY, board=BOARDS["pi4"], days=0.05)

    with pytest.raises(SensorError, match=r"budgets.power_max is set, but this board cannot measure power_w"):
        simulate(config("{power_max: 6W}"), pi4)

    simulate(config("{power_max: 6W, estimate: true, estimated_idle: 2.7W, estimated_busy: 6.4W}"), pi4)


def test_what_cannot_fit_into_memory_is_told() -> None:
    """A step goes through in parts first; where eight images at a time are too much, the round says so, with the key."""
    small = simulate(config("{trainer_memory_max: 480MiB}"), replace(BUSY, days=0.06))
    fits = simulate(config("{trainer_memory_max: 900MiB}"), replace(BUSY, days=0.06))

    assert "does not fit" in small.rounds[1]["message"]
    assert "of 480 (budgets.trainer_memory_max)" in small.rounds[1]["message"]
    assert small.rounds[1]["outcome"] == "will_not_fit"
    assert fits.rounds[1]["outcome"] == "promoted"


def test_an_old_buffer_makes_room_for_new_images() -> None:
    """The quota counts images of the size that was asked for."""
    full = configuration.parse(SOON.replace("500MiB", "10MiB").replace("60", "100000"))

    record = simulate(full, replace(BUSY, image_bytes=40e3))

    assert record.images["stored"] <= 10 * 2**20 / 40e3
    assert record.images["evicted"] > 100
    assert sum(record.images.values()) == report(record)["total"]["images"]
