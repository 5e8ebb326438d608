"""The record of a probation: which version is on trial, until when, and how the one before it did. Persisted."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import Any

from edgetune.daemon.parts import ServiceTime, StoreThread
from edgetune.decide import probation
from edgetune.decide.probation import Observed, ProbationPolicy, ProbationVerdict
from edgetune.errors import StoreError
from edgetune.store.history import History

_KEY = "probation"
_LOOK_EVERY_S = 10.0  # counting the feedback of a version reads all its predictions


class Trial:
    """At most one version is on probation."""

    def __init__(self, history: History, store: StoreThread, service_time: ServiceTime) -> None:
        self._history, self._store, self._time = history, store, service_time
        self._record: dict[str, Any] | None = None
        self._looked_s = float("-inf")

    async def load(self) -> None:
        """Go on with what the last run was watching."""
        self._record = await self._store(self._history.get_state, _KEY)

    @property
    def version(self) -> int | None:
        """The version on trial."""
        return None if self._record is None else int(self._record["version"])

    @property
    def fallback(self) -> int | None:
        """The version that a roll-back goes to."""
        return None if self._record is None else int(self._record["fallback"])

    def ends_in_s(self) -> float | None:
        """Service seconds left."""
        return None if self._record is None else max(0.0, float(self._record["ends_s"]) - self._time.now_s())

    async def start(
        self, version: int, fallback: int, baseline: Observed, duration_s: float, *, is_imprint: bool = False
    ) -> None:
        """
        Watch a version for `duration_s` of service time; a trial of the same version goes on as it was.

        An imprinted version is its base with a class more: where the base was on trial itself, it is measured against what
        that was measured against, and a roll-back takes both back.
        """
        if duration_s <= 0:
            await self.end()
        elif self.version != version:
            now_s, measure = self._time.now_s(), {"fallback": fallback, "baseline": asdict(baseline)}
            if is_imprint and self._record is not None and self.version == fallback:
                measure = {name: self._record[name] for name in measure}
            self._record = {"version": version, **measure, "started_s": now_s, "ends_s": now_s + duration_s}
            await self._store(self._history.set_state, _KEY, self._record)

    async def end(self) -> None:
        """Watch no more; what a full disk leaves behind of it ends at the next start's first look."""
        if self._record is not None:
            self._record = None
            with contextlib.suppress(StoreError):
                await self._store(self._history.set_state, _KEY, None)

    def is_due(self) -> bool:
        """Whether it is time to look again."""
        if self._record is None or self._time.now_s() - self._looked_s < _LOOK_EVERY_S:
            return False
        self._looked_s = self._time.now_s()
        return True

    def judge(self, observed: Observed, policy: ProbationPolicy) -> ProbationVerdict:
        """Compare what was seen with the version before."""
        assert self._record is not None
        for_s = self._time.now_s() - float(self._record["started_s"])
        return probation.judge(observed, Observed(**self._record["baseline"]), policy, for_s=for_s)
