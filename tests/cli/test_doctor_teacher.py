"""What `edgetune doctor` and `edgetune prune` make of a teacher that the configuration or the options name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "teach"))

from fakes import publish_factory
from teacher_models import colour_model, stand_in

from edgetune.cli import doctor
from edgetune.cli.libraries import FAULT, OK, WARNING
from edgetune.cli.prune_teacher import share_of, source_of
from edgetune.config import Config, parse
from edgetune.errors import UsageError
from edgetune.types import TeacherSource

NOTHING: dict[str, Any] = {
    "distillation": None, "transfer": "hinton", "teacher": None, "teacher_classes": (), "teacher_ca": None,
    "temperature": None,
}  # fmt: skip


def config_of(root: Path, **training: Any) -> Config:
    """With its state below `root`."""
    keys = "".join(f"  {name}: {value}\n" for name, value in training.items())
    return parse(f"paths: {{state_dir: {root}}}\ntraining:\n{keys}")


def test_the_factory_model_and_nobody_are_teachers_without_doubts(tmp_path: Path) -> None:
    """Neither needs anything."""
    finding = doctor.check_teacher(Config(), is_quick=False)
    assert (finding.state, finding.says) == (OK, "the factory model; no image leaves this device")
    alone = doctor.check_teacher(config_of(tmp_path, distillation=0), is_quick=False)
    assert "labels alone" in alone.says


def test_a_file_is_loaded_and_its_classes_are_compared_with_those_that_are_served(tmp_path: Path) -> None:
    """How many both know, and how many come from it alone; without a model that can be read it is only loaded."""
    path = colour_model(tmp_path / "t.onnx", sides=(8, 8))
    training = {
        "teacher": "file", "teacher_file": path, "teacher_classes": "{cat: 0, dog: 1, heron: 2}", "unseen_classes": "all",
    }  # fmt: skip
    finding = doctor.check_teacher(config_of(tmp_path, **training), is_quick=False)
    assert finding.state == WARNING
    assert "answers with 3 classes; its classes cannot be compared with ours" in finding.says
    publish_factory(tmp_path)
    finding = doctor.check_teacher(config_of(tmp_path, **training), is_quick=False)
    assert finding.state == OK, finding
    assert "2 of the served model's 2 among them, and 1 that this site has not shown" in finding.says
    bad = doctor.check_teacher(config_of(tmp_path, **{**training, "teacher_classes": "{cat: 9}"}), is_quick=False)
    assert bad.state == FAULT
    assert "training.teacher_classes" in bad.says
    missing = config_of(tmp_path, **{**training, "teacher_file": "/nowhere.onnx"})
    assert "there is no file /nowhere.onnx" in doctor.check_teacher(missing, is_quick=False).says
    assert "not asked" in doctor.check_teacher(missing, is_quick=True).says


def test_a_server_is_reached_without_an_image_and_named_as_where_they_go(tmp_path: Path) -> None:
    """Its description alone is asked for."""
    publish_factory(tmp_path)
    with stand_in() as server:
        training = {"teacher": "server", "teacher_server": server.url, "teacher_classes": "{cat: 0, dog: 1}"}
        finding = doctor.check_teacher(config_of(tmp_path, **training), is_quick=False)
        assert not server.asked
    assert finding.state == WARNING
    assert "2 of the served model's 2 among them" in finding.says
    assert "images leave this device" in finding.says


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({}, 0.0),
        ({"distillation": 0.3}, 0.3),
        ({"teacher": "/t.onnx"}, 0.5),
        ({"transfer": "label_free"}, 1.0),
        ({"transfer": "replay", "distillation": 0.2}, 0.2),
    ],
)
def test_the_teachers_share_follows_from_the_options(options: dict[str, Any], share: float) -> None:
    """Of another teacher half of the loss, of a label-free transfer all of it."""
    assert share_of({**NOTHING, **options}) == share


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"transfer": "replay"}, "--transfer replay has no say"),
        ({"teacher": "/t.onnx", "distillation": 0.0}, "--teacher has no say"),
        ({"transfer": "label_free", "distillation": 0.5}, "all the teacher's"),
        ({"transfer": "replay", "distillation": 0.5, "temperature": 3.0}, "knows no --temperature"),
        ({"temperature": 3.0}, "--temperature has no say"),
        ({"teacher_classes": ("cat=1",)}, "about another teacher"),
        ({"teacher": "/t.onnx", "teacher_ca": "ca.pem"}, "--teacher-ca is about a server, and --teacher is"),
        ({"teacher": "/t.onnx", "teacher_classes": ("cat",)}, "--teacher-class is 'cat'"),
        ({"teacher": "http://far.example/v2/models/m"}, "--teacher: "),
        ({"teacher": "https://far.example/"}, "--teacher: "),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], said: str) -> None:
    """Before anything slow begins."""
    read = source_of if said.startswith(("--teacher: ", "--teacher-class is", "--teacher-ca is")) else share_of
    with pytest.raises(UsageError, match=said):
        read({**NOTHING, **options})


def test_a_teacher_is_a_file_or_a_server() -> None:
    """By its form; classes by name or number."""
    named = {**NOTHING, "teacher": "/t.onnx", "teacher_classes": ("cat=tabby", "dog=3")}
    assert source_of(named) == TeacherSource(kind="file", file="/t.onnx", classes={"cat": "tabby", "dog": 3})
    url = "https://far.example/v2/models/m"
    assert source_of({**NOTHING, "teacher": url}) == TeacherSource(kind="server", server=url)
    assert source_of(NOTHING) is None
