"""Time in software: a clock that moves when it is told to, and an event loop that lives by it."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")


class FakeClock:
    """Time that passes only when told to; sleeping is over at once."""

    def __init__(self, now_s: float = 1000.0, wall_s: float = 1.7e9) -> None:
        self._now_s, self._wall_s = now_s, wall_s

    def now_s(self) -> float:
        """Monotonic."""
        return self._now_s

    def wall_s(self) -> float:
        """Wall."""
        return self._wall_s

    async def sleep(self, duration_s: float) -> None:
        """Be there at once, in the future."""
        self.advance(duration_s)
        await asyncio.sleep(0)

    def advance(self, by_s: float) -> None:
        """Let time pass on both clocks."""
        self._now_s += by_s
        self._wall_s += by_s

    def set_wall(self, wall_s: float) -> None:
        """What an NTP client, or a board without a clock battery, does."""
        self._wall_s = wall_s


class SimulatedClock(FakeClock):
    """The clock of a `SimulatedLoop`: whoever sleeps on it lets the others go first, and the world moves on meanwhile."""

    def __init__(self, now_s: float, wall_s: float, *, passing: Callable[[float], None]) -> None:
        """`passing` is told of all time that passes, in seconds."""
        super().__init__(now_s, wall_s)
        self._passing = passing

    async def sleep(self, duration_s: float) -> None:
        """Until the loop gets there."""
        await asyncio.sleep(duration_s)

    def advance(self, by_s: float) -> None:
        """Let time pass on both clocks and in the world."""
        super().advance(by_s)
        self._passing(by_s)


class SimulatedLoop(asyncio.SelectorEventLoop):
    """
    An event loop on a fake clock: when there is nothing to do, time jumps to the next thing there is.

    What is handed to an executor is done at once, in the one thread there is: nothing depends on which of two threads is
    faster, so that a simulation comes out the same each time, and no time is spent on changing threads.
    """

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        super().__init__(_Jumps(clock))

    def time(self) -> float:
        """The fake clock's."""
        return self._clock.now_s()

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Do it now."""
        del executor
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - whoever awaits it gets it
            done.set_exception(error)
        return done


class _Jumps(selectors.SelectSelector):
    """Waits for nothing but the clock."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits, and nobody for the time: nothing would ever happen again")
        if timeout > 0:
            self._clock.advance(timeout)
        return []  # no file is ever waited for
