"""The board in software: heat follows watts, the firmware holds the clocks, the sensors err as they are said to."""

from __future__ import annotations

import statistics

import pytest

from edgetune.simulate.board import BOARDS, BoardModel, DailyAmbient

EVERY_BOARD = pytest.mark.parametrize("name", sorted(BOARDS))


@EVERY_BOARD
def test_at_rest_a_board_stays_as_it_is(name: str) -> None:
    """What it begins with is the balance of its idle watts."""
    model = BoardModel(BOARDS[name], ambient_c=25.0)
    before = model.chip_c

    model.step(3600, 0.0)

    assert model.chip_c == pytest.approx(before, abs=0.01)
    assert 30 < model.chip_c < 60
    assert model.power_w == BOARDS[name].idle_w


@EVERY_BOARD
def test_a_busy_board_warms_up_and_is_held_by_its_firmware(name: str) -> None:
    """In air that is too warm for full load the chip stays within the band above its trip point, at a lower clock."""
    facts = BOARDS[name]
    half_w = (facts.idle_w + facts.busy_w) / 2
    warmed_c = half_w * (facts.air_resistance_c_per_w + facts.chip_resistance_c_per_w)
    model = BoardModel(facts, ambient_c=facts.trip_c - warmed_c)

    for _ in range(3600):
        model.step(1.0, 1.0)

    assert model.is_throttled
    assert facts.trip_c < model.chip_c < facts.trip_c + facts.trip_band_c
    assert facts.clock_min_share <= model.clock_share < 1.0
    assert model.power_w < facts.busy_w


@EVERY_BOARD
def test_long_steps_come_to_the_same_as_short_ones(name: str) -> None:
    """A simulation that looks away for a minute must not find another board."""
    short, long = (BoardModel(BOARDS[name], ambient_c=35.0) for _ in range(2))

    for _ in range(600):
        short.step(1.0, 0.8)
    for _ in range(10):
        long.step(60.0, 0.8)

    assert long.chip_c == pytest.approx(short.chip_c, abs=0.7)


def test_the_chip_answers_in_seconds_and_the_board_in_minutes() -> None:
    """The first seconds of load are the chip's own; the rest takes a time constant of the board."""
    facts = BOARDS["pi5"]
    model = BoardModel(facts, ambient_c=25.0)
    start_c, added_w = model.chip_c, facts.busy_w - facts.idle_w

    model.step(3 * facts.chip_time_constant_s, 1.0)
    soon_c = model.chip_c - start_c
    model.step(2000.0, 1.0)

    assert soon_c > 0.8 * facts.chip_resistance_c_per_w * added_w
    assert soon_c < 0.4 * (model.chip_c - start_c)


def test_a_sensor_is_late_noisy_and_coarse() -> None:
    """Readings scatter by the noise around the truth, in steps of the resolution, and follow a jump with the lag."""
    facts = BOARDS["pi5"]
    model = BoardModel(facts, ambient_c=25.0, seed=1)
    said = [model.read_temp_c() for _ in range(400)]

    assert statistics.mean(said) == pytest.approx(model.chip_c, abs=0.1)
    assert 0.5 * facts.temp_noise_c < statistics.stdev(said) < 2 * facts.temp_noise_c
    assert all(abs(value / facts.temp_resolution_c - round(value / facts.temp_resolution_c)) < 1e-9 for value in said)

    model.step(0.2, 1.0)
    late = statistics.mean(model.read_power_w() or 0.0 for _ in range(100))
    assert late < 0.5 * (facts.idle_w + facts.busy_w) < model.power_w


def test_a_board_without_a_power_sensor_has_none() -> None:
    """A Pi 4 draws watts and cannot say how many."""
    model = BoardModel(BOARDS["pi4"])

    assert model.power_w > 0
    assert model.read_power_w() is None


def test_the_same_seed_gives_the_same_noise() -> None:
    """And another one another."""

    def read(seed: int) -> list[float]:
        model = BoardModel(BOARDS["pi5"], seed=seed)
        return [model.read_temp_c() for _ in range(20)]

    assert read(3) == read(3) != read(4)


def test_the_day_is_coldest_in_the_morning_and_warmest_in_the_afternoon() -> None:
    """Between its two ends, once a day."""
    ambient = DailyAmbient(low_c=20.0, high_c=35.0)

    assert ambient.at(5) == pytest.approx(20.0)
    assert ambient.at(17) == pytest.approx(35.0)
    assert ambient.at(0) == pytest.approx(ambient.at(24))
