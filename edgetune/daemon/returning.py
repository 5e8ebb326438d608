"""
Whether a class comes back that this site had not shown: asks the factory model and the served one about new images.

Nothing of it is on a request's path: a look is a task beside the ticks, its models run on the thread that loads models, one
image at a time, and the factory model is in memory only while a look lasts. How far it got, and what it saw, is one value in
the history, written after each look in the commit that labels what it found: a restart neither loses nor repeats anything.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgetune import images
from edgetune.clock import Clock
from edgetune.daemon.looking import Looks, remembered
from edgetune.daemon.parts import Events, StoreThread
from edgetune.daemon.round_records import RoundRecords
from edgetune.daemon.serving import Serving
from edgetune.decide import returning
from edgetune.decide.returning import Returned, ReturnPolicy, Sighted
from edgetune.errors import EdgetuneError, ImageError, NoModelError
from edgetune.images import ImageLimits
from edgetune.serve.engine import Engine, rank
from edgetune.store import questions
from edgetune.store.buffer import Buffer
from edgetune.store.history import History
from edgetune.store.models import Models
from edgetune.types import BufferStats, LabelSource, Manifest, RoundKind, Verdict

_STATE_KEY = "returning"
_BATCH = 32  # images of one look


@dataclass(frozen=True, slots=True)
class Asked:
    """How far one of the two queues was asked, and what was sighted in the last images of it."""

    up_to: int = 0  # the place in the queue up to which all were asked about
    seen: tuple[tuple[int, str | None], ...] = ()  # (sample, class sighted in it), oldest first

    def and_(self, asked: Sequence[tuple[int, int]], answers: Mapping[int, str | None], window: int) -> Asked:
        """With the answers to more (place, sample), of which the last `window` are kept."""
        more = [(sample, answers[sample]) for _, sample in asked]
        return Asked(max([self.up_to, *(place for place, _ in asked)]), (*self.seen, *more)[-window:])

    def sighted(self) -> list[int]:
        """The samples in which something was."""
        return [sample for sample, label in self.seen if label is not None]


@dataclass(frozen=True, slots=True)
class Memory:
    """What outlives a restart."""

    version: int | None = None  # the served version that all of it is about
    unlabelled: Asked = field(default_factory=Asked)
    controls: Asked = field(default_factory=Asked)
    returned: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # class -> sightings, of so many images


class Returning:
    """The watch for classes that come back. Lives on the event loop."""

    def __init__(
        self,
        *,
        models: Models,
        buffer: Buffer,
        history: History,
        records: RoundRecords,
        store: StoreThread,
        events: Events,
        clock: Clock,
        serving: Serving,
        image_limits: ImageLimits,
        policy: ReturnPolicy | None,
        interval_s: float,
    ) -> None:
        self.policy, self.interval_s = policy, interval_s  # replaced on reload
        self.shown: dict[str, int] = {}  # class -> training samples that the served version's round had of it
        self.absent: frozenset[str] = frozenset()
        self._models, self._buffer, self._history, self._records = models, buffer, history, records
        self._store, self._events, self._clock, self._serving = store, events, clock, serving
        self._image_limits = image_limits
        self._memory = Memory()
        self._factory: int | None = None
        self._looks = Looks(clock, events)

    async def load(self) -> None:
        """Go on from where the last run was."""
        self._memory = await remembered(self._store, self._history, _STATE_KEY, Memory, Memory())

    async def refresh(self, manifest: Manifest | None, stats: BufferStats) -> tuple[Returned, ...]:
        """
        Take note of what is served.

        Returns:
            The classes that came back and whose samples no round has used yet.
        """
        version = None if manifest is None else manifest.version
        if self._factory is None or self._memory.version != version:
            await self._take_note(manifest)
        waiting = {entry.label for entry in stats.classes if entry.training_since_round}
        return tuple(
            Returned(label=label, sightings=sightings, looked_at=looked_at)
            for label, (sightings, looked_at) in self._memory.returned.items()
            if label in waiting
        )

    async def _take_note(self, manifest: Manifest | None) -> None:
        """Work out which classes the served version was not shown; what was seen beside another version is over."""
        self._factory = await self._store(self._models.factory)
        self.shown, self.absent = {}, frozenset()
        if manifest is not None and manifest.round_id is not None and self._factory not in (None, manifest.version):
            self.shown = await self._store(self._records.shown, manifest)
            try:
                factory = await self._store(self._models.manifest, self._factory)
                if self.shown:  # else it is the factory model still, with imprinted classes beside its own
                    self.absent = returning.absent_classes(factory.classes, manifest.classes, self.shown)
            except (EdgetuneError, OSError) as error:
                text = f"the factory model cannot be read, so nobody watches for absent classes: {error}"
                await self._events.emit("class.unwatched", text, level=logging.WARNING)
        version = None if manifest is None else manifest.version
        if (
            manifest is not None
            and manifest.kind == RoundKind.IMPRINT.value
            and manifest.parent == self._memory.version
        ):
            self._memory = replace(self._memory, version=version)  # it answers as its base did
        if self._memory.version != version:
            self._memory = Memory(version=version, unlabelled=Asked(up_to=self._memory.unlabelled.up_to))

    # ------------------------------------------------------------------------------------------------- looking

    async def tick(self, verdict: Verdict, *, is_round_active: bool) -> None:
        """Begin a look when one is due and nothing speaks against it; raise what an earlier one did not expect."""
        policy = self.policy if self.absent else None
        look = None if policy is None else functools.partial(self._look, policy)
        self._looks.tick(self.interval_s, look, verdict, is_round_active=is_round_active)

    async def close(self) -> None:
        """Give a look up; what it asked about is asked again."""
        await self._looks.close()

    async def _look(self, policy: ReturnPolicy) -> None:
        """Ask about the next images and draw the conclusion; what is expected to fail is tried again at the next look."""
        before = self._memory
        async with self._looks.expecting(
            "class.unwatched", "the factory model cannot be asked whether absent classes are back"
        ):
            new = [
                await self._store(
                    questions.after, self._buffer, up_to, is_labelled=is_labelled, newest=policy.window, limit=_BATCH
                )
                for up_to, is_labelled in ((before.unlabelled.up_to, False), (before.controls.up_to, True))
            ]
            answers = await self._ask_about([sample for _, sample in (*new[0], *new[1])], policy)
            if self._memory is not before or not (answers or before.returned):
                return  # another version is served by now, to ask about them anew; or there is nothing to conclude from
            after = replace(
                before,
                unlabelled=before.unlabelled.and_(new[0], answers, policy.window),
                controls=before.controls.and_(new[1], answers, policy.window),
            )
            # More controls wait: what they will say is not known yet.
            await self._conclude(after, policy, is_judged=len(new[1]) < _BATCH)

    async def _ask_about(self, samples: Sequence[int], policy: ReturnPolicy) -> dict[int, str | None]:
        """Sample -> the absent class that was sighted in it."""
        if not samples or self._factory is None:
            return {}
        load = functools.partial(Engine.load, self._models.path(self._factory), threads=1)
        engine = await self._serving.aside(load)
        try:
            answers: dict[int, str | None] = dict.fromkeys(samples)
            for sample in samples:
                image = await self._store(questions.image, self._buffer, sample)
                if image is not None:
                    answers[sample] = await self._serving.aside(functools.partial(self._ask, engine, image, policy))
        finally:
            await self._serving.aside(engine.close)
        return answers

    def _ask(self, factory: Engine, image: bytes, policy: ReturnPolicy) -> str | None:
        """The absent class that the factory model sees and the served one does not; on the loading thread."""
        with self._serving.served.use() as served:
            if served.version != self._memory.version:
                raise NoModelError
            try:
                decoded = images.decode(image, self._image_limits)
            except ImageError:
                return None
            pixels = images.to_input(decoded, factory.manifest.preprocess)
            (best,) = rank(factory.predict(pixels[None])[0], factory.classes, 1)
            if not returning.is_worth_asking(best, self.absent, policy):
                return None
            pixels = images.to_input(decoded, served.manifest.preprocess)
            ((answer, _),) = rank(served.predict(pixels[None])[0], served.classes, 1)
        return None if answer == best[0] else best[0]

    # ---------------------------------------------------------------------------------------------- concluding

    async def _conclude(self, memory: Memory, policy: ReturnPolicy, *, is_judged: bool) -> None:
        """Label what has returned and remember what was seen in one commit, then tell."""
        after, news = await self._store(self._commit, memory, policy, is_judged=is_judged)
        if self._memory.version == after.version:
            self._memory = after
        for each in news:
            await self._events.emit("class.returned", each.reason, label=each.label, sightings=each.sightings)

    def _commit(self, memory: Memory, policy: ReturnPolicy, *, is_judged: bool) -> tuple[Memory, tuple[Returned, ...]]:
        """What is remembered from now on, and the classes that were not known to be back; on the store's thread."""
        # Evicted, purged, or labelled by a person since: then it is no sighting any more.
        groups = questions.groups(self._buffer, memory.unlabelled.sighted())
        sightings = [(sample, label) for sample, label in memory.unlabelled.seen if label and sample in groups]
        waiting = {entry.label for entry in self._buffer.classes() if entry.training_since_round}
        known = {label: figures for label, figures in memory.returned.items() if label in waiting}
        back = self._judge(memory, sightings, groups, policy) if is_judged else ()
        labels = {*known, *(each.label for each in back)}
        kept = {sample: label for sample, label in sightings if label not in labels}
        seen = tuple((sample, kept.get(sample)) for sample, _ in memory.unlabelled.seen)
        after = replace(
            memory,
            unlabelled=replace(memory.unlabelled, seen=seen),
            returned={**{each.label: (each.sightings, each.looked_at) for each in back}, **known},
        )
        with self._buffer.change("returning"):
            for sample, label in sightings:
                if label in labels:
                    self._buffer.label(sample, label, LabelSource.FACTORY)
            self._history.set_state(_STATE_KEY, after)
        return after, tuple(each for each in back if each.label not in known)

    def _judge(
        self, memory: Memory, sightings: Sequence[tuple[int, str]], groups: Mapping[int, str], policy: ReturnPolicy
    ) -> tuple[Returned, ...]:
        """Count, and let `decide.returning` say."""
        said = questions.labels(self._buffer, memory.controls.sighted())
        errors = Counter(label for sample, label in memory.controls.seen if said.get(sample, label) != label)
        sighted = [
            Sighted(
                label=label,
                sightings=count,
                groups=len({groups[sample] for sample, other in sightings if other == label}),
                errors=errors[label],
            )
            for label, count in Counter(label for _, label in sightings).items()
        ]
        looked_at, controls = len(memory.unlabelled.seen), len(memory.controls.seen)
        return returning.returned(sighted, looked_at=looked_at, controls=controls, policy=policy)

    # ------------------------------------------------------------------------------------------------ telling

    def summary(self) -> dict[str, Any]:
        """What `status` shows."""
        memory, policy = self._memory, self.policy
        counts = Counter(label for _, label in memory.unlabelled.seen if label is not None)
        return {
            "is_watched": policy is not None and bool(self.absent),
            "absent_classes": len(self.absent),
            "looked_at": len(memory.unlabelled.seen),
            "controls": len(memory.controls.seen),
            "window": None if policy is None else policy.window,
            "wanted": None if policy is None else policy.sightings,
            "sightings": [{"class": label, "count": count} for label, count in counts.most_common()],
            "returned": [
                {"class": label, "count": count, "looked_at": of} for label, (count, of) in memory.returned.items()
            ],
            "trouble": self._looks.trouble,
        }
