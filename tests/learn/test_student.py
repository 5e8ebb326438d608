"""A small student of a large teacher: within its size, without labels, over a stop."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest_site import RecordingControl
from test_compress import easy_data, easy_material
from test_finetune import PHASE, normaliser

from edgetune.errors import NoSamplesError, UnprunableError
from edgetune.learn.cifar import count_learnt
from edgetune.learn.control import StopAskedError
from edgetune.learn.finetune import fine_tune
from edgetune.learn.goal import Material
from edgetune.learn.network import Network, new_network, state_tensors
from edgetune.learn.student import Lesson, Taught, teach

LESSON = Lesson(parameters_max=40_000, epochs=4, batch_size=16, learning_rate=0.2, checkpoint_steps=3)


@pytest.fixture(scope="module")
def teacher() -> Network:
    """Knows the three classes; no test changes it."""
    torch.manual_seed(5)
    network = new_network("cifar:resnet20", 3)
    phase = replace(PHASE, name="given", steps=40, batch_size=16, learning_rate=0.05)
    fine_tune(
        network, phase, easy_data(96, 1), easy_data(0, 2), normaliser(), resume=None, save=lambda _: None,
        control=RecordingControl(),
    )  # fmt: skip
    return network


def bits(network: Network) -> dict[str, bytes]:
    """The weights."""
    return {name: tensor.numpy().tobytes() for name, tensor in state_tensors(network.module).items()}


def taught(teacher: Network, work: Path, *, material: Material | None = None, lesson: Lesson = LESSON) -> Taught:
    """In one go."""
    return teach(teacher, material or easy_material(), lesson, work=work)


def test_a_student_is_as_small_as_asked_and_learns(teacher: Network, tmp_path: Path) -> None:
    """From the teacher alone, better than a guess among three; the teacher is as it was."""
    before, heard = copy.deepcopy(bits(teacher)), []
    made = teach(teacher, easy_material(), LESSON, work=tmp_path, told=lambda *epoch: heard.append(epoch))
    assert bits(teacher) == before
    assert count_learnt(made.network.module) <= LESSON.parameters_max < count_learnt(teacher.module)
    assert made.network.architecture == "cifar:resnet8"
    assert made.zeros_percent is not None
    assert made.teacher_accuracy > 0.9
    assert made.accuracy > 0.5
    assert heard == [(number, share) for number, share in enumerate(made.curve, 1)]
    assert len(made.curve) == LESSON.epochs
    assert made.accuracy == made.curve[-1], "the last epoch counts, not the one that the labels like best"


@pytest.mark.parametrize("transfer", ["label_free", "hinton"])
def test_a_stop_changes_nothing(transfer: str, teacher: Network, tmp_path: Path) -> None:
    """After the 4th step, in the middle of an epoch of 6, and the 12th, at the end of one: each epoch is told once."""
    lesson, heard = replace(LESSON, transfer=transfer), []
    whole = taught(teacher, tmp_path / "whole", lesson=lesson)
    for steps in ((3,), (7,), ()):
        control = RecordingControl(stop_after=steps)
        with pytest.raises(StopAskedError) if steps else contextlib.nullcontext():
            parts = teach(
                teacher, easy_material(), lesson, work=tmp_path / "parts", control=control,
                told=lambda *epoch: heard.append(epoch),
            )  # fmt: skip
    assert heard == list(enumerate(whole.curve, 1))
    assert bits(parts.network) == bits(whole.network)
    assert parts.curve == whole.curve
    assert parts.zeros_percent == whole.zeros_percent


def test_labels_are_not_looked_at(teacher: Network, tmp_path: Path) -> None:
    """Shuffled labels, of training and of validation, end in the same weights bit for bit."""
    material = easy_material()
    rng = np.random.default_rng(3)
    shuffled = replace(
        material,
        training=replace(material.training, labels=rng.permutation(material.training.labels)),
        validation=replace(material.validation, labels=rng.permutation(material.validation.labels)),
    )
    assert not np.array_equal(shuffled.training.labels, material.training.labels)
    made = [taught(teacher, tmp_path / name, material=m) for name, m in (("as", material), ("other", shuffled))]
    assert bits(made[0].network) == bits(made[1].network)


def test_a_student_that_is_given_is_taken_as_it_is(teacher: Network, tmp_path: Path) -> None:
    """Of another family: its logits are taught; no width is chosen."""
    lesson = replace(LESSON, student="cifar:resnet8", epochs=1, transfer="hinton")
    made = taught(teacher, tmp_path, lesson=lesson)
    assert made.zeros_percent is None
    assert count_learnt(made.network.module) == count_learnt(new_network("cifar:resnet8", 3).module)


def test_what_cannot_be_done_is_said_before_anything_is_trained(teacher: Network, tmp_path: Path) -> None:
    """No image, and no student that small."""
    nothing = replace(easy_material(), training=easy_data(0, 1))
    with pytest.raises(NoSamplesError, match="no training image"):
        taught(teacher, tmp_path / "a", material=nothing)
    with pytest.raises(UnprunableError, match="50 are allowed"):
        taught(teacher, tmp_path / "b", lesson=replace(LESSON, parameters_max=50))
    assert not list(tmp_path.glob("*/checkpoint*"))
