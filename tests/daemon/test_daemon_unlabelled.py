"""Rounds that use images which nobody labelled, and versions with classes that the site has never shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from fakes import FakeTrainer, manifest, picture, publish_factory, tiny_files
from site_on_disk import COLOURS, Site, drop, drop_unlabelled, run

from edgetune.decide.trigger import ManualRequest
from edgetune.store.models import Models, publish
from edgetune.types import Mark, RoundKind, Split

FILE = {"teacher": "file", "teacher_file": "/srv/teacher.onnx"}
COUNTS = {"used": 12, "unsure": 3, "inconsistent": 1, "by_class": {"cat": 5, "dog": 7}}


class Asking(FakeTrainer):
    """A trainer that leaves a journal, as one does that has asked about unlabelled samples."""

    async def start(self, round_dir: Path, *, nice: int, oom_score_adj: int) -> None:
        (round_dir / "journal.json").write_text(json.dumps({"unlabelled": COUNTS}))
        await super().start(round_dir, nice=nice, oom_score_adj=oom_score_adj)


def test_new_unlabelled_images_make_a_round_worth_it_once(tmp_path: Path) -> None:
    """They are in the spec beside the labelled ones, in the books as the teacher named them, and used up by the round."""

    async def play() -> None:
        drop(tmp_path, 40)
        triggers = {"new_unlabelled": 20}
        async with Site(tmp_path, make_trainer=Asking, training=FILE, triggers=triggers) as site:
            await site.take_all()
            await site.until_served(2)
            for trainer in site.trainers:
                assert trainer.spec is not None
                assert all(sample.label for sample in trainer.spec.samples)
            drop_unlabelled(tmp_path, 60, "owl")
            await site.take_all()
            await site.until_served(3)
            assert "new unlabelled images, for the teacher to name" in site.trainers[-1].spec.reason
            spec = site.trainers[-1].spec
            nameless = [sample for sample in spec.samples if sample.label is None]
            assert {sample.split for sample in nameless} == {Split.TRAINING}
            assert len(nameless) >= 20
            await site.tick()
            last = (await site.daemon.status())["last_round"]
            assert last["unlabelled"] == COUNTS
            row = await site.daemon.store(site.daemon.history.round, spec.round_id)
            assert row["details"]["unlabelled"] == len(nameless)
            labelled = sum(s.label == "cat" and s.split is Split.TRAINING for s in spec.samples)
            assert row["details"]["shown"]["cat"] == labelled + 5
            await site.tick(5)
            assert site.daemon.stats.new_unlabelled == 0
            assert len(site.trainers) == 2

    run(play())


def test_more_unlabelled_images_than_a_round_takes_are_all_used_and_then_rest(tmp_path: Path) -> None:
    """What one round left over the next one takes, instead of the same again for ever."""

    async def play() -> None:
        drop(tmp_path, 40)
        triggers = {"new_unlabelled": 5}
        async with Site(tmp_path, training={**FILE, "samples_max": 20}, triggers=triggers) as site:
            await site.take_all()
            await site.until_served(2)
            drop_unlabelled(tmp_path, 90, "owl")
            await site.take_all()
            assert site.daemon.stats is not None
            await site.tick(100)
            taken = [{s.sample_id for s in t.spec.samples if s.label is None} for t in site.trainers[1:] if t.spec]
            assert 2 <= len(taken) <= 4
            assert taken[0] & taken[1] == set()
            assert site.daemon.stats.new_unlabelled < 5

    run(play())


def test_with_the_factory_model_alone_they_are_left_where_they_are(tmp_path: Path) -> None:
    """By default they are in no spec; asked for, they are in one that something else wanted, and want none themselves."""

    async def play(training: dict[str, Any], *, is_used: bool) -> None:
        root = tmp_path / str(is_used)
        (root / "state" / "inbox").mkdir(parents=True)
        drop(root, 40)
        drop_unlabelled(root, 30, "owl")
        async with Site(root, training=training, triggers={"new_unlabelled": 5}) as site:
            await site.take_all()
            await site.until_served(2)
            spec = site.trainers[0].spec
            assert spec is not None
            assert any(sample.label is None for sample in spec.samples) == is_used
            drop_unlabelled(root, 30, "cat", start=100)
            await site.take_all()
            await site.tick(10)
            assert len(site.trainers) == 1

    run(play({}, is_used=False))
    run(play({"unlabelled": "use"}, is_used=True))


def test_a_round_can_be_asked_for_without_any_label_for_training(tmp_path: Path) -> None:
    """The hold-out still needs labels, else the gate would refuse in the end; training needs none."""

    async def play() -> None:
        (tmp_path / "state" / "inbox").mkdir(parents=True)
        drop_unlabelled(tmp_path, 40, "owl")
        async with Site(tmp_path, training={**FILE, "transfer": "label_free"}) as site:
            await site.take_all()
            request = ManualRequest()
            want = await site.daemon.consider(request)
            (missing,) = want.missing
            assert missing.startswith("0 of 10 hold-out samples")
            site.daemon.ask_for_round(replace(request, is_forced=True))
            await site.tick(5)
            (trainer,) = site.trainers
            assert trainer.spec is not None
            assert {sample.label for sample in trainer.spec.samples} == {None}
            assert trainer.spec.recipe.transfer == "label_free"

    run(play())


def publish_marked(state_dir: Path, mark: str | None = Mark.NEVER_SEEN_HERE.value) -> None:
    """A served version that knows owls, which the factory model does not: by a teacher's word."""
    publish_factory(state_dir)
    marks = {} if mark is None else {"owl": mark}
    made = manifest(("cat", "dog", "owl"), kind="adapt", parent=1, marks=marks)
    publish(state_dir / "models", 2, tiny_files(3, 2), made)
    Models(state_dir / "models", quarantine=state_dir / "quarantine" / "models").promote(2)


def test_a_reshape_begins_without_the_classes_that_a_teacher_lent(tmp_path: Path) -> None:
    """The factory model does not know them; an adapting round keeps what the weights know. What is refused is told."""

    async def play(kind: RoundKind, classes: tuple[str, ...]) -> None:
        root = tmp_path / kind.value
        publish_marked(root / "state")
        drop(root, 40)
        training = {**FILE, "unseen_classes": "all"}
        async with Site(root, training=training, new_samples=1000, classes={"refused": ["toad"]}) as site:
            await site.take_all()
            site.daemon.ask_for_round(ManualRequest(kind=kind))
            await site.tick(3)
            spec = site.trainers[0].spec
            assert spec is not None
            assert (spec.base_version, spec.kind, spec.classes) == (2, kind, classes)
            assert spec.teacher.unseen_classes == "all"
            assert spec.refused_classes == ("toad",)

    run(play(RoundKind.RESHAPE, ("cat", "dog")))
    run(play(RoundKind.ADAPT, ("cat", "dog", "owl")))


def test_a_reshape_begins_without_a_class_whose_samples_are_all_gone(tmp_path: Path) -> None:
    """Learnt here and purged since: its output would be nobody's. With one sample left it is learnt again."""

    async def play(owls: int) -> None:
        root = tmp_path / str(owls)
        publish_marked(root / "state", mark=None)
        drop(root, 40)
        if owls:
            drop(root, owls, "owl")
        async with Site(root, new_samples=1000, classes={"accepted": ["owl"]}) as site:
            await site.take_all()
            site.daemon.ask_for_round(ManualRequest(kind=RoundKind.RESHAPE))
            await site.tick(3)
            spec = site.trainers[0].spec
            assert spec is not None
            assert spec.classes == (("cat", "dog", "owl") if owls else ("cat", "dog"))

    run(play(0))
    run(play(12))


def test_the_first_samples_of_a_marked_class_are_those_of_a_new_class(tmp_path: Path) -> None:
    """It is told in every answer, and enough labelled samples of it want a round."""

    async def play() -> None:
        publish_marked(tmp_path / "state")
        drop(tmp_path, 40)
        async with Site(tmp_path, new_samples=1000, classes={"accepted": ["owl"]}) as site:
            await site.take_all()
            await site.tick(3)
            assert not site.trainers
            answer = await site.daemon.serving.predict(picture(COLOURS["owl"], 1), top_k=3, record=False)
            assert answer.marks == {"owl": "never_seen_here"}
            drop(tmp_path, 12, "owl")
            await site.take_all()
            await site.tick(3)
            spec = site.trainers[0].spec
            assert spec is not None
            assert "class 'owl' is new" in spec.reason
            assert spec.classes == ("cat", "dog", "owl")

    run(play())
