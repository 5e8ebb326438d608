"""Energy of the board, in joules, from readings of its power."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from edgetune.device.sensors import Sensors
from edgetune.types import Quantity

_GAP_MAX_S = 60.0  # a reading says nothing about a longer time before it: the board slept
_INTERVAL_S = 1.0


class EnergyMeter:
    """
    Sums power over the time between readings, by the mean of the two ends (the trapezoidal rule).

    Attributes:
        joules: so far; None until two readings in a row gave a power.
        unmetered_s: seconds between readings of which at least one gave none.
    """

    def __init__(self) -> None:
        self.joules: float | None = None
        self.unmetered_s = 0.0
        self._last: tuple[float, float | None] | None = None

    def add(self, power_w: float | None, now_s: float) -> float:
        """Take a reading; returns the joules since the last one, 0 where they are unknown."""
        last, self._last = self._last, (now_s, power_w)
        if last is None or not 0 < now_s - last[0] <= _GAP_MAX_S:
            return 0.0
        if power_w is None or last[1] is None:
            self.unmetered_s += now_s - last[0]
            return 0.0
        used = (power_w + last[1]) / 2 * (now_s - last[0])
        self.joules = (self.joules or 0.0) + used
        return used

    def rest(self) -> None:
        """What runs from here on is not counted until `add` is called again: it starts afresh."""
        self._last = None


class PowerWatch:
    """A context in which `told` hears of the joules used since its begin; of nothing where the power is unknown."""

    def __init__(self, sensors: Sensors, told: Callable[[float], None], *, interval_s: float = _INTERVAL_S) -> None:
        """`told` is called from a thread, once every `interval_s` seconds."""
        self._sensors, self._told, self._interval_s = sensors, told, interval_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="power", daemon=True)

    def __enter__(self) -> PowerWatch:  # noqa: PYI034 - Self is of Python 3.11
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        meter = EnergyMeter()
        while True:
            is_over = self._is_over.is_set()  # the last reading comes after the end
            reading = self._sensors.read(None)
            meter.add(reading.value(Quantity.POWER_W), reading.at_s)
            if meter.joules is not None:
                self._told(meter.joules)
            if is_over:
                return
            self._is_over.wait(self._interval_s)
