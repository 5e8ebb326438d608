"""The memory of a training step, and pruning before it where it would be too much."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from conftest_site import RecordingControl
from test_compress import RECIPE, easy_material, trained_network

from edgetune.learn.compress import Goal, compress
from edgetune.learn.forecaster import begin_peak, peak_mib
from edgetune.learn.memory import held_mib, kept_bytes
from edgetune.learn.tuner import Tuner
from edgetune.types import Recipe


class Two(nn.Module):
    """A convolution of 4 filters and a linear layer: what autograd keeps can be counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4 * 64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, 8, 8] -> logits [N, 5]."""
        return self.head(torch.relu(self.conv(x)).flatten(1))


def test_what_autograd_keeps_is_counted_once() -> None:
    """The images, the maps after the rectifier (for it and for the linear layer), the log-probabilities, the labels."""
    images, labels = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    kept = kept_bytes(Two(), images, labels)
    by_hand = 4 * (2 * 3 * 64 + 2 * 4 * 64 + 2 * 5) + 8 * 2
    assert by_hand <= kept <= by_hand + 64  # and the loss's total weight


def tuner(recipe: Recipe) -> Tuner:
    """On the easy problem."""
    data = easy_material()
    return Tuner(
        recipe, data.training, data.validation, preprocess=data.preprocess, device=torch.device("cpu"),
        control=RecordingControl(),
    )  # fmt: skip


def test_the_whole_network_is_tuned_first_where_memory_allows() -> None:
    """No limit, or one that is far away."""
    network = trained_network()
    assert tuner(RECIPE).prunes_first(network) == ""
    assert tuner(replace(RECIPE, memory_max_mib=1e6)).prunes_first(network) == ""


def test_filters_are_scored_in_batches_that_the_memory_allows_in_either_order() -> None:
    """Tuning first was asked for; the ranking after it still keeps to the limit, the training's batch is the recipe's."""
    network = trained_network()
    roomy, tight = (tuner(replace(RECIPE, memory_max_mib=most, order="tune_first")) for most in (1e6, 1.0))
    assert roomy.prunes_first(network) == ""
    assert tight.prunes_first(network) == ""
    assert (roomy.scoring_batch, tight.scoring_batch) == (RECIPE.batch_size, 8)


def test_gates_keep_more_than_a_training_step() -> None:
    """What layers read is kept before and after its gate; a criterion that reads weights alone keeps nothing."""
    network = trained_network()
    mine = tuner(RECIPE)
    data = easy_material().training
    batch = mine.normaliser(data.images(np.arange(4))), mine.normaliser.labels(data.labels[:4])
    training = kept_bytes(network.module.train(), *batch)
    assert mine._kept_by_scoring(network, batch) > training
    assert tuner(replace(RECIPE, criterion="l1"))._kept_by_scoring(network, batch) == 0


def test_a_network_that_takes_too_much_is_cut_first_in_smaller_batches() -> None:
    """With the two numbers in words; weights and running statistics are what they were."""
    network = trained_network()
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    mine = tuner(replace(RECIPE, memory_max_mib=1.0))
    assert "MiB of 1" in mine.prunes_first(network)
    assert mine.scoring_batch == 8
    after = network.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    wished = tuner(replace(RECIPE, order="prune_first"))
    assert wished.prunes_first(network) == "pruning.order"
    assert wished.scoring_batch == RECIPE.batch_size


def test_a_search_that_prunes_first_tunes_nothing_before(tmp_path: Path) -> None:
    """The epochs before pruning are given to the retraining."""
    control = RecordingControl()
    outcome = compress(
        trained_network(), easy_material(), replace(RECIPE, order="prune_first"),
        Goal(accuracy_drop_max=0.04, trial_epochs=2, ratio=0.3), work=tmp_path, control=control,
    )  # fmt: skip
    assert outcome.best.accuracy > 0.9
    assert outcome.epochs == sum(point.epochs for point in outcome.points) + max(
        1.5, 3 - sum(p.epochs for p in outcome.points)
    )


@pytest.mark.parametrize("is_integrated", [True, False])
def test_a_gpus_memory_counts_where_it_is_the_systems(monkeypatch: pytest.MonkeyPatch, *, is_integrated: bool) -> None:
    """As on a Jetson, and as the budget counts it; a card's own memory does not, and no GPU is none."""
    before, peak = held_mib(), peak_mib()
    assert before > 0
    assert peak is not None
    said: list[str] = []
    fake = {
        "is_initialized": lambda: True,
        "current_device": lambda: 0,
        "get_device_properties": lambda _: SimpleNamespace(is_integrated=is_integrated),
        "memory_reserved": lambda: 10_000 * 2**20,
        "max_memory_reserved": lambda: 20_000 * 2**20,
        "empty_cache": lambda: said.append("empty"),
        "reset_peak_memory_stats": lambda: said.append("reset"),
    }
    for name, does in fake.items():
        monkeypatch.setattr(torch.cuda, name, does)
    shared = (10_000, 20_000) if is_integrated else (0, 0)
    assert held_mib() == pytest.approx(before + shared[0], abs=500)
    assert peak_mib() == pytest.approx(peak + shared[1], abs=500)
    begin_peak()
    assert said == (["empty", "reset"] if is_integrated else [])
