"""A state directory with a factory model, an inbox full of pictures, and a daemon on fakes around them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import yaml
from fakes import FakeClock, FakeSensors, FakeTrainer, picture, publish_factory

from edgetune import config as configuration
from edgetune.daemon.core import Daemon
from edgetune.daemon.service import DaemonService
from edgetune.types import RoundState

COLOURS = {"cat": (200, 30, 30), "dog": (30, 200, 30), "owl": (30, 30, 200)}
CONFIG = """
inbox: {settle: 0s, scan_interval: 1s, watch: poll, batch: 64}
buffer: {validation: 20%, holdout: 30%}
triggers:
  new_samples: 20
  new_class_samples: 5
  cooldown: 60s
  returned_class_sightings: 6
  returned_class_window: 50
  returned_class_interval: 5s
gate: {holdout_min: 10, accuracy_risk_max: 50pp, class_drop_max: 50pp}
probation: {duration: 1h, feedback_min: 5}
serving: {socket_group: null, threads: 1, versions_kept: 2}
budgets: {interval: 1s, stall: 60s, stop_grace: 30s, round_time_max: 10min, paused_max: 5min}
"""


def write_config(root: Path, new_samples: int = 20, budgets: str = "", **sections: dict[str, Any]) -> Path:
    """config.yaml with everything below `root`; `budgets` and keys of other sections are set on top of the others."""
    path = root / "config.yaml"
    paths = f'paths: {{state_dir: "{root}/state", runtime_dir: "{root}/run"}}\n'
    config: dict[str, Any] = yaml.safe_load(CONFIG)
    config["triggers"]["new_samples"] = new_samples
    config["budgets"].update(yaml.safe_load(f"{{{budgets}}}"))
    for name, keys in sections.items():
        config.setdefault(name, {}).update(keys)
    path.write_text(paths + yaml.safe_dump(config))
    return path


def put(root: Path, name: str, data: bytes, sidecar: dict[str, Any]) -> None:
    """Put a picture with its sidecar into the inbox as a careful camera does: under their names when they are whole."""
    path = root / "state" / "inbox" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for whole, content in ((path.with_suffix(".json"), json.dumps(sidecar).encode()), (path, data)):
        part = whole.with_name(f"{whole.name}.part")
        part.write_bytes(content)
        part.rename(whole)


def drop(root: Path, count: int, *labels: str, start: int = 0) -> set[str]:
    """Put so many pictures of each class into the inbox, each a group of its own; their names."""
    names = set()
    for label in labels or ("cat", "dog"):
        for i in range(start, start + count):
            name = f"{label}/{i}.png"
            put(root, name, picture(COLOURS[label], i), {"group": f"{label}{i}"})
            names.add(name)
    return names


def drop_unlabelled(root: Path, count: int, colour: str, *, start: int = 0) -> None:
    """Put so many pictures into the inbox of which nobody says what they show, each a group of its own."""
    for i in range(start, start + count):
        put(root, f"{colour}-{i}.png", picture(COLOURS[colour], 10_000 + i), {"group": f"unlabelled {colour}{i}"})


def held(clock: FakeClock) -> FakeTrainer:
    """A trainer that goes on until it is told otherwise."""
    return FakeTrainer(clock, is_held=True)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Play a scene."""
    asyncio.run(work)


class Site:
    """A daemon on fakes, with hands on its world."""

    def __init__(
        self,
        root: Path,
        *,
        new_samples: int = 20,
        budgets: str = "",
        make_trainer: Callable[[FakeClock], FakeTrainer] = FakeTrainer,
        **sections: dict[str, Any],
    ) -> None:
        self.root, self.clock = root, FakeClock()
        self.sensors = FakeSensors(self.clock)
        self.trainers: list[FakeTrainer] = []
        if not (root / "state" / "models").exists():
            publish_factory(root / "state")
        path = write_config(root, new_samples, budgets, **sections)
        self.daemon = Daemon(configuration.load(path), path, clock=self.clock, sensors=self.sensors)

        def make() -> FakeTrainer:
            self.trainers.append(make_trainer(self.clock))
            return self.trainers[-1]

        self.daemon.rounds._make_trainer = make
        self._is_open = False

    async def __aenter__(self) -> Site:  # noqa: PYI034 - Self is of Python 3.11
        await self.daemon.open()
        self._is_open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._is_open:
            await self.daemon.close()

    async def take_all(self) -> None:
        """Let the inbox run dry."""
        assert self.daemon.ingest is not None
        assert self.daemon.inbox is not None
        for _ in range(200):
            self.clock.advance(2)
            self.daemon.inbox.wake.set()
            await asyncio.sleep(0.005)
            if not list((self.root / "state" / "inbox").rglob("*.png")):
                return
        raise AssertionError("the inbox was not taken")

    async def tick(self, times: int = 1, seconds: float = 1.0) -> None:
        """Let time pass and the daemon look."""
        for _ in range(times):
            self.clock.advance(seconds)
            await self.daemon.tick()
            await asyncio.sleep(0.002)

    async def until(self, *states: RoundState, ticks: int = 60, seconds: float = 1.0) -> None:
        """Tick until the round machine is in one of the states."""
        for _ in range(ticks):
            if self.state in states:
                return
            await self.tick(seconds=seconds)
            await asyncio.sleep(0.01)
        raise AssertionError(f"in {self.state} after {ticks} ticks: {self.daemon.rounds.machine}")

    async def until_served(self, version: int, ticks: int = 80) -> None:
        """Tick until this version is served."""
        for _ in range(ticks):
            if self.daemon.serving.served.version == version:
                return
            await self.tick()
            await asyncio.sleep(0.01)
        raise AssertionError(f"version {self.daemon.serving.served.version} is served, not {version}")

    async def begin_round(self) -> None:
        """With so many cats and dogs a round is under way, as long as its trainer is held."""
        drop(self.root, 40)
        await self.take_all()
        await self.until(RoundState.TRAINING)

    async def serve_second(self) -> None:
        """With so many cats and dogs a first round is promoted."""
        drop(self.root, 40)
        await self.take_all()
        await self.until_served(2)

    async def rows(self, **filters: Any) -> list[dict[str, Any]]:
        """Of the buffer."""
        return await DaemonService(self.daemon).data_samples(
            **{"label": None, "split": None, "labelled": None, "limit": 1000, "offset": 0, **filters}
        )

    async def events(self, kind: str) -> list[dict[str, Any]]:
        """Of one kind."""
        return [event for event in await self.daemon.events.after(0, 1000) if event["kind"] == kind]

    @property
    def state(self) -> RoundState:
        """Of the round machine."""
        return self.daemon.rounds.machine.state
