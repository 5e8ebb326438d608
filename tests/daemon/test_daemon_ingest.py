"""The loop that takes the inbox: its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pytest
from fakes import FakeClock

from edgetune.daemon.ingest import Ingest
from edgetune.device.inbox import Batch


class EmptyInbox:
    """Nothing to take, and nothing soon."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()

    def collect(self) -> Batch:
        """Nothing."""
        return Batch()

    def committed(self, paths: Iterable[Path]) -> None:
        """Not called."""

    def returned(self, paths: Iterable[Path]) -> None:
        """Not called."""

    def due_s(self) -> float:
        """In an hour."""
        return 1e9


@pytest.mark.parametrize("turns", range(6))
def test_a_stop_that_meets_news_from_the_inbox_is_not_lost(turns: int) -> None:
    """However many turns of the event loop lie between the two."""

    async def play() -> bool:
        inbox = EmptyInbox()
        nothing = cast("Any", None)
        ingest = Ingest(inbox=inbox, buffer=nothing, store=nothing, events=nothing, clock=FakeClock())
        task = asyncio.create_task(ingest.forever())
        await asyncio.sleep(0.05)
        inbox.wake.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=5)
        if not done:
            task.cancel()
        return bool(done)

    assert asyncio.run(play())
