"""A site in a temporary directory: a factory model, a buffer with coloured squares, and round directories."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from edgetune.clock import SystemClock
from edgetune.images import digest
from edgetune.learn.control import Control
from edgetune.learn.importer import import_model
from edgetune.store.buffer import Buffer
from edgetune.store.retention import BufferPolicy
from edgetune.trainer import _attempt
from edgetune.types import (
    Cost,
    FrozenSample,
    LabelSource,
    Manifest,
    NewSample,
    Preprocess,
    Recipe,
    RoundKind,
    RoundSpec,
    TrainerOutcome,
)
from edgetune.wire import from_json, to_json

SIZE = Preprocess(height=16, width=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
CLASSES = ("red", "green", "blue")
RECIPE = Recipe(
    level=0.4, round_to=8, epochs_before=1, epochs_after=2, batch_size=16, learning_rate=0.05, learning_rate_before=0.02,
    checkpoint_steps=2, scoring_batches=2, timing_runs=3, threads=1, memory_format="contiguous", dtype="float32",
    search="none",
)  # fmt: skip


def picture(label: str, number: int) -> bytes:
    """A noisy PNG in which the class's colour is the brightest."""
    rng = np.random.default_rng([number, sum(label.encode())])
    pixels = rng.integers(0, 120, (16, 16, 3))
    channel = {"red": 0, "green": 1, "blue": 2}.get(label)
    pixels[4:12, 4:12] += 60
    if channel is None:
        pixels[:, :8] += 120
    else:
        pixels[..., channel] += 100
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@dataclass
class Site:
    """What a trainer works on."""

    root: Path
    manifest: Manifest
    samples: tuple[FrozenSample, ...]

    def round_dir(self, name: str, **changes: object) -> Path:
        """A round directory with its spec."""
        recipe = changes.pop("recipe", RECIPE)
        models = changes.pop("models_dir", self.root / "models")
        directory = self.root / "rounds" / name
        directory.mkdir(parents=True)
        spec = RoundSpec(
            round_id=1, kind=RoundKind.RESHAPE, reason="test", base_version=1, factory_version=1, candidate_version=2,
            generation=0, classes=self.manifest.classes, samples=self.samples, samples_digest="", recipe=recipe,
            models_dir=str(models), buffer_path=str(self.root / "edgetune.db"), serving_threads=1, created_at="",
        )  # fmt: skip
        (directory / "spec.json").write_bytes(to_json(replace(spec, **changes)))
        return directory


def make_site(root: Path, *, classes: Sequence[str] = CLASSES, each: int = 40, builder: str = "tiny_nets:tiny") -> Site:
    """A site whose buffer holds `each` samples of every class; the model knows red, green and blue."""
    buffer = Buffer(
        root / "edgetune.db",
        BufferPolicy(
            quota_bytes=2**28, validation_share=0.2, holdout_share=0.2, validation_min=1, holdout_min=1,
            new_classes="accept",
        ),
        clock=SystemClock(),
    )  # fmt: skip
    buffer.open()
    images = [(label, picture(label, number), f"{label}{number}") for label in classes for number in range(each)]
    buffer.add([
        NewSample(
            digest=digest(data), image=data, width=16, height=16, label=label, label_source=LabelSource.FOLDER,
            group=group, origin=group, taken_at_s=0.0,
        )
        for label, data, group in images
    ])  # fmt: skip
    samples = buffer.freeze(1)
    (root / "models").mkdir()
    buffer.close()
    manifest = import_model(
        root / "models", architecture=builder, weights=None, classes=CLASSES, preprocess=SIZE, version=1,
        allow_random=True, timing_runs=2,
    )  # fmt: skip
    return Site(root, manifest, samples)


def start_trainer(directory: Path, *, args: Sequence[str] = (), **environment: str) -> subprocess.Popen[str]:
    """The real trainer process."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    return subprocess.Popen(
        [sys.executable, "-m", "edgetune.trainer", str(directory), *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def run_trainer(directory: Path, **environment: str) -> tuple[int, list[dict[str, object]], str]:
    """Run the real trainer to its end: exit code, what it said, stderr."""
    process = start_trainer(directory, **environment)
    out, err = process.communicate(timeout=300)
    return process.returncode, [json.loads(line) for line in out.splitlines()], err


def read_manifest(directory: Path) -> Manifest:
    """manifest.json of a version."""
    return from_json(Manifest, (directory / "manifest.json").read_bytes())


class RecordingControl(Control):
    """A control that keeps every word, and asks for a stop once the given numbers of steps were done."""

    def __init__(self, *, stop_after: Sequence[int] = ()) -> None:
        self._lines = io.StringIO()
        self._ticks = itertools.count(step=10)
        super().__init__(self._lines, now_s=lambda: next(self._ticks), sleep=lambda _: None)
        self._stop_after = set(stop_after)
        self._steps = 0

    def pace(self) -> None:
        """Between two steps: no sleep; the stop takes effect after the next step."""
        self._steps += 1
        if self._steps in self._stop_after:
            self.stop()

    @property
    def said(self) -> list[dict[str, Any]]:
        """Every line so far."""
        return [json.loads(line) for line in self._lines.getvalue().splitlines()]


def run_here(directory: Path, control: RecordingControl | None = None) -> tuple[TrainerOutcome, str, str]:
    """Run a round in this process: outcome, message, hint. Much faster than the real trainer, which imports torch."""
    spec = from_json(RoundSpec, (directory / "spec.json").read_bytes())
    return _attempt(directory, spec, control or RecordingControl())


def draft_manifest(architecture: str, count: int, preprocess: Preprocess) -> Manifest:
    """What the engine needs to know of a model that no round made."""
    return Manifest(
        version=1, kind="factory", architecture=architecture, classes=tuple(f"class{i}" for i in range(count)),
        preprocess=preprocess, parent=None, generation=0, round_id=None, created_at="", files={},
        cost=Cost(parameters=0, macs=0, onnx_bytes=0),
    )  # fmt: skip


def generated_images(count: int, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """Noise of different brightness and colour, uint8 [count, H, W, 3]."""
    rng = np.random.default_rng(7)
    noise = rng.integers(0, 256, (count, preprocess.height, preprocess.width, 3))
    tint = rng.uniform(0.2, 1.0, (count, 1, 1, 3))
    return np.asarray(noise * tint, dtype=np.uint8)
