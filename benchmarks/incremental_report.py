"""The cells of `benchmarks.incremental`, their file, and what they say."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from benchmarks.plots import draw_bars, gathered
from benchmarks.rows import rows_to_report
from benchmarks.stage import say, table

WITHOUT_MEMORY = ("naive", "joint")
ARMS = ("naive", "gdumb", "er", "er_ace", "der++", "er+head", "er_ace+head", "der+++head", "ours", "joint")
SEEDS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One network at the end of all steps; the first fields are its key."""

    data_set: str
    net: str
    schedule: str
    judge: str  # "test" | "validation"
    buffer: int  # images; 0: none
    arm: str
    seed: int
    accuracy: float = 0.0  # top-1 in per cent among all classes, at the end
    forgetting: float | None = None  # percentage points; None: the arm has no steps
    by_step: str = ""  # at the end, per cent of each step's classes, "51.0 40.5 ..."
    trained_images: int = 0  # that went forward and backward
    seconds: float = 0.0  # of learning
    memory_kib: float = 0.0  # images, labels and logits

    @property
    def key(self) -> tuple[str, ...]:
        """What says which cell it is."""
        return self.data_set, self.net, self.schedule, self.judge, str(self.buffer), self.arm, str(self.seed)


def report(path: Path) -> int:
    """Print the tables; the number of problems."""
    cells = rows_to_report(path, Cell)
    if not cells:
        return 1
    for series, group in itertools.groupby(sorted(cells, key=_series), key=_series):
        mine = list(group)
        data_set, net, schedule, judge = series
        say(f"\n== {data_set}, {net}, {schedule}, {judge} images\n")
        say(table(accuracies(mine)))
        for buffer in sorted({cell.buffer for cell in mine} - {0}):
            say("  " + verdict(mine, buffer))
        for sentence in not_run(mine):
            say(f"  not run: {sentence}")
        draw(mine, path)
    return 0


def draw(cells: Sequence[Cell], path: Path) -> None:
    """A picture of one series beside its file: a group of bars for each arm, a colour for each buffer."""
    data_set, net, schedule, judge = _series(cells[0])
    rows = [
        (f"{cell.buffer} images remembered" if cell.buffer else "none remembered", cell.arm, cell.accuracy)
        for cell in sorted(cells, key=lambda cell: cell.buffer)
    ]
    name = re.sub(r"[^\w.]+", "-", f"incremental-{data_set}-{net.rpartition(':')[2]}-{schedule}-{judge}")
    draw_bars(
        path.with_name(f"{name}.svg"),
        gathered(rows),
        groups=ARMS,
        y=f"top-1 of all {data_set} classes at the end, %",
        levels={},
    )


def _series(cell: Cell) -> tuple[str, str, str, str]:
    return cell.data_set, cell.net, cell.schedule, cell.judge


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds; how many, when it is one."""
    if not values:
        return "-"
    return f"{mean(values):.1f} (1 seed)" if len(values) == 1 else f"{mean(values):.1f} ± {stdev(values):.1f}"


def accuracies(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """A row for each buffer and arm."""
    rows: list[tuple[str, ...]] = [
        (
            "buffer",
            "arm",
            "accuracy, %",
            "forgetting, pp",
            "each step's classes",
            "images learnt from",
            "s",
            "memory KiB",
        )
    ]
    for buffer in sorted({cell.buffer for cell in cells}):
        for arm in ARMS:
            mine = [cell for cell in cells if (cell.buffer, cell.arm) == (buffer, arm)]
            if not mine:
                continue
            steps = [[float(part) for part in cell.by_step.split()] for cell in mine]
            rows.append((
                str(buffer or "-"), arm, spread([c.accuracy for c in mine]),
                spread([c.forgetting for c in mine if c.forgetting is not None]),
                " ".join(f"{mean(values):.0f}" for values in zip(*steps, strict=True)),
                f"{mean(c.trained_images for c in mine):,.0f}", f"{mean(c.seconds for c in mine):.0f}",
                f"{mean(c.memory_kib for c in mine):.0f}",
            ))  # fmt: skip
    return rows


def verdict(cells: Sequence[Cell], buffer: int) -> str:
    """Ours against the best other arm with this buffer, on the seeds that both have."""
    by: dict[str, dict[int, float]] = {}
    for cell in cells:
        if cell.buffer == buffer:
            by.setdefault(cell.arm, {})[cell.seed] = cell.accuracy
    ours = by.pop("ours", {})
    rivals = {arm: sorted(set(ours) & set(others)) for arm, others in by.items() if set(ours) & set(others)}
    if not rivals:
        return f"buffer {buffer}: ours cannot be compared yet"
    gains = {arm: [ours[seed] - by[arm][seed] for seed in seeds] for arm, seeds in rivals.items()}
    hardest = min(gains, key=lambda arm: mean(gains[arm]))
    return f"buffer {buffer}: ours is {mean(gains[hardest]):+.1f} pp over the best other, {hardest} (seeds: {len(gains[hardest])})"


def not_run(cells: Sequence[Cell], buffers: Sequence[int] = (200, 500)) -> list[str]:
    """What the whole table has and these cells have not."""
    have = {(cell.arm, cell.buffer, cell.seed) for cell in cells}
    sentences = []
    for arm in ARMS:
        for buffer in (0,) if arm in WITHOUT_MEMORY else sorted({*buffers, *(c.buffer for c in cells if c.buffer)}):
            missing = [str(seed) for seed in SEEDS if (arm, buffer, seed) not in have]
            if missing:
                sentences.append(f"{arm}{f' with {buffer} images' if buffer else ''}: seed {', '.join(missing)}")
    return sentences
