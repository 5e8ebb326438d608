"""
What a process holds of the memory for its GPU, on boards where both are one memory.

On a Jetson what CUDA allocates comes from nvmap and is in no process's resident memory. The kernel's table of it is for root;
jtop's service is root and passes it on.

Source: NVIDIA, nvmap driver, debugfs `iovmm/clients`: CLIENT, PROCESS, PID, on L4T 36 also PSS, and SIZE with K, M or G.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from edgetune.device.jtop import JtopProbe
from edgetune.device.sysfs import SensorValue, UnreadableError, read_text

_CLIENTS = "sys/kernel/debug/nvmap/iovmm/clients"
_ROW = re.compile(r"^\s*\w+\s+\S.*?\s(\d+)(?:\s+\d+[KMG]?)?\s+(\d+)([KMG])\s*$", re.MULTILINE)
_MIB = {"K": 1 / 1024, "M": 1.0, "G": 1024.0}


def gpu_memory(root: Path, jtop: JtopProbe | None, pids: Collection[int]) -> SensorValue:
    """
    MiB of GPU memory that processes hold together.

    Raises:
        UnreadableError: the table is for root, and jtop does not run.
    """
    try:
        held = nvmap_clients(read_text(root / _CLIENTS))
    except UnreadableError:
        if jtop is None:
            raise UnreadableError(f"/{_CLIENTS} is for root, and jtop is not asked") from None
    else:
        return SensorValue(_sum(held, pids), "nvmap", 1 / 1024)
    table, age_s = jtop.table("gpu_mib")
    return SensorValue(
        _sum({int(pid): mib for pid, mib in table.items() if pid.isdecimal()}, pids), "jtop", 1 / 1024, age_s
    )


def nvmap_clients(text: str) -> dict[int, float]:
    """Process number -> MiB, of nvmap's table; a process with several clients counts with all of them."""
    held: dict[int, float] = {}
    for pid, size, unit in _ROW.findall(text):
        held[int(pid)] = held.get(int(pid), 0.0) + int(size) * _MIB[unit]
    return held


def _sum(held: Mapping[int, float], pids: Collection[int]) -> float:
    return sum(mib for pid, mib in held.items() if pid in pids)
