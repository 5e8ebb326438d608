"""One row of the data-aware grid, and the file of all of them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


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
    if not path.exists():
        return []
    kinds = {field.name: field.type for field in fields(Cell)}
    make: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str, "float | None": float}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [Cell(**{name: make[str(kinds[name])](text) for name, text in row.items() if text}) for row in rows]


def append_cell(path: Path, cell: Cell) -> None:
    """Write one row."""
    names = [field.name for field in fields(Cell)]
    if path.exists() and path.read_text().partition("\n")[0] != ",".join(names):  # written before a column was added
        cells = read_cells(path)
        path.unlink()
        for other in cells:
            append_cell(path, other)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(asdict(cell))
