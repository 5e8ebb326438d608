"""The mean of a power sensor between two looks."""

from __future__ import annotations

import threading

import pytest

from edgetune.device.mean_power import MeanPower
from edgetune.device.sysfs import SensorValue, UnreadableError


class Sensor:
    """Says what it is told to, in turn, and the last for ever."""

    def __init__(self, *says: float | Exception | None) -> None:
        self.says, self.reads, self.was_read_often = list(says), 0, threading.Event()

    def __call__(self) -> SensorValue | None:
        """One reading."""
        said = self.says[min(self.reads, len(self.says) - 1)]
        self.reads += 1
        if self.reads > 10:
            self.was_read_often.set()
        if isinstance(said, Exception):
            raise said
        return None if said is None else SensorValue(said, "rail", 0.04)


def test_without_samples_a_look_is_a_reading() -> None:
    """Nothing trains: one reading a tick."""
    power = MeanPower(Sensor(4.0, 6.0))
    assert power.value() == SensorValue(4.0, "rail", 0.04)
    assert power.value() == SensorValue(6.0, "rail", 0.04)


def test_a_look_takes_the_mean_of_what_was_sampled_since_the_last() -> None:
    """Work and sleep in turn; each sample counts once."""
    sensor = Sensor(10.0, 4.0, 4.0, 8.0)
    power = MeanPower(sensor)
    for _ in range(3):
        assert power.sample()
    assert power.value() == SensorValue(6.0, "rail", 0.04)
    power.sample()
    assert power.value() == SensorValue(8.0, "rail", 0.04)
    assert sensor.reads == 4


def test_a_stuck_sensor_keeps_saying_exactly_the_same() -> None:
    """However many samples: a mean that wavered in its last digit would hide that it is stuck."""
    for value in (0.1, 1 / 3, 5.123, 7.7):
        for samples in (1, 3, 7, 49):
            power = MeanPower(Sensor(value))
            for _ in range(samples):
                power.sample()
            found = power.value()
            assert found is not None
            assert found.value == value


@pytest.mark.parametrize("error", [UnreadableError("gone"), OSError(5, "Input/output error"), ValueError("nonsense")])
def test_what_fails_last_is_unknown_and_what_failed_before_is_over(error: Exception) -> None:
    """The newest word counts: no mean of the past stands for a sensor that has vanished."""
    power = MeanPower(Sensor(5.0, error, 5.0, 7.0))
    power.sample()
    power.sample()
    with pytest.raises(UnreadableError):
        power.value()
    power.sample()
    power.sample()
    found = power.value()
    assert found is not None
    assert found.value == 6.0


def test_it_samples_only_while_it_is_told_to() -> None:
    """A thread of its own, gone when it is not wanted any more."""
    sensor = Sensor(5.0)
    power = MeanPower(sensor, every_s=0.001)
    before = set(threading.enumerate())
    power.keep_sampling(is_wanted=True)
    power.keep_sampling(is_wanted=True)
    (sampling,) = set(threading.enumerate()) - before
    assert sensor.was_read_often.wait(10)
    power.keep_sampling(is_wanted=False)
    sampling.join(10)
    assert not sampling.is_alive()
    power.value()
    reads = sensor.reads
    power.value()
    assert sensor.reads == reads + 1


def test_a_board_without_a_sensor_is_not_asked_again_and_again() -> None:
    """The thread ends by itself."""
    sensor = Sensor(None)
    power = MeanPower(sensor, every_s=0.001)
    before = set(threading.enumerate())
    power.keep_sampling(is_wanted=True)
    for sampling in set(threading.enumerate()) - before:
        sampling.join(10)
    assert not set(threading.enumerate()) - before
    assert sensor.reads == 1
    assert power.value() is None
