"""docs/cli.md, written from the verbs themselves: `python -m edgetune.cli.reference [ROOT]`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from edgetune.cli import group

_HEAD = """\
# Command line

<!-- Written by `python -m edgetune.cli.reference`; change the verbs in edgetune/cli/ instead. -->

Every verb has `--help` and `--json`. With `--json` a failure is `{"error": {"code", "message", "hint"}}` on stdout; the
sentence and its hint always go to stderr. The socket is `/run/edgetune/edgetune.sock`, or `EDGETUNE_SOCKET`, or
`--socket`; the configuration is `/etc/edgetune/config.yaml`, or `EDGETUNE_CONFIG`, or `--config`.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed; the sentence says why |
| 2 | usage: the command or one of its arguments makes no sense |
| 3 | the daemon does not answer on its socket |
| 4 | refused by the gate or by a budget, too few samples for a round, or `prune` did not reach its goal |
| 78 | the configuration is not valid, or sets a budget that this board cannot measure |
| 130 | stopped by Ctrl-C |
"""


def commands(command: click.Command | None = None, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every verb with its full name ('models ls'), groups themselves left out."""
    command = command or group
    if not isinstance(command, click.Group):
        yield name, command
        return
    context = click.Context(command)
    for part in command.list_commands(context):
        inner = command.get_command(context, part)
        assert inner is not None
        yield from commands(inner, f"{name} {part}".strip())


def reference_text() -> str:
    """The page: usage, meaning and options of every verb."""
    parts = [_HEAD]
    for name, command in commands():
        context = click.Context(command, info_name=f"edgetune {name}")
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        text = "\n\n".join(" ".join(block.split()) for block in (command.help or "").split("\n\n"))
        parts += [f"## {name}\n", f"`{usage}`\n", f"{text}\n"]
        records = [param.get_help_record(context) for param in command.params if isinstance(param, click.Option)]
        rows = [f"| `{record[0]}` | {record[1].replace('|', chr(92) + '|')} |" for record in records if record]
        parts += ["| option | meaning |\n|---|---|", *rows, ""]
    return "\n".join(parts).rstrip() + "\n"


def main(root: Path) -> None:
    """Write the page below `root`."""
    path = root / "docs" / "cli.md"
    path.write_text(reference_text(), encoding="utf-8")
    click.echo(path)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
