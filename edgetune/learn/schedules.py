"""The paper's training schedules for the paper's networks."""

from __future__ import annotations

from dataclasses import dataclass, replace

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


# Source: arXiv 2006.08554's code
PAPER: dict[str, PaperSchedule] = {
    "cifar:alexnet": PaperSchedule(1e-4, 1e-3, 5e-4),
    "cifar:resnet20": PaperSchedule(1e-3, 1e-2, 1e-4),
    "cifar:mobilenet_v2": PaperSchedule(1e-3, 1e-2, 5e-4),
    "cifar:squeezenet": PaperSchedule(8e-4, 2e-2, 2e-4, decay=0.2),
}


def settle(recipe: Recipe, architecture: str) -> Recipe:
    """
    Fill the paper's numbers in where the recipe asks for its schedule.

    Raises:
        UsageError: the paper has none for this architecture.
    """
    if recipe.schedule != "paper":
        return recipe
    if architecture not in PAPER:
        raise UsageError(
            f"the paper has no schedule for {architecture}; it has for {', '.join(sorted(PAPER))}",
            hint="set training.schedule to cosine",
        )
    paper = PAPER[architecture]
    return replace(
        recipe,
        epochs_before=paper.epochs_before,
        epochs_after=paper.epochs_after,
        batch_size=paper.batch_size,
        learning_rate_before=paper.learning_rate_before,
        learning_rate=paper.learning_rate,
        weight_decay=paper.weight_decay,
        momentum=paper.momentum,
    )
