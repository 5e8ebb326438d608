"""
The samples of this board in SQLite: taken in groups, kept within a quota, split for ever, pinned while a round runs.

One thread owns the buffer; the daemon calls it through an executor of one thread. `export` and `backup` use connections
of their own and may be called from any thread. The database is the only truth: the numbers held in memory (`Tally`,
class statuses) are forgotten whenever a transaction fails and counted again when they are next needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from edgetune.clock import Clock
from edgetune.errors import ConflictError, NotFoundError, QuotaError
from edgetune.store import copying, durable, freezing, integrity, purging
from edgetune.store.contents import Contents, check_label
from edgetune.store.database import connect, explained, scalar
from edgetune.store.migrations import migrate
from edgetune.store.prediction_log import PredictionLog
from edgetune.store.predictions import FeedbackRow, PredictionRow, PredictionSummary
from edgetune.store.retention import BufferPolicy, Count, Tally, assign_split
from edgetune.types import (
    AddOutcome,
    BufferStats,
    ClassStats,
    FrozenSample,
    LabelSource,
    NewSample,
    Split,
)

__all__ = ["Buffer", "FeedbackRow", "PredictionRow", "PredictionSummary", "assign_split", "check_label", "read_images"]

read_images = copying.read_images


class Buffer:
    """
    The samples and their labels; and the connection that `History` shares.

    Attributes:
        path: of the database.
        predictions: what the service answered and what people said about it, in the same database.
    """

    def __init__(self, path: Path, policy: BufferPolicy, *, clock: Clock) -> None:
        """Take note; nothing is read or written before `open`. `clock` tells wall time, for people."""
        self.path = path
        self._clock = clock
        self._contents = Contents(policy, clock)
        self.predictions = PredictionLog(self._contents, clock)

    # ------------------------------------------------------------------------------------------------ lifecycle

    @property
    def database(self) -> Database:
        """The open database."""
        return self._contents.database

    def open(self) -> tuple[str, ...]:
        """
        Open the database, checked, at this program's schema; a damaged one is set aside and rebuilt.

        Returns:
            A sentence for everything that was repaired.

        Raises:
            StoreError: it cannot be opened, or a newer edgetune made it.
        """
        durable.make_dir(self.path.parent)
        said = list(integrity.finish_rebuild(self.path))
        with explained():
            problem, database = integrity.connect_checked(self.path)
            if database is None:
                said += [f"the sample buffer's database is damaged ({problem})", *integrity.rebuild(self.path)]
                database = connect(self.path)
            self._contents.attach(database)
            migrate(database)
            durable.fsync_dir(self.path.parent)
        return tuple(said)

    def close(self) -> None:
        """Close the database; the next `open` finds everything that was committed, closed or not."""
        if self._contents.is_attached:
            self.database.close()
        self._contents.attach(None)

    def check(self, *, full: bool = False) -> list[str]:
        """
        What is wrong with the buffer, as sentences; empty when all is well.

        Args:
            full: read every image and every index too, which takes as long as reading the file.
        """
        return [*integrity.problems(self.database, full=full), *self._contents.problems()]

    def configure(self, policy: BufferPolicy) -> int:
        """Take new wishes after a reload; shares count for groups not seen yet. Returns how many samples were evicted."""
        self._contents.policy = policy
        with self._contents.change("configure"):
            self.predictions.trim()
            before = self._contents.evicted
            with contextlib.suppress(QuotaError):  # pinned and protected samples may be more than the new quota
                self._contents.make_room(0)
            evicted = self._contents.evicted - before
        # Not execute(): that asks for the first step only, which frees one page.
        self.database.conn.executescript("PRAGMA incremental_vacuum")
        return evicted

    def change(self, name: str) -> AbstractContextManager[None]:
        """Several calls in one transaction, with whatever else is written to the database; `name` is for faultpoints."""
        return self._contents.change(name)

    # --------------------------------------------------------------------------------------------------- samples

    def add(self, samples: Sequence[NewSample]) -> list[AddOutcome]:
        """
        Take samples in, all of them or none, on disk when this returns; room is made by `Retention`.

        Returns:
            What became of each, in order.

        Raises:
            QuotaError: there is no room and nothing that may be evicted; nothing was taken.
            UsageError: a label cannot be a class name; nothing was taken.
        """
        with self._contents.change("add"):
            return [self._contents.add(sample) for sample in samples]

    def label(self, sample: int | str, label: str, source: LabelSource) -> None:
        """
        Say what a sample shows; the latest word counts and the earlier ones are kept as history.

        The factory model's word counts only for a training sample of which nobody has said anything.

        Args:
            sample: its id, or its digest.
            label: a class name.
            source: who says so.

        Raises:
            NotFoundError: no such sample.
            UsageError: the label cannot be a class name.
        """
        column = "id" if isinstance(sample, int) else "digest"
        with self._contents.change("label"):
            row = self._contents.row(column, sample)
            if row is None:
                raise self._no_such(sample)
            self._contents.relabel(row, label, source)

    def image(self, sample: int | str) -> bytes:
        """
        A sample's image as it is stored: lossless at the model's size, or the file that was dropped.

        Args:
            sample: its id, or its digest.

        Raises:
            NotFoundError: no such sample.
            BufferCorruptError: it is not what was stored.
        """
        row = self._contents.row("id" if isinstance(sample, int) else "digest", sample)
        if row is None:
            raise self._no_such(sample)
        ((_, image),) = read_images(self.path, [row["id"]])
        return image

    def samples(
        self,
        *,
        label: str | None = None,
        split: Split | None = None,
        labelled: bool | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[dict[str, Any]]:
        """The samples that match, newest first, without their images."""
        with explained():
            return copying.list_samples(
                self.database, label=label, split=split, labelled=labelled, limit=limit, offset=offset
            )

    def purge(
        self,
        *,
        sample_id: int | None = None,
        digest: str | None = None,
        label: str | None = None,
        everything: bool = False,
    ) -> int:
        """
        Remove samples for good: overwritten in the file, gone from the WAL and the free pages.

        With a sample go its image, its label history, and the predictions that show the same.

        Returns:
            How many samples and predictions were removed.

        Raises:
            UsageError: not exactly one of the arguments was given.
            ConflictError: a running round holds one of them; nothing was removed.
            StoreError: the rows are gone, but the file could not be compacted (the disk is full).
        """
        with self._contents.change("purge"):
            removed = purging.delete(
                self.database, sample_id=sample_id, digest=digest, label=label, everything=everything
            )
            self._contents.forget()
        with explained():
            purging.compact(self.database, self.path.parent)
        return removed

    def export(self, directory: Path) -> int:
        """Write all samples as `class/digest.ext` with a `manifest.json`; see `copying.export_samples`."""
        with explained():
            return copying.export_samples(self.path, directory)

    def backup(self, path: Path) -> None:
        """Write a consistent copy of the database while it is in use; see `copying.backup`."""
        with explained():
            copying.backup(self.path, path)

    # --------------------------------------------------------------------------------------------------- classes

    def set_factory_classes(self, classes: Sequence[str]) -> None:
        """The factory model's classes: always accepted."""
        with self._contents.change("set_factory_classes"):
            self.database.execute("UPDATE classes SET is_factory = 0 WHERE is_factory = 1")
            for name in classes:
                self.database.execute(
                    "INSERT INTO classes (name, status, is_factory, first_seen_s) VALUES (?, 'accepted', 1, ?)"
                    " ON CONFLICT (name) DO UPDATE SET status = 'accepted', is_factory = 1",
                    (check_label(name), self._clock.wall_s()),
                )
            self._contents.forget()

    def settle_classes(self, *, accepted: Sequence[str], refused: Sequence[str]) -> None:
        """Decide on classes by name, seen or not; what the configuration says. Factory classes stay accepted."""
        with self._contents.change("settle_classes"):
            for name, status in [(name, "accepted") for name in accepted] + [(name, "refused") for name in refused]:
                self.database.execute(
                    "INSERT INTO classes (name, status, first_seen_s) VALUES (?, ?, ?)"
                    " ON CONFLICT (name) DO UPDATE SET status = excluded.status WHERE is_factory = 0",
                    (check_label(name), status, self._clock.wall_s()),
                )
            self._contents.forget()

    def accept_class(self, name: str) -> None:
        """Let rounds learn this class. Raises NotFoundError when no sample ever had this label."""
        self._decide_class(name, "accepted")

    def refuse_class(self, name: str) -> None:
        """Keep rounds from learning this class. Raises ConflictError for a class of the factory model."""
        with explained():
            if scalar(self.database, "SELECT is_factory FROM classes WHERE name = ?", (name,)):
                raise ConflictError(f"{name!r} is a class of the factory model and cannot be refused")
        self._decide_class(name, "refused")

    def classes(self) -> tuple[ClassStats, ...]:
        """All classes ever seen, with what the buffer holds of them, in the order of their names."""
        tally = self._contents.tally()
        return tuple(_class_stats(name, status, tally) for name, status in sorted(self._contents.statuses().items()))

    def stats(self) -> BufferStats:
        """What the buffer holds; cheap enough for every tick."""
        tally = self._contents.tally()
        classes = self.classes()
        total = tally.total()
        unlabelled = sum(tally.shelves.get((None, split), Count()).samples for split in Split)
        accepted = (entry.label for entry in classes if entry.status == "accepted")
        new = sum(tally.shelves.get((label, Split.TRAINING), Count()).new for label in accepted)
        with explained():
            counters = dict(self.database.execute("SELECT name, value FROM counters").fetchall())
        return BufferStats(
            samples=total.samples,
            labelled=total.samples - unlabelled,
            unlabelled=unlabelled,
            duplicates=counters.get("duplicates", 0),
            stored_bytes=self._contents.stored_bytes(),
            quota_bytes=self._contents.policy.quota_bytes,
            pinned=total.pinned,
            evicted=counters.get("evicted", 0),
            quarantined=counters.get("quarantined", 0),
            new_labelled=new,
            classes=classes,
            new_unlabelled=tally.shelves.get((None, Split.TRAINING), Count()).new,
        )

    def count_quarantined(self, files: int = 1) -> None:
        """Remember that the inbox put files into quarantine."""
        with self._contents.change("count_quarantined"):
            self._contents.raise_counter("quarantined", files)

    # ---------------------------------------------------------------------------------------------------- rounds

    def freeze(
        self,
        round_id: int,
        *,
        classes: Sequence[str] | None = None,
        training_max: int | None = None,
        unlabelled_max: int | None = 0,
    ) -> tuple[FrozenSample, ...]:
        """
        Choose a round's samples and hold them until `release`; asked again, a round's choice is made anew.

        Args:
            round_id: the round that holds them.
            classes: only these, of the accepted ones; None: all accepted ones.
            training_max: at most so many training samples, the newest, as evenly over the classes as there are.
            unlabelled_max: at most so many training samples without a label, those that no round has used first, and of
                them the newest; None: all.

        Returns:
            Labelled samples of all three splits and unlabelled ones for training, in the order of their ids.

        Raises:
            ConflictError: another round holds samples.
        """
        with self._contents.change("freeze"):
            accepted = [name for name, status in self._contents.statuses().items() if status == "accepted"]
            frozen = freezing.freeze(
                self.database,
                round_id,
                [name for name in accepted if classes is None or name in classes],
                training_max=training_max,
                unlabelled_max=unlabelled_max,
            )
            self._contents.forget()
        return frozen

    def frozen_rounds(self) -> tuple[int, ...]:
        """The rounds that hold samples: at most one, unless the last process died between two steps."""
        with explained():
            return freezing.frozen_rounds(self.database)

    def release(self, round_id: int, *, consumed: bool) -> None:
        """
        Let a round's samples go; a round that holds none is no error.

        Args:
            round_id: the round.
            consumed: the round has used them, so what was labelled before its freeze is no longer new.
        """
        with self._contents.change("release"):
            freezing.release(self.database, round_id, consumed=consumed)
            self._contents.forget()

    # --------------------------------------------------------------------------------------------------- details

    def _decide_class(self, name: str, status: str) -> None:
        with self._contents.change("decide_class"):
            if not self.database.execute("UPDATE classes SET status = ? WHERE name = ?", (status, name)).rowcount:
                raise NotFoundError(f"no sample was ever labelled {name!r}", hint="see: edgetune data stats")
            self._contents.forget()

    def _no_such(self, sample: int | str) -> NotFoundError:
        last = scalar(self.database, "SELECT seq FROM sqlite_sequence WHERE name = 'samples'")
        if isinstance(sample, int) and 0 < sample <= int(last or 0):
            text = f"sample {sample} is not in the buffer any more: it was evicted for the quota, or purged"
            return NotFoundError(text, hint="label one that is there: edgetune data next")
        return NotFoundError(f"there is no sample {sample}", hint="see: edgetune data ls")


def _class_stats(name: str, status: str, tally: Tally) -> ClassStats:
    counts = {split: tally.shelves.get((name, split), Count()) for split in Split}
    return ClassStats(
        label=name,
        status=status,
        training=counts[Split.TRAINING].samples,
        validation=counts[Split.VALIDATION].samples,
        holdout=counts[Split.HOLDOUT].samples,
        labelled_since_round=sum(count.new for count in counts.values()),
        training_since_round=counts[Split.TRAINING].new,
    )
