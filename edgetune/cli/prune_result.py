"""What `edgetune prune` found, for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from edgetune.cli.artefacts import Result, Source, describe_side, learnt_classes
from edgetune.learn.cost import Size
from edgetune.learn.depth import removed_exits
from edgetune.learn.folders import Folders
from edgetune.learn.goal import Goal, Outcome
from edgetune.learn.shaping import as_pruning
from edgetune.types import Pruning, Recipe

_TIMING_TOLERANCE = 1.05  # two timings of one network on a board at rest differ by as much


def pruning_of(outcome: Outcome, recipe: Recipe, latency_ratio: float) -> Pruning | None:
    """In the words of a round's manifest; levels are relative to the model as given."""
    if not is_smaller(outcome):
        return None
    base, best = outcome.base, outcome.best
    return as_pruning(
        recipe,
        level_asked=1 - best.share,
        round_to=outcome.network.describe().round_to(),
        whole=Size(base.parameters, base.macs),
        left=Size(best.parameters, best.macs),
        latency_ratio=latency_ratio,
    )


def is_smaller(outcome: Outcome) -> bool:
    """Whether any smaller network kept the accuracy; the outcome is the model as given otherwise."""
    return any(point.is_success for point in outcome.points)


def describe(
    source: Source, outcome: Outcome, result: Result, data: Folders, *, level_of: str, goal: Goal
) -> dict[str, Any]:
    """Everything that there is to tell, as plain values for JSON."""
    is_reached, why = _verdict(outcome, level_of=level_of, ratio=goal.ratio)
    learnt = learnt_classes(source.classes, data)
    return {
        "reached": is_reached,
        "stopped_by": why,
        "model": source.name,
        "architecture": source.network.architecture,
        "goal": {"level_of": level_of, **asdict(goal)},
        "data": {
            "training": len(data.training),
            "validation": len(data.validation),
            "test": None if data.test is None else len(data.test),
            "unreadable": [{"file": path, "why": why} for path, why in data.unreadable],
            "notes": [*data.notes, *_doubts(outcome, goal, data), *_unshown(source.classes, data)],
        },
        "trials": [asdict(point) for point in outcome.points],
        "given": describe_side(
            result.given, result.given_latency, outcome.base.accuracy, result.given_test, learnt=learnt
        ),
        "final": describe_side(
            result.final, result.final_latency, outcome.best.accuracy, result.final_test, learnt=learnt
        ),
        "removed_branches": list(removed_exits(outcome.network.module)),
        "epochs": outcome.epochs,
        "seconds": outcome.seconds,
        "joules": outcome.joules,
    }


def _verdict(outcome: Outcome, *, level_of: str, ratio: float | None) -> tuple[bool, str]:
    """Whether the goal was reached, and why the search ended."""
    why = outcome.stopped_by or "no step that is worth a trial is left"
    if ratio is None:
        return is_smaller(outcome), why
    if not is_smaller(outcome):
        return False, why
    is_asked, measured = outcome.best.share <= ratio + 1e-9, outcome.best.latency_ratio
    is_reached = is_asked
    if level_of == "latency":  # a network that came out faster than its trial asked may have got there
        is_reached = measured <= ratio * (_TIMING_TOLERANCE if is_asked else 1.0)
    if is_asked and not is_reached:
        return False, f"what was fast enough in the search takes {measured:.2f}x now: time it on a machine at rest"
    return is_reached, "the goal is reached" if is_reached else why


def _doubts(outcome: Outcome, goal: Goal, data: Folders) -> list[str]:
    """What makes the figures worth less than they look."""
    doubts = []
    count = len(data.validation)
    if goal.accuracy_drop_max * count < 1:
        doubts.append(
            f"one of the {count} validation images is {100 / count:.1f} points, more than the "
            f"{100 * goal.accuracy_drop_max:g} that may be lost: more images would tell more"
        )
    doubts += guess_doubt(outcome.base.accuracy, data)
    return doubts


def _unshown(classes: Sequence[str], data: Folders) -> list[str]:
    """What nobody asked about."""
    learnt = learnt_classes(classes, data)
    unshown = [label for label in classes if label not in learnt]
    if not unshown:
        return []
    tested = set() if data.test is None else {classes[number] for number in set(data.test.labels.tolist())}
    untold, told = len([label for label in unshown if label not in tested]), ""
    if untold:
        whom = "them" if untold == len(unshown) else f"{untold} of them"
        told = f", and what becomes of {whom} was not measured (images in DIR/test/ would tell)"
    return [
        f"{len(unshown)} of the model's {len(classes)} classes have no image to learn from{told}: much of what it knew "
        "of them will be forgotten, and nearly all where much is cut; --distillation 0.5 is a brake on that"
    ]


def guess_doubt(accuracy: float, data: Folders) -> list[str]:
    """What to look at where the model as given is right in no more of the validation images than a guess would be."""
    shown = len(set(data.validation.labels.tolist()))
    if accuracy >= 1.5 / shown:
        return []
    return [
        f"the model as given is hardly better than a guess among {shown} classes: are the class names in the "
        "order of its outputs, and --size, --mean and --std as it was trained?"
    ]
