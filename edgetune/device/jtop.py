"""
The daemon's side of the jtop probe: a child process that prints one JSON reading a line.

jtop's client cannot reconnect after its service restarts, may hang, and changes the process it is imported into, so it
lives in a process that is killed and started anew when it falls silent. The probe says nothing when the service gives it
the same reading again, so that a service that hangs is a silence too.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from edgetune.clock import Clock, SystemClock
from edgetune.device.sysfs import SensorValue, UnreadableError

_RESTART_MAX_S = 300.0
_FIRST_READING_S = 20.0  # with the default waits three probes are started in it


class JtopProbe:
    """Starts the probe, reads its lines in a thread, restarts it when it is silent or gone."""

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        command: Sequence[str] | None = None,
        silent_max_s: float = 10.0,
        restart_s: float = 5.0,
    ) -> None:
        """
        Prepare; the first `value` starts the probe.

        Args:
            clock: of monotonic time.
            command: the probe; default: this Python's `-m edgetune.device.jtop_probe`.
            silent_max_s: a reading older than this is none, and the probe is killed.
            restart_s: wait before a restart; doubled each time without a reading, up to five minutes.
        """
        self._clock: Clock = clock or SystemClock()
        self._command = tuple(command) if command is not None else (sys.executable, "-m", "edgetune.device.jtop_probe")
        self._silent_max_s = silent_max_s
        self._restart_s = self._restart_first_s = restart_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._last: dict[str, Any] = {}
        self._last_s = float("-inf")
        self._first_s = self._started_s = float("-inf")
        self._why = "jtop has given no reading yet"
        self.starts = 0

    @property
    def is_pending(self) -> bool:
        """
        Whether the first reading may still come.

        Its service says that it has started before it listens: at boot the first probe fails, and a later one does not.
        """
        with self._lock:
            is_without = not self._last and "ModuleNotFoundError" not in self._why
        return is_without and self.starts > 0 and self._clock.now_s() - self._first_s <= _FIRST_READING_S

    def value(self, field: str) -> SensorValue:
        """
        The newest reading of a field ("soc_temp_c", "power_w"); looks after the probe.

        Raises:
            UnreadableError: there is none that is fresh; says why.
        """
        number, age_s = self._newest(field)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise UnreadableError(f"jtop does not give {field}")
        return SensorValue(float(number), "jtop", 0.001, age_s)

    def table(self, field: str) -> tuple[Mapping[str, float], float]:
        """
        The newest reading of a field that is a table of numbers ("gpu_mib": by process number), and its age in seconds.

        Raises:
            UnreadableError: there is none that is fresh; says why.
        """
        rows, age_s = self._newest(field)
        if not isinstance(rows, dict):
            raise UnreadableError(f"jtop does not give {field}")
        numbers = {key: float(value) for key, value in rows.items() if isinstance(value, (int, float))}
        return {key: value for key, value in numbers.items() if math.isfinite(value) and value >= 0}, age_s

    def _newest(self, field: str) -> tuple[object, float]:
        now_s = self._clock.now_s()
        self._look_after(now_s)
        with self._lock:
            age_s = now_s - self._last_s
            if age_s > self._silent_max_s:
                raise UnreadableError(self._why)
            return self._last.get(field), max(0.0, age_s)

    def stop(self) -> None:
        """End the probe."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.join(timeout=5)

    def _look_after(self, now_s: float) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            silent_s = now_s - max(self._started_s, self._last_s)
            if silent_s <= self._silent_max_s:
                return
            with self._lock:
                self._why = f"jtop has been silent for {silent_s:.0f} s and was restarted"
            self.stop()
        elif process is not None:
            self.stop()
        if self.starts and now_s - self._started_s < self._restart_s:
            return
        if self.starts:
            self._restart_s = min(_RESTART_MAX_S, self._restart_s * 2)
        self._start(now_s)

    def _start(self, now_s: float) -> None:
        self.starts += 1
        self._started_s = now_s
        if self.starts == 1:
            self._first_s = now_s
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            self._why = f"the jtop probe cannot be started: {error}"
            return
        self._reader = threading.Thread(target=self._read, args=(self._process,), name="jtop", daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdout is None:
            return
        with process.stdout as lines:
            for line in lines:
                try:
                    reading = json.loads(line)
                except ValueError:
                    continue
                if not isinstance(reading, dict):
                    continue
                with self._lock:
                    if "error" in reading:
                        self._why = f"jtop: {reading['error']}"
                        continue
                    self._last, self._last_s = reading, self._clock.now_s()
                    self._restart_s = self._restart_first_s
                    self._why = "jtop has fallen silent"
