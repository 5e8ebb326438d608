"""What the served model says about unlabelled images, and what comes of it: real store, real engines, fake trainer."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import SIDE, FakeClock, FakeTrainer, picture, publish_factory
from site_on_disk import Site, drop, drop_unlabelled, held, put, run

from edgetune.cli.words import as_text, describe
from edgetune.config import Config, parse
from edgetune.daemon import metrics, settings
from edgetune.daemon.service import DaemonService
from edgetune.daemon.watching import WatchPolicy
from edgetune.decide.drift import DriftPolicy
from edgetune.errors import NotFoundError
from edgetune.images import decode
from edgetune.types import Quantity, RoundKind, RoundState, Split

KNOWS = np.array([[1, 0], [0, 1], [0, 0]], dtype=np.float32) * 0.02  # red is cat, green is dog; blue says nothing
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
            task = self.daemon.watching._looks.task
            if task is not None:
                await asyncio.wait([task])
        await self.tick(seconds=0.1)

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
        put(root, f"dull-{i}.png", picture((60, 55 + i % 9, 60), 50_000 + i), {"group": f"dull{i}"})


def test_unlabelled_samples_are_answered_beside_the_service_and_asked_about(tmp_path: Path) -> None:
    """Each with why, and how to label it; what is labelled is not asked about again."""

    async def play() -> None:
        async with Lookout(tmp_path) as site:
            drop_unlabelled(tmp_path, 20, "cat")
            drop_dull(tmp_path, 6)
            await site.take_all()
            await site.look()
            everything = {row["id"] for row in await site.rows()}
            assert await site.answers() == dict.fromkeys(everything, 1)
            service = DaemonService(site.daemon)
            learnt_from = {row["id"] for row in await site.rows(split=Split.TRAINING)}
            answer = await service.data_next(count=4)
            assert answer["model_version"] == 1
            asked = [row for row in answer["samples"] if row["guess"] is not None]
            assert {row["sample"] for row in asked} <= learnt_from
            assert re.fullmatch(
                r"one of \d+ taken for \w+, of which \d+ are labelled or asked for; next \w+", asked[0]["why"]
            )
            assert asked[0]["how"] == f"edgetune data label {asked[0]['sample']} CLASS"
            drawn = [row for row in answer["samples"] if row["guess"] is None]
            assert "drawn at random for the hold-out (0 of 10 labelled)" in drawn[0]["why"]
            assert await service.data_next(count=4) == answer
            shown = decode(await service.data_image(str(asked[0]["sample"])))
            assert shown.size == (SIDE, SIDE)
            labelled = await service.data_label(str(asked[0]["sample"]), "cat")
            assert labelled["class_status"] == "accepted"
            unknown = await service.data_label(str(asked[0]["sample"]), "unicorn")
            assert unknown["class_status"] == "pending"
            await service.data_label(str(asked[0]["sample"]), "cat")
            with pytest.raises(NotFoundError, match="there is no sample 99999"):
                await service.data_image("99999")
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
            assert (await site.daemon.status())["watching"]["kept"] == [kept]

    run(play())


def test_images_that_change_are_noticed_and_want_labels_and_then_a_round(tmp_path: Path) -> None:
    """Without labels of the new images no round begins, and status says what it takes; with them one does."""

    async def play() -> None:
        async with Lookout(tmp_path, new_samples=1000) as site:
            drop(tmp_path, 40)
            drop_unlabelled(tmp_path, 40, "cat")
            drop_unlabelled(tmp_path, 30, "dog")
            await site.take_all()
            await site.look(8)
            assert site.watching["shift"] is None
            drop_dull(tmp_path, 60)
            await site.take_all()
            await site.look(4)
            (event,) = await site.events("drift.noticed")
            assert event["text"].startswith("the images have changed: the served model is less sure of them")
            assert event["text"].endswith("label some: edgetune data next")
            want = site.daemon.want
            assert not want.is_wanted
            assert want.missing[0] == "0 of 20 new labels of such images: edgetune data next"
            words = as_text(describe(await site.daemon.status()))
            assert "mean confidence" in words
            assert "so far 0 of 20 new labels of such images: edgetune data next" in words
            assert site.trainers == []
            service = DaemonService(site.daemon)
            old = [row["id"] for row in await site.rows(split=Split.TRAINING) if row["origin"].startswith("cat")]
            for sample in old[-25:]:
                await service.data_label(str(sample), "cat")
            await site.tick()
            assert site.daemon.want.missing[0].startswith("0 of 20"), "labels of what it knows do not help"
            new = [row["id"] for row in await site.rows(split=Split.TRAINING) if row["origin"].startswith("dull")]
            assert len(new) >= 20
            for number, sample in enumerate(new):
                await service.data_label(str(sample), ("cat", "dog")[number % 2])
            await site.until_served(2)
            spec = site.trainers[0].spec
            assert spec is not None
            assert spec.reason.startswith("about " if site.watching["is_low"] else "the images have changed")
            await site.tick()
            assert site.watching["shift"] is None, "it was about another version"

    run(play())


def test_what_is_switched_off_speaks_for_no_round(tmp_path: Path) -> None:
    """An alarm from before the reload neither, and status shows none."""

    async def play() -> None:
        async with Lookout(tmp_path, new_samples=1000) as site:
            drop(tmp_path, 80)
            drop_unlabelled(tmp_path, 70, "cat")
            await site.take_all()
            await site.look(8)
            drop_dull(tmp_path, 80)
            await site.take_all()
            await site.look(8)
            assert site.watching["shift"] is not None
            assert site.watching["is_low"]
            site.daemon.watching.policy = replace(POLICY, drift=None)
            await site.tick()
            assert site.watching["shift"] is None
            assert site.daemon.want.reason.startswith("about ")
            site.daemon.watching.policy = replace(POLICY, drift=None, drop_max=None)
            await site.tick()
            assert not site.watching["is_low"]
            assert "20 new labels of such images" not in str(site.daemon.want.missing)
            site.daemon.watching.policy = replace(POLICY, drift=None, drop_max=1.0)
            await site.tick()
            assert not site.watching["is_low"], "it is lower, but not by so much"

    run(play())


def test_a_fall_of_the_estimate_is_told_once_and_speaks_for_a_round(tmp_path: Path) -> None:
    """Below the accuracy on labelled samples by more than the margin, error bar and all."""

    async def play() -> None:
        async with Lookout(tmp_path, replace(POLICY, drift=None), new_samples=1000) as site:
            drop(tmp_path, 80)
            drop_dull(tmp_path, 80)
            await site.take_all()
            await site.look(8)
            assert site.watching["is_low"]
            (event,) = await site.events("estimate.low")
            assert event["text"].startswith("about ")
            assert "and 100% of the labelled ones; label some: edgetune data next" in event["text"]
            assert site.daemon.want.reason == event["text"].partition(";")[0]
            assert site.daemon.want.missing[0].startswith("0 of 20 new labels")
            await site.look(3)
            assert len(await site.events("estimate.low")) == 1
        async with Lookout(tmp_path, replace(POLICY, drift=None), new_samples=1000) as site:
            await site.look(2)
            assert site.watching["is_low"]
            assert len(await site.events("estimate.low")) == 1
            drop_unlabelled(tmp_path, 70, "dog")
            await site.take_all()
            await site.look(4)
            assert not site.watching["is_low"]
            assert len(await site.events("estimate.recovered")) == 1

    run(play())


@pytest.mark.parametrize("is_cut_off", [False, True])
def test_a_restart_loses_and_repeats_nothing(tmp_path: Path, *, is_cut_off: bool) -> None:
    """Every image counts once in the watch for drift, whether the last look ended or not."""

    async def play() -> None:
        async with Lookout(tmp_path) as site:
            drop_unlabelled(tmp_path, 35, "cat")
            await site.take_all()
            if is_cut_off:
                await site.tick(seconds=6)  # the look has begun, and the daemon stops
            else:
                await site.look()
                assert site.watching["reference"] == 32
        async with Lookout(tmp_path) as site:
            await site.look(3)
            assert site.watching["reference"] == 35
            assert len(await site.answers()) == 35
            drop_unlabelled(tmp_path, 10, "cat", start=100)
            await site.take_all()
            await site.look(2)
            assert site.watching["reference"] == 40
            assert len(site.daemon.watching._memory.watched.window) == 5

    run(play())


def test_another_version_is_watched_anew(tmp_path: Path) -> None:
    """What was said of the version before does not count, nor is its calibration used."""

    async def play() -> None:
        async with Lookout(tmp_path) as site:
            drop_unlabelled(tmp_path, 50, "cat")
            await site.take_all()
            await site.look(2)
            drop(tmp_path, 60)
            await site.take_all()
            await site.until_served(2)
            await site.tick()
            assert site.watching["reference"] == 0
            assert site.watching["why_unknown"] == "this version is new"
            assert (await DaemonService(site.daemon).data_next(count=20))["answered"] == 0
            await site.look()
            assert site.watching["reference"] > 0
            assert {1, 2} == set((await site.answers()).values())
            await site.look(6)
            unlabelled = [row["id"] for row in await site.rows(labelled=False)]
            said = await site.answers()
            assert {said[sample] for sample in unlabelled} == {2}

    run(play())


@pytest.mark.parametrize("is_restarted", [False, True])
def test_an_imprinted_version_goes_on_with_the_watch_of_its_base(tmp_path: Path, *, is_restarted: bool) -> None:
    """The alarm stands, no image counts twice, and the new output has no say; the estimate begins anew."""

    def imprinting(clock: FakeClock) -> FakeTrainer:
        return FakeTrainer(clock, weights=np.hstack([KNOWS, [[0.03], [0.03], [0.03]]]).astype(np.float32))

    def site_with(samples_min: int) -> Lookout:
        return Lookout(
            tmp_path, new_samples=1000, make_trainer=imprinting, classes={"accepted": ["owl"]},
            triggers={"new_class_samples": 500, "drift_samples": 500, "imprint_samples": samples_min},
        )  # fmt: skip

    async def until_imprinted(site: Lookout) -> None:
        await site.until_served(2)
        await site.tick(2)
        assert site.daemon.want.kind is not RoundKind.IMPRINT
        assert site.watching["why_unknown"] == "this version is new"

    async def play() -> None:
        async with site_with(5 if not is_restarted else 500) as site:
            drop(tmp_path, 40)
            drop_unlabelled(tmp_path, 45, "cat")
            await site.take_all()
            await site.look(6)
            drop_dull(tmp_path, 35)
            await site.take_all()
            await site.look(4)
            before, shift = site.daemon.watching._memory.watched, site.watching["shift"]
            assert shift is not None
            assert len(before.reference) == 40
            drop(tmp_path, 14, "owl")
            await site.take_all()
            if not is_restarted:
                await until_imprinted(site)
        async with site_with(5) as site:
            await until_imprinted(site)
            memory = site.daemon.watching._memory
            assert (memory.version, memory.bases, memory.watched) == (2, (1,), before)
            await site.look(8)
            unlabelled = {row["id"] for row in await site.rows(labelled=False)}
            said = await site.answers()
            assert {said[sample] for sample in unlabelled} == {2}
            assert site.daemon.watching._memory.watched == before, "each of them was counted by the base"
            assert site.watching["shift"] == shift
            assert "of 50 answers to labelled" in site.watching["why_unknown"], (
                "what it is estimated from is there again"
            )
            drop_unlabelled(tmp_path, 60, "cat", start=100)
            await site.take_all()
            await site.look(4)
            assert site.watching["shift"] is None, "new ones count, by the outputs that the base has too"
            assert len(await site.events("drift.noticed")) == 1
            assert len(await site.events("drift.passed")) == 1

    run(play())


def test_what_is_purged_is_not_asked_about(tmp_path: Path) -> None:
    """Its answer is gone with it, and a label for it says so."""

    async def play() -> None:
        async with Lookout(tmp_path) as site:
            drop_dull(tmp_path, 20)
            await site.take_all()
            await site.look()
            service = DaemonService(site.daemon)
            first = (await service.data_next(count=5))["samples"][0]["sample"]
            await service.data_purge(sample_id=first, digest=None, label=None, everything=False)
            assert first not in await site.answers()
            assert first not in {row["sample"] for row in (await service.data_next(count=100))["samples"]}
            with pytest.raises(NotFoundError, match="not in the buffer any more"):
                await service.data_label(str(first), "cat")
            for unheard_of in ("9" * 18, "9" * 19, "9" * 63, "0" * 64):
                with pytest.raises(NotFoundError, match=f"no sample {unheard_of}"):
                    await service.data_label(unheard_of, "cat")
            await service.data_purge(sample_id=None, digest=None, label=None, everything=True)
            assert (await service.data_next(count=5))["samples"] == []
            await site.look()

    run(play())


def test_answers_that_are_no_numbers_are_kept_as_none(tmp_path: Path) -> None:
    """A model that overflows on some images is asked about each once, and the rest goes on."""

    async def play() -> None:
        async with Lookout(tmp_path) as site:
            engine = site.daemon.serving.served.engine
            assert engine is not None
            predict = engine.predict
            engine.predict = lambda pixels: (
                predict(pixels)
                + np.float32(  # type: ignore[method-assign]
                    np.nan if pixels[..., 0].mean() > 150 else 0
                )
            )
            drop_unlabelled(tmp_path, 5, "cat")
            drop_unlabelled(tmp_path, 7, "dog")
            await site.take_all()
            await site.look(2)
            assert len(await site.answers()) == 12
            assert site.watching["reference"] == 7
            assert site.watching["trouble"] == ""
            assert (await DaemonService(site.daemon).data_next(count=20))["answered"] <= 7

    run(play())


def test_nobody_is_asked_over_budget_during_a_round_or_when_it_is_switched_off(tmp_path: Path) -> None:
    """Each of them alone is enough."""

    async def play() -> None:
        async with Lookout(tmp_path, make_trainer=held) as site:
            drop_unlabelled(tmp_path, 10, "cat")
            await site.take_all()
            site.sensors.values[Quantity.MEM_AVAILABLE_MIB] = 100.0
            await site.look(2)
            assert await site.answers() == {}
            site.sensors.values[Quantity.MEM_AVAILABLE_MIB] = 4000.0
            site.daemon.watching.policy = None
            await site.look(2)
            assert await site.answers() == {}
            assert site.watching["why_unknown"] == "triggers.watch_interval is null"
            site.daemon.watching.policy = POLICY
            drop(tmp_path, 40)
            await site.take_all()
            await site.until(RoundState.TRAINING)
            before = await site.answers()
            await site.look(2)
            assert await site.answers() == before

    run(play())


def test_the_defaults_are_those_of_the_configuration() -> None:
    """config.yaml, and what benchmarks/estimate.py plays with; null switches each off."""
    assert settings.watch_policy(Config()) == WatchPolicy()
    assert settings.watch_policy(parse("triggers: {watch_interval: null}")) is None
    without = settings.watch_policy(parse("triggers: {drift_window: null, estimate_drop_max: null}"))
    assert without == replace(WatchPolicy(), drift=None, drop_max=None)
