"""`edgetune compress`: from a large model and folders of images to a small student that a board takes over."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="compressing needs the extra: train")

from edgetune.cli import main  # noqa: E402 - after what may skip this file

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained ResNet20, its classes, and folders of small pictures."""
    import numpy as np
    from PIL import Image
    from safetensors.torch import save_file

    from edgetune.learn.network import new_network

    root = tmp_path_factory.mktemp("given")
    torch.manual_seed(0)
    save_file(new_network("cifar:resnet20", 3).module.state_dict(), root / "w.safetensors")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4), ("test", 4)):
        for label in CLASSES:
            (root / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{number}.png")
    return root


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, given: Path) -> Any:
    """Run the verb here: exit code, stdout, stderr."""
    monkeypatch.delenv("EDGETUNE_CONFIG", raising=False)
    threads = torch.get_num_threads()
    model = ("cifar:resnet20", "--weights", str(given / "w.safetensors"), "--classes", str(given / "classes.txt"))
    quick = ("--size", "16", "--epochs", "1", "--batch-size", "8", "--threads", "1")

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["compress", *model, *quick, "--data", str(given), *words])
        return code, *capsys.readouterr()

    yield call
    torch.set_num_threads(threads)


def test_a_student_is_written_told_of_and_goes_to_a_board(run: Any, tmp_path: Path) -> None:
    """As small as asked; a directory that a board imports; nothing else is left."""
    out = tmp_path / "student"
    code, text, err = run("--out", str(out), "--target-params", "20%", "--json")
    assert (code, err) == (0, "")
    answer = json.loads(text)
    assert answer["learnt_parameters"]["final"] <= 0.2 * answer["learnt_parameters"]["given"]
    assert len(answer["curve"]) == 1
    assert answer["final"]["test_accuracy"] is not None
    assert json.loads((out / "manifest.json").read_text())["kind"] == "distilled"
    assert answer["plot"] == str(tmp_path / "student.png")
    assert {path.name for path in tmp_path.iterdir()} == {"student", "student.png"}
    assert (tmp_path / "student.png").read_bytes().startswith(b"\x89PNG")
    config = tmp_path / "config.yaml"
    config.write_text(f'paths: {{state_dir: "{tmp_path}/state", runtime_dir: "{tmp_path}/run"}}\n')
    assert main(["models", "import", "--config", str(config), "--from", str(out)]) == 0


def test_the_documented_example_teaches(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """docs/compress.md's Python, as it stands but for the number of epochs."""
    from edgetune.learn.folders import read_folders
    from edgetune.learn.goal import Material
    from edgetune.learn.network import new_network
    from edgetune.types import Preprocess

    size = Preprocess(height=16, width=16)
    images = read_folders(given, CLASSES, size)
    found: dict[str, Any] = {
        "Path": Path,
        "network": new_network("cifar:resnet20", 3),
        "material": Material(
            training=images.training, validation=images.validation, preprocess=size, classes=CLASSES
        ),
    }  # fmt: skip
    page = (Path(__file__).parents[2] / "docs" / "compress.md").read_text(encoding="utf-8")
    *_, example = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "epochs=60" in example
    monkeypatch.chdir(tmp_path)
    request.addfinalizer(functools.partial(torch.set_num_threads, torch.get_num_threads()))
    exec(compile(example.replace("epochs=60", "epochs=1"), "docs/compress.md", "exec"), found)  # noqa: S102 - our own page
    assert len(found["taught"].curve) == 1


@pytest.mark.parametrize("transfer", [("hinton", "--temperature", "2"), ("replay", "--share", "0.5")])
def test_the_report_says_what_is_gone(run: Any, tmp_path: Path, transfer: tuple[str, ...]) -> None:
    """In words, with both sides."""
    code, text, err = run("--out", str(tmp_path / "student"), "--target-params", "60000", "--transfer", *transfer)
    assert code == 0
    assert "epoch 1:" in err
    assert "teacher" in text
    assert "of the learnt parameters are gone: 27" in text
    assert "taught with labels: 1 epoch" in text
    assert "a cifar:resnet8 with as many channels as the teacher has that are less than" in text
    assert "hardly better than a guess among 3 classes" in text
    assert "student.png shows accuracy by epoch" in text


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (("--target-params", "0%"), "a student has fewer"),
        (("--target-params", "100%"), "a student has fewer"),
        (("--target-params", "few"), "write a share such as 1%"),
        (("--target-params", "10"), "raise --target-params, or name the student: --student"),
        (("--learning-rate", "1e30", "--target-params", "20%"), "lower --learning-rate"),
        (("--student", "cifar:nonsense"), "nonsense"),
        (("--out", "/"), "exists already"),
        (("--plot", "p.doc"), "has to end in .png"),
        (("--student", "cifar:resnet8", "--target-params", "5%"), "cifar:resnet8 has its own size"),
        (("--share", "0.5"), "leave --share out"),
        (("--temperature", "3"), "knows no --temperature"),
        (("--transfer", "replay", "--temperature", "3"), "replay knows no --temperature"),
    ],
)
def test_what_makes_no_sense_is_refused(extra: tuple[str, ...], sentence: str, run: Any, tmp_path: Path) -> None:
    """In a sentence, and nothing is written."""
    code, _, err = run("--out", str(tmp_path / "student"), *extra)
    assert code != 0
    assert sentence in err
    assert not (tmp_path / "student").exists()


def test_what_is_refused_before_any_work_leaves_no_place_of_work(run: Any, tmp_path: Path) -> None:
    """Neither the one that it would have made, nor one less than there was."""
    impossible = ("--out", str(tmp_path / "student"), "--target-params", "10")
    assert "raise --target-params" in run(*impossible)[2]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    assert "raise --target-params" in run(*impossible, "--work", str(tmp_path / "mine"))[2]
    assert (tmp_path / "mine").is_dir()
