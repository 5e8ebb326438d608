"""The socket: bound by us, with rights that hold from its first moment, and served by uvicorn's protocol."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import grp
import os
import socket
import stat
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from uvicorn.server import ServerState

from edgetune.errors import ConfigError, ConflictError
from edgetune.serve.peer import Access
from edgetune.serve.protocol import CallerProtocol
from edgetune.serve.service import ApiLimits

SOCKET_MODE = 0o660
BACKLOG = 128

# How long a connect may take that asks whether another daemon lives on the path.
_PROBE_TIMEOUT_S = 1.0


class SocketServer:
    """
    Serves an application on a Unix socket, and on a loopback address if asked to, in the running event loop.

    uvicorn's own server is not used: its `uds=` makes the socket 0666, it takes the signal handlers, and it wakes ten
    times a second for ever.
    """

    def __init__(
        self,
        app: Starlette,
        path: Path,
        *,
        group: str | None,
        admin_group: str | None,
        limits: ApiLimits,
        tcp: tuple[str, int] | None = None,
    ) -> None:
        """
        Take what `start` needs; nothing is opened yet.

        Args:
            app: what `build_app` made.
            path: of the socket; its directory exists.
            group: who may use it; None: the daemon's own group.
            admin_group: who may also train, promote, roll back, reload and purge; None: root and the daemon's user.
            limits: time-outs and connections; the rest of them is the application's.
            tcp: a loopback address and port.
        """
        self._app, self._path, self._limits, self._tcp = app, path, limits, tcp
        self._group, self._admin_group = group, admin_group
        self._state = ServerState()
        self._servers: list[asyncio.Server] = []
        self._lock: int | None = None
        self._inode: int | None = None
        self.tcp_port: int | None = None  # the one in use, once started

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._state.connections)

    async def start(self) -> None:
        """
        Bind and answer.

        Raises:
            ConfigError: the path or a group cannot be used, or the address is not a loopback address.
            ConflictError: another daemon answers there.
        """
        gid = os.getegid() if self._group is None else find_group(self._group, "serving.socket_group")
        admin_gid = None if self._admin_group is None else find_group(self._admin_group, "serving.admin_group")
        access = Access(own_uid=os.geteuid(), group_gid=gid, admin_gid=admin_gid)
        self._app.state.access = access
        config = uvicorn.Config(
            self._app, lifespan="off", ws="none", interface="asgi3", log_config=None, access_log=False,
            proxy_headers=False, server_header=False, date_header=False, backlog=BACKLOG,
            timeout_keep_alive=int(self._limits.keep_alive_s),
        )  # fmt: skip
        config.load()
        loop = asyncio.get_running_loop()

        def connect() -> CallerProtocol:
            return CallerProtocol(config, self._state, {}, limits=self._limits, access=access)

        self._lock = _lock(self._path)
        sockets: list[socket.socket] = []
        try:
            sockets.append(bind_unix(self._path, None if self._group is None else gid))
            self._inode = self._path.stat().st_ino
            if self._tcp is not None:
                sockets.append(_bind_loopback(*self._tcp))
                self.tcp_port = sockets[-1].getsockname()[1]
            for bound in sockets:
                self._servers.append(await loop.create_server(connect, sock=bound, backlog=BACKLOG))
        except BaseException:
            for bound in sockets:
                bound.close()
            await self.stop(grace_s=0)
            raise

    async def stop(self, *, grace_s: float = 5.0) -> None:
        """Take no more connections, let requests in flight finish for `grace_s`, then end them; remove the socket."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        self._app.state.closing.set()
        if self._inode is not None:
            with contextlib.suppress(FileNotFoundError):
                if self._path.lstat().st_ino == self._inode:
                    self._path.unlink()
            self._inode = None
        for connection in list(self._state.connections):
            connection.shutdown()
        tasks = list(self._state.tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for connection in list(self._state.connections):
            connection.transport.close()
        await asyncio.sleep(0)  # transports say goodbye in the next turn of the loop
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def bind_unix(path: Path, gid: int | None) -> socket.socket:
    """
    Bind a Unix socket that only its owner and group can use.

    It does not listen yet: whoever connects between the bind and the chmod is refused by the kernel, so that no umask
    has to be changed, which would be the whole process's.

    Raises:
        ConfigError: the path holds something else than a socket, or the rights cannot be set.
        ConflictError: another daemon answers there.
    """
    _clear_dead_socket(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(str(path))
        if gid is not None:
            os.chown(path, -1, gid)
        path.chmod(SOCKET_MODE)
    except OSError as error:
        bound.close()
        hint = "the socket's directory must exist and be writable, and the daemon's user a member of its group"
        raise ConfigError(f"cannot open the socket {path}: {error.strerror or error}", hint=hint) from error
    bound.setblocking(False)
    return bound


def find_group(name: str, key: str) -> int:
    """
    The number of a group, given by name or number.

    Raises:
        ConfigError: there is none; the sentence names the key.
    """
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        if name.isascii() and name.isdigit():
            return int(name)
        hint = f"create it: groupadd --system {name}"
        raise ConfigError(f"{key}: there is no group {name!r} on this system", hint=hint) from None


def _lock(path: Path) -> int:
    """Hold a lock beside the socket, so that of two daemons that start at once one finds out."""
    try:
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        hint = "the socket's directory must exist and be writable for the daemon's user"
        raise ConfigError(f"cannot open the socket {path}: {error.strerror}", hint=hint) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise _occupied(path) from None
    return descriptor


def _clear_dead_socket(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"cannot open the socket {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is not a socket", hint="remove it, or set another paths.socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()  # nobody listens: left behind by a daemon that was killed
            return
        except OSError as error:  # alive but full, or not ours to reach
            raise _occupied(path) from error
    raise _occupied(path)


def _occupied(path: Path) -> ConflictError:
    return ConflictError(f"another edgetune daemon answers on {path}", hint="stop it: systemctl stop edgetune")


def _bind_loopback(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if host != "::1" and not host.startswith("127."):
        raise ConfigError(f"serving.tcp: {host} is not a loopback address", hint='use "127.0.0.1:PORT" or "[::1]:PORT"')
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ConfigError(f"serving.tcp: cannot bind {host}:{port}: {error.strerror}") from error
    bound.setblocking(False)
    return bound
