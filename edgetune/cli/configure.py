"""`edgetune config`: check, show, schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgetune.cli.base import Group, emit, with_config, with_json
from edgetune.config import Config, default_text, json_schema, load, privacy_note, to_plain


@click.group(cls=Group)
def config() -> None:
    """Check and show the configuration."""


@config.command()
@with_config
@with_json
def check(config_path: Path, *, as_json: bool) -> None:
    """Report every problem in the file at once, each with its line. Exits 78 when there is one."""
    note = privacy_note(load(config_path))
    text = f"{config_path} is valid" + (f"; {note}" if note else "")
    emit({"valid": True, "path": str(config_path), "notes": [note] if note else []}, text, as_json=as_json)


@config.command()
@with_config
@with_json
@click.option(
    "--default", "is_default", is_flag=True, help="Print config.yaml with every key at its default, commented."
)
@click.option("--changed", is_flag=True, help="Only what differs from the defaults.")
def show(config_path: Path, *, as_json: bool, is_default: bool, changed: bool) -> None:
    """Print the configuration with all its defaults filled in."""
    plain = to_plain(Config() if is_default else load(config_path))
    if changed:
        plain = _differences(plain, to_plain(Config()))
    emit(plain, default_text() if is_default and not changed else _yaml(plain), as_json=as_json)


@config.command()
@with_json
def schema(*, as_json: bool) -> None:
    """Print the JSON Schema of the configuration, for editors."""
    del as_json  # it is JSON anyway
    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def _differences(plain: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict) and isinstance(default[name], dict) and default[name]:
            inner = {key: entry for key, entry in value.items() if entry != default[name][key]}
            found |= {name: inner} if inner else {}
        elif value != default[name]:
            found[name] = value
    return found


def _yaml(plain: dict[str, Any]) -> str:
    import yaml

    if not plain:
        return "# everything is at its default"
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)).rstrip()
