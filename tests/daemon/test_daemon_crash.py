"""The daemon is killed at every durable step in turn, from the first sample to the sweep after the second round."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import picture, publish_factory
from site_on_disk import COLOURS, Site, drop

PLAY = Path(__file__).parent / "crash_play.py"
SAMPLES = 60


def prepare(root: Path) -> None:
    """A factory model, an inbox for a first round, and pictures for a second one."""
    publish_factory(root / "state")
    drop(root, SAMPLES // 2)
    (root / "more").mkdir()
    for i in range(1000, 1000 + 2 * SAMPLES):
        (root / "more" / f"{i}.json").write_text(json.dumps({"group": f"more{i}"}))
        (root / "more" / f"{i}.png").write_bytes(picture(COLOURS["dog"], i))


def live(root: Path, **environment: str) -> int:
    """Let the board live until its goal or its death; the exit code."""
    done = subprocess.run(
        [sys.executable, str(PLAY), str(root)],
        env={**os.environ, **environment},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()[-3000:]
    return done.returncode


def inspect(root: Path) -> dict[str, int]:
    """Start once more, look at everything, and say what is there."""

    async def look() -> dict[str, int]:
        async with Site(root, new_samples=1000) as site:
            assert await site.daemon.store(site.daemon.buffer.check, full=True) == []
            assert await site.daemon.store(site.daemon.models.check) == []
            await site.take_all()
            await site.tick(3)
            stats = await site.daemon.store(site.daemon.buffer.stats)
            rows = await site.daemon.store(site.daemon.history.rounds, 20)
            assert all(row["ended_at_s"] is not None for row in rows)
            assert stats.pinned == 0
            served = site.daemon.serving.served.version
            assert served == site.daemon.models.current()
            assert not list((root / "state" / "models").glob("*.tmp"))
            assert list((root / "state" / "rounds").glob("*/checkpoint*")) == []
            promoted = sum(row["outcome"] == "promoted" for row in rows)
            return {"samples": stats.samples, "served": served or 0, "promoted": promoted}

    return asyncio.run(look())


def steps(root: Path) -> list[str]:
    """The names of the durable steps of a life without a crash, in order."""
    prepare(root)
    trace = root / "trace"
    assert live(root, EDGETUNE_FAULT_TRACE=str(trace)) == 0
    assert_whole(inspect(root))
    return trace.read_text().splitlines()


def assert_whole(found: dict[str, int]) -> None:
    """No sample is missing or there twice, and at least two rounds were promoted and recorded."""
    assert found["samples"] == 3 * SAMPLES
    assert found["promoted"] >= 2
    assert found["served"] >= 3


def crash_at(root: Path, n: int) -> bool:
    """Die at step n (unless this life was shorter), live on, and nothing is missing."""
    prepare(root)
    died = live(root, EDGETUNE_FAULT=str(n)) == -signal.SIGKILL
    assert live(root) == 0
    assert_whole(inspect(root))
    shutil.rmtree(root)
    return died


def edges(names: list[str]) -> list[int]:
    """All steps but those inside a run of the same one: removing the 30th file of a batch is like the 29th."""
    last = len(names) - 1
    return [n for n, name in enumerate(names) if n in (0, last) or names[n - 1] != name or names[n + 1] != name]


def test_a_death_at_some_steps_loses_nothing(tmp_path: Path) -> None:
    """A sample of the steps; the slow test takes every one."""
    total = len(steps(tmp_path / "whole"))
    assert total > 20
    for n in (0, total // 4, total // 2, 3 * total // 4):
        assert crash_at(tmp_path / str(n), n)


@pytest.mark.slow
def test_a_death_at_any_step_loses_nothing(tmp_path: Path) -> None:
    """Every durable step of ingest, round, publication, promotion and sweep, one life each."""
    chosen = edges(steps(tmp_path / "whole"))
    deaths = [crash_at(tmp_path / str(n), n) for n in chosen]
    assert sum(deaths) > 0.9 * len(chosen)
