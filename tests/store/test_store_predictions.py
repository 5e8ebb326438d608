"""Predictions wait for someone who says whether they were right."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_samples import policy, sample

from edgetune.errors import NotFoundError, UsageError
from edgetune.store.buffer import Buffer, PredictionRow


def prediction(
    number: int, label: str = "cat", *, version: int = 1, is_kept: bool = True, size: int = 100
) -> PredictionRow:
    """An answer about sample `number`."""
    shown = sample(number, size=size)
    return PredictionRow(
        prediction_id=f"p{number}",
        model_version=version,
        label=label,
        confidence=0.5 + number / 100,
        wall_s=1000.0 + number,
        digest=shown.digest,
        image=shown.image if is_kept else None,
        width=4,
        height=3,
    )


def test_a_labelled_prediction_becomes_a_sample(buffer: Buffer) -> None:
    """With its image, the label's source, and the answer whether the model was right."""
    buffer.predictions.record([prediction(1), prediction(2), prediction(3, is_kept=False)])
    buffer.predictions.record([prediction(1)])
    assert buffer.predictions.label("p1", "cat") is True
    assert buffer.predictions.label("p2", "dog") is False
    assert buffer.predictions.label("p3", "dog") is False
    rows = {row["digest"]: row["label"] for row in buffer.samples()}
    assert rows == {sample(1).digest: "cat", sample(2).digest: "dog"}
    assert buffer.stats().stored_bytes == 200
    with pytest.raises(NotFoundError):
        buffer.predictions.label("p99", "cat")
    with pytest.raises(UsageError):
        buffer.predictions.label("p1", "")


def test_feedback_corrects_a_sample_that_is_there(buffer: Buffer) -> None:
    """The image need not be kept twice: the same bytes in the buffer get the new label."""
    buffer.add([sample(1, "cat")])
    buffer.predictions.record([prediction(1, is_kept=False)])
    buffer.predictions.label("p1", "dog")
    assert buffer.samples()[0]["label"] == "dog"


def test_the_latest_word_counts(buffer: Buffer) -> None:
    """Labelling a prediction again replaces what was said, in the feedback and in the sample."""
    buffer.predictions.record([prediction(1)])
    assert not buffer.predictions.label("p1", "dog")
    assert buffer.predictions.label("p1", "cat")
    (row,) = buffer.predictions.feedback(1)
    assert (row.is_correct, row.predicted, row.label) == (True, "cat", "cat")
    assert [entry["label"] for entry in buffer.samples()] == ["cat"]


def test_feedback_is_told_apart_by_version_and_time(buffer: Buffer) -> None:
    """Probation asks for one version since its promotion."""
    buffer.predictions.record([prediction(1), prediction(2), prediction(3, version=2)])
    buffer.predictions.label("p1", "cat")
    buffer.predictions.label("p3", "dog")
    assert [row.is_correct for row in buffer.predictions.feedback(1)] == [True]
    assert [row.is_correct for row in buffer.predictions.feedback(2)] == [False]
    assert buffer.predictions.feedback(1, since_s=2e9) == []
    summary = buffer.predictions.summary(1)
    assert (summary.count, summary.labelled, summary.correct) == (2, 1, 1)
    assert summary.confidence_mean == pytest.approx(0.515)
    assert buffer.predictions.summary(7).confidence_mean is None


def test_predictions_are_bounded_in_rows_and_bytes(buffer: Buffer) -> None:
    """The oldest rows go beyond the bound, the oldest images beyond a tenth of the quota."""
    buffer.configure(policy(quota_bytes=10_000, predictions_max=20))
    for start in range(0, 30, 5):
        buffer.predictions.record([prediction(n) for n in range(start, start + 5)])
    assert buffer.predictions.summary(1).count == 20
    assert buffer.stats().stored_bytes == 1000
    assert buffer.predictions.label("p12", "dog") is False  # its image was dropped; what was said counts
    assert buffer.samples() == []
    with pytest.raises(NotFoundError):
        buffer.predictions.label("p9", "dog")


def test_feedback_stays_when_there_is_no_room_for_the_image(buffer: Buffer) -> None:
    """A full buffer refuses the image, not the word of a person."""
    buffer.add([sample(n, "cat") for n in range(10)])
    buffer.predictions.record([prediction(20)])
    buffer.freeze(1)
    buffer.configure(policy(quota_bytes=1000))
    buffer.predictions.record([prediction(21)])
    assert buffer.predictions.label("p21", "cat") is True
    assert len(buffer.predictions.feedback(1)) == 1
    assert buffer.stats().samples == 10


def test_purge_reaches_predictions(buffer: Buffer) -> None:
    """Images of a purged class that were kept with predictions are gone too."""
    buffer.configure(policy(new_classes="ask"))
    buffer.predictions.record(
        [prediction(1, "secretclass", size=3000), prediction(2, size=3000), prediction(3, size=3000)]
    )
    buffer.predictions.label("p2", "secretclass")
    assert buffer.purge(label="secretclass") == 3  # two predictions and one sample
    left = b"".join(path.read_bytes() for path in (buffer.path, Path(f"{buffer.path}-wal")) if path.exists())
    assert [n for n in (1, 2, 3) if f"image {n} image {n} ".encode() in left] == [3]
    assert b"secretclass" not in left
