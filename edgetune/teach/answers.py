"""
What a teacher has said, on disk: a table of slots, in which an answer's place follows from what was asked.

The key is a hash of the teacher and of the very pixels that it was shown. Sample and change have made these pixels, and
nothing else has: the same change in a later round finds its answer, and a sample id that came to mean another image does
not. A newer answer takes the place of an older one with the same slot, so that the file never grows over its bound and
there is no index to hold in memory. Each record carries its key and a checksum: what a power cut or a bad disk left of one
counts as absent. Nothing is synced: a lost answer is asked for again.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.store import durable

KEY_BYTES = 32
_CRC_BYTES = 4
_SUFFIX = ".answers"


class Answers:
    """The answers of one teacher; files of others are removed."""

    def __init__(self, directory: Path, identity: str, *, outputs: int, max_bytes: int) -> None:
        """
        Open the table, or make it.

        Args:
            directory: of all tables.
            identity: SHA-256 of whatever the teacher's answers depend on.
            outputs: numbers in an answer.
            max_bytes: the file is never larger; less than a record keeps nothing.
        """
        self._outputs = outputs
        self._record_bytes = KEY_BYTES + 4 * outputs + _CRC_BYTES
        self._slots = max_bytes // self._record_bytes
        self.hits = 0
        durable.make_dir(directory)
        path = directory / f"{identity}{_SUFFIX}"
        durable.remove_files([other for other in directory.glob(f"*{_SUFFIX}") if other != path or not self._slots])
        self._file: int | None = None
        if self._slots:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.ftruncate(self._file, self._slots * self._record_bytes)  # sparse: takes room as it fills

    def get(self, key: bytes) -> npt.NDArray[np.float32] | None:
        """The answer [outputs] kept under a key of KEY_BYTES; None: absent or damaged."""
        if self._file is None:
            return None
        record = os.pread(self._file, self._record_bytes, self._offset(key))
        body, checksum = record[:-_CRC_BYTES], record[-_CRC_BYTES:]
        if not body.startswith(key) or checksum != _checksum(body):
            return None
        self.hits += 1
        return np.frombuffer(body, dtype="<f4", offset=KEY_BYTES)

    def put(self, key: bytes, logits: npt.NDArray[np.float32]) -> None:
        """Keep an answer [outputs]."""
        if self._file is None:
            return
        body = key + np.ascontiguousarray(logits, dtype="<f4").tobytes()
        os.pwrite(self._file, body + _checksum(body), self._offset(key))

    def close(self) -> None:
        """No more questions."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
            self._slots = 0

    def _offset(self, key: bytes) -> int:
        return int.from_bytes(key[:8], "little") % self._slots * self._record_bytes


def _checksum(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(_CRC_BYTES, "little")
