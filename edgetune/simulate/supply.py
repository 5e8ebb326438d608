"""What feeds the board: mains, or a battery while they are away."""

from __future__ import annotations

_CHARGING_H = 5.0  # from empty to full, as chargers of UPS HATs take for their cells


class Supply:
    """
    Mains, and a battery where the board has one.

    Attributes:
        is_on_mains: whether they are there.
        charge_j: what is left in the battery.
    """

    def __init__(self, battery_j: float | None) -> None:
        """On mains, with a full battery; None: without one."""
        self.battery_j = battery_j
        self.is_on_mains = True
        self.charge_j = battery_j or 0.0

    @property
    def share(self) -> float | None:
        """What is left, 0..1; None without a battery."""
        return None if self.battery_j is None else self.charge_j / self.battery_j

    @property
    def is_out(self) -> bool:
        """Whether nothing feeds the board."""
        return not self.is_on_mains and self.charge_j <= 0

    def feed(self, seconds: float, drawn_j: float) -> None:
        """Some seconds in which the board has drawn so much; mains feed it and charge beside that."""
        if self.battery_j is None:
            return
        change_j = seconds / (_CHARGING_H * 3600) * self.battery_j if self.is_on_mains else -drawn_j
        self.charge_j = min(self.battery_j, max(0.0, self.charge_j + change_j))
