"""`edgetune simulate`: what a configuration would do on a board, told in seconds on any machine."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune import units
from edgetune.cli.base import emit, with_json
from edgetune.cli.destination import check_picture
from edgetune.errors import UsageError

if TYPE_CHECKING:
    from edgetune.simulate.scenario import Scenario

BOARD_NAMES = ("pi3", "pi4", "pi5", "nano", "tx2", "xavier-nx", "orin-nano", "agx-orin")
NETWORK_NAMES = ("resnet20", "resnet18", "mobilenet_v2", "squeezenet")
_RATE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*/\s*(h|d|min)\s*$")
_PER_H = {"min": 60.0, "h": 1.0, "d": 1 / 24}
_MOMENT = "[DAY/]HH:MM[+LENGTH]"


@click.command()
@with_json
@click.option("--board", type=click.Choice(BOARD_NAMES), default="pi5", show_default=True, help="Which board.")
@click.option(
    "--config",
    "-c",
    "config_path",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The configuration to try; without it the defaults.",
)
@click.option("--days", type=click.FloatRange(min=0.05, max=366), default=7, show_default=True, help="How many days.")
@click.option(
    "--start", metavar="DATE", default="2026-06-01", show_default=True, help="The first day, from local midnight on."
)
@click.option(
    "--ambient",
    metavar="LOW..HIGH",
    default="22C",
    show_default=True,
    help="The air at the board: at five in the morning, and at five in the afternoon.",
)
@click.option(
    "--arrivals",
    metavar="N/h",
    default="60/h",
    show_default=True,
    help="Images, as the day's mean; also N/min and N/d.",
)
@click.option(
    "--pattern",
    type=click.Choice(["door", "even"]),
    default="door",
    show_default=True,
    help="When they come: as people through a door, or all day and night.",
)
@click.option("--labelled", metavar="SHARE", default="20%", show_default=True, help="How many of them somebody labels.")
@click.option(
    "--classes", type=click.IntRange(2, 1000), default=3, show_default=True, help="How many classes they show."
)
@click.option(
    "--network", type=click.Choice(NETWORK_NAMES), default="mobilenet_v2", show_default=True, help="What is trained."
)
@click.option(
    "--load",
    metavar="SHARE",
    default="10%",
    show_default=True,
    help="Of all cores, used by all else on the board, as the day's mean.",
)
@click.option(
    "--disk-free", metavar="SIZE", default="8GiB", show_default=True, help="Room in paths.state_dir at the beginning."
)
@click.option(
    "--disk-fill", metavar="SIZE", default="0B", show_default=True, help="What all else adds to the disk in a day."
)
@click.option(
    "--brown-out",
    multiple=True,
    metavar=_MOMENT,
    help="The power goes, each day or on one day (from 1); for 5min or so long.",
)
@click.option(
    "--battery",
    metavar="ENERGY",
    help="The board has a battery of so much, such as 50Wh, and tells of it and its mains.",
)
@click.option(
    "--mains-out",
    multiple=True,
    metavar=_MOMENT,
    help="The mains go and the battery feeds the board until it is empty; for 2h or so long.",
)
@click.option("--reboot", multiple=True, metavar=_MOMENT, help="The system restarts in good order; in 1min or so long.")
@click.option("--disk-full", multiple=True, metavar=_MOMENT, help="The disk takes nothing; for 2h or so long.")
@click.option(
    "--clock-jump",
    multiple=True,
    metavar="[DAY/]HH:MM±LENGTH",
    help="The board's clock is set, on or back: 2/10:00+3650d.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Where the random numbers start; the same seed gives the same days.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE", help="A picture of the days: a .png, .svg or .pdf."
)
def simulate(config_path: Path | None, *, as_json: bool, plot: Path | None, **asked: Any) -> None:
    """
    Try a configuration on a simulated board.

    A week takes seconds; told is which rounds run, when, and what holds them back.

    The daemon, its buffer, its budgets and its rounds are the real ones; the board, the images and the trainer are models of
    them (docs/simulate.md).
    """
    scenario = read_scenario(asked)
    if plot is not None:
        check_picture(plot)
    from edgetune.config import Config, load
    from edgetune.simulate.report import report
    from edgetune.simulate.simulation import simulate as live

    config = Config() if config_path is None else load(config_path)
    answer = report(live(config, scenario))
    if plot is not None:
        from edgetune.cli.simulate_picture import draw

        draw(answer, plot)
        answer["plot"] = str(plot)
    from edgetune.cli.simulate_words import describe

    emit(answer, describe(answer), as_json=as_json)


def read_scenario(asked: Mapping[str, Any]) -> Scenario:
    """
    What the options ask for.

    Raises:
        UsageError: an option says nothing that can be simulated.
    """
    from edgetune.simulate.board import BOARDS
    from edgetune.simulate.network import NETWORKS
    from edgetune.simulate.scenario import LENGTHS_S, Scenario, happenings

    if asked["mains_out"] and asked["battery"] is None:
        raise UsageError("--mains-out needs a --battery; without one the board goes off: --brown-out")
    happen = [each for kind in LENGTHS_S for each in happenings(kind, asked[kind], days=asked["days"])]
    return Scenario(
        board=BOARDS[asked["board"]],
        days=asked["days"],
        start=_date(asked["start"]),
        ambient=_ambient(asked["ambient"]),
        classes=tuple(f"class {number + 1}" for number in range(asked["classes"])),
        arrivals_per_h=_rate(asked["arrivals"]),
        pattern=asked["pattern"],
        labelled=_quantity("labelled", asked["labelled"], "share"),
        network=NETWORKS[asked["network"]],
        load=_quantity("load", asked["load"], "share"),
        disk_free_mib=_quantity("disk-free", asked["disk_free"], "bytes") / 2**20,
        disk_fill_mib_per_day=_quantity("disk-fill", asked["disk_fill"], "bytes") / 2**20,
        battery_j=None if asked["battery"] is None else _quantity("battery", asked["battery"], "energy") or None,
        happenings=tuple(happen),
        seed=asked["seed"],
    )


def _quantity(option: str, text: str, kind: str, *, signed: bool = False) -> float:
    try:
        return units.parse(text, kind, signed=signed)
    except ValueError as error:
        raise UsageError(f"--{option}: {error}") from error


def _rate(text: str) -> float:
    match = _RATE.match(text)
    if match is None:
        raise UsageError(f"--arrivals {text}: expected a rate such as 60/h, 2/min or 500/d")
    return float(match[1]) * _PER_H[match[2]]


def _date(text: str) -> dt.datetime:
    try:
        return dt.datetime.combine(dt.date.fromisoformat(text), dt.time())
    except ValueError as error:
        raise UsageError(f"--start {text}: expected a date such as 2026-06-01") from error


def _ambient(text: str) -> Any:
    from edgetune.simulate.board import DailyAmbient

    low, _, high = text.partition("..")
    low_c = _quantity("ambient", low, "temperature", signed=True)
    high_c = _quantity("ambient", high, "temperature", signed=True) if high else low_c
    if not -60 <= low_c <= high_c <= 90:  # no board works in other air
        raise UsageError(f"--ambient {text}: expected LOW..HIGH between -60C and 90C, such as 18C..34C")
    return DailyAmbient(low_c=low_c, high_c=high_c)
