"""Measurements that want a process of their own: what one left behind in memory would count for the next."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgetune.learn.data import LabelledImages
from edgetune.types import Preprocess

CLASSES = 10


def in_fresh_process(module: str, **asked: Any) -> dict[str, Any]:
    """What `python -m module --one JSON` prints as JSON in its last line, `asked` being what it is told."""
    call = [sys.executable, "-m", module, "--one", json.dumps(asked)]
    made = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
    return found


def noise(count: int, preprocess: Preprocess) -> LabelledImages:
    """Images of ten classes: neither memory nor time looks at values."""
    shape = (count, preprocess.height, preprocess.width, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return LabelledImages(np.arange(count), np.arange(count) % CLASSES, pixels, Path("/nowhere"), preprocess)
