"""Tables, plots and the list of what was not run, from the cells of `benchmarks.data_aware`."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean, median

import numpy as np
import numpy.typing as npt

from benchmarks.cells import FULL, Cell
from benchmarks.cifar import SUBSETS
from benchmarks.plots import save_figure
from benchmarks.rows import rows_to_report
from benchmarks.stage import say, table
from edgetune.learn.schedules import PAPER
from edgetune.types import CRITERIA

PAPER_LEVELS = (25.0, 50.0, 75.0, 90.0, 95.0)
SEEDS = (0, 1)
BASELINES = ("agnostic", "agnostic:all", "agnostic+site", "general:taylor", "first:taylor")
EVERY_ARM = (*BASELINES, *(f"aware:{name}" for name in CRITERIA))
_DRAWS = 10_000  # of the bootstrap
HIGH_LEVEL = 75.0  # levels from here on count as high

Pair = tuple[str, int]  # (subset, seed): what is drawn again and again by the bootstrap
Gains = dict[Pair, dict[float, float]]  # by level, in percentage points


def report(work: Path) -> int:
    """Print everything and draw the plots beside the cells; the number of problems."""
    cells = rows_to_report(work / "data_aware.csv", Cell)
    if not cells:
        return 1
    for (net, images, unit, schedule), mine in by_series(cells):
        say(f"\n== {net}, device images {images} in training, level in {unit}, {schedule}\n")
        say(table(_accuracies(mine)))
        say("")
        say(table(_summary(mine)))
        say("")
        say(table(_costs(mine)))
        for sentence in not_run(mine):
            say(f"  not run: {sentence}")
        _plot(mine, work / f"data_aware-{net.partition(':')[2]}-{images}-{unit}.svg")
    say("")
    for sentence in never_run(cells):
        say(f"never run: {sentence}")
    return 0


def series(cell: Cell) -> tuple[str, str, str, str]:
    """What cells have in common that are compared with each other."""
    return cell.net, cell.images, cell.unit, cell.schedule


def by_series(cells: Iterable[Cell]) -> Iterator[tuple[tuple[str, str, str, str], list[Cell]]]:
    """Each series with its cells."""
    for key, group in itertools.groupby(sorted(cells, key=series), key=series):
        yield key, list(group)


def arms_in(cells: Iterable[Cell]) -> list[str]:
    """The arms that have cells, what others are compared with first."""
    order = {arm: place for place, arm in enumerate(("unpruned", "unpruned+site", *BASELINES))}
    return sorted({cell.arm for cell in cells}, key=lambda arm: (order.get(arm, len(order)), arm))


def subsets_in(cells: Iterable[Cell]) -> list[str]:
    """The subsets that have cells, the paper's first."""
    seen = {cell.subset for cell in cells}
    return [name for name in SUBSETS if name in seen] + sorted(seen - set(SUBSETS))


def _accuracies(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """Test top-1 by subset and level, mean of the seeds; how many, where not all."""
    by: dict[tuple[str, float, str], list[float]] = defaultdict(list)
    for cell in cells:
        by[cell.subset, cell.level, cell.arm].append(100 * cell.test)
    arms = [arm for arm in arms_in(cells) if not arm.startswith("unpruned")]
    rows: list[tuple[str, ...]] = [("subset", "unpruned", "level", *arms)]
    for subset in subsets_in(cells):
        whole = by.get((subset, 0.0, "unpruned"))
        for level in sorted({cell.level for cell in cells if cell.level}):
            values = [by.get((subset, level, arm)) for arm in arms]
            if any(values):
                rows.append((
                    subset, f"{mean(whole):.1f}" if whole else "", f"{level:g} %",
                    *(_shown(value) for value in values),
                ))  # fmt: skip
    return rows


def _shown(values: list[float] | None) -> str:
    if not values:
        return "-"
    return f"{mean(values):.1f}" + ("" if len(values) >= len(SEEDS) else f" ({len(values)} seed)")


def gains(cells: Iterable[Cell], arm: str, over: str, levels: Callable[[float], bool] = lambda _: True) -> Gains:
    """Test top-1 of one arm less another's, where both were run on the same subset, level and seed."""
    test = {(c.subset, c.seed, c.level, c.arm): 100 * c.test for c in cells}
    found: Gains = defaultdict(dict)
    for (subset, seed, level, name), value in test.items():
        other = test.get((subset, seed, level, over))
        if name == arm and other is not None and level and levels(level):
            found[subset, seed][level] = value - other
    return dict(found)


def average_over_levels(by_level: dict[float, float]) -> float:
    """Trapezoidal mean over the levels there are: uneven levels would else weigh as if they were even."""
    levels = sorted(by_level)
    if len(levels) == 1:
        return by_level[levels[0]]
    heights = [by_level[level] for level in levels]
    area = sum((b - a) * (x + y) / 2 for a, b, x, y in zip(levels, levels[1:], heights, heights[1:], strict=False))
    return area / (levels[-1] - levels[0])


def bootstrap(values: Sequence[float], *, seed: int = 0) -> tuple[float, float, float]:
    """Mean and the 2.5th and 97.5th percentile of the means of resampled values."""
    data: npt.NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).choice(data, (_DRAWS, len(data))).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(data.mean()), float(low), float(high)


def _summary(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("gain in test top-1, percentage points", "mean (95 % of the bootstrap)", "largest cell", "pairs")
    ]
    for arm in arms_in(cells):
        if not arm.startswith(("aware", "width", "general", "first")) and arm != "agnostic+site":
            continue
        for over in BASELINES:
            if arm == over:
                continue
            for words, levels in (
                ("all levels", lambda _: True),
                (f"{HIGH_LEVEL:g} % and above", lambda x: x >= HIGH_LEVEL),
            ):
                found = gains(cells, arm, over, levels)
                if not found:
                    continue
                middle, low, high = bootstrap([average_over_levels(by_level) for by_level in found.values()])
                largest, where = max(
                    (value, f"{pair[0]} {level:g} %") for pair, by in found.items() for level, value in by.items()
                )
                rows.append((
                    f"{arm} over {over}, {words}", f"{middle:+.1f} ({low:+.1f} to {high:+.1f})",
                    f"{largest:+.1f} ({where})", str(len(found)),
                ))  # fmt: skip
    return rows


def _costs(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """Of each arm and level: times as medians over the cells, for a machine may have been suspended during one of them."""
    rows: list[tuple[str, ...]] = [
        (
            "arm",
            "level",
            "removed",
            "MACs",
            "latency of the base",
            "seconds",
            "peak MiB",
            "kJ",
            "served MiB",
            "mJ a prediction",
        )
    ]
    for arm in arms_in(cells):
        for level in sorted({cell.level for cell in cells if cell.arm == arm}):
            mine = [cell for cell in cells if cell.arm == arm and cell.level == level]
            rows.append((
                arm, f"{level:g} %", f"{mean(c.removed for c in mine):.1f} %", f"{mean(c.macs for c in mine) / 1e6:.1f} M",
                f"{median(c.ratio for c in mine):.2f}x", f"{median(c.seconds for c in mine):.0f}",
                f"{max(c.peak_mib for c in mine):.0f}", _mean([c.joules for c in mine], 1e-3),
                _mean([c.served_mib for c in mine]), _mean([c.served_joules for c in mine], 1e3),
            ))  # fmt: skip
    return rows


def _mean(values: Sequence[float | None], factor: float = 1.0) -> str:
    """Of those that were measured."""
    known = [factor * value for value in values if value is not None]
    return f"{mean(known):.1f}" if known else "-"


def not_run(cells: Sequence[Cell]) -> list[str]:
    """What the whole grid has and these cells have not, for the arms that were begun."""
    have = {(c.subset, c.level, c.arm, c.seed) for c in cells}
    sentences = []
    for arm in arms_in(cells):
        levels = (0.0,) if arm.startswith("unpruned") else PAPER_LEVELS
        for level in levels:
            missing = [(s, seed) for s in SUBSETS for seed in SEEDS if (s, level, arm, seed) not in have]
            if len(missing) == len(SUBSETS) * len(SEEDS):
                sentences.append(f"{arm} at {level:g} %: all")
            elif missing:
                sentences.append(f"{arm} at {level:g} %: {', '.join(f'{s} seed {seed}' for s, seed in missing)}")
    return sentences


def never_run(cells: Sequence[Cell]) -> list[str]:
    """Networks, schedules, choices of images, units and criteria of which there is not one cell."""
    sentences = []
    for net in sorted(PAPER):
        mine = [cell for cell in cells if cell.net == net]
        if not mine:
            sentences.append(f"{net}: all")
            continue
        if not any(cell.schedule.startswith(FULL) for cell in mine):
            sentences.append(f"{net}: the paper's whole schedule (--full)")
        for images, unit in itertools.product(("seen", "unseen"), ("parameters", "latency")):
            arms = {cell.arm for cell in mine if (cell.images, cell.unit) == (images, unit)}
            if not arms:
                sentences.append(f"{net}, images {images}, level in {unit}: all")
                continue
            widths = [
                arm.replace("aware", "width") for arm in EVERY_ARM if arm.startswith("aware") and unit == "latency"
            ]
            if missing := [arm for arm in (*EVERY_ARM, *widths) if arm not in arms]:
                sentences.append(f"{net}, images {images}, level in {unit}: {', '.join(missing)}")
    return sentences


def _plot(cells: Sequence[Cell], path: Path) -> None:
    try:
        from matplotlib import pyplot as plt
    except ImportError:
        say("  no plot: pip install matplotlib")
        return
    subsets = subsets_in(cells)
    figure, axes = plt.subplots(1, len(subsets), figsize=(3.2 * len(subsets), 3.4), sharey=True, squeeze=False)
    for axis, subset in zip(axes[0], subsets, strict=True):
        mine = [cell for cell in cells if cell.subset == subset]
        whole = [100 * cell.test for cell in mine if cell.arm == "unpruned"]
        if whole:
            axis.axhline(mean(whole), color="0.6", linestyle=":", label="unpruned")
        for arm in arms_in(mine):
            by_level: dict[float, list[Cell]] = defaultdict(list)
            for cell in mine:
                if cell.arm == arm and cell.level:
                    by_level[cell.level].append(cell)
            removed = [mean(c.removed for c in by_level[level]) for level in sorted(by_level)]
            x = removed if cells[0].unit == "parameters" else sorted(by_level)
            y = [100 * mean(c.test for c in by_level[level]) for level in sorted(by_level)]
            if y:
                axis.plot(x, y, marker="o", markersize=3, label=arm)
        axis.set_title(subset)
        axis.set_xlabel(f"{cells[0].unit} removed, %")
        axis.set_xlim(0, 100)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("test top-1, %")
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    save_figure(figure, path)
    plt.close(figure)
    say(f"  plot: {path}")
