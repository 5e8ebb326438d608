"""What a round would take if it began now, as a trainer finds that only plans. One at a time, and beside no round."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from edgetune.daemon import forecasts
from edgetune.daemon.parts import StoreThread
from edgetune.daemon.round_records import RoundRecords
from edgetune.daemon.round_settings import RoundSettings, Trainer
from edgetune.decide.trigger import Want
from edgetune.errors import ConflictError
from edgetune.types import Manifest, Verdict, VerdictKind

_TIMEOUT_S = 600.0  # half a minute on two busy x86 cores, and no board was measured yet


class Planning:
    """Starts the trainer that plans, and ends it where it takes too long or the board cannot afford it."""

    def __init__(self, *, records: RoundRecords, store: StoreThread, make_planner: Callable[[], Trainer]) -> None:
        self._records, self._store, self.make_planner = records, store, make_planner
        self._planner: Trainer | None = None
        self._why_ended = ""

    @property
    def is_busy(self) -> bool:
        """No round may begin: a second heavy process beside it is what budgets are there to prevent."""
        return self._planner is not None

    def tick(self, verdict: Verdict) -> None:
        """Pace a plan as a round would be, which is forecast at that pace; end one that a round would be stopped for."""
        if self._planner is None:
            return
        if verdict.kind is VerdictKind.STOP:
            self._why_ended = "; ".join(verdict.reasons)
            self._planner.kill()
        elif verdict.kind is VerdictKind.RUN:
            self._planner.set_duty(verdict.duty)

    async def plan(
        self, want: Want, manifest: Manifest | None, settings: RoundSettings, *, generation: int
    ) -> tuple[dict[str, Any] | None, str]:
        """
        Plan a round; no round must be under way.

        Args:
            want: the round.
            manifest: of the served version.
            settings: a round's.
            generation: of the served version.

        Returns:
            The forecast, and why there is none.

        Raises:
            ConflictError: a round is planned already.
        """
        if manifest is None:
            return None, "no model is served"
        history = await self._store(self._records.board_history)
        if why := forecasts.why_none_fits(history, settings.recipe.memory_max_mib):
            return None, why
        if self._planner is not None:
            raise ConflictError("a round is being planned already", hint="ask again when it is done")
        planner = self._planner = self.make_planner()
        self._why_ended = ""
        try:
            directory = await self._store(self._records.write_plan, want, manifest, settings, generation=generation)
            await planner.start(directory, nice=settings.nice, oom_score_adj=settings.oom_score_adj)
            why = await self._ended(planner)
            forecast = await self._store(self._records.take_plan, directory)
        finally:
            self._planner = None
        return forecast, "" if forecast is not None else why

    async def _ended(self, planner: Trainer) -> str:
        """Wait for its end, and see that it has one, whatever becomes of who asked; why there may be no forecast."""
        end = asyncio.ensure_future(planner.wait())
        try:
            done, _ = await asyncio.wait({end}, timeout=_TIMEOUT_S)
        finally:
            if not end.done():
                planner.kill()
        if not done:
            await end
            return f"planning took longer than {_TIMEOUT_S:.0f} s"
        return self._why_ended or end.result().message
