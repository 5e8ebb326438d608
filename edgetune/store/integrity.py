"""
Finding out whether edgetune.db is sound, and making a new one from what can be read of a damaged one.

A rebuild writes the new database beside the old one, then renames it to `edgetune.db.rebuilt`: from then on it counts.
`finish_rebuild` sets the damaged files aside as `edgetune.db.corrupt-TIME` and puts the new one in their place; it runs
at every start and goes on wherever the power went.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from edgetune.store import durable
from edgetune.store.database import connect, connect_read_only, is_corruption
from edgetune.store.migrations import migrate

_FAILED_READS_MAX = 20_000  # of one table; beyond that the rest of it is given up
_PROBLEMS_MAX = 20

_ROWID = "rowid_"  # the alias under which rows are read; no table has a column of that name

_QUESTIONS = {
    "{} samples have no image": "SELECT count(*) FROM samples WHERE id NOT IN (SELECT sample_id FROM images)",
    "{} samples have an image of another length than recorded": (
        "SELECT count(*) FROM samples JOIN images ON sample_id = id WHERE length(image) <> image_bytes"
    ),
    "{} samples are in another split than their group": (
        "SELECT count(*) FROM samples JOIN groups ON name = group_name WHERE samples.split <> groups.split"
    ),
    "{} samples have a label that their history does not end with": (
        "SELECT count(*) FROM samples LEFT JOIN labels ON labels.id = label_id"
        " WHERE samples.label IS NOT NULL AND (labels.sample_id IS NOT samples.id OR labels.label <> samples.label)"
    ),
    "{} samples that are not for training have the factory model's word for a label": (
        "SELECT count(*) FROM samples JOIN labels ON labels.id = label_id"
        " WHERE split <> 'training' AND source = 'factory'"
    ),
    "{} samples are held by a round that holds none": (
        "SELECT count(*) FROM samples WHERE pinned_by IS NOT NULL AND pinned_by NOT IN (SELECT round_id FROM freezes)"
    ),
    "{} predictions have an image of another length than recorded": (
        "SELECT count(*) FROM predictions LEFT JOIN prediction_images ON prediction = id"
        " WHERE coalesce(length(image), 0) <> image_bytes"
    ),
}


def connect_checked(path: Path) -> tuple[str, Database | None]:
    """Open the database after a quick look: what is wrong with the file, or nothing and the open database."""
    db: Database | None = None
    try:
        db = connect(path)
        found = quick_problems(db)
    except sqlite3.Error as error:
        if db is not None:
            db.close()
        if not is_corruption(error):
            raise
        return str(error), None
    if found:
        db.close()
        return found[0], None
    return "", db


def quick_problems(db: Database) -> list[str]:
    """What SQLite's own quick check finds; reads the whole file once."""
    return [row[0] for row in db.execute(f"PRAGMA quick_check({_PROBLEMS_MAX})") if row[0] != "ok"]


def problems(db: Database, *, full: bool) -> list[str]:
    """
    What is wrong with the database, as sentences: damage first, then rows that contradict each other.

    Args:
        db: open, without a transaction.
        full: compare every index with its table and every image with its checksum too.
    """
    try:
        found = quick_problems(db)
        if full and not found:
            found = [row[0] for row in db.execute(f"PRAGMA integrity_check({_PROBLEMS_MAX})") if row[0] != "ok"]
        if found:
            return found
        for table, row, parent, _ in db.execute("PRAGMA foreign_key_check"):
            found.append(f"row {row} of {table} belongs to a row of {parent} that is not there")
        for sentence, question in _QUESTIONS.items():
            if count := db.execute(question).fetchone()[0]:
                found.append(sentence.format(count))
        if full:
            found += _damaged_images(db)
    except sqlite3.DatabaseError as error:
        return [f"the database cannot be read: {error}"]
    return found


def check_beside(path: Path) -> list[str]:
    """The full check on a connection of its own, in any thread, while the owner works on; see `problems`."""
    with contextlib.closing(connect_read_only(path)) as connection:
        return problems(Database(connection, execute_plugins=False), full=True)


def _damaged_images(db: Database) -> list[str]:
    rows = db.execute("SELECT id, image, image_crc32 FROM samples JOIN images ON sample_id = id")
    return [f"the image of sample {row[0]} is damaged" for row in rows if zlib.crc32(row[1]) != row[2]]


# ------------------------------------------------------------------------------------------------------ rebuilding


def rebuild(path: Path) -> list[str]:
    """
    Set a damaged database aside and put one in its place that holds what could be read.

    Returns:
        Sentences: how much was read of each table, and where the damaged file is.
    """
    fresh = path.with_name(path.name + ".rebuild")
    for leftover in _with_log(fresh):
        durable.remove_file(leftover)
    db = connect(fresh)
    migrate(db)
    said = _salvage(path, db)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    db.close()
    durable.publish_file(fresh, path.with_name(path.name + ".rebuilt"))
    return [*said, *finish_rebuild(path)]


def finish_rebuild(path: Path) -> list[str]:
    """Put a rebuilt database in place, if there is one, and remove an unfinished one."""
    for leftover in _with_log(path.with_name(path.name + ".rebuild")):
        if leftover.exists():
            durable.remove_file(leftover)
    rebuilt = path.with_name(path.name + ".rebuilt")
    if not rebuilt.exists():
        return []
    # The name comes from the rebuilt file, so that a second try after a power cut uses the same one.
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(rebuilt.stat().st_mtime))
    aside = path.with_name(f"{path.name}.corrupt-{stamp}")
    for damaged, target in reversed(list(zip(_with_log(path), _with_log(aside), strict=True))):
        if damaged.exists():  # the logs first: a log beside a new database would be taken for its own
            durable.move(damaged, target)
    durable.publish_file(rebuilt, path)
    return [f"the damaged database was set aside as {aside}"]


def _with_log(path: Path) -> list[Path]:
    return [path, path.with_name(path.name + "-shm"), path.with_name(path.name + "-wal")]


def _salvage(damaged: Path, db: Database) -> list[str]:
    with contextlib.closing(connect_read_only(damaged)) as source:
        source.row_factory = sqlite3.Row
        try:
            source.execute("PRAGMA cell_size_check = ON")
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            return [f"nothing of it could be read: {error}"]
        with db.atomic():
            return _copy_tables(source, db)


def _copy_tables(source: sqlite3.Connection, db: Database) -> list[str]:
    """Parents before children; whatever a child needs and lost is made up from the child."""
    for row in _rows(source, "classes"):
        _insert(db, "classes", row)
    for row in _rows(source, "groups"):
        _insert(db, "groups", row)
    lost, kept = _copy_samples(source, db)
    counts = {}
    for table in ("labels", "freezes", "counters", "predictions", "rounds", "events", "readings", "state", "estimates"):
        counts[table] = sum(_insert(db, table, row) for row in _rows(source, table))
    for row in _rows(source, "prediction_images"):
        _insert(db, "prediction_images", row)
    for row in _rows(source, "sqlite_sequence"):  # ids of lost rows are not given again
        db.execute("UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?", (row["seq"], row["name"]))
    _mend(db)
    said = [f"{kept} samples were read" + (f", {lost} were not whole and are lost" if lost else "")]
    said += [f"{count} {table} were read" for table, count in counts.items() if count and table in _WORTH_SAYING]
    return said


_WORTH_SAYING = ("labels", "predictions", "rounds", "events")


def _copy_samples(source: sqlite3.Connection, db: Database) -> tuple[int, int]:
    lost = kept = 0
    for row in _rows(source, "samples"):
        image = _image(source, row["id"])
        if image is None or zlib.crc32(image) != row["image_crc32"]:
            lost += 1
            continue
        db.execute("INSERT OR IGNORE INTO groups VALUES (?, ?)", (row["group_name"], row["split"]))
        if row["label"] is not None:
            db.execute(
                "INSERT OR IGNORE INTO classes (name, status, first_seen_s) VALUES (?, 'pending', ?)",
                (row["label"], row["added_at_s"]),
            )
        if _insert(db, "samples", row):
            db.execute("INSERT INTO images VALUES (?, ?)", (row["id"], image))
            kept += 1
    return lost, kept


def _image(source: sqlite3.Connection, sample_id: int) -> bytes | None:
    try:
        row = source.execute("SELECT image FROM images WHERE sample_id = ?", (sample_id,)).fetchone()
    except sqlite3.Error:
        return None
    return None if row is None else bytes(row[0])


def _insert(db: Database, table: str, row: sqlite3.Row) -> int:
    """One row; a row that breaks a rule of the schema (its parent is lost, its text is not text) is left out."""
    names = [name for name in row.keys() if name != _ROWID]  # noqa: SIM118 - a Row iterates over its values
    columns = ", ".join(f'"{name}"' for name in names)
    marks = ", ".join("?" * len(names))
    try:
        cursor = db.execute(
            f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})",  # noqa: S608 - our own tables' names
            [row[name] for name in names],
        )
    except sqlite3.Error:
        return 0
    return cursor.rowcount


def _mend(db: Database) -> None:
    """Make the salvaged rows agree with each other."""
    db.execute(
        "INSERT OR IGNORE INTO labels (id, sample_id, label, source, said_at_s)"
        " SELECT label_id, id, label, 'api', added_at_s FROM samples WHERE label IS NOT NULL"
        " AND NOT EXISTS (SELECT 1 FROM labels WHERE labels.id = samples.label_id)"
    )
    db.execute("UPDATE samples SET split = (SELECT split FROM groups WHERE name = group_name)")
    db.execute("UPDATE samples SET pinned_by = NULL WHERE pinned_by NOT IN (SELECT round_id FROM freezes)")
    db.execute(
        "UPDATE predictions SET image_bytes = coalesce((SELECT length(image) FROM prediction_images"
        " WHERE prediction = predictions.id), 0)"
    )


def _rows(source: sqlite3.Connection, table: str) -> Iterator[sqlite3.Row]:
    """Every row of a table that can be read: forwards to the first damage, then around it in ever smaller steps."""
    bounds = _bounds(source, table)
    if bounds is not None:
        yield from _range(source, table, *bounds)


def _bounds(source: sqlite3.Connection, table: str) -> tuple[int, int] | None:
    """The lowest and highest rowid; where even they cannot be read, all that a rowid can reasonably be."""
    bounds: list[int] = []
    for function, unknown in (("min", 0), ("max", 2**40)):
        try:
            value: Any = source.execute(f"SELECT {function}(rowid) FROM {table}").fetchone()[0]  # noqa: S608
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return None
            value = unknown
        except sqlite3.Error:
            value = unknown
        if value is None:
            return None
        bounds.append(value)
    return bounds[0], bounds[1]


def _range(source: sqlite3.Connection, table: str, low: int, high: int) -> Iterator[sqlite3.Row]:
    """Rows with low <= rowid <= high; on damage, what is left of the range is halved."""
    pending = [(low, high)]
    failures = 0
    while pending and failures < _FAILED_READS_MAX:
        low, high = pending.pop()
        try:
            cursor = source.execute(
                f"SELECT rowid AS {_ROWID}, * FROM {table} WHERE rowid BETWEEN ? AND ? ORDER BY rowid",  # noqa: S608
                (low, high),
            )
            for row in cursor:
                low = row[_ROWID] + 1
                yield row
        except sqlite3.Error:
            failures += 1
            if low < high:
                middle = (low + high) // 2
                pending += [(middle + 1, high), (low, middle)]
