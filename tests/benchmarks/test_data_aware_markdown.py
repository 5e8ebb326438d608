"""The tables that docs/benchmarks.md has of the data-aware grid."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cells import Cell
from benchmarks.data_aware_markdown import accuracy_lines, gain_lines, markdown
from benchmarks.rows import append_row


def cell(
    arm: str, level: float, test: float, *, seed: int = 0, subset: str = "indoor", unit: str = "parameters"
) -> Cell:
    """One trained network."""
    return Cell(
        net="cifar:resnet20", images="seen", subset=subset, unit=unit, level=level, arm=arm, seed=seed, schedule="2+4 epochs",
        test=test,
    )  # fmt: skip


CELLS = [
    cell("unpruned", 0, 0.6),
    *[cell("agnostic", level, test, seed=seed) for level, test in ((50, 0.4), (90, 0.1)) for seed in (0, 1)],
    *[cell("aware:l1", 50, test, seed=seed) for seed, test in enumerate((0.3, 0.4))],
    *[cell("aware:taylor", level, 0.5, seed=seed) for level in (50, 90) for seed in (0, 1)],
    cell("agnostic", 50, 0.2, subset="a list of one's own"),
    cell("aware:taylor", 50, 0.3, subset="a list of one's own"),
]


def test_the_best_arm_is_bold_and_a_missing_seed_is_marked() -> None:
    """The paper's subsets first; the subset is named once; what was not run is empty, and alone nothing is the best."""
    assert accuracy_lines([*CELLS, cell("agnostic", 25, 0.55, seed=1)]) == [
        "| subset | unpruned | level | agnostic | data-aware, l1 (the paper's) | data-aware, taylor |",
        "|---|---|---|---|---|---|",
        "| indoor | 60.0 | 25 % | 55.0 ¹ |  |  |",
        "| | | 50 % | 40.0 | 35.0 | **50.0** |",
        "| | | 90 % | 10.0 |  | **50.0** |",
        "| a list of one's own | - | 50 % | 20.0 ¹ |  | **30.0 ¹** |",
        "",
        "Test top-1 in %, mean of 2 seeds; ¹ one seed.",
    ]


def test_gains_are_told_with_their_pairs() -> None:
    """The best arm first; a level at which nothing can be compared is a dash, and there is no table without a pair."""
    _, _, taylor, paper, _, pairs = gain_lines(CELLS)
    assert taylor == (
        "| taylor over agnostic | +20.0 (+10.0 to +25.0) | +40.0 (+40.0 to +40.0) | +40.0, indoor 90 % | +10.0, +40.0 |"
    )
    assert paper.startswith("| l1, the paper's recipe, over agnostic | -5.0 (")
    assert paper.endswith(" | - | +0.0, indoor 50 % | -5.0, - |")
    assert pairs == "Pairs of subset and seed: 2 to 3 at 50 %, 0 to 2 at 90 %."
    assert gain_lines([c for c in CELLS if c.arm != "agnostic"]) == []


def test_every_net_and_unit_has_its_own_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each under a comment that says which; without a cell there is nothing to print."""
    assert markdown(tmp_path) == 1
    for each in (*CELLS, cell("agnostic", 50, 0.2, unit="latency")):
        append_row(tmp_path / "data_aware.csv", each)
    capsys.readouterr()
    assert markdown(tmp_path) == 0
    out = capsys.readouterr().out
    assert out.count("<!-- cifar:resnet20, device images seen in training, level in ") == 2
    assert out.count("| subset | unpruned | level |") == 2
    assert out.count("| gain in percentage points |") == 1
    assert "\n".join(accuracy_lines(CELLS)) in out
