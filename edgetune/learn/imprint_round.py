"""
An imprint round: the served version with one output more for each new class, written from features and not trained.

    load -> imprint -> export -> measure -> time -> publish

It takes seconds and has no checkpoint: one that was stopped begins anew and ends with the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgetune.errors import NoSamplesError
from edgetune.learn.candidate import Candidate, needed_manifest
from edgetune.learn.control import Control
from edgetune.learn.data import LabelledImages, Normaliser, load_samples
from edgetune.learn.imprint import TAKEN_SHARE, features_of, imprint, right_without
from edgetune.learn.layout import arrange, pin_torch
from edgetune.learn.network import Network, load_network, widen_head
from edgetune.learn.reference import load_reference
from edgetune.store.durable import write_atomic
from edgetune.store.models import version_name
from edgetune.types import Manifest, RoundSpec, Split

_BATCH = 32
_SAFE = 0.5  # of what the gate allows: its hold-out is not these validation images


def run_imprint(round_dir: Path, spec: RoundSpec, control: Control) -> Manifest:
    """
    Imprint the classes that the base has no output for, and publish the candidate.

    Old classes without a training sample are stood for by their reference images, where there are any.

    Args:
        round_dir: gets a journal.
        spec: classes beyond the base's are the new ones.
        control: where progress goes, and where a stop comes from.

    Returns:
        The candidate's manifest, as published.

    Raises:
        NoSamplesError: a new class without a training sample.
        ModelError: the head cannot be imprinted, or the export does not answer as the network does.
        StopAskedError: a stop was asked for.
    """
    journal: dict[str, Any] = {}
    device = pin_torch(spec.recipe.threads, journal)
    base = needed_manifest(spec, spec.base_version)
    path = Path(spec.buffer_path)
    splits, bad = load_samples(path, spec.samples, spec.classes, base.preprocess, beat=control.beat)
    journal["samples"] = {split.value: len(data) for split, data in splits.items()}
    journal["undecodable_samples"] = list(bad)
    write_atomic(round_dir / "journal.json", json.dumps(journal, indent=1).encode())
    network = load_network(Path(spec.models_dir) / version_name(base.version), spec.builders)
    widen_head(network, base.classes, spec.classes)
    arrange(network.module, device, "contiguous")
    control.phase("imprint")
    look = _Look(network, Normaliser(base.preprocess, device), control)
    _imprint(network, spec, base, splits, look)
    candidate = Candidate(
        spec,
        directory=round_dir / "candidate",
        base=base,
        preprocess=base.preprocess,
        pruning=lambda _cost: base.pruning,
        splits=splits,
        timing_runs=spec.recipe.timing_runs,
        control=control,
    )
    return candidate.publish(network)


class _Look:
    """Features of images, in batches between which a stop is heard."""

    def __init__(self, network: Network, normaliser: Normaliser, control: Control) -> None:
        self._network, self._normaliser, self._control = network, normaliser, control

    def __call__(self, data: LabelledImages) -> torch.Tensor:
        """[N, D] in the order of the samples."""
        return features_of(self._network, self._batches(data))

    def _batches(self, data: LabelledImages) -> Iterator[torch.Tensor]:
        for images, _ in data.in_order(_BATCH):
            yield self._normaliser(images)
            self._control.pace()
            self._control.beat()


def _imprint(
    network: Network, spec: RoundSpec, base: Manifest, splits: Mapping[Split, LabelledImages], look: _Look
) -> None:
    training = splits[Split.TRAINING]
    features, labels = look(training), torch.from_numpy(training.labels)
    known = len(base.classes)
    new = {row: features[labels == row] for row in range(known, len(spec.classes))}
    empty = [spec.classes[row] for row, mine in new.items() if not len(mine)]
    if empty:
        raise NoSamplesError(f"no training sample of the new class {', '.join(empty)}", hint="add samples of it")
    others = [features[labels < known]]
    shown = set(np.unique(training.labels).tolist())
    absent = [label for row, label in enumerate(base.classes) if row not in shown]
    reference = load_reference(Path(spec.reference_path), spec.classes, absent, base.preprocess)
    if reference is not None:
        others.append(look(reference))
    validation = splits[Split.VALIDATION]
    right = None
    if len(validation):
        right, _ = right_without(network, list(new), look(validation), torch.from_numpy(validation.labels))
    most = spec.recipe.old_classes_drop_max
    share = TAKEN_SHARE if most is None else _SAFE * most
    imprint(network, new, torch.cat(others), right, share=share)
