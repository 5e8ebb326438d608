"""
Whether an answer is one: what the served model is unsure of goes to the factory model, and where that is unsure too nobody knows.

On the threads that predict. The factory model is loaded when it is first needed, and given back when it was not for a while.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetune.clock import Clock
from edgetune.errors import EdgetuneError
from edgetune.serve.engine import Engine, Images, Logits, rank
from edgetune.store.models import Models
from edgetune.types import Answer, Manifest

_IDLE_S = 600.0


@dataclass(frozen=True, slots=True)
class Second:
    """What the factory model says of an image that the served one is unsure of; None: it is unsure too, or cannot be asked."""

    manifest: Manifest | None = None
    logits: Logits | None = None  # [its classes]


class Rejecting:
    """The reject option."""

    def __init__(
        self, *, models: Models, threads: int, clock: Clock, below: float | None, sharpness: Callable[[int], float]
    ) -> None:
        """
        Take note; nothing is loaded.

        Args:
            models: has the factory model.
            threads: of its predictions.
            clock: for how long it has not been needed.
            below: 0..1, a confidence below which a model is unsure; None: none ever is. Replaced on reload.
            sharpness: of a served version the calibration of its confidence, see `decide.estimate`; 1 where it has none.
        """
        self.below = below
        self.rejected = 0
        self.by_factory = 0
        self._models, self._threads, self._clock, self._sharpness = models, threads, clock, sharpness
        self._factory: Engine | None = None
        self._failed: int | None = None  # a factory model that cannot be loaded, which is not tried again
        self._trouble = ""
        self._used_s = 0.0
        self._lock = threading.Lock()

    def doubts(self, engine: Engine, logits: Logits, images: Images) -> dict[int, Second]:
        """
        Ask the factory model where the served one is unsure.

        Args:
            engine: the served model's.
            logits: that it gave, float32 [N, classes].
            images: that it was given, uint8 [N, H, W, 3].

        Returns:
            Of the rows that it is unsure of, what the factory model says.
        """
        below = self.below
        if below is None:
            return {}
        confidence = _confidence(logits, self._sharpness(engine.version))
        unsure = np.flatnonzero(~(confidence >= below))
        if not len(unsure):
            return {}
        with self._lock:
            found = self._ask(engine, images[unsure], below)
            seconds = {int(row): second for row, second in zip(unsure, found, strict=True)}
            self.rejected += sum(second.logits is None for second in found)
            self.by_factory += sum(second.logits is not None for second in found)
        return seconds

    def _ask(self, engine: Engine, images: Images, below: float) -> list[Second]:
        nobody = [Second()] * len(images)
        try:
            factory = self._load(engine)
            if factory is None:
                return nobody
            logits = factory.predict(images)
        except (EdgetuneError, OSError) as error:
            self._trouble, self._failed = f"the factory model cannot be asked: {error}", self._models.factory()
            return nobody
        is_sure = _confidence(logits, 1.0) >= below
        return [Second(factory.manifest, row) if sure else Second() for row, sure in zip(logits, is_sure, strict=True)]

    def _load(self, engine: Engine) -> Engine | None:
        """The factory model; None where it is the served one, or takes other images."""
        version = self._models.factory()
        if version is None or version in (engine.version, self._failed):
            return None
        if self._factory is None or self._factory.version != version:
            self._let_go()
            self._factory = Engine.load(self._models.path(version), threads=self._threads)
        self._used_s = self._clock.now_s()
        return self._factory if self._factory.manifest.preprocess == engine.manifest.preprocess else None

    @property
    def is_idle(self) -> bool:
        """Whether the factory model is in memory and was not needed for a while, or is not asked any more."""
        is_over = self.below is None or self._clock.now_s() - self._used_s >= _IDLE_S
        return self._factory is not None and is_over

    def tidy(self) -> None:
        """Give its memory back."""
        with self._lock:
            self._let_go()

    def _let_go(self) -> None:
        if self._factory is not None:
            self._factory.close()
            self._factory = None

    def summary(self) -> dict[str, Any]:
        """For `status`."""
        return {
            "below": self.below,
            "rejected": self.rejected,
            "by_factory": self.by_factory,
            "trouble": self._trouble if self._failed is not None else "",
        }


def _confidence(logits: Logits, sharpness: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The largest probability of each row of logits [N, classes], calibrated: [N]."""
    scaled = sharpness * (logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    confidence: np.ndarray[Any, np.dtype[np.float64]] = 1.0 / np.exp(scaled).sum(axis=1)
    return confidence


def settled(
    manifest: Manifest, top: tuple[tuple[str, float], ...], second: Second | None, top_k: int, started_ns: int
) -> Answer:
    """
    The answer to one image.

    Args:
        manifest: of the served version.
        top: what it says.
        second: what the factory model says, where it was asked.
        top_k: classes in the answer.
        started_ns: when the image came, on the performance counter.
    """
    if second is not None and second.manifest is not None and second.logits is not None:
        manifest, top = second.manifest, rank(second.logits, second.manifest.classes, top_k)
    return Answer(
        prediction_id=uuid.uuid4().hex,
        model_version=manifest.version,
        top=top,
        latency_ms=(time.perf_counter_ns() - started_ns) / 1e6,
        marks=manifest.marks,
        is_rejected=second is not None and second.logits is None,
    )
