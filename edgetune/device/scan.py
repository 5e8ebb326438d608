"""
What lies in the inbox right now: one walk over the directory, which is the truth whatever events said.

Only plain files count. Symbolic links are never followed, neither to files nor to folders, so nothing outside the
inbox can be taken in. Left alone for ever: names that begin with a dot, and the names that writers give to files
they have not finished.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

UNFINISHED = (".part", ".tmp", ".crdownload", ".partial", ".filepart", ".download", ".swp", "~")
SIDECAR_SUFFIX = ".json"
_CLUTTER = frozenset({"thumbs.db", "desktop.ini", "lost+found"})

FileKey = tuple[int, int, int]  # size in bytes, mtime in ns, inode: another key means another file


@dataclass(frozen=True, slots=True)
class Found:
    """One file of the inbox as the walk saw it."""

    path: str
    key: FileKey

    @property
    def is_sidecar(self) -> bool:
        """Whether this is the JSON beside an image."""
        return self.path.lower().endswith(SIDECAR_SUFFIX)


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is never looked at."""
    lower = name.lower()
    return name.startswith(".") or lower.endswith(UNFINISHED) or lower in _CLUTTER


def key_of(stat: os.stat_result) -> FileKey:
    """What tells this state of a file from another."""
    return (stat.st_size, stat.st_mtime_ns, stat.st_ino)


def walk(root: Path, report: Callable[[str], None]) -> Iterator[Found]:
    """
    List every file that may be taken, in no order.

    Args:
        root: the inbox.
        report: told a sentence about each folder that cannot be read; the walk goes on.
    """
    folders = [os.fspath(root)]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if is_ignored(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        found = _look(entry)
                        if found is not None:
                            yield found
        except FileNotFoundError:
            continue  # removed since its parent was listed
        except OSError as error:
            report(f"cannot look into {printable(folder)}: {error.strerror}; make it readable for the edgetune group")


def printable(path: str | Path) -> str:
    """A path as text that can be stored and shown, whatever bytes its name holds."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _look(entry: os.DirEntry[str]) -> Found | None:
    try:
        return Found(entry.path, key_of(entry.stat(follow_symlinks=False)))
    except OSError:
        return None  # vanished
