"""The jtop probe from both sides; jetson-stats itself is not needed."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgetune.device.jtop import JtopProbe
from edgetune.device.jtop_probe import reading
from edgetune.device.sensors import BoardSensors
from edgetune.types import Quantity


class Hands:
    """A clock whose hands the test moves."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def now_s(self) -> float:
        return self.at_s

    def wall_s(self) -> float:
        return self.at_s

    async def sleep(self, duration_s: float) -> None:
        self.at_s += duration_s


def probe(clock: Hands, program: str) -> JtopProbe:
    """A probe that runs a Python program of the test."""
    return JtopProbe(clock=clock, command=(sys.executable, "-c", program), silent_max_s=10, restart_s=5)


def patiently(made: JtopProbe, field: str) -> float | None:
    """Ask until there is an answer: a child process needs real time to start."""
    for _ in range(2000):
        value, _ = made.value(field)
        if value is not None:
            return value
        time.sleep(0.005)
    return None


def test_offline_sensors_and_other_parts_do_not_count() -> None:
    """jtop says -256 for a part that is off, and its power is in milliwatts."""
    stats = SimpleNamespace(
        temperature={
            "cpu": {"temp": 51.5, "online": True}, "gpu": {"temp": -256.0, "online": False},
            "tj": {"temp": 52.25, "online": True}, "cv0": {"temp": -256.0, "online": True},
            "PMIC": {"temp": 100.0, "online": True},
        },
        power={"rail": {}, "tot": {"name": "VDD_IN", "power": 4800}},
    )  # fmt: skip
    assert reading(stats) == {"soc_temp_c": 52.25, "power_w": 4.8}
    assert reading(SimpleNamespace(temperature={}, power={})) == {"soc_temp_c": None, "power_w": None}


def test_readings_of_a_live_probe_reach_the_sensors(tmp_path: Path) -> None:
    """What /sys does not give, jtop does."""
    clock = Hands()
    made = probe(clock, "import time; print('noise'); print('{\"power_w\": 7.5}', flush=True); time.sleep(600)")
    try:
        assert patiently(made, "power_w") == 7.5
        assert made.value("soc_temp_c") == (None, "jtop does not give soc_temp_c")
        found = BoardSensors(tmp_path, clock=clock, disk_path=tmp_path, jtop=made).read(None).values[Quantity.POWER_W]
        assert (found.value, found.source) == (7.5, "jtop")
    finally:
        made.stop()


def test_a_silent_probe_is_killed_and_started_again() -> None:
    """Its old reading is none, and the new process is another one."""
    clock = Hands()
    made = probe(clock, "import time; print('{\"power_w\": 7.5}', flush=True); time.sleep(600)")
    try:
        assert patiently(made, "power_w") == 7.5
        clock.at_s += 11
        value, why = made.value("power_w")
        assert value is None
        assert "silent" in why
        assert made.starts == 2
        assert patiently(made, "power_w") == 7.5
    finally:
        made.stop()


def test_a_probe_that_fails_says_why_and_is_restarted_ever_more_rarely() -> None:
    """Without jetson-stats it must not be started in every tick."""
    clock = Hands()
    made = probe(clock, 'print(\'{"error": "No module named jtop"}\')')
    try:
        for _ in range(2000):
            if "jtop" in (why := made.value("power_w")[1]) and "No module" in why:
                break
            time.sleep(0.005)
        assert "No module named jtop" in why
        for _ in range(600):
            clock.at_s += 1
            made.value("power_w")
        assert 3 <= made.starts <= 9
    finally:
        made.stop()


def test_the_real_probe_without_jetson_stats_ends_with_a_reason() -> None:
    """The program itself, as the daemon starts it."""
    pytest.importorskip("sys")
    try:
        import jtop  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("jetson-stats is installed here")
    clock = Hands()
    made = JtopProbe(clock=clock)
    try:
        for _ in range(4000):
            if "ModuleNotFoundError" in made.value("power_w")[1]:
                break
            time.sleep(0.005)
        assert "ModuleNotFoundError" in made.value("power_w")[1]
    finally:
        made.stop()
