"""The Raspberry Pi's firmware through its command, which may be missing, forbidden, hang, or say nonsense."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trees
from hands import Hands, Load

from edgetune.device.command import CommandSensor
from edgetune.device.raspberry import Vcgencmd, pmic_power
from edgetune.device.sensors import BoardSensors
from edgetune.device.sysfs import UnreadableError
from edgetune.types import Measurement, Quantity

POWER, THROTTLED, TEMP = Quantity.POWER_W, Quantity.IS_THROTTLED, Quantity.SOC_TEMP_C


class Pi:
    """A Pi 5 whose command is a script of the test."""

    def __init__(self, root: Path) -> None:
        self.root, self.clock, self.program = trees.plant(root, trees.PI_5), Hands(), root / "bin/vcgencmd"
        self.program.parent.mkdir()
        self.firmware = Vcgencmd(clock=self.clock, program=str(self.program))
        self.sensors = BoardSensors(
            root, clock=self.clock, disk_path=root, cpu_times=Load(self.clock), vcgencmd=self.firmware
        )

    def answers(self, *, code: int = 0, **texts: str) -> None:
        """Let the command print a text for each of its verbs."""
        cases = "\n".join(f"{verb}) cat <<'END'\n{text}\nEND\n;;" for verb, text in texts.items())
        self.does(f'case "$1" in\n{cases}\nesac\nexit {code}')

    def does(self, script: str) -> None:
        """Let the command be a script of the shell."""
        new = self.program.with_name("new")
        new.write_text(f"#!/bin/sh\n{script}\n")
        new.chmod(0o755)
        new.replace(self.program)

    def read(self, quantity: Quantity, is_right: Callable[[Measurement], bool]) -> Measurement:
        """Read until it is right: a process needs real time."""
        for _ in range(100):
            self.clock.at_s += 2
            found = self.sensors.read(None).values[quantity]
            if is_right(found):
                break
        return found


@pytest.fixture
def pi(tmp_path: Path) -> Iterator[Pi]:
    """A Pi 5 without its command."""
    made = Pi(tmp_path)
    yield made
    made.sensors.close()


def is_known(measured: Measurement) -> bool:
    """For `read`."""
    return measured.value is not None


def test_the_pmic_gives_amperes_and_volts_by_rail() -> None:
    """The twelve rails with both; not the input and the clock's battery, which have volts alone."""
    watts, rails, step_w = pmic_power(trees.PMIC)
    assert rails == 12
    assert watts == pytest.approx(trees.PMIC_W, abs=0.001)
    assert 0.01 < step_w < 0.05
    assert pmic_power("VDD_CORE_A current(7)=2.0A\nVDD_CORE_V volt(15)=0.75V\nEXT5V_V volt(24)=5.1V")[:2] == (1.5, 1)


@pytest.mark.parametrize(
    "text",
    ["", "hello", "VDD_CORE_A current(7)=2.0A", "VDD_CORE_A current(7)=nanA\nVDD_CORE_V volt(15)=0.9V",
     "VDD_CORE_A current(7)=-2.0A\nVDD_CORE_V volt(15)=0.9V", "VDD_CORE_A current(7)=9e9A\nVDD_CORE_V volt(15)=0.9V",
     "VDD_CORE_A current(7)=manyA\nVDD_CORE_V volt(15)=0.9V", "VDD_CORE_A current(7)=0.0A\nVDD_CORE_V volt(15)=0.9V"],
)  # fmt: skip
def test_a_rail_that_says_nonsense_makes_the_sum_unknown(text: str) -> None:
    """A sum without it would be too low."""
    with pytest.raises(UnreadableError, match="pmic_read_adc"):
        pmic_power(text)


def test_a_pi_5_through_its_command(pi: Pi) -> None:
    """Power, and the flags that its kernel has no file for."""
    pi.answers(pmic_read_adc=trees.PMIC, get_throttled="throttled=0x50005", measure_temp="temp=48.3'C")
    found = pi.read(POWER, is_known)
    assert found.value == pytest.approx(pmic_power(trees.PMIC)[0])
    assert "12 rails" in found.source
    assert found.age_s < 10
    throttled = pi.read(THROTTLED, is_known)
    assert throttled.value == 1
    pi.answers(pmic_read_adc="VDD_CORE_A current(7)=2.0A\nVDD_CORE_V volt(15)=0.75V", get_throttled="throttled=0x50005")
    found = pi.read(POWER, lambda measured: measured.value is None)
    assert "1 of 12 rails" in found.why_unknown
    assert "voltage is low" in throttled.source
    pi.answers(pmic_read_adc=trees.PMIC, get_throttled="throttled=0x50000")
    assert pi.read(THROTTLED, lambda measured: measured.value == 0).value == 0
    assert pi.sensors.read(None).value(TEMP) == pytest.approx(52.1)  # the kernel's zone comes first
    (pi.root / "sys/class/thermal/thermal_zone0/temp").unlink()
    pi.answers(pmic_read_adc=trees.PMIC, measure_temp="temp=48.3'C")
    assert pi.read(TEMP, is_known).value == pytest.approx(48.3)


def test_a_pi_4s_firmware_measures_no_power(pi: Pi) -> None:
    """It does not know the command; that is no fault, and the estimate is named."""
    pi.answers(code=255, pmic_read_adc=trees.NO_PMIC)
    found = pi.read(POWER, lambda measured: "budgets.estimate" in measured.why_unknown)
    assert "budgets.estimate" in found.why_unknown


def test_a_missing_command_names_what_to_install(pi: Pi) -> None:
    """Minimal images leave it out."""
    found = pi.read(POWER, lambda measured: "apt install" in measured.why_unknown)
    assert "apt install raspi-utils" in found.why_unknown


@pytest.mark.parametrize("text", [trees.NOT_IN_VIDEO, "VCHI initialization failed"])
@pytest.mark.parametrize("code", [0, 255])
def test_a_forbidden_device_names_the_group(pi: Pi, text: str, code: int) -> None:
    """Never as root by need; some versions say it with exit code 0."""
    pi.answers(code=code, pmic_read_adc=text, get_throttled=text)
    found = pi.read(POWER, lambda measured: "group video" in measured.why_unknown)
    assert "group video" in found.why_unknown


def test_a_command_that_hangs_holds_no_reading_up(pi: Pi) -> None:
    """What it said grows old and is unknown; the other sensors go on; it is killed, and asked again."""
    pi.answers(pmic_read_adc=trees.PMIC)
    assert pi.read(POWER, is_known).value
    pi.does("exec sleep 600")
    began_s = time.monotonic()
    found = pi.read(POWER, lambda measured: measured.value is None)
    assert time.monotonic() - began_s < 30  # of 600
    assert "has not answered for" in found.why_unknown
    assert pi.sensors.read(None).value(TEMP) == pytest.approx(52.1)
    pi.sensors.close()  # kills it, as the time-out would
    pi.answers(pmic_read_adc=trees.PMIC)
    assert pi.read(POWER, is_known).value


def test_one_that_does_not_end_in_time_is_killed() -> None:
    """And its reason says so."""
    clock = Hands()
    command = CommandSensor(("sleep", "600"), clock=clock, timeout_s=0.05, patience_s=5)
    with pytest.raises(UnreadableError, match="was killed"):
        command.output()


def test_the_start_waits_for_the_first_answer(pi: Pi) -> None:
    """A budget on power must not be refused because the firmware took a moment."""
    pi.does(f"sleep 0.4; cat <<'END'\n{trees.PMIC}\nEND")
    assert pi.sensors.supported()[POWER].value == pytest.approx(pmic_power(trees.PMIC)[0])
