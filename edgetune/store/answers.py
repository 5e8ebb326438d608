"""
What the served version says about the samples: one answer a sample, of the version that answered last. On the store's thread.

An answer goes with its sample, whoever removes that. It is kept as what each logit lacks to the largest, in 16 bits: the
softmax needs no more, and a hundred classes take 200 bytes. Where a version has no answer (its logits were no numbers, the
image cannot be read) the row says so with NULL, and the sample is not asked about again.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgetune.store.buffer import Buffer
from edgetune.store.database import explained, scalar

_FARTHEST = 60_000.0  # what 16 bits hold; a logit so far below the best one has no probability
_UNLABELLED = "label IS NULL"  # as in the condition of the index `samples_nameless`
_JUDGED = "split <> 'training' AND label IN (SELECT name FROM classes WHERE status = 'accepted')"  # by people, always


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredSample:
    """A sample that a version has answered."""

    sample: int
    group: str
    label: str | None
    logits: tuple[float, ...]


def pack(logits: Sequence[float]) -> bytes | None:
    """Logits as they are kept; None when one of them is not a number."""
    if not all(map(math.isfinite, logits)):
        return None
    top = max(logits)
    return struct.pack(f"<{len(logits)}e", *(max(logit - top, -_FARTHEST) for logit in logits))


def unpack(kept: bytes) -> tuple[float, ...]:
    """Logits up to a constant."""
    return struct.unpack(f"<{len(kept) // 2}e", kept)


def unanswered(buffer: Buffer, version: int, *, is_labelled: bool, newest: int, limit: int) -> list[int]:
    """
    The next samples that a version has not answered, oldest first.

    Args:
        buffer: open.
        version: the served one.
        is_labelled: validation and hold-out samples that people have labelled; else unlabelled ones.
        newest: older samples than so many are passed over, so that a long queue does not hide what is seen now.
        limit: at most so many.
    """
    # Left to itself SQLite takes an index by class and sorts all that have none.
    samples = f"samples WHERE {_JUDGED}" if is_labelled else f"samples INDEXED BY samples_nameless WHERE {_UNLABELLED}"
    with explained():
        rows = buffer.database.execute(
            f"SELECT id FROM (SELECT id FROM {samples} ORDER BY id DESC LIMIT ?)"  # noqa: S608 - text from above
            " WHERE NOT EXISTS (SELECT 1 FROM answers WHERE sample_id = id AND model_version = ?) ORDER BY id LIMIT ?",
            (newest, version, limit),
        )
        return [row[0] for row in rows]


def record(buffer: Buffer, version: int, answers: Sequence[tuple[int, bytes | None]]) -> dict[int, tuple[float, ...]]:
    """
    Keep (sample, packed logits), inside a transaction; a sample that is gone by now is passed over.

    Returns:
        The answers, with logits, to samples that came without a label.
    """
    kept = {}
    for sample, logits in answers:
        buffer.database.execute(
            "INSERT INTO answers SELECT id, ?, label IS NOT NULL, ? FROM samples WHERE id = ?"
            " ON CONFLICT (sample_id) DO UPDATE SET model_version = excluded.model_version,"
            " was_labelled = min(was_labelled, excluded.was_labelled), logits = excluded.logits",
            (version, logits, sample),
        )
        if logits is not None and scalar(buffer.database, _IS_UNLABELLED, (sample,)):
            kept[sample] = unpack(logits)
    return kept


_IS_UNLABELLED = "SELECT 1 FROM answers WHERE sample_id = ? AND NOT was_labelled"


def answered_by(buffer: Buffer, versions: Sequence[int], samples: Sequence[int]) -> set[int]:
    """Those of these samples whose answer is one of these versions' and was given when they had no label."""
    with explained():
        rows = buffer.database.execute(
            "SELECT sample_id FROM answers WHERE sample_id IN (SELECT value FROM json_each(?))"
            " AND model_version IN (SELECT value FROM json_each(?)) AND NOT was_labelled AND logits IS NOT NULL",
            (json.dumps(list(samples)), json.dumps(list(versions))),
        )
        return {row[0] for row in rows}


def first_of_groups(buffer: Buffer, versions: Sequence[int], samples: Iterable[int]) -> list[int]:
    """Those of these unlabelled samples that no other of their group was answered before, by any of these versions."""
    wanted = json.dumps(list(versions))
    with explained():
        return [sample for sample in samples if not scalar(buffer.database, _TWIN_BEFORE, (sample, wanted))]


_TWIN_BEFORE = """
    SELECT 1 FROM samples AS this JOIN samples AS twin ON twin.group_name = this.group_name AND twin.id < this.id
    JOIN answers ON sample_id = twin.id
    WHERE this.id = ? AND model_version IN (SELECT value FROM json_each(?)) AND NOT was_labelled AND logits IS NOT NULL
    LIMIT 1
"""


def recent(buffer: Buffer, version: int, limit: int) -> list[AnsweredSample]:
    """The last samples that came without a label, labelled since or not, oldest first."""
    return _answered(buffer, version, "NOT was_labelled", "id", limit)


def judged(buffer: Buffer, version: int, limit: int) -> list[AnsweredSample]:
    """The last validation and hold-out samples that people have labelled, oldest first."""
    return _answered(buffer, version, _JUDGED, "id", limit)


def waiting(buffer: Buffer, version: int, limit: int) -> list[AnsweredSample]:
    """The last unlabelled training samples, oldest first."""
    return _answered(buffer, version, f"{_UNLABELLED} AND split = 'training'", "id", limit)


def labelled_lately(buffer: Buffer, version: int, limit: int) -> list[AnsweredSample]:
    """The training samples that came without a label and were labelled last, in that order."""
    return _answered(
        buffer, version, "NOT was_labelled AND label IS NOT NULL AND split = 'training'", "label_id", limit
    )


def _answered(buffer: Buffer, version: int, condition: str, order: str, limit: int) -> list[AnsweredSample]:
    with explained():
        rows = buffer.database.execute(
            "SELECT id, group_name, label, logits FROM answers JOIN samples ON id = sample_id"  # noqa: S608 - text from above
            f" WHERE model_version = ? AND logits IS NOT NULL AND {condition} ORDER BY {order} DESC LIMIT ?",
            (version, limit),
        ).fetchall()
    return [
        AnsweredSample(sample=sample, group=group, label=label, logits=unpack(logits))
        for sample, group, label, logits in reversed(rows)
    ]


def without_judgement(buffer: Buffer, limit: int) -> list[int]:
    """Unlabelled hold-out samples, of each group one, drawn by their digests: at random, and the same every time."""
    with explained():
        rows = buffer.database.execute(
            f"SELECT id, min(digest) AS drawn FROM samples WHERE {_UNLABELLED} AND split = 'holdout'"  # noqa: S608
            " GROUP BY group_name ORDER BY drawn LIMIT ?",
            (limit,),
        )
        return [row[0] for row in rows]


def new_labels_since(buffer: Buffer, sample: int) -> int:
    """Training samples from this one on that got a label which no round has used, of accepted classes."""
    with explained():
        return int(
            scalar(
                buffer.database,
                "SELECT count(*) FROM samples WHERE is_new = 1 AND split = 'training' AND id >= ?"
                " AND label IN (SELECT name FROM classes WHERE status = 'accepted')",
                (sample,),
            )
        )
