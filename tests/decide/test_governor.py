"""The pace, on boards of a few lines and on the simulator's."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgetune.decide.governor import DUTY_MIN, Governor, step
from edgetune.simulate.board import BOARDS, BoardModel
from edgetune.types import Limits, Measurement, Quantity, Reading, VerdictKind

Q = Quantity
TICK_S = 2.0
Values = dict[Quantity, float | None]


class Board:
    """Anything whose values depend on how much a trainer works; ticks and remembers what was said."""

    def __init__(self, values: Callable[[float], Values], limits: Limits) -> None:
        self.values, self.limits = values, limits
        self.at_s, self.now, self.said = 0.0, Governor(), [Governor().verdict]

    def tick(self, times: int, *, is_training: bool = True) -> None:
        """Let a trainer work as it is told to."""
        for _ in range(times):
            worked = self.now.verdict.duty if is_training else 0.0
            self.at_s += TICK_S
            measured = {
                quantity: Measurement(value=value, source="test", why_unknown="" if value is not None else "gone")
                for quantity, value in self.values(worked).items()
            }
            reading = Reading(at_s=self.at_s, wall_s=self.at_s, local_minute=0, values=measured)
            self.now = step(self.now, reading, self.limits, worked=worked, is_training=is_training)
            self.said.append(self.now.verdict)

    def flaps(self) -> int:
        """How often a pause began or ended."""
        return sum((a.duty > 0) != (b.duty > 0) for a, b in zip(self.said, self.said[1:], strict=False))


def test_without_limits_a_trainer_runs() -> None:
    """Whatever the board reads."""
    board = Board(lambda _: {Q.POWER_W: 900.0, Q.SOC_TEMP_C: None}, Limits())
    board.tick(5)
    assert (board.now.verdict.kind, board.now.verdict.duty) == (VerdictKind.RUN, 1.0)


@pytest.mark.parametrize("is_idle_known", [True, False])
def test_the_duty_is_the_one_that_fits_and_comes_back_when_others_leave(is_idle_known: bool) -> None:
    """4 W at rest and 10 W more at work leave 60 % under 10 W; with 4 W of others 20 %; and all of it under 20 W."""
    others = [4.0]
    board = Board(lambda worked: {Q.POWER_W: others[0] + 10 * worked}, Limits(power_max_w=10))
    if is_idle_known:
        board.tick(20, is_training=False)
    board.tick(300)
    assert board.now.verdict.kind is VerdictKind.THROTTLE
    assert board.now.verdict.duty == pytest.approx(0.6, abs=0.02)
    assert board.now.verdict.reasons[0].startswith("power_w value=9.9")
    others[0] = 8.0
    board.tick(300)
    assert board.now.verdict.duty == pytest.approx(0.2, abs=0.05)
    board.limits = replace(board.limits, power_max_w=20.0)
    board.tick(60)
    assert board.now.verdict.kind is VerdictKind.RUN


@pytest.mark.parametrize(("idle_c", "is_allowed"), [(40.0, True), (72.0, True), (76.0, False)])
def test_a_board_that_idles_near_its_limit_may_try(idle_c: float, *, is_allowed: bool) -> None:
    """For however long it has idled; the warmer it is the slower it begins, and over the limit not at all."""
    board = Board(lambda _: {Q.SOC_TEMP_C: idle_c}, Limits(soc_temp_max_c=75))
    for _ in range(10):
        board.tick(100, is_training=False)
        assert (board.now.verdict.duty > 0) is is_allowed
    if is_allowed:
        assert (board.now.verdict.duty == 1.0) is (idle_c < 50)


def test_readings_that_come_less_often_than_the_window_pace_all_the_same() -> None:
    """On a board that is cool enough at any duty nothing is held back, though no window holds two readings."""
    board = Board(lambda worked: {Q.SOC_TEMP_C: 40 + 10 * worked}, Limits(soc_temp_max_c=75, window_s=1.0))
    board.tick(50)
    assert board.now.verdict.kind is VerdictKind.RUN


def test_the_average_is_kept_below_the_limit_from_the_start() -> None:
    """A window's mean of what the board really took never lies over the limit, and soon near it."""
    true_w: list[float] = []

    def values(worked: float) -> Values:
        true_w.append(4 + 10 * worked)
        return {Q.POWER_W: true_w[-1]}

    board = Board(values, Limits(power_max_w=9))
    board.tick(20, is_training=False)
    board.tick(400)
    window = [sum(true_w[i - 15 : i]) / 15 for i in range(15, len(true_w))]
    assert max(window) <= 9
    assert window[-1] > 8.9
    assert board.flaps() == 0


def test_a_lowered_limit_is_kept_at_once() -> None:
    """The operator lowers it while a round runs: the least duty at the next reading, and soon the one that fits."""
    board = Board(lambda worked: {Q.POWER_W: 4 + 10 * worked}, Limits(power_max_w=13))
    board.tick(20, is_training=False)
    board.tick(100)
    board.limits = replace(board.limits, power_max_w=8.0)
    board.tick(1)
    assert board.now.verdict.duty <= DUTY_MIN
    board.tick(200)
    assert board.now.verdict.duty == pytest.approx(0.4, abs=0.02)
    assert board.flaps() <= 2


def test_no_room_is_a_pause_that_says_so_and_ends_with_its_cause() -> None:
    """Others use what is allowed: no round begins, and none goes on; when they leave it does."""
    others = [0.8]
    board = Board(lambda worked: {Q.CPU_SHARE: min(1.0, others[0] + 0.5 * worked)}, Limits(cpu_share_max=0.6))
    board.tick(10, is_training=False)
    assert board.now.verdict.kind is VerdictKind.PAUSE
    assert any("leaves a duty of 0.00" in reason for verdict in board.said for reason in verdict.reasons)
    others[0] = 0.1
    board.tick(40)
    assert board.now.verdict.duty > 0.9
    others[0] = 0.9
    board.tick(40)
    assert board.now.verdict.kind is VerdictKind.PAUSE
    board.tick(2000)
    assert board.flaps() == 3  # the pause before, the run, the pause: nothing is tried in between


def test_work_that_no_pace_slows_down_is_tried_again_once_an_hour() -> None:
    """What one trainer added is no guide for ever, and no reason to flutter."""
    board = Board(lambda worked: {Q.POWER_W: 12.0 if worked > 0 else 4.0}, Limits(power_max_w=6))
    board.tick(20, is_training=False)
    board.tick(6 * 1800)
    assert 5 <= board.flaps() / 2 <= 7


@pytest.mark.parametrize(
    ("name", "limit_c"), [("pi4", 70.0), ("pi5", 72.0), ("nano", 55.0), ("orin-nano", 48.0), ("agx-orin", 48.0)]
)
def test_heat_is_held_at_its_limit_with_noise_and_lag(name: str, limit_c: float) -> None:
    """Five boards, none of which the governor knows: never more than half a degree over, always near, no flapping."""
    model, steps = BoardModel(BOARDS[name], seed=3), random.Random(3)
    chip_c: list[float] = []

    def values(worked: float) -> Values:
        left_s = TICK_S
        while left_s > 1e-9:  # batches of half a second
            cycle_s = min(left_s, 0.5 * steps.uniform(0.9, 1.1) / max(worked, 0.01))
            model.step(min(cycle_s * worked, left_s), 1.0)
            model.step(max(0.0, cycle_s * (1 - worked)), 0.03)
            left_s -= cycle_s
        chip_c.append(model.chip_c)
        return {Q.SOC_TEMP_C: model.read_temp_c()}

    board = Board(values, Limits(soc_temp_max_c=limit_c))
    board.tick(20, is_training=False)
    board.tick(1500)
    assert max(chip_c) < limit_c + 0.5
    settled = chip_c[-600:]
    assert limit_c - 1.0 < sum(settled) / len(settled) < limit_c
    assert board.flaps() == 0
    duties = [verdict.duty for verdict in board.said[-600:]]
    assert max(duties) - min(duties) < 0.15


def test_what_is_hot_at_once_is_met_within_two_readings() -> None:
    """An average of half a minute would be late."""
    temp_c = [60.0]
    board = Board(lambda _: {Q.SOC_TEMP_C: temp_c[0]}, Limits(soc_temp_max_c=80))
    board.tick(50)
    temp_c[0] = 95.0
    board.tick(2)
    assert board.now.verdict.duty <= DUTY_MIN
    board.tick(3)
    assert board.now.verdict.kind is VerdictKind.PAUSE
    assert "soc_temp_c value=95 limit=80" in board.now.verdict.reasons[0]


def test_an_unknown_value_pauses_at_once_and_a_flaky_sensor_does_not_make_it_flutter() -> None:
    """Unknown is over budget; every fifth reading fails, and the rests grow."""
    count = [0]

    def values(_: float) -> Values:
        count[0] += 1
        return {Q.SOC_TEMP_C: None if count[0] % 5 == 0 else 50.0}

    board = Board(values, Limits(soc_temp_max_c=80))
    board.tick(5)
    assert board.now.verdict.kind is VerdictKind.PAUSE
    assert "gone" in board.now.verdict.reasons[0]
    board.tick(1800)
    lengths = [len(list(group)) for is_rest, group in itertools.groupby(board.said, lambda v: v.duty == 0) if is_rest]
    assert lengths[:-1] == sorted(lengths[:-1])  # the last is cut off by the end
    assert lengths[-2] >= 16 * 15


def test_late_predictions_halve_the_pace_and_it_comes_back_slowly() -> None:
    """Serving has the first claim; a trainer that makes it late even at the least pace is paused."""
    late_ms = [80.0]
    board = Board(lambda worked: {Q.SERVING_P99_MS: late_ms[0] if worked else 5.0}, Limits(serving_p99_max_ms=50))
    board.tick(1)
    assert board.now.verdict.duty == pytest.approx(0.62, abs=0.01)
    board.tick(120)
    assert any(verdict.kind is VerdictKind.PAUSE for verdict in board.said)
    late_ms[0] = 10.0
    board.tick(900)
    assert board.now.verdict.duty == 1.0


def test_a_board_that_throttles_by_itself_is_spared_and_never_given_up() -> None:
    """No limit is set: the pace is halved while the firmware holds the clocks down, down to the least, not to none."""
    throttled = [1.0]
    board = Board(lambda _: {Q.IS_THROTTLED: throttled[0]}, Limits())
    board.tick(1)
    assert (board.now.verdict.kind, board.now.verdict.duty) == (VerdictKind.THROTTLE, 0.5)
    assert board.now.verdict.reasons == ("is_throttled value=1 limit=0",)
    board.tick(200)
    assert board.now.verdict.duty == DUTY_MIN
    throttled[0] = 0.0
    board.tick(600)
    assert board.now.verdict.duty == 1.0


@example(power=[0.0, None, 0.0], steps=[1.0])
@given(
    power=st.lists(st.one_of(st.none(), st.floats(0, 1e6)), min_size=1, max_size=60),
    steps=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=60),
)
def test_whatever_the_board_says_the_duty_is_one(power: list[float | None], steps: list[float]) -> None:
    """Any values at any times, clocks that go back included: a duty from 0 to 1, 0 exactly when it is blocked."""
    now, at_s = Governor(), 0.0
    limits = Limits(power_max_w=10, soc_temp_max_c=80, cpu_share_max=0.5)
    for watts, by_s in zip(power, steps * 60, strict=False):
        at_s += by_s
        values = {q: Measurement(value=watts, source="test") for q in (Q.POWER_W, Q.SOC_TEMP_C, Q.CPU_SHARE)}
        reading = Reading(at_s=at_s, wall_s=0, local_minute=0, values=values)
        now = step(now, reading, limits, worked=now.verdict.duty, is_training=True)
        assert (now.verdict.duty == 0) == (now.verdict.kind in (VerdictKind.PAUSE, VerdictKind.STOP))
        assert now.verdict.duty == 0 or DUTY_MIN <= now.verdict.duty <= 1
