"""What the served model says about unlabelled images, and what comes of it: real store, real engines, fake trainer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
from fakes import picture, publish_factory
from site_on_disk import Site, drop, drop_unlabelled

from edgetune.cli.words import as_text, describe
from edgetune.daemon import metrics
from edgetune.daemon.service import DaemonService
from edgetune.daemon.watching import WatchPolicy
from edgetune.decide.drift import DriftPolicy
from edgetune.types import Split

KNOWS = np.array([[1, 0], [0, 1], [0, 0]], dtype=np.float32) * 0.02  # red is cat, green is dog; blue says nothing
BROKEN = np.array([[np.inf, 0], [0, 1], [0, 0]], dtype=np.float32)
POLICY = WatchPolicy(interval_s=5, window=60, drop_max=0.1, drift=DriftPolicy(warm_up=40, window=30, cool_down=20))


class Lookout(Site):
    """A site whose served model is watched closely."""

    def __init__(self, root: Path, policy: WatchPolicy | None = POLICY, **changes: Any) -> None:
        if not (root / "state" / "models").exists():
            publish_factory(root / "state", ("cat", "dog"), KNOWS)
        super().__init__(root, **changes)
        self.daemon.watching.policy = policy

    async def look(self, times: int = 1) -> None:
        """Let so many looks be due and end."""
        for _ in range(times):
            await self.tick(seconds=6)
            task = self.daemon.watching._look_task
            if task is not None:
                await asyncio.wait([task])
        await self.tick(seconds=0.1)

    async def events(self, kind: str) -> list[dict[str, Any]]:
        """Of one kind."""
        return [event for event in await self.daemon.events.after(0, 1000) if event["kind"] == kind]

    async def rows(self, **filters: Any) -> list[dict[str, Any]]:
        """Of the buffer."""
        return await DaemonService(self.daemon).data_samples(
            **{"label": None, "split": None, "labelled": None, "limit": 1000, "offset": 0, **filters}
        )

    async def answers(self) -> dict[int, int]:
        """Sample -> version that answered it."""
        found = await self.daemon.store(
            lambda: self.daemon.buffer.database.execute("SELECT sample_id, model_version FROM answers").fetchall()
        )
        return dict(found)

    @property
    def watching(self) -> dict[str, Any]:
        """As `status` has it."""
        return self.daemon.watching.summary()


def drop_dull(root: Path, count: int, *, start: int = 0) -> None:
    """Unlabelled pictures in which the model is not sure of anything: a camera at dusk."""
    for i in range(start, start + count):
        (root / "state" / "inbox" / f"dull-{i}.json").write_text(json.dumps({"group": f"dull{i}"}))
        (root / "state" / "inbox" / f"dull-{i}.png").write_bytes(picture((60, 55 + i % 9, 60), 50_000 + i))


def run(work: Coroutine[Any, Any, None]) -> None:
    """Play a scene."""
    asyncio.run(work)


def test_unlabelled_samples_are_answered_beside_the_service_and_asked_about(tmp_path: Path) -> None:
    """The doubtful ones first, each with why, and how to label it; what is labelled is not asked about again."""

    async def play() -> None:
        async with Lookout(tmp_path) as site:
            drop_unlabelled(tmp_path, 20, "cat")
            drop_dull(tmp_path, 6)
            await site.take_all()
            await site.look()
            everything = {row["id"] for row in await site.rows()}
            assert await site.answers() == dict.fromkeys(everything, 1)
            service = DaemonService(site.daemon)
            dull = {row["id"] for row in await site.rows(split=Split.TRAINING) if row["origin"].startswith("dull")}
            assert dull
            answer = await service.data_next(count=len(dull))
            assert answer["model_version"] == 1
            asked = [row for row in answer["samples"] if row["guess"] is not None]
            assert asked[0]["sample"] in dull
            assert asked[0]["why"].startswith("margin 0.0")
            assert asked[0]["how"] == f"edgetune data label {asked[0]['sample']} CLASS"
            drawn = [row for row in answer["samples"] if row["guess"] is None]
            assert "drawn at random for the hold-out, which has 0 of 10 labelled samples" in drawn[0]["why"]
            assert await service.data_next(count=len(dull)) == answer
            await service.data_label(str(asked[0]["sample"]), "cat")
            again = await service.data_next(count=100)
            assert asked[0]["sample"] not in {row["sample"] for row in again["samples"]}

    run(play())


def test_the_accuracy_on_unlabelled_images_is_estimated_with_its_error(tmp_path: Path) -> None:
    """Unknown, with the reason, until there are enough answers; then in status and metrics, and kept for later."""

    async def play() -> None:
        async with Lookout(tmp_path, new_samples=1000) as site:
            await site.look()
            assert "0 of 50 answers to unlabelled images" in site.watching["why_unknown"]
            drop(tmp_path, 80)
            drop_unlabelled(tmp_path, 35, "cat")
            drop_unlabelled(tmp_path, 35, "dog")
            await site.take_all()
            await site.look(8)
            found = site.watching["estimate"]
            assert found["unlabelled"] == 60
            assert found["labelled"] == len([r for r in await site.rows(labelled=True) if r["split"] != "training"])
            assert found["labelled_accuracy"] == 1
            assert found["accuracy"] > 0.9
            assert 0.005 < found["error"] < 0.2
            words = as_text(describe(await site.daemon.status()))
            assert "right on the last 60 unlabelled images, by its calibrated confidence (100.0 % on" in words
            figures = {name: values for name, _, _, values in metrics.collect(site.daemon)}
            assert figures["edgetune_estimated_accuracy"] == [({}, found["accuracy"])]
            assert figures["edgetune_drift"] == [({}, 0.0)]
            (kept,) = await site.daemon.store(site.daemon.history.estimates)
            assert kept["model_version"] == 1
            assert 0 <= kept["accuracy"] <= 1

    run(play())
