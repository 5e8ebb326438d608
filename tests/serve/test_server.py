"""The socket: its rights, its path, and who is on the other end."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from serving_fakes import Running, serving

from edgetune.client import Client
from edgetune.errors import ConfigError, ConflictError, DaemonNotRunningError
from edgetune.serve.peer import Access, Caller, read_caller
from edgetune.serve.server import bind_unix, find_group

ROOT = Path(__file__).parents[2]


def test_only_owner_and_group_may_use_the_socket(running: Running) -> None:
    """Mode 0660, whatever the umask."""
    assert stat.S_IMODE(running.path.stat().st_mode) == 0o660


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_umask_is_neither_trusted_nor_changed(tmp_path: Path, umask: int) -> None:
    """The rights come out right under any umask, which is the whole process's and stays as it was."""
    before = os.umask(umask)
    try:
        bind_unix(tmp_path / "s", None).close()
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o660


def test_a_dead_socket_is_replaced_and_a_stop_removes_its_own(tmp_path: Path) -> None:
    """What a killed daemon left does not keep the next one from starting."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serving(path, None) as running:
        assert Client(running.path).get("/healthz") == {"ok": True}
    assert not path.exists()


def test_a_living_daemon_keeps_its_socket(tmp_path: Path) -> None:
    """A second daemon says that the first one answers, and the first one goes on, also when its lock is gone."""
    path = tmp_path / "s"
    with serving(path, None) as running:
        with pytest.raises(ConflictError, match="another edgetune daemon"), serving(path, None):
            pass
        (tmp_path / "s.lock").unlink()
        with pytest.raises(ConflictError, match="another edgetune daemon"), serving(path, None):
            pass
        assert Client(running.path).get("/healthz") == {"ok": True}


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """A mistyped path never costs a file."""
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ConfigError, match="is not a socket"):
        bind_unix(path, None)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(ConfigError, match="is not a socket"):
        bind_unix(tmp_path / "link", None)
    assert path.read_text() == "data"
    with pytest.raises(ConfigError, match="cannot open"), serving(tmp_path / "no" / "s", None):
        pass
    with pytest.raises(ConfigError, match="cannot open"):
        bind_unix(tmp_path / ("x" * 120), None)


def test_an_unknown_group_names_its_key() -> None:
    """The operator reads which key to mend and how."""
    with pytest.raises(ConfigError, match=r"serving\.socket_group: there is no group 'no-such'") as caught:
        find_group("no-such", "serving.socket_group")
    assert "groupadd" in caught.value.hint
    assert find_group("1234567", "k") == 1234567


def test_only_a_loopback_address_is_served(tmp_path: Path) -> None:
    """The service is never on a network by mistake, and a failed start leaves nothing behind."""
    with pytest.raises(ConfigError, match="not a loopback"), serving(tmp_path / "s", None, tcp=("0.0.0.0", 0)):  # noqa: S104 - refused
        pass
    assert not (tmp_path / "s").exists()


def test_the_kernel_says_who_calls() -> None:
    """User, process and the whole list of groups of the caller."""
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        caller = read_caller(one)
    assert (caller.pid, caller.uid) == (os.getpid(), os.geteuid())
    assert caller.gids == {os.getegid(), *os.getgroups()}


def test_rights_follow_the_groups() -> None:
    """Root, the daemon's user and the admin group do everything; members work; strangers nothing."""
    access = Access(own_uid=500, group_gid=10, admin_gid=20)
    admins = [Caller(uid=0), Caller(uid=500), Caller(uid=7, gids=frozenset({20}))]
    member, stranger, tcp = Caller(uid=7, gids=frozenset({10})), Caller(uid=7, gids=frozenset({11})), Caller()
    assert all(access.is_admin(caller) and access.is_member(caller) for caller in admins)
    assert [access.is_admin(caller) for caller in (member, stranger, tcp)] == [False] * 3
    assert [access.is_member(caller) for caller in (member, stranger, tcp)] == [True, False, True]
    assert not Access(own_uid=500, group_gid=10, admin_gid=None).is_admin(member)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize(("groups", "expected"), [([4242], "200 403"), ([4243], "EACCES"), ([4242, 4244], "200 200")])
def test_another_user_gets_what_its_groups_allow(tmp_path: Path, groups: list[int], expected: str) -> None:
    """A process of another user, by its supplementary groups: member, stranger, admin."""
    import tempfile

    code = (
        "import os, sys\nfrom edgetune.client import Client\nfrom edgetune.errors import EdgetuneError, ForbiddenError\n"
        "def status(call):\n"
        "    try: call(); return '200'\n"
        "    except EdgetuneError as e: return 'EACCES' if 'open the socket' in e.message else str(e.http_status)\n"
        "os.setgroups([int(group) for group in sys.argv[2:]])\n"
        "os.setresgid(65534, 65534, 65534)\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "c = Client(sys.argv[1])\n"
        "got = [status(lambda: c.get('/v1/status')), status(lambda: c.post('/v1/pause'))]\n"
        "print(' '.join(dict.fromkeys(got)) if 'EACCES' in got else ' '.join(got))\n"
    )
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        path = Path(directory) / "s"
        with serving(path, None, group="4242", admin_group="4244"):
            assert path.stat().st_gid == 4242
            done = subprocess.run(
                [sys.executable, "-c", code, str(path), *map(str, groups)],
                env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
            )  # fmt: skip
    assert done.stdout.strip() == expected, done.stderr


def test_a_server_without_its_daemon_is_named(tmp_path: Path) -> None:
    """The client says that the daemon does not run, and how to start it."""
    with pytest.raises(DaemonNotRunningError, match="does not answer") as caught:
        Client(tmp_path / "none").get("/healthz")
    assert "systemctl start" in caught.value.hint


def test_the_server_leaves_signals_to_the_daemon(tmp_path: Path) -> None:
    """Starting and stopping changes no signal handler."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with serving(tmp_path / "s", None):
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
