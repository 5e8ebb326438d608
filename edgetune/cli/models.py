"""`edgetune models`: ls, show, diff, promote, rollback, import, export, gc."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from edgetune.cli import installing
from edgetune.cli.base import Group, columns, emit, read_config, state_dir_of, with_config, with_json, with_socket
from edgetune.cli.words import marked, percent
from edgetune.client import Client
from edgetune.errors import UsageError


def with_architecture_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what belongs to an architecture: weights, class names, and the input they were trained with."""
    options = (
        click.option(
            "--weights",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A .safetensors file, or a .pt state dict.",
        ),
        click.option(
            "--classes",
            "classes_file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Class names, one a line, in the order of the outputs.",
        ),
        click.option("--size", metavar="N|HxW", help="Input size in pixels. [default: 32 for cifar:, else 224]"),
        click.option(
            "--resize",
            type=click.Choice(["stretch", "center_crop"]),
            help="How an image comes to that size. [default: stretch]",
        ),
        click.option(
            "--mean",
            metavar="R,G,B",
            help="Mean of the training images. [default: CIFAR's for cifar:, else ImageNet's]",
        ),
        click.option("--std", metavar="R,G,B", help="Their standard deviation."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(cls=Group)
def models() -> None:
    """Look at, change and import model versions."""


@models.command()
@with_socket
@with_json
def ls(client: Client, *, as_json: bool) -> None:
    """List all versions; * is the one served."""
    found = client.get("/v1/models")
    lines: list[tuple[str, ...]] = [("", "version", "kind", "parent", "accuracy", "latency", "parameters", "published")]
    lines += [_row(entry) for entry in found]
    words = columns(lines, right=(1, 3, 4, 5, 6)) if found else "there is no model yet: edgetune models import"
    emit(found, words, as_json=as_json)


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    number = str(entry["version"])
    if entry.get("quarantined"):
        return ("!", number, "quarantined", "", "", "", "", str(entry["quarantined"]))
    flag = "*" if entry.get("is_served") else ""
    kind = f"{entry['kind']}{' (in use)' if entry.get('is_factory') and entry['kind'] == 'factory' else ''}"
    parent = "" if entry["parent"] is None else str(entry["parent"])
    latency = "" if not entry.get("latency") else f"{entry['latency']['median_ms']:.2f} ms"
    accuracy = _accuracy(entry)
    shown = "" if accuracy is None else percent(accuracy)
    return (flag, number, kind, parent, shown, latency, f"{entry['cost']['parameters']:,}", str(entry["created_at"]))


def _accuracy(entry: Mapping[str, Any]) -> float | None:
    comparison = entry.get("comparison")
    if not comparison or not comparison["candidate"]["count"]:
        return None
    return float(comparison["candidate"]["correct"]) / float(comparison["candidate"]["count"])


@models.command()
@with_socket
@with_json
@click.argument("version", type=int)
def show(client: Client, *, version: int, as_json: bool) -> None:
    """Tell everything about one version."""
    entry = client.get(f"/v1/models/{version}")
    rows = _facts(entry)
    words = columns([(name, value) for name, value in rows])
    scores = (entry.get("comparison") or {}).get("candidate", {}).get("per_class", {})
    base = (entry.get("comparison") or {}).get("base", {}).get("per_class", {})
    if scores:
        lines = [("class", "hold-out", "before", "after")]
        lines += [
            (label, str(score["count"]), _share(base.get(label)), _share(score))
            for label, score in sorted(scores.items())
        ]
        words += f"\n\n{columns(lines, right=(1, 2, 3))}"
    emit(entry, words, as_json=as_json)


def _share(score: Mapping[str, Any] | None) -> str:
    return percent(score["correct"] / score["count"]) if score and score["count"] else "-"


def _facts(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    cost, latency, pruning = entry["cost"], entry.get("latency"), entry.get("pruning")
    accuracy = _accuracy(entry)
    facts = [
        ("version", str(entry["version"])),
        ("kind", entry["kind"]),
        ("architecture", entry["architecture"]),
        ("parent", "" if entry["parent"] is None else str(entry["parent"])),
        ("round", "" if entry["round_id"] is None else str(entry["round_id"])),
        ("published", entry["created_at"]),
        (
            "classes",
            f"{len(entry['classes'])}: {', '.join(entry['classes'][:8])}{' ...' if len(entry['classes']) > 8 else ''}",
        ),
        ("marks", "; ".join(marked(entry.get("marks") or {}))),
        ("input", f"{entry['preprocess']['height']}x{entry['preprocess']['width']}, {entry['preprocess']['resize']}"),
        ("parameters", f"{cost['parameters']:,}"),
        ("MACs", f"{cost['macs']:,}"),
        ("accuracy", "" if accuracy is None else percent(accuracy)),
        (
            "latency",
            "" if not latency else f"{latency['median_ms']:.3f} ms (9 of 10 within {latency['p90_ms']:.3f} ms)",
        ),
        (
            "pruned",
            ""
            if not pruning
            else f"{percent(pruning['level_achieved'])} of the factory model's {pruning['level_of']} by {pruning['criterion']}",
        ),
        ("samples", f"{entry['sample_count']:,}" if entry.get("sample_count") else ""),
        ("source", entry.get("source", "")),
        ("model.onnx", entry["files"].get("model.onnx", "")),
    ]
    return [(name, value) for name, value in facts if value]


@models.command()
@with_socket
@with_json
@click.argument("old", type=int)
@click.argument("new", type=int)
def diff(client: Client, *, old: int, new: int, as_json: bool) -> None:
    """Compare two versions."""
    before, after = (client.get(f"/v1/models/{version}") for version in (old, new))
    mine, other = dict(_facts(before)), dict(_facts(after))
    changed = {
        name: [mine.get(name, ""), other.get(name, "")]
        for name in dict.fromkeys([*mine, *other])
        if mine.get(name) != other.get(name)
    }
    answer = {
        "changed": changed,
        "classes_added": [name for name in after["classes"] if name not in before["classes"]],
        "classes_removed": [name for name in before["classes"] if name not in after["classes"]],
    }
    lines = [("", str(old), str(new)), *((name, *values) for name, values in changed.items() if name != "version")]
    emit(answer, columns(lines), as_json=as_json)


@models.command()
@with_socket
@with_json
@click.argument("version", type=int)
def promote(client: Client, *, version: int, as_json: bool) -> None:
    """Serve this version from now on."""
    emit(client.post(f"/v1/models/{version}/promote"), f"version {version} is served now", as_json=as_json)


@models.command()
@with_socket
@with_json
def rollback(client: Client, *, as_json: bool) -> None:
    """Serve the version before this one again."""
    answer = client.post("/v1/rollback")
    emit(answer, f"version {answer['version']} is served now", as_json=as_json)


@models.command("import")
@with_socket
@with_config
@with_json
@click.option(
    "--from",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A directory that edgetune prune or models export wrote; it says everything else.",
)
@click.option(
    "--arch",
    metavar="NAME",
    help="cifar:resnet20, torchvision:mobilenet_v2, a key of builders, or package.module:function.",
)
@with_architecture_options
@click.option(
    "--reference",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder per class with images of what the model knows, to tell later what a round forgets; 20 of each are kept on this board.",
)
@click.option("--new-head", is_flag=True, help="The weights' last layer is for other classes: start a new one.")
@click.option("--random", "is_random", is_flag=True, help="Untrained weights, for trying things out.")
def import_(client: Client, config_path: Path, *, as_json: bool, **given: Any) -> None:
    """
    Make a first model, or take over one that is ready (--from).

    The one from an architecture, its weights and a list of classes; the other from a directory that edgetune prune, edgetune
    compress or models export wrote. Works without the daemon, and beside one that serves no model yet (which then serves it at once). To change the
    factory model of a running service, stop it first.
    """
    answer = installing.import_factory_model(client, read_config(config_path), given)
    where = "is served now" if answer["is_served"] else "will be served when the daemon starts"
    words = f"version {answer['version']} ({answer['architecture']}, {answer['parameters']:,} parameters, {answer['latency_ms']:.2f} ms) {where}"
    emit(answer, words, as_json=as_json)


@models.command()
@with_socket
@with_config
@with_json
@click.argument("version", type=int)
@click.argument("directory", type=click.Path(path_type=Path))
def export(client: Client, config_path: Path, *, version: int, directory: Path, as_json: bool) -> None:
    """Copy a version, checked, into a new directory. Safetensors, ONNX and JSON, no pickle."""
    if directory.exists():
        raise UsageError(f"{directory} exists already", hint="name a directory that does not exist yet")
    files = installing.export_model(_state_dir(client, config_path), version, directory)
    emit(
        {"version": version, "directory": str(directory), "files": files},
        f"version {version} is in {directory}",
        as_json=as_json,
    )


def _state_dir(client: Client, config_path: Path) -> Path:
    """As the running daemon has it, else as the configuration says."""
    from edgetune.errors import DaemonNotRunningError

    try:
        return state_dir_of(client)
    except DaemonNotRunningError:
        return read_config(config_path).paths.state_dir


@models.command()
@with_config
@with_json
@click.option("--keep", type=click.IntRange(min=1), help="Versions to keep. [default: serving.versions_kept]")
@click.option("--dry-run", is_flag=True, help="Only say which.")
def gc(config_path: Path, *, keep: int | None, dry_run: bool, as_json: bool) -> None:
    """Remove old versions while the daemon is stopped. It does so itself after each round."""
    config = read_config(config_path)
    removed = installing.sweep(config.paths.state_dir, keep=keep or config.serving.versions_kept, dry_run=dry_run)
    verb = "would be removed" if dry_run else "removed"
    emit(
        {"removed": removed, "dry_run": dry_run},
        f"{verb}: {', '.join(map(str, removed)) or 'nothing'}",
        as_json=as_json,
    )
