"""A model file as a teacher: real ONNX files in real processes, and stand-ins for those that misbehave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from onnx import TensorProto
from teacher_models import COLOURS, colour_model

from edgetune.errors import TeacherError
from edgetune.learn.control import SilentControl
from edgetune.learn.teachers import OutsideTeacher, open_teacher
from edgetune.teach.file import FileModel
from edgetune.teach.patience import Patience
from edgetune.types import Preprocess, TeacherSource

SIZE = Preprocess(height=16, width=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
IMAGES = np.random.default_rng(3).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
NAMES = {"red": 0, "green": 1, "blue": 2}


def opened(path: Path, answers: Path, **source: object) -> OutsideTeacher:
    """A teacher of red, green and blue."""
    return open_teacher(
        TeacherSource(**{"kind": "file", "file": str(path), "classes": NAMES, **source}),  # type: ignore[arg-type]
        preprocess=SIZE, classes=("blue", "red", "green"), answers_dir=answers, threads=1, control=SilentControl(),
    )  # fmt: skip


def ask(teacher: OutsideTeacher, images: np.ndarray = IMAGES) -> np.ndarray:
    """Its logits of raw pixels; it is closed."""
    logits = teacher._asked(images)
    teacher.close()
    return logits


def test_a_float_model_gets_what_it_was_trained_on_and_answers_in_our_order(tmp_path: Path) -> None:
    """Normalised by its own mean and deviation, channels first; compared with the same sums in numpy."""
    path = colour_model(tmp_path / "t.onnx")
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    said = ask(opened(path, tmp_path / "a", mean=mean, std=std))
    expected = ((IMAGES / 255 - mean) / std).mean(axis=(1, 2)) @ COLOURS
    np.testing.assert_allclose(said, expected[:, [2, 0, 1]], rtol=1e-4)


def test_without_a_mean_of_its_own_it_gets_the_students(tmp_path: Path) -> None:
    """Channels last here, as some exporters leave them."""
    path = colour_model(tmp_path / "t.onnx", is_channels_last=True)
    expected = ((IMAGES / 255 - 0.5) / 0.25).mean(axis=(1, 2)) @ COLOURS
    np.testing.assert_allclose(ask(opened(path, tmp_path / "a")), expected[:, [2, 0, 1]], rtol=1e-4)


def test_a_model_of_another_size_gets_the_image_resized(tmp_path: Path) -> None:
    """A plain image has the same mean at every size; the model takes 40 x 24 and nothing else."""
    plain = np.broadcast_to(np.array([200, 100, 20], np.uint8), (2, 16, 16, 3)).copy()
    path = colour_model(tmp_path / "t.onnx", sides=(40, 24), is_channels_last=True, kind=TensorProto.UINT8)
    np.testing.assert_allclose(ask(opened(path, tmp_path / "a"), plain), [[200, 2000, 1000]] * 2, rtol=1e-5)


def test_an_answer_does_not_depend_on_what_is_asked_with_it(tmp_path: Path) -> None:
    """To the bit, so that it does not matter which answers were kept."""
    weights = np.random.default_rng(0).normal(size=(3, 3))
    path = colour_model(tmp_path / "t.onnx", weights=weights)
    together = ask(opened(path, tmp_path / "a", cache_max_bytes=1))
    one = opened(path, tmp_path / "b", cache_max_bytes=1)
    alone = np.concatenate([one._asked(IMAGES[i : i + 1]) for i in range(len(IMAGES))])
    one.close()
    assert together.tobytes() == alone.tobytes()


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    """After a restart, and twice in a batch; a changed file has answered nothing yet."""
    path = colour_model(tmp_path / "t.onnx")
    first = ask(opened(path, tmp_path / "a"), IMAGES[[0, 1, 1]])
    again = opened(path, tmp_path / "a")
    assert np.array_equal(again._asked(IMAGES[:3])[:2], first[:2])
    assert (again.record()["images_asked"], again.record()["images_kept"]) == (1, 2)
    again.close()
    colour_model(path, weights=2 * COLOURS)
    other = opened(path, tmp_path / "a")
    assert np.array_equal(other._asked(IMAGES[:2]), 2 * first[:2])
    assert other.record()["images_kept"] == 0
    other.close()


def test_weights_in_a_file_of_their_own_are_the_model_too(tmp_path: Path) -> None:
    """As torch's exporter writes them: the ONNX file is the same before and after the teacher was trained again."""
    path, seen = tmp_path / "t.onnx", set()
    for factor in (1, 2):
        model = onnx.load(colour_model(tmp_path / "whole.onnx", weights=factor * COLOURS))
        (tmp_path / "t.onnx.data").unlink(missing_ok=True)
        onnx.save_model(model, path, save_as_external_data=True, location="t.onnx.data", size_threshold=0)
        seen.add(path.read_bytes())
        teacher = opened(path, tmp_path / "a")
        said = teacher._asked(IMAGES)
        assert teacher.record()["images_kept"] == 0
        teacher.close()
        np.testing.assert_allclose(said, ask(opened(tmp_path / "whole.onnx", tmp_path / "b")))
    assert len(seen) == 1


def test_the_model_is_in_another_process_that_ends_with_it(tmp_path: Path) -> None:
    """It is a child of this one, and gone after the end."""
    model = FileModel(colour_model(tmp_path / "t.onnx"), threads=1, memory_max_mib=2000, timeout_s=60)
    model.describe()
    pid = model.pid
    assert pid is not None
    assert psutil.Process(pid).ppid() == os.getpid()
    model.close()
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"GIF89a", "cannot be loaded by ONNX Runtime"), (b"", "cannot be loaded by ONNX Runtime"), (None, "no file")],
)
def test_a_file_that_is_no_model_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    """Garbage, an empty file, none."""
    path = tmp_path / "t.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TeacherError, match=said):
        opened(path, tmp_path / "a")


def test_models_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """One channel, probabilities, NaN, a size that is not the configured one, a directory that is no version."""
    grey = colour_model(tmp_path / "grey.onnx", weights=np.ones((1, 3)))
    with pytest.raises(TeacherError, match=r"shape \[-1, 1, 16, 16\]"):
        opened(grey, tmp_path / "a")
    for ending, said in (("Softmax", "probabilities"), ("Sqrt", "NaN or infinity")):
        teacher = opened(colour_model(tmp_path / "t.onnx", weights=-COLOURS, ending=ending), tmp_path / "a")
        with pytest.raises(TeacherError, match=said):
            teacher._asked(np.full_like(IMAGES, 255))
        teacher.close()
    with pytest.raises(TeacherError, match="16 x 16, not of 32 x 32"):
        opened(colour_model(tmp_path / "t.onnx"), tmp_path / "a", size=32)
    with pytest.raises(TeacherError, match="is no version of edgetune"):
        opened(tmp_path, tmp_path / "a")


def test_a_teacher_over_its_memory_while_it_loads_is_killed_and_named(tmp_path: Path) -> None:
    """Python, numpy and ONNX Runtime alone take more than 10 MiB."""
    model = FileModel(colour_model(tmp_path / "t.onnx"), threads=1, memory_max_mib=10, timeout_s=60)
    with pytest.raises(TeacherError, match=r"holds \d+ MiB; 10 are allowed"):
        model.describe()
    assert model.pid is None


STAND_IN = """
import json, struct, sys, time
def say(value, data=b""):
    text = json.dumps(value).encode()
    sys.stdout.buffer.write(struct.pack("<II", len(text), len(data)) + text + data)
    sys.stdout.buffer.flush()
def hear():
    sizes = struct.unpack("<II", sys.stdin.buffer.read(8))
    return [sys.stdin.buffer.read(size) for size in sizes]
say({})
hear()
"""


SLOW = """
time.sleep(1)
say({"late": True})
time.sleep(60)
"""


def misbehaving(what: str, **limits: float) -> FileModel:
    """A process that describes itself, hears a question, and then does something else."""
    command = [sys.executable, "-c", STAND_IN + what]
    model = FileModel(
        Path("none"),
        threads=1,
        command=command,
        **{"memory_max_mib": 2000, "timeout_s": 60, **limits},  # type: ignore[arg-type]
    )
    model.describe()
    return model


@pytest.mark.parametrize(
    ("what", "limits", "said"),
    [
        ("hoard = bytearray(b'x' * 300_000_000); time.sleep(60)", {"memory_max_mib": 150}, "150 are allowed"),
        ("time.sleep(60)", {"timeout_s": 0.5}, "did not answer within 0.5 s"),
        ("sys.exit(3)", {}, "exited with 3"),
        ("import os; os.kill(os.getpid(), 9)", {}, "killed by signal 9"),
        ("print('hello, here is your answer', flush=True); time.sleep(60)", {}, "no frames"),
        ("say({'error': 'the model failed: out of range'})", {}, "out of range"),
    ],
)
def test_a_process_that_misbehaves_is_ended_and_named(what: str, limits: dict[str, float], said: str) -> None:
    """Too much memory at work, no answer, an end, another protocol, a fault of the model."""
    model = misbehaving(what, **limits)
    pid = model.pid
    with pytest.raises(TeacherError, match=said):
        model.ask(b"{}", b"x" * 3_000_000)  # more than a pipe holds: a side that only writes would wait for ever
    model.close()
    assert pid is not None
    assert not psutil.pid_exists(pid)


def test_a_pause_is_not_time_that_was_waited() -> None:
    """A trainer that was stopped for an hour in the middle of a wait has waited for a turn."""
    now_s = [0.0]
    patience = Patience(1.0, 0.1, now_s=lambda: now_s[0])
    for _ in range(4):
        now_s[0] += 0.1
        assert not patience.is_over()
    now_s[0] += 3600
    assert not patience.is_over()
    now_s[0] += 0.2
    assert patience.is_over()


@pytest.mark.slow  # it is paused for five seconds
def test_a_trainer_that_was_paused_in_a_question_still_gets_its_answer(tmp_path: Path) -> None:
    """SIGSTOP for longer than the time-out, while the answer is on its way; then SIGCONT."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom edgetune.teach.file import FileModel\n"
        f"command = [sys.executable, '-c', {STAND_IN + SLOW!r}]\n"
        "model = FileModel(Path('none'), threads=1, memory_max_mib=2000, timeout_s=3, command=command)\n"
        "model.describe()\nprint('asking', flush=True)\nprint(model.ask(b'{}', b''), flush=True)\nmodel.close()"
    )
    asking = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert asking.stdout is not None
    assert asking.stdout.readline() == "asking\n"
    asking.send_signal(signal.SIGSTOP)
    time.sleep(5)
    asking.send_signal(signal.SIGCONT)
    assert asking.communicate()[0] == "(b'{\"late\": true}', b'')\n"


def test_a_killed_parent_takes_its_teacher_along(tmp_path: Path) -> None:
    """The teacher reads the end of its stdin, and leaves."""
    path = colour_model(tmp_path / "t.onnx")
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom edgetune.teach.file import FileModel\n"
        f"model = FileModel(Path({str(path)!r}), threads=1, memory_max_mib=2000, timeout_s=60)\n"
        "model.describe()\nprint(model.pid, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    teacher = psutil.Process(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    teacher.wait(timeout=60)
