"""A clock whose hands the test moves, and the CPU's counters beside it."""

from __future__ import annotations

from edgetune.device.sensors import CpuTimes


class Hands:
    """Stands still until the test moves it."""

    def __init__(self, at_s: float = 1000.0) -> None:
        self.at_s = at_s
        self.epoch_s = 1.7e9

    def now_s(self) -> float:
        return self.at_s

    def wall_s(self) -> float:
        return self.epoch_s + self.at_s

    async def sleep(self, duration_s: float) -> None:
        self.at_s += duration_s


class Load:
    """CPU counters under a load that the test sets."""

    def __init__(self, clock: Hands) -> None:
        self._clock, self._last_s, self._busy_s, self.share = clock, clock.at_s, 0.0, 0.0

    def __call__(self) -> CpuTimes:
        self._busy_s += self.share * 4 * (self._clock.at_s - self._last_s)
        self._last_s = self._clock.at_s
        return CpuTimes(self._busy_s, 4 * self._clock.at_s)
