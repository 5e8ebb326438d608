"""What is read on each board that is known: rails, units, zones, modes."""

from __future__ import annotations

from pathlib import Path

import pytest
import trees
from hands import Hands, Load

from edgetune.device.board import identify
from edgetune.device.rails import RailPower
from edgetune.device.sensors import BoardSensors
from edgetune.device.sysfs import UnreadableError
from edgetune.types import Measurement, Quantity

TEMP, POWER = Quantity.SOC_TEMP_C, Quantity.POWER_W


def reading(root: Path, quantity: Quantity) -> Measurement:
    """One quantity of a tree."""
    clock = Hands()
    return BoardSensors(root, clock=clock, disk_path=root, cpu_times=Load(clock)).read(None).values[quantity]


@pytest.mark.parametrize(
    ("tree", "temp_c", "zone"),
    [
        (trees.NANO, 44.5, "thermal_zone0"), (trees.TX2, 42.5, "thermal_zone0"), (trees.XAVIER_NX, 37.5, "thermal_zone2"),
        (trees.ORIN_NANO, 49.312, "thermal_zone4"), (trees.AGX_ORIN, 77.281, "thermal_zone0"), (trees.THOR, 38.5, "thermal_zone1"),
        (trees.PI_4, 46.738, "thermal_zone0"), (trees.PI_5, 52.1, "thermal_zone0"),
    ],
)  # fmt: skip
def test_the_hottest_part_of_the_chip_counts(tmp_path: Path, tree: dict[str, str], temp_c: float, zone: str) -> None:
    """Not the PMIC, which says 100 for ever, nor an accelerator that is off and says -256, nor the board's or the fan's."""
    found = reading(trees.plant(tmp_path, tree), TEMP)
    assert found.value == pytest.approx(temp_c)
    assert found.source == f"/sys/class/thermal/{zone}"
    assert found.resolution == 0.001


def test_without_zones_the_monitors_are_asked(tmp_path: Path) -> None:
    """A PC's cores."""
    found = reading(trees.plant(tmp_path, trees.LAPTOP_ON_BATTERY), TEMP)
    assert (found.value, found.source) == (63.0, "/sys/class/hwmon/hwmon0")


@pytest.mark.parametrize(
    ("tree", "power_w", "rails"),
    [
        (trees.NANO, 2.104, "POM_5V_IN"), (trees.TX2, 5.297, "VDD_IN"), (trees.XAVIER_NX, 5.08 * 0.936, "VDD_IN"),
        (trees.ORIN_NANO, 5.04 * 0.952, "VDD_IN"),
        (trees.AGX_ORIN, 3.14 + 14.3 + 4.968 + 1.093, "VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0+VDDQ_VDD2_1V8AO"),
        (trees.THOR, 31.25, "VIN"),
    ],
)  # fmt: skip
def test_power_is_that_of_the_whole_board(tmp_path: Path, tree: dict[str, str], power_w: float, rails: str) -> None:
    """The input rail, or else all rails that are used, added up; milliwatts, microwatts, or millivolts times milliamperes."""
    found = reading(trees.plant(tmp_path, tree), POWER)
    assert found.value == pytest.approx(power_w, abs=0.002)
    assert found.source.endswith(f"({rails})")


def test_the_carrier_boards_input_comes_before_the_modules(tmp_path: Path) -> None:
    """A TX2 on NVIDIA's carrier board, whose monitors at 0x42 and 0x43 have drivers too: VDD_MUX holds VDD_IN."""
    carrier = trees.ina3221x("0-0042/iio:device2", VDD_MUX=7283, VDD_5V0_IO_SYS=1159, VDD_3V3_SYS=0)
    found = reading(trees.plant(tmp_path, trees.TX2 | carrier), POWER)
    assert found.value == pytest.approx(7.283)


def test_thor_without_its_carrier_boards_monitor_adds_the_modules_rails(tmp_path: Path) -> None:
    """Another carrier board has no INA238; the sums in4 to in7 and curr4 are no rails."""
    files = {name: text for name, text in trees.THOR.items() if "/hwmon2/" not in name}
    found = reading(trees.plant(tmp_path, files), POWER)
    assert found.value == pytest.approx(12.04 * (0.64 + 0.96) + 5.088 * 1.74)


def test_a_monitor_that_vanishes_is_not_replaced_by_another(tmp_path: Path) -> None:
    """What is left measures something else, and less; it counts again when it is back."""
    rails = RailPower(trees.plant(tmp_path, trees.THOR))
    assert rails.read() is not None
    (tmp_path / "sys/class/hwmon/hwmon2").rename(tmp_path / "sys/class/hwmon2")
    with pytest.raises(UnreadableError, match="VIN has vanished"):
        rails.read()
    (tmp_path / "sys/class/hwmon2").rename(tmp_path / "sys/class/hwmon/hwmon7")  # numbers change
    found = rails.read()
    assert found is not None
    assert found.value == pytest.approx(31.25)


def test_the_step_is_that_of_the_shunt(tmp_path: Path) -> None:
    """40 uV over 5 milliohms are 8 mA, over 2 milliohms 20 mA; the kernel's file rounds nothing away."""
    orin, agx = (
        RailPower(trees.plant(tmp_path / name, tree)).read()
        for name, tree in (("a", trees.ORIN_NANO), ("b", trees.AGX_ORIN))
    )
    assert orin is not None
    assert agx is not None
    assert orin.resolution == pytest.approx(5.04 * 0.008)
    assert agx.resolution == pytest.approx((20 + 20 + 4.968 + 4.968) * 0.020)


def test_rails_that_are_for_root_alone_name_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Nano with JetPack 4."""
    monkeypatch.setattr("os.access", lambda *_: False)
    found = reading(trees.plant(tmp_path, trees.NANO), POWER)
    assert found.value is None
    assert "tmpfiles.d" in found.why_unknown
    assert "jetson-stats" in found.why_unknown


def test_a_pi_4_has_no_power_sensor(tmp_path: Path) -> None:
    """Unsupported, or estimated when asked."""
    found = reading(trees.plant(tmp_path, trees.PI_4), POWER)
    assert found.value is None
    assert "budgets.estimate" in found.why_unknown


@pytest.mark.parametrize(
    ("tree", "kind", "jetpack", "mode"),
    [
        (trees.NANO, "jetson", "4", "5W"), (trees.TX2, "jetson", "4", "MAXP_CORE_ARM"), (trees.XAVIER_NX, "jetson", "5", "MODE_20W_6CORE"),
        (trees.ORIN_NANO, "jetson", "6", "25W"), (trees.AGX_ORIN, "jetson", "5", "MAXN"), (trees.THOR, "jetson", "7", "MAXN"),
        (trees.PI_4, "raspberry_pi", None, None), (trees.SERVER_WITH_RAPL, "other", None, None),
    ],
)  # fmt: skip
def test_a_board_is_known_by_what_it_says_of_itself(
    tmp_path: Path, tree: dict[str, str], kind: str, jetpack: str | None, mode: str | None
) -> None:
    """Its kind, its JetPack by L4T's release, and nvpmodel's mode by name."""
    found = identify(trees.plant(tmp_path, tree))
    assert (found.kind, found.jetpack, found.power_mode) == (kind, jetpack, mode)


def test_a_mode_that_was_never_chosen_is_the_default(tmp_path: Path) -> None:
    """A new board has no status file; one with a mode that the file does not name gets its number."""
    trees.plant(tmp_path, trees.ORIN_NANO)
    (tmp_path / "var/lib/nvpmodel/status").unlink()
    assert identify(tmp_path).power_mode == "15W"
    trees.plant(tmp_path, {"var/lib/nvpmodel/status": "pmode:0009"})
    assert identify(tmp_path).power_mode == "mode 9"
