"""
Rounds, events, readings, and what the daemon must find again after a restart; in the buffer's database and thread.

Old events and readings are dropped by number, not by age: a board without a clock battery boots in the wrong year.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from sqlite_utils import Database

from edgetune import wire
from edgetune.clock import Clock
from edgetune.errors import NotFoundError
from edgetune.store.database import connect_read_only, explained, scalar, transaction
from edgetune.types import Reading

_ESTIMATES_MAX = 1000
_ROUND_COLUMNS = ("kind", "reason", "state", "started_at_s", "ended_at_s", "outcome", "message")


class HasDatabase(Protocol):
    """The open database's owner: the `Buffer`."""

    @property
    def database(self) -> Database:
        """The open database."""


class History:
    """What happened on this board."""

    def __init__(
        self,
        owner: HasDatabase,
        *,
        clock: Clock,
        readings_interval_s: float = 60.0,
        readings_max_age_s: float = 7 * 86400.0,
        events_max: int = 20_000,
    ) -> None:
        """
        Take note of the wishes; nothing is read or written.

        Args:
            owner: the buffer, opened before the first call here.
            clock: wall time, for people; its other clock spaces the readings.
            readings_interval_s: readings that come sooner after a kept one are dropped.
            readings_max_age_s: as many readings are kept as fit into this time.
            events_max: the oldest events beyond this number are dropped.
        """
        self._owner = owner
        self._clock = clock
        self._readings_interval_s = readings_interval_s
        self._readings_max = max(1, int(readings_max_age_s / max(readings_interval_s, 1e-3)))
        self._events_max = events_max
        self._last_reading_s: float | None = None

    # ---------------------------------------------------------------------------------------------------- rounds

    def next_round_id(self) -> int:
        """The number that `start_round` will give next; no round has had it."""
        with explained():
            last = scalar(self._db, "SELECT seq FROM sqlite_sequence WHERE name = 'rounds'")
            return max(int(last or 0), int(scalar(self._db, "SELECT coalesce(max(id), 0) FROM rounds"))) + 1

    def start_round(self, kind: str, reason: str, *, state: str, round_id: int | None = None, **details: Any) -> int:
        """
        Write a new round down.

        Args:
            kind: a `RoundKind`'s value.
            reason: why it was wanted.
            state: of the round machine.
            round_id: its number; None: the next one. A round that is there already is left as it is.
            details: anything that JSON takes: the spec without its samples, the trigger.

        Returns:
            Its number.
        """
        number = self.next_round_id() if round_id is None else round_id
        with self._change("start_round"):
            self._db.execute(
                "INSERT OR IGNORE INTO rounds (id, kind, reason, state, started_at_s, details) VALUES (?, ?, ?, ?, ?, ?)",
                (number, kind, reason, state, self._clock.wall_s(), _to_text(details)),
            )
        return number

    def update_round(self, round_id: int, *, is_ended: bool = False, **changes: Any) -> None:
        """
        Change a round's row; one commit.

        Args:
            round_id: which.
            is_ended: note the time as its end.
            changes: `kind`, `reason`, `state`, `outcome`, `message` replace those; any other name (`decision`,
                `comparison`, `candidate_version`, ...) is merged into the details; dataclasses are written as JSON.

        Raises:
            NotFoundError: no such round.
        """
        columns = {name: value for name, value in changes.items() if name in _ROUND_COLUMNS}
        if is_ended:
            columns["ended_at_s"] = self._clock.wall_s()
        details = {name: value for name, value in changes.items() if name not in _ROUND_COLUMNS}
        with self._change("update_round"):
            columns["details"] = _to_text({**self.round(round_id)["details"], **details})
            assignments = ", ".join(f"{name} = ?" for name in columns)
            self._db.execute(
                f"UPDATE rounds SET {assignments} WHERE id = ?",  # noqa: S608 - names from _ROUND_COLUMNS
                (*(_plain(value) for value in columns.values()), round_id),
            )

    def round(self, round_id: int) -> dict[str, Any]:
        """One round with its details. Raises NotFoundError."""
        with explained():
            rows = list(self._db.query("SELECT * FROM rounds WHERE id = ?", [round_id]))
        if not rows:
            raise NotFoundError(f"there is no round {round_id}", hint="see: edgetune rounds")
        return _round(rows[0])

    def rounds(self, limit: int = 20) -> list[dict[str, Any]]:
        """The latest rounds with their details, newest first."""
        with explained():
            return [_round(row) for row in self._db.query("SELECT * FROM rounds ORDER BY id DESC LIMIT ?", [limit])]

    # ---------------------------------------------------------------------------------------------------- events

    def add_event(self, kind: str, text: str, data: Mapping[str, Any] | None = None) -> int:
        """Write down that something happened. Returns its number; later events have higher ones."""
        with self._change("add_event"):
            seq = self._db.execute(
                "INSERT INTO events (wall_s, kind, text, data) VALUES (?, ?, ?, ?)",
                (self._clock.wall_s(), kind, text, _to_text(data or {})),
            ).lastrowid
            assert seq is not None
            self._db.execute("DELETE FROM events WHERE seq <= ?", (seq - self._events_max,))
        return seq

    def events_after(self, seq: int, limit: int = 100) -> list[dict[str, Any]]:
        """The first `limit` events after number `seq` (0: from the first kept), oldest first."""
        with explained():
            rows = self._db.query("SELECT * FROM events WHERE seq > ? ORDER BY seq LIMIT ?", [seq, limit])
            return [{**row, "data": json.loads(row["data"])} for row in rows]

    def last_event_seq(self) -> int:
        """The newest event's number, 0 when there was none."""
        with explained():
            return int(scalar(self._db, "SELECT coalesce(max(seq), 0) FROM events"))

    # -------------------------------------------------------------------------------------------------- readings

    def record_reading(self, reading: Reading) -> bool:
        """Keep a reading unless one was kept less than the interval ago. Returns whether it was kept."""
        last = self._last_reading_s
        if last is not None and 0 <= reading.at_s - last < self._readings_interval_s:
            return False
        values = {quantity.value: measurement.value for quantity, measurement in reading.values.items()}
        with self._change("record_reading"):
            newest = self._db.execute(
                "INSERT INTO readings (wall_s, data) VALUES (?, ?)", (reading.wall_s, json.dumps(values))
            ).lastrowid
            self._db.execute("DELETE FROM readings WHERE id <= ?", (int(newest or 0) - self._readings_max,))
        self._last_reading_s = reading.at_s
        return True

    def readings(self, limit: int = 1000) -> list[dict[str, Any]]:
        """The latest readings, oldest first: `wall_s` and one key for each quantity, None where it was unknown."""
        with explained():
            rows = self._db.execute("SELECT wall_s, data FROM readings ORDER BY id DESC LIMIT ?", (limit,)).fetchall()
        return [{"wall_s": wall_s, **json.loads(data)} for wall_s, data in reversed(rows)]

    # ------------------------------------------------------------------------------------------------- estimates

    def add_estimate(self, model_version: int, data: Mapping[str, Any]) -> None:
        """Keep what a version's accuracy was estimated to be; the oldest beyond a thousand are dropped."""
        with self._change("add_estimate"):
            newest = self._db.execute(
                "INSERT INTO estimates (model_version, wall_s, data) VALUES (?, ?, ?)",
                (model_version, self._clock.wall_s(), _to_text(data)),
            ).lastrowid
            self._db.execute("DELETE FROM estimates WHERE id <= ?", (int(newest or 0) - _ESTIMATES_MAX,))

    def estimates(self, limit: int = 100) -> list[dict[str, Any]]:
        """The latest estimates, oldest first: `model_version`, `wall_s`, and what was kept of each."""
        with explained():
            rows = self._db.execute(
                "SELECT model_version, wall_s, data FROM estimates ORDER BY id DESC LIMIT ?", (limit,)
            ).fetchall()
        return [{"model_version": row[0], "wall_s": row[1], **json.loads(row[2])} for row in reversed(rows)]

    # ----------------------------------------------------------------------------------------------------- state

    def get_state(self, key: str, default: Any = None) -> Any:
        """What was last set under this key, or the default."""
        with explained():
            text = scalar(self._db, "SELECT value FROM state WHERE key = ?", (key,))
        return default if text is None else json.loads(text)

    def set_state(self, key: str, value: Any) -> None:
        """Keep a value that JSON takes; on disk when this returns."""
        self.set_states({key: value})

    def set_states(self, values: Mapping[str, Any]) -> None:
        """Keep several values, all or none; on disk when this returns."""
        with self._change("set_state"):
            for key, value in values.items():
                self._db.execute(
                    "INSERT INTO state VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                    (key, json.dumps(_plain(value), ensure_ascii=False)),
                )

    # --------------------------------------------------------------------------------------------------- details

    @property
    def _db(self) -> Database:
        return self._owner.database

    def _change(self, name: str) -> Any:
        return transaction(self._db, name)


def _plain(value: Any) -> Any:
    return wire.to_plain(value) if hasattr(value, "__dataclass_fields__") else value


def _to_text(details: Mapping[str, Any]) -> str:
    return json.dumps({name: _plain(value) for name, value in details.items()}, ensure_ascii=False)


def _round(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "details": json.loads(row["details"])}


def read_state(path: Path, key: str) -> Any:
    """What a daemon that does not run left under this key; None when there is no database or no such key."""
    if not path.exists():
        return None
    with explained(), contextlib.closing(connect_read_only(path)) as connection:
        row = connection.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
    return None if row is None else json.loads(row[0])
