"""Which versions were served before which, and under which the daemon died: what a start and a roll-back go by."""

from __future__ import annotations

from edgetune.daemon.parts import ServiceTime
from edgetune.store.history import History
from edgetune.store.models import Models

DEATHS_WITHIN_S = 600.0
_DEATHS_MAX = 3
_KEPT = 50


class Lineage:
    """The order in which versions came to be served. Everything here runs on the store's thread."""

    def __init__(self, models: Models, history: History, service_time: ServiceTime) -> None:
        self._models, self._history, self._time = models, history, service_time

    def note_start(self, version: int | None) -> str:
        """Write down that this version is about to serve; returns why it should not, if the daemon died under it too often."""
        now_s = self._time.now_s()
        starts = [tuple(entry) for entry in self._history.get_state("unclean_starts") or []]
        recent = [(v, at_s) for v, at_s in starts if v == version and abs(now_s - at_s) < DEATHS_WITHIN_S]
        self._history.set_state("unclean_starts", [*recent, (version, now_s)])
        if len(recent) >= _DEATHS_MAX and version != self._models.factory():
            return f"the daemon died {len(recent)} times in ten minutes while it was served"
        return ""

    def strike_out_starts(self) -> None:
        """A clean stop, or ten minutes up: the next start owes nothing to this run."""
        self._history.set_state("unclean_starts", [])

    def predecessors(self, version: int) -> list[int]:
        """What was served before this version, newest first, ending with the factory model."""
        lineage = self._read()
        published = set(self._models.versions())
        if version in lineage:
            lineage = lineage[: lineage.index(version)]
        factory = self._models.factory()
        older = [v for v in reversed(lineage) if v in published and v != version]
        if factory is not None and factory not in older and factory != version:
            older.append(factory)
        return older

    def promote(self, version: int) -> None:
        """The commit point: `models/current` names this version once it returns."""
        before, lineage = self._models.current(), self._read()
        if version in lineage:
            lineage = lineage[: lineage.index(version)]  # going back: what came after it is no predecessor
        elif before is not None and (not lineage or lineage[-1] != before):
            lineage.append(before)
        # Before the commit point: a name too many does no harm, a failed write after it would leave it half done.
        self._history.set_state("lineage", [*lineage[-_KEPT:], version])
        self._models.promote(version)

    def _read(self) -> list[int]:
        return [int(v) for v in self._history.get_state("lineage") or []]
