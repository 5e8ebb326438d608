"""Mains, batteries, pressure, throttling: what the kernel shows, and what it says when it is broken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trees
from hands import Hands, Load

from edgetune.device.sensors import BoardSensors
from edgetune.device.sysfs import UnreadableError, read_text
from edgetune.device.throttling import Throttling
from edgetune.types import Measurement, Quantity

POWER, MAINS, BATTERY, THROTTLED = Quantity.POWER_W, Quantity.ON_MAINS, Quantity.BATTERY_SHARE, Quantity.IS_THROTTLED
CLASS = "sys/class/power_supply"


def reading(root: Path, quantity: Quantity) -> Measurement:
    """One quantity of a tree."""
    clock = Hands()
    return BoardSensors(root, clock=clock, disk_path=root, cpu_times=Load(clock)).read(None).values[quantity]


def test_a_ups_hat_on_its_battery(tmp_path: Path) -> None:
    """Volts times amperes, discharge counted below zero, and the mouse's battery is nobody's."""
    trees.plant(tmp_path, trees.UPS_HAT)
    assert reading(tmp_path, POWER).value == pytest.approx(3.81 * 1.24)
    assert reading(tmp_path, BATTERY).value == pytest.approx(0.63)
    assert reading(tmp_path, BATTERY).source == f"/{CLASS}/bq27411-0"
    assert reading(tmp_path, MAINS).value == 0


def test_a_ups_hat_that_is_charged(tmp_path: Path) -> None:
    """Something feeds the board; what flows into the battery is not what the board draws."""
    trees.plant(tmp_path, {**trees.UPS_HAT, f"{CLASS}/bq27411-0/status": "Charging"})
    assert reading(tmp_path, MAINS).value == 1
    assert reading(tmp_path, POWER).value is None


def test_two_batteries_are_weighed_by_what_they_hold(tmp_path: Path) -> None:
    """30 Wh with 9 left and 10 Wh that are full."""
    trees.plant(tmp_path, trees.LAPTOP_ON_BATTERY)
    assert reading(tmp_path, BATTERY).value == pytest.approx(19 / 40)
    assert reading(tmp_path, POWER).value == pytest.approx(18)
    assert reading(tmp_path, MAINS).value == 0
    for name in ("BAT0", "BAT1"):
        (tmp_path / CLASS / name / "energy_full").unlink()
    assert reading(tmp_path, BATTERY).value == pytest.approx(0.30)  # else the emptiest


@pytest.mark.parametrize(
    ("online", "is_on"), [("1", 1.0), ("2", 1.0), ("0", 0.0), ("maybe", 0.0), ("-1", 0.0), ("", 0.0)]
)
def test_mains_must_say_so(tmp_path: Path, online: str, is_on: float) -> None:
    """2 is a USB-C source that can be programmed; nonsense is no mains, even beside a battery that is full."""
    trees.plant(tmp_path, {**trees.LAPTOP_ON_BATTERY, f"{CLASS}/AC/online": online, f"{CLASS}/BAT0/status": "Full"})
    assert reading(tmp_path, MAINS).value == is_on


def test_a_board_that_shows_no_supply_is_unknown(tmp_path: Path) -> None:
    """Plugged in, perhaps; the operator who wants mains only is told that nothing says so."""
    trees.plant(tmp_path, trees.PI_5)
    assert "driver" in reading(tmp_path, MAINS).why_unknown
    assert "driver" in reading(tmp_path, BATTERY).why_unknown
    trees.plant(tmp_path, trees.ORIN_NANO)  # a USB-C port that feeds nothing, beside the barrel jack
    assert "fed past them" in reading(tmp_path, MAINS).why_unknown
    assert reading(tmp_path, BATTERY).why_unknown == "the board has no battery"


@pytest.mark.parametrize("text", ["-3", "nan", "half", "", "250", "1e400"])
def test_an_impossible_charge_is_unknown(tmp_path: Path, text: str) -> None:
    """A gauge that was never calibrated says anything."""
    trees.plant(tmp_path, {**trees.UPS_HAT, f"{CLASS}/bq27411-0/capacity": text})
    found = reading(tmp_path, BATTERY)
    assert found.value is None
    assert "bq27411-0" in found.why_unknown


def test_pressure_is_the_share_of_ten_seconds(tmp_path: Path) -> None:
    """The line `some`, not `full`; per cent made a share."""
    trees.plant(tmp_path, trees.PRESSURE)
    assert reading(tmp_path, Quantity.MEM_PRESSURE).value == pytest.approx(0.1234)
    assert reading(tmp_path, Quantity.CPU_PRESSURE).value == pytest.approx(0.55)
    found = reading(tmp_path, Quantity.IO_PRESSURE)
    assert (found.value, found.source, found.resolution) == (0.0, "/proc/pressure/io", 0.0001)


@pytest.mark.parametrize(
    "text", ["some avg10=nan", "some avg10=-1.00", "some avg10=101.00", "full avg10=1.00", "", "text"]
)
def test_impossible_pressure_is_unknown(tmp_path: Path, text: str) -> None:
    """The file is there and says nothing that can be."""
    trees.plant(tmp_path, {"proc/pressure/memory": text})
    assert "proc/pressure/memory" in reading(tmp_path, Quantity.MEM_PRESSURE).why_unknown


def test_a_kernel_without_pressure_names_the_switch(tmp_path: Path) -> None:
    """Raspberry Pi OS leaves it off."""
    assert "psi=1" in reading(tmp_path, Quantity.MEM_PRESSURE).why_unknown


@pytest.mark.parametrize(
    ("word", "is_so", "words"),
    [
        ("0", 0, ""), ("50000", 0, ""), ("f0000", 0, ""), ("50005", 1, "voltage is low; clocks are throttled"),
        ("1", 1, "voltage is low"), ("2", 1, "capped"), ("80008", 1, "soft limit"),
    ],
)  # fmt: skip
def test_a_pi_says_what_is_so_now(tmp_path: Path, word: str, is_so: float, words: str) -> None:
    """The low bits; those from 16 on tell of the past."""
    trees.plant(tmp_path, {**trees.PI_4, "sys/devices/platform/soc/soc:firmware/get_throttled": word})
    found = reading(tmp_path, THROTTLED)
    assert found.value == is_so
    assert words in found.source
    assert found.source.startswith("/sys/devices/platform/soc/soc:firmware/get_throttled")


@pytest.mark.parametrize("text", ["", "zz", "-1", "nan", "throttled=yes"])
def test_flags_that_are_none_are_unknown(tmp_path: Path, text: str) -> None:
    """And the voltage's alarm alone does not say that the clocks are free."""
    trees.plant(tmp_path, {**trees.PI_4, "sys/devices/platform/soc/soc:firmware/get_throttled": text})
    assert "get_throttled" in reading(tmp_path, THROTTLED).why_unknown


def test_the_voltage_alarm_is_enough_to_say_yes(tmp_path: Path) -> None:
    """On a Pi 5 whose vcgencmd may not be used."""
    trees.plant(tmp_path, trees.PI_5)
    assert reading(tmp_path, THROTTLED).value is None
    trees.plant(tmp_path, {"sys/class/hwmon/hwmon2/in0_lcrit_alarm": "1"})
    assert reading(tmp_path, THROTTLED).value == 1


@pytest.mark.parametrize(
    ("device", "state", "is_so"),
    [("cpufreq-cpu0", "5", 1), ("cpu-throttle-alert", "1", 1), ("pwm-fan", "4", 0), ("hot-surface-alert", "2", 0),
     ("cpufreq-cpu0", "text", 0), ("cpu-throttle-alert", "-1", 0)],
)  # fmt: skip
def test_a_jetson_throttles_by_its_cooling_devices(tmp_path: Path, device: str, state: str, is_so: float) -> None:
    """Not by its fan, nor by the alert that warns people of a hot surface."""
    trees.plant(tmp_path, trees.ORIN_NANO)
    for place in (tmp_path / "sys/class/thermal").glob("cooling_device*"):
        if (place / "type").read_text().strip() == device:
            (place / "cur_state").write_text(f"{state}\n")
    found = reading(tmp_path, THROTTLED)
    assert found.value == is_so
    assert (device in found.source) == bool(is_so)


def test_over_current_events_count_when_they_are_new(tmp_path: Path) -> None:
    """52 of them before the service started say nothing of now; three more do, and then it is over."""
    throttling = Throttling(trees.plant(tmp_path, trees.ORIN_NANO), None, is_raspberry=False)
    assert throttling.read().value == 0
    trees.plant(tmp_path, {"sys/class/hwmon/hwmon3/oc3_event_cnt": "40"})
    found = throttling.read()
    assert found.value == 1
    assert "oc3_event_cnt (3 events more)" in found.source
    assert throttling.read().value == 0
    trees.plant(tmp_path, {"sys/class/hwmon/hwmon3/oc3_event_cnt": "0"})  # the driver was loaded anew
    assert throttling.read().value == 0


def test_intels_counters_count_likewise(tmp_path: Path) -> None:
    """A PC that throttles by itself."""
    name = "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
    throttling = Throttling(trees.plant(tmp_path, {name: "7"}), None, is_raspberry=False)
    assert throttling.read().value == 0
    trees.plant(tmp_path, {name: "9"})
    assert throttling.read().value == 1


def test_a_board_without_signs_is_unknown(tmp_path: Path) -> None:
    """No sign is not a sign of nothing."""
    with pytest.raises(UnreadableError, match="does not say"):
        Throttling(tmp_path, None, is_raspberry=False).read()


def test_a_driver_that_says_again_is_unknown_and_no_fault(tmp_path: Path) -> None:
    """A Tegra's GPU that is switched off answers EAGAIN, of which Python's own reading makes a TypeError."""
    trees.plant(tmp_path, trees.THOR)
    for zone in ("thermal_zone4", "thermal_zone0"):
        path = tmp_path / "sys/class/thermal" / zone / "temp"
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        os.mkfifo(path)
    (tmp_path / "sys/class/thermal/thermal_zone4/type").write_text("gpu-thermal\n")
    both = [
        os.open(tmp_path / "sys/class/thermal" / zone / "temp", os.O_RDWR)
        for zone in ("thermal_zone4", "thermal_zone0")
    ]
    try:
        with pytest.raises(UnreadableError, match="thermal_zone4"):
            read_text(tmp_path / "sys/class/thermal/thermal_zone4/temp")
        assert reading(tmp_path, Quantity.SOC_TEMP_C).value == pytest.approx(38.5)
        for zone in (1, 2, 3):
            (tmp_path / f"sys/class/thermal/thermal_zone{zone}/temp").unlink()
        assert reading(tmp_path, Quantity.SOC_TEMP_C).value is None
    finally:
        for descriptor in both:
            os.close(descriptor)
