"""Bytes written to storage: by a process, and by all on a disk, as the kernel counts them."""

from __future__ import annotations

import os
from pathlib import Path

_SECTOR_BYTES = 512  # of the kernel's counters, whatever the disk's are
_SECTORS_WRITTEN = 6  # column of .../stat, Documentation/block/stat.rst


def process_written_bytes(pid: int | None = None, root: Path = Path("/")) -> int | None:
    """
    What a process (None: this one) has caused to be written so far; None: the kernel does not tell.

    Counted where a page becomes dirty, less what was thrown away before it reached the disk. Without its children.
    """
    try:
        text = (root / "proc" / ("self" if pid is None else str(pid)) / "io").read_text("ascii")
        counts = {name: int(value) for name, _, value in (line.partition(": ") for line in text.splitlines())}
        return max(0, counts["write_bytes"] - counts.get("cancelled_write_bytes", 0))
    except (OSError, ValueError, KeyError):
        return None


def disk_written_bytes(path: Path, root: Path = Path("/")) -> int | None:
    """What all processes have written since the start to the disk that holds `path`; None: it is no disk, or unknown."""
    try:
        device = path.stat().st_dev
        entry = (root / "sys/dev/block" / f"{os.major(device)}:{os.minor(device)}").resolve(strict=True)
        whole = entry.parent if (entry / "partition").exists() else entry
        return int((whole / "stat").read_text("ascii").split()[_SECTORS_WRITTEN]) * _SECTOR_BYTES
    except (OSError, ValueError, IndexError):
        return None
