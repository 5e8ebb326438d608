"""
The inbox: files in, checked samples out, and nothing lost on the way.

The daemon's loop is: wait for `wake` or `due_s`, `collect` a batch, commit it to the buffer, then `committed` removes
the sources. A file is taken once its size and time have stood still for `settle_s`, or at once when it was renamed
into place. Until `committed`, a file stays where it is: a crash takes it again, and the buffer knows its bytes.

A file that cannot be used goes to the quarantine with a `.reason.json` beside it, but not before it has stood still
for `patience_s`: a stalled upload looks like a damaged image. Where even that fails (an inbox that the service may
not write to), the file stays, is named in `problems`, and is tried again only when it has changed.

`collect`, `committed` and `returned` belong to one thread at a time; `wake` belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgetune.clock import Clock, SystemClock
from edgetune.device.batch import Batch, LateLabel
from edgetune.device.intake import Intake, Sidecar, UnsettledError, read_sidecar
from edgetune.device.listing import Taken, is_same_file
from edgetune.device.quarantine import Quarantine
from edgetune.device.scan import FileKey, Found, printable, walk
from edgetune.device.settling import Done, Settling
from edgetune.device.watching import Watcher
from edgetune.errors import EdgetuneError, ImageError
from edgetune.images import ImageLimits
from edgetune.types import NewSample, Preprocess

__all__ = ["Batch", "Inbox", "LateLabel"]

_SCAN_GAP_S = 0.2  # a flood of events must not become a flood of scans
_POLL_S = 2.0
_ORPHAN_S = 600.0  # a sidecar without an image is kept this long
_PATIENCE_SETTLES, _PATIENCE_MIN_S = 5.0, 2.0  # with `settle: 0s` too, a file half written is not a damaged one
_PROBLEMS_MAX = 20


@dataclass(frozen=True, slots=True)
class _Handed:
    """A file that the daemon is committing."""

    key: FileKey
    digest: str
    sidecar: Found | None
    is_image: bool


class Inbox:
    """Takes files from a directory tree; see the module's text."""

    def __init__(
        self,
        root: Path,
        quarantine: Path,
        *,
        remove: Callable[[list[Path]], None],
        move: Callable[[Path, Path], None],
        preprocess: Preprocess | None = None,
        store: str = "model_size",
        settle_s: float = 2.0,
        scan_interval_s: float = 30.0,
        watch: str = "auto",
        limits: ImageLimits | None = None,
        group_block_s: float = 600.0,
        keep_originals: bool = False,
        batch: int = 256,
        patience_s: float | None = None,
        clock: Clock | None = None,
    ) -> None:
        """
        Prepare; nothing is touched before `start`.

        Args:
            root: the inbox; made when it is not there.
            quarantine: where bad files go, under the same folders.
            remove: removes many files durably; one that is gone is no error.
            move: renames a file durably.
            preprocess: the served model's input; None stores originals.
            store: "model_size" or "original".
            settle_s: how long a file must stand still.
            scan_interval_s: time between scans that no event asked for.
            watch: "auto", "inotify" or "poll".
            limits: of bytes and pixels.
            group_block_s: files of one folder within this time share a group; 0: each file is its own.
            keep_originals: leave taken files where they are.
            batch: files per `collect`.
            patience_s: how long a bad file must stand still before it is quarantined; default: 5 x settle_s, 2 s at
                the least.
            clock: of monotonic and wall time.
        """
        self._root = root
        self._clock: Clock = clock or SystemClock()
        self._quarantine = Quarantine(quarantine, move, self._clock)
        self._remove = remove
        self._intake = Intake(
            preprocess=preprocess, store=store, limits=limits or ImageLimits(), group_block_s=group_block_s
        )
        self._settle_s = settle_s
        self._patience_s = max(_PATIENCE_MIN_S, _PATIENCE_SETTLES * settle_s) if patience_s is None else patience_s
        self._scan_interval_s = scan_interval_s
        self._keep_originals = keep_originals
        self._batch = batch
        self._watcher = Watcher(root, watch, self._arrived)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dirty = threading.Event()
        self._dirty.set()  # what lay here before the start
        self._scanned_s = float("-inf")
        self._taken = Taken()
        self._settling = Settling(settle_s, self._taken)
        self._ready: deque[Found] = deque()
        self._handed: dict[str, _Handed] = {}
        self._unremoved: dict[str, FileKey] = {}
        self._scan_problems: list[str] = []
        self.wake = asyncio.Event()
        self.problems: tuple[str, ...] = ()  # sentences about what stands in the way
        self.taken = 0  # files committed since the start

    # ------------------------------------------------------------------------------------------- life

    def start(self) -> None:
        """Make the directory and begin to watch. Called on the event loop, `wake` is set from then on."""
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        self._make_root()
        self._watcher.start()
        self._name_problems()

    def stop(self) -> None:
        """Watch no more; files stay where they are."""
        self._watcher.stop()
        self._loop = None

    def configure(self, *, preprocess: Preprocess | None) -> None:
        """What comes from now on is stored for another model."""
        self._intake = replace(self._intake, preprocess=preprocess)

    @property
    def waiting(self) -> int:
        """Files that were seen and are not yet committed."""
        return len(self._settling.waiting) + len(self._handed)

    @property
    def quarantined(self) -> int:
        """Files in the quarantine, from before the start too."""
        return self._quarantine.count

    @property
    def watch(self) -> str:
        """How changes are noticed: "inotify" or "poll"."""
        return "inotify" if self._watcher.is_watching else "poll"

    def due_s(self) -> float:
        """When `collect` is worth calling again if `wake` is not set before: a moment on the clock."""
        if self._ready:
            return float("-inf")
        soonest = self._scanned_s + _SCAN_GAP_S
        if self._dirty.is_set():
            return soonest
        interval_s = self._scan_interval_s if self._watcher.is_watching else min(self._scan_interval_s, _POLL_S)
        return max(soonest, min(self._settling.next_look_s, self._scanned_s + interval_s))

    # ------------------------------------------------------------------------------------------- the work

    def collect(self, now_s: float | None = None) -> Batch:
        """
        Take up to `batch` files that have settled; scans when that is due, else goes on with the last scan's.

        Args:
            now_s: the clock's time; default: ask it.
        """
        now_s = self._clock.now_s() if now_s is None else now_s
        if not self._ready and now_s >= self.due_s():
            self._scan(now_s)
        quarantined_before = self._quarantine.count
        items: list[tuple[Path, NewSample]] = []
        late: list[LateLabel] = []
        for _ in range(min(self._batch, len(self._ready))):
            found = self._ready.popleft()
            try:
                if found.is_sidecar:
                    late.extend(self._late_label(found, now_s))
                else:
                    items.append((Path(found.path), self._take(found)))
            except UnsettledError:
                self._settling.look_again(found, since_s=now_s, at_s=now_s + self._settle_s)
            except FileNotFoundError:
                self._settling.waiting.pop(found.path, None)  # vanished since the scan
            except ImageError as error:
                self._refuse(found, error.message, now_s)
            except OSError as error:
                why = f"the file cannot be read ({error.strerror or error}); make it readable for the edgetune group"
                self._refuse(found, why, now_s)
        self._name_problems()
        return Batch(
            items=tuple(items),
            late_labels=tuple(late),
            quarantined=self._quarantine.count - quarantined_before,
            has_more=bool(self._ready),
        )

    def committed(self, paths: Iterable[Path]) -> None:
        """The buffer holds these: remove their files, or remember them where originals are kept."""
        for name in map(os.fspath, paths):
            handed = self._handed.pop(name, None)
            if handed is None:
                continue
            spent = [Found(name, handed.key)]
            if handed.is_image:
                self.taken += 1
                self._taken.add(name, handed.digest)
                if handed.sidecar is not None and self._settling.listing.leave(name) is not None:
                    spent.append(handed.sidecar)
            for found in spent:
                self._settling.done[found.path] = Done(found.key)
                if not self._keep_originals:
                    self._unremoved[found.path] = found.key
        self._remove_spent()
        self._name_problems()

    def returned(self, paths: Iterable[Path]) -> None:
        """The buffer could not take these: they will be offered again."""
        for name in map(os.fspath, paths):
            self._handed.pop(name, None)
        self._dirty.set()

    # ------------------------------------------------------------------------------------------- scanning

    def _scan(self, now_s: float) -> None:
        self._dirty.clear()  # before the walk: what arrives during it makes another one
        self._scanned_s = now_s
        self._scan_problems = []
        if not self._root.is_dir():
            self._make_root()
            self._watcher.start()  # the old watch went with the old directory
        self._remove_spent()
        renamed = self._watcher.take_renamed()  # before the walk too, for the same reason
        files = walk(self._root, self._scan_problems.append)
        self._ready.extend(self._settling.observe(files, now_s, renamed=renamed, handed=self._handed))

    # ------------------------------------------------------------------------------------------- one file

    def _take(self, found: Found) -> NewSample:
        beside = self._settling.listing.sidecar_of(found.path)
        sidecar = Sidecar() if beside is None else read_sidecar(beside.path, beside.key)
        sample = self._intake.sample(found.path, os.path.relpath(found.path, self._root), found.key, sidecar)
        self._settling.waiting.pop(found.path, None)
        self._handed[found.path] = _Handed(found.key, sample.digest, beside, is_image=True)
        return sample

    def _late_label(self, found: Found, now_s: float) -> Sequence[LateLabel]:
        digest = self._taken.digest_of(found.path)
        if digest is None:
            self._refuse(found, "a sidecar without an image beside it", now_s, patience_s=_ORPHAN_S)
            return ()
        label = read_sidecar(found.path, found.key).label
        if label is None:
            raise ImageError("this sidecar came after its image had been taken, and names no label")
        self._settling.waiting.pop(found.path, None)
        self._handed[found.path] = _Handed(found.key, digest, None, is_image=False)
        return (LateLabel(path=Path(found.path), digest=digest, label=label),)

    def _refuse(self, found: Found, reason: str, now_s: float, *, patience_s: float | None = None) -> None:
        """Quarantine a bad file, once it has stood still for so long that it is bad for good."""
        since_s = self._settling.since_s(found, now_s)
        ripe_s = since_s + (self._patience_s if patience_s is None else patience_s)
        if now_s < ripe_s:
            self._settling.look_again(found, since_s=since_s, at_s=ripe_s)
            return
        self._banish(found, reason)
        beside = None if found.is_sidecar else self._settling.listing.leave(found.path)
        if beside is not None:
            name = printable(Path(found.path).name)
            self._banish(beside, f"belongs to {name}, which was quarantined: {reason}", counts=False)

    def _banish(self, found: Found, reason: str, *, counts: bool = True) -> None:
        self._settling.waiting.pop(found.path, None)
        try:
            self._quarantine.put(Path(found.path), Path(os.path.relpath(found.path, self._root)), reason, counts=counts)
        except FileNotFoundError:
            return
        except (OSError, EdgetuneError) as error:
            problem = f"{printable(found.path)} is bad ({reason}) and cannot be moved to the quarantine: {error}"
            self._settling.done[found.path] = Done(found.key, problem)

    def _remove_spent(self) -> None:
        """Remove what was committed; what cannot be removed now is tried again at the next scan."""
        spent = [Path(name) for name, key in self._unremoved.items() if is_same_file(name, key)]
        try:
            if spent:
                self._remove(spent)
        except (OSError, EdgetuneError) as error:
            for name, key in self._unremoved.items():
                problem = (
                    f"cannot remove taken files from {printable(self._root)} ({error}); make it writable for edgetune"
                )
                self._settling.done[name] = Done(key, problem)
            return
        self._unremoved.clear()

    # ------------------------------------------------------------------------------------------- the rest

    def _name_problems(self) -> None:
        stuck = [done.problem for done in self._settling.done.values() if done.problem]
        told = dict.fromkeys([self._watcher.problem, *self._scan_problems, *stuck])
        self.problems = tuple(problem for problem in told if problem)[:_PROBLEMS_MAX]

    def _make_root(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._scan_problems.append(f"the inbox {printable(self._root)} cannot be made: {error.strerror}")

    def _arrived(self) -> None:
        """Called from watchdog's thread."""
        self._dirty.set()
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self.wake.set)
