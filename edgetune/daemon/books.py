"""What may wait to be written, and the health of the database that it is written into."""

from __future__ import annotations

import asyncio
import logging

from edgetune.clock import Clock
from edgetune.daemon.budgeting import Budgeting
from edgetune.daemon.parts import Events, ServiceTime, StoreThread
from edgetune.daemon.rounds import Rounds
from edgetune.daemon.serving import Serving
from edgetune.errors import StoreError
from edgetune.store.buffer import Buffer
from edgetune.store.history import History
from edgetune.store.integrity import check_beside
from edgetune.types import Reading

log = logging.getLogger("edgetune")


class Books:
    """
    Kept once a tick. A full disk or a locked database delays them and stops nothing.

    Attributes:
        trouble: why the database cannot be written just now; empty: it can.
        damage: what the full check of the database has found.
    """

    def __init__(
        self, *, buffer: Buffer, history: History, store: StoreThread, events: Events, service_time: ServiceTime,
        serving: Serving, rounds: Rounds, budgeting: Budgeting, clock: Clock,
    ) -> None:  # fmt: skip
        """The clock starts now: a version that is served for long enough has settled."""
        self._buffer, self._history, self._store, self._events = buffer, history, store, events
        self._service_time, self._serving, self._rounds, self._budgeting = service_time, serving, rounds, budgeting
        self._clock, self._started_s = clock, clock.now_s()
        self.trouble = ""
        self.damage: list[str] = []

    async def keep(self, reading: Reading) -> None:
        """Write what has come up, and once a minute what the next start goes on from."""
        try:
            await self._serving.check_probation(self._rounds.settings.probation)
            await self._serving.flush()
            await self._store(self._history.record_reading, reading)
            await self._serving.settle(self._clock.now_s() - self._started_s)
            if self._service_time.is_due():
                await self._budgeting.save()
                await self._rounds.save()
        except StoreError as error:
            if str(error) != self.trouble:
                log.exception("the database cannot be written just now")
            self.trouble = str(error)
        else:
            self.trouble = ""

    async def check(self) -> None:
        """The full check of the database, beside the work; the start made do with the quick one."""
        self.damage = await asyncio.to_thread(check_beside, self._buffer.path)
        if self.damage:
            text = f"the sample buffer is damaged: {'; '.join(self.damage[:3])}; restart edgetune to have it rebuilt"
            await self._events.emit("buffer.damaged", text, level=logging.ERROR)
