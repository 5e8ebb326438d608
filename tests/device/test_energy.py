"""Joules from readings of power."""

from __future__ import annotations

import threading

import pytest
from fakes import FakeClock, FakeSensors
from hypothesis import given
from hypothesis import strategies as st

from edgetune.device.energy import EnergyMeter, PowerWatch
from edgetune.types import Quantity, Reading


def test_nothing_is_known_before_the_second_reading() -> None:
    """One reading covers no time."""
    meter = EnergyMeter()
    assert meter.add(10.0, 0.0) == 0
    assert meter.joules is None
    assert meter.add(20.0, 2.0) == 30.0  # the mean of both ends, two seconds
    assert meter.joules == 30.0


def test_what_nobody_measured_is_counted_as_time_and_not_as_nothing() -> None:
    """A sensor that fails for a while leaves a hole of known length."""
    meter = EnergyMeter()
    for at_s, power_w in ((0, 5.0), (1, 5.0), (2, None), (3, 5.0), (4, 5.0)):
        meter.add(power_w, at_s)
    assert meter.joules == 10.0
    assert meter.unmetered_s == 2.0


def test_a_rest_and_a_long_gap_are_not_counted() -> None:
    """A paused trainer, and a board that slept."""
    meter = EnergyMeter()
    meter.add(5.0, 0)
    meter.add(5.0, 1)
    meter.rest()
    meter.add(5.0, 30)
    assert meter.joules == 5.0
    meter.add(5.0, 31)
    meter.add(5.0, 31 + 3600)
    assert meter.joules == 10.0


@given(st.lists(st.floats(0, 200), min_size=2, max_size=30), st.floats(0.1, 10))
def test_steady_steps_sum_to_the_area(powers: list[float], step_s: float) -> None:
    """Against the area under the curve, computed at once."""
    meter = EnergyMeter()
    used = sum(meter.add(power, i * step_s) for i, power in enumerate(powers))
    area = step_s * (sum(powers) - (powers[0] + powers[-1]) / 2)
    assert used == pytest.approx(area, abs=1e-6)
    assert meter.joules == pytest.approx(used, abs=1e-9)


class Ticking(FakeSensors):
    """A board on which a second passes with every reading."""

    def read(self, trainer_pid: int | None) -> Reading:
        """What was set, a second later."""
        self.clock.advance(1.0)
        return super().read(trainer_pid)


def watch(power_w: float | None) -> list[float]:
    """What a watch on a board of that power tells until it has told three times, or has had the time to."""
    told: list[float] = []
    enough = threading.Event()
    sensors = Ticking(FakeClock())
    sensors.values[Quantity.POWER_W] = power_w

    def hear(joules: float) -> None:
        told.append(joules)
        if len(told) == 3:
            enough.set()

    with PowerWatch(sensors, hear, interval_s=0.001):
        enough.wait(0.1 if power_w is None else 30)
    return told


def test_a_steady_power_times_the_time() -> None:
    """Every reading is a second later; the last one comes after the end."""
    told = watch(10.0)
    assert told == [10.0 * seconds for seconds in range(1, len(told) + 1)]
    assert len(told) >= 4


def test_an_unknown_power_tells_nothing() -> None:
    """None is not 0 J."""
    assert watch(None) == []
