"""What is served: loading, predicting, swapping, rolling back, and the probation of a new version."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeVar

import numpy as np

from edgetune import images
from edgetune.clock import Clock
from edgetune.daemon.lineage import DEATHS_WITHIN_S, Lineage
from edgetune.daemon.parts import Events, ServiceTime, StoreThread
from edgetune.daemon.rejecting import Rejecting, Second, settled
from edgetune.daemon.trial import Trial
from edgetune.daemon.unsaved import Unsaved
from edgetune.decide.probation import Observed, ProbationKind, ProbationPolicy
from edgetune.errors import ConflictError, EdgetuneError, ModelError, NoModelError, NotFoundError, StoreError
from edgetune.images import ImageLimits
from edgetune.serve.engine import Engine, Served, rank
from edgetune.serve.service import Inferred
from edgetune.store.buffer import Buffer, PredictionRow
from edgetune.store.history import History
from edgetune.store.models import Models
from edgetune.types import Answer, Manifest

T = TypeVar("T")

_LATENCIES_KEPT = 1024
_P99_FROM = 10  # predictions


@dataclass(slots=True)
class Counters:
    """What one version has answered since it was loaded."""

    failed: int = 0
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES_KEPT))
    answered_s: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES_KEPT))  # when, of each

    def quantile_ms(self, share: float) -> float | None:
        """A quantile of the last latencies."""
        values = sorted(self.latencies_ms)
        return values[min(len(values) - 1, int(share * len(values)))] if values else None


class Serving:
    """The served version and everything that may replace it. Lives on the event loop."""

    def __init__(
        self,
        *,
        models: Models,
        buffer: Buffer,
        history: History,
        store: StoreThread,
        events: Events,
        clock: Clock,
        service_time: ServiceTime,
        threads: int,
        spinning: bool,
        image_limits: ImageLimits,
        keep_images: bool,
        rejecting: Rejecting,
    ) -> None:
        self._models, self._buffer, self._history, self._store = models, buffer, history, store
        self._events, self._clock, self._time = events, clock, service_time
        self._threads, self._spinning = threads, spinning
        self._image_limits, self._keep_images = image_limits, keep_images
        self.rejecting = rejecting
        # Taking a session apart and giving its memory back takes tens of milliseconds: not on a request's thread.
        self.served = Served(retire=lambda engine: self._loader.submit(engine.close))
        self.counters = Counters()
        self.total_requests = 0
        self.total_failed = 0
        self.generation = 0
        self.changing = asyncio.Lock()  # held from the commit point to the change of the reference
        self.trial = Trial(history, store, service_time)
        self._lineage = Lineage(models, history, service_time)
        self.since_s = clock.wall_s()  # when the present engine came
        self._is_settled = False  # up long enough that a death would not be the served version's
        self.unsaved = Unsaved(buffer, store)
        # Predictions and loading are kept apart, so that a candidate that loads never holds up a request.
        self._workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="predict")
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load")

    # ------------------------------------------------------------------------------------------------- loading

    async def load_current(self) -> None:
        """
        Serve what `models/current` names, or the newest version before it that works.

        A version that cannot be loaded, or under which the daemon died three times in ten minutes, is quarantined;
        the factory model never is.
        """
        self.generation = int(await self._store(self._history.get_state, "generation") or 0)
        await self.trial.load()
        version = await self._store(self._models.current) or await self._store(self._models.factory)
        suspect = await self._store(self._lineage.note_start, version)
        while version is not None:
            why = suspect
            if not why:
                try:
                    engine = await self.prepare(version)
                except ModelError as error:
                    why = error.message
                else:
                    self._install(engine)
                    return
            suspect = ""
            version = await self._fall_back(version, why)

    async def prepare(self, version: int) -> Engine:
        """
        Verify, load, warm and self-test a version off the request path.

        Raises:
            ModelError: it is damaged, does not load, or does not reproduce its recorded outputs.
        """

        def work() -> Engine:
            try:
                self._models.verify(version)
                engine = Engine.load(self._models.path(version), threads=self._threads, spinning=self._spinning)
                engine.selftest()
            except (OSError, ValueError) as error:
                raise ModelError(f"version {version} cannot be read: {error}") from error
            return engine

        return await self._on(self._loader, work)

    async def note_clean_stop(self) -> None:
        """The next start owes nothing to this run."""
        await self._store(self._lineage.strike_out_starts)

    async def settle(self, up_s: float) -> None:
        """Once the daemon has been up for long, its death will not be laid to the version it serves."""
        if not self._is_settled and up_s >= DEATHS_WITHIN_S:
            self._is_settled = True
            await self.note_clean_stop()

    async def _fall_back(self, version: int, why: str) -> int | None:
        older = await self._store(self._lineage.predecessors, version)
        factory = await self._store(self._models.factory)
        if version == factory:
            await self._events.emit(
                "model.broken", f"the factory model cannot be served: {why}", level=logging.ERROR, version=version
            )
            return None
        target = older[0] if older else factory
        if target is not None:
            await self._store(self._models.promote, target)
            await self._store(self._models.quarantine, version, why)
        await self._events.emit(
            "model.quarantined", f"version {version}: {why}", level=logging.ERROR, version=version, fallback=target
        )
        await self.trial.end()
        return target

    def _install(self, engine: Engine) -> None:
        self.served.swap(engine)
        self.counters = Counters()
        self.since_s = self._clock.wall_s()

    # ---------------------------------------------------------------------------------------------- predicting

    async def predict(self, image: bytes, *, top_k: int, record: bool) -> Answer:
        """
        Answer for one image.

        Raises:
            NoModelError: nothing is served.
            ImageError: the bytes are not an image that can be used.
        """
        started_ns = time.perf_counter_ns()

        def work() -> tuple[Engine, tuple[tuple[str, float], ...], tuple[bytes, str] | None, int, Second | None]:
            with self.served.use() as engine:
                decoded = images.decode(image, self._image_limits)
                pixels = images.to_input(decoded, engine.manifest.preprocess)
                kept = None
                if self._keep_images and record:
                    kept = images.encode(decoded, engine.manifest.preprocess), images.digest(image)
                logits = engine.predict(pixels[None])
                top = rank(logits[0], engine.classes, top_k)
                answered_ns = time.perf_counter_ns()
                return engine, top, kept, answered_ns, self.rejecting.doubts(engine, logits, pixels[None]).get(0)

        engine, top, kept, answered_ns, second = await self._counted(work)
        # What is counted and kept is the served model's own, whoever is listened to: it is what probation judges.
        self._count(engine.version, (answered_ns - started_ns) / 1e6)
        answer = settled(engine.manifest, top, second, top_k, started_ns)
        if record:
            self.unsaved.add(
                PredictionRow(
                    prediction_id=answer.prediction_id,
                    model_version=engine.version,
                    label=top[0][0],
                    confidence=top[0][1],
                    wall_s=self._clock.wall_s(),
                    digest=kept[1] if kept else None,
                    image=kept[0] if kept else None,
                    width=engine.manifest.preprocess.width if kept else 0,
                    height=engine.manifest.preprocess.height if kept else 0,
                )
            )
        return answer

    async def infer(self, version: int | None, batch: np.ndarray[Any, Any]) -> Inferred:
        """
        Run tensors as they are.

        Args:
            version: the version the client insists on, None for the served one.
            batch: uint8 [N, H, W, 3].

        Returns:
            Logits float32 [N, classes] of the version that answered, where the factory model is surer too.
        """

        def work() -> Inferred:
            with self.served.use() as engine:
                if version is not None and version != engine.version:
                    raise NotFoundError(f"version {version} is not served; {engine.version} is")
                logits = engine.predict(batch)
                doubts = self.rejecting.doubts(engine, logits, batch)
                rejected = tuple(row for row, second in doubts.items() if second.logits is None)
                return Inferred(engine.manifest, logits, rejected)

        return await self._counted(work)

    async def _counted(self, work: Callable[[], T]) -> T:
        self.total_requests += 1
        try:
            return await self._on(self._workers, work)
        except (ModelError, MemoryError) as error:
            if not isinstance(error, NoModelError):
                self.total_failed += 1
                self.counters.failed += 1
            raise

    def _count(self, version: int, latency_ms: float) -> None:
        """Pictures only: tensors come in batches of any size, so their times compare with nothing."""
        if version == self.served.version:  # else it finished on the version before a swap
            self.counters.latencies_ms.append(latency_ms)
            self.counters.answered_s.append(self._clock.now_s())

    def p99_ms(self, window_s: float) -> float:
        """Of the predictions of the last seconds; 0 when there were too few to tell: nothing is known to be late."""
        since_s = self._clock.now_s() - window_s
        counters = self.counters
        rows = zip(counters.answered_s, counters.latencies_ms, strict=True)
        recent = sorted(latency_ms for at_s, latency_ms in rows if at_s > since_s)
        return recent[int(0.99 * (len(recent) - 1))] if len(recent) >= _P99_FROM else 0.0

    async def flush(self) -> None:
        """Write the predictions answered since the last call."""
        await self.unsaved.flush()

    # ------------------------------------------------------------------------------------- promoting, going back

    async def promote(self, version: int) -> None:
        """The commit point: `models/current` names this version once it returns. The engine is not touched."""
        await self._store(self._lineage.promote, version)

    async def swap(self, engine: Engine) -> Observed:
        """Serve this engine from the next request on; returns how the former one did."""
        try:
            baseline = await self.observed()
        except StoreError:
            baseline = Observed()
        self._install(engine)
        return baseline

    async def observed(self) -> Observed:
        """How the served version does: what was kept outlives a restart, latencies are this process's own."""
        version = self.served.version
        if version is None:
            return Observed()
        summary = await self._store(self._buffer.predictions.summary, version)
        latencies_ms = self.counters.latencies_ms
        return Observed(
            feedback=summary.labelled,
            feedback_correct=summary.correct,
            predictions=summary.count,
            mean_confidence=summary.confidence_mean,
            timed=len(latencies_ms),
            p50_ms=median(latencies_ms) if latencies_ms else None,
        )

    async def check_probation(self, policy: ProbationPolicy) -> None:
        """End a probation that is over, or roll back on a named degradation."""
        if self.trial.version is not None and self.trial.version != self.served.version:
            await self.trial.end()
        if not self.trial.is_due():
            return
        verdict = self.trial.judge(await self.observed(), policy)
        if verdict.kind is ProbationKind.PASSED:
            await self._events.emit("probation.passed", f"version {self.trial.version} stays")
            await self.trial.end()
        elif verdict.kind is ProbationKind.ROLL_BACK:
            await self._roll_back(verdict.reason)

    async def _roll_back(self, reason: str) -> None:
        version, fallback = self.trial.version, self.trial.fallback
        if version is None or fallback is None:
            return
        try:
            await self.change_to(fallback, f"rolled back by itself: {reason}", is_by_hand=False, from_version=version)
        except StoreError:
            raise  # it is tried again
        except (EdgetuneError, OSError) as error:
            text = (
                f"version {version} should be rolled back ({reason}), but version {fallback} cannot be served: {error}"
            )
            await self._events.emit("probation.stuck", text, level=logging.ERROR)
            await self.trial.end()

    async def change_to(self, version: int, why: str, *, is_by_hand: bool, from_version: int | None = None) -> None:
        """
        Serve another published version, after the same checks as a candidate.

        Args:
            version: which.
            why: for the event.
            is_by_hand: an operator wished it.
            from_version: do it only while this one is served; None: whatever is.

        Raises:
            NotFoundError: no such version.
            ConflictError: it is served already, or `from_version` is not served any more.
            ModelError: it is damaged or fails its self-test; what was served still is.
        """
        async with self.changing:
            before = self.served.version
            if version == before or (from_version is not None and before != from_version):
                raise ConflictError(f"version {before} is served already")
            engine = await self.prepare(version)
            # A candidate in training was made for the world before this; a raised generation refuses it.
            self.generation += 1
            await self._store(self._history.set_state, "generation", self.generation)
            await self.promote(version)
            self._install(engine)
            await self.trial.end()
        kind = "model.changed" if is_by_hand else "model.rolled_back"
        await self._events.emit(kind, f"version {before} -> {version}: {why}", version=version, before=before)

    async def fallback(self) -> int:
        """
        The version a roll-back goes to.

        Raises:
            NotFoundError: there is nothing before the served version.
        """
        version = self.served.version
        older = [] if version is None else await self._store(self._lineage.predecessors, version)
        if not older:
            raise NotFoundError("there is no version before the served one to roll back to")
        return older[0]

    def manifest(self) -> Manifest | None:
        """The served version's manifest."""
        engine = self.served.engine
        return None if engine is None else engine.manifest

    def summary(self) -> dict[str, Any]:
        """The counters as `status` shows them."""
        p50, p99 = self.counters.quantile_ms(0.5), self.counters.quantile_ms(0.99)
        return {
            "requests": self.total_requests,
            "failed": self.total_failed,
            "p50_ms": None if p50 is None else round(p50, 3),
            "p99_ms": None if p99 is None else round(p99, 3),
            "reject": self.rejecting.summary(),
        }

    async def close(self) -> None:
        """Write what is unsaved and let the engine go."""
        await self.flush()
        self._workers.shutdown(wait=True)
        self.served.swap(None)
        self._loader.shutdown(wait=True)

    async def aside(self, work: Callable[[], T]) -> T:
        """Do something with models off the request path, on the thread that loads them."""
        return await self._on(self._loader, work)

    async def _on(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, functools.partial(work))
