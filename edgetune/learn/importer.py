"""From an architecture, weights and class names, or from an exported directory, to a published factory model."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from edgetune.errors import ArtefactError, ModelError, UsageError
from edgetune.learn.export import artefact_files, check_export, draft_manifest, selftest_images, stage
from edgetune.learn.network import (
    NETWORK_FILE,
    WEIGHTS_FILE,
    Network,
    load_network,
    load_strictly,
    new_network,
    without_auxiliary_heads,
)
from edgetune.serve.engine import Engine
from edgetune.serve.timing import time_interleaved
from edgetune.store.models import MANIFEST, MANIFEST_HASH, publish
from edgetune.types import Manifest, Preprocess
from edgetune.wire import from_json

_TORCH_SAFE_LOAD = (2, 6)  # CVE-2025-32434: before it, weights_only=True could run code from the file


def import_model(
    models_dir: Path,
    *,
    architecture: str,
    weights: Path | None,
    classes: Sequence[str],
    preprocess: Preprocess,
    version: int,
    allow_random: bool = False,
    new_head: bool = False,
    builders: Mapping[str, str] | None = None,
    generation: int = 0,
    threads: int = 1,
    timing_runs: int = 20,
    beat: Callable[[], None] = lambda: None,
) -> Manifest:
    """
    Publish a factory model.

    Args:
        models_dir: the directory of all versions.
        architecture: see `learn.network`.
        weights: a .safetensors file, or a .pt/.pth state dict; None only with `allow_random`.
        classes: names of the outputs, in order.
        preprocess: the size and normalisation the weights were trained with.
        version: its number, from `Models.next_version`.
        allow_random: publish untrained weights (seed 0) when there is no file.
        new_head: the file's output layer is for other classes: leave it out and start one for `classes`.
        builders: reserved names -> "package.module:function".
        generation: of promotions by hand.
        threads: the serving engine's, for the latency.
        timing_runs: timed predictions.
        beat: called between the parts of the work.

    Returns:
        The manifest as published.

    Raises:
        UsageError: the classes make no sense, or no weights were given.
        ModelError: the file cannot be read or does not fit.
    """
    network = assemble(
        architecture,
        weights=weights,
        classes=classes,
        allow_random=allow_random,
        new_head=new_head,
        builders=builders,
    )
    beat()
    return _publish_factory(
        models_dir,
        network,
        classes,
        preprocess,
        version=version,
        source=weights.name if weights is not None else "random weights",
        generation=generation,
        threads=threads,
        timing_runs=timing_runs,
        beat=beat,
    )


def adopt_model(
    models_dir: Path,
    directory: Path,
    *,
    version: int,
    builders: Mapping[str, str] | None = None,
    generation: int = 0,
    threads: int = 1,
    timing_runs: int = 20,
    beat: Callable[[], None] = lambda: None,
) -> Manifest:
    """
    Publish what `edgetune prune` or `edgetune models export` wrote as a factory model.

    The graph is exported anew: what is served is made here, of the network and its weights. How good the model was
    elsewhere, and what was cut from which network, stays behind: from now on levels are relative to this one.

    Args:
        models_dir: the directory of all versions.
        directory: with manifest.json, network.json and weights.safetensors.
        version: its number, from `Models.next_version`.
        builders, generation, threads, timing_runs, beat: as for `import_model`.

    Returns:
        The manifest as published.

    Raises:
        ModelError: a file is missing, damaged, or does not fit the others.
    """
    manifest, network = read_artefact(directory, builders)
    beat()
    return _publish_factory(
        models_dir,
        network,
        manifest.classes,
        manifest.preprocess,
        version=version,
        source=directory.resolve().name,
        generation=generation,
        threads=threads,
        timing_runs=timing_runs,
        beat=beat,
        marks=manifest.marks,
    )


def read_artefact(directory: Path, builders: Mapping[str, str] | None = None) -> tuple[Manifest, Network]:
    """
    Read an exported directory, checked against the hashes that it was written with.

    Raises:
        ModelError: it is not one, a file is missing or damaged, or they do not fit together.
    """
    text = _read_part(directory, MANIFEST)
    try:
        manifest = from_json(Manifest, text)
    except ValueError as error:
        raise ModelError(f"{directory / MANIFEST} cannot be read: {error}") from error
    recorded = _read_part(directory, MANIFEST_HASH).decode("ascii", "replace").strip()
    for name, expected in {MANIFEST: recorded, **manifest.files}.items():
        if Path(name).name != name or hashlib.sha256(_read_part(directory, name)).hexdigest() != expected:
            raise ArtefactError(
                f"{directory / name} is damaged: its SHA-256 is not the recorded one",
                hint="copy the directory again, or export it again",
            )
    for name in (NETWORK_FILE, WEIGHTS_FILE):
        if name not in manifest.files:
            raise ArtefactError(f"{directory / MANIFEST} does not name {name}")
    network = load_network(directory, builders)
    _check_classes(manifest.classes)
    if network.num_classes != len(manifest.classes):
        raise ModelError(f"{directory} has {network.num_classes} outputs but {len(manifest.classes)} class names")
    return manifest, network


def _read_part(directory: Path, name: str) -> bytes:
    try:
        return (directory / name).read_bytes()
    except OSError as error:
        raise ModelError(
            f"{directory} has no {name} that can be read: {error.strerror}",
            hint="name a directory that `edgetune models export` or `edgetune prune` wrote",
        ) from error


def assemble(
    architecture: str,
    *,
    weights: Path | None,
    classes: Sequence[str],
    allow_random: bool = False,
    new_head: bool = False,
    builders: Mapping[str, str] | None = None,
) -> Network:
    """
    Build an architecture and load its weights; see `import_model`.

    Raises:
        UsageError: the classes make no sense, or no weights were given.
        ModelError: the file cannot be read or does not fit.
    """
    _check_classes(classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = new_network(architecture, len(classes), builders)
    if weights is not None:
        load_weights(network, read_weights(weights), classes, new_head=new_head)
    elif not allow_random:
        raise UsageError("a factory model needs weights", hint="give --weights FILE")
    return network


def _publish_factory(
    models_dir: Path,
    network: Network,
    classes: Sequence[str],
    preprocess: Preprocess,
    *,
    version: int,
    source: str,
    generation: int,
    threads: int,
    timing_runs: int,
    beat: Callable[[], None],
    marks: Mapping[str, str] | None = None,
) -> Manifest:
    files = artefact_files(network, preprocess, beat)
    manifest = replace(
        draft_manifest(network, preprocess, classes, len(files["model.onnx"])),
        version=version,
        kind="factory",
        generation=generation,
        source=source,
        marks=dict(marks or {}),
    )
    with tempfile.TemporaryDirectory(prefix="edgetune-import-") as scratch:
        stage(Path(scratch), files, manifest)
        engine = Engine.load(Path(scratch), threads=threads)
        check_export(engine, network, preprocess)
        (latency,) = time_interleaved([engine], selftest_images(preprocess), runs=timing_runs)
    directory = publish(models_dir, version, files, replace(manifest, latency=latency))
    return from_json(Manifest, (directory / MANIFEST).read_bytes())


def _check_classes(classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise UsageError(f"a model needs at least two classes, not {len(classes)}")
    twice = sorted({label for label in classes if list(classes).count(label) > 1})
    if twice:
        raise UsageError(f"class names occur twice: {', '.join(twice)}")
    if any(not label.strip() for label in classes):
        raise UsageError("a class name is empty")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """
    Read tensors from .safetensors, or once from a .pt/.pth state dict, never running code from the file.

    Raises:
        ModelError: it cannot be read, this torch is too old to read a .pt safely, or it holds no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _refuse_unsafe_torch(path, torch.__version__)
        return _state_dict(torch.load(path, map_location="cpu", weights_only=True), path)
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    except Exception as error:
        raise ModelError(
            f"{path} cannot be read as weights: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            hint="save the state dict alone (torch.save(model.state_dict(), ...)), or convert it to safetensors",
        ) from error


def _refuse_unsafe_torch(path: Path, torch_version: str) -> None:
    match = re.match(r"(\d+)\.(\d+)", torch_version)
    if match is None or (int(match[1]), int(match[2])) < _TORCH_SAFE_LOAD:
        raise ModelError(
            f"{path} is a pickle, and torch {torch_version} cannot read one safely (CVE-2025-32434)",
            hint="use torch 2.6 or later, or convert the file to safetensors on another machine",
        )


def _state_dict(loaded: Any, path: Path) -> dict[str, torch.Tensor]:
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise ModelError(f"{path} holds no state dict (names and tensors)")
    return {str(name): tensor for name, tensor in loaded.items()}


def load_weights(
    network: Network, tensors: Mapping[str, torch.Tensor], classes: Sequence[str], *, new_head: bool = False
) -> None:
    """
    Load a checkpoint of somebody else's: strict but for what such files rightly leave out, or have too much.

    Auxiliary heads of GoogLeNet and Inception v3 are passed over, a "module." prefix (DataParallel) is taken off; batch
    norm's counters and constants that the architecture itself fixes (zero-padded shortcuts) may be missing.

    Raises:
        ModelError: anything else is missing, left over, or of another shape.
    """
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    tensors = without_auxiliary_heads(network.architecture, tensors)
    constants = {name for name, p in network.module.named_parameters() if not p.requires_grad}
    own = network.module.state_dict()
    head_names = {name for name in own if name.rpartition(".")[0] == network.head}
    if new_head:
        tensors = {name: tensor for name, tensor in tensors.items() if name not in head_names}
    else:
        _check_head(network, tensors, classes)
    may_miss = constants | {n for n in own if n.endswith("num_batches_tracked")} | (head_names if new_head else set())
    filled = {name: tensor for name, tensor in own.items() if name in may_miss}
    load_strictly(network.module, {**filled, **tensors})


def _check_head(network: Network, tensors: Mapping[str, torch.Tensor], classes: Sequence[str]) -> None:
    weight = tensors.get(f"{network.head}.weight")
    if weight is not None and weight.shape[0] != len(classes):
        raise ModelError(
            f"the weights have {weight.shape[0]} outputs but {len(classes)} class names were given",
            hint="give the classes they were trained with, or ask for a new head",
        )
