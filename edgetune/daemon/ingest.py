"""The path of a sample from the inbox into the buffer, batch by batch: read, check, one commit, only then remove."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Protocol

from edgetune.clock import Clock
from edgetune.daemon.parts import Events, StoreThread
from edgetune.device.inbox import Batch
from edgetune.errors import StoreError
from edgetune.store.buffer import Buffer
from edgetune.types import AddOutcome

_RETRY_S = 5.0


class Inbox(Protocol):
    """The watched directory (device/inbox.py) or a fake."""

    wake: asyncio.Event

    def collect(self, now_s: float) -> Batch:
        """The settled files, read and checked; bad ones are in the quarantine by now."""

    def committed(self, paths: list[Path]) -> None:
        """The buffer has these for good."""

    def next_due_s(self, now_s: float) -> float:
        """Seconds until the next look is worth it."""


class Ingest:
    """Moves samples for ever."""

    def __init__(self, *, inbox: Inbox, buffer: Buffer, store: StoreThread, events: Events, clock: Clock) -> None:
        self._inbox, self._buffer, self._store, self._events, self._clock = inbox, buffer, store, events, clock
        self.taken = 0
        self.duplicates = 0
        self.quarantined = 0
        self.trouble = ""

    async def forever(self) -> None:
        """Take batch after batch; wait when there is none."""
        while True:
            if not await self.once():
                self._inbox.wake.clear()
                try:
                    await asyncio.wait_for(self._inbox.wake.wait(), max(0.05, self._inbox.next_due_s(self._clock.now_s())))
                except asyncio.TimeoutError:
                    pass

    async def once(self) -> bool:
        """Take one batch. Returns whether there was anything to take."""
        batch = await asyncio.to_thread(self._inbox.collect, self._clock.now_s())
        if batch.quarantined:
            self.quarantined += len(batch.quarantined)
            await self._store(self._buffer.count_quarantined, len(batch.quarantined))
            for entry in batch.quarantined[:10]:
                await self._events.emit("inbox.quarantined", str(entry), level=logging.WARNING)
        if not batch.samples:
            return bool(batch.quarantined)
        try:
            outcomes = await self._store(self._buffer.add, [sample for _, sample in batch.samples])
        except StoreError as error:
            # The files stay where they are and are taken again: nothing is lost by a full disk or quota.
            if str(error) != self.trouble:
                self.trouble = str(error)
                await self._events.emit("inbox.waiting", self.trouble, level=logging.ERROR)
            await self._clock.sleep(_RETRY_S)
            return True
        self.trouble = ""
        self.taken += sum(outcome is AddOutcome.STORED for outcome in outcomes)
        self.duplicates += sum(outcome is not AddOutcome.STORED for outcome in outcomes)
        await asyncio.to_thread(self._inbox.committed, [path for path, _ in batch.samples])
        return True
