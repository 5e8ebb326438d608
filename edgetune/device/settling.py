"""Which files of the inbox have stood still, and which are left alone: what `Inbox` knows between two scans."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from edgetune.device.listing import Listing, Taken
from edgetune.device.scan import FileKey, Found


@dataclass(frozen=True, slots=True)
class Waiting:
    """A file that was seen and not yet taken."""

    key: FileKey
    since_s: float  # has looked like this since
    not_before_s: float  # when to look at it (again)


@dataclass(frozen=True, slots=True)
class Done:
    """A file that stays in the inbox and is left alone until it changes."""

    key: FileKey
    problem: str = ""


class Settling:
    """
    Follows files from their first sight to the moment they may be read.

    Attributes:
        listing: the files of the last scan.
        waiting: seen and neither taken nor done with, by path.
        done: taken and kept, or given up on, by path.
        next_look_s: when the next of the waiting files may have settled; infinite when none waits.
    """

    def __init__(self, settle_s: float, taken: Taken) -> None:
        self._settle_s = settle_s
        self._taken = taken
        self.listing = Listing()
        self.waiting: dict[str, Waiting] = {}
        self.done: dict[str, Done] = {}
        self.next_look_s = float("inf")

    def observe(
        self, files: Iterable[Found], now_s: float, *, renamed: Container[str], handed: Container[str]
    ) -> list[Found]:
        """
        Take note of a scan.

        Args:
            files: all that lies in the inbox.
            now_s: the clock's time.
            renamed: paths that were renamed into place: they need not settle.
            handed: paths that are being committed.

        Returns:
            The files that may be read now: images, and sidecars whose images are not waiting any more.
        """
        self.listing = Listing(files)
        found = self.listing.files
        self.done = {path: done for path, done in self.done.items() if path in found and done.key == found[path].key}
        self.waiting = {
            path: waiting
            for path, waiting in self.waiting.items()
            if path in found and path not in self.done and path not in handed
        }
        for path, file in found.items():
            if path in handed or path in self.done:
                continue
            seen = self.waiting.get(path)
            if seen is None or seen.key != file.key:
                self.waiting[path] = Waiting(file.key, now_s, now_s if path in renamed else now_s + self._settle_s)
        self.next_look_s = min(
            (w.not_before_s for w in self.waiting.values() if w.not_before_s > now_s), default=float("inf")
        )
        return [found[path] for path in sorted(self.waiting) if self._is_ready(found[path], now_s)]

    def look_again(self, file: Found, *, since_s: float, at_s: float) -> None:
        """Leave a file alone until a moment."""
        self.waiting[file.path] = Waiting(file.key, since_s, at_s)
        self.next_look_s = min(self.next_look_s, at_s)

    def since_s(self, file: Found, now_s: float) -> float:
        """Since when the file has stood still."""
        waiting = self.waiting.get(file.path)
        return now_s if waiting is None else waiting.since_s

    def _is_ready(self, file: Found, now_s: float) -> bool:
        if now_s < self.waiting[file.path].not_before_s:
            return False
        if not file.is_sidecar:
            sidecar = self.listing.sidecar_of(file.path)
            beside = self.waiting.get(sidecar.path) if sidecar is not None else None
            return beside is None or now_s >= min(beside.not_before_s, beside.since_s + self._settle_s)
        images = self.listing.images_of(file.path)  # while one of them is to be taken, it carries its sidecar
        return all(path in self.done for path in images) and (
            not images or self._taken.digest_of(file.path) is not None
        )
