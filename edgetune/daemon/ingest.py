"""The path of a sample from the inbox into the buffer, batch by batch: read, check, one commit, only then remove."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from edgetune.clock import Clock
from edgetune.daemon.parts import Events, StoreThread
from edgetune.device.inbox import Batch
from edgetune.errors import NotFoundError, StoreError
from edgetune.store import durable
from edgetune.store.buffer import Buffer
from edgetune.types import AddOutcome, LabelSource

_RETRY_S = 5.0
_WAIT_MIN_S = 0.05


class Inbox(Protocol):
    """The watched directory (device/inbox.py) or a fake."""

    wake: asyncio.Event
    problems: tuple[str, ...]

    @property
    def waiting(self) -> int:
        """Files that were seen and are not yet committed."""

    @property
    def quarantined(self) -> int:
        """Files in the quarantine."""

    @property
    def watch(self) -> str:
        """How changes are noticed."""

    def start(self) -> None:
        """Begin to watch, on the event loop."""

    def stop(self) -> None:
        """Watch no more."""

    def collect(self) -> Batch:
        """The settled files, read and checked; bad ones are in the quarantine by now."""

    def committed(self, paths: Iterable[Path]) -> None:
        """The buffer has these for good."""

    def returned(self, paths: Iterable[Path]) -> None:
        """The buffer could not take these."""

    def due_s(self) -> float:
        """When the next look is worth it, on the clock."""


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
            self._inbox.wake.clear()
            if await self.once():
                continue
            wait_s = max(_WAIT_MIN_S, self._inbox.due_s() - self._clock.now_s())
            await self._nap(wait_s)

    async def _nap(self, wait_s: float) -> None:
        """Wait for news from the inbox, so long; asyncio.wait_for before 3.12 loses a cancellation that meets news."""
        news = asyncio.ensure_future(self._inbox.wake.wait())
        try:
            await asyncio.wait({news}, timeout=wait_s)
        finally:
            news.cancel()

    async def once(self) -> bool:
        """Take one batch. Returns whether there is more at once."""
        batch = await asyncio.to_thread(self._inbox.collect)
        if batch.quarantined:
            self.quarantined += batch.quarantined
            await self._store(self._buffer.count_quarantined, batch.quarantined)
            text = f"{batch.quarantined} bad files went to the quarantine; the reasons are beside them"
            await self._events.emit("inbox.quarantined", text, level=logging.WARNING)
        if not batch.paths:
            return batch.has_more
        try:
            outcomes = await self._store(self._add, batch)
        except StoreError as error:
            # The files stay where they are and are taken again: nothing is lost by a full disk or quota.
            await asyncio.to_thread(self._inbox.returned, batch.paths)
            if str(error) != self.trouble:
                self.trouble = str(error)
                await self._events.emit("inbox.waiting", self.trouble, level=logging.ERROR)
            await self._clock.sleep(_RETRY_S)
            return True
        self.trouble = ""
        self.taken += sum(outcome is AddOutcome.STORED for outcome in outcomes)
        self.duplicates += sum(outcome is not AddOutcome.STORED for outcome in outcomes)
        await asyncio.to_thread(self._inbox.committed, batch.paths)
        return batch.has_more

    def _add(self, batch: Batch) -> list[AddOutcome]:
        """One commit for the samples, then the labels that came after theirs; on the store's thread."""
        outcomes = self._buffer.add([sample for _, sample in batch.items]) if batch.items else []
        durable.faultpoint("ingest.committed")
        for late in batch.late_labels:
            with contextlib.suppress(NotFoundError):  # evicted or purged since: there is nothing left to label
                self._buffer.label(late.digest, late.label, LabelSource.SIDECAR)
        return outcomes
