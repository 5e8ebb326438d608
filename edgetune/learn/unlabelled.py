"""
Samples that nobody has labelled: those that the teacher is sure of join the training with its word for a label.

Sure means twice: it gives one class at least the confidence asked for, on the image as it is, and names the same class, as
surely on the mean of both, when the image is shifted and mirrored. What it says of the others would be learnt as the truth.

Source: Sohn et al. 2020, FixMatch (arXiv 2001.07685), section 2.2, for the threshold; differs from it in: the teacher is
another network than the student, so it is asked once and not in each step, and it has to agree with itself.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.learn.control import Control, StopAskedError
from edgetune.learn.data import Images, Integers, LabelledImages, augment, draws_of
from edgetune.store.durable import write_atomic

# uint8 [B, H, W, 3] -> [B, K] how likely the teacher finds each class of ours; the rest to one is what it finds of others.
Asked = Callable[[Images], npt.NDArray[np.float64]]
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Sifted:
    """What the teacher said of them."""

    labels: Mapping[int, int]  # sample -> class, of those that it is sure of
    unsure: int = 0
    inconsistent: int = 0  # sure of the image, and of another class, or less so, when it is changed


def sift(data: LabelledImages, ask: Asked, *, confidence_min: float, how: str, seed: int, control: Control) -> Sifted:
    """
    Ask about every image twice.

    Args:
        data: the labels are not looked at.
        ask: the teacher.
        confidence_min: 0..1.
        how: the second image is changed as in training, see `data.augment`; "none": only shifted.
        seed: of that change.
        control: sets the pace.

    Raises:
        StopAskedError: a stop was asked for; nothing is kept of it but what the teacher itself keeps.
    """
    labels: dict[int, int] = {}
    why: Counter[str] = Counter()
    for start in range(0, len(data), _BATCH):
        if control.is_stop_asked:
            raise StopAskedError
        positions = np.arange(start, min(start + _BATCH, len(data)))
        ids, images = data.sample_ids[positions], data.images(positions)
        changed = augment(images, draws_of(ids, seed), "crop" if how == "none" else how)
        first, second = ask(images), ask(changed)
        sure, agreed = _is_sure(first, confidence_min), _is_sure((first + second) / 2, confidence_min)
        agreed &= first.argmax(axis=1) == second.argmax(axis=1)
        for sample, label, is_sure, is_agreed in zip(ids, first.argmax(axis=1), sure, agreed, strict=True):
            if is_sure and is_agreed:
                labels[int(sample)] = int(label)
            else:
                why["inconsistent" if is_sure else "unsure"] += 1
        control.progress(asked=len(ids))
        control.pace()
    return Sifted(labels, unsure=why["unsure"], inconsistent=why["inconsistent"])


def sift_once(path: Path, digest: str, sifting: Callable[[], Sifted]) -> Sifted:
    """What an earlier start of this round found, else what `sifting` finds, kept in a file of this digest."""
    if path.exists():
        plain = json.loads(path.read_bytes())
        if plain.pop("of") == digest:
            return Sifted(**{**plain, "labels": {int(sample): label for sample, label in plain["labels"].items()}})
    found = sifting()
    write_atomic(path, json.dumps({"of": digest, **asdict(found)}).encode())
    return found


def _is_sure(probabilities: npt.NDArray[np.float64], confidence_min: float) -> npt.NDArray[np.bool_]:
    """Of one class of ours, at least so much, and no less than of all together that are not ours."""
    best = probabilities.max(axis=1)
    sure: npt.NDArray[np.bool_] = (best >= confidence_min) & (best >= 1 - probabilities.sum(axis=1))
    return sure


def joined(labelled: LabelledImages, unlabelled: LabelledImages, labels: Mapping[int, int]) -> LabelledImages:
    """The labelled samples, and after them those of the unlabelled ones that `labels` (sample -> class) has a class for."""
    rows: Integers = np.array([i for i, sample in enumerate(unlabelled.sample_ids) if int(sample) in labels], np.int64)
    if not len(rows):
        return labelled
    ids = unlabelled.sample_ids[rows]
    said = np.array([labels[int(sample)] for sample in ids], np.int64)
    is_whole = len(labelled.pixels) == len(labelled)  # what is decoded comes first
    decoded = rows[rows < len(unlabelled.pixels)] if is_whole else rows[:0]
    return replace(
        labelled,
        sample_ids=np.concatenate([labelled.sample_ids, ids]),
        labels=np.concatenate([labelled.labels, said]),
        pixels=np.concatenate([labelled.pixels, unlabelled.pixels[decoded]]),
    )
