"""Records of finished measurements as rows of a CSV file, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

from benchmarks.stage import say

_MAKE: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str, "float | None": float}


class Row(Protocol):
    """A dataclass of numbers and texts; an empty field has its default when it is read."""

    @property
    def key(self) -> tuple[str, ...]:
        """What says which measurement it is."""


R = TypeVar("R", bound=Row)


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """What was run so far."""
    if not path.exists():
        return []
    kinds = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]  # a Row is a dataclass
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [kind(**{name: _MAKE[kinds[name]](text) for name, text in row.items() if text}) for row in rows]


def rows_to_report(path: Path, kind: type[R]) -> list[R]:
    """What was run so far; where that is nothing, a sentence says so."""
    rows = read_rows(path, kind)
    if not rows:
        say(f"nothing was run yet: {path} holds no row")
    return rows


def with_grid_options(parser: argparse.ArgumentParser, *, report: str, threads: int | None = None) -> None:
    """
    Add what every measurement has that keeps its rows in a file: --work, --threads, --report.

    Args:
        parser: of the script.
        report: what --report prints.
        threads: the default; None: as many as there are cores.
    """
    cores = os.cpu_count() or 1
    parser.add_argument("--work", type=Path, default=Path("benchmarks/results"), help="where the rows are kept")
    parser.add_argument("--threads", type=int, default=cores if threads is None else threads, help="of the training")
    parser.add_argument("--report", action="store_true", help=f"{report} of what was run, nothing else")


def append_row(path: Path, row: Row) -> None:
    """Write one."""
    plain = asdict(row)  # type: ignore[call-overload]  # a Row is a dataclass
    if path.exists() and path.read_text().partition("\n")[0] != ",".join(plain):  # written before a column was added
        rows = read_rows(path, type(row))
        path.unlink()
        for other in rows:
            append_row(path, other)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(plain), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(plain)


def fill_missing(path: Path, wanted: Iterable[R], fill: Callable[[R], R], told: Callable[[R], None]) -> None:
    """Measure and append what the file has not; `told` hears of each."""
    done: set[tuple[str, ...]] = set()
    for row in wanted:
        done = done or {other.key for other in read_rows(path, type(row))}
        if row.key in done:
            continue
        filled = fill(row)
        append_row(path, filled)
        told(filled)
