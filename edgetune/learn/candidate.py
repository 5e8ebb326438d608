"""A trained network becomes a candidate: exported, compared with the served version as it would be served, published."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgetune.errors import ModelError
from edgetune.learn.control import Control
from edgetune.learn.data import Images, LabelledImages
from edgetune.learn.export import artefact_files, check_export, draft_manifest, selftest_images, stage
from edgetune.learn.measure import ask, summarise
from edgetune.learn.network import Network
from edgetune.learn.reference import load_reference
from edgetune.serve.engine import Engine
from edgetune.serve.timing import time_interleaved
from edgetune.store.models import publish, version_name
from edgetune.types import (
    AbsentClasses,
    Comparison,
    Cost,
    Manifest,
    Mark,
    Preprocess,
    Pruning,
    RoundKind,
    RoundSpec,
    Split,
)
from edgetune.wire import from_json


def published_manifest(spec: RoundSpec) -> Manifest | None:
    """The candidate's manifest when this round has published it already."""
    manifest = _read_manifest(spec, spec.candidate_version)
    return manifest if manifest is not None and manifest.round_id == spec.round_id else None


def _read_manifest(spec: RoundSpec, version: int) -> Manifest | None:
    path = Path(spec.models_dir) / version_name(version) / "manifest.json"
    return from_json(Manifest, path.read_bytes()) if path.exists() else None


def needed_manifest(spec: RoundSpec, version: int) -> Manifest:
    """
    The manifest of a version that a round cannot do without.

    Raises:
        ModelError: it is not there.
    """
    manifest = _read_manifest(spec, version)
    if manifest is None:
        raise ModelError(
            f"version {version}, which this round starts from, is not in {spec.models_dir}",
            hint="see what is there: edgetune models ls; then start another round: edgetune train",
        )
    return manifest


class Candidate:
    """What one round publishes."""

    def __init__(
        self,
        spec: RoundSpec,
        *,
        directory: Path,
        base: Manifest,
        preprocess: Preprocess,
        pruning: Callable[[Cost], Pruning | None],
        splits: Mapping[Split, LabelledImages],
        timing_runs: int,
        control: Control,
        taught: Sequence[str] | None = None,
    ) -> None:
        """
        Prepare.

        Args:
            spec: of the round.
            directory: does not exist; the candidate is loaded from there before it is published.
            base: of the version that is served.
            preprocess: of the candidate.
            pruning: what was cut, for a candidate of that cost.
            splits: the hold-out decides; of the training samples only the classes are looked at.
            timing_runs: predictions a side.
            control: hears of every step.
            taught: the classes that could be learnt, where no label was looked at; None: those that labels show.
        """
        self._spec, self._directory, self._base, self._preprocess = spec, directory, base, preprocess
        self._pruning, self._splits, self._timing_runs, self._control = pruning, splits, timing_runs, control
        self._taught = taught

    def publish(self, network: Network) -> Manifest:
        """
        Export, compare, publish; the manifest as published.

        Raises:
            ModelError: the exported graph does not answer as the network does.
        """
        spec, control = self._spec, self._control
        network.module.to("cpu")
        control.phase("export")
        files = artefact_files(network, self._preprocess, control.beat)
        manifest = self._draft(network, len(files["model.onnx"]))
        stage(self._directory, files, manifest)
        base = Engine.load(Path(spec.models_dir) / version_name(spec.base_version), threads=spec.serving_threads)
        control.beat()
        candidate = Engine.load(self._directory, threads=spec.serving_threads)
        control.beat()
        check_export(candidate, network, self._preprocess)
        control.beat()
        comparison = self._compare(base, candidate, manifest.cost)
        manifest = replace(manifest, comparison=comparison, latency=comparison.candidate_latency)
        shutil.rmtree(self._directory)
        control.phase("publish")
        publish(Path(spec.models_dir), spec.candidate_version, files, manifest)
        return needed_manifest(spec, spec.candidate_version)

    def _draft(self, network: Network, onnx_bytes: int) -> Manifest:
        spec = self._spec
        draft = draft_manifest(network, self._preprocess, spec.classes, onnx_bytes)
        return replace(
            draft,
            version=spec.candidate_version,
            kind=spec.kind.value,
            parent=spec.base_version,
            generation=spec.generation,
            round_id=spec.round_id,
            pruning=self._pruning(draft.cost),
            samples_digest=spec.samples_digest,
            sample_count=len(spec.samples),
            marks=self._marks(),
        )

    def _marks(self) -> dict[str, str]:
        """The base's, less those of classes that a label has shown; and those of classes that are not trained yet."""
        base, spec = self._base, self._spec
        if spec.kind is RoundKind.IMPRINT:
            new = (label for label in spec.classes if label not in base.classes)
            return {**base.marks, **dict.fromkeys(new, Mark.PROVISIONAL.value)}
        told = {sample.label for sample in spec.samples if sample.split is Split.TRAINING}
        if self._taught is not None:
            told &= set(self._taught)
        kept = {label: mark for label, mark in base.marks.items() if label in spec.classes and label not in told}
        return {**dict.fromkeys(self._unseen(), Mark.NEVER_SEEN_HERE.value), **kept}

    def _unseen(self) -> tuple[str, ...]:
        """The classes that the base does not know and no label shows: a teacher's."""
        told = {sample.label for sample in self._spec.samples}
        return tuple(c for c in self._spec.classes if c not in self._base.classes and c not in told)

    def _shown(self) -> set[str]:
        """The classes that the candidate was trained on, by people's labels or the teacher's."""
        return {self._spec.classes[number] for number in set(self._splits[Split.TRAINING].labels.tolist())}

    def _compare(self, base: Engine, candidate: Engine, cost: Cost) -> Comparison:
        control, holdout, classes = self._control, self._splits[Split.HOLDOUT], self._spec.classes
        control.phase("measure")
        before = ask(base.predict, base.classes, holdout, classes, control.beat)
        after = ask(candidate.predict, candidate.classes, holdout, classes, control.beat)
        control.phase("time")
        # the third in turn is not timed for its own sake: it says that work is done, outside the others' time
        turns: list[Engine | Callable[[Images], object]] = [base, candidate, lambda _: control.beat()]
        latencies = time_interleaved(turns, selftest_images(self._preprocess), runs=self._timing_runs)
        return Comparison(
            base=summarise(before, holdout, classes),
            candidate=summarise(after, holdout, classes),
            only_base_correct=int((before.is_correct & ~after.is_correct).sum()),
            only_candidate_correct=int((after.is_correct & ~before.is_correct).sum()),
            base_latency=latencies[0],
            candidate_latency=latencies[1],
            base_cost=self._base.cost,
            candidate_cost=cost,
            new_classes=tuple(label for label in classes if label not in self._base.classes),
            unseen_classes=self._unseen(),
            gone_classes=tuple(label for label in self._base.classes if label not in classes),
            absent=self._ask_about_absent(base, candidate),
        )

    def _ask_about_absent(self, base: Engine, candidate: Engine) -> AbsentClasses | None:
        """What both know of the classes that the training samples do not show, as far as reference images tell."""
        classes, spec = self._spec.classes, self._spec
        shown, marks = self._shown(), self._marks()
        absent = [label for label in classes if label not in shown and label not in marks]
        if not absent:
            return None
        images = load_reference(Path(spec.reference_path), classes, absent, self._preprocess)
        if images is None:
            return AbsentClasses(classes=len(absent))
        before, after = (ask(e.predict, e.classes, images, classes, self._control.beat) for e in (base, candidate))
        return AbsentClasses(
            classes=len(absent),
            count=len(images),
            base_correct=int(before.is_correct.sum()),
            candidate_correct=int(after.is_correct.sum()),
        )
