"""
One board's life in a process that may die at any durable step: ingest, rounds, promotion, sweep, a class that comes back, an
imprint.

Run as `python crash_play.py ROOT`; with EDGETUNE_FAULT=n it kills itself at the n-th faultpoint.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from fakes import FakeTrainer  # noqa: E402 - found by the path above
from site_on_disk import Site  # noqa: E402

KNOWS = np.eye(3, dtype=np.float32) * 0.05  # red is cat, green is dog, blue is owl
FORGOT = KNOWS * np.array([1, 1, 0], dtype=np.float32)  # blue is anything but owl
GOAL = 4  # a round, a round for the class that is back, an imprint


class Trainer(FakeTrainer):
    """Its first candidate has forgotten the class that the site does not show."""

    async def start(self, round_dir: Path, *, nice: int, oom_score_adj: int) -> None:
        """Publish it."""
        is_first = '"candidate_version": 2' in (round_dir / "spec.json").read_text()
        self._weights = FORGOT if is_first else None
        await super().start(round_dir, nice=nice, oom_score_adj=oom_score_adj)


def arrive(root: Path, served: int | None) -> None:
    """What comes before the camera once a version is served: `owls` that nobody labels, and `foxes` by the folder."""
    inbox = root / "state" / "inbox"
    if served == GOAL - 2:
        for path in sorted((root / "owls").iterdir()):  # sidecars before their images
            path.rename(inbox / path.name)
    if served == GOAL - 1 and (root / "foxes").exists():
        (root / "foxes").rename(inbox / "fox")


async def live(root: Path) -> None:
    """Go on until the last version is served and its round recorded, wherever the last process died."""
    triggers = {"watch_interval": "5s"}
    async with Site(root, make_trainer=Trainer, classes={"accepted": ["fox"]}, triggers=triggers) as site:
        for _ in range(600):
            served = site.daemon.serving.served.version
            if served is not None and served >= GOAL and site.state.value == "idle":
                return
            assert site.daemon.inbox is not None
            site.daemon.inbox.wake.set()
            await site.tick()
            await asyncio.sleep(0.005)
            if site.state.value == "idle":
                arrive(root, served)
        raise SystemExit(f"stuck: {site.daemon.rounds.machine} {site.daemon.want}")


if __name__ == "__main__":
    asyncio.run(live(Path(sys.argv[1])))
