"""Training samples whose labels the served version contradicts: where to look when labels are wrong."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgetune.learn.data import LabelledImages
from edgetune.serve.engine import Engine
from edgetune.store.models import version_name
from edgetune.types import Manifest, Mark, RoundSpec

WORST = 10
_BATCH = 32


def contradicted_by(
    base: Manifest, spec: RoundSpec, training: LabelledImages, *, beat: Callable[[], None]
) -> dict[str, Any]:
    """What a round's base says of its training labels, of the classes that the base has learnt; see `contradicted`."""
    engine = Engine.load(Path(spec.models_dir) / version_name(base.version), threads=spec.serving_threads)
    known = [label for label in base.classes if base.marks.get(label) != Mark.PROVISIONAL.value]
    labelled = {sample.sample_id for sample in spec.samples if sample.label is not None}
    try:
        return contradicted(engine, training, spec.classes, known, labelled=labelled, beat=beat)
    finally:
        engine.close()


def contradicted(
    engine: Engine,
    data: LabelledImages,
    classes: Sequence[str],
    known: Collection[str],
    *,
    labelled: Collection[int],
    beat: Callable[[], None],
) -> dict[str, Any]:
    """
    Ask the served version about the labels of training samples.

    Args:
        engine: of the served version.
        data: the samples; labels are indices into `classes`.
        classes: of the round, in order.
        known: classes that the version has learnt; samples of others it can say nothing about.
        labelled: ids of the samples to ask about: those whose label is not a teacher's word.
        beat: called after every batch.

    Returns:
        For a journal: "classes", label -> {"samples", "contradicted"} where it contradicts any; "worst", the samples whose
        labels it thinks least likely of those that it contradicts, as {"sample", "label", "says", "confidence"}.
    """
    index = {label: number for number, label in enumerate(engine.classes)}
    worst: list[tuple[float, dict[str, Any]]] = []
    counts: dict[str, list[int]] = {}
    labels, ids = [classes[number] for number in data.labels.tolist()], data.sample_ids.tolist()
    asked = [row for row, label in enumerate(labels) if label in known and ids[row] in labelled]
    for start in range(0, len(asked), _BATCH):
        rows = np.array(asked[start : start + _BATCH])
        logits = engine.predict(data.images(rows)).astype(np.float64)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        for row, share in zip(rows.tolist(), shares, strict=True):
            label, says = labels[row], int(share.argmax())
            count = counts.setdefault(label, [0, 0])
            count[0] += 1
            if says == index[label]:
                continue
            count[1] += 1
            told = {
                "sample": ids[row],
                "label": label,
                "says": engine.classes[says],
                "confidence": round(float(share[says]), 4),
            }
            worst.append((float(share[index[label]]), told))
        worst = sorted(worst, key=lambda each: each[0])[:WORST]
        beat()
    return {
        "classes": {label: {"samples": n, "contradicted": k} for label, (n, k) in sorted(counts.items()) if k},
        "worst": [told for _, told in worst],
    }
