"""
What is in edgetune.db's sample tables, row by row, and the numbers about it that are held in memory.

The database is the only truth: numbers are forgotten whenever a transaction fails and counted again when they are next
needed.
"""

from __future__ import annotations

import contextlib
import sqlite3
import unicodedata
import zlib
from collections.abc import Iterator

from sqlite_utils import Database

from edgetune.clock import Clock
from edgetune.errors import QuotaError, StoreError, UsageError
from edgetune.store import predictions
from edgetune.store.database import explained, scalar, transaction
from edgetune.store.retention import BufferPolicy, Count, Tally, assign_split
from edgetune.types import AddOutcome, LabelSource, NewSample, Split

_LABEL_CHARACTERS_MAX = 200


def check_label(label: str) -> str:
    """
    Return the label if it can be a class name.

    Raises:
        UsageError: it is empty, too long, has spaces around it or control characters in it.
    """
    if not label or label != label.strip() or len(label) > _LABEL_CHARACTERS_MAX:
        raise UsageError(
            f"{label[:50]!r} cannot be a class name: 1 to {_LABEL_CHARACTERS_MAX} characters, no spaces around"
        )
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in label):
        raise UsageError(f"{label[:50]!r} cannot be a class name: it has control characters")
    return label


class Contents:
    """The sample tables and their numbers; the `Buffer` is its only user."""

    def __init__(self, policy: BufferPolicy, clock: Clock) -> None:
        """Nothing is open yet: `attach` brings the database."""
        self.policy = policy
        self.evicted = 0  # since this object was made
        self._clock = clock
        self._database: Database | None = None
        self._tally: Tally | None = None
        self._statuses: dict[str, str] | None = None
        self._prediction_bytes: int | None = None

    @property
    def database(self) -> Database:
        """The open database."""
        if self._database is None:
            raise StoreError("the sample buffer is not open")
        return self._database

    @property
    def is_attached(self) -> bool:
        """Whether a database is open."""
        return self._database is not None

    def attach(self, database: Database | None) -> None:
        """Work on this database from now on; None: on none."""
        self._database = database
        self.forget()

    def problems(self) -> list[str]:
        """Whether the numbers held in memory are those in the database."""
        if self._tally is None or self._tally.nonzero() == _count(self.database).nonzero():
            return []
        return ["the numbers held in memory are not those in the database"]

    @contextlib.contextmanager
    def change(self, name: str) -> Iterator[None]:
        """One transaction; when it fails, what is held in memory is forgotten."""
        evicted = self.evicted
        is_outermost = not self.database.conn.in_transaction
        try:
            with transaction(self.database, name):
                yield
                if is_outermost and self.evicted != evicted:
                    self.raise_counter("evicted", self.evicted - evicted)
        except BaseException:
            self.evicted = evicted
            self.forget()
            raise

    def forget(self) -> None:
        """The next question counts anew."""
        self._tally = None
        self._statuses = None
        self._prediction_bytes = None

    def forget_prediction_images(self) -> None:
        """Images of predictions came or went."""
        self._prediction_bytes = None

    def tally(self) -> Tally:
        """The numbers, counted when they are not known."""
        if self._tally is None:
            with explained():
                self._tally = _count(self.database)
        return self._tally

    def statuses(self) -> dict[str, str]:
        """Class -> "accepted", "pending" or "refused"."""
        if self._statuses is None:
            with explained():
                self._statuses = dict(self.database.execute("SELECT name, status FROM classes").fetchall())
        return self._statuses

    def stored_bytes(self) -> int:
        """What counts against the quota."""
        if self._prediction_bytes is None:
            with explained():
                self._prediction_bytes = predictions.image_bytes_held(self.database)
        return self.tally().image_bytes + self._prediction_bytes

    def raise_counter(self, name: str, step: int = 1) -> None:
        """Count something that is not a row any more."""
        self.database.execute(
            "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            (name, step),
        )

    def row(self, column: str, value: int | str) -> sqlite3.Row | None:
        """A sample by its `id` or `digest`, without its image."""
        cursor = self.database.conn.cursor()
        cursor.row_factory = sqlite3.Row
        row: sqlite3.Row | None = cursor.execute(
            "SELECT id, label, split, image_bytes, is_new, pinned_by,"  # noqa: S608 - a column's name
            " (SELECT source FROM labels WHERE labels.id = label_id) AS source FROM samples"
            f" WHERE {column} = ?",
            (value,),
        ).fetchone()
        return row

    def add(self, sample: NewSample) -> AddOutcome:
        """Take one sample, inside a transaction. Raises QuotaError, UsageError."""
        known = self.row("digest", sample.digest)
        if known is None:
            self.make_room(len(sample.image))
            self._insert(sample)
            return AddOutcome.STORED
        self.database.execute("UPDATE samples SET seen = seen + 1 WHERE id = ?", (known["id"],))
        if sample.label is not None and self.relabel(known, sample.label, sample.label_source):
            return AddOutcome.RELABELLED
        self.raise_counter("duplicates")
        return AddOutcome.DUPLICATE

    def _insert(self, sample: NewSample) -> None:
        split = self._split_of(sample.group)
        now_s = self._clock.wall_s()
        sample_id = self.database.execute(
            "INSERT INTO samples (digest, split, group_name, width, height, image_bytes, image_crc32, origin,"
            " taken_at_s, added_at_s, is_new) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)",
            (
                sample.digest,
                split.value,
                sample.group,
                sample.width,
                sample.height,
                len(sample.image),
                zlib.crc32(sample.image),
                sample.origin,
                sample.taken_at_s,
                now_s,
            ),
        ).lastrowid
        self.database.execute("INSERT INTO images VALUES (?, ?)", (sample_id, sample.image))
        self.tally().put(None, split, image_bytes=len(sample.image), is_new=True)
        if sample.label is not None:
            row = self.row("id", int(sample_id or 0))
            assert row is not None
            self.relabel(row, sample.label, sample.label_source)

    def relabel(self, row: sqlite3.Row, label: str, source: LabelSource | None) -> bool:
        """Write a label down; False when the sample has it already, or when the word does not count."""
        if source is LabelSource.FACTORY and (row["label"] is not None or Split(row["split"]) is not Split.TRAINING):
            return False
        if row["label"] == label and row["source"] != LabelSource.FACTORY.value:
            return False
        self._register_class(check_label(label))
        label_id = self.database.execute(
            "INSERT INTO labels (sample_id, label, source, said_at_s) VALUES (?, ?, ?, ?)",
            (row["id"], label, (source or LabelSource.API).value, self._clock.wall_s()),
        ).lastrowid
        self.database.execute(
            "UPDATE samples SET label = ?, label_id = ?, is_new = 1 WHERE id = ?", (label, label_id, row["id"])
        )
        split, is_pinned = Split(row["split"]), row["pinned_by"] is not None
        tally = self.tally()
        tally.take(row["label"], split, image_bytes=row["image_bytes"], is_new=bool(row["is_new"]), is_pinned=is_pinned)
        tally.put(label, split, image_bytes=row["image_bytes"], is_new=True, is_pinned=is_pinned)
        return True

    def _register_class(self, name: str) -> None:
        statuses = self.statuses()
        if name in statuses:
            return
        self.database.execute(
            "INSERT INTO classes (name, status, first_seen_s) VALUES (?, ?, ?)",
            (name, self.policy.status_of_unseen, self._clock.wall_s()),
        )
        statuses[name] = self.policy.status_of_unseen

    def _split_of(self, group: str) -> Split:
        """The split of a group, which stays what it was when the shares change."""
        known = scalar(self.database, "SELECT split FROM groups WHERE name = ?", (group,))
        if known is not None:
            return Split(known)
        split = assign_split(group, self.policy.validation_share, self.policy.holdout_share)
        self.database.execute("INSERT INTO groups VALUES (?, ?)", (group, split.value))
        return split

    def make_room(self, needed_bytes: int) -> None:
        """Evict until so many bytes fit. Raises QuotaError when nothing more may go."""
        while self.stored_bytes() + needed_bytes > self.policy.quota_bytes:
            if not self._evict_one():
                raise QuotaError(
                    f"the sample buffer is full: {self.stored_bytes()} of {self.policy.quota_bytes} bytes, and all that is"
                    " left is pinned by a round or needed for validation"
                )

    def _evict_one(self) -> bool:
        tally = self.tally()
        refused = frozenset(name for name, status in self.statuses().items() if status == "refused")
        shelf = next(self.policy.victims(tally, refused), None)
        if shelf is None:
            return False
        label, split = shelf
        sql, parameters = (_OLDEST_UNLABELLED, ()) if label is None else (_OLDEST, (label, split.value))
        sample_id, found_split, image_bytes, is_new = self.database.execute(sql, parameters).fetchone()
        self.database.execute("DELETE FROM samples WHERE id = ?", (sample_id,))
        tally.take(label, Split(found_split), image_bytes=image_bytes, is_new=bool(is_new))
        self.evicted += 1
        return True


_OLDEST = (
    "SELECT id, split, image_bytes, is_new FROM samples"
    " WHERE label = ? AND split = ? AND pinned_by IS NULL ORDER BY id LIMIT 1"
)
_OLDEST_UNLABELLED = (
    "SELECT id, split, image_bytes, is_new FROM samples WHERE label IS NULL AND pinned_by IS NULL ORDER BY id LIMIT 1"
)


def _count(db: Database) -> Tally:
    tally = Tally()
    for label, split, samples, new, pinned, image_bytes in db.execute(
        "SELECT label, split, count(*), sum(is_new), count(pinned_by), sum(image_bytes)"
        " FROM samples GROUP BY label, split"
    ):
        tally.shelves[label, Split(split)] = Count(samples=samples, new=new, pinned=pinned, image_bytes=image_bytes)
        tally.image_bytes += image_bytes
    return tally
