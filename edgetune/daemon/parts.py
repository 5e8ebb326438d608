"""What every part of the daemon shares: the state directory, the store's one thread, time that survives restarts, and the event log."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

from edgetune.clock import Clock
from edgetune.errors import ConflictError, StoreError
from edgetune.store import durable
from edgetune.store.history import History

log = logging.getLogger("edgetune")

P = ParamSpec("P")
T = TypeVar("T")

_SERVICE_TIME_KEY = "service_s"
_SERVICE_TIME_SAVED_EVERY_S = 60.0


class StateLock:
    """One daemon a state directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: IO[bytes] | None = None

    def take(self) -> None:
        """
        Take the directory, which is made where it is missing.

        Raises:
            ConflictError: another daemon holds it.
        """
        durable.make_dir(self._directory)
        self._file = (self._directory / "lock").open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConflictError(
                f"another edgetune holds {self._directory}", hint="stop it first: systemctl stop edgetune"
            ) from None

    def let_go(self) -> None:
        """Give it back, if it was taken."""
        if self._file is not None:
            self._file.close()


class StoreThread:
    """The one thread that owns the database: `await store(buffer.add, samples)`."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")

    async def __call__(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do the work on the store's thread and wait for it without blocking the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, functools.partial(work, *args, **kwargs))

    def close(self) -> None:
        """Finish what was asked for and end the thread."""
        self._pool.shutdown(wait=True)


class ServiceTime:
    """
    Seconds that this service has been up, over all its runs.

    Cool-down, probation and the time since the last round are counted in it, so that a board that boots in 1970, or
    was in a drawer for a year, neither ends nor prolongs them. Saved once a minute: a power cut costs at most that.
    """

    def __init__(self, clock: Clock, history: History) -> None:
        self._clock = clock
        self._history = history
        self._before_s = 0.0
        self._started_s = clock.now_s()
        self._saved_s = 0.0

    def load(self) -> None:
        """Go on from the last saved value; on the store's thread."""
        self._before_s = self._saved_s = float(self._history.get_state(_SERVICE_TIME_KEY) or 0.0)
        self._started_s = self._clock.now_s()

    def now_s(self) -> float:
        """Service seconds now."""
        return self._before_s + self._clock.now_s() - self._started_s

    def is_due(self) -> bool:
        """Whether it is time to save."""
        return self.now_s() - self._saved_s >= _SERVICE_TIME_SAVED_EVERY_S

    def as_state(self) -> dict[str, float]:
        """What is to be saved: the least that the next run starts from."""
        self._saved_s = self.now_s()
        return {_SERVICE_TIME_KEY: self._saved_s}


class Events:
    """One line in the log, one row in the history, and one wake-up for whoever follows."""

    def __init__(self, history: History, store: StoreThread) -> None:
        self._history = history
        self._store = store
        self._changed = asyncio.Event()

    async def emit(self, kind: str, text: str, *, level: int = logging.INFO, **data: Any) -> None:
        """Say that something happened; `kind` is a stable word, `text` a sentence."""
        tail = " ".join(f"{name}={value}" for name, value in data.items() if not isinstance(value, (dict, list, tuple)))
        log.log(level, "%s: %s%s", kind, text, f" {tail}" if tail else "")
        # A full disk must not keep the daemon from saying that the disk is full: the log has it in any case.
        with contextlib.suppress(StoreError):
            await self._store(self._history.add_event, kind, text, data)
        self._changed.set()
        self._changed = asyncio.Event()

    async def after(self, seq: int, limit: int) -> list[dict[str, Any]]:
        """The events after a sequence number, oldest first."""
        return await self._store(self._history.events_after, seq, limit)

    async def wait(self, seq: int) -> None:
        """Return once there is an event after this one."""
        changed = self._changed
        if not await self.after(seq, 1):
            await changed.wait()
