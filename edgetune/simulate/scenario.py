"""What is to be simulated: a board, a site, so many days, and what happens to them."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from edgetune import units
from edgetune.errors import UsageError
from edgetune.simulate.board import BOARDS, BoardFacts, DailyAmbient
from edgetune.simulate.network import NETWORKS, Network

DAY_S = 86400.0
_WHEN = re.compile(r"^(?:(?P<day>\d+)/)?(?P<hour>\d{1,2}):(?P<minute>\d{2})(?P<length>[+-].+)?$")
LENGTHS_S = {  # where none is given
    "brown_out": 300.0, "mains_out": 2 * 3600.0, "reboot": 60.0, "disk_full": 2 * 3600.0, "clock_jump": 0.0,
}  # fmt: skip

# How much there is to see in each hour of a day; the mean is 1.
PATTERNS = {
    "even": (1.0,) * 24,
    # People come at eight, at noon and at five, and hardly any at night.
    "door": (0.1, 0.1, 0.1, 0.1, 0.1, 0.3, 0.8, 1.8, 2.6, 1.4, 1.1, 1.3, 1.9, 1.4, 1.1, 1.2, 1.7, 2.7, 1.9, 1.1, 0.7, 0.3, 0.1, 0.1),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """Something that befalls the board."""

    kind: str  # one of LENGTHS_S, or "battery_empty"
    at_s: float  # after the start
    length_s: float  # how long it lasts; of a clock jump: how far, which may be back


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A board at a site for some days. Everything that is drawn by lot comes from the seed."""

    board: BoardFacts = BOARDS["pi5"]
    days: float = 7.0
    start: dt.datetime = dt.datetime(2026, 6, 1)  # noqa: DTZ001 - local time, a Monday
    ambient: DailyAmbient = field(default_factory=DailyAmbient)
    classes: tuple[str, ...] = ("cat", "dog", "fox")
    arrivals_per_h: float = 60.0  # images, over the day's mean
    pattern: str = "door"
    labelled: float = 0.2  # the share of them that somebody labels
    image_bytes: float = 40e3  # as they are stored
    network: Network = NETWORKS["mobilenet_v2"]
    load: float = 0.10  # share of all cores that all else on the board uses, over the day's mean
    disk_free_mib: float = 8000.0
    disk_fill_mib_per_day: float = 0.0  # by all else
    battery_j: float | None = None  # None: mains alone, and nothing that tells of them
    happenings: tuple[Happening, ...] = ()
    seed: int = 0

    def activity(self, elapsed_s: float) -> float:
        """How much there is to see, a mean of 1 over the day."""
        return PATTERNS[self.pattern][int(self.hour(elapsed_s)) % 24]

    def hour(self, elapsed_s: float) -> float:
        """Of the local day, 0..24."""
        return (self.start.hour + self.start.minute / 60 + elapsed_s / 3600) % 24


def happenings(kind: str, texts: Iterable[str], *, days: float) -> tuple[Happening, ...]:
    """
    Read moments such as '03:00' (each day), '2/03:00' (on the second day), '2/03:00+4h' (for so long).

    Raises:
        UsageError: a text is no such moment, or the day is not simulated.
    """
    found: list[Happening] = []
    for text in texts:
        match = _WHEN.match(text.strip())
        option = f"--{kind.replace('_', '-')}"
        if match is None or int(match["hour"]) > 23 or int(match["minute"]) > 59:
            raise UsageError(f"{option} {text}: expected [DAY/]HH:MM[+LENGTH], such as 03:00 or 2/14:30+2h")
        length_s = LENGTHS_S[kind] if match["length"] is None else _length(option, text, match["length"])
        if length_s < 0 and kind != "clock_jump":
            raise UsageError(f"{option} {text}: only a clock jumps back")
        if kind == "clock_jump" and length_s == 0:
            raise UsageError(f"{option} {text}: say how far, such as 2/10:00+3650d or 2/10:00-1h")
        second = int(match["hour"]) * 3600.0 + int(match["minute"]) * 60.0
        asked = [int(match["day"])] if match["day"] else range(1, int(days) + 2)
        moments = [(day - 1) * DAY_S + second for day in asked]
        if match["day"] and not 0 <= moments[0] < days * DAY_S:
            raise UsageError(f"{option} {text}: the simulation has {days:g} days, counted from 1")
        found += [Happening(kind=kind, at_s=at_s, length_s=length_s) for at_s in moments if 0 <= at_s < days * DAY_S]
    return tuple(found)


def _length(option: str, text: str, length: str) -> float:
    try:
        return (-1 if length[0] == "-" else 1) * units.parse(length[1:], "duration")
    except ValueError as error:
        raise UsageError(f"{option} {text}: {error}") from error
