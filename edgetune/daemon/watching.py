"""
What the served model says about unlabelled images: its accuracy without labels, whether the images have changed, what to label.

Nothing of it is on a request's path: a look is a task beside the ticks, the model runs on the thread that loads models, one
image at a time. Answers are rows beside their samples, so a restart goes on where the last run was, and those of another
version do not count. What is drawn from them one by one (`decide.drift`) is written in the commit that keeps them.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from edgetune import images
from edgetune.clock import Clock
from edgetune.daemon.looking import Looks, remembered
from edgetune.daemon.parts import Events, StoreThread
from edgetune.daemon.serving import Serving
from edgetune.decide import drift
from edgetune.decide.drift import DriftPolicy, Shift, Watched
from edgetune.decide.estimate import Answered, Estimate, Unknown, calibrate, estimate, probabilities
from edgetune.decide.trigger import Concern
from edgetune.errors import ImageError, NoModelError
from edgetune.images import ImageLimits
from edgetune.store import answers, questions
from edgetune.store.answers import AnsweredSample
from edgetune.store.buffer import Buffer
from edgetune.store.database import transaction
from edgetune.store.history import History
from edgetune.types import Manifest, Mark, RoundKind, Verdict

_STATE_KEY = "watching"
_BATCH = 32  # images of one look
_JUDGED_MAX = 500  # labelled answers that the estimate is calibrated on
_QUEUE = 1000  # unlabelled samples, the newest, that are answered and may be asked about
_HOW = "label some: edgetune data next"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchPolicy:
    """How the served model is watched."""

    interval_s: float = 60.0
    window: int = 400  # unlabelled answers of an estimate
    drop_max: float | None = 0.1  # below the accuracy on labelled samples, for which a round is wanted
    drift: DriftPolicy | None = field(default_factory=DriftPolicy)


@dataclass(frozen=True, slots=True)
class Memory:
    """What outlives a restart."""

    version: int | None = None  # the served version that all of it is about
    bases: tuple[int, ...] = ()  # those that it was imprinted on, one after the other: what they answered was counted
    watched: Watched = field(default_factory=Watched)
    unkept: int = 0  # answers since an estimate was last kept
    low_since: int | None = None  # the first sample of the window whose estimate was too low


class Watching:
    """The watch over the served model's answers. Lives on the event loop."""

    def __init__(
        self,
        *,
        buffer: Buffer,
        history: History,
        store: StoreThread,
        events: Events,
        clock: Clock,
        serving: Serving,
        image_limits: ImageLimits,
        policy: WatchPolicy | None,
    ) -> None:
        self.policy = policy  # replaced on reload
        self.estimate: Estimate | Unknown = Unknown("nobody has looked yet")
        self._buffer, self._history, self._store, self._events = buffer, history, store, events
        self._clock, self._serving, self._image_limits = clock, serving, image_limits
        self._memory = Memory()
        self._sharpness = 1.0
        self._settled: tuple[int, ...] = ()  # outputs of the version that are not provisional
        self._estimated: tuple[Any, ...] = ()  # what the estimate was made from
        self._looks = Looks(clock, events)

    async def load(self) -> None:
        """Go on from where the last run was."""
        self._memory = await remembered(self._store, self._history, _STATE_KEY, Memory, Memory())

    async def concern(self, manifest: Manifest | None) -> Concern | None:
        """Take note of what is served; what speaks for a round, and how many labels there are for it."""
        self._take_note(manifest)
        low, shift, reasons = self._low(), self._shift(), []
        if low is not None and self._memory.low_since is not None:
            reasons.append((self._memory.low_since, _in_words(low)))
        if shift is not None:
            reasons.append((shift.since, shift.reason))
        if not reasons:
            return None
        # The window of an estimate reaches further back than the change does; that of a shift is known better.
        labelled = await self._store(answers.new_labels_since, self._buffer, max(since for since, _ in reasons))
        return Concern(reason=reasons[0][1], labelled=labelled)

    def _low(self) -> Estimate | None:
        """The estimate, where it is too low by the policy of now, which may have changed since it was noticed."""
        found, drop_max = self.estimate, None if self.policy is None else self.policy.drop_max
        if self._memory.low_since is None or drop_max is None or not isinstance(found, Estimate):
            return None
        return found if found.is_below(drop_max) else None

    def _shift(self) -> Shift | None:
        """The change that stands, where anybody looks for one by the policy of now."""
        return None if self.policy is None or self.policy.drift is None else self._memory.watched.shift

    def _take_note(self, manifest: Manifest | None) -> None:
        """
        What is remembered is about one version; an imprinted one has its base's outputs, and classes of its own beside them.

        So the watch for drift goes on: it looks at these outputs alone, and counts no image again. The estimate does not:
        an image may be answered with the new class by now.
        """
        version, before = None if manifest is None else manifest.version, self._memory
        marks = {} if manifest is None else manifest.marks
        known = () if manifest is None else manifest.classes
        self._settled = tuple(i for i, label in enumerate(known) if marks.get(label) != Mark.PROVISIONAL.value)
        if before.version == version:
            return
        self._memory = Memory(version=version)
        base = manifest.parent if manifest is not None and manifest.kind == RoundKind.IMPRINT.value else None
        if base is not None and base == before.version:
            self._memory = replace(before, version=version, bases=(*before.bases, base), unkept=0)
        self.estimate, self._estimated, self._sharpness = Unknown("this version is new"), (), 1.0

    # ------------------------------------------------------------------------------------------------- looking

    async def tick(self, verdict: Verdict, *, is_round_active: bool) -> None:
        """Begin a look when one is due and nothing speaks against it; raise what an earlier one did not expect."""
        policy = None if self._memory.version is None else self.policy
        look = None if policy is None else functools.partial(self._look, policy)
        interval_s = math.inf if policy is None else policy.interval_s
        self._looks.tick(interval_s, look, verdict, is_round_active=is_round_active)

    async def close(self) -> None:
        """Give a look up; what it did not keep is asked again."""
        await self._looks.close()

    async def _look(self, policy: WatchPolicy) -> None:
        """Let the model answer the next images and draw the conclusions; what is expected to fail is tried again."""
        version = self._memory.version
        assert version is not None
        async with self._looks.expecting("model.unwatched", "the served model cannot be watched"):
            samples = await self._store(self._next, version, policy)
            said = [(sample, await self._ask(sample, version)) for sample in samples]
            if said and self._memory.version == version:
                await self._keep(said, policy)
            await self._estimate(policy)

    def _next(self, version: int, policy: WatchPolicy) -> list[int]:
        """Half of them labelled, as long as there are any: without them nothing can be estimated."""
        labelled = answers.unanswered(self._buffer, version, is_labelled=True, newest=_JUDGED_MAX, limit=_BATCH // 2)
        newest, left = max(_QUEUE, policy.window), _BATCH - len(labelled)
        return labelled + answers.unanswered(self._buffer, version, is_labelled=False, newest=newest, limit=left)

    async def _ask(self, sample: int, version: int) -> bytes | None:
        """The packed logits; None when there is no answer to keep. Raises NoModelError when it is not served any more."""
        image = await self._store(questions.image, self._buffer, sample)
        if image is None:
            return None

        def work() -> bytes | None:
            with self._serving.served.use() as engine:
                if engine.version != version:
                    raise NoModelError
                try:
                    pixels = images.to_input(images.decode(image, self._image_limits), engine.manifest.preprocess)
                except ImageError:
                    return None
                return answers.pack(engine.predict(pixels[None])[0].tolist())

        return await self._serving.aside(work)

    # ---------------------------------------------------------------------------------------------- concluding

    async def _keep(self, said: Sequence[tuple[int, bytes | None]], policy: WatchPolicy) -> None:
        """Keep the answers with what the watch for drift makes of them, and tell."""
        before = self._memory
        after = await self._store(self._commit, before, said, policy, self._settled)
        if self._memory is not before:
            return
        self._memory = after
        was, now = before.watched.shift, after.watched.shift
        if now is not None and now != was:
            await self._events.emit("drift.noticed", f"{now.reason}; {_HOW}", distance=round(now.distance, 3))
        elif was is not None and now is None:
            await self._events.emit("drift.passed", "the images are as at the version's beginning again")

    def _commit(
        self, before: Memory, said: Sequence[tuple[int, bytes | None]], policy: WatchPolicy, settled: Sequence[int]
    ) -> Memory:
        """On the store's thread; `settled` are the outputs that are not provisional."""
        assert before.version is not None
        with transaction(self._buffer.database, "watching"):
            counted = answers.answered_by(self._buffer, before.bases, [sample for sample, _ in said])
            kept = answers.record(self._buffer, before.version, said)
            watched = before.watched
            if policy.drift is not None:
                for sample in answers.first_of_groups(self._buffer, (before.version, *before.bases), kept):
                    if sample not in counted:
                        confidence = max(probabilities([kept[sample][output] for output in settled]))
                        watched = drift.after(watched, sample, confidence, policy.drift)
            after = replace(before, watched=watched, unkept=before.unkept + len(kept))
            self._history.set_state(_STATE_KEY, after)
        return after

    async def _estimate(self, policy: WatchPolicy) -> None:
        """Estimate anew when there are other answers or labels than last time."""
        memory = self._memory
        assert memory.version is not None
        recent, judged = await self._store(self._read, memory.version, policy.window)
        judgements = tuple((answer.sample, answer.label) for answer in judged)
        made_from = (memory.version, tuple(answer.sample for answer in recent), judgements, policy.drop_max)
        manifest = self._serving.manifest()
        if made_from == self._estimated or manifest is None or manifest.version != memory.version:
            return
        is_recalibrated = judgements != (self._estimated or (None, None, None))[2]
        sharpness, found = await asyncio.to_thread(
            _judge, recent, judged, manifest.classes, None if is_recalibrated else self._sharpness
        )
        if self._memory is not memory:
            return
        self._sharpness, self.estimate = sharpness, found
        if isinstance(found, Estimate):
            await self._note(found, recent[0].sample, policy)
        if self._memory.version == memory.version:
            self._estimated = made_from  # not before it is written what it means

    def _read(self, version: int, window: int) -> tuple[list[AnsweredSample], list[AnsweredSample]]:
        return answers.recent(self._buffer, version, window), answers.judged(self._buffer, version, _JUDGED_MAX)

    async def _note(self, found: Estimate, first: int, policy: WatchPolicy) -> None:
        """Keep an estimate for every window, and tell when one is too low, or not any more."""
        before = self._memory
        is_low = policy.drop_max is not None and found.is_below(policy.drop_max)
        after = replace(
            before,
            low_since=(before.low_since if before.low_since is not None else first) if is_low else None,
            unkept=0 if before.unkept >= policy.window else before.unkept,
        )
        if after == before:
            return
        await self._store(self._commit_note, after, found, is_kept=after.unkept != before.unkept)
        if self._memory is not before:
            return
        self._memory = after
        if (before.low_since is None) == is_low:
            text = f"{_in_words(found)}; {_HOW}" if is_low else "the estimated accuracy is as it was again"
            await self._events.emit("estimate.low" if is_low else "estimate.recovered", text)

    def _commit_note(self, after: Memory, found: Estimate, *, is_kept: bool) -> None:
        assert after.version is not None
        with transaction(self._buffer.database, "watching"):
            if is_kept:
                self._history.add_estimate(after.version, asdict(found))
            self._history.set_state(_STATE_KEY, after)

    # ------------------------------------------------------------------------------------------------- telling

    def sharpness_of(self, version: int) -> float:
        """The calibration of a version's confidence; 1 where that is not the one that is watched."""
        return self._sharpness if self._memory.version == version else 1.0

    def summary(self) -> dict[str, Any]:
        """What `status` shows."""
        policy, shift, found = self.policy, self._shift(), self.estimate
        why = "triggers.watch_interval is null" if policy is None else getattr(found, "why", "")
        return {
            "is_watched": policy is not None,
            "estimate": asdict(found) if isinstance(found, Estimate) and policy is not None else None,
            "why_unknown": why,
            "is_low": self._low() is not None,
            "shift": None if shift is None else {**asdict(shift), "reason": shift.reason},
            "reference": len(self._memory.watched.reference),
            "reference_wanted": policy.drift.warm_up if policy is not None and policy.drift is not None else None,
            "trouble": self._looks.trouble,
        }


def _judge(
    recent: Sequence[AnsweredSample],
    judged: Sequence[AnsweredSample],
    classes: Sequence[str],
    sharpness: float | None,
) -> tuple[float, Estimate | Unknown]:
    """The calibration, made anew when it is None, and the estimate; takes a while where there are many classes."""
    place = {label: index for index, label in enumerate(classes)}
    unlabelled = [Answered(logits=each.logits, group=each.group) for each in recent]
    labelled = [Answered(logits=each.logits, group=each.group, truth=place.get(each.label or "")) for each in judged]
    sharpness = calibrate(labelled) if sharpness is None else sharpness
    return sharpness, estimate(unlabelled, labelled, sharpness)


def _in_words(found: Estimate) -> str:
    return (
        f"about {found.accuracy:.0%} of the last {found.unlabelled} unlabelled images are answered right, by the served"
        f" model's own confidence, and {found.labelled_accuracy:.0%} of the labelled ones"
    )
