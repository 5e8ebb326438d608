"""How long an answer is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable

_STRETCH = 5.0  # a busy board may be late for a turn; what is longer was a pause


class Patience:
    """
    A time-out in which a pause does not count.

    A trainer is paused by SIGSTOP, in the middle of whatever it does, and the clock goes on. So time is added up in turns,
    and a turn that took far longer than it should counts as one that was merely late.
    """

    def __init__(self, timeout_s: float, turn_s: float, *, now_s: Callable[[], float] = time.monotonic) -> None:
        """`is_over` will be asked about every `turn_s` seconds."""
        self._left_s, self._turn_max_s, self._now_s = timeout_s, _STRETCH * turn_s, now_s
        self._last_s = now_s()

    def is_over(self) -> bool:
        """Whether the time-out has passed."""
        now_s = self._now_s()
        self._left_s -= min(now_s - self._last_s, self._turn_max_s)
        self._last_s = now_s
        return self._left_s <= 0
