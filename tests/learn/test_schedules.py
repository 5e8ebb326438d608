"""The paper's schedules."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_finetune import PHASE

from edgetune.errors import UsageError
from edgetune.learn.finetune import learning_rate
from edgetune.learn.schedules import PAPER, settle
from edgetune.types import Recipe


def test_the_papers_numbers_replace_the_recipes_for_its_networks() -> None:
    """As arXiv 2006.08554's code has them; the criterion and the level stay the operator's."""
    mine = Recipe(schedule="paper", criterion="fisher", level=0.7)
    settled = settle(mine, "cifar:squeezenet")
    assert (settled.epochs_before, settled.epochs_after, settled.batch_size) == (5, 25, 128)
    assert (settled.learning_rate_before, settled.learning_rate, settled.weight_decay) == (8e-4, 2e-2, 2e-4)
    assert (settled.criterion, settled.level) == ("fisher", 0.7)


def test_the_papers_schedule_is_the_default_where_it_is_better_and_no_number_is_set() -> None:
    """Elsewhere it is a cosine, with the numbers as they are."""
    assert settle(Recipe(), "cifar:alexnet") == settle(Recipe(schedule="paper"), "cifar:alexnet")
    for mine, architecture in (
        (Recipe(epochs_after=3), "cifar:alexnet"),
        (Recipe(learning_rate=0.1), "cifar:alexnet"),
        (Recipe(schedule="cosine"), "cifar:alexnet"),
        (Recipe(), "cifar:resnet20"),
        (Recipe(), "torchvision:resnet18"),
    ):
        assert settle(mine, architecture) == replace(mine, schedule="cosine")


def test_a_network_that_the_paper_does_not_have_is_refused() -> None:
    """With what to do."""
    with pytest.raises(UsageError, match="no schedule for torchvision:resnet18"):
        settle(Recipe(schedule="paper"), "torchvision:resnet18")


@pytest.mark.parametrize(("architecture", "left"), [("cifar:resnet20", 0.1), ("cifar:squeezenet", 0.2)])
def test_the_rate_falls_at_epochs_10_and_20_of_25(architecture: str, left: float) -> None:
    """To what is left of it, each time."""
    paper = PAPER[architecture]
    phase = replace(
        PHASE, steps=250, schedule="steps", milestones=paper.milestones, decay=paper.decay, learning_rate=1.0
    )
    rates = [learning_rate(phase, step) for step in range(250)]
    assert rates == pytest.approx([1.0] * 100 + [left] * 100 + [left**2] * 50)
