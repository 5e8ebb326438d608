"""From an architecture, weights and class names to a published factory model."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from edgetune.errors import ModelError, UsageError
from edgetune.learn.export import artefact_files, check_export, draft_manifest, selftest_images, stage
from edgetune.learn.network import Network, load_strictly, new_network
from edgetune.serve.engine import Engine, time_interleaved
from edgetune.store.models import publish
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
    _check_classes(classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = new_network(architecture, len(classes), builders)
    if weights is not None:
        load_weights(network, read_weights(weights), classes, new_head=new_head)
    elif not allow_random:
        raise UsageError("a factory model needs weights", hint="give --weights FILE")
    beat()
    files = artefact_files(network, preprocess, beat)
    manifest = replace(
        draft_manifest(network, preprocess, classes, len(files["model.onnx"])),
        version=version,
        kind="factory",
        generation=generation,
        source=weights.name if weights is not None else "random weights",
    )
    with tempfile.TemporaryDirectory(prefix="edgetune-import-") as scratch:
        stage(Path(scratch), files, manifest)
        engine = Engine.load(Path(scratch), threads=threads)
        check_export(engine, network, preprocess)
        (latency,) = time_interleaved([engine], selftest_images(preprocess), runs=timing_runs)
    directory = publish(models_dir, version, files, replace(manifest, latency=latency))
    return from_json(Manifest, (directory / "manifest.json").read_bytes())


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
    Load a checkpoint of somebody else's: strict but for what such files rightly leave out.

    A "module." prefix (DataParallel) is taken off; batch norm's counters and constants that the architecture itself
    fixes (zero-padded shortcuts) may be missing.

    Raises:
        ModelError: anything else is missing, left over, or of another shape.
    """
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
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
