"""Telling a sensor that is stuck from a board that is steady: the load moved and the value did not."""

from __future__ import annotations

_LOAD_MOVED = 0.3  # of all cores: a chip whose load moves by this much in ten minutes does not stay at one value


class FrozenCheck:
    """Of one sensor."""

    def __init__(self, after_s: float) -> None:
        """`after_s`: how long one unchanged value is believed while the load moves."""
        self._after_s = after_s
        self._value: float | None = None
        self._since_s = 0.0
        self._load = (1.0, 0.0)  # lowest and highest share since then

    def judge(self, value: float | None, cpu_share: float | None, now_s: float) -> str:
        """Why the value is not believed; empty when it is."""
        if value is None or value != self._value:
            self._value, self._since_s, self._load = value, now_s, (1.0, 0.0)
        if value is None:
            return ""
        if cpu_share is not None:
            self._load = (min(self._load[0], cpu_share), max(self._load[1], cpu_share))
        moved = self._load[1] - self._load[0]
        if self.still_s(now_s) < self._after_s or moved < _LOAD_MOVED:
            return ""
        return f"frozen: has said {value:g} for {self.still_s(now_s) / 60:.0f} min while the CPU's load moved by {moved:.0%}"

    def still_s(self, now_s: float) -> float:
        """How long the value has stood."""
        return max(0.0, now_s - self._since_s)
