"""The two tables of docs/benchmarks.md on data-aware pruning, from the cells of `benchmarks.data_aware`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean

from benchmarks.cells import Cell
from benchmarks.data_aware_report import (
    BASELINES,
    HIGH_LEVEL,
    SEEDS,
    Gains,
    arms_in,
    average_over_levels,
    bootstrap,
    by_series,
    gains,
    subsets_in,
)
from benchmarks.rows import rows_to_report
from benchmarks.stage import say

_COLUMNS = {
    "agnostic": "agnostic",
    "agnostic:all": "agnostic, all images",
    "agnostic+site": "agnostic filters + site",
    "general:taylor": "taylor on all classes + site",
    "first:taylor": "taylor on the site, cut at once",
    "aware:l1": "data-aware, l1 (the paper's)",
}
_BOOTSTRAPPED = "trapezoidal mean over the levels there are (95 % of the bootstrap over subset and seed)"


def markdown(work: Path) -> int:
    """Print the tables of every net, choice of device images, unit and schedule that has cells; the number of problems."""
    cells = rows_to_report(work / "data_aware.csv", Cell)
    if not cells:
        return 1
    for (net, images, unit, schedule), mine in by_series(cells):
        say(f"<!-- {net}, device images {images} in training, level in {unit}, {schedule} -->\n")
        say("\n".join(accuracy_lines(mine)))
        if lines := gain_lines(mine):
            say("\n" + "\n".join(lines))
    return 0


def accuracy_lines(cells: Sequence[Cell]) -> list[str]:
    """Test top-1 by subset and level: the best arm bold, a mark where a seed is missing, and what both mean."""
    by: dict[tuple[str, float, str], list[float]] = defaultdict(list)
    for cell in cells:
        by[cell.subset, cell.level, cell.arm].append(100 * cell.test)
    arms = [arm for arm in arms_in(cells) if not arm.startswith("unpruned")]
    levels = sorted({cell.level for cell in cells if cell.level})
    lines = [_line("subset", "unpruned", "level", *map(_column, arms)), "|---" * (3 + len(arms)) + "|"]
    for subset in subsets_in(cells):
        whole = by.get((subset, 0.0, "unpruned"))
        head = f"| {subset} | {f'{mean(whole):.1f}' if whole else '-'} "
        for level in levels:
            values = [by.get((subset, level, arm)) for arm in arms]
            if any(values):
                lines.append(head + _line(f"{level:g} %", *_marked(values)))
                head = "| | "
    return [*lines, "", f"Test top-1 in %, mean of {len(SEEDS)} seeds; ¹ one seed."]


def _column(arm: str) -> str:
    return _COLUMNS.get(arm, f"data-aware, {_name(arm)}")


def _name(arm: str) -> str:
    kind, _, criterion = arm.partition(":")
    return criterion + {"width": ", width alone", "general": " on all classes", "first": ", cut at once"}.get(kind, "")


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _marked(values: Sequence[list[float] | None]) -> list[str]:
    """The means of one row."""
    known = [mean(each) for each in values if each]
    best = max(known) if len(known) > 1 else None
    shown = []
    for each in values:
        text = "" if not each else f"{mean(each):.1f}" + ("" if len(each) >= len(SEEDS) else " ¹")
        shown.append(f"**{text}**" if each and mean(each) == best else text)
    return shown


def gain_lines(cells: Sequence[Cell]) -> list[str]:
    """What each data-aware arm gains over the others, the best first, and from how many pairs; nothing without a pair."""
    levels = sorted({cell.level for cell in cells if cell.level})
    found = {
        arm: by_over
        for arm in arms_in(cells)
        if arm.startswith(("aware", "width", "general", "first")) and (by_over := _gains_over_others(cells, arm))
    }
    if not found:
        return []
    high, at = f"{HIGH_LEVEL:g} % and above", ", ".join(f"{level:g}" for level in levels)
    lines = [
        _line("gain in percentage points", _BOOTSTRAPPED, high, "largest cell", f"at {at} %"),
        "|---|---|---|---|---|",
    ]
    for arm in sorted(found, key=lambda arm: -_average(next(iter(found[arm].values())))):
        for number, (over, gain) in enumerate(found[arm].items()):
            name = _name(arm) + (", the paper's recipe," if arm == "aware:l1" and number == 0 else "")
            above = {pair: kept for pair, by in gain.items() if (kept := _high(by))}
            largest, where = max(
                (value, f"{p[0]} {level:g} %") for p, by in gain.items() for level, value in by.items()
            )
            lines.append(
                _line(
                    f"{name} over {_column(over)}",
                    _interval(gain),
                    _interval(above) if above else "-",
                    f"{largest:+.1f}, {where}",
                    ", ".join(_mean_at(level, gain) for level in levels),
                )
            )
    pairs = [_pairs(level, [gain for by_over in found.values() for gain in by_over.values()]) for level in levels]
    return [*lines, "", f"Pairs of subset and seed: {', '.join(pairs)}."]


def _gains_over_others(cells: Sequence[Cell], arm: str) -> dict[str, Gains]:
    return {over: gain for over in BASELINES if over != arm and (gain := gains(cells, arm, over))}


def _high(by_level: dict[float, float]) -> dict[float, float]:
    return {level: value for level, value in by_level.items() if level >= HIGH_LEVEL}


def _average(gain: Gains) -> float:
    return mean(average_over_levels(by_level) for by_level in gain.values())


def _interval(gain: Gains) -> str:
    middle, low, high = bootstrap([average_over_levels(by_level) for by_level in gain.values()])
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def _at(level: float, gain: Gains) -> list[float]:
    return [by[level] for by in gain.values() if level in by]


def _mean_at(level: float, gain: Gains) -> str:
    values = _at(level, gain)
    return f"{mean(values):+.1f}" if values else "-"


def _pairs(level: float, every: Iterable[Gains]) -> str:
    counts = sorted({len(_at(level, gain)) for gain in every})
    most = f" to {counts[-1]}" if len(counts) > 1 else ""
    return f"{counts[0]}{most} at {level:g} %"
