"""What is used of a day's energy and writes, over restarts and power cuts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from edgetune.decide.account import Account, current
from edgetune.device.energy import EnergyMeter
from edgetune.store.written import disk_written_bytes, process_written_bytes
from edgetune.types import Measurement, Quantity

STATE_KEY = "ledger"
_MIB = 2.0**20
_WHERE = "the service's ledger"


class Ledger:
    """
    The account of the day. Told of every reading; saved with the service time, so a power cut costs a minute of it.

    Args:
        state_dir: whose disk is looked at.
        written: bytes that a process (None: this one) has written so far; None: unknown.
        disk_written: likewise by all on the disk of a path.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        written: Callable[[int | None], int | None] = process_written_bytes,
        disk_written: Callable[[Path], int | None] = disk_written_bytes,
    ) -> None:
        self._state_dir, self._written, self._disk_written = state_dir, written, disk_written
        self.account = Account(date="1970-01-01", opened_s=0.0)
        self._meter = EnergyMeter()
        self._is_counted = written(None) is not None
        self._own: int | None = None  # counters as they were last
        self._disk: int | None = None
        self._trainer: tuple[int, int] | None = None  # process, its counter

    def load(self, saved: Mapping[str, Any] | None, *, wall_s: float, service_s: float) -> None:
        """Go on from what was saved. What this process wrote before belongs to the account as well."""
        date = _local_date(wall_s)
        self.account = Account(date=date, opened_s=service_s) if saved is None else Account(**saved)
        self.account = current(self.account, date=date, service_s=service_s)
        self._own, self._disk = 0, self._disk_written(self._state_dir)

    def as_state(self) -> dict[str, Any]:
        """What `load` takes after a restart."""
        return asdict(self.account)

    def take(
        self,
        power: Measurement | None,
        *,
        is_training: bool,
        trainer_pid: int | None,
        now_s: float,
        wall_s: float,
        service_s: float,
    ) -> None:
        """
        Enter what was used since the last call.

        Args:
            power: of the board now.
            is_training: whether a trainer has been computing.
            trainer_pid: the trainer's process, if there is one.
            now_s: monotonic time.
            wall_s: for the date.
            service_s: service time.
        """
        account = current(self.account, date=_local_date(wall_s), service_s=service_s)
        used_j = self._meter.add(None if power is None else power.value, now_s)
        disk = self._disk_written(self._state_dir)
        grown = None if disk is None or self._disk is None else max(0, disk - self._disk)
        self.account = replace(
            account,
            board_j=account.board_j + used_j,
            trained_j=account.trained_j + (used_j if is_training else 0.0),
            is_energy_estimated=account.is_energy_estimated or (power is not None and power.is_estimated),
            written_bytes=account.written_bytes + self._grown(trainer_pid),
            disk_bytes=account.disk_bytes if grown is None else (account.disk_bytes or 0) + grown,
        )
        self._disk = disk

    def _grown(self, trainer_pid: int | None) -> int:
        """Bytes written by us and by the trainer since the last call."""
        own = self._written(None)
        grown = 0 if own is None or self._own is None else max(0, own - self._own)
        self._own = own
        theirs = None if trainer_pid is None else self._written(trainer_pid)
        if trainer_pid is None or theirs is None:
            return grown
        before = self._trainer[1] if self._trainer is not None and self._trainer[0] == trainer_pid else 0
        self._trainer = (trainer_pid, theirs)
        return grown + max(0, theirs - before)

    def trainer_ended(self, pid: int | None, written_bytes: int | None) -> None:
        """Enter what a trainer wrote after it was last looked at: publishing comes at the end."""
        if pid is None or written_bytes is None:
            return
        before = self._trainer[1] if self._trainer is not None and self._trainer[0] == pid else 0
        self._trainer = (pid, max(before, written_bytes))
        more = max(0, written_bytes - before)
        self.account = replace(self.account, written_bytes=self.account.written_bytes + more)

    def measurements(self) -> dict[Quantity, Measurement]:
        """The account as quantities that a budget can be set on."""
        account = self.account
        written = Measurement(value=account.written_bytes / _MIB, source=_WHERE)
        if not self._is_counted:
            written = Measurement(value=None, source="none", why_unknown="/proc/self/io cannot be read")
        energy = Measurement(value=account.trained_j, source=_WHERE, is_estimated=account.is_energy_estimated)
        return {Quantity.ENERGY_DAY_J: energy, Quantity.WRITTEN_DAY_MIB: written}


def _local_date(wall_s: float) -> str:
    local = time.localtime(wall_s)
    return f"{local.tm_year:04d}-{local.tm_mon:02d}-{local.tm_mday:02d}"
