"""The database refuses to be written for a while, in the middle of something: nothing is lost, and all goes on after it."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeTrainer, picture, publish_factory
from site_on_disk import COLOURS, Site, drop, drop_unlabelled, held, run
from test_daemon_returning import Forest
from test_daemon_watching import POLICY, Lookout, drop_dull

from edgetune.daemon.service import DaemonService
from edgetune.errors import StoreError
from edgetune.store.predictions import PredictionRow
from edgetune.types import RoundKind, RoundState

S = RoundState
RARE: dict[str, dict[str, Any]] = {"triggers": {"new_class_samples": 500}, "classes": {"accepted": ["owl"]}}


async def refuse(site: Site, what: str) -> None:
    """From now on SQLite refuses this statement, as with a full disk."""
    refusal = f"CREATE TEMP TRIGGER refusal BEFORE {what} BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
    await site.daemon.store(site.daemon.buffer.database.execute, refusal)


async def allow(site: Site) -> None:
    """There is room again."""
    await site.daemon.store(site.daemon.buffer.database.execute, "DROP TRIGGER refusal")


def test_a_round_that_could_not_be_begun_holds_no_samples(tmp_path: Path) -> None:
    """Its spec and its pins are gone with it, so that the next one is not refused for them."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path) as site:
            await refuse(site, "INSERT ON rounds")
            await site.take_all()
            await site.until(S.COOLDOWN)
            assert "database or disk is full" in site.daemon.rounds.machine.reason
            assert await site.daemon.store(site.daemon.buffer.frozen_rounds) == ()
            assert list((tmp_path / "state" / "rounds").glob("*/spec.json")) == []
            await allow(site)
            await site.until(S.IDLE, seconds=30)
            await site.until_served(2)

    run(play())


def test_an_end_that_could_not_be_written_down_is_written_later(tmp_path: Path) -> None:
    """The candidate is served meanwhile, and the next round waits for the record instead of failing."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path) as site:
            await refuse(site, "UPDATE ON rounds WHEN NEW.ended_at_s IS NOT NULL")
            await site.take_all()
            await site.until_served(2)
            drop(tmp_path, 60, start=100)
            await site.take_all()
            await site.tick(5)
            assert site.daemon.serving.served.version == 2
            assert len(site.trainers) == 1
            assert "no other begins before it is" in str((await site.daemon.status())["warnings"])
            await allow(site)
            await site.until_served(3)
            assert (await site.daemon.status())["warnings"] == []
            await site.tick(2)
            rows = await site.daemon.store(site.daemon.history.rounds)
            assert [(row["outcome"], row["ended_at_s"] is not None) for row in rows] == [("promoted", True)] * 2
            assert site.daemon.rounds.failures == 0

    run(play())


def test_a_round_without_a_row_holds_no_other_up(tmp_path: Path) -> None:
    """What can never be written is given up."""

    async def play() -> None:
        async with Site(tmp_path, make_trainer=held) as site:
            await site.begin_round()
            await site.daemon.store(site.daemon.buffer.database.execute, "DELETE FROM rounds")
            site.daemon.rounds._make_trainer = lambda: FakeTrainer(site.clock)
            site.trainers[0].finish()
            await site.until_served(2)
            drop(tmp_path, 60, start=100)
            await site.take_all()
            await site.until_served(3)

    run(play())


def test_an_imprint_that_cannot_begin_waits_as_any_round_does(tmp_path: Path) -> None:
    """It does not try at every tick."""

    async def play() -> None:
        drop(tmp_path, 30)
        drop(tmp_path, 14, "owl")
        async with Site(tmp_path, new_samples=1000, **RARE) as site:
            await refuse(site, "INSERT ON freezes")
            await site.take_all()
            await site.tick(40)
            assert site.daemon.want.kind is RoundKind.IMPRINT
            tries = [e for e in await site.daemon.events.after(0, 1000) if e["kind"] == "round.cooldown"]
            assert 1 <= len(tries) <= 2
            await allow(site)
            await site.tick(20, seconds=10)
            await site.until_served(2)

    run(play())


def test_thousands_of_failures_in_a_row_are_counted(tmp_path: Path) -> None:
    """The cool-down stays at its maximum; a power of the factor that is no number any more would end the daemon."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path) as site:
            site.daemon.rounds.failures = 5000
            await refuse(site, "INSERT ON rounds")
            await site.take_all()
            await site.until(S.COOLDOWN)
            left_s = site.daemon.rounds.cooldown_ends_s - site.daemon.service_time.now_s()
            assert left_s == pytest.approx(24 * 3600, abs=60)

    run(play())


def test_what_the_factory_model_has_named_is_counted_once_it_is_written(tmp_path: Path) -> None:
    """A commit that fails takes back the numbers in memory too."""

    async def play() -> None:
        async with Forest(tmp_path) as site:
            await site.forget_owls()
            await site.daemon.set_paused(True)
            drop_unlabelled(tmp_path, 30, "owl")
            await site.take_all()
            await refuse(site, "UPDATE ON state WHEN NEW.key = 'returning'")
            await site.daemon.set_paused(False)
            await site.look()
            assert await site.rows(label="owl") == []
            assert await site.daemon.store(site.daemon.buffer.check) == []
            assert (len(site.trainers), site.daemon.want.is_wanted) == (1, False), (
                "no round for labels that are not there"
            )
            await allow(site)
            await site.look()
            assert len(await site.rows(label="owl")) >= 6
            assert await site.daemon.store(site.daemon.buffer.check) == []

    run(play())


def test_a_directory_that_was_half_removed_is_gone_after_a_restart(tmp_path: Path) -> None:
    """The power went while an old round was cleared away."""

    async def play() -> None:
        leftover = tmp_path / "state" / "rounds" / "0001.gone"
        publish_factory(tmp_path / "state")
        leftover.mkdir(parents=True)
        (leftover / "trainer.log").write_text("of old")
        async with Site(tmp_path):
            assert not leftover.exists()

    run(play())


def test_a_fall_of_the_estimate_that_could_not_be_written_is_told_at_the_next_look(tmp_path: Path) -> None:
    """The estimate is the same then, but nobody has been told."""

    async def play() -> None:
        async with Lookout(tmp_path, replace(POLICY, drift=None), new_samples=1000) as site:
            drop(tmp_path, 80)
            drop_dull(tmp_path, 80)
            await refuse(site, "UPDATE ON state WHEN json_extract(NEW.value, '$.low_since') IS NOT NULL")
            await site.take_all()
            await site.look(12)
            assert await site.events("estimate.low") == []
            await allow(site)
            await site.look(2)
            assert len(await site.events("estimate.low")) == 1
            site.daemon.watching.policy = replace(POLICY, drift=None, drop_max=1.0)
            await site.look()
            assert len(await site.events("estimate.recovered")) == 1, "by the policy of now"

    run(play())


def test_predictions_that_cannot_be_written_hold_little_memory(tmp_path: Path) -> None:
    """The newest images are kept for a later label, the others let go; the answers stay."""

    async def play() -> None:
        async with Site(tmp_path) as site:
            await refuse(site, "INSERT ON predictions")
            serving = site.daemon.serving
            for i in range(100):
                serving.unsaved.add(
                    PredictionRow(prediction_id=str(i), model_version=1, label="cat", confidence=1.0, wall_s=1.0,
                                  digest="0" * 64, image=bytes(2**20), width=8, height=8)
                )  # fmt: skip
            await site.tick()
            assert "the database cannot be written" in str((await site.daemon.status())["warnings"])
            assert len(serving.unsaved.rows) == 100
            kept = [row.prediction_id for row in serving.unsaved.rows if row.image is not None]
            assert kept == [str(i) for i in range(100 - len(kept), 100)]
            assert sum(len(row.image or b"") for row in serving.unsaved.rows) <= 32 * 2**20
            await allow(site)
            await site.tick()
            assert serving.unsaved.rows == []

    run(play())


@pytest.mark.parametrize("what", ["UPDATE ON state", "INSERT ON state", "INSERT ON events", "INSERT ON freezes"])
def test_a_full_disk_ends_no_tick(tmp_path: Path, what: str) -> None:
    """Whatever a round, a cancelling operator or the end of a probation has to write down: it is late, and serving goes on."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path, make_trainer=held) as site:
            await site.take_all()
            await refuse(site, what)
            await site.tick(5)
            await site.tick(5, seconds=100)
            with contextlib.suppress(StoreError):
                await site.daemon.cancel()
            await site.tick(10, seconds=100)
            await allow(site)
            site.daemon.rounds._make_trainer = lambda: FakeTrainer(site.clock)
            for _ in range(100):
                if site.daemon.serving.served.version == 2:
                    break
                await site.tick(seconds=1 if site.state in (S.TRAINING, S.VERIFYING) else 1000)
                await asyncio.sleep(0.01)
            await site.tick(5)
            assert (await site.daemon.status())["probation"]["version"] == 2
            await refuse(site, what)
            await site.tick(5, seconds=3600)
            await allow(site)
            await site.tick(3, seconds=100)
            assert site.daemon.serving.trial.version is None
            assert site.daemon.books.trouble == ""

    run(play())


def test_a_roll_back_that_a_full_disk_prevents_comes_when_there_is_room(tmp_path: Path) -> None:
    """The version stays on trial until then."""

    async def play() -> None:
        async with Site(tmp_path) as site:
            await site.serve_second()
            await site.tick(2)
            assert site.daemon.serving.trial._record is not None
            site.daemon.serving.trial._record["baseline"] |= {"feedback": 100, "feedback_correct": 95}
            service = DaemonService(site.daemon)
            for i in range(20):
                answer = await service.predict(picture(COLOURS["cat"], i), top_k=1)
                await service.label_prediction(answer.prediction_id, "dog" if answer.label == "cat" else "cat")
            await refuse(site, "INSERT ON state WHEN NEW.key = 'generation'")
            await site.tick(3, seconds=11)
            assert (site.daemon.serving.served.version, site.daemon.serving.trial.version) == (2, 2)
            await allow(site)
            await site.tick(2, seconds=11)
            assert (site.daemon.serving.served.version, site.daemon.serving.trial.version) == (1, None)

    run(play())
