"""What the watches over the buffer's images share: one look at a time beside the ticks, and a memory over restarts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TypeVar

from edgetune.clock import Clock
from edgetune.daemon.parts import Events, StoreThread
from edgetune.errors import EdgetuneError, NoModelError
from edgetune.store.history import History
from edgetune.types import Verdict, VerdictKind
from edgetune.wire import from_json

T = TypeVar("T")


class Looks:
    """
    Begins looks on the event loop. No look while a round is active, nor when the budget allows less than everything.

    Attributes:
        task: the look under way, or the last one until the next tick.
        trouble: what the last look met; empty: nothing.
    """

    def __init__(self, clock: Clock, events: Events) -> None:
        self._clock, self._events = clock, events
        self._looked_s = clock.now_s()
        self.task: asyncio.Task[None] | None = None
        self.trouble = ""

    def tick(
        self,
        interval_s: float,
        look: Callable[[], Coroutine[None, None, None]] | None,
        verdict: Verdict,
        *,
        is_round_active: bool,
    ) -> None:
        """Begin a look when one is due and nothing speaks against it (None: no look); raise what one did not expect."""
        if self.task is not None:
            if not self.task.done():
                return
            task, self.task = self.task, None
            task.result()
        is_idle = verdict.kind is VerdictKind.RUN and not is_round_active
        if look is not None and is_idle and self._clock.now_s() - self._looked_s >= interval_s:
            self._looked_s = self._clock.now_s()
            self.task = asyncio.create_task(look())

    @contextlib.asynccontextmanager
    async def expecting(self, event: str, what: str) -> AsyncIterator[None]:
        """Around a look: what is expected to fail is told once, as long as it is the same, and tried again."""
        try:
            yield
        except NoModelError:
            pass  # another version is served by now, or none: the next look is about that
        except (EdgetuneError, OSError) as error:
            if str(error) != self.trouble:
                await self._events.emit(event, f"{what}: {error}", level=logging.WARNING)
            self.trouble = str(error)
        else:
            self.trouble = ""

    async def close(self) -> None:
        """Give a look up; what it did not keep is asked again."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)


async def remembered(store: StoreThread, history: History, key: str, kind: type[T], default: T) -> T:
    """What was kept under a key; the default where nothing was, or something that another edgetune kept."""
    plain = await store(history.get_state, key)
    if plain is not None:
        with contextlib.suppress(ValueError):
            return from_json(kind, json.dumps(plain))
    return default
