"""One row of the data-aware grid, and the file of all of them."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path


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
    make = {"int": int, "float": float, "str": str}
    with path.open(newline="") as file:
        return [
            Cell(**{name: make[str(kinds[name])](text) for name, text in row.items()}) for row in csv.DictReader(file)
        ]


def append_cell(path: Path, cell: Cell) -> None:
    """Write one row."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Cell)])
        if is_new:
            writer.writeheader()
        writer.writerow(asdict(cell))
