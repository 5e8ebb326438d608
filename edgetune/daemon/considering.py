"""What the trigger is told of the site, and what it answers: is a round wanted?"""

from __future__ import annotations

from edgetune.config import Config
from edgetune.daemon import settings
from edgetune.daemon.parts import ServiceTime, StoreThread
from edgetune.daemon.returning import Returning
from edgetune.daemon.rounds import Rounds
from edgetune.daemon.serving import Serving
from edgetune.daemon.watching import Watching
from edgetune.decide import imprinting, trigger
from edgetune.decide.trigger import ManualRequest, ServedSummary, Want
from edgetune.store.buffer import Buffer
from edgetune.store.history import History
from edgetune.types import BufferStats, Manifest

_LEVEL_TOLERANCE = 0.1  # rounding to channel multiples misses the asked level by this much at most


class Considering:
    """Gathers the facts from the parts that have them."""

    def __init__(
        self,
        *,
        buffer: Buffer,
        history: History,
        store: StoreThread,
        service_time: ServiceTime,
        serving: Serving,
        returning: Returning,
        watching: Watching,
        rounds: Rounds,
    ) -> None:
        self._buffer, self._history, self._store, self._service_time = buffer, history, store, service_time
        self._serving, self._returning, self._watching, self._rounds = serving, returning, watching, rounds
        self.stats: BufferStats | None = None  # as the last question found them

    async def consider(self, config: Config, manual: ManualRequest | None) -> Want:
        """Ask the trigger, with or without an operator's request."""
        self.stats = stats = await self._store(self._buffer.stats)
        last_s = await self._store(self._history.get_state, "last_round_ended_s")
        manifest = self._serving.manifest()
        returned = await self._returning.refresh(manifest, stats)
        concern = await self._watching.concern(manifest)
        return trigger.consider(
            stats,
            settings.trigger_policy(config),
            None if manifest is None else self._summary(manifest, config),
            since_last_s=None if last_s is None else self._service_time.now_s() - last_s,
            manual=manual,
            returned=returned,
            concern=concern,
            to_imprint=() if manifest is None else await self._to_imprint(stats, manifest, config),
            cooling_s=self._rounds.cooldown_ends_s - self._service_time.now_s(),
        )

    def _summary(self, manifest: Manifest, config: Config) -> ServedSummary:
        achieved = 0.0 if manifest.pruning is None else manifest.pruning.level_achieved
        return ServedSummary(
            classes=tuple(label for label in manifest.classes if label not in manifest.marks),
            marked=tuple(manifest.marks),
            tuned_classes=tuple(self._returning.shown),
            absent_classes=self._returning.absent,
            is_target_met=achieved >= config.pruning.level - _LEVEL_TOLERANCE,
        )

    async def _to_imprint(self, stats: BufferStats, manifest: Manifest, config: Config) -> tuple[str, ...]:
        return imprinting.due(
            stats.classes,
            manifest.classes,
            samples_min=config.triggers.imprint_samples,
            tried=await self._store(self._rounds.records.imprints_tried),
        )
