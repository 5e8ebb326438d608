"""What happened in a simulation: the timeline, and each day's sums."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from edgetune.config import Config, limits
from edgetune.daemon import settings
from edgetune.daemon.core import Daemon
from edgetune.decide.budget import budgeted, rules
from edgetune.simulate.scenario import DAY_S, Happening, Scenario
from edgetune.simulate.world import World
from edgetune.types import Quantity, RoundState, VerdictKind

_KEY = re.compile(r"\b(?:budgets|triggers|serving|gate)\.[a-z_]+")


@dataclass(slots=True)
class Moment:
    """The board at one tick."""

    at_s: float
    ambient_c: float
    temp_c: float | None
    power_w: float | None
    power_true_w: float
    cpu_share: float
    state: str
    verdict: str
    why: str  # the key of the budget that withholds or slows; empty: none
    duty: float
    version: int | None
    battery: float | None  # 0..1


@dataclass(slots=True)
class Day:
    """The sums of one day."""

    wanted_s: float = 0.0  # a round was wanted or under way
    trained_s: float = 0.0  # a trainer computed
    withheld_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # by the budget's key, of wanted_s
    slowed_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # likewise
    over_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # over a limit, of trained_s
    over_longest_ticks: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    energy_j: float = 0.0
    written_bytes: float = 0.0
    temp_max_c: float = float("-inf")
    power_max_w: float = 0.0
    battery_min: float | None = None  # the least that was left, 0..1
    throttled_s: float = 0.0  # the firmware held the clocks down
    images: int = 0
    missing: str = ""  # what a round would have needed, when the day ended


class Record:
    """Of a whole simulation."""

    def __init__(self, config: Config, scenario: Scenario) -> None:
        """Nothing has happened."""
        self.config, self.scenario = config, scenario
        self.moments: list[Moment] = []
        self.days: dict[int, Day] = defaultdict(Day)
        self.happenings: list[Happening] = []
        self.rounds: dict[int, dict[str, Any]] = {}  # as the daemon wrote them down
        self.spans: dict[int, tuple[float, float]] = {}  # of each: when it was first and last seen under way
        self.images = {"stored": 0, "evicted": 0, "waiting": 0}  # of those that came, at the end
        self.boots = 0
        self._limits = {rule.quantity: rule for rule in rules(limits(config))}
        self._budgeted = {quantity.value for quantity in budgeted(limits(config))}
        self._last = (0.0, 0.0, 0.0, 0)  # elapsed seconds, joules, bytes, images of the last tick
        self._rests_for = ""  # the key that a verdict was last about
        self._over_ticks: Counter[str] = Counter()

    def befell(self, happening: Happening) -> None:
        """Note something that befell the board."""
        self.happenings.append(happening)

    def begin(self, world: World) -> None:
        """The board is on: what passed before was nobody's time."""
        self.boots += 1
        self._last = (world.elapsed_s, *self._last[1:])

    def note(self, daemon: Daemon, world: World) -> None:
        """Note a tick: what it read and decided, and what has passed since the one before."""
        reading, verdict = daemon.budgeting.reading, daemon.budgeting.verdict
        assert reading is not None
        state = daemon.rounds.machine.state
        why = self._why(verdict.reasons)
        temp_c, power_w = reading.value(Quantity.SOC_TEMP_C), reading.value(Quantity.POWER_W)
        self.moments.append(
            Moment(
                world.elapsed_s, world.board.ambient_c, temp_c, power_w, world.board.power_w, world.cpu_share, state.value,
                verdict.kind.value, why, verdict.duty, daemon.serving.served.version,
                world.supply.share,
            )
        )  # fmt: skip
        day = self.days[int(max(0.0, world.elapsed_s - 1e-6) // DAY_S)]
        last_s, last_j, last_bytes, last_images = self._last
        passed_s = world.elapsed_s - last_s
        self._last = (world.elapsed_s, world.energy_j, world.written_bytes, world.camera.seen)
        day.energy_j += world.energy_j - last_j
        day.written_bytes += world.written_bytes - last_bytes
        day.images += world.camera.seen - last_images
        day.temp_max_c = max(day.temp_max_c, world.board.chip_c)
        day.power_max_w = max(day.power_max_w, world.board.power_w)
        if world.supply.share is not None:
            day.battery_min = min(1.0 if day.battery_min is None else day.battery_min, world.supply.share)
        day.throttled_s += passed_s if world.board.is_throttled else 0.0
        is_active = state not in (RoundState.IDLE, RoundState.COOLDOWN, RoundState.VERIFYING)
        if is_active:
            day.wanted_s += passed_s
            if verdict.kind in (VerdictKind.PAUSE, VerdictKind.STOP):
                day.withheld_s[why] += passed_s
            elif verdict.kind is VerdictKind.THROTTLE:
                day.slowed_s[why] += passed_s
        is_at_work = world.trainer is not None and world.trainer.load > 0
        if is_at_work:
            day.trained_s += passed_s
        spec = daemon.rounds.spec
        if is_active and state is not RoundState.HELD and spec is not None:
            self.spans[spec.round_id] = (self.spans.get(spec.round_id, (world.elapsed_s, 0.0))[0], world.elapsed_s)
        self._note_limits(day, daemon, passed_s, is_at_work=is_at_work)
        day.missing = "; ".join(daemon.want.missing) if not daemon.want.is_wanted else ""

    def _note_limits(self, day: Day, daemon: Daemon, passed_s: float, *, is_at_work: bool) -> None:
        """By the averages over budgets.window, as the daemon judges them; what is over by half a sensor's step cannot be told."""
        assert daemon.budgeting.reading is not None
        averages = daemon.budgeting.governor.averages
        for quantity, rule in self._limits.items():
            value, limit = averages.get(quantity, daemon.budgeting.reading.value(quantity)), rule.limit
            assert limit is not None
            key = settings.budget_key(quantity, self.config)
            measured = daemon.budgeting.reading.values.get(quantity)
            slack = 0.0 if measured is None or measured.resolution is None else measured.resolution / 2
            is_over = value is not None and (value < limit if rule.is_floor else value > limit + slack)
            if is_over and is_at_work:
                day.over_s[key] += passed_s
                self._over_ticks[key] += 1
                day.over_longest_ticks[key] = max(day.over_longest_ticks[key], self._over_ticks[key])
            else:
                self._over_ticks[key] = 0

    def _why(self, reasons: tuple[str, ...]) -> str:
        """The key of the budget that a verdict is about: the hours where they are among several, else the first."""
        keys = [self._key(reason) for reason in reasons]
        why = "budgets.hours" if "budgets.hours" in keys else keys[0] if keys else ""
        if why == "rests":  # after it was over budget: of what, was said before
            return self._rests_for
        self._rests_for = why or self._rests_for
        return why

    def _key(self, reason: str) -> str:
        name, found = reason.partition(" ")[0], _KEY.search(reason)
        if found:
            return found.group()
        if name in self._budgeted:
            return settings.budget_key(Quantity(name), self.config)
        if name == Quantity.IS_THROTTLED.value:
            return "the firmware"
        return "budgets.hours" if reason.startswith("outside the allowed hours") else name

    async def collect(self, daemon: Daemon, world: World) -> None:
        """Read what the daemon wrote down, before it goes."""
        stats = await daemon.store(daemon.buffer.stats)
        self.images = {"stored": stats.samples, "evicted": stats.evicted, "waiting": len(world.camera.waiting)}
        for row in await daemon.store(daemon.history.rounds, 10_000):
            self.rounds[int(row["id"])] = row
