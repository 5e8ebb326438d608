"""
The schema of edgetune.db, as ordered steps that are applied once each, each in one transaction with its record.

Never change a step that was released; add one. Images live in tables of their own, so that counting and choosing
samples never reads them. Rows are ordered by ids that are never used twice, not by wall time: a board without a clock
battery boots in the wrong year.
"""

from __future__ import annotations

from sqlite_utils import Database, Migrations

from edgetune.errors import StoreError

migrations = Migrations("edgetune")


@migrations()
def m001_samples(db: Database) -> None:
    """Samples, their images, the history of their labels, classes, groups, and the rounds that hold samples."""
    db.executescript(
        """
        CREATE TABLE classes (
            name TEXT PRIMARY KEY CHECK (name <> ''),
            status TEXT NOT NULL CHECK (status IN ('accepted', 'pending', 'refused')),
            is_factory INTEGER NOT NULL DEFAULT 0,
            first_seen_s REAL NOT NULL
        ) STRICT;
        CREATE TABLE groups (
            name TEXT PRIMARY KEY,
            split TEXT NOT NULL CHECK (split IN ('training', 'validation', 'holdout'))
        ) STRICT;
        CREATE TABLE samples (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            digest TEXT NOT NULL UNIQUE,
            label TEXT REFERENCES classes (name),
            label_id INTEGER,
            is_new INTEGER NOT NULL DEFAULT 0,
            split TEXT NOT NULL CHECK (split IN ('training', 'validation', 'holdout')),
            group_name TEXT NOT NULL REFERENCES groups (name),
            width INTEGER NOT NULL,
            height INTEGER NOT NULL,
            image_bytes INTEGER NOT NULL,
            image_crc32 INTEGER NOT NULL,
            origin TEXT NOT NULL,
            taken_at_s REAL NOT NULL,
            added_at_s REAL NOT NULL,
            seen INTEGER NOT NULL DEFAULT 1,
            pinned_by INTEGER,
            CHECK ((label IS NULL) = (label_id IS NULL))
        ) STRICT;
        CREATE INDEX samples_by_group ON samples (group_name);
        CREATE INDEX samples_by_class ON samples (label, split, id);
        CREATE INDEX samples_evictable ON samples (label, split, id) WHERE pinned_by IS NULL;
        CREATE INDEX samples_unlabelled ON samples (id) WHERE label IS NULL AND pinned_by IS NULL;
        CREATE INDEX samples_pinned ON samples (pinned_by) WHERE pinned_by IS NOT NULL;
        CREATE INDEX samples_new ON samples (label, label_id) WHERE is_new = 1;
        CREATE TABLE images (
            sample_id INTEGER PRIMARY KEY REFERENCES samples (id) ON DELETE CASCADE,
            image BLOB NOT NULL
        ) STRICT;
        CREATE TABLE labels (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            sample_id INTEGER NOT NULL REFERENCES samples (id) ON DELETE CASCADE,
            label TEXT NOT NULL,
            source TEXT NOT NULL,
            said_at_s REAL NOT NULL
        ) STRICT;
        CREATE INDEX labels_by_sample ON labels (sample_id);
        CREATE TABLE freezes (
            round_id INTEGER PRIMARY KEY,
            label_id_max INTEGER NOT NULL,
            classes TEXT NOT NULL
        ) STRICT;
        CREATE TABLE counters (
            name TEXT PRIMARY KEY,
            value INTEGER NOT NULL
        ) STRICT;
        """
    )


@migrations()
def m002_predictions(db: Database) -> None:
    """What the service answered, what people said about it, and, while there is room, the image it was asked about."""
    db.executescript(
        """
        CREATE TABLE predictions (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            prediction_id TEXT NOT NULL UNIQUE,
            model_version INTEGER NOT NULL,
            label TEXT NOT NULL,
            confidence REAL NOT NULL,
            wall_s REAL NOT NULL,
            digest TEXT,
            group_name TEXT NOT NULL DEFAULT '',
            width INTEGER,
            height INTEGER,
            image_bytes INTEGER NOT NULL DEFAULT 0,
            true_label TEXT,
            labelled_at_s REAL
        ) STRICT;
        CREATE INDEX predictions_labelled ON predictions (model_version, labelled_at_s) WHERE true_label IS NOT NULL;
        CREATE INDEX predictions_by_version ON predictions (model_version, wall_s, confidence);
        CREATE INDEX predictions_with_image ON predictions (id, image_bytes) WHERE image_bytes > 0;
        CREATE INDEX predictions_by_digest ON predictions (digest) WHERE digest IS NOT NULL;
        CREATE TABLE prediction_images (
            prediction INTEGER PRIMARY KEY REFERENCES predictions (id) ON DELETE CASCADE,
            image BLOB NOT NULL
        ) STRICT;
        """
    )


@migrations()
def m003_history(db: Database) -> None:
    """Rounds, events, readings, and the few values that the daemon must find again after a restart."""
    db.executescript(
        """
        CREATE TABLE rounds (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            kind TEXT NOT NULL,
            reason TEXT NOT NULL,
            state TEXT NOT NULL,
            started_at_s REAL NOT NULL,
            ended_at_s REAL,
            outcome TEXT,
            message TEXT NOT NULL DEFAULT '',
            details TEXT NOT NULL DEFAULT '{}'
        ) STRICT;
        CREATE TABLE events (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            wall_s REAL NOT NULL,
            kind TEXT NOT NULL,
            text TEXT NOT NULL,
            data TEXT NOT NULL
        ) STRICT;
        CREATE TABLE readings (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            wall_s REAL NOT NULL,
            data TEXT NOT NULL
        ) STRICT;
        CREATE TABLE state (
            key TEXT PRIMARY KEY,
            value TEXT NOT NULL
        ) STRICT;
        """
    )


@migrations()
def m004_answers(db: Database) -> None:
    """What the served version says about samples, and what was made of it: estimates of its accuracy."""
    db.executescript(
        """
        CREATE TABLE answers (
            sample_id INTEGER PRIMARY KEY REFERENCES samples (id) ON DELETE CASCADE,
            model_version INTEGER NOT NULL,
            was_labelled INTEGER NOT NULL,
            logits BLOB
        ) STRICT;
        CREATE TABLE estimates (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            model_version INTEGER NOT NULL,
            wall_s REAL NOT NULL,
            data TEXT NOT NULL
        ) STRICT;
        """
    )


@migrations()
def m005_nameless(db: Database) -> None:
    """Unlabelled samples in order, those too that a round holds; `is_new` of one says that no round has used it."""
    db.executescript("CREATE INDEX samples_nameless ON samples (id) WHERE label IS NULL;")


def migrate(db: Database) -> None:
    """
    Bring a database to this program's schema.

    Raises:
        StoreError: a newer edgetune made it; nothing was changed.
    """
    known = {step.name for step in migrations.pending(db)} | {step.name for step in migrations.applied(db)}
    empty = Database(memory=True)
    ours = {step.name for step in migrations.pending(empty)}
    empty.close()
    if unknown := sorted(known - ours):
        raise StoreError(
            f"the sample buffer was made by a newer edgetune (it has {', '.join(unknown)})",
            hint="install that version again, or restore a backup made by this one",
        )
    migrations.apply(db)
