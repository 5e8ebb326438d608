"""The day's account, limits that change during a round, and clocks that jump, around a whole daemon."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from fakes import FakeClock, FakeTrainer
from site_on_disk import Site, drop, write_config

from edgetune import config as configuration
from edgetune.cli.words import as_text, describe
from edgetune.daemon.ledger import Ledger
from edgetune.daemon.settings import never_affordable, unmeasurable
from edgetune.store.written import disk_written_bytes, process_written_bytes
from edgetune.types import Measurement, Quantity, RoundState

S = RoundState
MIB = 2**20


def held(clock: FakeClock) -> FakeTrainer:
    """A trainer that goes on until it is told otherwise."""
    return FakeTrainer(clock, is_held=True)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Play a scene."""
    asyncio.run(work)


@pytest.fixture
def berlin() -> Iterator[None]:
    """A place with daylight saving."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Europe/Berlin"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def test_a_used_up_day_pauses_the_round_and_the_next_day_goes_on(tmp_path: Path) -> None:
    """4 W from the fake board: 4 Wh are used in an hour, and midnight brings another 4; also over a restart."""

    async def play() -> None:
        drop(tmp_path, 40)
        budgets = "energy_per_day_max: 100J, paused_max: 40h, round_time_max: 40h"
        async with Site(tmp_path, make_trainer=held, budgets=budgets) as site:
            await site.take_all()
            await site.until(S.TRAINING)
            await site.until(S.PAUSED)
            used_j = site.daemon.budgeting.ledger.account.trained_j
            assert 100 < used_j < 110
            assert "energy_day_j value=" in (await site.daemon.status())["round"]["message"]
            text = as_text(describe(await site.daemon.status()))
            assert "Wh of 0.0278Wh used while training" in text
            assert "energy of the day's rounds 0.0" in text
            site.clock.set_wall(site.clock.wall_s() + 10 * 365 * 86_400)
            await site.tick(3)
            assert site.state is S.PAUSED  # ten years later is no new day
            site.clock.set_wall(site.clock.wall_s() - 10 * 365 * 86_400)
        async with Site(tmp_path, make_trainer=held, budgets=budgets) as site:
            site.clock.set_wall(1.7e9 + 3600)
            await site.tick(3)
            assert site.daemon.budgeting.ledger.account.trained_j >= used_j
            assert site.state is S.SUSPENDED
            site.clock.set_wall(1.7e9 + 86_400)
            await site.until(S.TRAINING)
            assert site.daemon.budgeting.ledger.account.trained_j < 20

    run(play())


def test_writes_are_counted_from_both_processes_and_held_against_the_day(tmp_path: Path) -> None:
    """The daemon's and the trainer's, and what the trainer tells of its end; a trainer's counter begins anew."""
    counters: dict[int | None, int] = {None: 0}
    ledger = Ledger(tmp_path, written=counters.get, disk_written=lambda _: None)
    ledger.load(None, wall_s=1.7e9, service_s=0.0)

    def take(pid: int | None) -> int:
        ledger.take(None, is_training=pid is not None, trainer_pid=pid, now_s=0.0, wall_s=1.7e9, service_s=1.0)
        return ledger.account.written_bytes

    counters[None] = 5 * MIB
    assert take(None) == 5 * MIB
    counters[7] = 2 * MIB
    assert take(7) == 7 * MIB
    counters[7] = 3 * MIB
    assert take(7) == 8 * MIB
    ledger.trainer_ended(7, 9 * MIB)
    assert take(None) == 14 * MIB
    counters[8] = MIB
    assert take(8) == 15 * MIB
    assert ledger.measurements()[Quantity.WRITTEN_DAY_MIB].value == 15.0


def test_the_real_counters_grow_with_what_is_written(tmp_path: Path) -> None:
    """What this process syncs to a disk; skipped on a file system in memory, where nothing is written."""
    before = process_written_bytes()
    if before is None:
        pytest.skip("this kernel does not count a process's writes")
    if disk_written_bytes(tmp_path) is None:
        pytest.skip("the temporary directory is on no disk")
    with (tmp_path / "file").open("wb") as file:
        file.write(os.urandom(4 * MIB))
        file.flush()
        os.fsync(file.fileno())
    after, disk = process_written_bytes(), disk_written_bytes(tmp_path)
    assert after is not None
    assert disk is not None
    assert after - before >= 4 * MIB


def test_an_account_lasts_for_a_local_day_across_daylight_saving(tmp_path: Path, berlin: None) -> None:
    """25 October 2026 has 25 hours in Berlin, 29 March 2026 has 23: midnight is midnight."""
    del berlin
    ledger = Ledger(tmp_path, written=lambda _: 0, disk_written=lambda _: None)
    power = Measurement(value=1.0, source="test")
    for day_s in (1792879200.0, 1774738800.0):  # midnight in Berlin
        local = time.localtime(day_s)
        assert (local.tm_hour, local.tm_min) == (0, 0)
        hours = 25 if local.tm_mon == 10 else 23
        ledger.load(None, wall_s=day_s, service_s=0.0)
        for minute in range(hours * 60):
            at_s = 60.0 * minute
            ledger.take(power, is_training=True, trainer_pid=None, now_s=at_s, wall_s=day_s + at_s, service_s=at_s)
        assert ledger.account.trained_j == pytest.approx((hours * 60 - 1) * 60)
        at_s = hours * 3600.0
        ledger.take(power, is_training=True, trainer_pid=None, now_s=at_s, wall_s=day_s + at_s, service_s=at_s)
        assert ledger.account.trained_j == pytest.approx(60)


def test_a_limit_that_is_lowered_during_a_round_is_kept_from_the_next_tick(tmp_path: Path) -> None:
    """Reload: the trainer is slowed down at once, then paused, and goes on when the limit is raised again."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path, make_trainer=held, budgets="power_max: 9W, window: 10s") as site:
            await site.take_all()
            await site.until(S.TRAINING)
            await site.tick(12)
            assert site.daemon.budgeting.verdict.duty == 1.0
            write_config(tmp_path, budgets="power_max: 3W, window: 10s")
            await site.daemon.reload()
            await site.tick()
            assert site.daemon.budgeting.verdict.duty <= 0.1
            await site.until(S.PAUSED)
            assert "power_w value=4 limit=3" in (await site.daemon.status())["round"]["message"]
            write_config(tmp_path, budgets="power_max: 9W, window: 10s")
            await site.daemon.reload()
            await site.until(S.TRAINING)

    run(play())


def test_a_budget_that_this_board_can_never_keep_is_named_at_the_start_and_by_a_reload(tmp_path: Path) -> None:
    """In the log, the events and `status`; what is possible is not complained of, and predictions are served."""

    async def play() -> None:
        async with Site(tmp_path, budgets="memory_available_min: 900GiB") as site:
            (warning,) = (await site.daemon.status())["warnings"]
            assert "no round can ever run" in warning
            assert "budgets.memory_available_min leaves 0B" in warning
            assert "budget.impossible" in [event["kind"] for event in await site.daemon.events.after(0, 100)]
            write_config(tmp_path, budgets="disk_free_min: 900TiB")
            await site.daemon.reload()
            (warning,) = (await site.daemon.status())["warnings"]
            assert "budgets.disk_free_min is 900TiB" in warning
            write_config(tmp_path)
            await site.daemon.reload()
            assert (await site.daemon.status())["warnings"] == []

    run(play())


@pytest.mark.parametrize(
    ("text", "board_mib", "is_named"),
    [
        ("memory_available_min: 300MiB", 1024, False),
        ("memory_available_min: 900MiB", 1024, True),
        ("memory_available_min: 2GiB", 512, True),
        ("memory_available_min: 2GiB", None, False),
        ("memory_available_min: null", 512, False),
        ("disk_free_min: 16GiB", 512, True),
        ("disk_free_min: 1GiB", 512, False),
    ],
)
def test_what_no_round_could_keep_on_a_board_of_that_size(
    text: str, board_mib: float | None, *, is_named: bool
) -> None:
    """Where nothing is kept for others, or the size is not known, there is nothing to say; the disk here has 16 GiB."""
    problems = never_affordable(
        configuration.parse(f"budgets: {{{text}}}"), board_mib=board_mib, disk_mib=16 * 1024 if "disk" in text else None
    )
    assert len(problems) == is_named
    assert all(text.partition(":")[0] in problem for problem in problems)


def test_a_wall_comes_nearer_only_when_no_trainer_stands_before_it(tmp_path: Path) -> None:
    """Lowered by reload below what the trainer holds, the kernel would kill it: readings stop it, then the wall moves."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path, make_trainer=held, budgets="trainer_memory_max: 1GiB") as site:
            budgeting = site.daemon.budgeting
            placed: list[float | None] = []
            with mock.patch.object(budgeting.memory_wall, "limit", placed.append):
                await site.take_all()
                await site.until(S.TRAINING)
                for limit in ("600MiB", "2GiB", "500MiB"):
                    write_config(tmp_path, budgets=f"trainer_memory_max: {limit}")
                    await site.daemon.reload()
                    await site.tick()
                assert placed == [2048.0]
                await site.daemon.cancel()
                await site.until(S.COOLDOWN)
                await site.tick()
                assert placed == [2048.0, 500.0]

    run(play())


def test_serving_has_the_first_claim(tmp_path: Path) -> None:
    """Predictions that come late during a round slow the trainer down; without any nothing does."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path, make_trainer=held, serving={"latency_max": "50ms"}) as site:
            await site.take_all()
            await site.until(S.TRAINING)
            await site.tick(3)
            assert site.daemon.budgeting.verdict.duty == 1.0
            version = site.daemon.serving.served.version
            assert version is not None
            for _ in range(20):
                site.daemon.serving._count(version, 80.0)
            await site.tick()
            assert site.daemon.budgeting.verdict.duty == pytest.approx(0.62, abs=0.01)
            assert "99 of 100 predictions within 80ms, budget at most 50ms" in as_text(
                describe(await site.daemon.status())
            )

    run(play())


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("budgets: {mains_only: true}", "budgets.mains_only"),
        ("budgets: {battery_min: 40%}", "budgets.battery_min"),
        ("budgets: {memory_pressure_max: 20%}", "budgets.memory_pressure_max"),
        ("budgets: {cpu_pressure_max: 20%}", "budgets.cpu_pressure_max"),
        ("budgets: {io_pressure_max: 20%}", "budgets.io_pressure_max"),
        ("budgets: {writes_per_day_max: 2GiB}", "budgets.writes_per_day_max"),
        ("budgets: {energy_per_day_max: 20Wh}", "budgets.energy_per_day_max"),
        ("serving: {latency_max: 50ms}", "serving.latency_max"),
    ],
)
def test_every_budget_that_cannot_be_measured_is_named_at_the_start(text: str, key: str) -> None:
    """A board that measures nothing; each complaint begins with the key that needs the quantity."""
    problems = unmeasurable(configuration.parse(text), {})
    assert any(problem.startswith(f"{key} is set, but this board cannot measure") for problem in problems)
