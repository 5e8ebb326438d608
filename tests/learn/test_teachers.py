"""Rounds that learn from a teacher outside the trainer: what they publish, how they go on, and how they fail."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1] / "teach"))
sys.path.insert(0, str(Path(__file__).parent))

from conftest_site import RECIPE, SIZE, RecordingControl, Site, make_site, run_here
from teacher_models import COLOURS, colour_model, stand_in, status

from edgetune.learn.data import Normaliser
from edgetune.learn.teachers import added_up, pixels
from edgetune.learn.transfer import Hinton, LabelFree, Output, Replay, TransferLoss
from edgetune.types import Preprocess, Recipe, RoundKind, TeacherSource, TrainerOutcome

LEARNING = replace(RECIPE, distillation=0.7, max_steps=12, augment="crop_flip")
NAMES: dict[str, str | int] = {"red": 0, "green": 1, "blue": 2}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Forty samples of each of three classes and an untrained model."""
    return make_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def teacher(site: Site) -> TeacherSource:
    """A file that knows red and green, and not blue."""
    path = colour_model(site.root / "teacher.onnx", weights=COLOURS[:, :2])
    return TeacherSource(kind="file", file=str(path), classes={"red": 0, "green": 1}, timeout_s=120)


def prepare(
    site: Site, name: str, source: TeacherSource, recipe: Recipe = LEARNING, **changes: Any
) -> tuple[Path, Path]:
    """A round directory and models of its own."""
    models = Path(shutil.copytree(site.root / "models", site.root / f"models-{name}"))
    answers = site.root / f"answers-{name}"
    changes = {"answers_dir": str(answers), **changes}
    return site.round_dir(name, teacher=source, recipe=recipe, models_dir=models, **changes), models


def weights(models: Path) -> bytes:
    """What a round ends with."""
    return (models / "v000002" / "weights.safetensors").read_bytes()


def journal(directory: Path) -> dict[str, Any]:
    """What it says of its teacher."""
    recorded: dict[str, Any] = json.loads((directory / "journal.json").read_text())["teacher"]
    return recorded


def test_what_a_teacher_is_shown_is_exactly_what_the_student_was_made_of() -> None:
    """Every value of every channel, through the normalisation and back."""
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    for preprocess in (SIZE, Preprocess(height=16, width=16), replace(SIZE, mean=(0, 0, 0), std=(1 / 255, 1, 3))):
        shown = Normaliser(preprocess, torch.device("cpu"))(values)
        assert np.array_equal(pixels(shown, preprocess), values)


def test_a_teacher_has_no_say_in_classes_that_it_does_not_know() -> None:
    """Each loss against sums over the shared columns alone; the cross-entropy is over all classes."""
    torch.manual_seed(0)
    mine, theirs, labels = torch.randn(5, 4), torch.randn(5, 2), torch.tensor([0, 1, 2, 3, 2])
    student, teacher = Output(logits=mine), Output(logits=theirs, classes=(1, 3))
    shared = mine[:, [1, 3]]
    cross = float(functional.cross_entropy(mine, labels))
    divergence = 0.0
    for row, label in enumerate(labels.tolist()):
        soft = torch.softmax(theirs[row] / 3, 0)
        if label in (1, 3) and int(soft.argmax()) != (1, 3).index(label):
            soft = soft.flip(0)
        divergence += 9 * float((soft * (soft.log() - torch.log_softmax(shared[row] / 3, 0))).sum()) / 5
    squared = float(((shared - theirs) ** 2).mean())
    expected: list[tuple[TransferLoss, float]] = [
        (Hinton(share=0.4, temperature=3), 0.6 * cross + 0.4 * divergence),
        (Replay(share=0.4), 0.6 * cross + 0.4 * squared),
        (Replay(), squared),
        (LabelFree(), squared**0.5),
    ]
    for loss, value in expected:
        assert float(loss(student, teacher, labels)) == pytest.approx(value, rel=1e-5), loss


def test_the_logits_of_unknown_classes_get_nothing_from_the_teacher() -> None:
    """With all of the loss the teacher's, their gradient is zero."""
    mine = torch.randn(5, 4, requires_grad=True)
    loss = Hinton(share=1.0, temperature=2)
    loss(
        Output(logits=mine), Output(logits=torch.randn(5, 2), classes=(1, 3)), torch.tensor([0, 1, 2, 3, 2])
    ).backward()
    assert mine.grad is not None
    assert not mine.grad[:, [0, 2]].any()
    assert mine.grad[:, [1, 3]].any()


def test_a_teacher_that_knows_all_classes_in_another_order_is_the_same_teacher() -> None:
    """Sorted columns and their numbers say what a whole answer says."""
    mine, theirs, labels = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 2])
    loss = Hinton(share=0.5, temperature=2)
    whole = loss(Output(logits=mine), Output(logits=theirs), labels)
    turned = loss(Output(logits=mine), Output(logits=theirs[:, [2, 0, 1]], classes=(2, 0, 1)), labels)
    assert float(turned) == pytest.approx(float(whole), rel=1e-6)


@pytest.fixture(scope="module")
def whole(site: Site, teacher: TeacherSource) -> tuple[Path, Path]:
    """A round with the file's help that nothing stopped."""
    directory, models = prepare(site, "whole", teacher)
    assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
    return directory, models


def test_a_round_learns_from_a_file(site: Site, teacher: TeacherSource, whole: tuple[Path, Path]) -> None:
    """Its weights are not those of a round that learns from the factory model or from labels alone; it is journalled."""
    others = []
    for name, source, recipe in (
        ("ancestor", TeacherSource(), LEARNING), ("alone", teacher, replace(LEARNING, distillation=0.0)),
    ):  # fmt: skip
        directory, models = prepare(site, name, source, recipe)
        assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
        assert "teacher" not in json.loads((directory / "journal.json").read_text())
        others.append(weights(models))
    assert len({weights(whole[1]), *others}) == 3
    recorded = journal(whole[0])
    assert recorded["shared_classes"] == 2
    assert 11 * RECIPE.batch_size < recorded["images_asked"] + recorded["images_kept"] <= 12 * RECIPE.batch_size
    assert (recorded["sent_bytes"], recorded["received_bytes"]) == (0, 0)


@pytest.mark.parametrize("is_warm", [True, False])
def test_a_round_stopped_and_gone_on_with_ends_with_the_same_bits(
    site: Site, teacher: TeacherSource, whole: tuple[Path, Path], is_warm: bool
) -> None:
    """With the answers that it left, and without any."""
    directory, models = prepare(site, f"stopped-{is_warm}", teacher)
    for steps in (2, 3, 1):
        assert run_here(directory, RecordingControl(stop_after=[steps]))[0] is TrainerOutcome.CHECKPOINTED
        if not is_warm:
            shutil.rmtree(site.root / f"answers-stopped-{is_warm}")
    assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
    assert weights(models) == weights(whole[1])
    asked, before = journal(directory), journal(whole[0])
    total = asked["images_asked"] + asked["images_kept"]
    assert total >= before["images_asked"] + before["images_kept"]


def test_a_warm_cache_asks_nothing_and_changes_nothing(
    site: Site, teacher: TeacherSource, whole: tuple[Path, Path]
) -> None:
    """The same round again with the answers of the first one, of which one was damaged."""
    shutil.copytree(site.root / "answers-whole", site.root / "answers-warm")
    (file,) = (site.root / "answers-warm").iterdir()
    content = bytearray(file.read_bytes())
    first = next(place for place, byte in enumerate(content) if byte)
    content[first] ^= 1
    file.write_bytes(content)
    directory, models = prepare(site, "warm", teacher)
    assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
    assert weights(models) == weights(whole[1])
    assert journal(directory)["images_asked"] <= 1 + 8, "eight are asked about to forecast the round"


def test_another_teacher_in_the_middle_of_a_round_ends_it(site: Site, teacher: TeacherSource) -> None:
    """The file was replaced while the round waited: its loss would be another one."""
    path = Path(shutil.copy(teacher.file, site.root / "changing.onnx"))
    directory, _ = prepare(site, "changing", replace(teacher, file=str(path)))
    assert run_here(directory, RecordingControl(stop_after=[3]))[0] is TrainerOutcome.CHECKPOINTED
    colour_model(path, weights=3 * COLOURS[:, :2])
    outcome, message, _ = run_here(directory)
    assert (outcome, message) == (TrainerOutcome.BAD_TEACHER, "the teacher is not the one that this round began with")


def test_a_searched_round_learns_from_the_file_too(site: Site, teacher: TeacherSource) -> None:
    """Its trials are trained with the same teacher."""
    recipe = replace(LEARNING, search="steps", level=0.3, accuracy_drop_max=1.0, trial_epochs=1)
    directory, _ = prepare(site, "searched", teacher, recipe)
    assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
    assert journal(directory)["images_asked"] > 0


def test_a_round_learns_from_a_server_and_meters_what_left(site: Site) -> None:
    """Every image in full precision as JSON: more bytes than the pixels are; kept answers are not sent for again."""
    with stand_in() as server:
        source = TeacherSource(kind="server", server=server.url, classes=NAMES)
        directory, _ = prepare(site, "server", source)
        assert run_here(directory, RecordingControl(stop_after=[4]))[0] is TrainerOutcome.CHECKPOINTED
        assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
        sent = sum(shape[0] for shape in server.asked)
    recorded = journal(directory)
    assert sent == recorded["images_asked"]
    assert recorded["sent_bytes"] > sent * 16 * 16 * 3
    assert recorded["received_bytes"] > 0


@pytest.mark.slow  # the tries wait 15 s
def test_a_server_that_goes_away_ends_the_round(site: Site) -> None:
    """All tries are made, the outcome is named, and what it has answered stays for the next round."""
    with stand_in() as server:
        source = TeacherSource(kind="server", server=server.url, classes=NAMES)
        directory, models = prepare(site, "offline", source)
        assert run_here(directory, RecordingControl(stop_after=[4]))[0] is TrainerOutcome.CHECKPOINTED
    outcome, message, hint = run_here(directory)
    assert outcome is TrainerOutcome.BAD_TEACHER
    assert "no answer in 5 tries" in message
    assert "is kept, and not asked again" in hint
    assert not (models / "v000002").exists()
    assert any(file.stat().st_blocks for file in (site.root / "answers-offline").iterdir())


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"file": "none.onnx"}, "there is no file"),
        ({"classes": {"red": "rouge", "green": 1}}, "does not name its classes"),
        ({"classes": {}}, "knows 0 of this site's 3 classes"),
        ({"size": 32}, "16 x 16, not of 32 x 32"),
        ({"memory_max_mib": 10.0}, "10 are allowed"),
    ],
)
def test_a_bad_teacher_ends_the_round_by_name_and_leaves_the_base(
    site: Site, teacher: TeacherSource, source: dict[str, Any], said: str
) -> None:
    """No candidate, an outcome and a sentence; the models are as they were."""
    name = "bad-" + "-".join(source) + str(len(said))
    directory, models = prepare(site, name, replace(teacher, **source))
    outcome, message, hint = run_here(directory)
    assert outcome is TrainerOutcome.BAD_TEACHER
    assert said in message
    assert hint
    files = {path.relative_to(models): path.read_bytes() for path in models.rglob("*") if path.is_file()}
    before = site.root / "models"
    assert files == {path.relative_to(before): path.read_bytes() for path in before.rglob("*") if path.is_file()}


def test_a_server_that_turns_to_garbage_in_the_middle_ends_the_round(site: Site) -> None:
    """NaN from the third batch on; nothing is published."""
    with stand_in() as server:

        def garble(answer: dict[str, Any]) -> None:
            if len(server.asked) > 2:
                answer["outputs"][0]["data"][0] = float("nan")

        server.change = garble
        source = TeacherSource(kind="server", server=server.url, classes=NAMES)
        directory, models = prepare(site, "garbage", source, kind=RoundKind.ADAPT)
        outcome, message, _ = run_here(directory)
    assert (outcome, message) == (TrainerOutcome.BAD_TEACHER, "the teacher answered NaN or infinity")
    assert not (models / "v000002").exists()


def test_counts_are_added_over_the_starts_of_a_round() -> None:
    """What is no count is as it is now."""
    record = {"identity": "a", "images_asked": 3, "images_kept": 1, "sent_bytes": 5, "received_bytes": 2}
    assert added_up({}, record) == record
    assert added_up(record, {**record, "identity": "b"})["sent_bytes"] == 10


def test_a_refusing_server_is_named(site: Site) -> None:
    """It says no and is not asked again."""
    with stand_in() as server:
        server.always = status(403)
        source = TeacherSource(kind="server", server=server.url, classes=NAMES)
        outcome, message, _ = run_here(prepare(site, "refusing", source)[0])
    assert outcome is TrainerOutcome.BAD_TEACHER
    assert "answered 403" in message
