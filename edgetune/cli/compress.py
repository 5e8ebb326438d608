"""`edgetune compress`: a large model teaches a small one what a directory of images needs, without a daemon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune import units
from edgetune.cli.base import emit, read_config, with_config, with_json
from edgetune.cli.installing import learning_libraries, locked
from edgetune.cli.models import with_architecture_options
from edgetune.cli.prune_options import check_plot
from edgetune.cli.words import count, percent
from edgetune.errors import EXIT_OK, LossNotFiniteError, UnprunableError, UsageError

if TYPE_CHECKING:
    from edgetune.cli.artefacts import Source
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


@click.command()
@click.argument("teacher")
@with_config
@with_json
@click.option("--data", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Images: as for prune.")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Where the student goes.")
@click.option(
    "--student",
    default="auto",
    show_default=True,
    metavar="auto|ARCH",
    help="Its architecture; auto: the teacher's family, one block a group, as wide as its activations are not zero.",
)
@click.option(
    "--target-params",
    default="1%",
    show_default=True,
    metavar="1%|N",
    help="Most learnt parameters of auto: a share of the teacher's, or a number.",
)
@click.option(
    "--transfer",
    type=click.Choice(["label_free", "hinton"]),
    default="label_free",
    show_default=True,
    help="What is learnt from: the teacher's features and logits alone, or its word and the folders' names.",
)
@click.option(
    "--share",
    type=click.FloatRange(0, 1),
    default=0.9,
    show_default=True,
    metavar="W",
    help="The teacher's, of hinton.",
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
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the training outlives a kill. [default: OUT.work]",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw accuracy by epoch: a .png, .svg or .pdf."
)
@with_architecture_options
def compress(teacher: str, config_path: Path, *, as_json: bool, **given: Any) -> int:
    """
    Make a small student of a large model, taught on a directory of images.

    TEACHER is a directory that `edgetune models export` or `edgetune prune` wrote, or an architecture with --weights and
    --classes. With the default transfer no label is looked at: the folders' names only say how good the student is. Killed
    or stopped, the same command goes on where it was. `edgetune models import --from DIR` takes the result to a board.
    """
    out: Path = given["out"]
    if out.exists():
        raise UsageError(f"{out} exists already", hint="name a directory that does not exist yet")
    if given["plot"] is not None:
        check_plot(given["plot"])
    work: Path = given["work"] or out.with_name(f"{out.name}.work")
    config = read_config(config_path)
    with learning_libraries("compressing"):
        from edgetune.cli.prune_progress import StopAskedError, stopping, telling
    with telling(is_quiet=as_json) as teller, stopping(teller):
        try:
            answer = _work(teacher, work, config, given, teller)
        except StopAskedError:
            answer = None
    if answer is None:
        words = f"stopped; the same command goes on from {work}"
        emit({"stopped": True, "work": str(work)}, words, as_json=as_json)
        return _STOPPED
    if given["plot"] is not None:
        draw(answer, given["plot"])
    if not given["work"]:
        from edgetune.store.durable import remove_dir

        remove_dir(work)
    emit(answer, _words(answer), as_json=as_json)
    return EXIT_OK


def _work(teacher: str, work: Path, config: Config, given: Mapping[str, Any], teller: Teller) -> dict[str, Any]:
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
    with locked(work, hint="wait for it, or name another --work"):
        try:
            taught = teach(
                source.network,
                material,
                lesson,
                work=work,
                control=teller,
                told=lambda epoch, share: teller.prints(f"epoch {epoch}: {percent(share)} right on validation"),
            )
        except (LossNotFiniteError, UnprunableError) as error:
            raise type(error)(error.message, hint=_HINTS[type(error)]) from error
        result = write_result(
            given["out"],
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
    return _describe(source, lesson, taught, data) | _sides(result, taught) | {"directory": str(given["out"])}


def _lesson(source: Source, given: Mapping[str, Any], threads: int) -> Lesson:
    from edgetune.learn.cifar import count_learnt
    from edgetune.learn.student import Lesson

    return Lesson(
        parameters_max=_parameters(given["target_params"], count_learnt(source.network.module)),
        student=None if given["student"] == "auto" else given["student"],
        transfer=given["transfer"],
        share=given["share"],
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
    from edgetune.learn.cifar import count_learnt

    learnt = [count_learnt(network.module) for network in (source.network, taught.network)]
    return {
        "teacher": source.name,
        "student": taught.network.architecture,
        "lesson": asdict(lesson),
        "zeros_percent": taught.zeros_percent,
        "learnt_parameters": {"given": learnt[0], "final": learnt[1]},
        "removed": 1 - learnt[1] / learnt[0],
        "data": {
            "training": len(data.training),
            "validation": len(data.validation),
            "test": None if data.test is None else len(data.test),
            "unreadable": [{"file": path, "why": why} for path, why in data.unreadable],
            "notes": list(data.notes),
        },
        "curve": taught.curve,
        "seconds": taught.seconds,
    }


def _sides(result: Any, taught: Taught) -> dict[str, Any]:
    from edgetune.cli.artefacts import describe_side

    return {
        "given": describe_side(result.given, result.given_latency, taught.teacher_accuracy, result.given_test),
        "final": describe_side(result.final, result.final_latency, taught.accuracy, result.final_test),
    }


def _words(answer: Mapping[str, Any]) -> str:
    """The whole report."""
    from edgetune.cli.prune_report import data_words, side_words

    how = "without labels" if answer["lesson"]["transfer"] == "label_free" else "with labels"
    widths = "" if answer["zeros_percent"] is None else f", a channel of {answer['zeros_percent']} % zeros is silent"
    learnt = answer["learnt_parameters"]
    lines = [
        f"{percent(answer['removed'])} of the learnt parameters are gone: {learnt['given']:,} -> {learnt['final']:,}{widths}",
        f"taught {how}: {count(len(answer['curve']), 'epoch')}, {units.show(answer['seconds'], 'duration')}",
        f"{answer['directory']} holds the student; on a board: edgetune models import --from DIR",
    ]
    return "\n\n".join([data_words(answer["data"]), side_words(answer, ("teacher", "student")), "\n".join(lines)])


def draw(answer: Mapping[str, Any], path: Path) -> None:
    """Draw the student's validation accuracy by epoch, under the teacher's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(100 * answer["given"]["validation_accuracy"], color="black", linestyle="--", label="teacher")
    epochs = range(1, len(answer["curve"]) + 1)
    axes.plot(epochs, [100 * share for share in answer["curve"]], color="tab:orange", label="student")
    axes.set(xlabel="epoch", ylabel="validation accuracy [%]", title=answer["teacher"])
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right")
    figure.savefig(path)
