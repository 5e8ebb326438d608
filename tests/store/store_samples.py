"""Samples, buffers and manifests for the storage tests."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from edgetune.clock import Clock
from edgetune.store.buffer import Buffer
from edgetune.store.retention import BufferPolicy
from edgetune.types import Cost, LabelSource, Manifest, NewSample, Preprocess


class StillClock:
    """A clock that moves only when told to."""

    def __init__(self, wall_s: float = 1_700_000_000.0) -> None:
        self.time_s = wall_s

    def now_s(self) -> float:
        """The time."""
        return self.time_s

    def wall_s(self) -> float:
        """The time."""
        return self.time_s

    async def sleep(self, duration_s: float) -> None:
        """Return at once, later."""
        self.time_s += duration_s


def sample(number: int, label: str | None = None, *, group: str | None = None, size: int = 100) -> NewSample:
    """Sample `number`: the same number gives the same bytes."""
    image = (f"image {number} ".encode() * size)[:size]
    return NewSample(
        digest=hashlib.sha256(image).hexdigest(),
        image=image,
        width=4,
        height=3,
        label=label,
        label_source=None if label is None else LabelSource.FOLDER,
        group=group or f"group {number}",
        origin=f"{label or ''}/{number}.png",
        taken_at_s=1000.0 + number,
    )


def make_buffer(path: Path, *, clock: Clock | None = None, **changes: Any) -> Buffer:
    """An unopened buffer with roomy settings."""
    return Buffer(path, policy(**changes), clock=clock or StillClock())


def policy(**changes: Any) -> BufferPolicy:
    """Roomy, but for what the test says."""
    plain: dict[str, Any] = {
        "quota_bytes": 10**9,
        "validation_share": 0.2,
        "holdout_share": 0.2,
        "validation_min": 2,
        "holdout_min": 2,
        "new_classes": "accept",
    }
    return BufferPolicy(**{**plain, **changes})


def manifest(kind: str = "factory") -> Manifest:
    """A manifest before publication."""
    return Manifest(
        version=0,
        kind=kind,
        architecture="cifar:resnet20",
        classes=("cat", "dog"),
        preprocess=Preprocess(height=32, width=32),
        parent=None,
        generation=0,
        round_id=None,
        created_at="2026-01-01T00:00:00+00:00",
        files={},
        cost=Cost(parameters=1, macs=1, onnx_bytes=1),
    )
