"""The paper's training schedules for the paper's networks."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from edgetune.errors import UsageError
from edgetune.types import Recipe


@dataclass(frozen=True, slots=True)
class PaperSchedule:
    """SGD with momentum 0.9: a constant rate before pruning; after it one that falls in two steps."""

    learning_rate_before: float
    learning_rate: float  # right after pruning
    weight_decay: float
    decay: float = 0.1  # at each milestone
    milestones: tuple[float, ...] = (0.4, 0.8)  # shares of the retraining: epochs 10 and 20 of 25
    epochs_before: float = 5
    epochs_after: float = 25
    batch_size: int = 128
    momentum: float = 0.9
    is_better: bool = False  # than a cosine, measured on a site: then it is what "auto" stands for


# Source: arXiv 2006.08554's code
PAPER: dict[str, PaperSchedule] = {
    "cifar:alexnet": PaperSchedule(1e-4, 1e-3, 5e-4, is_better=True),
    "cifar:resnet20": PaperSchedule(1e-3, 1e-2, 1e-4),
    "cifar:mobilenet_v2": PaperSchedule(1e-3, 1e-2, 5e-4),
    "cifar:squeezenet": PaperSchedule(8e-4, 2e-2, 2e-4, decay=0.2),
}

_DEFAULT = Recipe()
_NUMBERS = {field.name for field in fields(Recipe)} & {field.name for field in fields(PaperSchedule)}


def settle(recipe: Recipe, architecture: str) -> Recipe:
    """
    Decide what "auto" stands for, and fill the paper's numbers in where it is the paper's schedule.

    "auto" is the paper's schedule for the networks for which it was measured to be better, unless one of its numbers was set
    to something else than the default; and a cosine for all others.

    Raises:
        UsageError: the paper has none for this architecture.
    """
    if recipe.schedule == "auto":
        is_paper = architecture in PAPER and PAPER[architecture].is_better and _has_default_numbers(recipe)
        recipe = replace(recipe, schedule="paper" if is_paper else "cosine")
    if recipe.schedule != "paper":
        return recipe
    if architecture not in PAPER:
        raise UsageError(
            f"the paper has no schedule for {architecture}; it has for {', '.join(sorted(PAPER))}",
            hint="set training.schedule to cosine",
        )
    return replace(recipe, **{name: getattr(PAPER[architecture], name) for name in _NUMBERS})


def _has_default_numbers(recipe: Recipe) -> bool:
    return all(getattr(recipe, name) == getattr(_DEFAULT, name) for name in _NUMBERS)
