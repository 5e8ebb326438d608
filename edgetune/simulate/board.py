"""
How warm a board gets and what it draws: two masses that store heat, a firmware that lowers the clocks, sensors that err.

The chip sits on the board and the board in the air. The board answers in minutes, the chip in seconds:
    d board_c / dt = (ambient_c + air_resistance * power_w - board_c) / air_time_constant
    d chip_c  / dt = (board_c + chip_resistance * power_w - chip_c) / chip_time_constant
Power grows with the share of the cores that is busy, and with the square of the clock where the firmware lowers it.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from edgetune.simulate.boards import BOARDS, BoardFacts

__all__ = ["BOARDS", "BoardFacts", "BoardModel", "DailyAmbient"]

_STEP_MAX_S = 5.0  # a longer one is taken in parts: the clocks follow the heat
_COLDEST_HOUR = 5.0
_DAY_H = 24.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DailyAmbient:
    """The air around the board over a day: coldest at five in the morning, warmest at five in the afternoon."""

    low_c: float = 22.0
    high_c: float = 22.0

    def at(self, hour: float) -> float:
        """The temperature at an hour of the local day, 0..24, in degrees Celsius."""
        swing = 0.5 - 0.5 * math.cos(2 * math.pi * (hour - _COLDEST_HOUR) / _DAY_H)
        return self.low_c + (self.high_c - self.low_c) * swing


class BoardModel:
    """
    The heat and the power of one board.

    Attributes:
        ambient_c: the air, in degrees Celsius; set it whenever it changes.
        chip_c: what the sensor on the chip is at.
        board_c: what the chip sits on.
        power_w: of the whole board, over the last step.
        clock_share: of the full clock, 0..1; work is done at this speed.
    """

    def __init__(self, facts: BoardFacts, *, ambient_c: float = 25.0, seed: int = 0) -> None:
        """A board that has been at rest for long."""
        self.facts, self.ambient_c = facts, ambient_c
        self.power_w = facts.idle_w
        self.board_c = ambient_c + facts.air_resistance_c_per_w * facts.idle_w
        self.chip_c = self.board_c + facts.chip_resistance_c_per_w * facts.idle_w
        self.clock_share = 1.0
        self._seen_c, self._seen_w = self.chip_c, self.power_w  # as the sensors follow
        self._random = random.Random(seed)

    @property
    def is_throttled(self) -> bool:
        """Whether the firmware holds the clocks down."""
        return self.clock_share < 1.0

    def step(self, dt_s: float, cpu_share: float) -> float:
        """Let so many seconds pass with this share of all cores busy, 0..1; the joules that were drawn."""
        share, used_j = min(1.0, max(0.0, cpu_share)), 0.0
        parts = max(1, math.ceil(dt_s / _STEP_MAX_S)) if self._may_trip(share) else 1
        for _ in range(parts):
            self._part(dt_s / parts, share)
            used_j += self.power_w * dt_s / parts
        return used_j

    def _may_trip(self, cpu_share: float) -> bool:
        """Whether the clocks may fall or rise in a step, however long: else one part of any length is exact enough."""
        facts = self.facts
        full_w = facts.idle_w + (facts.busy_w - facts.idle_w) * cpu_share
        end_c = self.ambient_c + (facts.air_resistance_c_per_w + facts.chip_resistance_c_per_w) * full_w
        return max(end_c, self.chip_c) > facts.trip_c

    def rest(self, dt_s: float) -> None:
        """Let so many seconds pass without power: all cools down to the air, and nothing is held down any more."""
        self.board_c += (self.ambient_c - self.board_c) * _toward(dt_s, self.facts.air_time_constant_s)
        self.chip_c = self._seen_c = self.board_c
        self.power_w = self._seen_w = 0.0
        self.clock_share = 1.0

    def _part(self, dt_s: float, cpu_share: float) -> None:
        facts = self.facts
        self.clock_share = self._clock()
        self.power_w = facts.idle_w + (facts.busy_w - facts.idle_w) * cpu_share * self.clock_share**2
        board_end_c = self.ambient_c + facts.air_resistance_c_per_w * self.power_w
        self.board_c += (board_end_c - self.board_c) * _toward(dt_s, facts.air_time_constant_s)
        chip_end_c = self.board_c + facts.chip_resistance_c_per_w * self.power_w
        self.chip_c += (chip_end_c - self.chip_c) * _toward(dt_s, facts.chip_time_constant_s)
        follow = _toward(dt_s, facts.sensor_lag_s)
        self._seen_c += (self.chip_c - self._seen_c) * follow
        self._seen_w += (self.power_w - self._seen_w) * follow

    def _clock(self) -> float:
        over = (self.chip_c - self.facts.trip_c) / self.facts.trip_band_c
        return 1.0 - (1.0 - self.facts.clock_min_share) * min(1.0, max(0.0, over))

    def read_temp_c(self) -> float:
        """What the sensor says: late, with noise, in its steps."""
        return self._said(self._seen_c, self.facts.temp_noise_c, self.facts.temp_resolution_c)

    def read_power_w(self) -> float | None:
        """Likewise of the power; None where the board has no sensor for it."""
        if self.facts.power_sensor is None:
            return None
        return max(0.0, self._said(self._seen_w, self.facts.power_noise_w, self.facts.power_resolution_w))

    def _said(self, value: float, noise: float, resolution: float) -> float:
        return round(self._random.gauss(value, noise) / resolution) * resolution


def _toward(dt_s: float, time_constant_s: float) -> float:
    """The share of a difference that a first-order system has made good after `dt_s`."""
    return -math.expm1(-dt_s / time_constant_s) if time_constant_s > 0 else 1.0
