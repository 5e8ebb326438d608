"""The result of `edgetune prune` in words and as a picture. Pure but for the file of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune import units
from edgetune.cli.base import columns
from edgetune.cli.prune_progress import is_trained, verdict
from edgetune.cli.words import count, energy, percent

_UNREADABLE_SHOWN = 5
_COSTS = {
    "latency": ("the latency", "latency_ms"),
    "parameters": ("the parameters", "parameters"),
    "macs": ("the operations", "macs"),
}


def words(answer: Mapping[str, Any]) -> str:
    """The whole report."""
    parts = [
        data_words(answer["data"]),
        _trials(answer),
        side_words(answer, ("given", "final")),
        _asked(answer.get("teacher")),
        _end(answer),
    ]
    return "\n\n".join(part for part in parts if part)


def data_words(data: Mapping[str, Any]) -> str:
    """What was read, and what of it could not be."""
    images = f"{count(data['training'], 'image')} to learn from, {data['validation']:,} to judge by"
    lines = [images + ("" if data["test"] is None else f", {data['test']:,} to test")]
    bad = data["unreadable"]
    if bad:
        lines.append(f"{count(len(bad), 'file')} could not be read:")
        lines += [f"  {entry['file']}: {entry['why']}" for entry in bad[:_UNREADABLE_SHOWN]]
        if len(bad) > _UNREADABLE_SHOWN:
            lines.append(f"  and {len(bad) - _UNREADABLE_SHOWN:,} more: --json names them all")
    return "\n".join([*lines, *(f"note: {note}" for note in data["notes"])])


def _asked(teacher: Mapping[str, Any] | None) -> str:
    """What asking another teacher took in this call."""
    if teacher is None:
        return ""
    words = f"its teacher was asked about {count(teacher['images_asked'], 'image')}"
    if not teacher["sent_bytes"]:
        return words
    return f"{words}, for which {units.show(teacher['sent_bytes'], 'bytes')} left this device"


def _trials(answer: Mapping[str, Any]) -> str:
    if not answer["trials"]:
        return ""
    rows: list[tuple[str, ...]] = [("trial", "asked", "parameters", "MACs", "latency", "validation", "epochs", "")]
    for number, point in enumerate(answer["trials"], 1):
        figures = (
            f"{point['parameters']:,}",
            f"{point['macs']:,}",
            f"{point['latency_ratio']:.2f}x",
            percent(point["accuracy"]),
            f"{point['epochs']:g}",
        )
        shown = figures if is_trained(point) else ("-",) * len(figures)
        rows.append((str(number), percent(point["share"]), *shown, verdict(point)))
    return columns(rows, right=range(7))


def side_words(answer: Mapping[str, Any], names: tuple[str, str]) -> str:
    """The model as given and what became of it, side by side under those names."""
    given, final = answer["given"], answer["final"]
    rows = [("", *names, "")]
    rows.append(("validation accuracy", *_pair(given, final, "validation_accuracy", percent), ""))
    if given["test_accuracy"] is not None:
        rows.append(("test accuracy", *_pair(given, final, "test_accuracy", percent), ""))
    if given["test_accuracy_others"] is not None:
        rows.append(("of classes not learnt here", *_pair(given, final, "test_accuracy_others", percent), ""))
    for name, key, shown in (
        ("latency here", "latency_ms", "{:.3f} ms".format),
        ("parameters", "parameters", "{:,}".format),
        ("MACs", "macs", "{:,}".format),
        ("model.onnx", "onnx_bytes", lambda size: units.show(size, "bytes")),
    ):
        rows.append((name, *_pair(given, final, key, shown), f"{final[key] / given[key]:.2f}x"))
    return columns(rows, right=(1, 2, 3))


def _pair(given: Mapping[str, Any], final: Mapping[str, Any], key: str, shown: Any) -> tuple[str, str]:
    return shown(given[key]), shown(final[key])


def _end(answer: Mapping[str, Any]) -> str:
    goal = answer["goal"]
    what, key = _COSTS[goal["level_of"]]
    achieved = answer["final"][key] / answer["given"][key]
    within = f"within {units.show(goal['accuracy_drop_max'], 'points')} of the accuracy"
    wanted = "a smaller network" if goal["ratio"] is None else f"{percent(goal['ratio'])} of {what}"
    lines = [
        f"{'reached' if answer['reached'] else 'not reached'}: {wanted} {within}; {percent(achieved)} of {what} is left"
    ]
    spent = units.show(answer["seconds"], "duration")
    if answer["joules"] is not None:
        spent += f", {energy(answer['joules'], is_estimated=answer['is_energy_estimated'])}"
    if answer["removed_branches"]:
        names = ", ".join(answer["removed_branches"])
        lines.append(f"{len(answer['removed_branches'])} residual branches are gone; they ended in {names}")
    lines.append(f"ended because {answer['stopped_by']}; {answer['epochs']:g} epochs, {spent}")
    if not any(point["is_success"] for point in answer["trials"]):
        lines.append(f"{answer['directory']} holds the model as given")
    else:
        lines.append(f"{answer['directory']} holds the result; on a board: edgetune models import --from DIR")
    if answer["plot"]:
        lines.append(f"{answer['plot']} shows accuracy against latency")
    return "\n".join(lines)


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """
    The points that no other is at once as fast as and more accurate than, or faster than and as accurate as.

    Args:
        points: (latency, accuracy) each.

    Returns:
        Those, by latency; accuracy rises with it.
    """
    front: list[tuple[float, float]] = []
    for latency, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((latency, accuracy))
    return front


def draw(answer: Mapping[str, Any], path: Path) -> None:
    """Draw every trial, the given and the final network: validation accuracy against latency, and the Pareto front."""
    from matplotlib.figure import Figure

    given, final, goal = answer["given"], answer["final"], answer["goal"]
    start = (given["latency_ms"], 100 * given["validation_accuracy"])
    end = (final["latency_ms"], 100 * final["validation_accuracy"])
    trials = [
        (number, point["latency_ratio"] * given["latency_ms"], 100 * point["accuracy"], point["is_success"])
        for number, point in enumerate(answer["trials"], 1)
        if is_trained(point)
    ]
    figure = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    front = pareto([start, end, *((x, y) for _, x, y, _ in trials)])
    front.append((max(start[0], end[0], *(x for _, x, _, _ in trials)), front[-1][1]))  # no accuracy is gained beyond
    axes.step(*zip(*front, strict=True), where="post", color="0.6", linewidth=1.2, label="Pareto front", zorder=1)
    least = start[1] - 100 * goal["accuracy_drop_max"]
    axes.axhline(least, color="tab:red", linestyle="--", linewidth=1, label="accuracy to keep", zorder=1)
    for is_success, label, face in ((True, "trial, kept", "tab:blue"), (False, "trial, too much lost", "none")):
        mine = [(x, y) for _, x, y, kept in trials if kept is is_success]
        if mine:
            xs, ys = zip(*mine, strict=True)
            axes.scatter(xs, ys, s=42, facecolor=face, edgecolor="tab:blue", label=label, zorder=3)
    for number, x, y, _ in trials:
        axes.annotate(str(number), (x, y), textcoords="offset points", xytext=(6, 5), fontsize=8)
    axes.scatter(start[0], start[1], marker="s", s=48, color="black", label="given", zorder=4)
    axes.scatter(
        end[0], end[1], marker="*", s=150, color="tab:orange", edgecolor="black", linewidth=0.6, label="final", zorder=5
    )
    axes.set(xlabel="latency of one image here [ms]", ylabel="validation accuracy [%]", title=answer["model"])
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="best")
    figure.savefig(path)
