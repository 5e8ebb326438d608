"""A new class is answered as soon as there are a few images of it, and marked until a round has learnt it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import FakeTrainer, picture
from site_on_disk import COLOURS, Site, drop, held, run

from edgetune.cli.words import as_text, describe
from edgetune.daemon.service import DaemonService
from edgetune.daemon.status import absent
from edgetune.errors import UsageError
from edgetune.types import AbsentClasses, RoundKind, RoundState, Split, TrainerOutcome

S = RoundState
RARE: dict[str, dict[str, Any]] = {"triggers": {"new_class_samples": 25}, "classes": {"accepted": ["owl"]}}


class Imprinting(FakeTrainer):
    """Good at real rounds, and at imprinting as the test says; or the other way round."""

    rights: tuple[float, float] = (0.9, 0.9)  # of an imprint, of any other round

    async def start(self, round_dir: Path, *, nice: int, oom_score_adj: int) -> None:
        """As the round's kind wants it."""
        imprint, other = self.rights
        text = (round_dir / "spec.json").read_text()
        self._right = imprint if '"kind": "imprint"' in text else other
        await super().start(round_dir, nice=nice, oom_score_adj=oom_score_adj)


class RefusedImprint(Imprinting):
    """Its imprints are refused."""

    rights = (0.3, 0.9)


class RefusedRound(Imprinting):
    """Its real rounds are."""

    rights = (0.9, 0.3)


def owls(site: Site) -> int:
    """Training samples of the new class."""
    assert site.daemon.stats is not None
    return next(entry.training for entry in site.daemon.stats.classes if entry.label == "owl")


def test_a_few_images_of_an_accepted_class_are_enough_to_be_answered(tmp_path: Path) -> None:
    """No training and no wait; the answer, status, metrics and model say that it is provisional, and nothing is used up."""

    async def play() -> None:
        drop(tmp_path, 30)
        drop(tmp_path, 14, "owl")
        async with Site(tmp_path, new_samples=1000, **RARE) as site:
            await site.take_all()
            await site.until_served(2)
            await site.tick(2)
            spec = site.trainers[0].spec
            assert spec is not None
            assert (spec.kind, spec.classes, spec.recipe.level) == (RoundKind.IMPRINT, ("cat", "dog", "owl"), 0.0)
            assert {sample.split for sample in spec.samples} == set(Split)
            assert f"'owl' with {owls(site)} training samples" in spec.reason
            service = DaemonService(site.daemon)
            answer = await service.predict(picture(COLOURS["owl"], 1), top_k=3)
            assert answer.marks == {"owl": "provisional"}
            status = await service.status()
            assert status["served"]["marks"] == {"owl": "provisional"}
            assert "provisional: owl" in as_text(describe(status))
            samples = {name: values for name, _, _, values in service.metrics()}
            assert list(samples["edgetune_class_marked"]) == [({"class": "owl", "mark": "provisional"}, 1.0)]
            assert (await service.model(2))["marks"] == {"owl": "provisional"}
            for kind in ("imprint", "renew"):
                with pytest.raises(UsageError, match="use adapt or reshape"):
                    await service.start_round(kind=kind, force=True, dry_run=False)
            assert status["last_round"]["kind"] == "imprint"
            assert "knows 'owl'" in " ".join(status["last_round"]["reasons"])
            assert len(site.trainers) == 1, "once is enough"
            # A real round has not been there: its samples are new, its interval has not begun.
            assert status["buffer"]["new_labelled"] > 0
            assert await site.daemon.store(site.daemon.history.get_state, "last_round_ended_s") is None
            assert f"{owls(site)} of 25 training samples of the new class 'owl'" in site.daemon.want.missing

    run(play())


def test_the_first_round_that_learns_the_class_takes_the_mark_away(tmp_path: Path) -> None:
    """A provisional class is new to the trigger until then, and having learnt it is a gain to the gate."""

    async def play() -> None:
        drop(tmp_path, 30)
        drop(tmp_path, 14, "owl")
        async with Site(tmp_path, new_samples=1000, **RARE) as site:
            await site.take_all()
            await site.until_served(2)
            drop(tmp_path, 60, "owl", start=100)
            await site.take_all()
            await site.until_served(3)
            await site.tick(2)
            manifest = site.daemon.serving.manifest()
            assert manifest is not None
            assert (manifest.kind, manifest.marks, manifest.classes) == ("reshape", {}, ("cat", "dog", "owl"))
            status = await site.daemon.status()
            assert "was shown 'owl', which the served version was not" in status["last_round"]["reasons"]
            assert "provisional" not in as_text(describe(status))

    run(play())


def test_a_refused_imprint_costs_no_cool_down_and_waits_for_twice_the_samples(tmp_path: Path) -> None:
    """The same images would make the same row again; with twice as many it is another question."""

    async def play() -> None:
        drop(tmp_path, 30)
        drop(tmp_path, 14, "owl")
        site = Site(tmp_path, new_samples=1000, make_trainer=RefusedImprint, triggers={"new_class_samples": 500},
                    classes={"accepted": ["owl"]})  # fmt: skip
        async with site:
            await site.take_all()
            await site.tick(20)
            assert site.state is S.IDLE
            assert (await site.daemon.status())["last_round"]["outcome"] == "refused"
            assert site.daemon.rounds.failures == 0
            first = owls(site)
            await site.tick(20)
            assert (len(site.trainers), site.daemon.serving.served.version) == (1, 1)
            drop(tmp_path, first // 2, "owl", start=100)
            await site.take_all()
            await site.tick(10)
            assert first <= owls(site) < 2 * first
            assert len(site.trainers) == 1
        async with site.__class__(tmp_path, new_samples=1000, triggers={"new_class_samples": 500},
                                  classes={"accepted": ["owl"]}) as site:  # fmt: skip
            await site.tick(5)
            assert len(site.trainers) == 0, "a restart has not forgotten it"
            drop(tmp_path, 40, "owl", start=200)
            await site.take_all()
            await site.until_served(3)

    run(play())


def test_a_new_class_does_not_wait_for_a_cool_down_and_does_not_end_it(tmp_path: Path) -> None:
    """What failed before was another thing; it waits on."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path, make_trainer=RefusedRound, classes={"accepted": ["owl"]},
                        triggers={"cooldown": "1h", "new_class_samples": 500}) as site:  # fmt: skip
            await site.take_all()
            await site.until(S.COOLDOWN)
            ends_s, failures = site.daemon.rounds.cooldown_ends_s, site.daemon.rounds.failures
            drop(tmp_path, 14, "owl")
            drop(tmp_path, 40, start=100)
            await site.take_all()
            await site.until_served(3)
            await site.tick(10)
            assert (site.daemon.rounds.cooldown_ends_s, site.daemon.rounds.failures) == (ends_s, failures)
            assert [trainer.spec.kind.value for trainer in site.trainers if trainer.spec] == ["reshape", "imprint"]
            assert any("more minutes of the cool-down" in words for words in site.daemon.want.missing)
            await site.until(S.TRAINING, S.VERIFYING, S.COOLDOWN, seconds=120)
            assert len(site.trainers) == 3, "and then the real round comes"

    run(play())


def test_what_a_person_took_back_is_not_imprinted_again(tmp_path: Path) -> None:
    """A roll-back is an answer too."""

    async def play() -> None:
        drop(tmp_path, 30)
        drop(tmp_path, 14, "owl")
        async with Site(tmp_path, new_samples=1000, **RARE) as site:
            await site.take_all()
            await site.until_served(2)
            await site.tick(2)
            await DaemonService(site.daemon).rollback()
            await site.tick(20)
            assert (len(site.trainers), site.daemon.serving.served.version) == (1, 1)

    run(play())


def test_an_imprint_does_not_end_the_probation_of_its_base(tmp_path: Path) -> None:
    """What that version is measured against stays: it can still be taken back, and a roll-back takes back both."""

    async def play() -> None:
        async with Site(tmp_path, **RARE) as site:
            await site.serve_second()
            await site.tick(2)
            first = (await site.daemon.status())["probation"]
            assert (first["version"], first["fallback"]) == (2, 1)
            site.daemon.serving.trial._record["baseline"]["feedback"] = 100
            site.daemon.serving.trial._record["baseline"]["feedback_correct"] = 95
            drop(tmp_path, 14, "owl")
            await site.take_all()
            await site.until_served(3)
            await site.tick(2)
        async with Site(tmp_path, **RARE) as site:
            second = (await site.daemon.status())["probation"]
            assert (second["version"], second["fallback"]) == (3, 1)
            assert second["ends_in_s"] > 3500, "it is watched as long as any version"
            service = DaemonService(site.daemon)
            for i in range(20):
                answer = await service.predict(picture(COLOURS["cat"], i), top_k=1)
                wrong = "dog" if answer.label == "cat" else "cat"
                await service.label_prediction(answer.prediction_id, wrong)
            await site.tick(2, seconds=11)
            assert site.daemon.serving.served.version == 1

    run(play())


def test_without_hold_out_samples_of_the_known_classes_nothing_is_imprinted(tmp_path: Path) -> None:
    """The gate would refuse it."""

    async def play() -> None:
        drop(tmp_path, 60, "owl")
        async with Site(tmp_path, new_samples=1000, **RARE) as site:
            await site.take_all()
            await site.tick(10)
            assert site.trainers == []
            assert site.daemon.stats is not None
            assert owls(site) > 20

    run(play())


def test_budgets_hold_an_imprint_back_and_a_restart_goes_on_with_it(tmp_path: Path) -> None:
    """It is a round like any other to them; null switches imprinting off."""

    async def play() -> None:
        drop(tmp_path, 30)
        drop(tmp_path, 14, "owl")
        never = {**RARE, "triggers": {"imprint_samples": None, "new_class_samples": 25}}
        async with Site(tmp_path, new_samples=1000, make_trainer=held, **never) as site:
            await site.take_all()
            await site.tick(5)
            assert (site.state, site.trainers) == (S.IDLE, [])
            await site.daemon.set_paused(True)
        async with Site(tmp_path, new_samples=1000, make_trainer=held, **RARE) as site:
            await site.tick(10)
            assert site.state is S.HELD
            assert site.daemon.want.kind is RoundKind.IMPRINT
            await site.daemon.set_paused(False)
            await site.until(S.TRAINING)
        async with Site(tmp_path, new_samples=1000, **RARE) as site:
            assert site.state is S.SUSPENDED
            await site.until_served(2)
            assert [t.spec.kind for t in site.trainers if t.spec] == [RoundKind.IMPRINT]

    run(play())


@pytest.mark.parametrize("is_begun", [True, False])
def test_a_base_that_is_lost_meanwhile_ends_the_imprint_and_nothing_else(tmp_path: Path, *, is_begun: bool) -> None:
    """Its manifest was damaged while the power was off: the round cannot go on, is recorded, and others follow."""

    async def play() -> None:
        async with Site(tmp_path, **RARE) as site:
            await site.serve_second()
            site.daemon.rounds._make_trainer = lambda: held(site.clock)
            drop(tmp_path, 14, "owl", start=100)
            await site.take_all()
            await site.until(S.TRAINING)
            assert site.daemon.want.kind is RoundKind.IMPRINT
            if not is_begun:  # the power went right after the spec was written
                await site.daemon.store(site.daemon.buffer.database.execute, "DELETE FROM rounds WHERE id = 2")
        (tmp_path / "state" / "models" / "v000002" / "manifest.json").write_text("damaged")
        async with Site(tmp_path, make_trainer=held, **RARE) as site:
            assert site.daemon.serving.served.version == 1
            await site.until(S.TRAINING)
            site.trainers[0].end(TrainerOutcome.BAD_MODEL, 21, "there is no version 2")
            await site.tick(2)
            assert (await site.daemon.status())["last_round"]["outcome"] == "bad_model"
            drop(tmp_path, 40, "owl", start=200)
            await site.take_all()
            await site.until(S.TRAINING)
            spec = site.trainers[-1].spec
            assert spec is not None
            assert (spec.round_id, spec.base_version) == (3, 1)

    run(play())


def test_what_is_known_of_classes_without_samples_is_measured_or_unknown() -> None:
    """Shares of the reference images, and none without any."""
    assert absent(None) is None
    assert absent(AbsentClasses(classes=2)) == {
        "classes": 2, "reference_images": 0, "accuracy": None, "accuracy_before": None
    }  # fmt: skip
    found = absent(AbsentClasses(classes=1, count=20, base_correct=18, candidate_correct=15))
    assert found == {"classes": 1, "reference_images": 20, "accuracy": 0.75, "accuracy_before": 0.9}
