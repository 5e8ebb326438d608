"""The benchmark of classes never seen: what a student may see, what is counted, and that it goes on where it was."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import unseen
from benchmarks.incremental import Pool
from benchmarks.rows import append_row, read_rows
from benchmarks.unseen import SPLITS, Cell, Experiment, of_classes, report, rows_of, shown, unlabelled, verdict, wanted
from edgetune.learn.cifar import count_learnt
from edgetune.learn.control import SilentControl, StopAskedError
from edgetune.learn.network import new_network

CELL = Cell(split="7,8,9", student="thin", epochs=10, images=3000, seed=0, seen=90.0, unseen=40.0, teacher_unseen=93.0)


@pytest.fixture(scope="module")
def pool() -> Pool:
    """Ten classes, each image its class's number everywhere."""
    pixels = np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None, None, None, None], (10, 12, 32, 32, 3))
    return Pool(tuple("abcdefghij"), pixels.copy(), pixels[:, :4].copy())


def test_a_student_sees_the_seen_classes_alone_and_no_label(pool: Pool) -> None:
    """Every split; noise is the same for the same seed."""
    for split, (seen, hidden) in SPLITS.items():
        assert not set(seen) & set(hidden)
        images = shown(pool, split, 12, seed=0)
        if seen:
            assert set(np.unique(images)) == set(seen)
            assert len(images) == 12 * len(seen)
        else:
            assert len(np.unique(images)) == 256
            assert np.array_equal(images, shown(pool, split, 12, seed=0))
            assert not np.array_equal(images, shown(pool, split, 12, seed=1))
        assert not unlabelled(images).labels.any()


def test_per_cent_is_of_the_classes_that_are_asked_for() -> None:
    """A class with as many images as any other; of none there is none."""
    right = np.arange(10) / 10
    assert of_classes(right, (7, 8, 9)) == 80.0
    assert of_classes(right, (0, 1)) == 5.0
    assert of_classes(right, ()) is None


def test_the_table_has_means_over_seeds_and_the_control_beside_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was not run is named, and the best split is one with images."""
    noise = replace(CELL, split="noise", seen=None, unseen=62.0, images=5000)
    cells = [CELL, replace(CELL, seed=1, seen=92.0, unseen=44.0), noise]
    head, first, control = rows_of(cells)
    assert first[:3] == ("7,8,9", "91.0 ± 1.4", "42.0 ± 2.8")
    assert first[head.index("images")] == "9,000"
    assert control[:3] == ("none: noise", "-", "62.0 (1 seed)")
    assert verdict(cells).startswith("best: 42.0 % unseen with 7,8,9 seen; 62.0 % with noise alone")
    assert verdict([noise]) == "no split was run yet"
    path = tmp_path / "unseen.csv"
    assert report(path) == 1
    for cell in cells:
        append_row(path, cell)
    assert read_rows(path, Cell) == cells
    assert report(path) == 0
    told = capsys.readouterr().out
    assert "a short schedule, 200 epochs in the paper" in told
    assert "not run: 0-6; 0; 3,4,8,9" in told


def test_a_stopped_cell_goes_on_and_says_what_the_student_knows(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tiny teacher and student: stopped at its first step, then filled; nothing of the work is left."""
    monkeypatch.setitem(unseen.FRESH, "resnet20", "cifar:resnet8a")
    arguments = argparse.Namespace(
        work=tmp_path, threads=1, splits=["3,4,8,9"], students=["resnet20"], seeds=[0], images=12, epochs=1
    )
    control = SilentControl()
    experiment = Experiment(arguments, pool, new_network("cifar:resnet8a", 10), control)
    (cell,) = wanted(arguments)
    control.stop()
    with pytest.raises(StopAskedError):
        experiment.fill(cell)
    control.is_stop_asked = False
    filled = experiment.fill(cell)
    assert filled.seen is not None
    assert 0 <= filled.unseen <= 100
    assert filled.parameters > 0
    assert list((tmp_path / "unseen").iterdir()) == []


def test_a_pruned_student_is_what_is_left_of_the_teacher(pool: Pool, tmp_path: Path) -> None:
    """Half of its parameters are gone; after no epoch it has its teacher's own weights, after one it has learnt."""
    arguments = argparse.Namespace(
        work=tmp_path, threads=1, splits=["noise"], students=["pruned-50"], seeds=[0], images=12, epochs=0
    )
    teacher = new_network("cifar:resnet8a", 10)
    experiment = Experiment(arguments, pool, teacher, SilentControl())
    cell = replace(wanted(arguments)[0], images=12)
    whole = count_learnt(teacher.module)
    assert experiment.fill(cell).parameters <= 0.51 * whole
    filled = experiment.fill(replace(cell, epochs=1))
    assert filled.parameters <= 0.51 * whole
    assert filled.seen is None
    assert 0 <= filled.unseen <= 100
