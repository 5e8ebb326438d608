"""The benchmark of few labels: whom the queue asks, and what the table says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.labels import Cell, choose, gain, report, rows_of, softmax
from benchmarks.rows import append_row, read_rows

CELL = Cell(subset="aquatic", labels=5, choice="random", unlabelled="ignore", seed=0, accuracy=50.0)


def test_the_queue_asks_evenly_over_the_guesses_and_about_no_image_twice() -> None:
    """Of a class that is guessed seldom as often as of a common one, also over several times twenty; chance takes any."""
    logits = np.zeros((1000, 3), np.float32)
    logits[:950, 0], logits[950:, 1] = 5.0, 5.0
    asked = choose(logits, 60, "queue", np.random.default_rng(0))
    assert len(set(asked.tolist())) == 60
    assert (asked >= 950).sum() == 30
    drawn = choose(logits, 60, "random", np.random.default_rng(0))
    assert len(set(drawn.tolist())) == 60
    assert (drawn >= 950).sum() < 15
    assert softmax(logits).sum(axis=1) == pytest.approx(np.ones(1000))


def test_gains_are_of_pairs_with_the_same_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A queue without its random choice counts nowhere."""
    cells = [
        CELL, replace(CELL, choice="queue", accuracy=53.0), replace(CELL, seed=1, accuracy=48.0),
        replace(CELL, seed=1, choice="queue", accuracy=49.0), replace(CELL, seed=2, choice="queue", accuracy=99.0),
        replace(CELL, labels=0, accuracy=40.0),
    ]  # fmt: skip
    assert gain(cells[:5]) == "2.0 ± 1.4"
    assert gain(cells[:1]) == "-"
    _, none, five = rows_of(cells)
    assert none == ("0", "40.0 (1 seed)", "-", "-", "-", "-")
    assert five[:2] == ("5", "49.0 ± 1.4")
    path = tmp_path / "labels.csv"
    assert report(path) == 1
    for cell in cells:
        append_row(path, cell)
    assert read_rows(path, Cell) == cells
    assert report(path) == 0
    assert "queue over random, pp" in capsys.readouterr().out
