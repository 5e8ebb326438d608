"""How readings are made of what a board gives, and of what is broken; test_boards.py has each board's own."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hands import Hands, Load
from trees import AGX_ORIN, ORIN_NANO, PI_5, SERVER_WITH_RAPL, THOR, plant

from edgetune.device.board import identify
from edgetune.device.sensors import BoardSensors, CpuTimes, local_minute
from edgetune.types import Measurement, Quantity

TEMP, POWER = Quantity.SOC_TEMP_C, Quantity.POWER_W


@pytest.fixture
def clock() -> Hands:
    """A clock that stands still."""
    return Hands()


def board(root: Path, clock: Hands, **options: object) -> BoardSensors:
    """The sensors of a recorded tree on an idle machine."""
    return BoardSensors(root, clock=clock, disk_path=root, cpu_times=Load(clock), **options)  # type: ignore[arg-type]


def reading(root: Path, clock: Hands, quantity: Quantity) -> Measurement:
    """One quantity of a recorded tree."""
    return board(root, clock).read(None).values[quantity]


def test_rapl_needs_two_readings_and_survives_its_wrap_around(tmp_path: Path, clock: Hands) -> None:
    """Two packages and their memory are added, cores are in their package, and a counter that starts anew gives no absurd number."""
    sensors = board(plant(tmp_path, SERVER_WITH_RAPL), clock)
    first = sensors.read(None).values[POWER]
    assert first.value is None
    assert "second reading" in first.why_unknown
    clock.at_s += 2
    plant(tmp_path, {
        "sys/class/powercap/intel-rapl:0/energy_uj": str(19_671_150),  # 328850 to the end, and these: 20 J
        "sys/class/powercap/intel-rapl:1/energy_uj": str(11_000_000),
        "sys/class/powercap/intel-rapl:0:0/energy_uj": str(900_000_000), "sys/class/powercap/intel-rapl:0:1/energy_uj": str(5_000_000),
    })  # fmt: skip
    found = sensors.read(None).values[POWER]
    assert found.value == pytest.approx((20 + 10 + 4) / 2)
    assert found.resolution == pytest.approx(3 * 61e-6 / 2, rel=0.01), (
        "three counters in steps of 61 uJ, over two seconds"
    )


def test_a_counter_that_may_have_gone_round_twice_says_nothing(tmp_path: Path, clock: Hands) -> None:
    """After a night of sleep the difference of two marks is any number; the next one counts again."""
    sensors = board(plant(tmp_path, SERVER_WITH_RAPL), clock)
    sensors.read(None)
    clock.at_s += 8 * 3600
    plant(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": "5000000"})
    assert "gone round" in sensors.read(None).values[POWER].why_unknown
    clock.at_s += 2
    plant(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": "45000000"})
    assert sensors.read(None).values[POWER].value == pytest.approx(20)


def test_psys_is_the_whole_platform(tmp_path: Path, clock: Hands) -> None:
    """Where the kernel counts the platform's energy, its packages are not added to it."""
    name = "sys/class/powercap/intel-rapl:2"
    sensors = board(plant(tmp_path, {**SERVER_WITH_RAPL, f"{name}/name": "psys", f"{name}/energy_uj": "0"}), clock)
    sensors.read(None)
    clock.at_s += 10
    plant(tmp_path, {f"{name}/energy_uj": "70000000"})
    assert sensors.read(None).values[POWER].value == pytest.approx(7)


def test_a_platforms_counter_that_stands_still_is_none(tmp_path: Path, clock: Hands) -> None:
    """Some firmware shows it and never fills it; the packages are what there is."""
    name = "sys/class/powercap/intel-rapl:2"
    sensors = board(plant(tmp_path, {**SERVER_WITH_RAPL, f"{name}/name": "psys", f"{name}/energy_uj": "0"}), clock)
    sensors.read(None)
    clock.at_s += 10
    plant(tmp_path, {"sys/class/powercap/intel-rapl:1/energy_uj": "71000000"})
    found = sensors.read(None).values[POWER]
    assert found.value == pytest.approx(7)
    assert "intel-rapl:2" not in found.source


@pytest.mark.parametrize("text", ["-256000", "0", "nan", "inf", "-1e9", "999000", "hot", "", "\u2603"])
def test_an_impossible_temperature_is_unknown_with_a_reason(tmp_path: Path, clock: Hands, text: str) -> None:
    """A value that cannot be right is no value, and the file is named."""
    plant(tmp_path, {**PI_5, "sys/class/thermal/thermal_zone0/temp": text})
    found = reading(tmp_path, clock, TEMP)
    assert found.value is None
    assert "thermal_zone0/temp" in found.why_unknown


def test_frost_is_a_temperature(tmp_path: Path, clock: Hands) -> None:
    """A board in a shed in winter starts below zero."""
    plant(tmp_path, {**PI_5, "sys/class/thermal/thermal_zone0/temp": "-12500"})
    assert reading(tmp_path, clock, TEMP).value == -12.5


def test_one_live_core_sensor_is_enough_but_an_accelerator_is_not(tmp_path: Path, clock: Hands) -> None:
    """A GPU's zone alone says nothing about a CPU whose zone cannot be read."""
    plant(tmp_path, {**ORIN_NANO, "sys/class/thermal/thermal_zone4/temp": "-256000"})
    assert reading(tmp_path, clock, TEMP).value == pytest.approx(49.093)
    plant(tmp_path, {f"sys/class/thermal/thermal_zone{n}/temp": "broken" for n in (0, 3)})
    assert reading(tmp_path, clock, TEMP).value is None


@pytest.mark.parametrize("text", ["-3", "nan", "9e99", "none"])
def test_a_rail_that_cannot_be_read_makes_the_sum_unknown(tmp_path: Path, clock: Hands, text: str) -> None:
    """A sum without one of its rails would be too low, and too low is dangerous."""
    plant(tmp_path, {**AGX_ORIN, "sys/class/hwmon/hwmon4/curr2_input": text if text != "-3" else "-300"})
    found = reading(tmp_path, clock, POWER)
    assert found.value is None
    assert found.why_unknown


def test_a_vanished_file_is_unknown(tmp_path: Path, clock: Hands) -> None:
    """The driver went away under a running service."""
    sensors = board(plant(tmp_path, PI_5), clock)
    assert sensors.read(None).values[TEMP].value is not None
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").unlink()
    assert sensors.read(None).values[TEMP].value is None


def test_a_bare_board_says_what_it_lacks(tmp_path: Path, clock: Hands) -> None:
    """No sensor at all is a reason, not an error, and power names the way out."""
    values = board(tmp_path, clock).supported()
    assert values[TEMP].value is None
    assert "no temperature sensor" in values[TEMP].why_unknown
    assert "budgets.estimate" in values[POWER].why_unknown


def test_a_frozen_sensor_is_unknown_until_it_moves(tmp_path: Path, clock: Hands) -> None:
    """One value for ten minutes while the load went up and down is not believed."""
    load = Load(clock)
    sensors = BoardSensors(plant(tmp_path, PI_5), clock=clock, disk_path=tmp_path, cpu_times=load)

    def minutes(count: int, share: float) -> Measurement:
        load.share = share
        for _ in range(count):
            clock.at_s += 60
            last = sensors.read(None).values[TEMP]
        return last

    sensors.read(None)
    assert minutes(30, 0.05).value is not None  # steady board, steady value
    frozen = minutes(1, 0.9)
    assert frozen.value is None
    assert "frozen" in frozen.why_unknown
    assert minutes(5, 0.05).value is None
    plant(tmp_path, {"sys/class/thermal/thermal_zone0/temp": "52600"})
    assert minutes(1, 0.05).value == pytest.approx(52.6)


def test_a_live_sensor_under_a_moving_load_is_believed(tmp_path: Path, clock: Hands) -> None:
    """A value that changes now and then is not frozen."""
    load = Load(clock)
    sensors = BoardSensors(plant(tmp_path, PI_5), clock=clock, disk_path=tmp_path, cpu_times=load)
    for minute in range(40):
        load.share = 0.9 if minute % 2 else 0.1
        clock.at_s += 60
        plant(tmp_path, {"sys/class/thermal/thermal_zone0/temp": str(50_000 + minute // 5 * 500)})
        assert sensors.read(None).values[TEMP].value is not None


def test_an_estimate_is_made_only_when_asked_and_says_so(tmp_path: Path, clock: Hands) -> None:
    """Between the idle and the busy power by the CPU's share, flagged."""
    load = Load(clock)
    load.share = 0.25
    options = {"clock": clock, "disk_path": tmp_path, "cpu_times": load, "idle_w": 3.0, "busy_w": 11.0}
    sensors = BoardSensors(tmp_path, estimate=True, **options)  # type: ignore[arg-type]
    clock.at_s += 5
    found = sensors.read(None).values[POWER]
    assert found.value == pytest.approx(5)
    assert found.is_estimated
    silent = BoardSensors(tmp_path, estimate=False, **options)  # type: ignore[arg-type]
    clock.at_s += 5
    assert silent.read(None).values[POWER].value is None


def test_a_measured_power_is_never_replaced_by_an_estimate(tmp_path: Path, clock: Hands) -> None:
    """The sensor wins."""
    sensors = board(plant(tmp_path, THOR), clock, estimate=True, idle_w=3.0, busy_w=11.0)
    clock.at_s += 1
    found = sensors.read(None).values[POWER]
    assert found.value == pytest.approx(31.25)
    assert not found.is_estimated


def test_the_cpu_share_is_of_all_cores_between_two_readings(tmp_path: Path, clock: Hands) -> None:
    """The first reading has nothing to compare with beyond the start."""
    load = Load(clock)
    sensors = BoardSensors(tmp_path, clock=clock, disk_path=tmp_path, cpu_times=load)
    assert sensors.read(None).value(Quantity.CPU_SHARE) is None
    for share in (0.5, 1.0, 0.0):
        load.share = share
        clock.at_s += 2
        assert sensors.read(None).value(Quantity.CPU_SHARE) == pytest.approx(share)


def test_counters_that_cannot_be_read_are_unknown(tmp_path: Path, clock: Hands) -> None:
    """A root without /proc gives a reason and no exception."""

    def broken() -> CpuTimes:
        raise FileNotFoundError("/proc/stat")

    sensors = BoardSensors(tmp_path, clock=clock, disk_path=tmp_path / "absent", cpu_times=broken)
    values = sensors.read(None).values
    assert "/proc" in values[Quantity.CPU_SHARE].why_unknown
    assert values[Quantity.DISK_FREE_MIB].value is None


def test_memory_disk_and_the_trainers_memory_come_from_the_real_machine(tmp_path: Path) -> None:
    """On any Linux these three are known; without a trainer its memory is nothing."""
    sensors = BoardSensors(disk_path=tmp_path)
    values = sensors.read(os.getpid()).values
    assert values[Quantity.MEM_AVAILABLE_MIB].value
    assert values[Quantity.DISK_FREE_MIB].value
    assert 5 < (values[Quantity.TRAINER_RSS_MIB].value or 0) < 5000
    assert sensors.read(None).value(Quantity.TRAINER_RSS_MIB) == 0
    assert sensors.read(2**22 + 5).value(Quantity.TRAINER_RSS_MIB) == 0
    sensors.close()


def test_the_minute_of_the_day_is_local(tmp_path: Path, clock: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets by the hour follow the board's time zone."""
    monkeypatch.setenv("TZ", "XXX-02:30")
    time.tzset()
    try:
        clock.at_s = 0.0  # 1.7e9 s is 22:13:20 UTC
        assert board(tmp_path, clock).read(None).local_minute == (22 * 60 + 13 + 150) % 1440
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("wall_s", "minute"),
    [
        (1774745940, 119),  # 2026-03-29 00:59 UTC: the last minute of winter
        (1774746000, 180),  # an hour is left out
        (1792889940, 179),  # 2026-10-25 00:59 UTC: 02:59 in summer
        (1792890000, 120),  # and the hour comes again
        (1774746000 + 3650 * 86400, 120),  # ten years on, 2036-03-26, in winter
    ],
)
def test_local_minutes_across_daylight_saving(monkeypatch: pytest.MonkeyPatch, wall_s: float, minute: int) -> None:
    """Budgets by the hour follow the clock on the wall, also after the zone was changed under a running service."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    try:
        assert local_minute(wall_s) == minute
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_date_that_no_calendar_has_is_no_error() -> None:
    """A clock chip with an empty battery may say anything."""
    assert 0 <= local_minute(1e20) < 1440
    assert 0 <= local_minute(-3e9) < 1440


def test_a_clock_that_jumps_ten_years_confuses_nothing(tmp_path: Path, clock: Hands) -> None:
    """The wall's clock jumps; what ages and what is frozen is counted on the other one."""
    sensors = board(plant(tmp_path, SERVER_WITH_RAPL | PI_5), clock)
    sensors.read(None)
    for epoch_s in (0.0, 1.7e9 + 3650 * 86400):
        clock.epoch_s = epoch_s
        clock.at_s += 2
        energy = 262_143_000_000 + 40_000 * (clock.at_s - 1000)
        plant(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": f"{energy:.0f}"})
        reading = sensors.read(None)
        assert reading.wall_s == epoch_s + clock.at_s
        assert reading.value(TEMP) == pytest.approx(52.1)
        assert reading.value(POWER) == pytest.approx(0.04, rel=0.1)
        assert reading.value(Quantity.CPU_SHARE) == 0
        assert all(0 <= measured.age_s < 10 for measured in reading.values.values())


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    """A Jetson Orin Nano."""
    return plant(tmp_path, ORIN_NANO)


def test_a_jetson_is_known_by_its_device_tree_and_release(orin: Path) -> None:
    """Model without its trailing zero byte, L4T release, and the JetPack that belongs to it."""
    found = identify(orin)
    assert (found.kind, found.model) == ("jetson", "NVIDIA Jetson Orin Nano Developer Kit")
    assert (found.l4t, found.jetpack) == ("36.4.3", "6")


def test_a_pi_is_known_by_its_device_tree(tmp_path: Path) -> None:
    """Model, memory and system."""
    found = identify(plant(tmp_path, PI_5))
    assert (found.kind, found.l4t) == ("raspberry_pi", None)
    assert found.system == "Debian GNU/Linux 13 (trixie)"
    assert found.memory_mib == pytest.approx(8063.4, abs=0.1)


def test_an_unknown_board_is_no_error(tmp_path: Path) -> None:
    """A bare root still makes a board."""
    found = identify(tmp_path)
    assert found.kind == "other"
    assert found.cores >= 1
