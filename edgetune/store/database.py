"""One way to open edgetune.db, one transaction, and SQLite's errors in the words of an operator."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from edgetune.errors import BufferCorruptError, StoreError
from edgetune.store import durable

BUSY_TIMEOUT_S = 10.0
_WAL_LIMIT_BYTES = 16 * 2**20  # a larger WAL is cut back when it is next emptied


def connect(path: Path) -> Database:
    """
    Open the database for its owner: WAL, every commit synced, foreign keys, deleted content overwritten.

    The connection belongs to the thread that opens it.
    """
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    try:
        if connection.execute("PRAGMA page_count").fetchone()[0] == 0:  # a new file; it cannot be changed later
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
    except BaseException:
        connection.close()
        raise
    return Database(connection, strict=True, execute_plugins=False)


def connect_read_only(path: Path) -> sqlite3.Connection:
    """Open the database beside its owner, in any thread or process; it cannot be changed through this."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None
    )


@contextlib.contextmanager
def transaction(db: Database, name: str) -> Iterator[Database]:
    """All or nothing, on disk when it ends; nested ones belong to the outermost. `name` is for faultpoints."""
    is_outermost = not db.conn.in_transaction
    with explained(), db.atomic():
        yield db
        if is_outermost:
            durable.faultpoint(f"{name}.commit")
    if is_outermost:
        durable.faultpoint(f"{name}.committed")


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """
    Say SQLite's errors in an operator's words.

    Raises:
        BufferCorruptError: the file is damaged.
        StoreError: the disk is full, or something else keeps SQLite from reading or writing.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise _in_words(error) from error


def is_corruption(error: sqlite3.Error) -> bool:
    """Whether the error says that the file itself is damaged, not that it cannot be reached."""
    text = str(error).lower()
    return any(sign in text for sign in ("malformed", "not a database", "unsupported file format", "corrupt"))


def _in_words(error: sqlite3.Error) -> StoreError:
    if is_corruption(error):
        return BufferCorruptError(
            f"the sample buffer's database is damaged: {error}",
            hint="restart edgetune: it sets the file aside and rebuilds it from what can be read",
        )
    text = str(error)
    hint = {
        "database or disk is full": "free some disk space, or lower buffer.quota",
        "database is locked": "another program has the database open for writing; stop it",
        "disk I/O error": "look at the kernel log (dmesg) for errors of the storage device",
        "unable to open database file": "check that the state directory exists and belongs to edgetune",
        "attempt to write a readonly database": "edgetune.db and edgetune.db-wal in the state directory have to belong to "
        "edgetune, on a file system that is not mounted read-only",
    }.get(text, "")
    return StoreError(f"the sample buffer cannot be used: {text}", hint=hint)


def scalar(db: Database, sql: str, parameters: tuple[Any, ...] = ()) -> Any:
    """The first column of the first row, or None."""
    row = db.execute(sql, parameters).fetchone()
    return None if row is None else row[0]
