"""
What a Raspberry Pi's firmware tells: power by rail (Pi 5), and why it holds the clocks down.

`vcgencmd pmic_read_adc` gives volts and amperes, a line each, paired by the rail's name. EXT5V and BATT have no current, and
what USB devices and the regulators themselves draw is on no rail, so that the sum is less than a meter at the plug shows.

Source: raspberrypi.com, "vcgencmd" (get_throttled bits); drivers/firmware/raspberrypi.c and drivers/hwmon/raspberrypi-hwmon.c.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgetune.clock import Clock
from edgetune.device.command import CommandSensor
from edgetune.device.sysfs import (
    SensorValue,
    UnreadableError,
    number,
    possible_power_w,
    possible_temp_c,
    read_text,
    shown,
)

_RAIL = re.compile(r"^\s*(\w+)_([AV])\s+(?:current|volt)\(\d+\)=(\S+?)[AV]\s*$", re.MULTILINE)
_TEMP = re.compile(r"temp=(\S+?)'C")
_FLAGS = re.compile(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]+)$")
_NOW = {
    0: "the supply's voltage is low",
    1: "clocks are capped",
    2: "clocks are throttled",
    3: "it is over the soft limit of heat",
}
_PMIC_STEP_A = 0.00097593  # of which recorded currents are multiples; those of some small rails of a sixteenth
_PMIC_REFRESH_S = 0.5  # its mean over a tick is wanted
_MISSING = "vcgencmd is not installed: apt install raspi-utils"
_FORBIDDEN = (
    "vcgencmd may not open /dev/vcio: the user edgetune needs the group video and the unit its device"
    " (docs/operations.md, Changing the sandbox)"
)


class Vcgencmd:
    """The three questions that are asked of the firmware, each with a command of its own."""

    def __init__(self, *, clock: Clock | None = None, program: str = "vcgencmd") -> None:
        """`program` is another one in tests."""
        self._pmic = CommandSensor((program, "pmic_read_adc"), clock=clock, refresh_s=_PMIC_REFRESH_S)
        self._throttled = CommandSensor((program, "get_throttled"), clock=clock)
        self._temp = CommandSensor((program, "measure_temp"), clock=clock)
        self._is_without_pmic = False
        self._rails = 0

    @property
    def is_pending(self) -> bool:
        """Whether a first answer is still to come."""
        return any(command.is_pending for command in (self._pmic, self._throttled, self._temp))

    def power(self) -> SensorValue | None:
        """
        The sum of the rails that the PMIC measures, in watts; None on a board whose firmware measures none (Pi 4 and older).

        Raises:
            UnreadableError: the command cannot be run, or a rail says nonsense.
        """
        if self._is_without_pmic:
            return None
        try:
            text, age_s = self._ask(self._pmic)
        except UnreadableError as error:
            if "not registered" in str(error):
                self._is_without_pmic = True
                return None
            raise
        watts, rails, step_w = pmic_power(text)
        if rails < self._rails:
            raise UnreadableError(f"vcgencmd pmic_read_adc gives {rails} of {self._rails} rails")
        self._rails = rails
        return SensorValue(watts, f"vcgencmd pmic_read_adc ({rails} rails, without USB)", step_w, age_s)

    def temperature(self) -> SensorValue:
        """
        The chip's temperature in degrees Celsius, where the kernel has no zone of it.

        Raises:
            UnreadableError: the command cannot be run or says nonsense.
        """
        text, age_s = self._ask(self._temp)
        match = _TEMP.search(text)
        if match is None:
            raise UnreadableError(f"vcgencmd measure_temp says {text[:40]!r}")
        source = "vcgencmd measure_temp"
        return SensorValue(possible_temp_c(number(match[1], source), source), source, 0.1, age_s)

    def flags(self) -> tuple[int, float]:
        """
        The word of `get_throttled` and its age.

        Raises:
            UnreadableError: the command cannot be run or says nonsense.
        """
        text, age_s = self._ask(self._throttled)
        return _word(text, "vcgencmd get_throttled"), age_s

    def close(self) -> None:
        """Kill what runs."""
        for command in (self._pmic, self._throttled, self._temp):
            command.close()

    @staticmethod
    def _ask(command: CommandSensor) -> tuple[str, float]:
        try:
            text, age_s = command.output()
        except UnreadableError as error:
            text, why = "", str(error)
        else:
            why = text if any(sign in text for sign in ("error=", "Can't open", "VCHI")) else ""
        if "not installed" in why:
            raise UnreadableError(_MISSING)
        if "/dev/vcio" in why or "VCHI initialization" in why or "Permission denied" in why:
            raise UnreadableError(_FORBIDDEN)
        if why:
            raise UnreadableError(" ".join(why.split())[:160])
        return text.strip(), age_s


def pmic_power(text: str) -> tuple[float, int, float]:
    """
    Watts of all rails with a current and a voltage, how many these are, and the smallest step in watts that the sum can make for sure.

    Raises:
        UnreadableError: a current has no voltage, a value is none, or there is no rail at all.
    """
    values: dict[tuple[str, str], float] = {
        (rail, unit): number(value, f"vcgencmd pmic_read_adc, {rail}_{unit},")
        for rail, unit, value in _RAIL.findall(text)
    }
    rails = [rail for rail, unit in values if unit == "A"]
    if not rails:
        raise UnreadableError(f"vcgencmd pmic_read_adc says {text[:40]!r}")
    total_w = step_w = 0.0
    for rail in rails:
        if (rail, "V") not in values:
            raise UnreadableError(
                f"vcgencmd pmic_read_adc gives no voltage of {rail}: a sum without it would be too low"
            )
        watts = values[rail, "A"] * values[rail, "V"]
        if watts < 0:
            raise UnreadableError(f"vcgencmd pmic_read_adc says {watts:g} W on {rail}, which cannot be")
        total_w += watts
        step_w += _PMIC_STEP_A * values[rail, "V"]
    return possible_power_w(total_w, "vcgencmd pmic_read_adc"), len(rails), step_w


def throttled(root: Path, vcgencmd: Vcgencmd | None) -> tuple[str, SensorValue] | None:
    """
    Why the firmware holds the clocks down now ("" when it does not); None where neither kernel nor command tells.

    Kernels of Raspberry Pi OS had a file for it until 6.6; the Pi 5 has the command alone.

    Raises:
        UnreadableError: there is a way, and it gives nothing.
    """
    for pattern in ("soc*/*firmware*/get_throttled", "*firmware*/get_throttled"):
        for path in sorted(root.glob(f"sys/devices/platform/{pattern}")):
            return _judged(_word(read_text(path), str(path)), shown(root, path), 0.0)
    if vcgencmd is None:
        return None
    word, age_s = vcgencmd.flags()
    return _judged(word, "vcgencmd get_throttled", age_s)


def _judged(word: int, source: str, age_s: float) -> tuple[str, SensorValue]:
    reasons = [words for bit, words in _NOW.items() if word >> bit & 1]  # bits 16 to 19 tell of the past
    return "; ".join(reasons), SensorValue(float(bool(reasons)), source, 1.0, age_s)


def _word(text: str, where: str) -> int:
    match = _FLAGS.match(text.strip())
    if match is None:
        raise UnreadableError(f"{where} says {text[:40]!r}, which are no flags")
    return int(match[1], 16)
