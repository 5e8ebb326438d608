"""What a round has used of time, energy and memory, over all its starts, and when that is too much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetune import units
from edgetune.daemon.round_settings import RoundSettings
from edgetune.device.energy import EnergyMeter
from edgetune.types import Measurement

_MEMORY_STOPS_MAX = 3  # a round that was stopped for memory this often will not fit the next time either
_RESUME_DELAY_S = 30.0
_DUTY_KNOWN_S = 60.0


class Spending:
    """
    Of one round.

    Attributes:
        trained_s: seconds in which a trainer was at work.
        paced_s: seconds of those in which it was let compute.
        trained_j: joules of the whole board meanwhile; None: nothing here measures power.
        is_energy_estimated: whether any of the power was an estimate.
        memory_stops: how often it was stopped for memory.
        spec_written_s: when it began, in service time.
    """

    def __init__(self, spec_written_s: float = 0.0) -> None:
        self.trained_s = 0.0
        self.paced_s = 0.0
        self.trained_j: float | None = None
        self.is_energy_estimated = False
        self.memory_stops = 0
        self.spec_written_s = spec_written_s
        self._meter = EnergyMeter()

    def begin_start(self) -> None:
        """A new trainer process measures from zero."""
        self._meter = EnergyMeter()

    def rest(self) -> None:
        """Nobody trains just now."""
        self._meter.rest()

    def add(self, seconds: float, power: Measurement | None, now_s: float, *, duty: float) -> float | None:
        """Count so many seconds of training at the board's power now; the joules of this start, None: not measured."""
        self.trained_s += seconds
        self.paced_s += seconds * duty
        used_j = self._meter.add(None if power is None else power.value, now_s)
        self.is_energy_estimated |= power is not None and power.is_estimated
        if self._meter.joules is not None:
            self.trained_j = (self.trained_j or 0.0) + used_j
        return self._meter.joules

    @property
    def duty(self) -> float | None:
        """The share of the time in which the trainer was let compute; None where it was at work for too short."""
        return self.paced_s / self.trained_s if self.trained_s >= _DUTY_KNOWN_S and self.paced_s > 0 else None

    def over_budget(self, limits: RoundSettings) -> str:
        """Whether a round that trains has used up its time or energy, in words."""
        if self.trained_s > limits.round_time_max_s:
            return f"trained for {self.trained_s:.0f} s (budgets.round_time_max)"
        return self._over_energy(limits)

    def expired(self, limits: RoundSettings, service_s: float) -> str:
        """Whether a suspended round is not worth resuming, in words."""
        if service_s - self.spec_written_s > limits.spec_max_age_s:
            return "its samples are too old (budgets.spec_max_age)"
        if self.trained_s > limits.round_time_max_s:
            return "its training time is used up (budgets.round_time_max)"
        if spent := self._over_energy(limits):
            return spent
        if self.memory_stops >= _MEMORY_STOPS_MAX:
            return f"stopped {self.memory_stops} times for memory; lower training.batch_size or raise the budget"
        return ""

    def resume_delay_s(self) -> float:
        """A stop for memory frees it, so an immediate restart would be stopped again: wait, longer each time."""
        return float(_RESUME_DELAY_S * 2 ** (self.memory_stops - 1)) if self.memory_stops else 0.0

    def _over_energy(self, limits: RoundSettings) -> str:
        limit_j = limits.round_energy_max_j
        if limit_j is None or self.trained_j is None or self.trained_j <= limit_j:
            return ""
        used = units.show(self.trained_j, "energy") + (" (estimated)" if self.is_energy_estimated else "")
        return f"the board used {used} while it trained (budgets.round_energy_max)"

    def as_state(self) -> dict[str, Any]:
        """What `from_state` takes after a restart."""
        return {
            "trained_s": self.trained_s,
            "paced_s": self.paced_s,
            "trained_j": self.trained_j,
            "is_energy_estimated": self.is_energy_estimated,
            "memory_stops": self.memory_stops,
            "spec_written_s": self.spec_written_s,
        }

    @classmethod
    def from_state(cls, saved: Mapping[str, Any]) -> Spending:
        """As it was saved."""
        found = cls(float(saved["spec_written_s"]))
        found.trained_s, found.trained_j = float(saved["trained_s"]), saved.get("trained_j")
        found.paced_s = float(saved.get("paced_s", found.trained_s))
        found.is_energy_estimated = bool(saved.get("is_energy_estimated", False))
        found.memory_stops = int(saved["memory_stops"])
        return found
