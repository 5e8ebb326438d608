"""One row of the data-aware grid, and the file of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.rows import append_row, read_rows


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One trained network; the first fields are its key."""

    net: str
    images: str  # "seen" | "unseen"
    subset: str
    unit: str  # of the level
    level: float  # per cent of that unit to remove; 0: unpruned
    arm: str
    seed: int
    schedule: str
    parameters: int = 0
    removed: float = 0.0  # per cent of the parameters
    macs: int = 0
    validation: float = 0.0
    test: float = 0.0  # top-1 of the subset's test images among all classes
    latency_ms: float = 0.0
    base_ms: float = 0.0  # of the unpruned network, interleaved with it
    seconds: float = 0.0  # tune, score, cut, retrain
    peak_mib: float = 0.0  # resident memory of this process meanwhile
    joules: float | None = None  # of the whole board meanwhile; None: nothing measured them, as in the next two
    served_mib: float | None = None  # what the result takes of memory in the serving engine
    served_joules: float | None = None  # of the whole board, for one prediction

    @property
    def key(self) -> tuple[str, ...]:
        """What says which cell it is."""
        return (
            self.net, self.images, self.subset, self.unit, f"{self.level:g}", self.arm, str(self.seed), self.schedule,
        )  # fmt: skip


def read_cells(path: Path) -> list[Cell]:
    """What was run so far."""
    return read_rows(path, Cell)


def append_cell(path: Path, cell: Cell) -> None:
    """Write one row."""
    append_row(path, cell)
