"""The images of a site, as an inbox that needs no files: what it has handed out and nobody has committed it keeps."""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from edgetune.clock import Clock
from edgetune.device.batch import Batch
from edgetune.simulate.scenario import Scenario
from edgetune.simulate.tiny import SIDE
from edgetune.types import LabelSource, NewSample

_SCAN_S = 600.0  # between two looks that no image asked for
_BATCH = 256
STORED_BYTES = 32  # of an image in a simulated buffer


class Camera:
    """What comes to be seen: images at random moments, more of them when the site is busy."""

    def __init__(self, scenario: Scenario, *, group_block_s: float, wall_s: Callable[[], float]) -> None:
        """Nothing has been seen yet; `wall_s` is what the board believes the time to be."""
        self._scenario, self._group_block_s, self._wall_s = scenario, group_block_s, wall_s
        self._random = random.Random(f"camera {scenario.seed}")
        self.waiting: deque[tuple[Path, NewSample]] = deque()  # in the inbox, not committed
        self.seen = 0
        self.news: asyncio.Event | None = None  # is set when an image has come

    def watch(self, elapsed_s: float, seconds: float) -> None:
        """Let so many seconds pass before `elapsed_s`, in which the camera is on."""
        mean = self._scenario.arrivals_per_h / 3600 * seconds * self._scenario.activity(elapsed_s)
        count = self._poisson(mean)
        for _ in range(count):
            self._see()
        if count and self.news is not None:
            self.news.set()

    def _poisson(self, mean: float) -> int:
        """Knuth's way, in parts for which its product does not vanish."""
        count, left = 0, mean
        while left > 0:
            part, left = min(left, 30.0), left - 30.0
            product, floor = self._random.random(), math.exp(-part)
            while product > floor:
                count += 1
                product *= self._random.random()
        return count

    def _see(self) -> None:
        self.seen += 1
        label = self._random.choice(self._scenario.classes)
        is_labelled = self._random.random() < self._scenario.labelled
        digest = hashlib.sha256(f"{self._scenario.seed} {self.seen}".encode()).hexdigest()
        wall_s = self._wall_s()
        folder = label if is_labelled else "camera"
        block = f"{folder}:{math.floor(wall_s / self._group_block_s)}" if self._group_block_s > 0 else digest
        sample = NewSample(
            digest=digest,
            image=bytes.fromhex(digest),
            width=SIDE,
            height=SIDE,
            label=label if is_labelled else None,
            label_source=LabelSource.FOLDER if is_labelled else None,
            group=block,
            origin=f"{folder}/{self.seen}.jpg",
            taken_at_s=wall_s,
        )
        self.waiting.append((Path(sample.origin), sample))


class SimulatedInbox:
    """The inbox as the daemon sees it, over a camera that outlives restarts."""

    def __init__(self, camera: Camera, clock: Clock, *, taken: Callable[[int], None]) -> None:
        """Nothing has been looked at; `taken` is told how many images a commit has brought into the buffer."""
        self._camera, self._clock, self._told = camera, clock, taken
        self._looked_s = clock.now_s()
        self.wake = asyncio.Event()
        self.problems: tuple[str, ...] = ()
        self.quarantined = 0
        self.watch = "simulated"

    @property
    def waiting(self) -> int:
        """Images that were seen and are not yet committed."""
        return len(self._camera.waiting)

    def start(self) -> None:
        """Hear of images."""
        self._camera.news = self.wake

    def stop(self) -> None:
        """Hear no more."""
        self._camera.news = None

    def due_s(self) -> float:
        """The next scan."""
        return self._looked_s + _SCAN_S

    def collect(self) -> Batch:
        """What waits."""
        self._looked_s = self._clock.now_s()
        items = tuple(self._camera.waiting)[:_BATCH]
        return Batch(items=items, has_more=len(self._camera.waiting) > len(items))

    def committed(self, paths: Iterable[Path]) -> None:
        """These are in the buffer."""
        done = set(paths)
        self._told(len(done))
        left = [item for item in self._camera.waiting if item[0] not in done]
        self._camera.waiting.clear()
        self._camera.waiting.extend(left)

    def returned(self, paths: Iterable[Path]) -> None:
        """They wait on."""
