"""How good a served model is: right answers and loss on labelled samples, through the engine that serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.learn.data import Images, LabelledImages
from edgetune.types import ClassScore, Metrics

_BATCH = 32


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model said about each sample."""

    is_correct: npt.NDArray[np.bool_]  # [N]
    losses: npt.NDArray[np.float64]  # [N] cross-entropy in nats


def ask(
    predict: Callable[[Images], npt.NDArray[np.float32]],
    outputs: Sequence[str],
    data: LabelledImages,
    classes: Sequence[str],
    beat: Callable[[], None],
) -> Answers:
    """
    Let a model answer every sample.

    A sample of a class for which the model has no output is answered wrong, at the loss of a blind guess among
    `classes`.

    Args:
        predict: uint8 [N, H, W, 3] -> logits float32 [N, len(outputs)].
        outputs: the model's classes, in order.
        data: whose labels are indices into `classes`.
        classes: of the round, in order.
        beat: called after every batch.
    """
    index = {label: number for number, label in enumerate(outputs)}
    column_of = np.array([index.get(label, -1) for label in classes], dtype=np.int64)
    is_correct = np.zeros(len(data), dtype=bool)
    losses = np.full(len(data), float(np.log(max(2, len(classes)))))
    start = 0
    for images, labels in data.in_order(_BATCH):
        logits = predict(images).astype(np.float64)
        part = slice(start, start + len(images))
        start += len(images)
        columns = column_of[labels]
        is_known = columns >= 0
        is_correct[part] = logits.argmax(axis=1) == columns
        peak = logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits - peak).sum(axis=1)) + peak[:, 0]
        picked = logits[np.arange(len(images)), np.maximum(columns, 0)]
        losses[part] = np.where(is_known, log_sum - picked, losses[part])
        beat()
    return Answers(is_correct, losses)


def summarise(answers: Answers, data: LabelledImages, classes: Sequence[str]) -> Metrics:
    """Overall and for each class that occurs."""
    per_class = {
        label: ClassScore(count=int(mine.sum()), correct=int(answers.is_correct[mine].sum()))
        for number, label in enumerate(classes)
        if (mine := data.labels == number).any()
    }
    return Metrics(
        count=len(data),
        correct=int(answers.is_correct.sum()),
        loss=float(answers.losses.mean()) if len(data) else 0.0,
        per_class=per_class,
    )
