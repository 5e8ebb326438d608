"""What a round took is compared with its forecast, and the next round's forecast learns from it; a plan begins nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from fakes import FakeTrainer
from site_on_disk import Site, drop, write_config

from edgetune.daemon import forecasts
from edgetune.daemon.service import DaemonService
from edgetune.daemon.spending import Spending
from edgetune.errors import ConflictError
from edgetune.types import BoardHistory, Quantity, RoundFigures, RoundState, TrainerOutcome

WORKLOAD = {
    "kept_mib": 1.0, "largest_mib": 0.2, "mega_macs": 40.0, "grouped_mega_macs": 0.0, "layers": 20, "mega_weights": 0.3,
}  # fmt: skip
POINT = {"workload": WORKLOAD, "batch_size": 64, "threads": 2, "rest_mib": 280.0, "peak_mib": 420.0, "step_s": 0.2}
FORECAST = {
    "peak_mib": {"low": 350.0, "likely": 400.0, "high": 450.0}, "step_s": {"low": 0.1, "likely": 0.2, "high": 0.3},
    "duration_s": {"low": 1.0, "likely": 2.0, "high": 3.0}, "energy_j": None, "batch_size": 64, "accumulation": 1,
    "threads": 2, "update": "full", "fits": True, "reason": "", "calibrated_on": 0,
    "beside_mib": 0.0, "training": 1.0,
}  # fmt: skip
JOURNAL = {
    "starts": 1, "forecast": FORECAST,
    "measured": {"points": [POINT], "peak_mib": 440.0, "other_mib": 210.0, "stepping_s": 0.1, "slept_s": 0.0},
}  # fmt: skip


class Measuring(FakeTrainer):
    """Leaves in its journal what a real one would."""

    async def start(self, round_dir: Path, *, nice: int, oom_score_adj: int) -> None:
        """Write it, then do as always."""
        (round_dir / "journal.json").write_text(json.dumps(JOURNAL))
        await super().start(round_dir, nice=nice, oom_score_adj=oom_score_adj)


class Planning(Measuring):
    """Only plans."""

    def finish(self) -> None:
        """Exit with its outcome; no candidate."""
        self.end(TrainerOutcome.PLANNED, 21)


def test_a_finished_round_is_compared_and_learnt_from(tmp_path: Path) -> None:
    """In its row, in status, and in what the next round is told; also after a restart."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path, make_trainer=Measuring) as site:
            await site.take_all()
            await site.until_served(2)
            await site.tick()
            row = await DaemonService(site.daemon).round(1)
            assert row["details"]["forecast"] == FORECAST
            assert row["details"]["forecast_error"]["peak_mib"] == pytest.approx(0.1)
            last = (await site.daemon.status())["last_round"]
            assert last["actual"]["peak_mib"] == 440.0
        async with Site(tmp_path, make_trainer=Measuring) as site:
            drop(tmp_path, 40, start=100)
            await site.take_all()
            await site.until_served(3)
            spec = site.trainers[0].spec
            assert spec is not None
            assert [point.peak_mib for point in spec.history.points] == [420.0]
            assert spec.history.rounds[0].other_share == pytest.approx(0.5)

    asyncio.run(play())


@pytest.mark.parametrize(("limit", "goes_on"), [("460MiB", True), ("440MiB", False)])
def test_a_suspended_round_whose_plan_is_over_a_lowered_budget_is_given_up(
    tmp_path: Path, limit: str, *, goes_on: bool
) -> None:
    """Before a trainer is started for it, with the number and the key: its plan takes up to 450 MiB."""

    async def play() -> None:
        async with Site(tmp_path, make_trainer=lambda clock: Measuring(clock, is_held=True)) as site:
            await site.begin_round()
            site.sensors.values[Quantity.MEM_AVAILABLE_MIB] = 100.0
            await site.until(RoundState.SUSPENDED)
            write_config(tmp_path, budgets=f"trainer_memory_max: {limit}")
            await site.daemon.reload()
            site.sensors.values[Quantity.MEM_AVAILABLE_MIB] = 4000.0
            await site.until(RoundState.TRAINING, ticks=60)
            await site.tick(2)
            assert len(site.trainers) == 1 + goes_on
            if not goes_on:
                last = (await site.daemon.status())["last_round"]
                assert last["outcome"] == "will_not_fit"
                assert "up to 450 MiB of 440 (budgets.trainer_memory_max)" in last["message"]

    asyncio.run(play())


def test_no_trainer_is_started_where_a_bare_one_is_over_the_budget(tmp_path: Path) -> None:
    """A board that knows what Python and torch take refuses by that, rounds and plans alike, with the number and the key."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path, budgets="trainer_memory_max: 250MiB") as site:
            history = forecasts.learn(BoardHistory(), {"bare_mib": 266.4}, trained_s=1.0, trained_j=None)
            await site.daemon.store(site.daemon.history.set_state, forecasts.KEY, history)
            await site.take_all()
            await site.until(RoundState.COOLDOWN)
            row = await DaemonService(site.daemon).round(1)
            assert row["outcome"] == "will_not_fit"
            assert "at least 306 MiB of 250 (budgets.trainer_memory_max)" in row["message"]
            answer = await DaemonService(site.daemon).start_round(kind=None, force=True, dry_run=True)
            assert "306 MiB of 250" in answer["no_forecast"]
            assert site.trainers == []

    asyncio.run(play())


def test_a_dry_run_plans_and_begins_nothing(tmp_path: Path) -> None:
    """The forecast and the budgets are in the answer; no sample stays pinned, no round has begun, no directory is left."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path, new_samples=1000) as site:
            await site.take_all()
            site.daemon.planning.make_planner = lambda: Planning(site.clock)
            service = DaemonService(site.daemon)
            answer = await service.start_round(kind=None, force=True, dry_run=True)
            assert answer["forecast"] == FORECAST
            assert answer["budgets"]["duration_s"] == 600.0
            assert (await site.daemon.store(site.daemon.buffer.stats)).pinned == 0
            assert await service.rounds(10) == []
            assert site.state is RoundState.IDLE
            assert not (tmp_path / "state" / "rounds" / "plan").exists()

    asyncio.run(play())


def test_no_round_begins_while_one_is_planned(tmp_path: Path) -> None:
    """A second heavy process beside the first would be more than was planned for; a second plan is refused."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path, new_samples=20) as site:
            planner = Planning(site.clock, is_held=True)
            site.daemon.planning.make_planner = lambda: planner
            service = DaemonService(site.daemon)
            await site.take_all()
            if site.state is not RoundState.IDLE:
                pytest.fail("a round began before the plan was asked for")
            asked = asyncio.create_task(service.start_round(kind=None, force=True, dry_run=True))
            while "start" not in planner.said:  # noqa: ASYNC110 - the fake says when, in a list
                await asyncio.sleep(0.01)
            with pytest.raises(ConflictError, match="planned already"):
                await service.start_round(kind=None, force=True, dry_run=True)
            await site.tick(5)
            assert site.trainers == []
            assert any(word.startswith("duty") for word in planner.said), "it is paced as a round would be"
            planner.finish()
            assert (await asked)["forecast"] == FORECAST
            await site.until_served(2)

    asyncio.run(play())


@pytest.mark.parametrize("is_client_gone", [True, False])
def test_a_plan_that_nobody_waits_for_or_that_takes_too_much_ends(tmp_path: Path, *, is_client_gone: bool) -> None:
    """Its process is killed, and the next plan and the next round may begin."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path, new_samples=1000) as site:
            await site.take_all()
            planner = FakeTrainer(site.clock, is_held=True)
            site.daemon.planning.make_planner = lambda: planner
            service = DaemonService(site.daemon)
            asked = asyncio.create_task(service.start_round(kind=None, force=True, dry_run=True))
            while "start" not in planner.said:  # noqa: ASYNC110 - the fake says when, in a list
                await asyncio.sleep(0.01)
            if is_client_gone:
                asked.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asked
            else:
                site.sensors.values[Quantity.MEM_AVAILABLE_MIB] = 100.0
                await site.tick()
                assert "mem_available_mib value=100" in (await asked)["no_forecast"]
            assert "kill" in planner.said
            assert not site.daemon.planning.is_busy

    asyncio.run(play())


def test_a_round_in_pieces_teaches_its_steps_alone() -> None:
    """What its first start took beside its steps nobody has written down."""
    history = forecasts.learn(BoardHistory(), {**JOURNAL, "starts": 2}, trained_s=100.0, trained_j=None)
    assert (len(history.points), history.rounds) == (1, ())


def test_a_history_is_bounded_and_an_unreadable_one_is_none() -> None:
    """The oldest go; a table of another version is not worth a start that fails."""
    history = BoardHistory()
    for _ in range(100):
        history = forecasts.learn(history, JOURNAL, trained_s=10.0, trained_j=50.0)
    assert (len(history.points), len(history.rounds)) == (60, 20)
    assert history.rounds[0] == RoundFigures(other_s=pytest.approx(9.9), other_share=0.5, power_w=5.0)
    assert forecasts.read({"points": "none"}) == BoardHistory()
    assert forecasts.learn(history, {}, trained_s=1.0, trained_j=None) == history


def test_a_search_teaches_no_time_of_a_kind_of_rounds() -> None:
    """What it took is not beside the steps of a round: it is the steps of its trials."""
    searched = forecasts.learn(BoardHistory(), {**JOURNAL, "search": {}}, trained_s=7000.0, trained_j=None)
    assert (len(searched.points), searched.rounds) == (1, ())
    reshape, adapt = ({**JOURNAL, "pruned_first": ""}, JOURNAL)
    for journal, is_reshape in ((reshape, True), (adapt, False)):
        (figures,) = forecasts.learn(BoardHistory(), journal, trained_s=10.0, trained_j=None).rounds
        assert figures.is_reshape is is_reshape


@pytest.mark.parametrize("changes", [{"starts": 2}, {"search": {}, "pruned_first": ""}])
def test_any_round_teaches_what_training_draws(changes: dict[str, object]) -> None:
    """In pieces or searched: the board's power is that of training, whatever the round took beside its steps."""
    (figures,) = forecasts.learn(BoardHistory(), {**JOURNAL, **changes}, trained_s=100.0, trained_j=650.0).rounds
    assert figures == RoundFigures(power_w=6.5, is_reshape="pruned_first" in changes)


def test_a_round_teaches_the_pace_that_it_was_let_train_at() -> None:
    """Also one that published nothing; one that was refused, or too short, tells nothing."""
    begun = {"forecast": FORECAST}
    history = forecasts.learn(BoardHistory(), begun, trained_s=100.0, trained_j=None, duty=0.4)
    assert forecasts.learn(history, begun, trained_s=1.0, trained_j=None, duty=None).duties == (0.4,)
    for journal in ({}, {"forecast": {**FORECAST, "fits": False}}):  # an imprint, and what was refused
        assert forecasts.learn(history, journal, trained_s=100.0, trained_j=None, duty=0.1).duties == (0.4,)
    spending = Spending()
    spending.add(50.0, None, 0.0, duty=1.0)
    assert spending.duty is None
    spending.add(150.0, None, 50.0, duty=0.2)
    assert spending.duty == pytest.approx(0.4)
    assert Spending.from_state(spending.as_state()).duty == pytest.approx(0.4)


def test_a_bare_trainer_is_known_from_any_round_and_counts_where_memory_is_limited() -> None:
    """The last round's word holds, also of one that was refused: another torch may take less."""
    history = forecasts.learn(BoardHistory(), {"bare_mib": 300.0}, trained_s=1.0, trained_j=None)
    assert forecasts.why_none_fits(history, 339.0)
    assert not forecasts.why_none_fits(history, 341.0)
    assert not forecasts.why_none_fits(history, None)
    assert not forecasts.why_none_fits(BoardHistory(), 1.0)
    history = forecasts.learn(history, {"bare_mib": 180.0}, trained_s=1.0, trained_j=None)
    assert not forecasts.why_none_fits(forecasts.learn(history, {}, trained_s=1.0, trained_j=None), 230.0)
