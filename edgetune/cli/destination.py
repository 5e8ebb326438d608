"""Where `edgetune prune` and `edgetune compress` leave what they make: the result, the work until then, the picture."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from edgetune.cli.installing import locked
from edgetune.errors import MissingLibraryError, UsageError
from edgetune.store import durable

_PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True, slots=True)
class Destination:
    """Three places, none of which is anything else's."""

    out: Path
    work: Path
    plot: Path | None  # None: matplotlib is not there and nobody asked for a picture


def with_destination(*, ending: str, shows: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add --out, --work and --plot; `ending` is that of a result's name, `shows` what a picture is of."""
    options = (
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help=f"Where the result goes. [default: the model's name with -{ending}, here]",
        ),
        click.option(
            "--work",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="Where the work outlives a kill. [default: OUT.work]",
        ),
        click.option(
            "--plot",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help=f"A picture of {shows}: a .png, .svg or .pdf. [default: OUT.png, where matplotlib is installed]",
        ),
    )

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def read_destination(model: str, given: Mapping[str, Any], *, ending: str) -> Destination:
    """
    Check the places before hours of work, not after them.

    Args:
        model: as on the command line, a directory or an architecture.
        given: the options.
        ending: of the result's name, where none is given.

    Raises:
        UsageError: something that is there would be overwritten, or the picture cannot be drawn there.
        MissingLibraryError: a picture is asked for and matplotlib is not there.
    """
    out: Path = given["out"] or Path(f"{_name_of(model)}-{ending}")
    if out.exists():
        raise UsageError(f"{out} exists already", hint="name a directory that does not exist yet: --out DIR")
    work: Path = given["work"] or out.with_name(f"{out.name}.work")
    return Destination(out, work, _plot(given["plot"], out))


@contextlib.contextmanager
def workplace(work: Path) -> Iterator[None]:
    """
    Hold the directory of the work alone; one that was made for it goes again when nothing was done in it.

    Raises:
        ConflictError: another command works there.
    """
    is_made_here = not work.exists()
    with locked(work, hint="wait for it, or name another --work") as lock:
        try:
            yield
        finally:
            if is_made_here and list(work.iterdir()) == [lock]:
                durable.remove_dir(work)


def _name_of(model: str) -> str:
    """cifar:resnet20 -> resnet20; photos/given/ -> given."""
    return Path(model).resolve().name if Path(model).is_dir() else Path(model).name.rpartition(":")[2]


def check_picture(path: Path) -> None:
    """
    Whether a picture can be drawn there.

    Raises:
        UsageError: not under this name.
        MissingLibraryError: matplotlib is not there.
    """
    if path.suffix.lower() not in _PICTURES:
        raise UsageError(f"--plot is {path}; its name has to end in {', '.join(_PICTURES)}")
    if not path.resolve().parent.is_dir():
        raise UsageError(f"--plot is {path}, but there is no directory {path.resolve().parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingLibraryError(
            "--plot needs matplotlib, which is not installed", hint="install the extra: pip install 'edgetune[plot]'"
        )


def _plot(asked: Path | None, out: Path) -> Path | None:
    can_draw = importlib.util.find_spec("matplotlib") is not None
    if asked is None:
        path = out.with_name(f"{out.name}.png")
        if can_draw and path.exists():
            raise UsageError(f"{path} exists already, where the plot would go", hint="name another place: --plot FILE")
        return path if can_draw else None
    check_picture(asked)
    return asked
