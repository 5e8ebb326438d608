"""Models in the state directory without the daemon: import, export, sweep, under the lock that the daemon holds."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.client import Client
from edgetune.config import Config, serving_threads
from edgetune.errors import (
    ConflictError,
    DaemonNotRunningError,
    EdgetuneError,
    MissingLibraryError,
    NotFoundError,
    UsageError,
)
from edgetune.store import durable
from edgetune.store.history import read_state
from edgetune.store.models import Models
from edgetune.types import Manifest, Preprocess

_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
# What describes a model that is made from an architecture, and how the command line calls it.
_OF_ARCHITECTURE = {
    "arch": "--arch",
    "weights": "--weights",
    "classes_file": "--classes",
    "size": "--size",
    "resize": "--resize",
    "mean": "--mean",
    "std": "--std",
    "new_head": "--new-head",
    "is_random": "--random",
}


def open_models(state_dir: Path) -> Models:
    """The versions of a state directory."""
    return Models(state_dir / "models", quarantine=state_dir / "quarantine" / "models")


@contextlib.contextmanager
def locked(directory: Path, *, hint: str = "stop it first: systemctl stop edgetune") -> Iterator[Path]:
    """
    Hold a directory alone, the state directory as the daemon does; the file that says so is made in it, and given.

    Raises:
        ConflictError: the daemon, or another command, holds it.
    """
    durable.make_dir(directory)
    path = directory / "lock"
    with path.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConflictError(f"a running edgetune holds {directory}", hint=hint) from None
        yield path


@contextlib.contextmanager
def learning_libraries(doing: str) -> Iterator[None]:
    """
    For the imports of what a serving board may do without.

    Raises:
        MissingLibraryError: one is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise MissingLibraryError(
            f"{doing} needs {error.name or error}, which is not installed",
            hint="install the extra: pip install 'edgetune[train]'",
        ) from error


def import_factory_model(client: Client, config: Config, given: Mapping[str, Any]) -> dict[str, Any]:
    """
    Import a model, make it the factory model and the current one, and let a daemon without a model serve it.

    Args:
        client: of the socket at which a daemon may be running.
        config: tells the state directory when no daemon does.
        given: the options of `edgetune models import`.

    Raises:
        UsageError: the options do not go together, or one of them cannot be read.
        ConflictError: a daemon serves a model already, or holds the directory without answering.
        ModelError: the weights do not fit, or the exported directory is damaged.
    """
    publish = _adoption(given) if given["directory"] is not None else _import(given)
    try:
        served, state_dir = client.get("/v1/status")["served"], Path(client.get("/v1/config")["paths"]["state_dir"])
    except DaemonNotRunningError:
        state_dir = config.paths.state_dir
        with locked(state_dir):
            return {**_publish(publish, state_dir, config, given["reference"]), "is_served": False}
    if served is not None:
        raise ConflictError(
            f"the daemon serves version {served['version']} already",
            hint="to start over with another factory model: systemctl stop edgetune, import, systemctl start edgetune",
        )
    answer = _publish(publish, state_dir, config, given["reference"])
    client.post("/v1/reload")
    return {**answer, "is_served": True}


def check_options(given: Mapping[str, Any], *, directory: str | None, needed: Sequence[str]) -> None:
    """
    A model is a directory, or an architecture with what belongs to it; never both.

    Args:
        given: the options of the command line by their parameters' names.
        directory: how the command line names the directory; None: an architecture was given.
        needed: parameters that an architecture cannot do without.

    Raises:
        UsageError: an option is too many, or missing.
    """
    if directory is not None:
        extra = [option for name, option in _OF_ARCHITECTURE.items() if given.get(name)]
        if extra:
            raise UsageError(f"{', '.join(extra)} cannot stand beside {directory}: the directory says that itself")
        return
    missing = [_OF_ARCHITECTURE[name] for name in needed if not given.get(name)]
    if missing:
        raise UsageError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing",
            hint="an architecture needs them; a directory that `edgetune models export` wrote does not",
        )


def _import(given: Mapping[str, Any]) -> Callable[..., Manifest]:
    """`import_model` with everything that the operator said."""
    check_options(given, directory=None, needed=("arch", "classes_file"))
    preprocess = make_preprocess(given["arch"], given["size"], given["resize"], given["mean"], given["std"])
    classes = read_classes(given["classes_file"])
    with learning_libraries("importing a model"):
        from edgetune.learn.importer import import_model
    return functools.partial(
        import_model,
        architecture=given["arch"],
        weights=given["weights"],
        classes=classes,
        preprocess=preprocess,
        allow_random=given["is_random"],
        new_head=given["new_head"],
    )


def _adoption(given: Mapping[str, Any]) -> Callable[..., Manifest]:
    """`adopt_model` of the directory that the operator named."""
    check_options(given, directory="--from", needed=())
    with learning_libraries("importing a model"):
        from edgetune.learn.importer import adopt_model
    return functools.partial(adopt_model, directory=given["directory"])


def _publish(
    publish: Callable[..., Manifest], state_dir: Path, config: Config, reference: Path | None
) -> dict[str, Any]:
    models = open_models(state_dir)
    models.recover()
    version = models.next_version()
    manifest = publish(
        state_dir / "models",
        version=version,
        builders=config.builders,
        threads=serving_threads(config),
    )
    models.verify(version)
    try:
        references = _keep_reference(state_dir, reference, manifest)
    except EdgetuneError:
        durable.remove_dir(models.path(version))  # nothing is imported in half
        raise
    models.set_factory(version)
    models.promote(version)
    _give_to_owner(state_dir)
    return {
        "version": version,
        "architecture": manifest.architecture,
        "classes": len(manifest.classes),
        "parameters": manifest.cost.parameters,
        "latency_ms": manifest.latency.median_ms if manifest.latency else None,
        "reference_images": references,
    }


def _keep_reference(state_dir: Path, directory: Path | None, manifest: Manifest) -> int:
    """Those of a former factory model say nothing about this one."""
    from edgetune.learn.reference import REFERENCE_FILE, write_reference

    if directory is None:
        durable.remove_file(state_dir / REFERENCE_FILE)
        return 0
    return write_reference(state_dir / REFERENCE_FILE, directory, manifest.classes, manifest.preprocess)


def _give_to_owner(state_dir: Path) -> None:
    """What root has written has to belong to the service's user, or the daemon can never remove it."""
    owner = state_dir.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    for root in (state_dir / "models", state_dir / "quarantine", state_dir / "reference.npz"):
        for path in (root, *root.rglob("*")) if root.exists() else ():
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
    os.chown(state_dir / "lock", owner.st_uid, owner.st_gid)


def export_model(state_dir: Path, version: int, directory: Path) -> list[str]:
    """
    Copy a version's files, verified, and return their names.

    Raises:
        NotFoundError: no such version.
        ArtefactError: it is damaged.
    """
    models = open_models(state_dir)
    if version not in models.versions():
        raise NotFoundError(f"there is no version {version}", hint="see: edgetune models ls")
    models.verify(version)
    source = models.path(version)
    directory.mkdir(parents=True)
    names = sorted(path.name for path in source.iterdir() if path.is_file())
    for name in names:
        durable.write_atomic(directory / name, (source / name).read_bytes())
    return names


def sweep(state_dir: Path, *, keep: int, dry_run: bool) -> list[int]:
    """Remove all versions but the newest `keep`, the served one, a probation's fallback and the factory model."""
    with locked(state_dir):
        models = open_models(state_dir)
        trial = read_state(state_dir / "edgetune.db", "probation")
        protect = () if trial is None else (int(trial["fallback"]),)
        work = models.sweepable if dry_run else models.sweep
        return work(keep=keep, protect=protect)


def read_classes(path: Path) -> list[str]:
    """Class names, one a line; blank lines and spaces around do not count."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text", hint="one class name a line") from None
    return [name for name in names if name]


def make_preprocess(
    architecture: str, size: str | None, resize: str | None, mean: str | None, std: str | None
) -> Preprocess:
    """
    The model's input from what the operator said, and what its family is used to.

    Raises:
        UsageError: a size or a triple of numbers cannot be read.
    """
    is_cifar = architecture.startswith("cifar:")
    height, width = _read_size(size or ("32" if is_cifar else "224"))
    family = Preprocess(height=height, width=width)
    return Preprocess(
        height=height,
        width=width,
        resize=resize or family.resize,
        mean=_read_triple("--mean", mean) if mean else _CIFAR_MEAN if is_cifar else family.mean,
        std=_read_triple("--std", std) if std else _CIFAR_STD if is_cifar else family.std,
    )


def _read_size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(
        part.isascii() and part.isdigit() and 8 <= int(part) <= 4096 for part in parts
    ):
        raise UsageError(f"--size is {text!r}; write 224 or 240x320 (height x width), from 8 to 4096")
    return int(parts[0]), int(parts[-1])


def _read_triple(option: str, text: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} is {text!r}; write three numbers such as 0.485,0.456,0.406") from None
    if not all(0 <= value <= 1 for value in (red, green, blue)) or (option == "--std" and 0 in (red, green, blue)):
        raise UsageError(f"{option} is {text!r}; the numbers are of RGB between 0 and 1")
    return red, green, blue
