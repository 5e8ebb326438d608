"""What people are shown of a round's end: figures of the comparison, what its trainer and its teacher tell, doubted labels. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetune.types import Manifest, RoundSpec

_NAMED = 3  # classes, the most contradicted ones
_MANY = 0.2  # of a class's labels contradicted, where they are suspected and not only told
_MOST, _FEWEST = 0.5, 5  # likewise, and of so many at least, where the candidate is better by those labels


def told(journal: Mapping[str, Any]) -> dict[str, Any]:
    """What a trainer writes down for people."""
    return {name: journal[name] for name in ("left_whole", "update", "doubts", "kept_of_training") if journal.get(name)}


def asked(spec: RoundSpec, journal: Mapping[str, Any]) -> dict[str, Any]:
    """What asking a teacher outside the trainer took."""
    if spec.teacher.kind == "ancestor" or not journal:
        return {}
    return {"teacher": {"kind": spec.teacher.kind, "server": spec.teacher.server, **journal.get("teacher", {})}}


def doubted(journal: Mapping[str, Any]) -> str:
    """Which labels of a round's training samples the served version contradicts, in a sentence; empty: none."""
    doubts = journal.get("doubts") or {}
    classes = sorted(doubts.get("classes", {}).items(), key=lambda each: -each[1]["contradicted"] / each[1]["samples"])
    if not classes:
        return ""
    worst = classes[0][1]
    claim = "labels may be wrong: " if worst["contradicted"] >= _MANY * worst["samples"] else ""
    counts = [f"{found['contradicted']} of {found['samples']} labelled {label!r}" for label, found in classes[:_NAMED]]
    ids = ", ".join(str(each["sample"]) for each in doubts["worst"])
    return (
        f"{claim}of the training samples the served version contradicts {', '.join(counts)}, most of all samples {ids}"
    )


def contradicted_throughout(journal: Mapping[str, Any]) -> str:
    """The same where the served version contradicts most labels of a class; of a site that has changed that is to be expected."""
    doubts = journal.get("doubts") or {}
    found = {
        label: each
        for label, each in doubts.get("classes", {}).items()
        if each["samples"] >= _FEWEST and each["contradicted"] >= _MOST * each["samples"]
    }
    return f"unless the site has changed, {doubted({'doubts': {**doubts, 'classes': found}})}" if found else ""


def comparison_summary(manifest: Manifest) -> dict[str, Any]:
    """The figures of a comparison that people ask for first."""
    c = manifest.comparison
    if c is None:
        return {}
    return {
        "accuracy_before": c.base.top1,
        "accuracy_after": c.candidate.top1,
        "holdout": c.base.count,
        "latency_before_ms": c.base_latency.median_ms,
        "latency_after_ms": c.candidate_latency.median_ms,
        "latency_ratio": round(c.latency_ratio, 4),
        "parameters_before": c.base_cost.parameters,
        "parameters_after": c.candidate_cost.parameters,
        "new_classes": list(c.new_classes),
    }
