"""The benchmark of few labels: whom the queue asks, and what the table says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.labels import Cell, choose, gain, report, rows_of, softmax
from benchmarks.rows import append_row, read_rows

CELL = Cell(subset="aquatic", labels=5, choice="random", unlabelled="ignore", seed=0, accuracy=50.0)


def test_the_queue_asks_about_doubtful_images_and_no_image_twice() -> None:
    """Those whose two best classes are close come before the certain ones; chance takes any."""
    rng = np.random.default_rng(0)
    certain = np.tile(np.array([[9.0, 0.0, 0.0]], np.float32), (60, 1)) + rng.normal(0, 0.1, (60, 3)).astype(np.float32)
    doubtful = np.tile(np.array([[1.0, 0.9, 0.0]], np.float32), (40, 1)) + rng.normal(0, 0.1, (40, 3)).astype(
        np.float32
    )
    logits = np.concatenate([certain, doubtful])
    asked = choose(logits, 30, "queue", rng)
    assert len(set(asked.tolist())) == 30
    assert min(asked) >= 60
    drawn = choose(logits, 30, "random", np.random.default_rng(0))
    assert len(set(drawn.tolist())) == 30
    assert min(drawn) < 60
    assert softmax(logits).sum(axis=1) == pytest.approx(np.ones(100))


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
