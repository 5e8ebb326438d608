"""
A day's account of what may be used up, and when the next one is opened.

A clock is not believed for more than it can know. A board without a clock battery starts in 1970 or at its last shutdown
and then jumps to the present; one with an empty battery may jump by years. So an account lasts until the clock shows a
later local date, up to a month later. A clock that shows an earlier date, or one that is further off, is wrong: then the
account lasts for a day of service, and the next one takes the date that the clock shows by then. A jump of years neither
refills an account nor uses it up, and a day of 23 or 25 hours is a day.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

_DAYS_BELIEVED = 31
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """
    What was used since an account was opened.

    Attributes:
        date: the local date it is for, ISO 8601.
        opened_s: when it was opened, in service time.
        trained_j: joules of the whole board while it trained.
        board_j: joules of the whole board.
        is_energy_estimated: whether any of the power was an estimate.
        written_bytes: by this service and its trainers.
        disk_bytes: by all on the disk that holds the state directory; None: it cannot be told.
    """

    date: str
    opened_s: float
    trained_j: float = 0.0
    board_j: float = 0.0
    is_energy_estimated: bool = False
    written_bytes: int = 0
    disk_bytes: int | None = None


def current(account: Account, *, date: str, service_s: float) -> Account:
    """
    The account that counts now: the same, or a new one.

    Args:
        account: the last.
        date: the local date that the clock shows, ISO 8601.
        service_s: service time now.
    """
    days = (dt.date.fromisoformat(date) - dt.date.fromisoformat(account.date)).days
    is_believed = 0 <= days <= _DAYS_BELIEVED
    is_over = days > 0 if is_believed else service_s - account.opened_s >= _DAY_S
    return Account(date=date, opened_s=service_s) if is_over else account
