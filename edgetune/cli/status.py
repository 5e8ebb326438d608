"""`edgetune status`: what is served, what is in the buffer, why a round is or is not running."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

import click

from edgetune.cli.base import with_json, with_socket
from edgetune.cli.words import Paragraph, as_text, describe
from edgetune.client import Client
from edgetune.errors import DaemonNotRunningError

if TYPE_CHECKING:
    from rich.table import Table

_STYLES = {"good": "green", "busy": "yellow", "bad": "red", "plain": "cyan"}


@click.command()
@with_socket
@with_json
@click.option("--watch", "-w", is_flag=True, help="Redraw until Ctrl-C.")
@click.option(
    "--interval", type=click.FloatRange(min=0.2), default=1.0, show_default=True, help="Seconds between redraws."
)
def status(client: Client, *, as_json: bool, watch: bool, interval: float) -> None:
    """Say what is served and stored, and why a round runs or not."""
    if watch:
        _watch(client, interval, as_json=as_json)
    elif as_json:
        click.echo(json.dumps(client.get("/v1/status"), ensure_ascii=False, indent=2))
    else:
        _print(describe(client.get("/v1/status")))


def _print(paragraphs: list[Paragraph]) -> None:
    if not sys.stdout.isatty():  # rich takes 0.1 s to import and a pipe has no colours
        click.echo(as_text(paragraphs))
        return
    from rich.console import Console

    Console(highlight=False).print(table(paragraphs))


def table(paragraphs: list[Paragraph]) -> Table:
    """The paragraphs as rich draws them: headings on the left, long lines wrapped on the right."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for paragraph in paragraphs:
        grid.add_row(Text(paragraph.heading, style=f"bold {_STYLES[paragraph.tone]}"), Text("\n".join(paragraph.lines)))
    return grid


def _watch(client: Client, interval_s: float, *, as_json: bool) -> None:
    """Redraw for ever; a daemon that restarts meanwhile is waited for."""
    if as_json:
        while True:
            click.echo(json.dumps(client.get("/v1/status"), ensure_ascii=False))
            sys.stdout.flush()
            time.sleep(interval_s)
    from rich.live import Live

    with Live(auto_refresh=False, screen=sys.stdout.isatty()) as live:
        while True:
            try:
                paragraphs = describe(client.get("/v1/status"))
            except DaemonNotRunningError as error:
                paragraphs = [Paragraph("Service", (error.message, error.hint), "bad")]
            live.update(table(paragraphs), refresh=True)
            time.sleep(interval_s)
