"""`edgetune data`: ls, next, stats, label, accept, refuse, quarantine, purge, export, backup."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from edgetune import units
from edgetune.cli.base import (
    Group,
    absolute,
    columns,
    emit,
    read_config,
    state_dir_of,
    with_config,
    with_json,
    with_socket,
)
from edgetune.cli.words import ago, count, mark_words
from edgetune.client import Client
from edgetune.errors import DaemonNotRunningError, UsageError

_LEFT_OUT = {  # what becomes of a sample whose class no round learns
    "pending": "the model does not know this class: rounds leave it out until edgetune data accept {0}",
    "refused": "this class is refused: rounds leave it out until edgetune data accept {0}",
}


@click.group(cls=Group)
def data() -> None:
    """Look at, label and remove the samples on this board."""


@data.command()
@with_socket
@with_json
@click.option("--label", help="Only this class.")
@click.option("--split", type=click.Choice(["training", "validation", "holdout"]), help="Only this part.")
@click.option("--unlabelled", is_flag=True, help="Only samples without a label.")
@click.option("--limit", "-n", type=click.IntRange(min=1, max=10_000), default=50, show_default=True, help="How many.")
@click.option("--offset", type=click.IntRange(min=0), default=0, help="Leave out this many first.")
def ls(
    client: Client, *, as_json: bool, label: str | None, split: str | None, unlabelled: bool, limit: int, offset: int
) -> None:
    """List samples."""
    labelled = False if unlabelled else None
    found = client.get("/v1/data/samples", label=label, split=split, labelled=labelled, limit=limit, offset=offset)
    lines = [("sample", "class", "says", "split", "taken", "from")]
    lines += [
        (
            str(row.get("id", row.get("sample_id"))),
            row.get("label") or "-",
            row.get("label_source") or "-",
            row["split"],
            ago(row.get("taken_at_s")),
            str(row.get("origin") or ""),
        )
        for row in found
    ]
    emit(found, columns(lines, right=(0,)) if found else "no such sample", as_json=as_json)


@data.command("next")
@with_socket
@with_json
@click.option("--count", "-n", type=click.IntRange(min=1, max=100), default=20, show_default=True, help="How many.")
@click.option(
    "--save",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also write their images there, named by their numbers, to look at; root and the admin group may.",
)
def next_(client: Client, *, as_json: bool, count: int, save: Path | None) -> None:
    """Say which samples to label next. Evenly over what the served model takes them for, the least labelled guess first."""
    if save is not None and save.exists() and (not save.is_dir() or any(save.iterdir())):
        raise UsageError(f"{save} is there and not empty", hint="name a new directory")
    answer = client.get("/v1/data/next", count=count)
    if save is not None:
        _save_images(client, [row["sample"] for row in answer["samples"]], save)
    lines = [("sample", "the model says", "why")]
    for row in answer["samples"]:
        guess = "-" if row["guess"] is None else f"{row['guess']} ({row['confidence']:.0%})"
        guess += f" ({mark_words(row['mark'])})" if row.get("mark") else ""
        lines.append((str(row["sample"]), guess, row["why"]))
    looks = "it looks at new ones while no round trains and the verdict is run (triggers.watch_interval)"
    words = f"no unlabelled training sample has an answer of the served model yet: {looks}"
    if answer["samples"]:
        words = f"{columns(lines, right=(0,))}\n"
        if len(answer["samples"]) < count:
            words += (
                f"\nno more than these: the served model has answered {answer['answered']:,} unlabelled training samples, "
                f"and one of a group is asked about; {looks}"
            )
        where = "see what they show with: --save DIR" if save is None else f"their images are in {save}"
        words += f"\n{where}\nlabel them with: edgetune data label SAMPLE CLASS"
    emit(answer, words, as_json=as_json)


def _save_images(client: Client, samples: Sequence[int], directory: Path) -> None:
    """Write each sample's image as NUMBER.webp, or as what it was dropped as."""
    from edgetune.store.copying import suffix_of

    for sample in samples:
        image = client.get(f"/v1/data/samples/{sample}/image")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{sample}{suffix_of(image)}").write_bytes(image)


@data.command()
@with_socket
@with_json
def stats(client: Client, *, as_json: bool) -> None:
    """Count the samples of each class and split."""
    buffer = client.get("/v1/status")["buffer"]
    lines = [("class", "status", "training", "validation", "hold-out", "new")]
    lines += [
        (
            entry["label"],
            entry["status"],
            *(str(entry[key]) for key in ("training", "validation", "holdout", "labelled_since_round")),
        )
        for entry in buffer["classes"]
    ]
    used, quota = units.show(buffer["stored_bytes"], "bytes"), units.show(buffer["quota_bytes"], "bytes")
    words = (
        f"{count(buffer['samples'], 'sample')}, {buffer['unlabelled']:,} without a label; {used} of {quota};"
        f" {buffer['duplicates']:,} duplicates, {buffer['evicted']:,} evicted, {buffer['quarantined']:,} quarantined"
    )
    emit(buffer, f"{words}\n\n{columns(lines, right=(2, 3, 4, 5))}" if len(lines) > 1 else words, as_json=as_json)


@data.command()
@with_socket
@with_json
@click.argument("sample")
@click.argument("label")
def label(client: Client, *, sample: str, label: str, as_json: bool) -> None:
    """Say what SAMPLE (its number or SHA-256) shows."""
    answer = client.post(f"/v1/data/samples/{quote(sample, safe='')}/label", {"label": label})
    words = f"sample {sample} is {label}"
    if answer.get("class_status") in _LEFT_OUT:
        words += f"\n{_LEFT_OUT[answer['class_status']].format(label)}"
    emit(answer, words, as_json=as_json)


@data.command()
@with_socket
@with_json
@click.argument("name", metavar="CLASS")
def accept(client: Client, *, name: str, as_json: bool) -> None:
    """Let rounds learn a class that the model does not know."""
    answer = client.post(f"/v1/data/classes/{quote(name, safe='')}/accept")
    emit(answer, f"class {name} is accepted; rounds may learn it", as_json=as_json)


@data.command()
@with_socket
@with_json
@click.argument("name", metavar="CLASS")
def refuse(client: Client, *, name: str, as_json: bool) -> None:
    """Keep a class out of rounds; its samples stay."""
    answer = client.post(f"/v1/data/classes/{quote(name, safe='')}/refuse")
    words = f"class {name} is refused; remove its samples with: edgetune data purge --label {name}"
    if answer.get("in_round") is not None:
        words += f"\nround {answer['in_round']} learns it and will not be promoted; end it now with: edgetune cancel"
    emit(answer, words, as_json=as_json)


@data.command()
@with_socket
@with_config
@with_json
def quarantine(client: Client, config_path: Path, *, as_json: bool) -> None:
    """List the files that could not be used, with the reasons."""
    try:
        state_dir = state_dir_of(client)
    except DaemonNotRunningError:
        state_dir = read_config(config_path).paths.state_dir
    found = _quarantined(state_dir / "quarantine" / "inbox")
    lines = [("file", "reason"), *((entry["file"], entry["reason"]) for entry in found)]
    words = columns(lines) if found else "the quarantine is empty"
    emit(
        found,
        f"{words}\n\n(in {state_dir / 'quarantine' / 'inbox'}; a corrected file goes back into the inbox)"
        if found
        else words,
        as_json=as_json,
    )


def _quarantined(directory: Path) -> list[dict[str, Any]]:
    if not directory.is_dir():
        return []
    found = []
    for path in sorted(directory.rglob("*.reason.json")):
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            told = {}
        reason = str(told.get("reason", "unknown")) if isinstance(told, dict) else "unknown"
        found.append({"file": str(path.relative_to(directory)).removesuffix(".reason.json"), "reason": reason})
    return found


@data.command()
@with_socket
@with_json
@click.option("--sample", type=int, help="One sample, by its number.")
@click.option("--digest", help="One sample, by its SHA-256.")
@click.option("--label", help="All samples of a class.")
@click.option("--everything", is_flag=True, help="The whole buffer.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def purge(
    client: Client,
    *,
    as_json: bool,
    sample: int | None,
    digest: str | None,
    label: str | None,
    everything: bool,
    yes: bool,
) -> None:
    """Remove samples for good. They are overwritten in the database's free pages and its log too."""
    chosen: dict[str, object] = {
        "sample_id": sample,
        "digest": digest,
        "label": label,
        "everything": everything or None,
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if len(chosen) != 1:
        raise UsageError("say exactly one of --sample, --digest, --label, --everything")
    if not yes:
        what = "all samples" if everything else f"all samples of {label}" if label else "this sample"
        click.confirm(f"Remove {what} for good?", abort=True, err=True)
    answer = client.post("/v1/data/purge", chosen)
    emit(answer, f"removed: {answer['removed']}", as_json=as_json)


@data.command()
@with_socket
@with_json
@click.argument("directory", type=click.Path(path_type=Path))
def export(client: Client, *, directory: Path, as_json: bool) -> None:
    """Write all samples as DIRECTORY/class/image, with a manifest. The daemon writes, so it needs the right to."""
    answer = client.post("/v1/data/export", {"directory": absolute(directory)})
    emit(answer, f"{count(answer['samples'], 'sample')} written to {answer['directory']}", as_json=as_json)


@data.command()
@with_socket
@with_json
@click.argument("path", type=click.Path(path_type=Path))
def backup(client: Client, *, path: Path, as_json: bool) -> None:
    """Copy the database to the file PATH. Consistent while the service runs."""
    answer = client.post("/v1/data/backup", {"path": absolute(path)})
    emit(answer, f"written to {answer['path']}", as_json=as_json)
