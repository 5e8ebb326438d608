"""Pace and stop, on an injected clock."""

from __future__ import annotations

import io

import pytest

from edgetune.learn.control import Control, StopAskedError


class Clock:
    """Time passes only in sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.naps_s: list[float] = []

    def sleep(self, length_s: float) -> None:
        """Return at once."""
        self.naps_s.append(length_s)
        self.now_s += length_s


def make(clock: Clock) -> tuple[Control, io.StringIO]:
    """A control that writes into memory."""
    output = io.StringIO()
    return Control(output, now_s=lambda: clock.now_s, sleep=clock.sleep), output


@pytest.mark.parametrize(("duty", "slept_s"), [(1.0, 0.0), (0.5, 2.0), (0.25, 6.0), (7.0, 0.0)])
def test_sleep_makes_the_work_its_share_of_the_time(duty: float, slept_s: float) -> None:
    """Two seconds of work at a duty of 0.5 are followed by two of sleep."""
    clock = Clock()
    control, _ = make(clock)
    control.obey(f'{{"duty": {duty}}}')
    control.pace(2.0)
    assert sum(clock.naps_s) == pytest.approx(slept_s)


def test_a_stop_and_a_new_duty_end_a_sleep_and_it_beats_meanwhile() -> None:
    """At a very low duty the trainer is heard from, and obeys at its next nap."""
    clock = Clock()
    control, output = make(clock)
    control.duty = 0.02
    sleep = clock.sleep

    def sleep_and_stop(length_s: float) -> None:
        sleep(length_s)
        if clock.now_s > 5:
            control.stop()

    control._sleep = sleep_and_stop
    control.pace(1.0)
    assert 5 < clock.now_s < 6
    assert output.getvalue().count("heartbeat") >= 4
    with pytest.raises(StopAskedError):
        control.beat()


def test_a_sign_of_life_leaves_no_piece_of_work_in_the_middle() -> None:
    """It is said, at most once a second, and a stop waits for the end of the piece."""
    clock = Clock()
    control, output = make(clock)
    control.stop()
    for _ in range(30):
        clock.now_s += 0.1
        control.alive()
    assert 2 <= output.getvalue().count("heartbeat") <= 4


@pytest.mark.parametrize("order", ["", "nonsense", "[]", '{"duty": "fast"}', '{"other": 1}'])
def test_what_is_not_an_order_is_not_obeyed(order: str) -> None:
    """The duty stays."""
    control, _ = make(Clock())
    control.obey(order)
    assert control.duty == 1.0
