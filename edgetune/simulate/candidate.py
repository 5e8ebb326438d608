"""What a trainer would have left: a published version that says how it compares with its base."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from edgetune.simulate.tiny import Weights, manifest, tiny_files
from edgetune.store.models import publish, version_name
from edgetune.types import (
    ClassScore,
    Comparison,
    Cost,
    Latency,
    Manifest,
    Mark,
    Metrics,
    Pruning,
    RoundKind,
    RoundSpec,
    Split,
)
from edgetune.wire import from_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large and how fast a version is."""

    cost: Cost
    latency: Latency
    pruning: Pruning | None


def size_after(spec: RoundSpec) -> Size:
    """What a round makes of its base: as large as that, or the factory model cut to the level that is asked for."""
    base = read_manifest(spec, spec.base_version)
    if spec.kind is not RoundKind.RESHAPE:
        return Size(cost=base.cost, latency=_latency(base, 1.0), pruning=base.pruning)
    factory, level = read_manifest(spec, spec.factory_version), spec.recipe.level
    whole, left = factory.cost, 1.0 - level
    cost = Cost(
        parameters=round(whole.parameters * left),
        macs=round(whole.macs * left),
        onnx_bytes=round(whole.onnx_bytes * left),
    )
    pruning = Pruning(criterion=spec.recipe.criterion, level_asked=level, level_achieved=level, round_to=8)
    return Size(cost=cost, latency=_latency(factory, left), pruning=pruning)


def _latency(manifest: Manifest, left: float) -> Latency:
    before = manifest.latency or Latency(median_ms=2.0, p90_ms=2.1, runs=10, threads=1)
    return replace(before, median_ms=before.median_ms * left, p90_ms=before.p90_ms * left)


def read_manifest(spec: RoundSpec, version: int) -> Manifest:
    """Of a published version."""
    return from_json(Manifest, (Path(spec.models_dir) / version_name(version) / "manifest.json").read_bytes())


def compare(spec: RoundSpec, *, right: float, base_right: float, size: Size) -> Comparison:
    """
    What a trainer would have measured.

    Args:
        spec: the round's.
        right: the candidate's share of right answers on the hold-out, 0..1.
        base_right: the base's.
        size: the candidate's.
    """
    before = read_manifest(spec, spec.base_version)
    counts = Counter(s.label for s in spec.samples if s.split is Split.HOLDOUT and s.label is not None)
    base, candidate = _metrics(counts, base_right), _metrics(counts, right)
    return Comparison(
        base=base,
        candidate=candidate,
        only_base_correct=max(0, base.correct - candidate.correct),
        only_candidate_correct=max(0, candidate.correct - base.correct),
        base_latency=before.latency or size.latency,
        candidate_latency=size.latency,
        base_cost=before.cost,
        candidate_cost=size.cost,
        new_classes=tuple(label for label in spec.classes if label not in before.classes),
    )


def publish_candidate(spec: RoundSpec, comparison: Comparison, *, size: Size, weights: Weights | None = None) -> None:
    """
    Publish a candidate for a round.

    Args:
        spec: the round's.
        comparison: with its base.
        size: the candidate's.
        weights: of the tiny model; None: random ones.
    """
    before = read_manifest(spec, spec.base_version)
    shown = {sample.label for sample in spec.samples if sample.split is Split.TRAINING}
    if spec.kind is RoundKind.IMPRINT:
        marks = {**before.marks, **dict.fromkeys(comparison.new_classes, Mark.PROVISIONAL.value)}
    else:
        marks = {label: mark for label, mark in before.marks.items() if label not in shown}
    made = manifest(
        spec.classes, kind=spec.kind.value, parent=spec.base_version, generation=spec.generation, round_id=spec.round_id,
        comparison=comparison, samples_digest=spec.samples_digest, sample_count=len(spec.samples),
        pruning=size.pruning, marks=marks, cost=size.cost, latency=size.latency,
    )  # fmt: skip
    files = tiny_files(len(spec.classes), spec.candidate_version, weights)
    publish(Path(spec.models_dir), spec.candidate_version, files, made)


def _metrics(counts: Counter[str], share: float) -> Metrics:
    scores = {label: ClassScore(count=n, correct=round(n * share)) for label, n in counts.items()}
    correct = sum(score.correct for score in scores.values())
    return Metrics(count=sum(counts.values()), correct=correct, loss=0.5, per_class=scores)
