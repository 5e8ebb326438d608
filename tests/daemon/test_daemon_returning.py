"""A class that this site had not shown comes back: real store, real engines, fake trainer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeClock, FakeTrainer, publish_factory
from site_on_disk import Site, drop, drop_unlabelled, run

from edgetune.cli.words import as_text, describe
from edgetune.config import Config, parse
from edgetune.daemon import metrics, settings
from edgetune.daemon.service import DaemonService
from edgetune.decide.returning import ReturnPolicy
from edgetune.errors import ConfigError
from edgetune.types import Quantity, RoundKind, RoundState, Split

S = RoundState
KNOWS = np.eye(3, dtype=np.float32) * 0.05  # red is cat, green is dog, blue is owl
ERRS = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 1]], dtype=np.float32) * 0.05  # green is owl too
FORGOT = KNOWS * np.array([1, 1, 0], dtype=np.float32)  # blue is anything but owl


def forgetful(clock: FakeClock) -> FakeTrainer:
    """A good candidate, which the owl was not shown to."""
    return FakeTrainer(clock, weights=FORGOT)


class Forest(Site):
    """A site whose factory model knows owls, and whose first round shows cats and dogs alone."""

    def __init__(self, root: Path, **changes: Any) -> None:
        if not (root / "state" / "models").exists():
            publish_factory(root / "state", ("cat", "dog", "owl"), KNOWS)
        super().__init__(root, **{"make_trainer": forgetful, **changes})

    async def forget_owls(self) -> None:
        """Serve version 2."""
        await self.serve_second()
        await self.tick()
        assert self.daemon.returning.absent == {"owl"}
        await self.look(2)  # at the labelled ones

    async def look(self, times: int = 1) -> None:
        """Let so many looks be due and end."""
        await self._end_of_look()
        for _ in range(times):
            await self.tick(seconds=6)
            await self._end_of_look()
        await self.tick(seconds=0.1)

    async def _end_of_look(self) -> None:
        task = self.daemon.returning._looks.task
        if task is not None:
            await asyncio.wait([task])

    async def waiting(self) -> int:
        """Unlabelled training samples."""
        return len(await self.rows(split=Split.TRAINING, labelled=False))


def test_a_class_that_comes_back_is_noticed_labelled_and_trained_on(tmp_path: Path) -> None:
    """A round with the reason in words; the factory model's word goes into training alone, and once it is used, rests."""

    async def play() -> None:
        async with Forest(tmp_path) as site:
            await site.forget_owls()
            drop_unlabelled(tmp_path, 30, "owl")
            drop_unlabelled(tmp_path, 10, "cat")
            await site.take_all()
            unlabelled = await site.waiting()
            assert unlabelled > 10
            await site.look()
            said = await site.rows(label="owl")
            assert len(said) >= 6
            assert {(row["split"], row["label_source"]) for row in said} == {("training", "factory")}
            (event,) = await site.events("class.returned")
            assert event["text"].startswith(f"the factory model sees 'owl' in {len(said)} of the last {unlabelled} unl")
            await site.until_served(3)
            spec = site.trainers[1].spec
            assert spec is not None
            assert spec.kind is RoundKind.RESHAPE
            assert spec.reason.startswith(event["text"])
            owls = [each for each in spec.samples if each.label == "owl"]
            assert len(owls) == len(said)
            assert {each.split for each in owls} == {Split.TRAINING}
            await site.look(3)
            assert (
                "was shown 'owl', which the served version was not"
                in (await site.daemon.status())["last_round"]["reasons"]
            )
            assert site.daemon.returning.absent == frozenset()
            assert not (await site.daemon.status())["returning"]["is_watched"]
            assert site.state is S.IDLE
            assert len(site.trainers) == 2
            assert len(await site.events("class.returned")) == 1

    run(play())


def test_nothing_is_noticed_while_the_site_shows_what_it_showed(tmp_path: Path) -> None:
    """Cats, dogs, and two owls: the few are counted and named, and nothing is labelled."""

    async def play() -> None:
        async with Forest(tmp_path) as site:
            await site.forget_owls()
            for colour in ("cat", "dog"):
                drop_unlabelled(tmp_path, 20, colour)
            drop_unlabelled(tmp_path, 7, "owl")
            await site.take_all()
            unlabelled = await site.waiting()
            await site.look(3)
            status = await site.daemon.status()
            shown = status["returning"]
            assert (shown["looked_at"], shown["returned"], shown["wanted"]) == (unlabelled, [], 6)
            ((name, count),) = [(entry["class"], entry["count"]) for entry in shown["sightings"]]
            assert name == "owl"
            assert 3 <= count < 6
            assert f"'owl', which this site had not shown, may be coming back: so far {count} of 6" in as_text(
                describe(status)
            )
            (sightings,) = [m for m in metrics.collect(site.daemon) if m[0] == "edgetune_class_sightings"]
            assert sightings[3] == [({"class": "owl"}, float(count))]
            assert await site.rows(label="owl") == []
            assert not site.daemon.want.is_wanted
            assert len(site.trainers) == 1

    run(play())


def test_a_factory_model_that_errs_about_this_site_is_not_believed(tmp_path: Path) -> None:
    """It takes this site's dogs for owls, labelled ones too: so many sightings say nothing."""

    async def play() -> None:
        publish_factory(tmp_path / "state", ("cat", "dog", "owl"), ERRS)
        async with Forest(tmp_path) as site:
            await site.forget_owls()
            drop_unlabelled(tmp_path, 20, "dog")
            drop_unlabelled(tmp_path, 10, "cat")
            await site.take_all()
            await site.look(3)
            shown = site.daemon.returning.summary()
            assert shown["controls"] == len(await site.rows(split=Split.TRAINING, labelled=True))
            assert shown["sightings"][0]["count"] >= 6, "enough, were it not for the controls"
            assert shown["returned"] == []
            assert not site.daemon.want.is_wanted

    run(play())


@pytest.mark.parametrize("is_cut_off", [False, True])
def test_a_restart_between_two_looks_or_within_one_loses_and_repeats_nothing(
    tmp_path: Path, *, is_cut_off: bool
) -> None:
    """What was sighted before it counts after it, and no image is asked about twice."""

    async def play() -> None:
        async with Forest(tmp_path) as site:
            await site.forget_owls()
            drop_unlabelled(tmp_path, 7, "owl")
            await site.take_all()
            first = await site.waiting()
            assert 0 < first < 6
            if is_cut_off:
                await site.tick(seconds=6)  # the look has begun, and the daemon stops
            else:
                await site.look()
                assert site.daemon.returning.summary()["looked_at"] == first
        async with Forest(tmp_path) as site:
            await site.look()
            assert site.daemon.returning.summary()["looked_at"] == first
            assert await site.events("class.returned") == []
            drop_unlabelled(tmp_path, 8, "owl", start=100)
            await site.take_all()
            both = await site.waiting()
            assert both >= 6
            await site.look()
            (event,) = await site.events("class.returned")
            assert event["data"]["sightings"] == both
        async with Forest(tmp_path) as site:
            await site.look(2)
            assert len(await site.events("class.returned")) == 1
            await site.until_served(3)

    run(play())


def test_no_image_is_asked_about_beside_another_version_than_the_watched_one(tmp_path: Path) -> None:
    """A swap in the middle of a tick: what the new version says of an image says nothing about the old one's classes."""

    async def play() -> None:
        async with Forest(tmp_path) as site:
            await site.forget_owls()
            drop_unlabelled(tmp_path, 30, "owl")
            await site.take_all()
            waiting = await site.waiting()
            await site.tick(seconds=0.1)
            await site.daemon.serving.change_to(1, "by hand", is_by_hand=True)
            site.clock.advance(6)
            await site.daemon.returning.tick(site.daemon.budgeting.verdict, is_round_active=False)
            await site._end_of_look()
            assert site.daemon.returning.summary()["looked_at"] == 0
            await site.daemon.serving.change_to(2, "by hand", is_by_hand=True)
            await site.look(2)
            assert len(await site.rows(label="owl")) == waiting

    run(play())


def test_a_persons_word_overrides_the_factory_models(tmp_path: Path) -> None:
    """On a sample that it labelled, and on a sighting that it has not labelled yet, which is none any more."""

    async def play() -> None:
        async with Forest(tmp_path) as site:
            await site.forget_owls()
            service = DaemonService(site.daemon)
            drop_unlabelled(tmp_path, 9, "owl")
            await site.take_all()
            waiting = await site.rows(split=Split.TRAINING, labelled=False)
            assert len(waiting) < 6
            await site.look()
            await service.data_label(str(waiting[0]["id"]), "cat")
            await site.daemon.set_paused(True)
            drop_unlabelled(tmp_path, 20, "owl", start=100)
            await site.take_all()
            await site.daemon.set_paused(False)
            site.trainers.clear()
            site.daemon.rounds._make_trainer = lambda: FakeTrainer(site.clock, is_held=True)
            await site.look()
            owls = await site.rows(label="owl")
            assert waiting[0]["id"] not in {row["id"] for row in owls}
            await service.data_label(str(owls[0]["id"]), "owl")
            await service.data_label(str(owls[1]["id"]), "dog")
            after = {row["id"]: (row["label"], row["label_source"]) for row in await site.rows()}
            assert after[owls[0]["id"]] == ("owl", "api")
            assert after[owls[1]["id"]] == ("dog", "api")
            assert after[owls[2]["id"]] == ("owl", "factory")

    run(play())


def test_a_refused_round_is_not_wanted_again_for_the_same_sightings(tmp_path: Path) -> None:
    """New ones are needed, and they wait for the cool-down as anything does."""

    async def play() -> None:
        async with Forest(tmp_path) as site:
            await site.forget_owls()
            site.daemon.rounds._make_trainer = lambda: FakeTrainer(site.clock, right=0.1, weights=FORGOT)
            drop_unlabelled(tmp_path, 30, "owl")
            await site.take_all()
            await site.look()
            await site.until(S.COOLDOWN)
            await site.until(S.IDLE, ticks=120)
            await site.look(3)
            assert site.daemon.returning.absent == {"owl"}
            assert not site.daemon.want.is_wanted
            assert site.daemon.returning.summary()["returned"] == []
            drop_unlabelled(tmp_path, 30, "owl", start=100)
            await site.take_all()
            await site.look(2)
            assert len(await site.events("class.returned")) == 2

    run(play())


def test_nobody_is_asked_over_budget_by_the_factory_version_or_when_it_is_switched_off(tmp_path: Path) -> None:
    """Each of them alone is enough."""

    async def play() -> None:
        async with Forest(tmp_path) as site:
            drop_unlabelled(tmp_path, 30, "owl")
            await site.take_all()
            await site.look(2)
            assert not site.daemon.returning.summary()["is_watched"], "the factory version is served"
            policy, site.daemon.returning.policy = site.daemon.returning.policy, None
            await site.forget_owls()
            await site.look(2)
            assert site.daemon.returning.summary()["looked_at"] == 0
            site.sensors.values[Quantity.MEM_AVAILABLE_MIB] = 100.0
            site.daemon.returning.policy = policy
            await site.look(2)
            assert site.daemon.returning.summary()["looked_at"] == 0
            site.sensors.values[Quantity.MEM_AVAILABLE_MIB] = 4000.0
            await site.look(3)
            assert len(await site.events("class.returned")) == 1

    run(play())


def test_labelled_samples_of_an_absent_class_are_a_return_too(tmp_path: Path) -> None:
    """Fewer are needed than new samples of the classes that were shown."""

    async def play() -> None:
        async with Forest(tmp_path) as site:
            await site.forget_owls()
            drop(tmp_path, 14, "owl")
            await site.take_all()
            owls = await site.rows(label="owl", split=Split.TRAINING)
            assert 5 <= len(owls) < 20
            await site.until_served(3)
            spec = site.trainers[1].spec
            assert spec is not None
            assert spec.reason.startswith(f"class 'owl', which this site had not shown, is back with {len(owls)} train")

    run(play())


def test_a_factory_model_that_cannot_be_loaded_is_told_once_and_serving_goes_on(tmp_path: Path) -> None:
    """A damaged file is no reason to stop."""

    async def play() -> None:
        async with Forest(tmp_path) as site:
            await site.forget_owls()
            (tmp_path / "state" / "models" / "v000001" / "model.onnx").write_bytes(b"damaged")
            drop_unlabelled(tmp_path, 20, "owl")
            await site.take_all()
            await site.look(3)
            (event,) = await site.events("class.unwatched")
            assert "cannot be loaded" in event["text"]
            assert (await site.daemon.status())["returning"]["looked_at"] == 0
            assert site.daemon.serving.served.version == 2

    run(play())


def test_a_round_that_did_not_write_down_what_it_showed_is_told_by_its_hold_out(tmp_path: Path) -> None:
    """One of an older edgetune: its classes are those that it was judged on."""

    async def play() -> None:
        async with Forest(tmp_path) as site:
            await site.forget_owls()
            await site.daemon.store(site.daemon.history.update_round, 1, shown=None)
        async with Forest(tmp_path) as site:
            await site.tick()
            assert set(site.daemon.returning.shown) == {"cat", "dog"}
            assert site.daemon.returning.absent == {"owl"}

    run(play())


def test_the_defaults_are_those_that_were_measured() -> None:
    """config.yaml, and the policy that benchmarks/returning.py plays with; null switches it off."""
    assert settings.return_policy(Config()) == ReturnPolicy()
    assert settings.return_policy(parse("triggers: {returned_class_sightings: null}")) is None
    with pytest.raises(ConfigError, match="more than returned_class_window"):
        parse("triggers: {returned_class_sightings: 500}")
