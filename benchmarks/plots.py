"""Pictures of what was run, beside its CSV file: means over seeds as lines or bars. Without matplotlib there are none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, TypeVar

from benchmarks.stage import say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

At = TypeVar("At", float, str)
Values = Mapping[str, Mapping[float, Sequence[float]]]  # of each line, x -> one y a seed
Bars = Mapping[str, Mapping[str, Sequence[float]]]  # of each colour, group -> one value a seed


def draw_lines(path: Path, lines: Values, *, x: str, y: str, levels: Mapping[str, float], is_log: bool = False) -> None:
    """A line for each name; `levels` are dotted and go all the way across."""

    def fill(axes: Axes) -> None:
        for name, level in levels.items():
            axes.axhline(level, color="0.5", linestyle=":", label=name)
        for name, points in lines.items():
            xs = sorted(points)
            axes.plot(xs, [mean(points[at]) for at in xs], marker="o", markersize=4, label=name)
        axes.set_xlabel(x)
        if is_log:
            axes.set_xscale("log")

    _draw(path, fill, y)


def draw_bars(path: Path, bars: Bars, *, groups: Sequence[str], y: str, levels: Mapping[str, float]) -> None:
    """
    Groups of bars, a colour for each name; the spread over seeds is a thin line from the least to the largest.

    Args:
        path: where to.
        bars: of every name the groups that it has a bar in.
        groups: from left to right; one without a bar is left out.
        y: what is shown.
        levels: dotted, all the way across.
    """
    groups = [group for group in groups if any(group in values for values in bars.values())]
    width = 0.8 / max(1, len(bars))

    def fill(axes: Axes) -> None:
        for name, level in levels.items():
            axes.axhline(level, color="0.5", linestyle=":", label=name)
        for number, (name, values) in enumerate(bars.items()):
            at = [groups.index(group) + (number - (len(bars) - 1) / 2) * width for group in values]
            means = [mean(found) for found in values.values()]
            below = [middle - min(found) for middle, found in zip(means, values.values(), strict=True)]
            above = [max(found) - middle for middle, found in zip(means, values.values(), strict=True)]
            axes.bar(at, means, width, yerr=[below, above], label=name, error_kw={"linewidth": 1})
        axes.set_xticks(range(len(groups)), groups, rotation=20, ha="right")

    _draw(path, fill, y)


def _draw(path: Path, fill: Callable[[Axes], None], y: str) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say("  no plot: pip install matplotlib")
        return
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    fill(axes)
    axes.set_ylabel(y)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8)
    save_figure(figure, path)
    say(f"  plot: {path}")


def save_figure(figure: Figure, path: Path) -> None:
    """The same file for the same picture: without the date, and with names that are not drawn by lot."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "edgetune"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def gathered(rows: Iterable[tuple[str, At, float]]) -> dict[str, dict[At, list[float]]]:
    """(name, x or group, value) of each seed -> name -> x or group -> values, in the order in which they come."""
    found: dict[str, dict[At, list[float]]] = {}
    for name, at, value in rows:
        found.setdefault(name, {}).setdefault(at, []).append(value)
    return found
