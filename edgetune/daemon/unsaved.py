"""Predictions that were answered and are not in the database yet: in memory, within bounds, while it cannot be written."""

from __future__ import annotations

from dataclasses import replace

from edgetune.daemon.parts import StoreThread
from edgetune.errors import StoreError
from edgetune.store.buffer import Buffer, PredictionRow

_ROWS_MAX = 10_000
_IMAGE_BYTES_MAX = 32 * 2**20  # of the newest


class Unsaved:
    """
    What `flush` writes. Lives on the event loop.

    Attributes:
        rows: oldest first.
    """

    def __init__(self, buffer: Buffer, store: StoreThread) -> None:
        self._buffer, self._store = buffer, store
        self.rows: list[PredictionRow] = []

    def add(self, row: PredictionRow) -> None:
        """One more answer."""
        self.rows.append(row)

    async def flush(self) -> None:
        """Write the predictions answered since the last call; what the database does not take is kept for the next."""
        if self.rows:
            rows, self.rows = self.rows, []
            try:
                await self._store(self._buffer.predictions.record, rows)
            except StoreError:
                self.rows = _with_few_images([*rows, *self.rows][-_ROWS_MAX:])
                raise


def _with_few_images(rows: list[PredictionRow]) -> list[PredictionRow]:
    """The same predictions, oldest first, without the images for which there is no room in memory."""
    left, kept = _IMAGE_BYTES_MAX, []
    for row in reversed(rows):
        left -= len(row.image or b"")
        kept.append(row if left >= 0 else replace(row, image=None, digest=None, width=0, height=0))
    return kept[::-1]
