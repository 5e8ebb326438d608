"""
Hearing early that something arrived: watchdog's inotify events, where inotify works.

An event only makes the next scan come sooner. What no event tells (an overflowing queue, a network mount, a watch that
was lost) the periodic scan finds.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from edgetune.device.scan import is_ignored

_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "sshfs", "fuse.sshfs", "ceph", "glusterfs", "afs"})


class Watcher(FileSystemEventHandler):
    """Watches a directory tree from watchdog's threads."""

    def __init__(self, root: Path, mode: str, on_change: Callable[[], None]) -> None:
        """
        Prepare; `start` begins to watch.

        Args:
            root: the tree.
            mode: "inotify", "poll" (no events at all), or "auto": inotify unless the mount or the kernel refuses.
            on_change: called from another thread when something may have arrived.
        """
        self._root = root
        self._mode = mode
        self._on_change = on_change
        self._observer: BaseObserver | None = None
        self._lock = threading.Lock()
        self._renamed: set[str] = set()
        self.problem = ""  # why it polls although it was not asked to

    @property
    def is_watching(self) -> bool:
        """Whether events arrive."""
        return self._observer is not None and self._observer.is_alive()

    def start(self) -> None:
        """Begin to watch; falls back to polling with `problem` set when that is not possible."""
        self.stop()
        self.problem = ""
        if self._mode == "poll":
            return
        kind = filesystem_of(self._root)
        if self._mode == "auto" and kind in _REMOTE:
            self.problem = f"the inbox is on {kind}, which sends no events"
            return
        observer = Observer()
        try:
            observer.schedule(self, os.fspath(self._root), recursive=True)
            observer.start()
        except OSError as error:
            self.problem = (
                f"inotify does not work here ({error.strerror or error}); polling instead. Raise"
                " fs.inotify.max_user_watches and max_user_instances, or set inbox.watch: poll"
            )
            return
        self._observer = observer

    def stop(self) -> None:
        """Watch no more."""
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            observer.join(timeout=5)

    def take_renamed(self) -> set[str]:
        """Files that were renamed into place since the last call: their writers are done."""
        with self._lock:
            renamed, self._renamed = self._renamed, set()
        return renamed

    # watchdog calls these. Opening, reading and deleting is what the inbox itself does: no reason to look again.

    def on_created(self, event: FileSystemEvent) -> None:
        """Something new."""
        self._tell(event.src_path)

    def on_modified(self, event: FileSystemEvent) -> None:
        """A file grew; for folders it says nothing that the other events do not."""
        if not event.is_directory:
            self._tell(event.src_path)

    def on_closed(self, event: FileSystemEvent) -> None:
        """A writer closed its file."""
        self._tell(event.src_path)

    def on_moved(self, event: FileSystemEvent) -> None:
        """Something was renamed inside the inbox or into it."""
        if not event.dest_path:
            return
        path = os.fsdecode(event.dest_path)
        if not event.is_directory:
            with self._lock:
                self._renamed.add(path)
        self._tell(path)

    def _tell(self, path: bytes | str) -> None:
        if not is_ignored(Path(os.fsdecode(path)).name):
            self._on_change()


def filesystem_of(path: Path) -> str:
    """The type of the file system that holds a path ("ext4", "nfs4"), or "" when it cannot be told."""
    try:
        mounts = psutil.disk_partitions(all=True)
    except OSError:
        return ""
    real = os.path.realpath(path)
    best = max(
        (mount for mount in mounts if os.path.commonpath([real, mount.mountpoint]) == mount.mountpoint),
        key=lambda mount: len(mount.mountpoint),
        default=None,
    )
    return "" if best is None else best.fstype
