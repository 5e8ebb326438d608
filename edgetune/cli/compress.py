"""`edgetune compress`: a large model teaches a small one what a directory of images needs, without a daemon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune import units
from edgetune.cli.base import emit, read_config, with_config, with_json
from edgetune.cli.destination import read_destination, with_destination, workplace
from edgetune.cli.installing import learning_libraries
from edgetune.cli.models import with_architecture_options
from edgetune.cli.words import count, percent
from edgetune.errors import EXIT_OK, LossNotFiniteError, UnprunableError, UsageError

if TYPE_CHECKING:
    from edgetune.cli.artefacts import Source
    from edgetune.cli.destination import Destination
    from edgetune.cli.prune_progress import Teller
    from edgetune.config import Config
    from edgetune.learn.folders import Folders
    from edgetune.learn.student import Lesson, Taught

_STOPPED = 130  # as after any Ctrl-C
_TIMING_RUNS = 100
_HINTS = {
    LossNotFiniteError: "lower --learning-rate, or look for damaged images",
    UnprunableError: "raise --target-params, or name the student: --student",
}
_TARGET = "1%"
_SHARE, _TEMPERATURE = 0.9, 4.0
_ENDING = "student"


@click.command()
@click.argument("teacher")
@with_config
@with_json
@click.option("--data", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Images: as for prune.")
@click.option(
    "--student",
    default="auto",
    show_default=True,
    metavar="auto|ARCH",
    help="Its architecture; auto: the teacher's family, one block a group, as wide as its activations are not zero.",
)
@click.option(
    "--target-params",
    metavar="1%|N",
    help=f"Most learnt parameters of auto: a share of the teacher's, or a number. [default: {_TARGET}]",
)
@click.option(
    "--transfer",
    type=click.Choice(["label_free", "hinton", "replay"]),
    default="label_free",
    show_default=True,
    help="What is learnt from: the teacher's features and logits alone, or beside the folders' names its softened word (hinton) or its logits (replay).",
)
@click.option(
    "--share",
    type=click.FloatRange(0, 1),
    metavar="W",
    help=f"The teacher's share of the loss, of hinton and replay. [default: {_SHARE:g}]",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, max=100, min_open=True),
    metavar="T",
    help=f"How much hinton softens the teacher's word. [default: {_TEMPERATURE:g}]",
)
@click.option(
    "--epochs", type=click.IntRange(min=1), default=60, show_default=True, metavar="N", help="Over the images."
)
@click.option(
    "--batch-size", type=click.IntRange(min=2), default=128, show_default=True, metavar="N", help="Images a step."
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=0.1,
    show_default=True,
    metavar="X",
    help="At its highest.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="For training and timing. [default: serving.threads]"
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Of all drawn.")
@with_destination(ending=_ENDING, shows="accuracy by epoch")
@with_architecture_options
def compress(teacher: str, config_path: Path, *, as_json: bool, **given: Any) -> int:
    """
    Teach a small student what a large model says of images.

    TEACHER is a directory that `edgetune models export` or `edgetune prune` wrote, or an architecture with --weights and
    --classes. With the default transfer no label is looked at: the folders' names only say how good the student is. Killed
    or stopped, the same command goes on where it was. `edgetune models import --from DIR` takes the result to a board.
    """
    _check_together(given)
    place = read_destination(teacher, given, ending=_ENDING)
    config = read_config(config_path)
    with learning_libraries("compressing"):
        from edgetune.cli.prune_progress import StopAskedError, stopping, telling
    with telling(is_quiet=as_json) as teller, stopping(teller):
        try:
            answer = _work(teacher, place, config, given, teller)
        except StopAskedError:
            answer = None
    if answer is None:
        words = f"stopped; the same command goes on from {place.work}"
        emit({"stopped": True, "work": str(place.work)}, words, as_json=as_json)
        return _STOPPED
    if place.plot is not None:
        draw(answer, place.plot)
    if not given["work"]:
        from edgetune.store.durable import remove_dir

        remove_dir(place.work)
    emit(answer, _words(answer), as_json=as_json)
    return EXIT_OK


def _check_together(given: Mapping[str, Any]) -> None:
    """
    No option is taken and then not looked at.

    Raises:
        UsageError: one has nothing to say beside another.
    """
    if given["target_params"] is not None and given["student"] != "auto":
        raise UsageError(
            f"--target-params is about --student auto; {given['student']} has its own size",
            hint="leave one of them out",
        )
    if given["share"] is not None and given["transfer"] == "label_free":
        raise UsageError("--transfer label_free is all the teacher's", hint="leave --share out")
    if given["temperature"] is not None and given["transfer"] != "hinton":
        raise UsageError(f"--transfer {given['transfer']} knows no --temperature", hint="leave it out")


def _work(teacher: str, place: Destination, config: Config, given: Mapping[str, Any], teller: Teller) -> dict[str, Any]:
    """Read, teach, write, tell."""
    with learning_libraries("compressing"):
        from edgetune.cli.artefacts import read_model, write_result
        from edgetune.learn.folders import read_folders
        from edgetune.learn.goal import Material
        from edgetune.learn.student import teach
    from edgetune.config import serving_threads

    source = read_model(teacher, given, config.builders)
    threads = given["threads"] or serving_threads(config)
    lesson = _lesson(source, given, threads)
    data = read_folders(given["data"], source.classes, source.preprocess, control=teller)
    material = Material(
        training=data.training, validation=data.validation, preprocess=source.preprocess, classes=source.classes
    )
    with workplace(place.work):
        try:
            taught = teach(
                source.network,
                material,
                lesson,
                work=place.work,
                control=teller,
                told=lambda epoch, share: teller.prints(f"epoch {epoch}: {percent(share)} right on validation"),
            )
        except (LossNotFiniteError, UnprunableError) as error:
            raise type(error)(error.message, hint=_HINTS[type(error)]) from error
        result = write_result(
            place.out,
            source,
            taught.network,
            data,
            kind="distilled",
            is_trained=True,
            pruning=lambda _: None,
            threads=threads,
            timing_runs=_TIMING_RUNS,
            control=teller,
        )
    places = {"directory": str(place.out), "plot": None if place.plot is None else str(place.plot)}
    return _describe(source, lesson, taught, data) | _sides(result, taught, source.classes, data) | places


def _lesson(source: Source, given: Mapping[str, Any], threads: int) -> Lesson:
    from edgetune.learn.cifar import count_learnt
    from edgetune.learn.student import Lesson

    return Lesson(
        parameters_max=_parameters(given["target_params"] or _TARGET, count_learnt(source.network.module)),
        student=None if given["student"] == "auto" else given["student"],
        transfer=given["transfer"],
        share=_SHARE if given["share"] is None else given["share"],
        temperature=given["temperature"] or _TEMPERATURE,
        epochs=given["epochs"],
        batch_size=given["batch_size"],
        learning_rate=given["learning_rate"],
        seed=given["seed"],
        threads=threads,
    )


def _parameters(text: str, whole: int) -> int:
    """Read 1% of so many, or a number."""
    try:
        wanted = int(text) if text.isdecimal() else int(units.parse(text, "share") * whole)
    except ValueError as error:
        raise UsageError(
            f"--target-params: {error}", hint="write a share such as 1%, or a number such as 20000"
        ) from error
    if not 0 < wanted < whole:
        raise UsageError(
            f"--target-params is {text}; the teacher has {whole:,} learnt parameters, and a student has fewer"
        )
    return wanted


def _describe(source: Source, lesson: Lesson, taught: Taught, data: Folders) -> dict[str, Any]:
    from edgetune.cli.prune_result import guess_doubt
    from edgetune.learn.cifar import count_learnt

    learnt = [count_learnt(network.module) for network in (source.network, taught.network)]
    return {
        "teacher": source.name,
        "student": taught.network.architecture,
        "lesson": asdict(lesson),
        "is_label_free": lesson.is_label_free,
        "zeros_percent": taught.zeros_percent,
        "learnt_parameters": {"given": learnt[0], "final": learnt[1]},
        "removed": 1 - learnt[1] / learnt[0],
        "data": {
            "training": len(data.training),
            "validation": len(data.validation),
            "test": None if data.test is None else len(data.test),
            "unreadable": [{"file": path, "why": why} for path, why in data.unreadable],
            "notes": [*data.notes, *guess_doubt(taught.teacher_accuracy, data)],
        },
        "curve": taught.curve,
        "seconds": taught.seconds,
    }


def _sides(result: Any, taught: Taught, classes: Sequence[str], data: Folders) -> dict[str, Any]:
    from edgetune.cli.artefacts import describe_side, learnt_classes

    learnt = learnt_classes(classes, data)
    return {
        "given": describe_side(
            result.given, result.given_latency, taught.teacher_accuracy, result.given_test, learnt=learnt
        ),
        "final": describe_side(result.final, result.final_latency, taught.accuracy, result.final_test, learnt=learnt),
    }


def _words(answer: Mapping[str, Any]) -> str:
    """The whole report."""
    from edgetune.cli.prune_report import data_words, side_words

    how = "without labels" if answer["is_label_free"] else "with labels"
    learnt = answer["learnt_parameters"]
    lines = [
        f"{percent(answer['removed'])} of the learnt parameters are gone: {learnt['given']:,} -> {learnt['final']:,}",
        f"taught {how}: {count(len(answer['curve']), 'epoch')}, {units.show(answer['seconds'], 'duration')}",
        f"{answer['directory']} holds the student; on a board: edgetune models import --from DIR",
    ]
    if answer["zeros_percent"] is not None:
        zeros = f"with as many channels as the teacher has that are less than {answer['zeros_percent']} % zeros"
        lines.insert(1, f"a {answer['student']} {zeros}")
    if answer["plot"]:
        lines.append(f"{answer['plot']} shows accuracy by epoch")
    return "\n\n".join([data_words(answer["data"]), side_words(answer, ("teacher", "student")), "\n".join(lines)])


def draw(answer: Mapping[str, Any], path: Path) -> None:
    """Draw the student's validation accuracy by epoch, under the teacher's."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(100 * answer["given"]["validation_accuracy"], color="black", linestyle="--", label="teacher")
    epochs = range(1, len(answer["curve"]) + 1)
    axes.plot(epochs, [100 * share for share in answer["curve"]], color="tab:orange", marker=".", label="student")
    axes.set(xlabel="epoch", ylabel="validation accuracy [%]", title=answer["teacher"])
    axes.set_ylim(0, 100)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right")
    figure.savefig(path)
