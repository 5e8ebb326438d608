"""Time as an argument, so that a six-hour cool-down takes a millisecond in a test."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def now_s(self) -> float:
        """Seconds on a clock that never jumps; its origin means nothing. Durations come from here."""

    def wall_s(self) -> float:
        """Seconds since 1970 as this board believes them; for people and file times, never for durations."""

    async def sleep(self, duration_s: float) -> None:
        """Wait."""


class SystemClock:
    """The clock of the machine."""

    def now_s(self) -> float:
        """Seconds of CLOCK_BOOTTIME where there is one (it counts a suspended board's time too), else monotonic."""
        boottime = getattr(time, "CLOCK_BOOTTIME", None)
        return time.clock_gettime(boottime) if boottime is not None else time.monotonic()

    def wall_s(self) -> float:
        """Seconds since 1970 as this board believes them."""
        return time.time()

    async def sleep(self, duration_s: float) -> None:
        """Wait on the running event loop."""
        await asyncio.sleep(duration_s)
