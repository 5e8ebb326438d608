"""
The mean of what a power sensor says between two looks: a trainer that works and sleeps in turn is seen whole.

A sensor that is read once in two seconds may fall together with the batches, or with the sleeps between them, for minutes.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable
from dataclasses import replace

from edgetune.device.sysfs import SensorValue, UnreadableError

_EVERY_S = 0.25  # real time between two samples


class MeanPower:
    """Reads a sensor in a thread of its own while it is told to; without one, a look is a reading."""

    def __init__(self, read: Callable[[], SensorValue | None], *, every_s: float = _EVERY_S) -> None:
        """`read` may be called from the thread, one call at a time."""
        self._read, self._every_s = read, every_s
        self._lock = threading.Lock()
        self._samples: list[SensorValue] = []
        self._problem: UnreadableError | None = None  # of the last sample
        self._ended: threading.Event | None = None  # ends the thread; None: there is none

    def value(self) -> SensorValue | None:
        """
        The mean since the last look, in watts, with the source, step and age of the last sample; a reading where there is none.

        Raises:
            UnreadableError: the sensor gives nothing now.
        """
        with self._lock:
            if self._problem is None and not self._samples:
                return self._read()
            samples, self._samples = self._samples, []
            problem, self._problem = self._problem, None
        if problem is not None:
            raise problem
        watts = [sample.value for sample in samples]
        # A mean of equal numbers may differ from them in its last digit, and then a stuck sensor seems to live.
        mean_w = watts[0] if min(watts) == max(watts) else statistics.fmean(watts)
        return replace(samples[-1], value=mean_w)

    def sample(self) -> bool:
        """Read once and remember it; False on a board without such a sensor."""
        with self._lock:
            try:
                found = self._read()
            except UnreadableError as error:
                self._problem = error
                return True
            except (OSError, RuntimeError, ValueError) as error:  # whatever a driver or a library raises
                self._problem = UnreadableError(f"{type(error).__name__}: {error}")
                return True
            self._problem = None
            if found is not None:
                self._samples.append(found)
            return found is not None

    def keep_sampling(self, *, is_wanted: bool) -> None:
        """Begin to sample, or end."""
        if is_wanted and self._ended is None:
            self._ended = threading.Event()
            threading.Thread(target=self._run, args=(self._ended,), name="power", daemon=True).start()
        elif not is_wanted and self._ended is not None:
            self._ended.set()
            self._ended = None

    def _run(self, ended: threading.Event) -> None:
        while not ended.wait(self._every_s) and self.sample():
            pass
