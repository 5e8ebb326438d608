"""`edgetune prune`: compress a model to what a directory of images needs. A round's engine, without the daemon."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.cli.base import emit, read_config, with_config, with_json
from edgetune.cli.destination import workplace
from edgetune.cli.installing import learning_libraries
from edgetune.cli.models import with_architecture_options
from edgetune.cli.prune_options import Order, read_order, recipe_of, with_prune_options
from edgetune.cli.prune_teacher import asked, with_teacher_options
from edgetune.cli.words import count
from edgetune.errors import (
    EXIT_OK,
    EXIT_REFUSED,
    ConfigError,
    LossNotFiniteError,
    UnprunableError,
    UsageError,
)

if TYPE_CHECKING:
    from edgetune.cli.artefacts import Source
    from edgetune.cli.prune_progress import Teller
    from edgetune.config import Config
    from edgetune.learn.folders import Folders
    from edgetune.learn.goal import Goal, Outcome
    from edgetune.learn.teachers import OutsideTeacher
    from edgetune.types import Recipe

_STOPPED = 130  # as after any Ctrl-C


@click.command()
@click.argument("model")
@with_config
@with_json
@with_prune_options
@with_teacher_options
@with_architecture_options
def prune(model: str, config_path: Path, *, as_json: bool, **given: Any) -> int:
    """
    Cut filters of a model as far as its accuracy on images allows. Without a daemon, on any machine.

    MODEL is a directory that `edgetune models export` or this verb wrote, or an architecture (cifar:resnet20,
    torchvision:mobilenet_v2, package.module:function) with --weights and --classes. The result is such a directory:
    edgetune models import --from DIR takes it to a board. Killed or stopped, the same command goes on where it was.
    Exits 4 when no network reached the goal; the best one is written all the same.
    """
    order = read_order(model, given)
    config = read_config(config_path)
    with learning_libraries("pruning"):
        from edgetune.cli.prune_progress import StopAskedError, stopping, telling
    with telling(is_quiet=as_json) as teller, stopping(teller):
        try:
            answer = _work(order, config, given, teller)
        except StopAskedError:
            answer = None
    if answer is None:
        return _stopped(order, teller, as_json=as_json)
    from edgetune.cli.prune_report import words

    if not given["work"]:
        from edgetune.store.durable import remove_dir

        remove_dir(order.work)
    emit(answer, words(answer), as_json=as_json)
    return EXIT_OK if answer["reached"] else EXIT_REFUSED


def _work(order: Order, config: Config, given: Mapping[str, Any], teller: Teller) -> dict[str, Any]:
    """Read, compress, write, tell."""
    with learning_libraries("pruning"):
        from edgetune.cli.artefacts import read_model, write_result
        from edgetune.cli.prune_result import describe, is_smaller, pruning_of
        from edgetune.learn.folders import read_folders
    from edgetune.config import serving_threads

    recipe = recipe_of(order, given, given["threads"] or serving_threads(config))
    _check_criterion(recipe.criterion)
    source = read_model(order.model, given, config.builders)
    data = read_folders(given["data"], source.classes, source.preprocess, control=teller)
    goal = _goal(order, given)
    with workplace(order.work):
        teller.searches_after(_earlier_trials(order.work))
        if order.teacher is not None and order.teacher.server:
            teller.prints(f"images leave this device: they are sent to {order.teacher.server}")
        with (
            _metered(config, teller, is_needed=goal.joules_max is not None) as is_estimated,
            asked(order.teacher, source, work=order.work, threads=recipe.threads, control=teller) as teacher,
        ):
            outcome = _compress(source, data, recipe, goal, work=order.work, teller=teller, teacher=teacher)
        result = write_result(
            order.out,
            source,
            outcome.network,
            data,
            kind="compressed",
            is_trained=is_smaller(outcome),
            pruning=lambda ratio: pruning_of(outcome, recipe, ratio),
            threads=recipe.threads,
            timing_runs=recipe.timing_runs,
            control=teller,
        )
    answer = describe(source, outcome, result, data, level_of=order.level_of, goal=goal)
    if order.plot is not None:
        from edgetune.cli.prune_report import draw

        draw(answer, order.plot)
    answer |= {"is_energy_estimated": is_estimated, "teacher": None if teacher is None else teacher.record()}
    return answer | {"directory": str(order.out), "plot": None if order.plot is None else str(order.plot)}


@contextlib.contextmanager
def _metered(config: Config, teller: Teller, *, is_needed: bool) -> Iterator[bool]:
    """
    Let the engine know what the board uses, where it can be measured; yields whether that is an estimate.

    Raises:
        UsageError: it has to be measured and cannot be.
    """
    from edgetune.clock import SystemClock
    from edgetune.daemon.settings import board_sensors
    from edgetune.device.energy import PowerWatch
    from edgetune.types import Quantity

    def told(joules: float) -> None:
        teller.energy_j = joules

    sensors = board_sensors(config, SystemClock())
    try:
        power = sensors.supported()[Quantity.POWER_W]
        if power.value is None and is_needed:
            raise UsageError(
                f"--max-energy is given, but the power cannot be measured: {power.why_unknown}",
                hint="leave it out, or set budgets.estimate, estimated_idle and estimated_busy in the configuration",
            )
        with PowerWatch(sensors, told):
            yield power.is_estimated
    finally:
        sensors.close()


def _check_criterion(name: str) -> None:
    from edgetune.learn.criteria import make_criterion

    try:
        make_criterion(name, seed=0)
    except ConfigError as error:
        raise UsageError(error.message, hint=error.hint) from error


def _goal(order: Order, given: Mapping[str, Any]) -> Goal:
    from edgetune.learn.goal import Goal

    return Goal(
        accuracy_drop_max=given["keep_accuracy"],
        ratio=order.ratio,
        strategy=given["strategy"],
        trial_epochs=given["trial_epochs"],
        epochs_max=given["max_epochs"],
        seconds_max=given["max_time"],
        joules_max=given["max_energy"],
    )


def _compress(
    source: Source,
    data: Folders,
    recipe: Recipe,
    goal: Goal,
    *,
    work: Path,
    teller: Teller,
    teacher: OutsideTeacher | None,
) -> Outcome:
    from edgetune.learn.compress import Material, compress

    material = Material(
        training=data.training, validation=data.validation, preprocess=source.preprocess, classes=source.classes
    )
    try:
        return compress(
            source.network,
            material,
            recipe,
            goal,
            work=work,
            threads=recipe.threads,
            control=teller,
            told=teller.told,
            teacher=teacher,
        )
    except LossNotFiniteError as error:
        raise LossNotFiniteError(error.message, hint="lower --learning-rate, or look for damaged images") from error
    except UnprunableError as error:
        # there is no configuration here
        advice = [words for words in error.hint.split("; ") if "pruning." not in words]
        raise UnprunableError(error.message, hint="; ".join(advice) or "use another architecture") from error


def _earlier_trials(work: Path) -> int:
    """How many an interrupted search has made, for the numbers in what is said; none if that cannot be read."""
    try:
        return len(json.loads((work / "search.json").read_bytes())["trials"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _stopped(order: Order, teller: Teller, *, as_json: bool) -> int:
    done = f"stopped after {count(teller.trials, 'trial')}"
    hint = f"the same command goes on where it was, from {order.work}"
    click.echo(f"edgetune: {done}\n  {hint}", err=True)
    if as_json:
        emit({"error": {"code": "stopped", "message": done, "hint": hint}}, "", as_json=True)
    return _STOPPED
