"""
How much work waited for memory, for the CPU and for storage: the kernel's pressure stall information.

Source: Documentation/accounting/psi.rst (Linux 4.20 and later).
"""

from __future__ import annotations

import re
from pathlib import Path

from edgetune.device.sysfs import SensorValue, UnreadableError, number, read_text

_LINE = re.compile(r"^some avg10=(\S+)", re.MULTILINE)
_STEP = 0.0001  # two decimals of a per cent
_ABSENT = (
    "this kernel keeps no pressure stall information: add psi=1 to its command line"
    " (/boot/firmware/cmdline.txt on a Raspberry Pi), or take a kernel from 4.20 on"
)


def pressure(root: Path, resource: str) -> SensorValue:
    """
    The share of the last ten seconds in which some task waited for a resource ("memory", "cpu", "io"), 0..1.

    Raises:
        UnreadableError: the kernel does not keep it, or it cannot be understood.
    """
    path = root / "proc/pressure" / resource
    try:
        text = read_text(path)
    except UnreadableError:
        raise UnreadableError(_ABSENT) from None
    match = _LINE.search(text)
    if match is None:
        raise UnreadableError(f"{path} reads {text[:40]!r}, which has no average of ten seconds")
    share = number(match[1], str(path)) / 100
    if not 0 <= share <= 1:
        raise UnreadableError(f"{path} says {share:.0%}, which cannot be")
    return SensorValue(share, f"/proc/pressure/{resource}", _STEP)
