"""The daemon's rounds on a real store and a real engine, with a fake trainer and a fake board."""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import HALF, FakeTrainer, picture
from site_on_disk import COLOURS, Site, drop, held, run

from edgetune.cli.installing import sweep
from edgetune.daemon.round_told import contradicted_throughout, doubted
from edgetune.daemon.service import DaemonService
from edgetune.decide.trigger import ManualRequest
from edgetune.errors import ConflictError, ModelError, RefusedError, SensorError
from edgetune.serve.engine import Engine
from edgetune.simulate.candidate import compare, publish_candidate
from edgetune.store.buffer import PredictionRow
from edgetune.store.retention import BufferPolicy
from edgetune.types import Comparison, Quantity, RoundKind, RoundState, TrainerOutcome

S = RoundState


def test_images_become_a_round_and_the_round_a_served_version(tmp_path: Path) -> None:
    """From files to the next answer's model_version, with the former version to fall back to."""

    async def play() -> None:
        async with Site(tmp_path) as site:
            await site.serve_second()
            await site.tick()
            answer = await DaemonService(site.daemon).predict(picture(COLOURS["cat"], 1), top_k=2)
            assert answer.model_version == 2
            status = await site.daemon.status()
            assert status["last_round"]["promoted"]
            assert status["probation"]["fallback"] == 1
            assert status["trigger"]["missing"][0].startswith("0 of 20 new samples")
            assert site.daemon.models.current() == 2

    run(play())


def test_a_worse_candidate_is_refused_quarantined_and_cooled_down_for(tmp_path: Path) -> None:
    """The served version stays, the reasons are kept, and the next wait is longer."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path, make_trainer=lambda clock: FakeTrainer(clock, right=0.3)) as site:
            await site.take_all()
            await site.until(S.COOLDOWN)
            status = await site.daemon.status()
            assert status["served"]["version"] == 1
            assert status["last_round"]["outcome"] == "refused"
            assert "accuracy falls" in status["last_round"]["reasons"][0]
            assert 2 in site.daemon.models.quarantined()
            first_s = site.daemon.rounds.cooldown_ends_s - site.daemon.service_time.now_s()
            await site.until(S.IDLE, ticks=90)
            drop(tmp_path, 40, start=100)
            await site.take_all()
            await site.until(S.COOLDOWN)
            assert site.daemon.rounds.cooldown_ends_s - site.daemon.service_time.now_s() > 1.5 * first_s

    run(play())


DOUBTS = {
    "classes": {"cat": {"samples": 20, "contradicted": 15}, "dog": {"samples": 20, "contradicted": 1}},
    "worst": [{"sample": 7, "label": "cat", "says": "dog", "confidence": 0.98}],
}


class Doubting(FakeTrainer):
    """Leaves in its journal which labels the served version contradicts."""

    async def start(self, round_dir: Path, *, nice: int, oom_score_adj: int) -> None:
        """Write it, then do as always."""
        (round_dir / "journal.json").write_text(json.dumps({"doubts": DOUBTS}))
        await super().start(round_dir, nice=nice, oom_score_adj=oom_score_adj)


@pytest.mark.parametrize("right", [0.3, 0.9])
def test_a_refusal_for_accuracy_says_which_labels_may_be_wrong(tmp_path: Path, right: float) -> None:
    """In the reasons, and with every sample in the round's row; a promotion against most labels of a class warns."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path, make_trainer=lambda clock: Doubting(clock, right=right)) as site:
            await site.take_all()
            await site.until(S.COOLDOWN) if right < 0.5 else await site.until_served(2)
            await site.tick()
            last = (await site.daemon.status())["last_round"]
            cats = "labels may be wrong: of the training samples the served version contradicts 15 of 20 labelled 'cat'"
            doubts = (
                "labels may be wrong: of the training samples the served version contradicts 15 of 20 labelled 'cat',"
                " 1 of 20 labelled 'dog', most of all samples 7"
            )
            assert (doubts in last["reasons"]) is (right < 0.5)
            warned = f"unless the site has changed, {cats}, most of all samples 7"
            assert (warned in last["warnings"]) is (right > 0.5)
            row = await DaemonService(site.daemon).round(1)
            assert row["details"]["doubts"] == DOUBTS

    run(play())


class OneWorse(Doubting):
    """Its candidate is as large and as fast as the base, and one image worse."""

    def finish(self) -> None:
        """Publish that."""
        assert self.spec is not None
        compared = _one_worse(compare(self.spec, right=0.8, base_right=0.8, size=HALF))
        publish_candidate(self.spec, compared, size=HALF)
        super().finish()


def _one_worse(comparison: Comparison) -> Comparison:
    base = comparison.base
    label, score = next(iter(base.per_class.items()))
    worse = replace(score, correct=score.correct - 1)
    return replace(
        comparison,
        candidate=replace(base, correct=base.correct - 1, per_class={**base.per_class, label: worse}),
        only_base_correct=1,
        candidate_latency=comparison.base_latency,
        candidate_cost=comparison.base_cost,
    )


def test_a_refusal_for_having_gained_nothing_names_no_labels(tmp_path: Path) -> None:
    """One image worse is what chance makes of a candidate that is as good: no reason to look at labels."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path, make_trainer=OneWorse, gate={"accuracy_drop_max": "20pp"}) as site:
            await site.take_all()
            await site.until(S.COOLDOWN)
            await site.tick()
            (reason,) = (await site.daemon.status())["last_round"]["reasons"]
            assert reason.startswith("nothing is gained")

    run(play())


def test_a_few_contradicted_labels_are_told_without_suspicion() -> None:
    """Every model errs on some; without any there is nothing to tell."""
    few = {"classes": {"dog": {"samples": 20, "contradicted": 1}}, "worst": DOUBTS["worst"]}
    said = "of the training samples the served version contradicts 1 of 20 labelled 'dog', most of all samples 7"
    assert doubted({"doubts": few}) == said
    assert doubted({"doubts": {"classes": {}, "worst": []}}) == ""
    assert doubted({}) == ""


@pytest.mark.parametrize(("contradicted", "samples", "is_told"), [(10, 20, True), (9, 20, False), (4, 4, False)])
def test_a_promotion_warns_only_where_most_of_several_labels_are_contradicted(
    contradicted: int, samples: int, is_told: bool
) -> None:
    """A model that was weak on a class would otherwise be doubted for ever."""
    found = {"classes": {"cat": {"samples": samples, "contradicted": contradicted}}, "worst": DOUBTS["worst"]}
    assert bool(contradicted_throughout({"doubts": found})) is is_told
    assert contradicted_throughout({}) == ""


def test_a_round_under_way_tells_what_its_trainer_wrote_down(tmp_path: Path) -> None:
    """Which layers keep all their filters is known from the beginning, and afterwards from the round's row."""
    words = "1 layer cannot be pruned and will keep all filters: gate"

    async def play() -> None:
        async with Site(tmp_path, make_trainer=held) as site:
            await site.begin_round()
            service = DaemonService(site.daemon)
            assert "left_whole" not in (await service.round(1))["details"]
            journal = tmp_path / "state" / "rounds" / "0001" / "journal.json"
            journal.write_text(json.dumps({"left_whole": words, "doubts": {}}))
            details = (await service.round(1))["details"]
            assert (details["left_whole"], "doubts" in details) == (words, False)
            site.trainers[0].finish()
            await site.until_served(2)
            journal.unlink()
            assert (await service.round(1))["details"]["left_whole"] == words

    run(play())


@pytest.mark.parametrize("is_judged_before", [False, True])
def test_a_class_refused_while_its_round_runs_becomes_no_output(tmp_path: Path, *, is_judged_before: bool) -> None:
    """Its round is refused with a sentence, in training or after its verdict; the others' samples wait for the next one."""

    async def play() -> None:
        drop(tmp_path, 30)
        drop(tmp_path, 30, "owl")
        async with Site(tmp_path, make_trainer=held, classes={"accepted": ["owl"]},
                        triggers={"imprint_samples": 500}) as site:  # fmt: skip
            service = DaemonService(site.daemon)
            await site.take_all()
            await site.until(S.TRAINING)
            assert site.trainers[0].spec.classes == ("cat", "dog", "owl")
            prepare = site.daemon.serving.prepare

            async def prepare_and_refuse(version: int) -> Engine:
                await service.data_refuse("owl")
                return await prepare(version)

            if is_judged_before:
                site.daemon.serving.prepare = prepare_and_refuse
            else:
                assert (await service.data_refuse("owl"))["in_round"] == 1
            site.trainers[0].finish()
            await site.until(S.COOLDOWN)
            assert (await service.data_refuse("owl"))["in_round"] is None
            await site.tick()
            status = await site.daemon.status()
            assert status["served"]["version"] == 1
            assert status["last_round"]["outcome"] == "refused"
            (reason,) = status["last_round"]["reasons"]
            assert reason == "the operator refused 'owl' while this candidate was made, which has an output for it"
            assert 2 in site.daemon.models.quarantined()
            assert status["buffer"]["new_labelled"] > 0
            await site.until(S.TRAINING, ticks=90)
            assert site.trainers[1].spec.classes == ("cat", "dog")
            assert {s.label for s in site.trainers[1].spec.samples} == {"cat", "dog"}
            site.trainers[1].finish()
            await site.until_served(3)

    run(play())


def test_a_class_whose_samples_were_removed_keeps_its_output(tmp_path: Path) -> None:
    """Classes go by what the served version has; a renamed one is a new one, and the old name an absent class."""

    async def play() -> None:
        drop(tmp_path, 30)
        drop(tmp_path, 14, "owl")
        async with Site(tmp_path, new_samples=1000, classes={"accepted": ["owl", "barn owl"]},
                        triggers={"new_class_samples": 500}) as site:  # fmt: skip
            service = DaemonService(site.daemon)
            await site.take_all()
            await site.until_served(2)
            for row in await service.data_samples(label="owl", limit=1000):
                await service.data_label(str(row["id"]), "barn owl")
            await site.until_served(3)
            await site.tick()
            manifest = site.daemon.serving.manifest()
            assert manifest is not None
            assert manifest.classes == ("cat", "dog", "owl", "barn owl")
            assert manifest.marks == {"owl": "provisional", "barn owl": "provisional"}
            await service.data_purge(label="barn owl")
            site.daemon.ask_for_round(ManualRequest(kind=RoundKind.ADAPT, is_forced=True))
            await site.until_served(4)
            spec = site.trainers[-1].spec
            assert spec is not None
            assert spec.classes == ("cat", "dog", "owl", "barn owl")
            assert {sample.label for sample in spec.samples} == {"cat", "dog"}

    run(play())


def test_heat_pauses_and_cooling_resumes(tmp_path: Path) -> None:
    """SIGSTOP above the limit, SIGCONT well below it, and the status says why meanwhile."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path, make_trainer=held) as site:
            site.daemon.config = site.daemon.config.model_copy(
                update={"budgets": site.daemon.config.budgets.model_copy(update={"temperature_max": 80.0})}
            )
            await site.take_all()
            await site.until(S.TRAINING)
            site.sensors.values[Quantity.SOC_TEMP_C] = 85.0
            await site.until(S.PAUSED)
            assert "soc_temp_c value=85 limit=80" in (await site.daemon.status())["round"]["message"]
            site.sensors.values[Quantity.SOC_TEMP_C] = 60.0
            await site.until(S.TRAINING)
            assert [word for word in site.trainers[0].said if "duty" not in word] == ["start", "pause", "resume"]
            site.trainers[0].finish()
            await site.until_served(2)

    run(play())


def test_memory_stops_the_trainer_and_the_round_goes_on_later_from_the_same_spec(tmp_path: Path) -> None:
    """A second trainer on the same directory; no new samples are chosen."""

    async def play() -> None:
        async with Site(tmp_path, make_trainer=held) as site:
            await site.begin_round()
            site.sensors.values[Quantity.MEM_AVAILABLE_MIB] = 100.0
            await site.until(S.SUSPENDED)
            site.sensors.values[Quantity.MEM_AVAILABLE_MIB] = 4000.0
            await site.until(S.TRAINING, ticks=60)
            assert site.trainers[0].spec == site.trainers[1].spec
            site.trainers[1].finish()
            await site.until_served(2)

    run(play())


def test_a_round_that_never_fits_is_given_up(tmp_path: Path) -> None:
    """Three stops for memory are enough; the message says what to change."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path, make_trainer=held) as site:
            await site.take_all()
            for _ in range(3):
                site.sensors.values[Quantity.MEM_AVAILABLE_MIB] = 4000.0
                await site.until(S.TRAINING, ticks=300)
                site.sensors.values[Quantity.MEM_AVAILABLE_MIB] = 100.0
                await site.until(S.SUSPENDED, S.COOLDOWN)
            await site.until(S.COOLDOWN, ticks=10)
            last = (await site.daemon.status())["last_round"]
            assert last["outcome"] == "expired"
            assert "training.batch_size" in last["message"]

    run(play())


def test_an_unreadable_sensor_pauses(tmp_path: Path) -> None:
    """Unknown is over budget, and the reason says that it is unknown."""

    async def play() -> None:
        async with Site(tmp_path, make_trainer=held) as site:
            await site.begin_round()
            site.sensors.values[Quantity.DISK_FREE_MIB] = None
            await site.until(S.STOPPING, S.SUSPENDED)
            assert "disk_free_mib unknown" in site.daemon.rounds.machine.reason

    run(play())


def test_a_budget_on_what_the_board_cannot_measure_is_an_error_at_start(tmp_path: Path) -> None:
    """It names the key."""

    async def play() -> None:
        site = Site(tmp_path)
        site.sensors.values[Quantity.DISK_FREE_MIB] = None
        with pytest.raises(SensorError, match=r"budgets\.disk_free_min"):
            await site.daemon.open()

    run(play())


def test_a_limit_on_energy_that_cannot_be_measured_is_an_error_at_start(tmp_path: Path) -> None:
    """It names the key that was set, not the one for watts."""

    async def play() -> None:
        site = Site(tmp_path, budgets="round_energy_max: 20Wh")
        site.sensors.values[Quantity.POWER_W] = None
        with pytest.raises(SensorError, match=r"budgets\.round_energy_max is set"):
            await site.daemon.open()

    run(play())


def test_a_round_ends_when_its_energy_is_used_up_however_often_it_was_interrupted(tmp_path: Path) -> None:
    """4 W for two hours of training are 8 Wh; the trainer knows what it has used, pauses are not counted."""

    async def play() -> None:
        drop(tmp_path, 40)
        long = "round_energy_max: 8Wh, round_time_max: 1d, paused_max: 1d, stall: 1d"
        async with Site(tmp_path, make_trainer=held, budgets=long) as site:
            await site.take_all()
            await site.until(S.TRAINING)
            await site.tick(60, seconds=60)
            assert site.trainers[0].energy_j == pytest.approx(4 * 3600, rel=0.03)
        async with Site(tmp_path, make_trainer=held, budgets=long) as site:
            await site.until(S.TRAINING)
            assert site.daemon.rounds.spending.trained_j == pytest.approx(4 * 3600, rel=0.03)
            site.daemon.is_paused = True
            await site.tick(60, seconds=60)
            assert site.state is S.PAUSED
            site.daemon.is_paused = False
            await site.tick(50, seconds=60)
            assert site.state is S.TRAINING
            await site.until(S.COOLDOWN, seconds=60)
            last = (await site.daemon.status())["last_round"]
            assert "Wh while it trained (budgets.round_energy_max)" in last["message"]
            assert last["trained_j"] == pytest.approx(8 * 3600, rel=0.05)

    run(play())


def test_a_silent_trainer_is_killed_and_the_round_recorded(tmp_path: Path) -> None:
    """No heartbeat for `stall`; paused time would not count."""

    async def play() -> None:
        async with Site(tmp_path, make_trainer=held) as site:
            await site.begin_round()
            await site.until(S.COOLDOWN, seconds=30)
            assert site.trainers[0].said[-1] == "kill"
            assert (await site.daemon.status())["last_round"]["outcome"] == "killed"

    run(play())


def test_a_cancelled_round_is_not_promoted_even_if_it_published(tmp_path: Path) -> None:
    """The operator's word came first."""

    async def play() -> None:
        async with Site(tmp_path, make_trainer=held) as site:
            await site.begin_round()
            site.trainers[0].stop = site.trainers[0].finish  # type: ignore[method-assign]  # too late to stop
            await DaemonService(site.daemon).cancel()
            await site.until(S.COOLDOWN)
            status = await site.daemon.status()
            assert (status["served"]["version"], status["last_round"]["outcome"]) == (1, "cancelled")

    run(play())


def test_a_candidate_is_refused_when_the_served_version_was_changed_by_hand_meanwhile(tmp_path: Path) -> None:
    """It was made for the world before."""

    async def play() -> None:
        async with Site(tmp_path, make_trainer=held) as site:
            await site.begin_round()
            site.trainers[0].finish()
            await site.until_served(2)
            drop(tmp_path, 40, start=100)
            await site.take_all()
            await site.until(S.TRAINING)
            await DaemonService(site.daemon).rollback()
            site.trainers[1].finish()
            await site.until(S.COOLDOWN)
            assert site.daemon.serving.served.version == 1
            assert "changed while" in (await site.daemon.status())["last_round"]["reasons"][0]

    run(play())


def test_an_operators_pause_survives_a_restart(tmp_path: Path) -> None:
    """Nothing trains until resume; predictions go on."""

    async def play() -> None:
        async with Site(tmp_path) as site:
            await DaemonService(site.daemon).pause()
        drop(tmp_path, 40)
        async with Site(tmp_path) as site:
            await site.take_all()
            await site.tick(10)
            assert site.state is S.HELD
            assert "paused by the operator" in (await site.daemon.status())["round"]["message"]
            assert (await DaemonService(site.daemon).predict(picture((0, 0, 0), 1), top_k=1)).model_version == 1
            await DaemonService(site.daemon).resume()
            await site.until_served(2)

    run(play())


def test_a_restart_in_the_middle_of_a_round_goes_on_with_it(tmp_path: Path) -> None:
    """A clean stop checkpoints; the next start resumes the same round."""

    async def play() -> None:
        async with Site(tmp_path, make_trainer=held) as site:
            await site.begin_round()
        async with Site(tmp_path) as site:
            assert site.state is S.SUSPENDED
            await site.until_served(2)
            assert (await site.daemon.status())["last_round"]["id"] == 1

    run(play())


def test_worse_feedback_rolls_back_by_itself_and_says_why(tmp_path: Path) -> None:
    """Labelled feedback on the new version, against the former one's."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path) as site:
            service = DaemonService(site.daemon)

            async def ask(is_right: bool) -> None:
                answer = await service.predict(picture(COLOURS["cat"], 3), top_k=2)
                label = answer.top[0][0] if is_right else answer.top[1][0]
                await service.label_prediction(answer.prediction_id, label)

            for _ in range(20):
                await ask(is_right=True)
            await site.take_all()
            await site.until_served(2)
            for _ in range(20):
                await ask(is_right=False)
            await site.until_served(1)
            events = [event["kind"] for event in await service.events(0, 100)]
            assert "model.rolled_back" in events

    run(play())


def test_confidence_seen_before_a_restart_counts_after_it(tmp_path: Path) -> None:
    """12 unsure answers before a restart and 13 after it are the 25 that a roll-back asks for."""

    async def answer(site: Site, version: int, count: int, confidence: float) -> None:
        rows = [
            PredictionRow(
                prediction_id=uuid.uuid4().hex, model_version=version, label="cat", confidence=confidence, wall_s=1.0
            )
            for _ in range(count)
        ]
        await site.daemon.store(site.daemon.buffer.predictions.record, rows)

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path) as site:
            await answer(site, 1, 25, 0.9)
            await site.take_all()
            await site.until_served(2)
            await answer(site, 2, 12, 0.4)
            await site.tick(20)
            assert site.daemon.serving.served.version == 2
        async with Site(tmp_path) as site:
            await answer(site, 2, 13, 0.4)
            await site.tick(20)
            assert site.daemon.serving.served.version == 1
            events = await DaemonService(site.daemon).events(0, 100)
            assert any("mean confidence fell from 0.90 to 0.40" in event["text"] for event in events)

    run(play())


def test_a_version_that_does_not_load_gives_way_to_its_predecessor(tmp_path: Path) -> None:
    """One flipped bit in the model; the start serves the version before and quarantines this one."""

    async def play() -> None:
        async with Site(tmp_path) as site:
            await site.serve_second()
        model = tmp_path / "state" / "models" / "v000002" / "model.onnx"
        data = bytearray(model.read_bytes())
        data[len(data) // 2] ^= 1
        model.write_bytes(data)
        async with Site(tmp_path) as site:
            assert site.daemon.serving.served.version == 1
            assert 2 in site.daemon.models.quarantined()

    run(play())


def test_a_version_under_which_the_daemon_keeps_dying_is_quarantined(tmp_path: Path) -> None:
    """Three deaths in ten minutes; the factory model would stay."""

    async def play() -> None:
        async with Site(tmp_path) as site:
            await site.serve_second()
        for expected in (2, 2, 2, 1):
            site = Site(tmp_path)
            await site.daemon.open()
            assert site.daemon.serving.served.version == expected
            # Die: nothing is closed but what the kernel would take back.
            site.daemon._ingest_task.cancel()  # type: ignore[union-attr]
            await asyncio.gather(site.daemon._ingest_task, return_exceptions=True)
            await site.daemon.store(site.daemon.buffer.close)
            site.daemon.store.close()
            site.daemon._lock.let_go()

    run(play())


def test_a_second_daemon_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    """Two writers would be one too many."""

    async def play() -> None:
        async with Site(tmp_path):
            with pytest.raises(ConflictError, match="another edgetune holds"):
                await Site(tmp_path).daemon.open()

    run(play())


def test_a_new_class_waits_for_the_operator_and_then_widens_the_head(tmp_path: Path) -> None:
    """Pending samples are in no round; accepted ones reshape the model."""

    async def play() -> None:
        drop(tmp_path, 30, "cat", "dog", "owl")
        async with Site(tmp_path, new_samples=1000) as site:
            await site.take_all()
            await site.tick(3)
            assert site.state is S.IDLE
            assert any("data accept owl" in m for m in site.daemon.want.missing)
            await DaemonService(site.daemon).data_accept("owl")
            await site.until_served(2)
            manifest = site.daemon.serving.manifest()
            assert manifest is not None
            assert manifest.classes == ("cat", "dog", "owl")

    run(play())


def test_a_round_asked_for_by_hand_is_refused_with_what_is_missing_unless_forced(tmp_path: Path) -> None:
    """A dry run changes nothing."""

    async def play() -> None:
        drop(tmp_path, 4)
        async with Site(tmp_path) as site:
            service = DaemonService(site.daemon)
            await site.take_all()
            with pytest.raises(RefusedError, match="hold-out samples"):
                await service.start_round(kind=None, force=False, dry_run=False)
            assert (await service.start_round(kind="adapt", force=False, dry_run=True))["missing"]
            answer = await service.start_round(kind="adapt", force=True, dry_run=False)
            await site.until(S.TRAINING, S.VERIFYING, S.COOLDOWN, S.IDLE)
            assert answer["id"] == 1
            await site.tick(5)
            assert (await service.rounds(5))[0]["kind"] == "adapt"

    run(play())


def test_a_clock_that_jumps_ten_years_ends_no_cool_down_and_no_probation(tmp_path: Path) -> None:
    """Both are counted in service time."""

    async def play() -> None:
        async with Site(tmp_path) as site:
            await site.serve_second()
            site.clock.set_wall(site.clock.wall_s() + 10 * 365 * 86400)
            await site.tick(5)
            assert site.daemon.serving.trial.version == 2
        site = Site(tmp_path)
        site.clock.set_wall(0.0)
        async with site:
            await site.tick(5)
            assert site.daemon.serving.trial.version == 2
            await site.tick(40, seconds=100)
            assert site.daemon.serving.trial.version is None

    run(play())


def test_without_a_model_the_service_is_up_and_says_what_to_do(tmp_path: Path) -> None:
    """Predictions are refused with a hint; images wait in the inbox."""

    async def play() -> None:
        (tmp_path / "state" / "models").mkdir(parents=True)
        drop(tmp_path, 3)
        async with Site(tmp_path) as site:
            await site.tick(2)
            service = DaemonService(site.daemon)
            assert service.readiness() == (False, "no model: edgetune models import")
            with pytest.raises(ModelError, match="No model"):
                await service.predict(picture((0, 0, 0), 1), top_k=1)
            assert len(list((tmp_path / "state" / "inbox").rglob("*.png"))) == 6

    run(play())


def test_a_trainer_that_fails_ends_the_round_with_its_own_words(tmp_path: Path) -> None:
    """NaN loss, out of memory: a named outcome, never a bad model."""

    async def play() -> None:
        async with Site(tmp_path, make_trainer=held) as site:
            await site.begin_round()
            site.trainers[0].end(TrainerOutcome.NAN_LOSS, 21, "the loss became NaN at step 7")
            await site.until(S.COOLDOWN)
            last = (await site.daemon.status())["last_round"]
            assert last["outcome"] == "nan_loss"
            assert "step 7" in last["message"]

    run(play())


def test_a_reload_swaps_whole_or_keeps_the_old_configuration(tmp_path: Path) -> None:
    """A bad file changes nothing; a good one says which keys wait for a restart."""
    from edgetune.errors import ConfigError

    async def play() -> None:
        async with Site(tmp_path) as site:
            service = DaemonService(site.daemon)
            good = (tmp_path / "config.yaml").read_text()
            (tmp_path / "config.yaml").write_text(good.replace("new_samples: 20", "new_samples: 0"))
            with pytest.raises(ConfigError):
                await service.reload()
            assert site.daemon.config.triggers.new_samples == 20
            (tmp_path / "config.yaml").write_text(
                good.replace("new_samples: 20", "new_samples: 30").replace("settle: 0s", "settle: 5s")
            )
            answer = await service.reload()
            assert "triggers.new_samples" in answer["changed"]
            assert answer["needs_restart"] == ["inbox.settle"]
            assert site.daemon.config.triggers.new_samples == 30
            assert site.daemon.config.inbox.settle == 0

    run(play())


def test_a_damaged_database_is_set_aside_and_the_service_still_serves(tmp_path: Path) -> None:
    """What can be read comes back, the damaged file is kept under another name, and the events say so."""

    async def play() -> None:
        drop(tmp_path, 30)
        async with Site(tmp_path, new_samples=1000) as site:
            await site.take_all()
        database = tmp_path / "state" / "edgetune.db"
        data = bytearray(database.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 8192] = b"\xff" * 8192
        database.write_bytes(data)
        async with Site(tmp_path, new_samples=1000) as site:
            service = DaemonService(site.daemon)
            assert (await service.predict(picture((0, 0, 0), 1), top_k=1)).model_version == 1
            assert list((tmp_path / "state").glob("edgetune.db.corrupt-*"))
            assert any(event["kind"] == "recovered" for event in await service.events(0, 50))
            assert await site.daemon.store(site.daemon.buffer.check) == []

    run(play())


def test_a_full_buffer_keeps_the_files_and_says_why(tmp_path: Path) -> None:
    """Nothing that was not committed is removed; the status names the quota."""

    async def play() -> None:
        async with Site(tmp_path) as site:
            tight = BufferPolicy(
                quota_bytes=1, validation_share=0.2, holdout_share=0.3, validation_min=0, holdout_min=0
            )
            await site.daemon.store(site.daemon.buffer.configure, tight)
            drop(tmp_path, 3)
            assert site.daemon.ingest is not None
            for _ in range(20):
                await site.tick()
                site.daemon.inbox.wake.set()  # type: ignore[union-attr]
                await asyncio.sleep(0.02)
                if site.daemon.ingest.trouble:
                    break
            assert "the sample buffer is full" in site.daemon.ingest.trouble
            assert len(list((tmp_path / "state" / "inbox").rglob("*.png"))) == 6
            assert any("the inbox waits" in warning for warning in (await site.daemon.status())["warnings"])

    run(play())


def test_a_spec_that_cannot_be_read_does_not_keep_the_service_from_starting(tmp_path: Path) -> None:
    """Its round is gone; the samples are free for the next one."""

    async def play() -> None:
        async with Site(tmp_path, make_trainer=held) as site:
            await site.begin_round()
        (tmp_path / "state" / "rounds" / "0001" / "spec.json").write_bytes(b"")
        async with Site(tmp_path) as site:
            await site.until_served(2)

    run(play())


def test_cancelling_while_a_candidate_is_verified_is_recorded_as_cancelled(tmp_path: Path) -> None:
    """The candidate was good, and is in quarantine all the same."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path) as site:
            prepare, may_load = site.daemon.serving.prepare, asyncio.Event()

            async def prepare_slowly(version: int) -> Engine:
                await may_load.wait()
                return await prepare(version)

            site.daemon.serving.prepare = prepare_slowly  # type: ignore[method-assign]
            await site.take_all()
            await site.until(S.VERIFYING)
            await DaemonService(site.daemon).cancel()
            may_load.set()
            await site.until(S.COOLDOWN)
            status = await site.daemon.status()
            assert (status["served"]["version"], status["last_round"]["outcome"]) == (1, "cancelled")
            assert 2 in site.daemon.models.quarantined()

    run(play())


def test_cancels_and_ticks_at_once_end_a_suspended_round_once(tmp_path: Path) -> None:
    """Requests arrive between the steps of a tick; the machine takes one event at a time."""

    async def play() -> None:
        async with Site(tmp_path, make_trainer=held) as site:
            await site.begin_round()
        async with Site(tmp_path, make_trainer=held) as site:
            assert site.state is S.SUSPENDED
            service = DaemonService(site.daemon)
            await asyncio.gather(service.cancel(), service.cancel(), site.daemon.tick(), return_exceptions=True)
            await site.tick(3)
            assert site.state is S.COOLDOWN
            assert site.daemon.rounds.failures == 1
            assert site.trainers == []

    run(play())


def test_a_roll_back_that_cannot_be_done_is_told_and_kills_nothing(tmp_path: Path) -> None:
    """The fallback was damaged meanwhile; the service goes on with what it has."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path) as site:
            service = DaemonService(site.daemon)
            for is_right in (True, False):
                for _ in range(20):
                    answer = await service.predict(picture(COLOURS["cat"], 3), top_k=2)
                    await service.label_prediction(answer.prediction_id, answer.top[0 if is_right else 1][0])
                if is_right:
                    await site.take_all()
                    await site.until_served(2)
                    (tmp_path / "state" / "models" / "v000001" / "model.onnx").write_bytes(b"broken")
            await site.tick(30)
            assert site.daemon.serving.served.version == 2
            assert any(event["kind"] == "probation.stuck" for event in await service.events(0, 100))

    run(play())


def test_rolling_back_twice_goes_back_twice(tmp_path: Path) -> None:
    """3, 2, 1; never forward to what was just rejected."""

    async def play() -> None:
        async with Site(tmp_path) as site:
            service = DaemonService(site.daemon)
            for version in (2, 3):
                drop(tmp_path, 40, start=100 * version)
                await site.take_all()
                await site.until_served(version)
            assert (await service.rollback())["version"] == 2
            assert (await service.rollback())["version"] == 1

    run(play())


def test_a_disk_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    """Books are kept later; the trigger, the budget and predictions go on, and the status says what is wrong."""
    from edgetune.errors import StoreError

    async def play() -> None:
        async with Site(tmp_path) as site:
            service, history = DaemonService(site.daemon), site.daemon.history

            def refuse(*_: object, **__: object) -> None:
                raise StoreError("the disk is full")

            history.record_reading = refuse  # type: ignore[assignment,method-assign]
            history.add_event = refuse  # type: ignore[assignment,method-assign]
            await site.tick(3)
            await service.pause()
            assert (await service.predict(picture((0, 0, 0), 1), top_k=1)).model_version == 1
            assert any("the disk is full" in warning for warning in (await site.daemon.status())["warnings"])

    run(play())


def test_clearing_up_a_stopped_service_keeps_what_a_probation_goes_back_to(tmp_path: Path) -> None:
    """`edgetune models gc` between two runs of the daemon, also when it is only asked what it would do."""

    async def play() -> None:
        async with Site(tmp_path) as site:
            for version in (2, 3):
                drop(tmp_path, 40, start=100 * version)
                await site.take_all()
                await site.until_served(version)
            assert site.daemon.serving.trial.fallback == 2

    run(play())
    assert sweep(tmp_path / "state", keep=1, dry_run=True) == []
    assert sweep(tmp_path / "state", keep=1, dry_run=False) == []
    assert (tmp_path / "state" / "models" / "v000002").is_dir()


def test_what_a_cancelled_round_kept_to_go_on_with_is_gone_with_it(tmp_path: Path) -> None:
    """Its checkpoint, the networks that its search has found, an export that was not finished; its log stays."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path, make_trainer=held) as site:
            await site.take_all()
            await site.until(RoundState.TRAINING)
            directory = tmp_path / "state" / "rounds" / "0001"
            for name in (
                "checkpoint.safetensors",
                "search/best-0/checkpoint.safetensors",
                "candidate/model.onnx",
                "trainer.log",
            ):
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                (directory / name).write_bytes(b"large")
            await site.daemon.cancel()
            await site.until(RoundState.COOLDOWN)
            assert {path.name for path in directory.iterdir()} == {"spec.json", "trainer.log"}

    run(play())
