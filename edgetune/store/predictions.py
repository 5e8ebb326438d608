"""What the service answered and what people said about it: the tables `predictions` and `prediction_images`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlite_utils import Database

from edgetune.errors import NotFoundError
from edgetune.store.database import scalar
from edgetune.types import LabelSource, NewSample


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionRow:
    """One answer of the service, to be kept until someone says whether it was right."""

    prediction_id: str
    model_version: int
    label: str  # the best class
    confidence: float
    wall_s: float
    digest: str | None = None  # of the original bytes; None when the image was not kept and not hashed
    image: bytes | None = None  # as a sample would store it; None: not kept
    width: int = 0
    height: int = 0
    group: str = ""  # near-twins share it; empty: the image is a group of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackRow:
    """What someone said about one prediction."""

    prediction_id: str
    is_correct: bool
    predicted: str
    label: str
    confidence: float
    wall_s: float  # of the prediction
    labelled_at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionSummary:
    """One version's predictions in numbers."""

    count: int
    confidence_mean: float | None  # None without predictions
    labelled: int
    correct: int


def insert(db: Database, rows: Sequence[PredictionRow]) -> None:
    """Write predictions; one that is there already (the same id) is left as it is."""
    for row in rows:
        cursor = db.execute(
            "INSERT OR IGNORE INTO predictions (prediction_id, model_version, label, confidence, wall_s, digest,"
            " group_name, width, height, image_bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row.prediction_id,
                row.model_version,
                row.label,
                row.confidence,
                row.wall_s,
                row.digest,
                row.group or row.digest or row.prediction_id,
                row.width,
                row.height,
                len(row.image or b""),
            ),
        )
        if row.image and cursor.rowcount:
            db.execute("INSERT INTO prediction_images VALUES (?, ?)", (cursor.lastrowid, row.image))


def trim(db: Database, *, rows_max: int, image_bytes_max: int) -> None:
    """Drop the oldest rows over `rows_max`, and the oldest images over `image_bytes_max`."""
    newest = scalar(db, "SELECT max(id) FROM predictions")
    if newest is None:
        return
    # Ids are given without gaps (a row is only removed here or purged), so this keeps at most rows_max without counting.
    db.execute("DELETE FROM predictions WHERE id <= ?", (newest - rows_max,))
    over = image_bytes_held(db) - image_bytes_max
    if over <= 0:
        return
    oldest = db.execute("SELECT id, image_bytes FROM predictions WHERE image_bytes > 0 ORDER BY id")
    dropped = []
    for prediction, image_bytes in oldest:
        if over <= 0:
            break
        over -= image_bytes
        dropped.append((prediction,))
    drop_images(db, dropped)


def image_bytes_held(db: Database) -> int:
    """The images of all predictions together."""
    return int(scalar(db, "SELECT coalesce(sum(image_bytes), 0) FROM predictions WHERE image_bytes > 0"))


def drop_images(db: Database, rows: Sequence[tuple[int]]) -> None:
    """Forget the images of these predictions, not the predictions."""
    db.conn.executemany("DELETE FROM prediction_images WHERE prediction = ?", rows)
    db.conn.executemany("UPDATE predictions SET image_bytes = 0 WHERE id = ?", rows)


def set_label(db: Database, prediction_id: str, label: str, now_s: float) -> tuple[bool, NewSample | None]:
    """
    Write down what a predicted image shows; said again, the latest word counts.

    Returns:
        Whether the prediction was right; and the sample it makes (with an empty image if that was not kept), or None
        when its bytes are not known at all.

    Raises:
        NotFoundError: no such prediction is kept.
    """
    row = db.execute(
        "SELECT id, label, digest, group_name, width, height, wall_s FROM predictions WHERE prediction_id = ?",
        (prediction_id,),
    ).fetchone()
    if row is None:
        raise NotFoundError(
            f"there is no prediction {prediction_id}",
            hint="predictions are kept for a time only; ask again and label that",
        )
    prediction, predicted, digest, group, width, height, wall_s = row
    db.execute("UPDATE predictions SET true_label = ?, labelled_at_s = ? WHERE id = ?", (label, now_s, prediction))
    if digest is None:
        return predicted == label, None
    image = scalar(db, "SELECT image FROM prediction_images WHERE prediction = ?", (prediction,))
    sample = NewSample(
        digest=digest,
        image=image or b"",
        width=width,
        height=height,
        label=label,
        label_source=LabelSource.FEEDBACK,
        group=group,
        origin="prediction",
        taken_at_s=wall_s,
    )
    if image is not None:
        drop_images(db, [(prediction,)])
    return predicted == label, sample


def feedback(db: Database, model_version: int, since_s: float) -> list[FeedbackRow]:
    """What people said about this version's predictions since a wall time, in the order they said it."""
    rows = db.execute(
        "SELECT prediction_id, label, true_label, confidence, wall_s, labelled_at_s FROM predictions"
        " WHERE model_version = ? AND true_label IS NOT NULL AND labelled_at_s >= ? ORDER BY labelled_at_s, id",
        (model_version, since_s),
    )
    return [
        FeedbackRow(
            prediction_id=prediction_id,
            is_correct=predicted == label,
            predicted=predicted,
            label=label,
            confidence=confidence,
            wall_s=wall_s,
            labelled_at_s=labelled_at_s,
        )
        for prediction_id, predicted, label, confidence, wall_s, labelled_at_s in rows
    ]


def summary(db: Database, model_version: int, since_s: float) -> PredictionSummary:
    """One version's predictions since a wall time, in numbers."""
    count, confidence_mean = db.execute(
        "SELECT count(*), avg(confidence) FROM predictions WHERE model_version = ? AND wall_s >= ?",
        (model_version, since_s),
    ).fetchone()
    labelled, correct = db.execute(
        "SELECT count(*), coalesce(sum(label = true_label), 0) FROM predictions"
        " WHERE model_version = ? AND true_label IS NOT NULL AND labelled_at_s >= ?",
        (model_version, since_s),
    ).fetchone()
    return PredictionSummary(count=count, confidence_mean=confidence_mean, labelled=labelled, correct=correct)
