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
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgetune.clock import Clock, SystemClock
from edgetune.device.intake import Intake, Sidecar, UnsettledError, read_sidecar
from edgetune.device.quarantine import Quarantine
from edgetune.device.scan import SIDECAR_SUFFIX, FileKey, Found, key_of, printable, walk
from edgetune.device.watching import Watcher
from edgetune.errors import EdgetuneError, ImageError
from edgetune.images import ImageLimits
from edgetune.types import NewSample, Preprocess

_SCAN_GAP_S = 0.2  # a flood of events must not become a flood of scans
_POLL_S = 2.0
_TAKEN_MAX = 20_000  # removed files whose sidecar may still come
_ORPHAN_S = 600.0  # a sidecar without an image is kept this long
_PATIENCE_SETTLES = 5.0
_PROBLEMS_MAX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LateLabel:
    """A sidecar that came after its image had been taken."""

    path: Path
    digest: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one `collect` found."""

    items: tuple[tuple[Path, NewSample], ...] = ()
    late_labels: tuple[LateLabel, ...] = ()
    quarantined: int = 0
    has_more: bool = False  # collect again at once

    @property
    def paths(self) -> tuple[Path, ...]:
        """Everything that `committed` or `returned` must be told about."""
        return tuple(path for path, _ in self.items) + tuple(late.path for late in self.late_labels)


@dataclass(slots=True)
class _Waiting:
    key: FileKey
    since_s: float  # has looked like this since


@dataclass(frozen=True, slots=True)
class _Handed:
    key: FileKey
    digest: str
    sidecar: Found | None


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
            patience_s: how long a bad file must stand still before it is quarantined; default: 5 x settle_s.
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
        self._patience_s = _PATIENCE_SETTLES * settle_s if patience_s is None else patience_s
        self._scan_interval_s = scan_interval_s
        self._keep_originals = keep_originals
        self._batch = batch
        self._watcher = Watcher(root, watch, self._arrived)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dirty = threading.Event()
        self._dirty.set()  # what lay here before the start
        self.wake = asyncio.Event()
        self._scanned_s = float("-inf")
        self._next_look_s = float("-inf")  # when a waiting file will have stood still long enough
        self._waiting: dict[str, _Waiting] = {}
        self._ready: deque[Found] = deque()
        self._handed: dict[str, _Handed] = {}
        self._settled: dict[str, FileKey] = {}  # done with, or given up on, until they change
        self._present: dict[str, Found] = {}  # of the last scan
        self._stems: Counter[str] = Counter()  # images per path without suffix, for shared sidecars
        self._taken: OrderedDict[str, str] = OrderedDict()  # path, and path without suffix -> digest
        self._problems: OrderedDict[str, None] = OrderedDict()
        self.taken = 0

    # ------------------------------------------------------------------------------------------- life

    def start(self) -> None:
        """Make the directories and begin to watch. Called on the event loop, `wake` is set from then on."""
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        self._make_root()
        self._watcher.start()
        if self._watcher.problem:
            self._report(self._watcher.problem)

    def stop(self) -> None:
        """Watch no more; files stay where they are."""
        self._watcher.stop()
        self._loop = None

    def configure(self, *, preprocess: Preprocess | None) -> None:
        """Take in what comes from now on for another model."""
        self._intake = replace(self._intake, preprocess=preprocess)

    # ------------------------------------------------------------------------------------------- looking

    @property
    def waiting(self) -> int:
        """Files that were seen and are not yet taken."""
        return len(self._waiting) + len(self._ready) + len(self._handed)

    @property
    def quarantined(self) -> int:
        """Files in the quarantine, from before the start too."""
        return self._quarantine.count

    @property
    def watch(self) -> str:
        """How changes are noticed: "inotify" or "poll"."""
        return "inotify" if self._watcher.is_watching else "poll"

    @property
    def problems(self) -> tuple[str, ...]:
        """Sentences about what stands in the way, as of the last scan."""
        return tuple(self._problems)

    def due_s(self) -> float:
        """When `collect` is worth calling again if `wake` is not set before: a moment on the clock."""
        if self._ready:
            return self._clock.now_s()
        soonest = self._scanned_s + _SCAN_GAP_S
        if self._dirty.is_set():
            return soonest
        interval_s = self._scan_interval_s if self._watcher.is_watching else min(self._scan_interval_s, _POLL_S)
        return max(soonest, min(self._next_look_s, self._scanned_s + interval_s))

    # ------------------------------------------------------------------------------------------- the work

    def collect(self, now_s: float | None = None) -> Batch:
        """
        Take up to `batch` files that have settled; scans when one is due, else answers from the last scan.

        Args:
            now_s: the clock's time; default: ask it.
        """
        now_s = self._clock.now_s() if now_s is None else now_s
        if not self._ready and now_s >= self.due_s():
            self._scan(now_s)
        items: list[tuple[Path, NewSample]] = []
        late: list[LateLabel] = []
        quarantined_before = self._quarantine.count
        for _ in range(min(self._batch, len(self._ready))):
            found = self._ready.popleft()
            try:
                if found.is_sidecar:
                    late.extend(self._late_label(found))
                else:
                    items.append((Path(found.path), self._take(found)))
            except UnsettledError:
                self._wait(found, now_s)
            except FileNotFoundError:
                continue  # vanished between the scan and now
            except ImageError as error:
                self._refuse(found, error.message, now_s)
            except OSError as error:
                self._refuse(found, f"the file cannot be read ({error.strerror}); it must be readable for edgetune", now_s)
        return Batch(
            items=tuple(items),
            late_labels=tuple(late),
            quarantined=self._quarantine.count - quarantined_before,
            has_more=bool(self._ready),
        )

    def committed(self, paths: Iterable[Path]) -> None:
        """The buffer holds these: remove their files (or remember them, where originals are kept)."""
        gone: list[Path] = []
        for path in paths:
            handed = self._handed.pop(os.fspath(path), None)
            if handed is None:
                continue
            self.taken += not path.name.lower().endswith(SIDECAR_SUFFIX)
            self._remember(os.fspath(path), handed)
            self._settled[os.fspath(path)] = handed.key  # should its removal fail, it is not taken for ever
            if not self._keep_originals and _still(path, handed.key):
                gone.append(path)
                gone.extend(self._spent_sidecar(path, handed))
        if not gone:
            return
        try:
            self._remove(gone)
        except (OSError, EdgetuneError) as error:
            self._report(
                f"cannot remove files from {printable(self._root)}: {error}; they were taken and stay. The inbox and its"
                " folders must be writable for the edgetune group"
            )

    def returned(self, paths: Iterable[Path]) -> None:
        """The buffer could not take these: they will be offered again."""
        for path in paths:
            self._handed.pop(os.fspath(path), None)
        self._dirty.set()

    # ------------------------------------------------------------------------------------------- inside

    def _scan(self, now_s: float) -> None:
        self._dirty.clear()  # before the walk: what arrives during it makes another one
        self._scanned_s = now_s
        self._problems.clear()
        self._watch_over()
        renamed = self._watcher.take_renamed()
        self._present = {found.path: found for found in walk(self._root, self._report)}
        for known in (self._waiting, self._settled):
            for path in [path for path in known if path not in self._present]:
                del known[path]  # type: ignore[attr-defined]  # two dicts that differ in their values
        self._stems = Counter(_stem(path) for path, found in self._present.items() if not found.is_sidecar)
        self._next_look_s = float("inf")
        for path, found in sorted(self._present.items()):
            if path in self._handed or self._settled.get(path) == found.key:
                continue
            if self._has_settled(found, now_s, is_renamed=path in renamed):
                self._admit(found, now_s)
        if self._ready:
            self._next_look_s = now_s

    def _has_settled(self, found: Found, now_s: float, *, is_renamed: bool) -> bool:
        waiting = self._waiting.get(found.path)
        if waiting is None or waiting.key != found.key:
            waiting = _Waiting(found.key, now_s)
            self._waiting[found.path] = waiting
        is_still = is_renamed or now_s - waiting.since_s >= self._settle_s
        if not is_still:
            self._next_look_s = min(self._next_look_s, waiting.since_s + self._settle_s)
        return is_still

    def _admit(self, found: Found, now_s: float) -> None:
        """Queue a settled file; an image waits for its sidecar, a sidecar is carried by its image."""
        if not found.is_sidecar:
            sidecar = self._sidecar_of(found.path)
            beside = self._waiting.get(sidecar.path) if sidecar is not None else None
            if beside is not None and now_s - beside.since_s < self._settle_s:
                self._next_look_s = min(self._next_look_s, beside.since_s + self._settle_s)
                return
            self._ready.append(found)
            return
        base = found.path[: -len(SIDECAR_SUFFIX)]
        if base in self._present or self._stems[base]:
            kept = base if base in self._present else next((p for p in self._present if _is_image_of(p, base)), base)
            if kept not in self._settled or base not in self._taken:
                return  # its image is here and not yet taken
        if base in self._taken:
            self._ready.append(found)
        elif now_s - self._waiting[found.path].since_s >= _ORPHAN_S:
            self._banish(found, "a sidecar without an image beside it")

    def _take(self, found: Found) -> NewSample:
        beside = self._sidecar_of(found.path)
        sidecar = Sidecar() if beside is None else read_sidecar(beside.path, beside.key)
        sample = self._intake.sample(found.path, os.path.relpath(found.path, self._root), found.key, sidecar)
        self._waiting.pop(found.path, None)
        self._handed[found.path] = _Handed(found.key, sample.digest, beside)
        return sample

    def _late_label(self, found: Found) -> Sequence[LateLabel]:
        digest = self._taken.get(found.path[: -len(SIDECAR_SUFFIX)])
        said = read_sidecar(found.path, found.key)
        self._waiting.pop(found.path, None)
        if digest is None or said.label is None:
            self._banish(found, "this sidecar came after its image was taken and names no label")
            return ()
        self._handed[found.path] = _Handed(found.key, digest, None)
        return (LateLabel(path=Path(found.path), digest=digest, label=said.label),)

    def _wait(self, found: Found, now_s: float) -> None:
        self._waiting[found.path] = _Waiting(found.key, now_s)
        self._next_look_s = min(self._next_look_s, now_s + self._settle_s)

    def _refuse(self, found: Found, reason: str, now_s: float) -> None:
        """Quarantine a bad file once it has stood still long enough to be bad for good."""
        waiting = self._waiting.setdefault(found.path, _Waiting(found.key, now_s))
        ripe_s = waiting.since_s + self._patience_s
        if now_s < ripe_s:
            self._next_look_s = min(self._next_look_s, ripe_s) if self._next_look_s > now_s else ripe_s
            return
        self._banish(found, reason)
        beside = None if found.is_sidecar else self._sidecar_of(found.path)
        if beside is not None and self._is_last_user(found.path, beside):
            self._banish(beside, f"belongs to {printable(Path(found.path).name)}: {reason}", counts=False)

    def _banish(self, found: Found, reason: str, *, counts: bool = True) -> None:
        self._waiting.pop(found.path, None)
        try:
            self._quarantine.put(Path(found.path), Path(os.path.relpath(found.path, self._root)), reason, counts=counts)
        except FileNotFoundError:
            return
        except (OSError, EdgetuneError) as error:
            self._settled[found.path] = found.key  # given up on until it changes
            self._report(f"{printable(found.path)} is bad ({reason}) and cannot be moved to the quarantine: {error}")

    def _sidecar_of(self, path: str) -> Found | None:
        return self._present.get(path + SIDECAR_SUFFIX) or self._present.get(_stem(path) + SIDECAR_SUFFIX)

    def _is_last_user(self, path: str, sidecar: Found) -> bool:
        return sidecar.path == path + SIDECAR_SUFFIX or self._stems[_stem(path)] <= 1

    def _spent_sidecar(self, path: Path, handed: _Handed) -> Sequence[Path]:
        """The sidecar to remove with its image: `x.json` goes with the last of `x.jpg` and `x.png`."""
        if path.name.lower().endswith(SIDECAR_SUFFIX):
            return ()
        sidecar = handed.sidecar
        is_last = sidecar is not None and self._is_last_user(os.fspath(path), sidecar)
        self._stems[_stem(os.fspath(path))] -= 1
        if sidecar is None or not is_last or not _still(Path(sidecar.path), sidecar.key):
            return ()
        return (Path(sidecar.path),)

    def _remember(self, path: str, handed: _Handed) -> None:
        for name in (path, _stem(path)):
            self._taken.pop(name, None)
            self._taken[name] = handed.digest
        if handed.sidecar is not None:
            self._settled[handed.sidecar.path] = handed.sidecar.key
        while len(self._taken) > _TAKEN_MAX * 2 and not self._keep_originals:
            self._taken.popitem(last=False)

    def _watch_over(self) -> None:
        if not self._root.is_dir():
            self._make_root()
            self._watcher.start()  # the old watch went with the old directory

    def _make_root(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._report(f"there is no inbox {printable(self._root)} and it cannot be made: {error.strerror}")

    def _arrived(self) -> None:
        """Called from watchdog's thread."""
        self._dirty.set()
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self.wake.set)

    def _report(self, problem: str) -> None:
        self._problems[problem] = None
        while len(self._problems) > _PROBLEMS_MAX:
            self._problems.popitem(last=False)


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def _is_image_of(path: str, stem: str) -> bool:
    return _stem(path) == stem and not path.lower().endswith(SIDECAR_SUFFIX)


def _still(path: Path, key: FileKey) -> bool:
    """Whether the file is still the one that was read: a new one under the same name must not be removed."""
    try:
        return key_of(path.stat(follow_symlinks=False)) == key
    except OSError:
        return False
