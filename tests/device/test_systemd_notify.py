"""The notify protocol against a real datagram socket."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetune.device.systemd import Notifier


@pytest.fixture(params=["path", "abstract"])
def supervisor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """What NOTIFY_SOCKET says, and the socket behind it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@edgetune-test-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0", 1))
        listener.settimeout(5)
        yield name, listener


def test_each_message_arrives_as_systemd_expects_it(supervisor: tuple[str, socket.socket]) -> None:
    """Names, values and line ends are those of sd_notify(3), over a path and over an abstract name."""
    name, listener = supervisor
    notifier = Notifier({"NOTIFY_SOCKET": name})

    def got() -> str:
        return listener.recv(4096).decode()

    assert notifier.ready("serving v3")
    assert got() == "READY=1\nSTATUS=serving v3"
    assert notifier.status("two\nlines")
    assert got() == "STATUS=two lines"
    assert notifier.watchdog()
    assert got() == "WATCHDOG=1"
    assert notifier.reloading()
    first, second = got().split("\n")
    assert first == "RELOADING=1"
    assert second.startswith("MONOTONIC_USEC=")
    assert int(second.partition("=")[2]) > 0
    assert notifier.stopping()
    assert got() == "STOPPING=1"
    assert notifier.extend_timeout(1.5)
    assert got() == "EXTEND_TIMEOUT_USEC=1500000"


def test_outside_systemd_nothing_is_sent() -> None:
    """Without NOTIFY_SOCKET every call is a no-op."""
    notifier = Notifier({})
    assert not notifier.is_active
    assert not notifier.ready()
    assert not notifier.watchdog()


def test_a_supervisor_that_went_away_is_no_error(tmp_path: Path) -> None:
    """A service must not fail because nobody listens any more."""
    assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [({}, None), ({"WATCHDOG_USEC": "30000000"}, 15.0), ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "41"}, 15.0),
     ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "42"}, None), ({"WATCHDOG_USEC": "0"}, None),
     ({"WATCHDOG_USEC": "soon"}, None)],
)  # fmt: skip
def test_the_watchdog_interval_is_half_of_what_systemd_waits(environ: dict[str, str], expected: float | None) -> None:
    """A ping for another process is not ours to send."""
    assert Notifier(environ, pid=41).watchdog_interval_s() == expected
