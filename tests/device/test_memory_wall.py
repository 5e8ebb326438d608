"""The trainer's control group: on a tree of plain files, and on the kernel's own where this machine has one."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from pathlib import Path

import pytest

from edgetune.device import memory_wall
from edgetune.device.memory_wall import MemoryWall, kernel_lacks
from edgetune.device.trainer_process import TrainerProcess
from edgetune.types import TrainerOutcome

SERVICE = "system.slice/edgetune.service"


def tree(root: Path, *, kernel: str = "cpu memory", delegated: str = "memory", group: str = SERVICE) -> Path:
    """What systemd leaves a service; the group's directory."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"1:name=systemd:/{group}\n0::/{group}\n")
    service = root / "sys/fs/cgroup" / group
    for made in (service, service / "daemon", service / "trainer"):
        made.mkdir(parents=True, exist_ok=True)
    (root / "sys/fs/cgroup/cgroup.controllers").write_text(f"{kernel}\n")
    (service / "cgroup.controllers").write_text(f"{delegated}\n")
    return service


def test_the_daemon_moves_aside_and_the_trainer_gets_a_wall(tmp_path: Path) -> None:
    """Its own process into one subgroup, the controller for all, the limit and no swap for the other."""
    service = tree(tmp_path)
    wall = MemoryWall(tmp_path)
    assert wall.open() == ""
    assert (service / "daemon/cgroup.procs").read_text() == str(os.getpid())
    assert (service / "cgroup.subtree_control").read_text() == "+memory"
    assert (service / "trainer/memory.oom.group").read_text() == "1"
    assert (service / "trainer/memory.swap.max").read_text() == "0"
    wall.limit(512.0)
    assert (service / "trainer/memory.max").read_text() == str(512 * 2**20)
    wall.limit(None)
    assert (service / "trainer/memory.max").read_text() == "max"
    wall.admit(4711)
    assert (service / "trainer/cgroup.procs").read_text() == "4711"
    (service / "trainer/memory.events").write_text("low 0\nmax 7\noom 1\noom_kill 2\n")
    assert wall.kills() == 2


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"kernel": "cpu io"}, memory_wall.NO_CONTROLLER),
        ({"delegated": "cpu"}, "the memory controller is not delegated to the service (Delegate=memory)"),
        ({"group": "user.slice/session-1.scope"}, memory_wall.NO_GROUP),
    ],
)
def test_where_there_can_be_none_it_says_why_and_does_nothing(tmp_path: Path, change: dict[str, str], why: str) -> None:
    """Readings are what is left; asking it for anything is harmless."""
    service = tree(tmp_path, **change)
    wall = MemoryWall(tmp_path)
    assert wall.open() == wall.why_not == why
    wall.limit(100.0)
    wall.admit(1)
    assert wall.kills() == 0
    assert not (service / "trainer/memory.max").exists()
    assert not (service / "daemon/cgroup.procs").exists()


def test_control_groups_of_version_1_are_told_apart(tmp_path: Path) -> None:
    """There is no such file in them."""
    assert kernel_lacks(tmp_path) == memory_wall.NO_UNIFIED


def test_the_kernel_kills_what_runs_into_the_wall_and_it_is_named(tmp_path: Path) -> None:
    """A real process behind a real wall of 64 MiB: it ends as out of memory, and this process lives."""
    if why := kernel_lacks():
        pytest.skip(f"needs a memory controller of cgroup v2: {why}")
    if os.geteuid() != 0:
        pytest.skip("needs to be root, to make a control group")
    group = Path("/sys/fs/cgroup") / f"edgetune-test-{uuid.uuid4().hex}"
    group.mkdir()
    (group / "memory.max").write_text(str(64 * 2**20))
    (group / "memory.swap.max").write_text("0")
    wall = MemoryWall()
    wall.stand_on(group)

    async def play() -> None:
        greedy = "import time; time.sleep(0.5); block = bytearray(200 * 2**20); print(len(block))"
        trainer = TrainerProcess(command=[sys.executable, "-c", greedy], wall=wall)
        await trainer.start(tmp_path)
        end = await trainer.wait()
        assert end.outcome is TrainerOutcome.OUT_OF_MEMORY
        assert "budgets.trainer_memory_max" in end.message

    try:
        asyncio.run(play())
    finally:
        group.rmdir()
