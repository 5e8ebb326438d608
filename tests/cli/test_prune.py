"""`edgetune prune`: from a model and folders of images to a smaller model that a board takes over."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetune import errors
from edgetune.cli import main
from edgetune.cli.destination import read_destination
from edgetune.cli.prune_progress import Teller, telling
from edgetune.cli.prune_report import draw, pareto, words

torch = pytest.importorskip("torch", reason="pruning needs the extra: train")

NETS = Path(__file__).parents[1] / "learn"
COLOURS = ("red", "green", "blue")
STOPPED = 130
# little work, and nothing that is measured in time decides
QUICK = ("--multiple", "1", "--batch-size", "16", "--epochs-before", "1", "--epochs", "2", "--trial-epochs", "2",
         "--threads", "1")  # fmt: skip


def picture(label: str, number: int) -> Image.Image:
    """Noise in which the class's colour is the brightest."""
    rng = np.random.default_rng([number, COLOURS.index(label)])
    pixels = rng.integers(0, 130, (16, 16, 3))
    pixels[..., COLOURS.index(label)] += 90
    return Image.fromarray(pixels.astype(np.uint8))


def fill(folder: Path, numbers: range, labels: Sequence[str] = COLOURS) -> None:
    """A folder of pictures for each colour."""
    for label in labels:
        (folder / label).mkdir(parents=True)
        for number in numbers:
            picture(label, number).save(folder / label / f"{number}.png")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that tell the colours apart, their names, and two directories of images."""
    from safetensors.torch import save_file
    from torch.nn import functional

    sys.path.insert(0, str(NETS))
    try:
        from tiny_nets import tiny
    finally:
        sys.path.remove(str(NETS))
    root = tmp_path_factory.mktemp("given")
    torch.manual_seed(0)
    module = tiny(3)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    pixels = np.stack([np.asarray(picture(label, 900 + n)) for n in range(16) for label in COLOURS])
    images = (torch.tensor(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    labels = torch.tensor([0, 1, 2] * 16)
    for _ in range(30):
        optimiser.zero_grad()
        functional.cross_entropy(module(images), labels).backward()
        optimiser.step()
    save_file(module.state_dict(), root / "w.safetensors")
    (root / "classes.txt").write_text("\n".join(COLOURS))
    fill(root / "split" / "train", range(40))
    fill(root / "split" / "val", range(100, 120))
    fill(root / "split" / "test", range(200, 210))
    (root / "split" / "train" / "red" / "bad.jpg").write_bytes(b"no image")
    fill(root / "flat", range(40))
    return root


def model_words(given: Path) -> list[str]:
    """MODEL as an architecture with everything that belongs to it."""
    return ["tiny_nets:tiny", "--weights", str(given / "w.safetensors"), "--classes", str(given / "classes.txt"),
            "--size", "16", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25"]  # fmt: skip


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run `edgetune ...` here: exit code, stdout, stderr."""
    monkeypatch.setenv("EDGETUNE_SOCKET", str(tmp_path / "s.sock"))
    monkeypatch.delenv("EDGETUNE_CONFIG", raising=False)
    monkeypatch.syspath_prepend(str(NETS))
    threads = torch.get_num_threads()

    def call(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    yield call
    torch.set_num_threads(threads)


class TestWhole:
    """One run from end to end, looked at from all sides."""

    def test_half_the_parameters_then_a_board_takes_it(self, run: Any, given: Path, tmp_path: Path) -> None:
        """The result is smaller, as accurate, whole, and a factory model; from it a search can begin again."""
        code, out, err = run("prune", *model_words(given), "--data", given / "split", "--out", tmp_path / "small",
                             "--smaller", "2x", *QUICK, "--plot", tmp_path / "p.png", "--json")  # fmt: skip
        assert code == 0, err
        assert err == ""
        answer = json.loads(out)
        assert answer["reached"] is True
        assert answer["final"]["parameters"] <= answer["given"]["parameters"] / 2
        assert answer["final"]["validation_accuracy"] >= answer["given"]["validation_accuracy"] - 0.01
        assert answer["given"]["test_accuracy"] > 0.9
        assert answer["final"]["test_accuracy"] > 0.9
        assert [entry["file"] for entry in answer["data"]["unreadable"]] == ["train/red/bad.jpg"]
        assert (answer["data"]["training"], answer["data"]["validation"], answer["data"]["test"]) == (120, 60, 30)
        assert answer["trials"][0]["share"] == pytest.approx(0.5)
        assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
        assert {path.name for path in tmp_path.iterdir()} == {"small", "p.png"}

        manifest = json.loads((tmp_path / "small" / "manifest.json").read_text())
        assert manifest["kind"] == "compressed"
        assert manifest["cost"]["parameters"] == answer["final"]["parameters"]
        assert manifest["pruning"]["level_asked"] == pytest.approx(0.5)
        assert manifest["comparison"]["candidate"]["count"] == 30

        self._import(run, tmp_path, answer["final"]["parameters"])
        code, out, err = run("prune", tmp_path / "small", "--data", given / "flat", "--out", tmp_path / "again",
                             "--smaller", "1.2x", *QUICK, "--max-epochs", "3", "--json")  # fmt: skip
        assert code in (0, errors.EXIT_REFUSED), err
        assert json.loads(out)["given"]["parameters"] == answer["final"]["parameters"]

    def _import(self, run: Any, root: Path, parameters: int) -> None:
        (root / "c.yaml").write_text(f"paths: {{state_dir: {root / 'state'}}}\nserving: {{threads: 1}}\n")
        take = ("models", "import", "--from", root / "small", "--config", root / "c.yaml", "--json")
        code, out, err = run(*take)
        assert code == 0, err
        assert json.loads(out)["parameters"] == parameters
        manifest = json.loads((root / "state" / "models" / "factory" / "manifest.json").read_text())
        assert (manifest["kind"], manifest["source"], manifest["pruning"]) == ("factory", "small", None)
        assert manifest["classes"] == list(COLOURS)
        assert manifest["preprocess"]["std"] == [0.25, 0.25, 0.25]
        weights = root / "small" / "weights.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        code, _, err = run(*take)
        assert (code, "weights.safetensors is damaged" in err) == (errors.EXIT_FAILED, True)
        weights.unlink()
        assert "has no weights.safetensors" in run(*take)[2]
        weights.write_bytes(whole)

    def test_what_cannot_be_reached_exits_4_and_the_best_is_written(
        self, run: Any, given: Path, tmp_path: Path
    ) -> None:
        """With next to no learning nothing of a quarter of the size tells colours apart."""
        code, out, err = run("prune", *model_words(given), "--data", given / "flat", "--out", tmp_path / "small",
                             "--smaller", "8x", "--keep-accuracy", "0pp", *QUICK, "--learning-rate", "1e-7",
                             "--criterion", "random")  # fmt: skip
        assert code == errors.EXIT_REFUSED, err
        assert "not reached: 12.5 % of the parameters within 0pp" in out
        assert "too much lost" in out
        assert "validation images is" in out, "so few images cannot tell a difference of nothing"
        assert "trial 1: retraining" in err
        assert (tmp_path / "small" / "model.onnx").exists()


def test_what_is_asked_for_in_time_is_told_by_what_was_timed(run: Any, given: Path, tmp_path: Path) -> None:
    """Whether a tiny model gets there depends on the machine; what is said of it must follow from the figures beside it."""
    code, out, err = run("prune", *model_words(given), "--data", given / "flat", "--out", tmp_path / "small",
                         "--faster", "1.3x", *QUICK, "--json")  # fmt: skip
    answer = json.loads(out)
    assert answer["goal"]["level_of"] == "latency"
    assert answer["goal"]["ratio"] == pytest.approx(1 / 1.3)
    kept = [point for point in answer["trials"] if point["is_success"]]
    assert answer["reached"] <= bool(kept)
    assert all(point["latency_ratio"] > 0 for point in kept)
    assert code == (0 if answer["reached"] else errors.EXIT_REFUSED), err
    if answer["reached"]:
        assert min(point["share"] for point in kept) <= 1 / 1.3 + 1e-9
        assert answer["stopped_by"] == "the goal is reached"


@pytest.mark.parametrize(("memory", "is_enough"), [("64MiB", False), ("16GiB", True)])
def test_memory_is_forecast_before_anything_is_trained(
    run: Any, given: Path, tmp_path: Path, memory: str, is_enough: bool
) -> None:
    """Torch alone takes more than 64 MiB: refused with the figures, and nothing is written."""
    code, out, err = run("prune", *model_words(given), "--data", given / "flat", "--out", tmp_path / "small",
                         "--smaller", "2x", "--max-memory", memory, *QUICK)  # fmt: skip
    if is_enough:
        assert (code, "reached: 50.0 % of the parameters" in out) == (0, True), err
        return
    assert code == errors.EXIT_FAILED
    assert re.search(r"it would take up to \d+ MiB of 64, even with 8 images at a time", err), err
    assert "tuning to the images" not in err
    assert not (tmp_path / "small").exists()


def test_classes_without_an_image_are_named_as_what_was_not_asked_about(run: Any, given: Path, tmp_path: Path) -> None:
    """Two colours of three."""
    fill(tmp_path / "two", range(20), COLOURS[:2])
    code, out, err = run("prune", *model_words(given), "--data", tmp_path / "two", "--out", tmp_path / "small", *QUICK,
                         "--max-epochs", "1")  # fmt: skip
    assert code == errors.EXIT_REFUSED, err
    said = " ".join(out.split())
    assert "1 of the model's 3 classes have no image to learn from, and what becomes of them was not measured" in said
    assert "of classes not learnt here" not in said


def test_what_becomes_of_a_class_that_is_tested_alone_is_told(run: Any, given: Path, tmp_path: Path) -> None:
    """Two colours of three are learnt; the third one's test images are no part of the test accuracy."""
    fill(tmp_path / "two" / "train", range(20), COLOURS[:2])
    fill(tmp_path / "two" / "val", range(100, 110), COLOURS[:2])
    fill(tmp_path / "two" / "test", range(200, 205))
    code, out, err = run("prune", *model_words(given), "--data", tmp_path / "two", "--out", tmp_path / "small", *QUICK,
                         "--json")  # fmt: skip
    assert code in (0, errors.EXIT_REFUSED), err
    answer = json.loads(out)
    assert answer["data"]["test"] == 15
    for side in (answer["given"], answer["final"]):
        for key, images in (("test_accuracy", 10), ("test_accuracy_others", 5)):
            right = side[key] * images
            assert right == pytest.approx(round(right))
    said = " ".join(words({**answer, "plot": None}).split())
    assert "of classes not learnt here" in said
    assert "was not measured" not in said


def test_a_budget_of_nothing_leaves_the_model_as_given_which_the_documented_example_compresses(
    run: Any, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No trial begins; the directory is the given model's; docs/compress.md's Python runs on it as it stands."""
    code, out, err = run("prune", *model_words(given), "--data", given / "flat", "--out", tmp_path / "given", *QUICK,
                         "--max-epochs", "1")  # fmt: skip
    assert code == errors.EXIT_REFUSED, err
    assert "ended because what is left of 1 epoch is too little for a trial and its retraining" in out
    assert "holds the model as given" in out
    page = (Path(__file__).parents[2] / "docs" / "compress.md").read_text(encoding="utf-8")
    example, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(given / "flat")
    found: dict[str, Any] = {}
    exec(compile(example, "docs/compress.md", "exec"), found)  # noqa: S102 - our own page
    outcome = found["outcome"]
    assert outcome.points[0].parameters <= outcome.base.parameters / 2


def start(given: Path, root: Path) -> subprocess.Popen[str]:
    """The real program, with much to do."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(NETS)])
    words = [*model_words(given), "--data", given / "flat", "--out", root / "small", "--smaller", "2x", *QUICK,
             "--epochs-before", "30", "--epochs", "30", "--json"]  # fmt: skip
    script = "import sys; from edgetune.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", script, "prune", *map(str, words if (root / "last").exists() else words[:-1])],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def interrupt(process: subprocess.Popen[str], begin: str, how: signal.Signals) -> tuple[int, list[str]]:
    """Let it work until a line begins so, then signal; its exit code and all lines of stderr."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line.rstrip())
        if line.startswith(begin):
            process.send_signal(how)
            break
    out, rest = process.communicate(timeout=120)
    assert out == "", "no result before the end"
    return process.returncode, lines + rest.splitlines()


def test_stopped_and_killed_the_same_command_goes_on_where_it_was(given: Path, tmp_path: Path) -> None:
    """Ctrl-C while tuning, SIGKILL after the first trial, then to the end without doing either again."""
    code, lines = interrupt(start(given, tmp_path), "tuning", signal.SIGINT)
    assert code == STOPPED
    assert any("the same command goes on where it was" in line for line in lines)
    code, lines = interrupt(start(given, tmp_path), "retraining the best", signal.SIGKILL)
    assert code == -signal.SIGKILL
    (trial,) = [line for line in lines if line.startswith("trial 1: 50.0 % asked for")]
    assert not (tmp_path / "small").exists()
    (tmp_path / "last").touch()
    out, err = start(given, tmp_path).communicate(timeout=120)
    assert err == ""
    answer = json.loads(out)
    assert len(answer["trials"]) == 1
    assert f"{answer['trials'][0]['parameters']:,} parameters" in trial
    assert answer["reached"] is True
    tried = answer["trials"][0]["epochs"]
    assert answer["epochs"] == 30 + tried + max(15, 30 - tried)
    assert (tmp_path / "small" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (("--faster", "2x", "--smaller", "2x"), "--faster and --smaller cannot stand together"),
        (("--faster", "2x", "--fewer-macs", "2x"), "--faster and --fewer-macs cannot stand together"),
        (("--faster", "1x"), "above 1x"),
        (("--faster", "much"), "above 1x"),
        (("--smaller", "100x"), "up to 50x"),
        (("--keep-accuracy", "1"), "has no unit"),
        (("--keep-accuracy", "1%"), "unknown unit"),
        (("--max-time", "30"), "has no unit"),
        (("--max-time", "0s"), "no trial could begin"),
        (("--max-energy", "20"), "has no unit"),
        (("--max-energy", "0Wh"), "no trial could begin"),
        (("--plot", "p.doc"), "has to end in .png"),
        (("--plot", "/nowhere/p.png"), "there is no directory /nowhere"),
        (("--criterion", "nonsense"), "unknown criterion"),
        (("--data", "/nowhere"), "/nowhere does not exist"),
        (("--out", "/"), "exists already"),
        (("--size", "1"), "--size is '1'"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    extra: tuple[str, ...], sentence: str, run: Any, given: Path, tmp_path: Path
) -> None:
    """Before anything is made, with exit code 2."""
    code, _, err = run("prune", *model_words(given), "--data", given / "flat", "--out", tmp_path / "small", *extra)
    assert code == errors.EXIT_USAGE
    assert sentence in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (("nonsense",), "neither a directory nor an architecture"),
        (("cifar:resnet20",), "--weights and --classes are missing"),
        ((".", "--size", "32"), "--size cannot stand beside ."),
    ],
)
def test_a_model_is_a_directory_or_an_architecture(
    model: tuple[str, ...], sentence: str, run: Any, given: Path, tmp_path: Path
) -> None:
    """And never both."""
    code, _, err = run("prune", *model, "--data", given / "flat", "--out", tmp_path / "small")
    assert (code, sentence in err) == (errors.EXIT_USAGE, True)


def test_a_directory_that_holds_no_model(run: Any, given: Path, tmp_path: Path) -> None:
    """Named, with what should be there."""
    code, _, err = run("prune", given / "flat", "--data", given / "flat", "--out", tmp_path / "small")
    assert (code, "has no manifest.json" in err) == (errors.EXIT_FAILED, True)


def test_a_folder_of_a_class_that_the_model_does_not_know(run: Any, given: Path, tmp_path: Path) -> None:
    """It would be guesswork to leave it out."""
    fill(tmp_path / "data", range(3), ("red",))
    (tmp_path / "data" / "red").rename(tmp_path / "data" / "pink")
    code, _, err = run("prune", *model_words(given), "--data", tmp_path / "data", "--out", tmp_path / "small")
    assert code == errors.EXIT_USAGE
    assert "the model has no class 'pink'" in err
    assert "blue, green, red" in err


def test_what_is_not_named_goes_beside_where_the_command_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result has the model's name, its picture too; neither takes the place of something else."""
    monkeypatch.chdir(tmp_path)
    nothing = {"out": None, "work": None, "plot": None}
    place = read_destination("cifar:resnet20", nothing, ending="pruned")
    assert (place.out, place.work, place.plot) == (
        Path("resnet20-pruned"), Path("resnet20-pruned.work"), Path("resnet20-pruned.png"),
    )  # fmt: skip
    (tmp_path / "models" / "given").mkdir(parents=True)
    assert read_destination("models/given/", nothing, ending="student").out == Path("given-student")
    assert read_destination("tiny_nets:tiny", {**nothing, "out": Path("x")}, ending="pruned").plot == Path("x.png")
    (tmp_path / "x.png").write_bytes(b"a photo")
    with pytest.raises(errors.UsageError, match=r"x\.png exists already"):
        read_destination("tiny_nets:tiny", {**nothing, "out": Path("x")}, ending="pruned")
    (tmp_path / "resnet20-pruned").mkdir()
    with pytest.raises(errors.UsageError, match="resnet20-pruned exists already"):
        read_destination("cifar:resnet20", nothing, ending="pruned")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert read_destination("tiny_nets:tiny", {**nothing, "out": Path("x")}, ending="pruned").plot is None


def test_without_matplotlib_the_extra_is_named(
    run: Any, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the work, not after it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run(
        "prune", *model_words(given), "--data", given / "flat", "--out", tmp_path / "s", "--plot", "p.png"
    )
    assert (code, "edgetune[plot]" in err) == (errors.EXIT_FAILED, True)


def test_a_search_is_not_done_twice_at_once(run: Any, given: Path, tmp_path: Path) -> None:
    """Two would overwrite each other's checkpoints."""
    import fcntl

    (tmp_path / "work").mkdir()
    with (tmp_path / "work" / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = run("prune", *model_words(given), "--data", given / "flat", "--out", tmp_path / "small",
                           "--work", tmp_path / "work")  # fmt: skip
    assert (code, "name another --work" in err) == (errors.EXIT_FAILED, True)


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (("--arch", "cifar:resnet20"), "--arch cannot stand beside --from"),
        (("--random", "--new-head"), "--new-head, --random cannot stand beside --from"),
    ],
)
def test_import_takes_a_directory_or_an_architecture(
    extra: tuple[str, ...], sentence: str, run: Any, tmp_path: Path
) -> None:
    """The directory says everything itself; without one an architecture and its classes are needed."""
    code, _, err = run("models", "import", "--from", tmp_path, *extra)
    assert (code, sentence in err) == (errors.EXIT_USAGE, True)
    assert "--arch and --classes are missing" in run("models", "import")[2]


def test_the_front_leaves_out_what_another_network_beats() -> None:
    """Faster and as good, or as fast and better."""
    assert pareto([(3.0, 90.0), (1.0, 50.0), (2.0, 80.0), (2.0, 70.0), (2.5, 80.0)]) == [(1, 50), (2, 80), (3, 90)]


@pytest.mark.parametrize(
    ("share", "now", "level_of", "is_reached", "why"),
    [
        (0.5, 0.52, "latency", True, "the goal is reached"),
        (0.5, 0.56, "latency", False, "takes 0.56x now"),
        (0.5, 0.56, "parameters", True, "the goal is reached"),
        (0.7, 0.5, "latency", True, "the goal is reached"),
        (0.7, 0.51, "latency", False, "nothing left"),
        (0.7, 0.5, "macs", False, "nothing left"),
    ],
)
def test_a_goal_is_reached_when_the_last_timing_says_so_too(
    share: float, now: float, level_of: str, is_reached: bool, why: str
) -> None:
    """What was fast enough once, by chance, on a busy machine is no success; latencies decide where they are the goal."""
    from edgetune.cli.prune_result import _verdict

    point = SimpleNamespace(is_success=True, share=share, latency_ratio=now)
    outcome: Any = SimpleNamespace(points=[point], best=point, stopped_by="nothing left")
    verdict = _verdict(outcome, level_of=level_of, ratio=0.5)
    assert verdict[0] is is_reached
    assert why in verdict[1]


class Terminal(io.StringIO):
    """A stderr with a person in front of it."""

    def isatty(self) -> bool:
        return True


def test_a_person_sees_a_bar_and_every_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """The phase, how far it is, and what came of each trial, which stays on the screen."""
    from edgetune.learn.goal import Point

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "200")
    point = Point(share=0.5, parameters=1234, macs=5, latency_ratio=0.48, accuracy=0.9, epochs=2.0, is_success=True)
    with telling(is_quiet=False) as teller:
        teller.phase("trial")
        teller.progress(step=3, steps=8, loss=0.5)
        teller.told(point)
        teller.phase("trial")
    shown = screen.getvalue()
    assert "trial 1: retraining" in shown
    assert "trial 1: 50.0 % asked for, 0.48x latency, 1,234 parameters, 90.0 % right on validation: kept" in shown
    with telling(is_quiet=True) as teller:
        assert type(teller) is Teller


def test_the_trials_of_an_earlier_call_are_counted_unless_the_search_begins_anew(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The numbers in a log go on; tuning is what a new search begins with."""
    for first, said in (("score", "trial 4: retraining"), ("tune", "trial 1: retraining")):
        with telling(is_quiet=False) as teller:
            teller.phase("load")
            teller.searches_after(3)
            for phase in (first, "trial"):
                teller.phase(phase)
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1] == said
        assert ("going on after 3 trials of an earlier call" in lines) == (first == "score")


def test_what_a_search_will_not_touch_is_named_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    """By its layers' names, the first of many; nothing is said where everything can be pruned."""
    with telling(is_quiet=False) as teller:
        teller.left_whole(())
        teller.left_whole(("stem", "gate"))
        teller.left_whole(tuple(f"gate{n}" for n in range(10)))
    assert capsys.readouterr().err.splitlines() == [
        "2 layers cannot be pruned and will keep all filters: stem, gate",
        "10 layers cannot be pruned and will keep all filters: "
        + ", ".join(f"gate{n}" for n in range(8))
        + " and 2 more",
    ]


def test_a_trial_that_goes_on_in_its_middle_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """The engine does not announce it: steps that follow on the first look are a trial's."""
    with telling(is_quiet=False) as teller:
        teller.phase("load")
        teller.progress(step=5, steps=5)
        teller.searches_after(2)
        teller.alive()
        teller.progress(step=7, steps=9, loss=0.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2:] == ["going on after 2 trials of an earlier call", "trial 3: retraining"]


def test_a_trial_that_could_not_be_cut_has_no_figures(tmp_path: Path) -> None:
    """Neither in the table nor in the picture, which would otherwise reach down to 0 %."""
    side = {"parameters": 10, "macs": 10, "onnx_bytes": 10, "latency_ms": 1.0, "validation_accuracy": 0.5,
            "test_accuracy": None, "test_accuracy_others": None}  # fmt: skip
    point = {"share": 0.05, "parameters": 10, "macs": 10, "latency_ratio": 1.0, "accuracy": 0.0, "epochs": 0.0,
             "is_success": False}  # fmt: skip
    answer = {
        "reached": False, "stopped_by": "why", "model": "m", "trials": [point], "given": side, "final": side,
        "removed_branches": ["layer1.1.conv2", "layer2.2.conv2"],
        "epochs": 4.0, "seconds": 1.0,
        "joules": 36_000.0, "is_energy_estimated": True, "directory": "out", "plot": "p.svg",
        "goal": {"level_of": "latency", "ratio": 0.5, "accuracy_drop_max": 0.01},
        "data": {"training": 8, "validation": 2, "test": 3, "notes": [], "unreadable": []},
    }  # fmt: skip
    (line,) = [line for line in words(answer).splitlines() if line.startswith("    1 ")]
    assert line.split() == ["1", "5.0", "%", "-", "-", "-", "-", "-", "cannot", "be", "cut", "so", "far"]
    assert "2 residual branches are gone; they ended in layer1.1.conv2, layer2.2.conv2" in words(answer)
    draw(answer, tmp_path / "p.svg")
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")


def test_the_report_names_some_of_many_bad_files() -> None:
    """And says where the others are."""
    side = {"parameters": 10, "macs": 10, "onnx_bytes": 10, "latency_ms": 1.0, "validation_accuracy": 0.5,
            "test_accuracy": None, "test_accuracy_others": None}  # fmt: skip
    answer = {
        "reached": False, "stopped_by": "1 s are spent", "trials": [], "given": side, "final": side, "epochs": 4.0,
        "removed_branches": [], "seconds": 1.0,
        "joules": 36_000.0, "is_energy_estimated": True, "directory": "out", "plot": None,
        "goal": {"level_of": "latency", "ratio": None, "accuracy_drop_max": 0.01},
        "data": {"training": 8, "validation": 2, "test": None, "notes": ["few"],
                 "unreadable": [{"file": f"cat/{n}.jpg", "why": "the file is empty"} for n in range(7)]},
    }  # fmt: skip
    said = words(answer)
    assert "cat/4.jpg" in said
    assert "cat/5.jpg" not in said
    assert "and 2 more" in said
    assert "not reached: a smaller network within 1pp of the accuracy" in said
    assert "out holds the model as given" in said


def test_reference_images_stay_with_the_factory_model_they_came_with(run: Any, given: Path, tmp_path: Path) -> None:
    """20 of each class are kept in the state directory, at the model's size; another import forgets them."""
    (tmp_path / "c.yaml").write_text(f"paths: {{state_dir: {tmp_path / 'state'}}}\nserving: {{threads: 1}}\n")
    take = (
        "models", "import", "--arch", "tiny_nets:tiny", "--weights", given / "w.safetensors", "--classes",
        given / "classes.txt", "--size", "16", "--config", tmp_path / "c.yaml", "--json",
    )  # fmt: skip
    code, out, err = run(*take, "--reference", given / "flat")
    assert code == 0, err
    assert json.loads(out)["reference_images"] == 60
    with np.load(tmp_path / "state" / "reference.npz", allow_pickle=False) as kept:
        assert kept["images"].shape == (60, 16, 16, 3)
        assert sorted(set(kept["labels"].tolist())) == sorted(COLOURS)
    (tmp_path / "odd" / "violet").mkdir(parents=True)
    code, _, err = run(*take, "--reference", tmp_path / "odd")
    assert (code, "no class 'violet'" in err) == (errors.EXIT_USAGE, True)
    versions = sorted(path.name for path in (tmp_path / "state" / "models").glob("v*"))
    assert versions == ["v000001"], "a refused import leaves nothing"
    assert run(*take)[0] == 0
    assert not (tmp_path / "state" / "reference.npz").exists()


def test_another_teacher_and_no_label_compress_too(run: Any, given: Path, tmp_path: Path) -> None:
    """A file that knows the colours; a search that it began does not go on with another."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "teach"))
    from teacher_models import colour_model

    teacher = colour_model(tmp_path / "teacher.onnx")
    names = [word for number, name in enumerate(COLOURS) for word in ("--teacher-class", f"{name}={number}")]
    order = ["prune", *model_words(given), "--data", given / "split", "--out", tmp_path / "small", "--smaller", "1.5x",
             "--keep-accuracy", "20pp", *QUICK, "--transfer", "label_free", "--work", tmp_path / "work", "--json"]  # fmt: skip
    code, out, err = run(*order, "--teacher", teacher, *names)
    assert code == 0, err
    answer = json.loads(out)
    assert answer["final"]["test_accuracy"] > 0.8
    assert answer["teacher"]["images_asked"] > 0
    assert "its teacher was asked about" in words(answer)
    order[order.index(tmp_path / "small")] = tmp_path / "other"
    code, out, err = run(*order)
    assert (code, "begun with another teacher" in err) == (errors.EXIT_USAGE, True), err


def test_marks_stay_with_the_classes_that_no_training_image_shows(
    run: Any, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a teacher's word alone has taught is no surer for a compression on others; nor is anything where none came of it."""
    from edgetune.cli import artefacts

    read, marks = artefacts.read_artefact, {"green": "provisional", "blue": "never_seen_here"}

    def marked(*order: Any) -> Any:
        manifest, network = read(*order)
        return replace(manifest, marks=marks), network

    monkeypatch.setattr(artefacts, "read_artefact", marked)
    data = ("--data", given / "split", "--out", tmp_path / "one")
    assert run("prune", *model_words(given), *data, *QUICK, "--max-epochs", "0.001")[0] == errors.EXIT_REFUSED
    for part, numbers in (("train", range(40)), ("val", range(100, 120))):
        fill(tmp_path / "two colours" / part, numbers, ("red", "green"))
    order = ["prune", tmp_path / "one", "--data", tmp_path / "two colours", *QUICK, "--keep-accuracy", "100pp"]
    for name, more, left in (
        ("given", ["--max-epochs", "0.001"], marks),
        ("small", ["--smaller", "1.2x"], {"blue": "never_seen_here"}),
    ):
        code, _, err = run(*order, "--out", tmp_path / name, *more)
        assert code == (errors.EXIT_REFUSED if left == marks else 0), err
        assert json.loads((tmp_path / name / "manifest.json").read_text())["marks"] == left
