"""
`edgetune`: the command line. Each verb is imported when it is called, so that `edgetune status` answers at once.

Exit codes are those of `errors`: 0 ok, 1 failed, 2 usage, 3 the daemon is not running, 4 refused, 78 configuration.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import click

from edgetune.cli.base import LazyGroup
from edgetune.errors import EXIT_FAILED, EXIT_OK, EdgetuneError

_INTERRUPTED = 130  # what shells give a program that Ctrl-C ended

VERBS = {
    "run": "edgetune.cli.service:run",
    "status": "edgetune.cli.status:status",
    "doctor": "edgetune.cli.doctor:doctor",
    "config": "edgetune.cli.configure:config",
    "reload": "edgetune.cli.service:reload",
    "train": "edgetune.cli.rounds:train",
    "pause": "edgetune.cli.rounds:pause",
    "resume": "edgetune.cli.rounds:resume",
    "cancel": "edgetune.cli.rounds:cancel",
    "rounds": "edgetune.cli.rounds:rounds",
    "models": "edgetune.cli.models:models",
    "data": "edgetune.cli.data:data",
    "predict": "edgetune.cli.predict:predict",
    "simulate": "edgetune.cli.simulate:simulate",
    "bench": "edgetune.cli.bench:bench",
    "prune": "edgetune.cli.prune:prune",
    "compress": "edgetune.cli.compress:compress",
    "events": "edgetune.cli.service:events",
    "version": "edgetune.cli.service:version",
}


@click.group(
    cls=LazyGroup, lazy=VERBS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
def group() -> None:
    """
    Prunes and fine-tunes the CNN this board serves to the images this board sees.

    First steps on a board: `edgetune doctor` says what is missing, `edgetune models import` makes the first model, the service
    (`systemctl start edgetune`, or `edgetune run`) serves it, `edgetune status` says what happens. Without a board: `prune` and
    `compress` make a model smaller here and now.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = group.main(args=words, prog_name="edgetune", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        return _INTERRUPTED
    except EdgetuneError as error:
        _complain(error, as_json="--json" in words)
        return error.exit_code
    except BrokenPipeError:  # `edgetune events | head`: nobody reads on, which is no fault
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        hint = "run it with sudo, or as the service's user" if isinstance(error, PermissionError) else ""
        _complain(EdgetuneError(f"{name}{error.strerror or error}", hint=hint), as_json="--json" in words)
        return EXIT_FAILED
    return code if isinstance(code, int) else EXIT_OK


def _complain(error: EdgetuneError, *, as_json: bool) -> None:
    """One sentence and the way out on stderr; with --json the same on stdout for the program that reads it."""
    click.echo(f"edgetune: {error.message}", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)
    if as_json:
        fields = {"code": error.code, "message": error.message, "hint": error.hint}
        click.echo(json.dumps({"error": fields}, ensure_ascii=False))
