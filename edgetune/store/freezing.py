"""The samples of a round: chosen, pinned while it runs so that no quota takes them away, and let go."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlite_utils import Database

from edgetune.errors import ConflictError
from edgetune.types import FrozenSample, Split

_CHOOSE = """
    WITH wanted AS (
        SELECT id, digest, label, split, row_number() OVER (PARTITION BY label, split ORDER BY id DESC) AS turn
        FROM samples WHERE label IN (SELECT value FROM json_each(:classes))
    ), turns AS (
        SELECT *, row_number() OVER (PARTITION BY split ORDER BY turn, id DESC) AS place FROM wanted
    )
    SELECT id, digest, label, split FROM turns
    WHERE split <> 'training' OR :training_max IS NULL OR place <= :training_max
    ORDER BY id
"""
_CHOOSE_UNLABELLED = (
    "SELECT id, digest, label, split FROM samples WHERE label IS NULL AND split = 'training'"
    " ORDER BY is_new DESC, id DESC LIMIT ?"  # what the last round left over comes first, else it would be wanted for ever
)


def freeze(
    database: Database, round_id: int, classes: Sequence[str], *, training_max: int | None, unlabelled_max: int | None
) -> tuple[FrozenSample, ...]:
    """
    Choose and pin, inside the caller's transaction; see `Buffer.freeze`.

    Raises:
        ConflictError: another round holds samples.
    """
    for other in frozen_rounds(database):
        if other != round_id:
            raise ConflictError(f"round {other} still holds its samples")
    _unpin(database, round_id)
    wanted = json.dumps(list(classes))
    rows = database.execute(_CHOOSE, {"classes": wanted, "training_max": training_max}).fetchall()
    limit = -1 if unlabelled_max is None else unlabelled_max
    rows = sorted(rows + database.execute(_CHOOSE_UNLABELLED, (limit,)).fetchall())
    ids = json.dumps([row[0] for row in rows])
    database.execute("UPDATE samples SET pinned_by = ? WHERE id IN (SELECT value FROM json_each(?))", (round_id, ids))
    database.execute("INSERT INTO freezes SELECT ?, coalesce(max(id), 0), ? FROM labels", (round_id, wanted))
    return tuple(FrozenSample(sample_id=row[0], digest=row[1], label=row[2], split=Split(row[3])) for row in rows)


def frozen_rounds(database: Database) -> tuple[int, ...]:
    """The rounds that hold samples."""
    return tuple(row[0] for row in database.execute("SELECT round_id FROM freezes ORDER BY round_id"))


def release(database: Database, round_id: int, *, consumed: bool) -> None:
    """Unpin, inside the caller's transaction; see `Buffer.release`."""
    row = database.execute("SELECT label_id_max, classes FROM freezes WHERE round_id = ?", (round_id,)).fetchone()
    if row is not None and consumed:
        database.execute(
            "UPDATE samples SET is_new = 0 WHERE is_new = 1 AND label_id <= ?"
            " AND label IN (SELECT value FROM json_each(?))",
            tuple(row),
        )
        database.execute(
            "UPDATE samples SET is_new = 0 WHERE is_new = 1 AND label IS NULL AND pinned_by = ?", (round_id,)
        )
    _unpin(database, round_id)


def _unpin(database: Database, round_id: int) -> None:
    database.execute("UPDATE samples SET pinned_by = NULL WHERE pinned_by = ?", (round_id,))
    database.execute("DELETE FROM freezes WHERE round_id = ?", (round_id,))
