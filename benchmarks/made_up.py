"""Made-up images in a buffer of their own, for benchmarks of what a round takes: what it learns does not matter there."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from edgetune.clock import SystemClock
from edgetune.images import digest
from edgetune.store.buffer import Buffer
from edgetune.store.retention import BufferPolicy
from edgetune.types import FrozenSample, LabelSource, NewSample, Preprocess

CLASSES = tuple(f"class{i}" for i in range(10))
SIZE = Preprocess(height=32, width=32)
EACH = 60  # images of a class


def fill(path: Path) -> tuple[FrozenSample, ...]:
    """A buffer at `path`: a colour and noise for each class; a tenth for validation, a fifth held out."""
    policy = BufferPolicy(
        quota_bytes=2**30, validation_share=0.1, holdout_share=0.2, validation_min=1, holdout_min=1,
        new_classes="accept",
    )  # fmt: skip
    buffer = Buffer(path, policy, clock=SystemClock())
    buffer.open()
    rng = np.random.default_rng(0)
    samples = []
    for number in range(EACH * len(CLASSES)):
        label = number % len(CLASSES)
        pixels = rng.integers(0, 120, (32, 32, 3)) + np.array([label * 12, 120 - label * 12, (label % 3) * 50])
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
        data = file.getvalue()
        samples.append(
            NewSample(
                digest=digest(data), image=data, width=32, height=32, label=CLASSES[label],
                label_source=LabelSource.FOLDER, group=str(number), origin=str(number), taken_at_s=0.0,
            )
        )  # fmt: skip
    buffer.add(samples)
    frozen = buffer.freeze(1)
    buffer.close()
    return frozen
