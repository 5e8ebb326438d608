"""The file of a benchmark's finished cells: one frozen dataclass a row, by which a run that was stopped goes on."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Row = TypeVar("Row", bound=DataclassInstance)
else:
    Row = TypeVar("Row")

_MAKE: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str, "float | None": float}


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """What was run so far; an empty field has its default."""
    if not path.exists():
        return []
    kinds = {field.name: str(field.type) for field in fields(kind)}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [kind(**{name: _MAKE[kinds[name]](text) for name, text in row.items() if text}) for row in rows]


def append_row(path: Path, row: Row) -> None:
    """Write one more; a file from before a column was added gets it."""
    names = [field.name for field in fields(row)]
    if path.exists() and path.read_text().partition("\n")[0] != ",".join(names):
        others = read_rows(path, type(row))
        path.unlink()
        for other in others:
            append_row(path, other)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(asdict(row))
