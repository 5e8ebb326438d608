"""Any file of any board may vanish, turn into a folder, or say anything: a reading is made all the same, and nothing absurd is in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import trees
from hands import Hands, Load

from edgetune.device.board import identify
from edgetune.device.sensors import BoardSensors
from edgetune.types import Quantity, Reading

BOARDS = {
    "nano": trees.NANO, "tx2": trees.TX2, "xavier_nx": trees.XAVIER_NX, "orin_nano": trees.ORIN_NANO, "agx_orin": trees.AGX_ORIN,
    "thor": trees.THOR, "pi_4": trees.PI_4, "pi_5": trees.PI_5, "ups_hat": trees.UPS_HAT, "laptop": trees.LAPTOP_ON_BATTERY,
    "server": trees.SERVER_WITH_RAPL, "pressure": trees.PRESSURE,
}  # fmt: skip
SAYS = ["", "text", "-7", "nan", "inf", "1e308", "99999999999999999999", "0", "\x00\xff", "1 2", "\u2603"]
POSSIBLE = {
    Quantity.SOC_TEMP_C: (-40, 150), Quantity.POWER_W: (0, 2000), Quantity.CPU_SHARE: (0, 1), Quantity.ON_MAINS: (0, 1),
    Quantity.BATTERY_SHARE: (0, 1), Quantity.IS_THROTTLED: (0, 1), Quantity.MEM_PRESSURE: (0, 1), Quantity.CPU_PRESSURE: (0, 1),
    Quantity.IO_PRESSURE: (0, 1), Quantity.MEM_AVAILABLE_MIB: (0, 1e9), Quantity.TRAINER_RSS_MIB: (0, 1e9),
    Quantity.DISK_FREE_MIB: (0, 1e9),
}  # fmt: skip


def check(reading: Reading) -> None:
    """Every quantity is known and possible, or unknown with a reason."""
    assert set(reading.values) == set(POSSIBLE)
    for quantity, measured in reading.values.items():
        if measured.value is None:
            assert measured.why_unknown, quantity
            continue
        low, high = POSSIBLE[quantity]
        assert low <= measured.value <= high, (quantity, measured)
        assert measured.source
        assert measured.age_s >= 0
        assert measured.resolution is None or (math.isfinite(measured.resolution) and measured.resolution >= 0)


def folder(path: Path) -> None:
    """What a file never is."""
    path.unlink()
    path.mkdir()


def said(text: str) -> Callable[[Path], None]:
    """Let the file say a text."""
    return lambda path: path.write_bytes(text.encode("utf-8", errors="surrogateescape"))


@pytest.mark.parametrize("board", BOARDS)
def test_a_broken_file_breaks_no_reading(tmp_path: Path, board: str) -> None:
    """One file after the other under a service that runs, each in three of the ways in turn."""
    clock = Hands()
    ways = [Path.unlink, folder, *map(said, SAYS)]
    files, root = BOARDS[board], trees.plant(tmp_path, BOARDS[board])
    sensors = BoardSensors(root, clock=clock, disk_path=root, cpu_times=Load(clock))
    check(sensors.read(None))
    for number, name in enumerate(files):
        for turn in range(3):
            path = root / name
            ways[(3 * number + turn) % len(ways)](path)
            clock.at_s += 2
            check(sensors.read(None))
            identify(root)
            if path.is_dir():
                path.rmdir()
            trees.plant(root, {name: files[name]})
