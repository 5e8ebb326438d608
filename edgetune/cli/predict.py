"""`edgetune predict`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edgetune.cli.base import with_json, with_socket
from edgetune.cli.words import mark_words
from edgetune.client import Client
from edgetune.errors import EXIT_FAILED, EXIT_OK, ImageError, TooLargeError


@click.command()
@with_socket
@with_json
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--top-k", "-k", type=click.IntRange(min=1, max=1000), default=3, show_default=True, help="How many classes."
)
@click.option("--no-record", is_flag=True, help="Do not keep the predictions for feedback and probation.")
def predict(client: Client, *, files: tuple[Path, ...], top_k: int, no_record: bool, as_json: bool) -> int:
    """Ask the served model what image FILES show. A bad image does not stop the rest."""
    answers, code = [], EXIT_OK
    for path in files:
        try:
            answer = client.post("/v1/predict", path.read_bytes(), top_k=top_k, record=not no_record)
        except (ImageError, TooLargeError) as error:
            code = EXIT_FAILED
            answers.append({"file": str(path), "error": {"code": error.code, "message": error.message}})
            click.echo(f"{path}: {error.message}", err=True)
            continue
        answers.append({"file": str(path), **answer})
        if not as_json:
            click.echo(_words(path, answer))
    if as_json:
        click.echo(json.dumps(answers, ensure_ascii=False, indent=2))
    return code


def _words(path: Path, answer: Mapping[str, Any]) -> str:
    top = ", ".join(
        f"{entry['class']} {entry['probability']:.1%}"
        + (f" ({mark_words(entry['mark'])})" if entry.get("mark") else "")
        for entry in answer["top"]
    )
    top = f"rejected, nobody is sure: {top}" if answer.get("rejected") else top
    return f"{path}: {top}  (version {answer['model_version']}, {answer['latency_ms']:.1f} ms, id {answer['prediction_id']})"
