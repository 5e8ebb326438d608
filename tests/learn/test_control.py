"""Pace and stop, on an injected clock."""

from __future__ import annotations

import io
import json

import pytest

from edgetune.learn.control import Control, StopAskedError


class Clock:
    """Time passes in sleeps and in work."""

    def __init__(self) -> None:
        self.now_s = self.computed_s = 0.0
        self.naps_s: list[float] = []

    def work(self, length_s: float, threads: int = 2) -> None:
        """On so many threads."""
        self.now_s += length_s
        self.computed_s += threads * length_s

    def sleep(self, length_s: float) -> None:
        """Return at once."""
        self.naps_s.append(length_s)
        self.now_s += length_s


def make(clock: Clock) -> tuple[Control, io.StringIO]:
    """A control that writes into memory."""
    output = io.StringIO()
    times = {"now_s": lambda: clock.now_s, "computed_s": lambda: clock.computed_s}
    return Control(output, sleep=clock.sleep, **times), output


@pytest.mark.parametrize(("duty", "slept_s"), [(1.0, 0.0), (0.5, 2.0), (0.25, 6.0), (7.0, 0.0)])
def test_sleep_makes_the_work_its_share_of_the_time(duty: float, slept_s: float) -> None:
    """Two seconds of work at a duty of 0.5 are followed by two of sleep."""
    clock = Clock()
    control, _ = make(clock)
    control.obey(f'{{"duty": {duty}}}')
    clock.work(2.0)
    control.pace()
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
    clock.work(1.0)
    control.pace()
    assert 5 < clock.now_s < 6
    assert output.getvalue().count("heartbeat") >= 4
    with pytest.raises(StopAskedError):
        control.beat()


def test_every_piece_of_work_is_paced_and_none_twice() -> None:
    """Whatever is done between two beats, sleeps not counted."""
    clock = Clock()
    control, _ = make(clock)
    control.duty = 0.5
    for _ in range(5):
        clock.work(0.3)
        control.pace()
        control.beat()
    assert sum(clock.naps_s) == pytest.approx(1.5)


def test_a_pause_and_a_wait_are_no_work() -> None:
    """A process that was stopped for ten minutes, or waited for a server, owes no sleep for it."""
    clock = Clock()
    control, _ = make(clock)
    control.duty = 0.5
    clock.work(0.2)
    clock.now_s += 600
    control.beat()
    assert sum(clock.naps_s) == pytest.approx(0.4)  # both threads' time: what one alone would have taken


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


def test_heartbeats_do_not_take_the_turn_of_progress() -> None:
    """A phase of short epochs beats while it validates: how far it is must be heard all the same."""
    clock = Clock()
    control, output = make(clock)
    for step in range(20):
        clock.work(0.6)
        control.alive()
        clock.work(0.5)
        control.alive()
        control.progress(step=step, steps=20)
    told = [json.loads(line) for line in output.getvalue().splitlines()]
    assert sum(line["event"] == "progress" for line in told) == 20
    assert all("step" in line for line in told if line["event"] == "progress")
