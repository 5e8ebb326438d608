"""A teacher outside the trainer, as the daemon tells the round of it and the operator of the round; and as one itself."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes import SIDE, FakeClock, FakeTrainer, publish_factory
from site_on_disk import Site, drop, drop_unlabelled, run, write_config

from edgetune.learn.control import SilentControl
from edgetune.learn.teachers import open_teacher
from edgetune.serve.engine import Engine
from edgetune.types import Preprocess, RoundState, TeacherSource

URL = "https://cloud.example:8443/v2/models/m"
ASKED = {"identity": "a", "images_asked": 90, "images_kept": 10, "sent_bytes": 5000, "received_bytes": 300}


class Asking(FakeTrainer):
    """A trainer that leaves a journal, as one does that has asked a teacher."""

    async def start(self, round_dir: Path, *, nice: int, oom_score_adj: int) -> None:
        (round_dir / "journal.json").write_text(json.dumps({"teacher": ASKED}))
        await super().start(round_dir, nice=nice, oom_score_adj=oom_score_adj)


def test_a_server_is_in_the_spec_in_status_and_in_what_is_told_of_the_round(tmp_path: Path) -> None:
    """The host before any round, the bytes after one."""

    async def play() -> None:
        drop(tmp_path, 40)
        training = {"teacher": "server", "teacher_server": URL, "teacher_classes": {"cat": 3}}
        async with Site(tmp_path, make_trainer=Asking, training=training) as site:
            (warning,) = (await site.daemon.status())["warnings"]
            assert (
                "images leave this device: rounds send training images, unlabelled ones too, to cloud.example:8443"
                in warning
            )
            await site.take_all()
            await site.until_served(2)
            await site.tick()
            spec = site.trainers[0].spec
            assert spec is not None
            assert spec.teacher == TeacherSource(kind="server", server=URL, classes={"cat": 3})
            assert Path(spec.answers_dir) == tmp_path / "state" / "answers"
            assert (await site.daemon.status())["last_round"]["teacher"] == {"kind": "server", "server": URL, **ASKED}

    run(play())


@pytest.mark.parametrize(
    ("now", "why"),
    [
        ({"teacher": "ancestor"}, f"{URL} is not the teacher any more"),
        ({"teacher_server": URL.replace("cloud", "other")}, f"{URL} is not the teacher any more"),
        ({"unlabelled": "ignore"}, "it has unlabelled images to send, and training.unlabelled is ignore by now"),
    ],
)
@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_round_sends_nothing_that_the_configuration_does_not_allow_any_more(
    tmp_path: Path, now: dict[str, str], why: str, *, is_restarted: bool
) -> None:
    """A reload stops the trainer, and a round that waits with a checkpoint does not go on."""
    server = {"teacher": "server", "teacher_server": URL}

    def held(clock: FakeClock) -> FakeTrainer:
        return FakeTrainer(clock, is_held=True)

    async def ended(site: Site) -> None:
        await site.until(RoundState.COOLDOWN)
        last = (await site.daemon.status())["last_round"]
        assert (last["outcome"], last["message"].startswith(why)) == ("cancelled", True)

    async def play() -> None:
        drop(tmp_path, 40)
        drop_unlabelled(tmp_path, 10, "cat")
        async with Site(tmp_path, make_trainer=held, training=server) as site:
            await site.take_all()
            await site.until(RoundState.TRAINING)
            await site.daemon.reload()
            await site.tick(3)
            assert site.state is RoundState.TRAINING, "nothing has changed"
            if not is_restarted:
                write_config(tmp_path, training={**server, **now})
                await site.daemon.reload()
                await ended(site)
                assert site.trainers[0].said[-1] == "stop"
        if is_restarted:
            async with Site(tmp_path, make_trainer=held, training={**server, **now}) as site:
                await ended(site)
                assert site.trainers == []

    run(play())


def test_by_default_no_teacher_is_spoken_of(tmp_path: Path) -> None:
    """The factory model is part of every round; there is nothing to warn of."""

    async def play() -> None:
        drop(tmp_path, 40)
        async with Site(tmp_path, make_trainer=Asking) as site:
            assert (await site.daemon.status())["warnings"] == []
            await site.take_all()
            await site.until_served(2)
            await site.tick()
            spec = site.trainers[0].spec
            assert spec is not None
            assert spec.teacher == TeacherSource()
            assert "teacher" not in (await site.daemon.status())["last_round"]

    run(play())


def test_a_daemon_is_a_teacher_over_its_loopback_address(tmp_path: Path) -> None:
    """A whole `edgetune run` answers, with its class names and the logits of the model that it serves."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    publish_factory(tmp_path / "state")
    config = write_config(tmp_path, serving={"tcp": address})
    images = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)
    daemon = subprocess.Popen(
        [sys.executable, "-m", "edgetune", "run", "--config", config], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    try:
        assert daemon.stdout is not None
        assert any("ready on" in line for line in daemon.stdout)
        teacher = open_teacher(
            TeacherSource(kind="server", server=f"http://{address}/v2/models/edgetune"),
            preprocess=Preprocess(height=SIDE, width=SIDE), classes=("dog", "owl", "cat"), answers_dir=tmp_path / "a",
            threads=1, control=SilentControl(),
        )  # fmt: skip
        logits = teacher._asked(images)
        teacher.close()
    finally:
        daemon.terminate()
        daemon.communicate()
    assert teacher._asked.shared.ours == (0, 2)
    engine = Engine.load(tmp_path / "state" / "models" / "v000001", threads=1)
    places = [engine.classes.index(label) for label in ("dog", "cat")]
    np.testing.assert_allclose(logits, engine.predict(images)[:, places], rtol=1e-5)
