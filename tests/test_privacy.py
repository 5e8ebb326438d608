"""Nothing leaves the device unless the operator said so: what a real trainer does with sockets, seen by the interpreter."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "learn"))
sys.path.insert(0, str(Path(__file__).parent / "teach"))

from conftest_site import RECIPE, Site, make_site, start_trainer
from teacher_models import stand_in

from edgetune import config as configuration
from edgetune.config import parse
from edgetune.types import Recipe, TeacherSource

# Imported by every Python that finds it on its path, a teacher's process too; each socket and each name that is looked up
# is an audit event of the interpreter itself.
WATCH = """
import os, sys

def note(event, arguments):
    if event.startswith(("socket.", "http.client.", "urllib.", "ftplib.", "smtplib.")):
        with open(os.environ["WATCH_LOG"], "a") as log:
            log.write(f"{event} {arguments[1:]!r}\\n")

sys.addaudithook(note)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Forty samples of each of three classes and an untrained model."""
    return make_site(tmp_path_factory.mktemp("site"))


def sockets_of(site: Site, name: str, recipe: Recipe, teacher: TeacherSource) -> list[str]:
    """What the trainer of a whole round did with sockets."""
    (site.root / "sitecustomize.py").write_text(WATCH)
    log = site.root / f"{name}.log"
    models = site.root / f"models-{name}"
    models.symlink_to(site.root / "models")
    directory = site.round_dir(name, recipe=recipe, teacher=teacher, answers_dir=str(site.root / "answers"))
    path = os.pathsep.join([str(site.root), str(Path(__file__).parents[1]), str(Path(__file__).parent / "learn")])
    process = start_trainer(directory, PYTHONPATH=path, WATCH_LOG=str(log))
    out, err = process.communicate(timeout=300)
    assert json.loads(out.splitlines()[-1])["outcome"] == "published", err
    (site.root / "models" / "v000002").rename(site.root / f"published-{name}")
    return log.read_text().splitlines() if log.exists() else []


def test_a_round_on_the_default_configuration_opens_no_socket(site: Site) -> None:
    """Not one, of any kind, towards anybody; and it looks no name up."""
    config = parse("")
    made = configuration.recipe(config)
    assert made.distillation > 0  # somebody is asked: the factory model
    recipe = replace(RECIPE, distillation=made.distillation, temperature=made.temperature)
    assert sockets_of(site, "default", recipe, configuration.teacher(config)) == []


def test_the_same_round_with_a_server_opens_sockets_to_the_named_host_alone(site: Site) -> None:
    """Which also shows that the watch of the test above sees them."""
    with stand_in() as server:
        classes = {"red": 0, "green": 1, "blue": 2}
        text = f"training: {{teacher: server, teacher_server: '{server.url}', teacher_classes: {json.dumps(classes)}}}"
        config = parse(text)
        recipe = replace(RECIPE, distillation=configuration.recipe(config).distillation)
        events = sockets_of(site, "server", recipe, configuration.teacher(config))
        connected = [event for event in events if event.startswith("socket.connect")]
        assert connected
        assert all(f"'127.0.0.1', {server.port}" in event for event in connected)


def test_a_server_that_is_named_but_not_chosen_is_not_spoken_to() -> None:
    """The address alone switches nothing on."""
    config = parse("training: {teacher_server: 'https://teacher.example/v2/models/m'}")
    assert configuration.teacher(config).kind == "ancestor"
    assert configuration.privacy_note(config) == ""
