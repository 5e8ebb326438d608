"""
The training samples that the factory model is asked about. On the store's thread.

Unlabelled ones, to see what comes back; and those that people have labelled, to see how often the factory model errs here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from edgetune.store.buffer import Buffer
from edgetune.store.database import explained, scalar

_UNLABELLED = "label IS NULL AND split = 'training'"  # the index `samples_by_class` has them in order
_BY_PEOPLE = "split = 'training' AND (SELECT source FROM labels WHERE labels.id = label_id) <> 'factory'"


def after(buffer: Buffer, place: int, *, is_labelled: bool, newest: int, limit: int) -> list[tuple[int, int]]:
    """
    The next samples to ask about, those first that came, or were labelled, first.

    Args:
        buffer: open.
        place: in the queue, up to which all were asked about.
        is_labelled: those that people have labelled; else unlabelled ones.
        newest: older samples than so many are passed over, so that a long queue does not hide what is seen now.
        limit: at most so many.

    Returns:
        Place and sample of each. The queue of what people labelled is in the order of their labels, not of the images.
    """
    wanted, order = (_BY_PEOPLE, "label_id") if is_labelled else (_UNLABELLED, "id")
    with explained():
        floor = scalar(
            buffer.database,
            f"SELECT {order} FROM samples WHERE {wanted} AND {order} > ? "  # noqa: S608 - text from above
            f"ORDER BY {order} DESC LIMIT 1 OFFSET ?",
            (place, newest),
        )
        rows = buffer.database.execute(
            f"SELECT {order}, id FROM samples WHERE {wanted} AND {order} > ? ORDER BY {order} LIMIT ?",  # noqa: S608
            (place if floor is None else floor, limit),
        )
        return rows.fetchall()


def image(buffer: Buffer, sample_id: int) -> bytes | None:
    """A sample's image as it was stored; None when it is not there any more."""
    with explained():
        found: bytes | None = scalar(buffer.database, "SELECT image FROM images WHERE sample_id = ?", (sample_id,))
        return found


def groups(buffer: Buffer, ids: Sequence[int]) -> dict[int, str]:
    """Sample -> group, of those of these samples that are still there and unlabelled."""
    return _column(buffer, "group_name", _UNLABELLED, ids)


def labels(buffer: Buffer, ids: Sequence[int]) -> dict[int, str]:
    """Sample -> label, of those of these samples that are still there and labelled by people."""
    return _column(buffer, "label", _BY_PEOPLE, ids)


def _column(buffer: Buffer, name: str, condition: str, ids: Sequence[int]) -> dict[int, str]:
    with explained():
        rows = buffer.database.execute(
            f"SELECT id, {name} FROM samples WHERE id IN (SELECT value FROM json_each(?)) AND {condition}",  # noqa: S608
            (json.dumps(list(ids)),),
        )
        return dict(rows.fetchall())
