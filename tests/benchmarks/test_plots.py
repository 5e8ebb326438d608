"""The pictures of the benchmarks: what is in the cells is in the picture."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the benchmarks need the extra: train")
pytest.importorskip("matplotlib", reason="pictures need the extra: plot")

from benchmarks import compress, incremental_report, labels, unseen
from benchmarks.plots import draw_lines, gathered
from benchmarks.rows import append_row


def words_in(path: Path) -> set[str]:
    """What an SVG says: matplotlib keeps each text as a comment."""
    return set(re.findall(r"<!-- (.*?) -->", path.read_text(encoding="utf-8")))


def test_seeds_are_gathered_in_their_order() -> None:
    """By name, then by place."""
    rows = [("b", 5.0, 1.0), ("a", 1.0, 2.0), ("b", 5.0, 3.0)]
    assert gathered(rows) == {"b": {5.0: [1.0, 3.0]}, "a": {1.0: [2.0]}}


def test_every_report_draws_what_was_run(tmp_path: Path) -> None:
    """One picture for each series, beside its file, with its names in it."""
    series = {"data_set": "cifar10", "net": "cifar:resnet20", "schedule": "1 epoch", "judge": "test"}
    for arm, buffer, seed in (("joint", 0, 0), ("ours", 500, 0), ("ours", 500, 1), ("er", 200, 0)):
        cell = incremental_report.Cell(**series, buffer=buffer, arm=arm, seed=seed, accuracy=30.0 + seed, by_step="1 2")
        append_row(tmp_path / "incremental.csv", cell)
    assert incremental_report.report(tmp_path / "incremental.csv") == 0
    said = words_in(tmp_path / "incremental-cifar10-resnet20-1-epoch-test.svg")
    assert {"er", "ours", "joint", "500 images remembered", "none remembered"} <= said

    for split, seen in (("0", 99.0), ("noise", None)):
        append_row(
            tmp_path / "unseen.csv", unseen.Cell(split=split, student="thin", epochs=2, seed=0, images=5, seen=seen)
        )
    assert unseen.report(tmp_path / "unseen.csv") == 0
    assert {"chance", "seen classes", "unseen classes", "noise"} <= words_in(
        tmp_path / "unseen-thin-5-images-2-epochs.svg"
    )

    for count in (0, 5):
        cell = labels.Cell(subset="aquatic", labels=count, choice="random", unlabelled="ignore", seed=0, accuracy=50.0)
        append_row(tmp_path / "labels.csv", cell)
    assert labels.report(tmp_path / "labels.csv") == 0
    assert "random, the rest: ignore" in words_in(tmp_path / "labels-aquatic.svg")

    students = [
        compress.Student(teacher="cifar:resnet56a", target=10, transfer=how, schedule="60", seed=0, parameters=size)
        for how, size in (("label_free", 80_000), ("hinton", 20_000))
    ]
    compress.draw(students, tmp_path / "c.svg")
    assert {"teacher", "label_free, 60", "hinton, 60"} <= words_in(tmp_path / "c.svg")


def test_without_matplotlib_the_tables_are_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And it is said how to get the picture."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    draw_lines(tmp_path / "p.svg", {"a": {1.0: [2.0]}}, x="x", y="y", levels={})
    assert "pip install matplotlib" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
