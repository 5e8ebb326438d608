"""The command line: every verb, exit codes, and what is sent and said."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from edgetune import errors
from edgetune.cli import group as edgetune_group
from edgetune.cli import main
from edgetune.cli.base import folded
from edgetune.cli.reference import commands, reference_text

ROOT = Path(__file__).parents[2]
VERBS = dict(commands())


class Ran:
    """What a command left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run `edgetune ...` here; where a fake daemon is, it is found through EDGETUNE_SOCKET."""
    monkeypatch.setenv("EDGETUNE_SOCKET", str(tmp_path / "s.sock"))
    monkeypatch.delenv("EDGETUNE_CONFIG", raising=False)

    def call(*words: str | Path) -> Ran:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help_and_json(name: str, run: Any) -> None:
    """A person finds out what a verb does, and a program can read what it says."""
    command = VERBS[name]
    options = {option for parameter in command.params for option in parameter.opts}
    assert "--json" in options
    ran = run(*name.split(), "--help")
    assert ran.code == 0
    assert command.help
    assert all(p.help for p in command.params if isinstance(p, click.Option))


def test_the_verbs_of_the_design_are_there_and_documented() -> None:
    """docs/cli.md is written from the verbs and is current."""
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == reference_text(), (
        "run: python -m edgetune.cli.reference"
    )
    wanted = [
        "run",
        "status",
        "doctor",
        "reload",
        "train",
        "pause",
        "resume",
        "cancel",
        "rounds",
        "prune",
        "compress",
        "simulate",
        "predict",
        "bench",
        "events",
        "version",
    ]
    wanted += [f"config {verb}" for verb in ("check", "show", "schema")]
    wanted += [f"models {verb}" for verb in ("ls", "show", "diff", "promote", "rollback", "import", "export", "gc")]
    wanted += [
        f"data {verb}"
        for verb in ("ls", "next", "stats", "label", "accept", "refuse", "quarantine", "purge", "export", "backup")
    ]
    assert sorted(VERBS) == sorted(wanted)


def test_status_imports_nothing_heavy() -> None:
    """`edgetune status` has to answer at once on a Raspberry Pi."""
    code = (
        "import sys; from edgetune.cli import main; code = main(['status', '--socket', '/nonexistent']);"
        "heavy = {'torch', 'pydantic', 'onnxruntime', 'starlette', 'numpy', 'yaml', 'rich', 'PIL'} & set(sys.modules);"
        "print(code, sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{errors.EXIT_NOT_RUNNING} []"


def test_without_a_daemon_the_exit_code_is_3_and_the_way_out_is_named(run: Any) -> None:
    """One sentence and the hint on stderr; the same as JSON where it is asked for."""
    ran = run("status", "--json")
    assert ran.code == errors.EXIT_NOT_RUNNING
    assert ran.err.splitlines()[0].startswith("edgetune: the edgetune daemon does not answer")
    assert "systemctl start edgetune" in ran.err
    assert ran.json["error"]["code"] == "not_running"


def test_usage_errors_exit_with_2(run: Any) -> None:
    """An unknown verb, a missing argument."""
    assert run("nonsense").code == errors.EXIT_USAGE
    assert run("models", "show", "seven").code == errors.EXIT_USAGE
    assert run("data", "purge").code == errors.EXIT_USAGE


def test_what_the_daemon_refuses_keeps_its_words_and_exit_code(run: Any, daemon: Any) -> None:
    """The daemon's sentence and hint reach the operator."""
    error = {"code": "refused", "message": "a round needs 37 of 200 new samples", "hint": "edgetune train --force"}
    daemon.answers["POST", "/v1/rounds"] = (409, {"error": error})
    ran = run("train")
    assert ran.code == errors.EXIT_REFUSED
    assert ran.err == "edgetune: a round needs 37 of 200 new samples\n  edgetune train --force\n"


def test_status_as_json_is_the_daemons(run: Any, daemon: Any) -> None:
    """Nothing is lost or renamed on the way."""
    assert run("status", "--json").json == daemon.status


def test_train_sends_what_was_asked_and_waits_for_the_outcome(run: Any, daemon: Any) -> None:
    """--wait exits by the outcome: promoted 0, refused 4, else 1."""
    daemon.answers["POST", "/v1/rounds"] = (
        202,
        {"id": 5, "kind": "adapt", "wanted": True, "reason": "asked for by operator"},
    )
    row = {
        "id": 5,
        "kind": "adapt",
        "state": "idle",
        "outcome": "promoted",
        "message": "",
        "reason": "r",
        "ended_at_s": 1.0,
        "details": {},
    }
    daemon.answers["GET", "/v1/rounds/5"] = lambda: row
    ran = run("train", "--kind", "adapt", "--force", "--wait")
    assert (ran.code, ran.out.splitlines()[0]) == (0, "round 5 (adapt): promoted")
    assert json.loads(daemon.asked[0][2]) == {"force": True, "dry_run": False, "kind": "adapt"}
    for outcome, code in (("refused", errors.EXIT_REFUSED), ("out_of_memory", errors.EXIT_FAILED)):
        row["outcome"] = outcome
        assert run("train", "--wait", "--json").code == code


def test_what_to_label_next_is_a_table_with_the_command(run: Any, daemon: Any) -> None:
    """Each with the model's guess and why; or why there is nothing to label yet."""
    rows = [
        {"sample": 12, "guess": "cat", "confidence": 0.513, "why": "margin 0.03 between cat and dog", "how": "x"},
        {"sample": 9, "guess": "gull", "confidence": 0.5, "why": "margin", "how": "z", "mark": "provisional"},
        {"sample": 7, "guess": None, "confidence": None, "why": "drawn at random", "how": "y"},
    ]
    daemon.answers["GET", "/v1/data/next"] = {"model_version": 3, "answered": 40, "samples": rows}
    lines = run("data", "next", "--count", "2").out.splitlines()
    assert lines[1].split() == ["12", "cat", "(51%)", "margin", "0.03", "between", "cat", "and", "dog"]
    assert lines[2].split() == ["9", "gull", "(50%)", "(provisional)", "margin"]
    assert lines[3].split() == ["7", "-", "drawn", "at", "random"]
    assert lines[-1] == "label them with: edgetune data label SAMPLE CLASS"
    assert json.loads(run("data", "next", "--json").out)["samples"] == rows
    daemon.answers["GET", "/v1/data/next"] = {"model_version": 3, "answered": 0, "samples": []}
    assert "no unlabelled training sample has an answer" in run("data", "next").out


def test_images_that_want_a_label_are_saved_to_look_at(run: Any, daemon: Any, tmp_path: Path) -> None:
    """By number, into a directory of their own; and why there are fewer than asked for."""
    rows = [{"sample": n, "guess": None, "confidence": None, "why": "drawn", "how": "x"} for n in (12, 7)]
    daemon.answers["GET", "/v1/data/next"] = {"model_version": 3, "answered": 2, "samples": rows}
    daemon.answers["GET", "/v1/data/samples/12/image"] = b"RIFF, and the rest of a WebP"
    daemon.answers["GET", "/v1/data/samples/7/image"] = b"\xff\xd8\xff, and the rest of a JPEG"
    ran = run("data", "next", "--save", tmp_path / "look")
    assert f"their images are in {tmp_path / 'look'}" in ran.out
    assert "no more than these: the served model has answered 2 unlabelled training samples" in ran.out
    assert {path.name for path in (tmp_path / "look").iterdir()} == {"12.webp", "7.jpg"}
    assert (tmp_path / "look" / "7.jpg").read_bytes().endswith(b"JPEG")
    again = run("data", "next", "--save", tmp_path / "look")
    assert (again.code, "is there and not empty" in again.err) == (errors.EXIT_USAGE, True)


@pytest.mark.parametrize(
    ("status", "said"), [("pending", "does not know"), ("refused", "is refused"), ("accepted", "")]
)
def test_a_label_of_a_class_that_no_round_learns_says_so(run: Any, daemon: Any, status: str, said: str) -> None:
    """A mistyped name would be waited for in vain."""
    daemon.answers["POST", "/v1/data/samples/12/label"] = {"sample": "12", "label": "gul", "class_status": status}
    out = run("data", "label", "12", "gul").out
    assert out.startswith("sample 12 is gul")
    assert said in out
    assert ("edgetune data accept gul" in out) == bool(said)


@pytest.mark.parametrize(
    ("words", "path", "body"),
    [
        (("pause",), "/v1/pause", None),
        (("resume",), "/v1/resume", None),
        (("cancel",), "/v1/cancel", None),
        (("reload",), "/v1/reload", None),
        (("models", "promote", "6"), "/v1/models/6/promote", None),
        (("models", "rollback"), "/v1/rollback", None),
        (("data", "accept", "dogs/ä"), "/v1/data/classes/dogs%2F%C3%A4/accept", None),
        (("data", "refuse", "dgo"), "/v1/data/classes/dgo/refuse", None),
        (("data", "label", "12", "cat"), "/v1/data/samples/12/label", {"label": "cat"}),
        (("data", "purge", "--label", "cat", "--yes"), "/v1/data/purge", {"label": "cat"}),
        (("data", "purge", "--everything", "-y"), "/v1/data/purge", {"everything": True}),
        (("data", "export", "/tmp/x"), "/v1/data/export", {"directory": "/tmp/x"}),
        (("data", "backup", "/tmp/x.db"), "/v1/data/backup", {"path": "/tmp/x.db"}),
    ],
)
def test_acts_are_sent_where_they_belong(
    words: tuple[str, ...], path: str, body: object, run: Any, daemon: Any
) -> None:
    """Each verb makes one request and prints JSON when asked to."""
    answer = {"version": 6, "removed": 3, "samples": 3, "directory": "/tmp/x", "path": "/tmp/x.db", "state": "stopping"}
    daemon.answers["POST", path] = answer
    ran = run(*words, "--json")
    assert (ran.code, ran.json) == (0, answer)
    assert daemon.asked[-1][:2] == ("POST", path)
    assert (json.loads(daemon.asked[-1][2]) if daemon.asked[-1][2] else None) == body
    assert run(*words).out.strip()


def test_a_relative_path_is_made_absolute_before_the_daemon_sees_it(
    run: Any, daemon: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon's working directory is another one."""
    monkeypatch.chdir(tmp_path)
    daemon.answers["POST", "/v1/data/backup"] = {"path": "x"}
    run("data", "backup", "copy.db")
    assert json.loads(daemon.asked[-1][2]) == {"path": str(tmp_path / "copy.db")}


def test_purge_asks_first(run: Any, daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a yes nothing is sent."""
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _prompt: "n")
    assert run("data", "purge", "--everything").code != 0
    assert not daemon.asked


def test_predict_tells_each_file_and_goes_on_after_a_bad_one(run: Any, daemon: Any, tmp_path: Path) -> None:
    """One unreadable image does not stop the rest, and the exit code says that there was one."""
    good, bad = tmp_path / "a.jpg", tmp_path / "b.jpg"
    good.write_bytes(b"good"), bad.write_bytes(b"bad")
    answer = {
        "prediction_id": "p1",
        "model_version": 7,
        "top": [{"class": "cat", "probability": 0.931}, {"class": "gull", "probability": 0.05, "mark": "provisional"}],
        "latency_ms": 2.04,
    }
    refusal = (400, {"error": {"code": "bad_image", "message": "not an image", "hint": ""}})
    daemon.answers["POST", "/v1/predict"] = lambda: answer if daemon.asked[-1][2] == b"good" else refusal
    ran = run("predict", bad, good, "-k", "1", "--no-record")
    assert ran.code == errors.EXIT_FAILED
    assert ran.out == f"{good}: cat 93.1%, gull 5.0% (provisional)  (version 7, 2.0 ms, id p1)\n"
    assert ran.err == f"{bad}: not an image\n"
    assert daemon.asked[-1][1] == "/v1/predict?top_k=1&record=false"
    answer |= {"label": None, "rejected": True}
    assert f"{good}: rejected, nobody is sure: cat 93.1%" in run("predict", good).out


def test_events_reads_all_pages_and_shows_the_last(run: Any, daemon: Any) -> None:
    """The newest events are wanted, and the daemon gives the oldest first."""
    pages = iter([[{"seq": n, "wall_s": 0.0, "kind": "k", "text": f"event {n}", "data": {}} for n in range(1, 31)], []])
    daemon.answers["GET", "/v1/events"] = lambda: next(pages)
    ran = run("events", "-n", "2", "--json")
    assert [event["seq"] for event in ran.json] == [29, 30]


def test_models_are_listed_and_compared(run: Any, daemon: Any) -> None:
    """What is served is marked; a comparison names what changed."""
    one = {"version": 1, "kind": "factory", "parent": None, "round_id": None, "architecture": "cifar:resnet20", "classes": ["a", "b"],
           "created_at": "2026", "cost": {"parameters": 1000, "macs": 5, "onnx_bytes": 9}, "latency": {"median_ms": 2.0, "p90_ms": 3.0},
           "comparison": None, "pruning": None, "files": {}, "preprocess": {"height": 32, "width": 32, "resize": "stretch"}}  # fmt: skip
    two = {**one, "version": 2, "kind": "reshape", "parent": 1, "classes": ["a", "b", "c"], "marks": {"c": "never_seen_here"}, "cost": {"parameters": 500, "macs": 3, "onnx_bytes": 5},
           "comparison": {"base": {"count": 10, "correct": 5, "per_class": {"a": {"count": 10, "correct": 5}}},
                          "candidate": {"count": 10, "correct": 9, "per_class": {"a": {"count": 10, "correct": 9}}}}}  # fmt: skip
    listed = [{**one, "is_served": False, "is_factory": True}, {**two, "is_served": True, "is_factory": False}]
    listed.append({"version": 3, "is_served": False, "is_factory": False, "quarantined": "worse"})
    daemon.answers["GET", "/v1/models"] = listed
    daemon.answers["GET", "/v1/models/1"], daemon.answers["GET", "/v1/models/2"] = one, two
    lines = run("models", "ls").out.splitlines()
    assert [line[0] for line in lines[1:]] == [" ", "*", "!"]
    assert "90.0 %" in lines[2]
    shown = run("models", "show", "2").out
    assert "50.0 %  90.0 %" in shown
    assert "never seen here: c" in shown
    answer = run("models", "diff", "1", "2", "--json").json
    assert answer["classes_added"] == ["c"]
    assert answer["changed"]["parameters"] == ["1,000", "500"]


def test_a_round_is_told_with_the_labels_that_were_contradicted(run: Any, daemon: Any) -> None:
    """And with the part that was trained, where that was not the operator's choice."""
    worst = [{"sample": 7, "label": "cat", "says": "dog", "confidence": 0.98}]
    daemon.answers["GET", "/v1/rounds/3"] = {
        "id": 3, "kind": "adapt", "outcome": "refused", "state": "ended", "reason": "200 of 200 new samples", "message": "",
        "details": {"doubts": {"classes": {}, "worst": worst}, "update": {"update": "latent", "why": "too little memory"},
                    "left_whole": "1 layer cannot be pruned and will keep all filters: gate", "kept_of_training": 0.8},
    }  # fmt: skip
    out = run("rounds", "3").out
    assert "  7: labelled 'cat', it says 'dog' (98%)" in out
    assert "training.update came to latent: too little memory" in out
    assert "  1 layer cannot be pruned and will keep all filters: gate\n" in out
    assert "  kept 80% of what training changed, for the classes that are shown here\n" in out
    daemon.answers["GET", "/v1/rounds/3"]["details"] = {
        "update": {"update": "full", "why": ""},
        "kept_of_training": 1.0,
    }
    out = run("rounds", "3").out.split("{")[0]
    assert "contradicted" not in out
    assert "training.update" not in out
    assert "what training changed" not in out


def test_config_check_tells_every_problem_and_exits_78(run: Any, tmp_path: Path) -> None:
    """systemd must not restart on a faulty configuration."""
    path = tmp_path / "c.yaml"
    path.write_text("buffer: {quota: 3}\nlog: {level: loud}\n")
    ran = run("config", "check", "--config", path)
    assert ran.code == errors.EXIT_CONFIG
    assert f"{path}:1: buffer.quota" in ran.err
    assert f"{path}:2: log.level" in ran.err
    path.write_text("buffer: {quota: 3GiB}\n")
    assert run("config", "check", "-c", path, "--json").json == {"valid": True, "path": str(path), "notes": []}
    path.write_text("training: {teacher: server, teacher_server: 'https://cloud.example/v2/models/m'}\n")
    ran = run("config", "check", "-c", path)
    assert ran.code == 0
    assert "images leave this device: rounds send training images, unlabelled ones too, to cloud.example:443" in ran.out
    assert len(run("config", "check", "-c", path, "--json").json["notes"]) == 1
    path.write_text("buffer: {quota: 3GiB}\n")
    assert run("config", "show", "-c", path, "--changed", "--json").json == {"buffer": {"quota": "3GiB"}}
    assert run("config", "show", "--default").out == (ROOT / "config.yaml").read_text() + "\n"
    assert run("config", "schema").json["additionalProperties"] is False


def test_run_with_a_faulty_configuration_exits_78(run: Any, tmp_path: Path) -> None:
    """Nothing is started and nothing is made."""
    path = tmp_path / "c.yaml"
    path.write_text("paths: {state_dir: here}\n")
    assert run("run", "--config", path).code == errors.EXIT_CONFIG


def test_quarantine_lists_files_with_their_reasons(run: Any, daemon: Any) -> None:
    """An operator sees what was wrong with a file."""
    directory = daemon.state_dir / "quarantine" / "inbox" / "cat"
    directory.mkdir(parents=True)
    (directory / "a.jpg").write_bytes(b"")
    (directory / "a.jpg.reason.json").write_text('{"reason": "the file is empty"}')
    (directory / "b.jpg.reason.json").write_text("{")
    assert run("data", "quarantine", "--json").json == [
        {"file": "cat/a.jpg", "reason": "the file is empty"},
        {"file": "cat/b.jpg", "reason": "unknown"},
    ]


class TestImport:
    """`models import`: without the daemon, beside one without a model, and never under one that serves."""

    @pytest.fixture
    def words(self, tmp_path: Path) -> list[str]:
        (tmp_path / "classes.txt").write_text("cat\n\ndog \n")
        (tmp_path / "c.yaml").write_text(f"paths: {{state_dir: {tmp_path / 'state'}}}\nserving: {{threads: 1}}\n")
        return ["models", "import", "--arch", "cifar:resnet20", "--random", "--classes", str(tmp_path / "classes.txt"),
                "--config", str(tmp_path / "c.yaml"), "--json"]  # fmt: skip

    def test_makes_the_factory_model(self, run: Any, words: list[str], tmp_path: Path) -> None:
        """Version 1 is both the factory model and the current one, and export and gc know it."""
        pytest.importorskip("torch", reason="importing needs the extra: train")
        ran = run(*words)
        assert ran.code == 0, ran.err
        assert (ran.json["version"], ran.json["classes"], ran.json["is_served"]) == (1, 2, False)
        models = tmp_path / "state" / "models"
        assert (models / "current").resolve().name == (models / "factory").resolve().name == "v000001"
        manifest = json.loads((models / "current" / "manifest.json").read_text())
        assert manifest["preprocess"]["mean"] == [0.4914, 0.4822, 0.4465]
        ran = run("models", "export", "1", tmp_path / "out", "--config", tmp_path / "c.yaml", "--json")
        assert "model.onnx" in ran.json["files"]
        assert run("models", "export", "1", tmp_path / "out", "--config", tmp_path / "c.yaml").code == errors.EXIT_USAGE
        assert run("models", "gc", "--config", tmp_path / "c.yaml", "--keep", "1", "--json").json["removed"] == []

    def test_is_refused_while_the_daemon_serves(self, run: Any, daemon: Any, words: list[str]) -> None:
        """The factory model is not changed under a running service."""
        ran = run(*words)
        assert ran.code == errors.EXIT_FAILED
        assert "serves version 7 already" in ran.err

    def test_is_refused_when_a_silent_process_holds_the_directory(
        self, run: Any, words: list[str], tmp_path: Path
    ) -> None:
        """Two writers never meet."""
        (tmp_path / "state").mkdir()
        with (tmp_path / "state" / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            ran = run(*words)
        assert ran.code == errors.EXIT_FAILED
        assert "holds" in ran.err

    def test_beside_a_daemon_without_a_model_it_is_served_at_once(
        self, run: Any, daemon: Any, words: list[str]
    ) -> None:
        """The daemon is asked to look again."""
        pytest.importorskip("torch", reason="importing needs the extra: train")
        daemon.status["served"] = None
        daemon.answers["POST", "/v1/reload"] = {"changed": [], "needs_restart": [], "served": 1}
        ran = run(*words)
        assert ran.json["is_served"] is True
        assert daemon.asked[-1][:2] == ("POST", "/v1/reload")

    @pytest.mark.parametrize("extra", [["--size", "big"], ["--size", "4"], ["--mean", "1,2"], ["--std", "0,1,1"]])
    def test_numbers_that_make_no_sense_are_refused(self, run: Any, words: list[str], extra: list[str]) -> None:
        """Before anything is made."""
        assert run(*words, *extra).code == errors.EXIT_USAGE


def test_doctor_tells_everything_it_looked_at(run: Any, daemon: Any, tmp_path: Path) -> None:
    """Board, sensors, libraries, disk, groups and service, on the machine that runs the tests."""
    (tmp_path / "c.yaml").write_text(f"paths: {{state_dir: {tmp_path}}}\nserving: {{socket_group: null}}\n")
    ran = run("doctor", "--quick", "--config", tmp_path / "c.yaml", "--json")
    looked_at = {finding["what"] for finding in ran.json}
    assert {"edgetune", "configuration", "board", "sensor", "libraries", "state", "disk", "service"} <= looked_at
    assert all(finding["fix"] for finding in ran.json if finding["state"] == "fault")


def test_doctor_reports_a_faulty_configuration_and_goes_on(run: Any, daemon: Any, tmp_path: Path) -> None:
    """One fault does not hide the next, and the exit code says that there was one."""
    (tmp_path / "c.yaml").write_text("nonsense: 1\n")
    ran = run("doctor", "--quick", "--config", tmp_path / "c.yaml")
    assert ran.code == errors.EXIT_FAILED
    assert "unknown key 'nonsense'" in ran.out
    assert "serving version 7" in ran.out


def test_sentences_are_folded_between_words_and_tables_are_not() -> None:
    """As wide as the terminal is."""
    table = "sample  the model says  why it is asked about"
    text = f"{table}\n  note: one of the thirteen images\nshort"
    assert folded(text, 20) == f"{table}\n  note: one of the\n    thirteen images\nshort"
    assert folded(text, 80) == text


def test_every_command_of_a_list_says_in_a_whole_sentence_what_it_does() -> None:
    """Eighty columns are enough for it; what more there is to say is in the command's own help."""

    def lines_of(group: click.Group, path: str) -> Iterator[str]:
        context = click.Context(group, info_name=path)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield f"{path} {name}: {command.get_short_help_str(80 - 6 - len('quarantine'))}"
            if isinstance(command, click.Group):
                yield from lines_of(command, f"{path} {name}")

    assert [line for line in lines_of(edgetune_group, "edgetune") if line.endswith("...")] == []


@pytest.mark.parametrize(("words", "near"), [(("stauts",), "status"), (("models", "promot"), "promote")])
def test_a_mistyped_command_is_answered_with_the_nearest(run: Any, words: tuple[str, ...], near: str) -> None:
    """Usage error; what is like nothing gets no guess."""
    ran = run(*words)
    assert ran.code == errors.EXIT_USAGE
    assert f"No such command {words[-1]!r}. Did you mean {near!r}?" in ran.err
    assert "Did you mean" not in run("xyzzy").err
