"""What all verbs share: lazy loading, --json and --socket, how an answer is printed."""

from __future__ import annotations

import difflib
import importlib
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.client import Client

if TYPE_CHECKING:
    from edgetune.config import Config

SOCKET = "/run/edgetune/edgetune.sock"
SOCKET_META = "edgetune.socket"  # the key in click's `ctx.meta` for the path as given
CONFIG = "/etc/edgetune/config.yaml"


class Group(click.Group):
    """A group that knows what a mistyped command may have been."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; the error names the nearest one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from None


class LazyGroup(Group):
    """A group whose commands are imported when they are asked for."""

    def __init__(self, *args: Any, lazy: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = dict(lazy)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """All verbs, in the order people need them."""
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import one verb."""
        if cmd_name not in self._lazy:
            return None
        module, _, name = self._lazy[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


def with_json(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def with_socket(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --socket, and pass a client of it as `client`."""

    def connect(ctx: click.Context, _param: click.Parameter, path: str) -> Client:
        ctx.meta[SOCKET_META] = path
        return Client(path)

    return click.option(
        "--socket", "client", metavar="PATH", default=SOCKET, envvar="EDGETUNE_SOCKET", show_default=True, callback=connect,
        help="The daemon's socket (or set EDGETUNE_SOCKET).",
    )(command)  # fmt: skip


def with_config(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --config, a path passed as `config_path`; it need not exist."""
    return click.option(
        "--config", "-c", "config_path", metavar="FILE", default=CONFIG, envvar="EDGETUNE_CONFIG", show_default=True,
        type=click.Path(dir_okay=False, path_type=Path), help="The configuration (or set EDGETUNE_CONFIG).",
    )(command)  # fmt: skip


def read_config(path: Path) -> Config:
    """
    Load the configuration; the defaults where there is no file at the usual place.

    Raises:
        ConfigError: it is not valid, or a file that was asked for is not there.
    """
    from edgetune.config import Config, load

    return Config() if str(path) == CONFIG and not path.exists() else load(path)


def state_dir_of(client: Client) -> Path:
    """Where the running daemon keeps its state."""
    return Path(client.get("/v1/config")["paths"]["state_dir"])


def emit(answer: Any, words: str, *, as_json: bool) -> None:
    """Print an answer: JSON for programs or words for people."""
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False, indent=2))
    else:
        click.echo(folded(words, shutil.get_terminal_size().columns) if sys.stdout.isatty() else words)


def folded(text: str, width: int) -> str:
    """Sentences that are wider than a terminal, broken between words; rows of a table stay as they are."""
    lines = []
    for line in text.split("\n"):
        inner = line.strip()
        if len(line) <= width or "  " in inner:
            lines.append(line)
        else:
            indent = line[: len(line) - len(line.lstrip())]
            lines += textwrap.wrap(
                inner, width, initial_indent=indent, subsequent_indent=f"{indent}  ",
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
    return "\n".join(lines)


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Rows of cells as aligned text, the first row a heading; the columns named in `right` are numbers."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))] if rows else []
    lines = []
    for row in rows:
        pairs = enumerate(zip(row, widths, strict=True))
        cells = [cell.rjust(width) if index in right else cell.ljust(width) for index, (cell, width) in pairs]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def absolute(path: Path) -> str:
    """A path as the daemon has to hear it: its working directory is another one."""
    return os.path.abspath(path)  # noqa: PTH100 - symbolic links are the daemon's to follow
