"""Reading the buffer beside its owner: images for the trainer, lists, an export people can look at, a backup."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlite_utils import Database

from edgetune.errors import BufferCorruptError, ConflictError, StoreError
from edgetune.store import durable
from edgetune.store.database import connect_read_only, explained
from edgetune.types import Split

_READ_AT_ONCE = 256
_SUFFIXES = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"GIF8": ".gif",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}
_SAMPLE_COLUMNS = (
    "id, digest, label, split, group_name AS 'group', width, height, image_bytes, origin, taken_at_s, added_at_s,"
    " seen, pinned_by, (SELECT source FROM labels WHERE labels.id = label_id) AS label_source"
)


def read_images(path: Path, ids: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """
    Read the stored images of samples, in the order asked for, with a few hundred in memory at a time.

    Args:
        path: edgetune.db; the daemon may have it open and write to it.
        ids: sample ids, pinned by the caller's round.

    Yields:
        (sample id, the image as it was stored).

    Raises:
        StoreError: a sample is not there.
        BufferCorruptError: an image is not what was stored.
    """
    with explained(), contextlib.closing(connect_read_only(path)) as connection:
        for start in range(0, len(ids), _READ_AT_ONCE):
            wanted = ids[start : start + _READ_AT_ONCE]
            marks = ",".join("?" * len(wanted))
            rows = connection.execute(
                "SELECT id, image, image_crc32 FROM samples JOIN images ON sample_id = id"  # noqa: S608 - marks only
                f" WHERE id IN ({marks})",
                list(wanted),
            )
            found = {sample_id: _intact(sample_id, image, crc) for sample_id, image, crc in rows}
            for sample_id in wanted:
                if sample_id not in found:
                    raise StoreError(f"sample {sample_id} is not in the buffer any more")
                yield sample_id, found[sample_id]


def suffix_of(image: bytes) -> str:
    """What a file of this image is called after the dot, with it."""
    return next((suffix for sign, suffix in _SUFFIXES.items() if image.startswith(sign)), ".bin")


def _intact(sample_id: int, image: bytes, crc32: int) -> bytes:
    if zlib.crc32(image) != crc32:
        raise BufferCorruptError(
            f"the image of sample {sample_id} is damaged", hint=f"remove it: edgetune data purge --sample {sample_id}"
        )
    return image


def list_samples(
    db: Database, *, label: str | None, split: Split | None, labelled: bool | None, limit: int, offset: int
) -> list[dict[str, Any]]:
    """The samples that match, newest first, without their images."""
    conditions = ["1"]
    if label is not None:
        conditions.append("label = :label")
    if split is not None:
        conditions.append("split = :split")
    if labelled is not None:
        conditions.append(f"label IS {'NOT ' if labelled else ''}NULL")
    return list(
        db.query(
            f"SELECT {_SAMPLE_COLUMNS} FROM samples WHERE {' AND '.join(conditions)}"  # noqa: S608 - texts from above
            " ORDER BY id DESC LIMIT :limit OFFSET :offset",
            {"label": label, "split": split and Split(split).value, "limit": limit, "offset": offset},
        )
    )


def export_samples(path: Path, directory: Path) -> int:
    """
    Write every sample as `CLASS/DIGEST.ext`, unlabelled ones in the root as an inbox has them, and `manifest.json`.

    All of one moment, while the service goes on. A class name that cannot be a folder's is percent-encoded. The
    manifest comes last: an export with one is complete.

    Returns:
        The number of samples.

    Raises:
        ConflictError: the directory has something in it.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConflictError(f"{directory} is there and not empty", hint="name a new directory")
    directory.mkdir(parents=True, exist_ok=True)
    with explained(), contextlib.closing(connect_read_only(path)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN")
        entries = [
            _export_one(connection, row, directory)
            for row in connection.execute(f"SELECT {_SAMPLE_COLUMNS} FROM samples ORDER BY id")  # noqa: S608
        ]
    text = json.dumps({"samples": entries}, ensure_ascii=False, indent=1)
    durable.write_atomic(directory / "manifest.json", text.encode())
    return len(entries)


def _export_one(connection: sqlite3.Connection, row: sqlite3.Row, directory: Path) -> dict[str, Any]:
    (image,) = connection.execute("SELECT image FROM images WHERE sample_id = ?", (row["id"],)).fetchone()
    suffix = suffix_of(image)
    folder = directory if row["label"] is None else directory / folder_name(row["label"])
    folder.mkdir(exist_ok=True)
    file = folder / f"{row['digest']}{suffix}"
    file.write_bytes(image)
    history = connection.execute(
        "SELECT label, source, said_at_s FROM labels WHERE sample_id = ? ORDER BY id", (row["id"],)
    )
    entry = {key: row[key] for key in row.keys() if key != "pinned_by"}  # noqa: SIM118 - a Row iterates over its values
    return {**entry, "file": str(file.relative_to(directory)), "labels": [dict(said) for said in history]}


def folder_name(label: str) -> str:
    """A class name as a folder's: itself where that works, percent-encoded where it does not."""
    readable = "".join(
        character if character.isprintable() and character not in '/\\:*?"<>|%' else quote(character, safe="")
        for character in label
    )
    return "%2E" + readable[1:] if readable.startswith(".") else readable


def backup(path: Path, target: Path) -> None:
    """
    Copy the database as it is at one moment, while it is in use; the copy appears whole or not at all.

    Raises:
        ConflictError: something has the target's name already.
        StoreError: the copy cannot be written.
    """
    if target.exists() or target.is_symlink():
        raise ConflictError(f"{target} exists already", hint="name a new file")
    temporary = target.with_name(f".{target.name}.tmp")
    durable.remove_file(temporary)
    with (
        explained(),
        contextlib.closing(connect_read_only(path)) as source,
        contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as copy,
    ):
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a WAL beside it
    durable.publish_file(temporary, target)
