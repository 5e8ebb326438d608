"""
Reading one file of /sys or /proc, and what a board can say at all.

Every reader of this package is given the file system's root, so that a recorded tree can stand in for a board. A value
that cannot be right is no value: `UnreadableError` says why.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TEMP_MIN_C = -40.0  # jtop and some drivers report -256 C for a sensor that is switched off
TEMP_MAX_C = 150.0
POWER_MAX_W = 2000.0

_FILE_BYTES_MAX = 65536  # sysfs gives at most a page, nvmap's table some pages
_AGAIN_S = 0.002  # Tegra's thermal driver says EAGAIN while it samples


class UnreadableError(Exception):
    """The sensor is there and gives nothing that can be used."""


@dataclass(frozen=True, slots=True)
class SensorValue:
    """A number in its quantity's unit, where it was read, the smallest step it can make, and how old it is."""

    value: float
    source: str
    resolution: float | None = None
    age_s: float = 0.0


def read_text(path: Path) -> str:
    """
    What a file of sysfs or procfs says, without the white space around it.

    Raises:
        UnreadableError: absent, forbidden, or the driver returned an error.
    """
    try:
        return _read(path)
    except BlockingIOError:
        time.sleep(_AGAIN_S)
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror or error}") from error
    try:
        return _read(path)
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror or error}") from error


def _read(path: Path) -> str:
    """Without Python's buffers: they make a TypeError of the EAGAIN of a part that is switched off."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        data = b""
        while len(data) < _FILE_BYTES_MAX and (chunk := os.read(descriptor, _FILE_BYTES_MAX)):
            data += chunk
    finally:
        os.close(descriptor)
    return data.decode("utf-8", errors="replace").strip().strip("\0").strip()


def read_number(path: Path) -> float:
    """
    A sysfs file that holds one number.

    Raises:
        UnreadableError: as for `read_text`, or it holds something else.
    """
    return number(read_text(path), str(path))


def number(text: str, where: str) -> float:
    """
    A finite number.

    Raises:
        UnreadableError: it is none; says where it stood.
    """
    try:
        value = float(text)
    except ValueError:
        raise UnreadableError(f"{where} reads {text[:40]!r}, which is no number") from None
    if not math.isfinite(value):
        raise UnreadableError(f"{where} reads {text[:40]!r}")
    return value


def says(path: Path, default: str = "") -> str:
    """What a file says, or the default where it cannot be read."""
    try:
        return read_text(path)
    except UnreadableError:
        return default


def hwmon_chips(root: Path) -> Iterator[tuple[Path, str]]:
    """Each hardware monitor with its name in small letters; the kernel's numbers change from boot to boot."""
    for chip in sorted(root.glob("sys/class/hwmon/hwmon*")):
        if name := says(chip / "name"):
            yield chip, name.lower()


def possible_temp_c(value: float, where: str) -> float:
    """
    The value, if a running chip can have it. Exactly 0 is what a dead sensor says.

    Raises:
        UnreadableError: it cannot.
    """
    if not TEMP_MIN_C < value < TEMP_MAX_C or value == 0:
        raise UnreadableError(f"{where} says {value:g} C, which cannot be")
    return value


def possible_power_w(value: float, where: str) -> float:
    """
    The value, if a board can draw it.

    Raises:
        UnreadableError: it cannot.
    """
    if not 0 < value < POWER_MAX_W:
        raise UnreadableError(f"{where} says {value:g} W, which cannot be")
    return value


def shown(root: Path, path: Path) -> str:
    """A path as it is on the board."""
    return "/" + path.relative_to(root).as_posix()
