"""The daemon is killed at every durable step in turn, from the first sample to the record of an imprint."""

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
from crash_play import GOAL, KNOWS
from fakes import picture, publish_factory
from site_on_disk import COLOURS, Site, drop

from edgetune.store.database import scalar

PLAY = Path(__file__).parent / "crash_play.py"
SAMPLES = 60
ANSWERED = "SELECT count(*) FROM answers WHERE model_version >= 3 AND NOT was_labelled"  # not by one that was adapted
FACTORYS_WORD = "SELECT count(DISTINCT sample_id), count(*) FROM labels WHERE source = 'factory'"


def prepare(root: Path) -> None:
    """A factory model that knows owls, an inbox for a first round, and pictures of owls and foxes for later."""
    publish_factory(root / "state", ("cat", "dog", "owl"), KNOWS)
    drop(root, SAMPLES // 2)
    for folder, colour, start in (("owls", COLOURS["owl"], 1000), ("foxes", (200, 200, 30), 2000)):
        (root / folder).mkdir()
        for i in range(start, start + SAMPLES // 2):
            (root / folder / f"{i}.json").write_text(json.dumps({"group": f"{folder}{i}"}))
            (root / folder / f"{i}.png").write_bytes(picture(colour, i))


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
        async with Site(root, new_samples=1000, triggers={"new_class_samples": 1000}) as site:
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
            assert not list((root / "state" / "rounds").glob("*.gone"))
            buffer = site.daemon.buffer
            named, said = await site.daemon.store(lambda: buffer.database.execute(FACTORYS_WORD).fetchone())
            return {
                "samples": stats.samples,
                "served": served or 0,
                "promoted": sum(row["outcome"] == "promoted" for row in rows),
                "imprints": sum(row["kind"] == "imprint" for row in rows),
                "named": named,
                "said": said,
                "watched": len(site.daemon.watching._memory.watched.reference),
                "answered": await site.daemon.store(lambda: scalar(buffer.database, ANSWERED)),
            }

    return asyncio.run(look())


def steps(root: Path) -> list[str]:
    """The names of the durable steps of a life without a crash, in order."""
    prepare(root)
    trace = root / "trace"
    assert live(root, EDGETUNE_FAULT_TRACE=str(trace)) == 0
    assert_whole(inspect(root))
    return trace.read_text().splitlines()


def assert_whole(found: dict[str, int]) -> None:
    """No sample is missing or there twice, the rounds were promoted and recorded, and each word was said once."""
    assert found["samples"] == 2 * SAMPLES
    assert found["promoted"] >= GOAL - 1
    assert found["served"] >= GOAL
    assert found["imprints"] == 1
    assert found["named"] == found["said"] >= 6
    assert found["watched"] == found["answered"]


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
    """A sample of the steps, and the commit that labels what has come back; the slow test takes every one."""
    names = steps(tmp_path / "whole")
    watches = [n for n, name in enumerate(names) if name == "returning.committed"]
    assert {"watching.committed", "round.begin.committed", "round.end.committed"} <= set(names)
    for n in (0, watches[len(watches) // 2], len(names) // 2):
        assert crash_at(tmp_path / str(n), n)
    crash_at(tmp_path / "late", len(names) - 5)  # where a life was shorter than the first it is whole all the same


@pytest.mark.slow
def test_a_death_at_any_step_loses_nothing(tmp_path: Path) -> None:
    """Every durable step of ingest, round, publication, promotion, sweep, watch and imprint, one life each."""
    chosen = edges(steps(tmp_path / "whole"))
    deaths = [crash_at(tmp_path / str(n), n) for n in chosen]
    assert sum(deaths) > 0.9 * len(chosen)
