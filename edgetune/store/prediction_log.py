"""What the service answered, kept until someone says whether it was right: the predictions of one buffer."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from edgetune.clock import Clock
from edgetune.errors import QuotaError
from edgetune.store import predictions
from edgetune.store.contents import Contents, check_label
from edgetune.store.database import explained
from edgetune.store.predictions import FeedbackRow, PredictionRow, PredictionSummary


class PredictionLog:
    """`Buffer.predictions`; belongs to the buffer's thread."""

    def __init__(self, contents: Contents, clock: Clock) -> None:
        self._contents, self._clock = contents, clock

    def record(self, rows: Sequence[PredictionRow]) -> None:
        """Keep what the service answered, the images as long as a tenth of the quota has room for them."""
        with self._contents.change("record_predictions"):
            predictions.insert(self._contents.database, rows)
            self.trim()
            with contextlib.suppress(QuotaError):
                self._contents.make_room(0)

    def trim(self) -> None:
        """Drop what the policy has no place for any more; inside a change."""
        policy = self._contents.policy
        predictions.trim(
            self._contents.database, rows_max=policy.predictions_max, image_bytes_max=policy.prediction_bytes_max
        )
        self._contents.forget_prediction_images()

    def label(self, prediction_id: str, label: str) -> bool:
        """
        Say what a predicted image shows. If its image was kept it becomes a labelled sample, when there is room.

        Returns:
            Whether the prediction was right.

        Raises:
            NotFoundError: no such prediction is kept.
            UsageError: the label cannot be a class name.
        """
        with self._contents.change("label_prediction"):
            is_correct, sample = predictions.set_label(
                self._contents.database, prediction_id, check_label(label), self._clock.wall_s()
            )
            self._contents.forget_prediction_images()
            known = sample and self._contents.row("digest", sample.digest)
            if sample is not None and (known or sample.image):
                try:
                    with self._contents.change("label_prediction.sample"):
                        self._contents.add(sample)
                except QuotaError:
                    self._contents.forget()  # the feedback stays, the image has no place
        return is_correct

    def feedback(self, model_version: int, since_s: float = 0.0) -> list[FeedbackRow]:
        """What people said about this version's predictions since a wall time, in the order they said it."""
        with explained():
            return predictions.feedback(self._contents.database, model_version, since_s)

    def summary(self, model_version: int, since_s: float = 0.0) -> PredictionSummary:
        """How many predictions a version made since a wall time, how sure it was, and how often it was right."""
        with explained():
            return predictions.summary(self._contents.database, model_version, since_s)
