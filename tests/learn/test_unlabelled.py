"""Rounds on samples that nobody has labelled, and rounds that look at no label: what they learn from and what they say."""

from __future__ import annotations

import json
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "teach"))
sys.path.insert(0, str(Path(__file__).parent))

from conftest_site import RECIPE, SIZE, RecordingControl, Site, make_site, picture, read_manifest, run_here
from teacher_models import colour_model

from edgetune.images import decode, to_input
from edgetune.learn import data, round_samples
from edgetune.learn.control import SilentControl, StopAskedError
from edgetune.learn.data import Images, LabelledImages
from edgetune.learn.unlabelled import joined, sift
from edgetune.serve.engine import Engine
from edgetune.store.models import version_name
from edgetune.types import FrozenSample, Mark, RoundKind, Split, TeacherSource, TrainerOutcome
from edgetune.wire import to_json

BRIEF = replace(RECIPE, distillation=0.5, max_steps=8)
NAMES: dict[str, str | int] = {"red": 0, "green": 1}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Forty samples of each of three classes and an untrained model."""
    return make_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def teacher(site: Site) -> TeacherSource:
    """A file with three outputs, of which red and green are classes of ours."""
    return TeacherSource(
        kind="file", file=str(colour_model(site.root / "teacher.onnx")), classes=NAMES, timeout_s=120
    )  # fmt: skip


def unlabelled(samples: tuple[FrozenSample, ...], *, but: int = 0) -> tuple[FrozenSample, ...]:
    """The training samples without their labels, all but the first few."""
    kept = {s.sample_id for s in [s for s in samples if s.split is Split.TRAINING][:but]}
    return tuple(
        replace(s, label=None) if s.split is Split.TRAINING and s.sample_id not in kept else s for s in samples
    )


def prepare(site: Site, name: str, **changes: Any) -> tuple[Path, Path]:
    """A round directory and models of its own."""
    models = Path(shutil.copytree(site.root / "models", site.root / f"models-{name}"))
    changes = {"recipe": BRIEF, "answers_dir": str(site.root / f"answers-{name}"), "models_dir": models, **changes}
    return site.round_dir(name, **changes), models


def weights(models: Path) -> bytes:
    """What a round ends with."""
    return (models / "v000002" / "weights.safetensors").read_bytes()


def journal(directory: Path) -> dict[str, Any]:
    """Of a round."""
    plain: dict[str, Any] = json.loads((directory / "journal.json").read_text())
    return plain


def brightness(count: int, decoded: int) -> LabelledImages:
    """Images of one value each, 0, 10, 20, ...; `decoded` of them are in memory."""
    pixels = np.broadcast_to(10 * np.arange(decoded, dtype=np.uint8)[:, None, None, None], (decoded, 16, 16, 3))
    return LabelledImages(np.arange(count), np.zeros(count, np.int64), pixels.copy(), Path(), SIZE)


def test_only_those_that_the_teacher_is_twice_sure_of_get_its_word() -> None:
    """Unsure, of a class that is none of ours, sure of another class when changed, or less sure then: left out."""
    first = {0: (0.97, 0.01), 10: (0.6, 0.4), 20: (0.03, 0.02), 30: (0.96, 0.01), 40: (0.96, 0.0), 50: (0.01, 0.99)}
    second = {**first, 30: (0.01, 0.96), 40: (0.8, 0.0)}
    asked: list[int] = []

    def ask(images: Images) -> npt.NDArray[np.float64]:
        asked.append(len(images))
        table = first if len(asked) % 2 else second
        return np.array([table[int(image[0, 0, 0])] for image in images])

    data = brightness(6, 6)
    found = sift(data, ask, confidence_min=0.9, how="crop_flip", seed=0, control=SilentControl())
    assert found.labels == {0: 0, 5: 1}
    assert (found.unsure, found.inconsistent) == (2, 2)
    control = SilentControl()
    control.stop()
    with pytest.raises(StopAskedError):
        sift(data, ask, confidence_min=0.9, how="none", seed=0, control=control)


def test_at_any_threshold_a_class_that_is_none_of_ours_is_no_answer() -> None:
    """At 0.4 for one of ours and 0.6 for something else it is something else."""
    data = brightness(1, 1)
    ask: Any = lambda images: np.full((len(images), 2), 0.2) + np.array([0.2, -0.2])  # noqa: E731
    assert sift(data, ask, confidence_min=0.1, how="none", seed=0, control=SilentControl()).unsure == 1


@pytest.mark.parametrize(("labelled", "nameless", "decoded"), [(3, 4, 5), (3, 2, 5), (2, 4, 2)])
def test_what_is_decoded_stays_in_front_when_samples_join(labelled: int, nameless: int, decoded: int) -> None:
    """Whichever part is not wholly in memory, a position finds the image of its sample."""
    here, more = brightness(3, labelled), replace(brightness(4, nameless), sample_ids=np.arange(100, 104))
    whole = joined(here, more, {101: 1, 103: 2})
    assert whole.sample_ids.tolist() == [0, 1, 2, 101, 103]
    assert whole.labels.tolist() == [0, 0, 0, 1, 2]
    expected = [0, 10, 20, 10, 30][: len(whole.pixels)]
    assert whole.pixels[:, 0, 0, 0].tolist() == expected
    assert len(whole.pixels) == min(decoded, 4 if nameless == 2 else decoded)
    assert joined(here, more, {}) is here


@pytest.mark.parametrize("transfer", ["hinton", "label_free"])
def test_a_round_without_any_label_learns_what_the_teacher_knows(
    site: Site, teacher: TeacherSource, transfer: str
) -> None:
    """Red and green are told apart on the hold-out; blue, which the teacher calls something else, is left out."""
    recipe = replace(BRIEF, transfer=transfer, max_steps=40, epochs_after=20)
    directory, models = prepare(
        site, f"none-{transfer}", teacher=teacher, recipe=recipe, kind=RoundKind.ADAPT, samples=unlabelled(site.samples)
    )
    assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
    counts = journal(directory)["unlabelled"]
    nameless = [s for s in unlabelled(site.samples) if s.label is None]
    true = {s.sample_id: s.label for s in site.samples}
    assert sum(counts["by_class"].values()) == counts["used"]
    assert counts["by_class"]["red"] == sum(true[s.sample_id] == "red" for s in nameless)
    assert set(counts["by_class"]) == {"red", "green"}
    assert counts["unsure"] + counts["inconsistent"] == sum(true[s.sample_id] == "blue" for s in nameless)
    assert journal(directory)["doubts"] == {"classes": {}, "worst": []}, "nobody has labelled what is contradicted"
    comparison = read_manifest(models / "v000002").comparison
    assert comparison is not None
    scores = [comparison.candidate.per_class[label] for label in ("red", "green")]
    assert sum(s.correct for s in scores) >= 0.8 * sum(s.count for s in scores)


def test_unlabelled_images_get_the_memory_that_all_others_leave(
    site: Site, teacher: TeacherSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation and hold-out are in memory too: together they stay within the bound."""
    kept: list[int] = []

    def reading(*order: Any, **more: Any) -> tuple[LabelledImages, tuple[int, ...]]:
        found = data.load_unlabelled(*order, **more)
        kept.append(len(found[0].pixels))
        return found

    image_bytes, samples = 16 * 16 * 3, unlabelled(site.samples, but=10)
    monkeypatch.setattr(data, "MEMORY_MAX_BYTES", (len(site.samples) - 20) * image_bytes)
    monkeypatch.setattr(round_samples, "load_unlabelled", reading)
    directory, _ = prepare(site, "bounded", teacher=teacher, samples=samples, kind=RoundKind.ADAPT)
    assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
    assert kept == [sum(sample.label is None for sample in samples) - 20]


def test_a_stopped_round_asks_about_unlabelled_samples_once(site: Site, teacher: TeacherSource) -> None:
    """It ends with the bits of the round that nothing stopped, and the second start finds what the first was told."""
    samples = unlabelled(site.samples, but=10)
    whole, models = prepare(site, "whole", teacher=teacher, samples=samples)
    assert run_here(whole)[0] is TrainerOutcome.PUBLISHED
    stopped, others = prepare(site, "stopped", teacher=teacher, samples=samples)
    assert run_here(stopped, RecordingControl(stop_after=[3]))[0] is TrainerOutcome.CHECKPOINTED
    shutil.rmtree(site.root / "answers-stopped")
    asked = journal(stopped)["teacher"]["images_asked"]
    assert run_here(stopped)[0] is TrainerOutcome.PUBLISHED
    assert weights(others) == weights(models)
    assert journal(stopped)["unlabelled"] == journal(whole)["unlabelled"]
    count = sum(s.label is None for s in samples)
    assert journal(stopped)["teacher"]["images_asked"] - asked < 2 * count, "they were asked about again"


def test_the_factory_model_names_unlabelled_samples_where_it_is_asked_to(site: Site) -> None:
    """An untrained one is sure of nothing; with any confidence taken it names them, each with a class of its own."""
    samples = unlabelled(site.samples)
    outcome, message, hint = run_here(prepare(site, "unsure", samples=samples)[0])
    assert outcome is TrainerOutcome.NO_SAMPLES
    assert "the teacher is sure of none" in message
    assert "unlabelled_confidence_min" in hint
    recipe = replace(BRIEF, unlabelled_confidence_min=0.0, transfer="label_free")
    directory, _ = prepare(site, "any", samples=samples, recipe=recipe, kind=RoundKind.ADAPT)
    assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
    assert journal(directory)["unlabelled"]["used"] > 0


def test_without_labels_is_without_labels(site: Site, teacher: TeacherSource) -> None:
    """Shuffled labels change no bit of a label-free round, ranking and cutting included; they do of another one."""
    training = [sample for sample in site.samples if sample.split is Split.TRAINING]
    labels = [sample.label for sample in training]
    random.Random(1).shuffle(labels)
    renamed = {s.sample_id: label for s, label in zip(training, labels, strict=True)}
    shuffled = tuple(replace(s, label=renamed.get(s.sample_id, s.label)) for s in site.samples)
    ends = {}
    for transfer in ("label_free", "replay"):
        recipe = replace(BRIEF, transfer=transfer)
        for name, samples in (("right", site.samples), ("shuffled", shuffled)):
            directory, models = prepare(
                site, f"{transfer}-{name}", teacher=teacher, recipe=recipe, samples=samples
            )  # fmt: skip
            assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
            ends[transfer, name] = weights(models)
    assert ends["label_free", "right"] == ends["label_free", "shuffled"]
    assert ends["replay", "right"] != ends["replay", "shuffled"]
    assert ends["replay", "right"] != ends["label_free", "right"]


def test_label_free_learns_from_the_factory_model_alone(site: Site) -> None:
    """A network that was cut out of it: its logits come nearer to those of the factory model, whatever the labels are."""
    images = np.stack([to_input(decode(picture("green", 500 + i)), SIZE) for i in range(20)])
    before = Engine.load(site.root / "models" / "v000001", threads=1).predict(images)
    away = {}
    for steps in (1, 30):
        recipe = replace(
            BRIEF, transfer="label_free", order="prune_first", max_steps=steps, epochs_after=20, augment="none"
        )
        directory, models = prepare(site, f"own ancestor {steps}", recipe=recipe)
        assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
        assert read_manifest(models / "v000002").pruning is not None
        after = Engine.load(models / "v000002", threads=1).predict(images)
        away[steps] = float(np.sqrt(((after - before) ** 2).mean()))
    assert away[30] < 0.7 * away[1]


def test_a_label_free_round_refuses_a_class_that_only_labels_could_teach(site: Site, teacher: TeacherSource) -> None:
    """The teacher does not know it, and no label is looked at: the outcome names the class and the way out."""
    samples = tuple(replace(s, label="violet") if s.label == "blue" else s for s in site.samples)
    directory, _ = prepare(
        site, "violet", teacher=teacher, samples=samples, classes=("red", "green", "blue", "violet"),
        recipe=replace(BRIEF, transfer="label_free"),
    )  # fmt: skip
    outcome, message, hint = run_here(directory)
    assert outcome is TrainerOutcome.BAD_TEACHER
    assert "does not know the new class violet" in message
    assert "hinton" in hint


@pytest.mark.parametrize(("transfer", "share"), [("label_free", 1.0), ("replay", 1.0), ("hinton", 0.5)])
def test_an_imprinted_class_is_not_called_learnt_by_a_round_that_looks_at_no_label(
    site: Site, teacher: TeacherSource, transfer: str, share: float
) -> None:
    """The teacher does not know it: its answers stay provisional until a round that looks at its labels."""
    samples = tuple(replace(s, label="violet") if s.label == "blue" else s for s in site.samples)
    directory, models = prepare(
        site, f"imprinted {transfer}", teacher=teacher, samples=samples, classes=("red", "green", "violet"),
        recipe=replace(BRIEF, transfer=transfer, distillation=share),
    )  # fmt: skip
    marked = replace(site.manifest, classes=("red", "green", "violet"), marks={"violet": Mark.PROVISIONAL.value})
    (models / version_name(site.manifest.version) / "manifest.json").write_bytes(to_json(marked))
    outcome, message, _ = run_here(directory)
    assert outcome is TrainerOutcome.PUBLISHED, message
    marks = read_manifest(models / "v000002").marks
    assert marks == ({} if transfer == "hinton" else {"violet": Mark.PROVISIONAL.value})
