"""
A control group of the trainer's own, whose memory the kernel keeps below a limit: the wall behind the readings.

Readings come seconds apart, and a trainer can take a gigabyte between two of them. In a control group (cgroup v2) with
`memory.max` the kernel first takes back what it can, then kills the trainer, and nobody else. It needs a kernel with the
memory controller (Raspberry Pi OS has it switched off) and a service to which its own group is delegated
(`Delegate=memory`). The group that systemd makes may then have no processes of its own beside subgroups, so the daemon
moves into one first: `DelegateSubgroup=`, which does that, needs systemd 254.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_MIB = 2**20
_TREE = "sys/fs/cgroup"
NO_UNIFIED = "the kernel's control groups are of version 1 here, or absent"
NO_CONTROLLER = "the kernel has the memory controller of control groups switched off"
NO_GROUP = "this is no service with a control group of its own"


def kernel_lacks(root: Path = Path("/")) -> str:
    """Why no process of this machine can have such a wall; empty: nothing is missing."""
    try:
        controllers = (root / _TREE / "cgroup.controllers").read_text("ascii").split()
    except OSError:
        return NO_UNIFIED
    return "" if "memory" in controllers else NO_CONTROLLER


class MemoryWall:
    """
    The trainer's control group.

    Attributes:
        why_not: why there is none; empty when there is.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        """`root` stands above proc/ and sys/. No group is made before `open`."""
        self._root = root
        self._group: Path | None = None
        self.why_not = "not opened"

    def open(self) -> str:
        """Make the groups and move this process into its own; returns why that cannot be, empty when it is done."""
        self.why_not = kernel_lacks(self._root)
        if self.why_not:
            return self.why_not
        try:
            lines = (self._root / "proc/self/cgroup").read_text("ascii").splitlines()
            path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
            if not path.endswith(".service"):
                self.why_not = NO_GROUP
            else:
                self._make(self._root / _TREE / path)
        except OSError as error:
            self.why_not = f"the service's control group is not delegated to it (Delegate=memory): {error.strerror}"
        return self.why_not

    def _make(self, service: Path) -> None:
        if "memory" not in (service / "cgroup.controllers").read_text("ascii").split():
            self.why_not = "the memory controller is not delegated to the service (Delegate=memory)"
            return
        daemon, trainer = service / "daemon", service / "trainer"
        daemon.mkdir(exist_ok=True)
        (daemon / "cgroup.procs").write_text(str(os.getpid()), "ascii")
        try:
            (service / "cgroup.subtree_control").write_text("+memory", "ascii")
        except OSError:
            (service / "cgroup.procs").write_text(str(os.getpid()), "ascii")  # others live in it: leave it as it was
            daemon.rmdir()
            raise
        trainer.mkdir(exist_ok=True)
        (trainer / "memory.oom.group").write_text("1", "ascii")
        with contextlib.suppress(OSError):  # a kernel without swap accounting
            (trainer / "memory.swap.max").write_text("0", "ascii")  # a swapped trainer would wear the card out
        self.stand_on(trainer)

    def stand_on(self, group: Path) -> None:
        """Use a control group that is there already, made by whoever calls."""
        self._group, self.why_not = group, ""

    def limit(self, memory_mib: float | None) -> None:
        """Put the wall here, in MiB; None takes it away. Takes effect at once, on a trainer that runs too."""
        if self._group is not None:
            text = "max" if memory_mib is None else str(round(memory_mib * _MIB))
            (self._group / "memory.max").write_text(text, "ascii")

    def admit(self, pid: int) -> None:
        """Move a process behind the wall; its children start there."""
        if self._group is not None:
            with contextlib.suppress(ProcessLookupError):
                (self._group / "cgroup.procs").write_text(str(pid), "ascii")

    def kills(self) -> int:
        """How often the kernel has killed behind the wall so far."""
        if self._group is None:
            return 0
        try:
            rows = (line.split() for line in (self._group / "memory.events").read_text("ascii").splitlines())
            return next((int(count) for name, count in rows if name == "oom_kill"), 0)
        except (OSError, ValueError):
            return 0

    def peak_mib(self) -> float | None:
        """The most that was held behind it since it was made; None: the kernel does not tell (before Linux 5.19)."""
        try:
            return None if self._group is None else int((self._group / "memory.peak").read_text("ascii")) / _MIB
        except (OSError, ValueError):
            return None
