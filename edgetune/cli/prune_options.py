"""What `edgetune prune` can be told, and what is checked before anything slow begins."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from edgetune import units
from edgetune.cli.destination import read_destination, with_destination
from edgetune.cli.prune_teacher import share_of, source_of
from edgetune.errors import UsageError
from edgetune.types import OUTSIDE_VIEWS, Recipe, TeacherSource

_FACTOR_MAX = 50.0  # a search leaves no less than 2 % of the cost, see decide.search
_BEFORE = 0.25  # of the learning rate: what the tuning before the first cut takes, as the defaults of a round have it
ENDING = "pruned"
_DEFAULT = Recipe()
_GOALS = {"faster": "latency", "smaller": "parameters", "fewer_macs": "macs"}  # options, and what they count
_MIB = 2**20


def _quantity(kind: str) -> Callable[[click.Context, click.Parameter, str | None], float | None]:
    """Read an option that is written with a unit, as in the configuration: 1pp, 30min."""

    def read(_ctx: click.Context, _param: click.Parameter, text: str | None) -> float | None:
        try:
            return None if text is None else units.parse(text, kind)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return read


def _factor(_ctx: click.Context, _param: click.Parameter, text: str | None) -> float | None:
    """Read 2x, 1.5x."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*x?\s*", text or "")
    if text is None or (match is not None and 1 < float(match[1]) <= _FACTOR_MAX):
        return float(match[1]) if match else None
    raise click.BadParameter(f"expected a factor above 1x and up to {_FACTOR_MAX:g}x, such as '2x', not {text!r}")


_OPTIONS = (
    click.option(
        "--data",
        required=True,
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Images: DIR/<class>/, of which a fifth is set aside for validation; or DIR/train/<class>/, DIR/val/<class>/ and perhaps DIR/test/<class>/.",
    ),
    click.option(
        "--keep-accuracy",
        callback=_quantity("points"),
        default="1pp",
        show_default=True,
        metavar="POINTS",
        help="How much of the validation accuracy of the model as given may be lost.",
    ),
    click.option(
        "--faster",
        callback=_factor,
        metavar="2x",
        help="The goal: so many times faster, measured here as it is served.",
    ),
    click.option("--smaller", callback=_factor, metavar="2x", help="The goal: so many times fewer parameters."),
    click.option("--fewer-macs", callback=_factor, metavar="2x", help="The goal: so many times fewer operations."),
    click.option(
        "--strategy",
        type=click.Choice(["steps", "dapr"]),
        default="steps",
        show_default=True,
        help="Steps from the last success, or the paper's binary search with a full retraining each.",
    ),
    click.option(
        "--criterion",
        default=_DEFAULT.criterion,
        show_default=True,
        metavar="NAME",
        help="How filters are ranked: taylor, fisher, l1, activation, ... or package.module:Class.",
    ),
    click.option(
        "--multiple", type=click.IntRange(min=1), metavar="N", help="Kept channels are a multiple. [default: measured]"
    ),
    click.option(
        "--epochs-before",
        type=click.IntRange(min=0),
        metavar="N",
        default=int(_DEFAULT.epochs_before),
        show_default=True,
        help="On the images before the first cut.",
    ),
    click.option(
        "--epochs",
        type=click.IntRange(min=1),
        metavar="N",
        default=int(_DEFAULT.epochs_after),
        show_default=True,
        help="Of the last retraining; with dapr of every trial.",
    ),
    click.option(
        "--trial-epochs",
        type=click.IntRange(min=1),
        metavar="N",
        default=4,
        show_default=True,
        help="At most, of a trial of steps.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=2),
        metavar="N",
        default=_DEFAULT.batch_size,
        show_default=True,
        help="Images a step.",
    ),
    click.option(
        "--learning-rate",
        type=click.FloatRange(min=0, min_open=True),
        metavar="X",
        default=_DEFAULT.learning_rate,
        show_default=True,
        help="Of retraining; before the first cut a quarter of it.",
    ),
    click.option(
        "--schedule",
        type=click.Choice(["auto", "cosine", "paper"]),
        default=_DEFAULT.schedule,
        show_default=True,
        help="Paper: the epochs, rates and batch of arXiv 2006.08554 for its CIFAR networks, whatever the options say; auto: that"
        " for the CIFAR AlexNet where none of them is given, else cosine.",
    ),
    click.option(
        "--keep-branches",
        is_flag=True,
        help="Thinner layers only: a goal of latency takes no residual branch out as a whole.",
    ),
    click.option(
        "--max-time",
        callback=_quantity("duration"),
        metavar="DURATION",
        help="Begin no trial that would not be retrained by then at the pace so far, e.g. 30min.",
    ),
    click.option(
        "--max-energy",
        callback=_quantity("energy"),
        metavar="ENERGY",
        help="The same with what the whole board uses, e.g. 20Wh; needs a power sensor.",
    ),
    click.option(
        "--max-epochs",
        type=click.FloatRange(min=0, min_open=True),
        metavar="N",
        help="At most so many over everything, the last retraining included.",
    ),
    click.option(
        "--max-memory",
        callback=_quantity("bytes"),
        metavar="BYTES",
        help="Of this process, e.g. 1GiB: filters are cut before the model is tuned, and steps go in parts, where it is short.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        help="For training and for timing. [default: serving.threads, or all cores]",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        metavar="N",
        default=_DEFAULT.seed,
        show_default=True,
        help="Of everything drawn.",
    ),
)


def with_prune_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what a compression can be told."""
    command = with_destination(ending=ENDING, shows="accuracy against latency")(command)
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Order:
    """What is checked before anything slow begins."""

    model: str
    out: Path
    work: Path
    plot: Path | None  # see Destination
    level_of: str
    ratio: float | None
    teacher: TeacherSource | None


def read_order(model: str, given: Mapping[str, Any]) -> Order:
    """
    Check what can be checked at once.

    Raises:
        UsageError: the options do not go together, or the result would overwrite something.
        MissingLibraryError: a picture is asked for and matplotlib is not there.
    """
    goals = {unit: given[option] for option, unit in _GOALS.items() if given[option]}
    if len(goals) > 1:
        named = [f"--{option.replace('_', '-')}" for option in _GOALS if given[option]]
        raise UsageError(f"{' and '.join(named)} cannot stand together: there is one goal", hint="name one of them")
    if given["max_time"] == 0:
        raise UsageError("--max-time is 0: no trial could begin")
    if given["max_energy"] == 0:
        raise UsageError("--max-energy is 0: no trial could begin")
    share_of(given)
    place = read_destination(model, given, ending=ENDING)
    unit, factor = next(iter(goals.items()), ("latency", None))
    return Order(
        model=model,
        out=place.out,
        work=place.work,
        plot=place.plot,
        level_of=unit,
        ratio=1 / factor if factor else None,
        teacher=source_of(given),
    )


def recipe_of(order: Order, given: Mapping[str, Any], threads: int) -> Recipe:
    """How to score, cut and train; what cannot be told is as in a round."""
    return Recipe(
        criterion=given["criterion"],
        level_of=order.level_of,
        schedule=given["schedule"],
        remove_branches=not given["keep_branches"],
        round_to=given["multiple"],
        epochs_before=given["epochs_before"],
        epochs_after=given["epochs"],
        batch_size=given["batch_size"],
        learning_rate=given["learning_rate"],
        learning_rate_before=given["learning_rate"] * _BEFORE,
        distillation=share_of(given),
        augment_views=None if order.teacher is None else OUTSIDE_VIEWS,
        transfer=given["transfer"],
        temperature=given["temperature"] or _DEFAULT.temperature,
        seed=given["seed"],
        memory_max_mib=None if given["max_memory"] is None else given["max_memory"] / _MIB,
        threads=threads,
    )
