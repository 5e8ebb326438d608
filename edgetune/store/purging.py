"""Removing samples so that nothing of them is left in the file: rows first, then the WAL and every free page."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlite_utils import Database

from edgetune.errors import ConflictError, StoreError, UsageError
from edgetune.store import durable
from edgetune.store.database import scalar


def delete(db: Database, *, sample_id: int | None, digest: str | None, label: str | None, everything: bool) -> int:
    """
    Delete what the one given argument names: samples, their label history, and predictions that show the same.

    Raises:
        UsageError: not exactly one argument was given.
        ConflictError: a running round holds one of the samples.
    """
    given = [sample_id is not None, digest is not None, label is not None, everything]
    if sum(given) != 1:
        raise UsageError("say exactly one of: a sample, a digest, a class, everything")
    if sample_id is not None:
        digest = scalar(db, "SELECT digest FROM samples WHERE id = ?", (sample_id,))
        if digest is None:
            return 0
    samples, of_predictions = "1", "1"
    if digest is not None:
        samples = of_predictions = "digest = :value"
    elif label is not None:
        # A sample whose label was corrected away from this class is not of this class.
        samples = "label = :value"
        of_predictions = (
            "coalesce(true_label, label) = :value OR digest IN (SELECT digest FROM samples WHERE label = :value)"
        )
    value = {"value": digest if digest is not None else label}
    held = db.execute(
        f"SELECT min(pinned_by) FROM samples WHERE pinned_by IS NOT NULL AND ({samples})",  # noqa: S608 - texts from above
        value,
    ).fetchone()[0]
    if held is not None:
        raise ConflictError(
            f"round {held} holds samples that you want to purge", hint="wait for it to end, or: edgetune cancel"
        )
    removed = db.execute(f"DELETE FROM predictions WHERE {of_predictions}", value).rowcount  # noqa: S608
    removed += db.execute(f"DELETE FROM samples WHERE {samples}", value).rowcount  # noqa: S608
    _delete_orphans(db)
    return removed


def _delete_orphans(db: Database) -> None:
    """Names of groups and of classes nobody decided about can say as much as an image."""
    db.execute("DELETE FROM groups WHERE NOT EXISTS (SELECT 1 FROM samples WHERE group_name = groups.name)")
    db.execute(
        "DELETE FROM classes WHERE status = 'pending' AND NOT EXISTS (SELECT 1 FROM samples WHERE label = classes.name)"
    )


def compact(db: Database, directory: Path) -> None:
    """
    Rewrite the file without free pages, and empty the WAL.

    Overwriting on deletion (secure_delete) does not reach everything: when SQLite balances a page, old cells may stay
    in its unused part, and images of a few KiB are cells. VACUUM copies only what is alive. It needs as much free disk
    as the database holds, beside it (not in /tmp, which may be small and in memory).

    Raises:
        StoreError: the rows are gone, but the file could not be rewritten.
    """
    durable.faultpoint("purge.compact")
    place = str(directory).replace("'", "''")
    db.execute(f"PRAGMA temp_store_directory = '{place}'")
    try:
        db.execute("VACUUM")
    except sqlite3.OperationalError as error:
        raise StoreError(
            f"the samples are deleted and overwritten, but the database could not be compacted: {error}",
            hint="free as much disk space as the database is large and purge again",
        ) from error
    finally:
        db.execute("PRAGMA temp_store_directory = ''")
        is_busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if is_busy:
        raise StoreError(
            "the samples are deleted, but another program reads the database and keeps its log from being emptied",
            hint="purge again when no export, backup or training runs",
        )
