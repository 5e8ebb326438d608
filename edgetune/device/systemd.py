"""
Telling systemd how the service is doing: the notify protocol, without a library.

One datagram of `NAME=value` lines to the socket named in NOTIFY_SOCKET; a name that begins with `@` is an abstract
socket. Outside systemd the variable is absent and every call does nothing.
Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

_STATUS_CHARS_MAX = 300  # one line of `systemctl status`


class Notifier:
    """The daemon's line to systemd."""

    def __init__(self, environ: Mapping[str, str] | None = None, *, pid: int | None = None) -> None:
        """
        Find out who listens.

        Args:
            environ: where NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are looked up; default: this process's.
            pid: this process's number, which WATCHDOG_PID must name.
        """
        environ = os.environ if environ is None else environ
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._watchdog_usec = environ.get("WATCHDOG_USEC", "")
        self._watchdog_pid = environ.get("WATCHDOG_PID", "")
        self._pid = os.getpid() if pid is None else pid

    @property
    def is_active(self) -> bool:
        """Whether systemd (or a container manager) listens at all."""
        return self._address.startswith(("/", "@"))

    def watchdog_interval_s(self) -> float | None:
        """How often systemd expects `watchdog()`: half of WatchdogSec; None when it does not watch this process."""
        if self._watchdog_pid and self._watchdog_pid != str(self._pid):
            return None
        if not self._watchdog_usec.isdigit() or int(self._watchdog_usec) == 0:
            return None
        return int(self._watchdog_usec) / 1e6 / 2

    def ready(self, status: str = "") -> bool:
        """The socket answers: units that are ordered after this one may start."""
        return self._send("READY=1", *self._status_line(status))

    def status(self, text: str) -> bool:
        """Say in words what the service is doing; `systemctl status` shows it."""
        return self._send(*self._status_line(text))

    def watchdog(self) -> bool:
        """The loop has completed a tick."""
        return self._send("WATCHDOG=1")

    def reloading(self) -> bool:
        """A reload has begun; `ready()` ends it. MONOTONIC_USEC is what Type=notify-reload asks for."""
        return self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str = "") -> bool:
        """The service is going down by itself."""
        return self._send("STOPPING=1", *self._status_line(status))

    def extend_timeout(self, duration_s: float) -> bool:
        """Ask for this long from now before the start, stop or reload times out."""
        return self._send(f"EXTEND_TIMEOUT_USEC={round(duration_s * 1e6)}")

    @staticmethod
    def _status_line(text: str) -> tuple[str, ...]:
        return (f"STATUS={' '.join(text.split())[:_STATUS_CHARS_MAX]}",) if text else ()

    def _send(self, *lines: str) -> bool:
        """Send the lines; False when nobody listens: a service must not fail because its supervisor went away."""
        if not lines or not self.is_active:
            return False
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        message = "\n".join(lines).encode("utf-8", "replace")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
                line.setblocking(False)
                line.sendto(message, address)
        except OSError:
            return False
        return True
