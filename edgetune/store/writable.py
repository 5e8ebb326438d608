"""Whether the state directory can be written, asked before anything is: an operator's words for what else fails later."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from edgetune.errors import StoreError

# What this program cannot do without. Anything else may lie there too: an inbox that others own, lost+found of a file system
# of its own.
_OURS = ("lock", "edgetune.db", "edgetune.db-wal", "edgetune.db-shm", "models", "rounds", "quarantine")


def check_writable(state_dir: Path) -> None:
    """
    See that the state directory and what is ours in it can be written, or that it can be made.

    Raises:
        StoreError: naming the first path that cannot, why, and what to do.
    """
    directory = state_dir.absolute()
    if not directory.exists():
        above = next(parent for parent in directory.parents if parent.exists())
        if not _may_write(above):
            raise _refusal(
                above,
                f"the state directory {directory} does not exist and cannot be made: ",
                f"sudo install -d -m 710 -o {_user(os.geteuid())} {directory}",
            )
        return
    for path in (directory, *(directory / name for name in _OURS)):
        if path.exists() and not _may_write(path):
            whose = "u+rwX" if path.stat().st_uid == os.geteuid() else ""
            change = f"chmod -R {whose}" if whose else f"chown -R {_user(os.geteuid())}:"
            raise _refusal(path, "", f"sudo {change} {directory}")


def _may_write(path: Path) -> bool:
    return os.access(path, os.W_OK | os.X_OK if path.is_dir() else os.W_OK)


def _refusal(path: Path, before: str, hint: str) -> StoreError:
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return StoreError(
            f"{before}{path} is on a file system that is mounted read-only",
            hint="mount it for writing (a storage device with errors is set read-only: dmesg); under systemd a state "
            "directory of your own has to be in ReadWritePaths= (systemctl edit edgetune)",
        )
    found = path.stat()
    return StoreError(
        f"{before}{path} cannot be written: it belongs to {_user(found.st_uid)} ({stat.filemode(found.st_mode)}), "
        f"and edgetune runs as {_user(os.geteuid())}",
        hint=hint,
    )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # a container's user without a name
        return str(number)
