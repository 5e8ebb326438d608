"""When a day's account ends."""

from __future__ import annotations

import pytest

from edgetune.decide.account import Account, current

USED = Account(date="2026-10-24", opened_s=1000.0, trained_j=500.0, written_bytes=7)


@pytest.mark.parametrize(
    ("date", "service_s", "is_new"),
    [
        ("2026-10-24", 1000.0 + 90_000, False),  # the day of 25 hours: the date decides
        ("2026-10-25", 1001.0, True),
        ("2026-11-24", 1001.0, True),  # a month in a drawer
        ("2036-10-24", 1001.0, False),  # a jump of ten years forward ...
        ("2036-10-24", 1000.0 + 86_400, True),  # ... which turns out to last
        ("1970-01-01", 50_000.0, False),  # started without a clock battery
        ("1970-01-02", 86_000.0, False),
        ("1970-01-02", 87_500.0, True),
    ],
)
def test_a_new_account_needs_a_date_that_can_be_believed_or_a_day_of_service(
    date: str, service_s: float, is_new: bool
) -> None:
    """A jump of years neither refills the day's budget at once nor holds it back for ever."""
    found = current(USED, date=date, service_s=service_s)
    assert found == (Account(date=date, opened_s=service_s) if is_new else USED)


def test_a_clock_that_comes_back_goes_on_with_the_same_account() -> None:
    """1970 at the start, the same day again after the time was set, the next day then."""
    lost = current(USED, date="1970-01-01", service_s=1010.0)
    again = current(lost, date="2026-10-24", service_s=1020.0)
    assert again == USED
    assert current(again, date="2026-10-25", service_s=1030.0).trained_j == 0
