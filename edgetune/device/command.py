"""
A short command whose output is a sensor: run in a thread of its own, so that no tick waits for one that hangs.

At most one runs at a time. One that does not end in time is killed, and one that cannot even be killed (it waits inside
the kernel) is left alone: what it said last grows old, and then it is none.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from edgetune.clock import Clock, SystemClock
from edgetune.device.sysfs import UnreadableError

_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin:/opt/vc/bin", "LC_ALL": "C"}


class CommandSensor:
    """Runs its command when it is asked and the last answer is not fresh."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        clock: Clock | None = None,
        patience_s: float = 0.5,
        refresh_s: float = 1.0,
        stale_s: float = 15.0,
        timeout_s: float = 5.0,
    ) -> None:
        """
        Prepare; nothing runs before the first `output`.

        Args:
            command: the program and its arguments.
            clock: of monotonic time.
            patience_s: real time that `output` waits for a command that it started; most take a hundredth of a second.
            refresh_s: an answer younger than this is given again.
            stale_s: an answer older than this is none.
            timeout_s: real time after which the command is killed.
        """
        self._command = tuple(command)
        self._name = Path(command[0]).name
        self._clock: Clock = clock or SystemClock()
        self._patience_s, self._refresh_s, self._stale_s, self._timeout_s = patience_s, refresh_s, stale_s, timeout_s
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None
        self._text: str | None = None
        self._text_s = float("-inf")
        self._asked_s = float("-inf")
        self._why = f"{self._name} has not answered yet"  # of the last run that failed

    @property
    def is_pending(self) -> bool:
        """Whether the very first answer is still to come."""
        return self._text is None and self._thread is not None and self._thread.is_alive()

    def output(self) -> tuple[str, float]:
        """
        What the command printed last, and its age in seconds.

        Raises:
            UnreadableError: it is not installed, failed, or has not answered for too long.
        """
        self._refresh()
        with self._lock:
            age_s = self._clock.now_s() - self._text_s
            if self._text is None:
                raise UnreadableError(self._why)
            if not 0 <= age_s <= self._stale_s:
                raise UnreadableError(
                    f"{' '.join((self._name, *self._command[1:]))} has not answered for {abs(age_s):.0f} s"
                    f" ({self._why})"
                )
            return self._text, age_s

    def close(self) -> None:
        """Kill what runs."""
        process = self._process
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
        thread = self._thread
        if thread is not None:
            thread.join(timeout=self._timeout_s)

    def _refresh(self) -> None:
        now_s = self._clock.now_s()
        if self._thread is None or not self._thread.is_alive():
            if 0 <= now_s - self._asked_s < self._refresh_s:
                return
            self._asked_s = now_s
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._thread.join(self._patience_s)

    def _run(self) -> None:
        try:
            with subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                errors="replace", env=_ENVIRONMENT,
            ) as self._process:  # fmt: skip
                try:
                    text, _ = self._process.communicate(timeout=self._timeout_s)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._fail(f"{self._name} did not answer within {self._timeout_s:g} s and was killed")
                    return
            if self._process.returncode != 0:
                said = " ".join(text.split())[:300]
                self._fail(f"{self._name} failed with {self._process.returncode}: {said}")
                return
        except OSError as error:
            self._fail(f"{self._name}: {error.strerror or error}", is_missing=isinstance(error, FileNotFoundError))
            return
        finally:
            self._process = None
        with self._lock:
            self._text, self._text_s = text, self._clock.now_s()
            self._why = "it hangs"

    def _fail(self, why: str, *, is_missing: bool = False) -> None:
        """An old answer stays, and grows old; one that is not installed gives none at all."""
        with self._lock:
            self._why = f"{self._name} is not installed" if is_missing else why
            if is_missing:
                self._text = None
