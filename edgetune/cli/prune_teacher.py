"""Whom `edgetune prune` lets teach: the model as given, or another one, a file or a server."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.errors import UsageError
from edgetune.types import Recipe, TeacherSource

if TYPE_CHECKING:
    from edgetune.cli.artefacts import Source
    from edgetune.learn.control import Control
    from edgetune.learn.teachers import OutsideTeacher

_DEFAULT = Recipe()
_SHARE = 0.5  # of another teacher than the model as given, where none is asked for; as in a round

_OPTIONS = (
    click.option(
        "--distillation",
        type=click.FloatRange(0, 1),
        metavar="W",
        help="The teacher's share of the loss, 0 to 1. [default: 0; 0.5 with --teacher]",
    ),
    click.option(
        "--transfer",
        type=click.Choice(["hinton", "replay", "label_free"]),
        default=_DEFAULT.transfer,
        show_default=True,
        help="How to learn from the teacher: its softened probabilities, its logits, or its logits and no label at all.",
    ),
    click.option(
        "--temperature",
        type=click.FloatRange(min=0, min_open=True),
        metavar="T",
        help=f"Of hinton. [default: {_DEFAULT.temperature:g}]",
    ),
    click.option(
        "--teacher",
        metavar="FILE|URL",
        help="Another teacher than the model as given: an ONNX file, the directory of a version, or "
        "https://HOST/v2/models/NAME, to which the images are then sent.",
    ),
    click.option(
        "--teacher-class",
        "teacher_classes",
        multiple=True,
        metavar="OURS=THEIRS",
        help="A class of the model and the teacher's output for it, by name or number; again for each. "
        "Others are matched by equal names.",
    ),
    click.option(
        "--teacher-ca",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Certificates (PEM) that alone may vouch for the server.",
    ),
)


def with_teacher_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what can be said about a teacher."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def share_of(given: Mapping[str, Any]) -> float:
    """
    The teacher's share of the loss.

    Raises:
        UsageError: the options do not go together.
    """
    share, transfer, teacher = given["distillation"], given["transfer"], given["teacher"]
    if teacher is None and (given["teacher_classes"] or given["teacher_ca"]):
        raise UsageError("--teacher-class and --teacher-ca are about another teacher", hint="name it: --teacher")
    if given["temperature"] is not None and transfer != "hinton":
        raise UsageError(f"--transfer {transfer} knows no --temperature", hint="leave it out")
    if transfer == "label_free":
        if share not in (None, 1):
            raise UsageError("--transfer label_free is all the teacher's", hint="leave --distillation out")
        return 1.0
    share = share if share is not None else _SHARE if teacher is not None else 0.0
    idle = {"--teacher": teacher, "--transfer replay": transfer == "replay", "--temperature": given["temperature"]}
    if share == 0 and any(idle.values()):
        option = next(option for option, is_asked in idle.items() if is_asked)
        raise UsageError(f"{option} has no say: its share of the loss is 0", hint="set --distillation, such as 0.5")
    return float(share)


def source_of(given: Mapping[str, Any]) -> TeacherSource | None:
    """
    Whom the options name; None: the model as given.

    Raises:
        UsageError: that cannot be read.
    """
    from edgetune.config.quantities import split_server

    name: str | None = given["teacher"]
    if name is None:
        return None
    classes: dict[str, str | int] = {}
    for pair in given["teacher_classes"]:
        ours, separator, theirs = pair.partition("=")
        if not separator or not ours or not theirs:
            raise UsageError(f"--teacher-class is {pair!r}", hint="write it as cat=tabby, or cat=281")
        classes[ours] = int(theirs) if theirs.isdecimal() else theirs
    if "://" not in name:
        if given["teacher_ca"]:
            raise UsageError("--teacher-ca is about a server, and --teacher is a file", hint="leave it out")
        return TeacherSource(kind="file", file=name, classes=classes)
    try:
        split_server(name)
    except ValueError as error:
        raise UsageError(f"--teacher: {error}") from error
    return TeacherSource(kind="server", server=name, ca_file=str(given["teacher_ca"] or ""), classes=classes)


@contextlib.contextmanager
def asked(
    whom: TeacherSource | None, source: Source, *, work: Path, threads: int, control: Control
) -> Iterator[OutsideTeacher | None]:
    """
    While it lasts, the teacher that the options name.

    Args:
        whom: None: the model as given.
        source: the model.
        work: where its answers are kept, and which one it was.
        threads: of a file's model.
        control: hears that something goes on while an answer is waited for.

    Raises:
        TeacherError: it cannot be used.
        UsageError: the search in `work` was begun with another one.
    """
    from edgetune.learn.teachers import open_teacher
    from edgetune.store.durable import make_dir, write_atomic

    path = work / "teacher.json"
    before = json.loads(path.read_bytes()) if path.exists() else None
    if whom is None:
        record, teacher = {"identity": None}, None
    else:
        make_dir(work)
        teacher = open_teacher(
            whom,
            preprocess=source.preprocess,
            classes=source.classes,
            answers_dir=work / "answers",
            threads=threads,
            control=control,
            version=(before or {}).get("version"),
        )
        record = teacher.record()
    try:
        if before is not None and before["identity"] != record["identity"]:
            raise UsageError(f"the search in {work} was begun with another teacher", hint="name another --work")
        make_dir(work)
        write_atomic(path, json.dumps(record).encode())
        yield teacher
    finally:
        if teacher is not None:
            teacher.close()
