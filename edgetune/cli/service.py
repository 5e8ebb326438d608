"""`edgetune run`, `reload`, `events`, `version`."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edgetune import __version__
from edgetune.cli.base import emit, with_config, with_json, with_socket
from edgetune.client import Client

_PAGE = 1000


@click.command()
@with_config
@with_json
def run(config_path: Path, *, as_json: bool) -> int:
    """Serve until stopped; what systemd starts. With --json a start that fails is told as JSON."""
    del as_json  # `main` looks at it
    from edgetune.config import load

    config = load(config_path)
    from edgetune import daemon

    return daemon.run(config, config_path)


@click.command()
@with_socket
@with_json
def reload(client: Client, *, as_json: bool) -> None:
    """Check the configuration and take it over. Whole, or not at all; a first model is served then too."""
    answer = client.post("/v1/reload")
    changed, waiting = answer.get("changed") or [], answer.get("needs_restart") or []
    words = f"changed: {', '.join(changed)}" if changed else "nothing has changed"
    if waiting:
        words += f"\nin force after a restart: {', '.join(waiting)}"
    emit(answer, words, as_json=as_json)


@click.command()
@with_socket
@with_json
@click.option("--follow", "-f", is_flag=True, help="Go on printing events as they happen.")
@click.option("--lines", "-n", type=click.IntRange(min=0), default=20, show_default=True, help="How many past events.")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only events after this number.")
def events(client: Client, *, as_json: bool, follow: bool, lines: int, after: int) -> None:
    """Print what happened. State changes, promotions, refusals, repairs."""
    last: deque[dict[str, Any]] = deque(maxlen=lines)
    while page := client.get("/v1/events", after=after, limit=_PAGE):
        last.extend(page)
        after = int(page[-1]["seq"])
    if as_json and not follow:
        emit(list(last), "", as_json=True)
        return
    for event in last:
        _say(event, as_json=as_json)
    if follow:
        for event in client.stream_events(after):
            _say(event, as_json=as_json)
            sys.stdout.flush()


def _say(event: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(event, ensure_ascii=False))
        return
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["wall_s"]))
    click.echo(f"{when}  {event['seq']:>6}  {event['kind']:<20} {event['text']}")


@click.command()
@with_json
def version(*, as_json: bool) -> None:
    """Print the version of this program."""
    emit({"version": __version__, "python": sys.version.split()[0]}, f"edgetune {__version__}", as_json=as_json)
