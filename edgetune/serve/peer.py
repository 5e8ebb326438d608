"""Who is on the other end of a connection, and what they may do."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import struct
from dataclasses import dataclass

# <asm-generic/socket.h>, since Linux 4.13; Python has no name for it.
_SO_PEERGROUPS = 59
_UCRED = struct.Struct("3i")  # pid, uid, gid
_GID = struct.Struct("I")
# Python's getsockopt takes at most 1024 bytes: 256 groups. A caller in more of them is looked up by name.
_GROUPS_BYTES_MAX = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The process that opened a connection; all None over TCP, where the kernel does not tell."""

    pid: int | None = None
    uid: int | None = None
    gids: frozenset[int] = frozenset()  # primary and supplementary


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may do what: members read, predict and label; admins do everything."""

    own_uid: int
    group_gid: int  # of the socket
    admin_gid: int | None = None

    def is_admin(self, caller: Caller) -> bool:
        """Root, the daemon's own user, and the admin group; never over TCP."""
        if caller.uid is None:
            return False
        return caller.uid in {0, self.own_uid} or self.admin_gid in caller.gids

    def is_member(self, caller: Caller) -> bool:
        """Admins, the socket's group, and whoever is let in over the loopback address."""
        return caller.uid is None or self.is_admin(caller) or self.group_gid in caller.gids


def read_caller(connection: socket.socket) -> Caller:
    """
    Ask the kernel who called connect() on the other end of a Unix socket.

    The groups are the calling process's own (SO_PEERGROUPS): `id -G` at that moment, not what the group file says
    about the user. Where the kernel has no such option, the group file has to do.
    """
    if connection.family != socket.AF_UNIX:
        return Caller()
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES_MAX)
        groups = [group for (group,) in _GID.iter_unpack(raw)]
    except OSError:
        groups = _groups_by_name(uid, gid)
    return Caller(pid=pid, uid=uid, gids=frozenset([gid, *groups]))


def _groups_by_name(uid: int, gid: int) -> list[int]:
    with contextlib.suppress(KeyError):  # a user without a name has no other groups
        return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    return []
