"""SGD without torch's compiler: the same bits as torch's class, and the compiler stays out of a trainer's memory."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from conftest_site import RECIPE, make_site, run_trainer

from edgetune.learn.optimiser import Sgd


def twins() -> tuple[nn.Module, nn.Module]:
    """A network twice; the last layer is not used, so that it has no gradient."""
    torch.manual_seed(0)
    one = nn.ModuleList([nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(3, 3)])
    other = nn.ModuleList([nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(3, 3)])
    other.load_state_dict(one.state_dict())
    return one, other


def loss(module: nn.ModuleList, images: torch.Tensor) -> torch.Tensor:
    """Of the first two layers."""
    return module[1](module[0](images).relu()).square().mean()


@pytest.mark.parametrize(
    ("momentum", "nesterov", "decay"), [(0.9, False, 0.0), (0.9, True, 5e-4), (0.0, False, 1e-2), (0.5, False, 1e-3)]
)
def test_it_does_what_torchs_class_does(momentum: float, nesterov: bool, decay: float) -> None:
    """Bit by bit over steps of other rates, also when it goes on from the buffers of a checkpoint."""
    mine, theirs = twins()
    reference = torch.optim.SGD(
        theirs.parameters(), lr=1.0, momentum=momentum, nesterov=nesterov, weight_decay=decay, foreach=False
    )
    options = {"momentum": momentum, "nesterov": nesterov, "weight_decay": decay}
    optimiser = Sgd(dict(mine.named_parameters()), learning_rate=1.0, **options)
    for step in range(6):
        if step == 3:
            kept = {name: buffer.clone() for name, buffer in optimiser.momentum_buffers.items()}
            optimiser = Sgd(dict(mine.named_parameters()), learning_rate=1.0, **options)
            optimiser.restore(kept)
        images = torch.randn(4, 6)
        optimiser.learning_rate = reference.param_groups[0]["lr"] = 0.1 / (step + 1)
        for module, it in ((mine, optimiser), (theirs, reference)):
            it.zero_grad() if it is reference else it.forget_gradients()
            loss(module, images).backward()
            it.step()
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
    assert {name.split(".")[0] for name in optimiser.momentum_buffers} == ({"0", "1"} if momentum else set())


def test_a_buffer_is_not_shared_with_the_checkpoint_it_came_from() -> None:
    """What goes on does not change what was read."""
    mine, _ = twins()
    optimiser = Sgd(dict(mine.named_parameters()), learning_rate=0.1, momentum=0.9)
    kept = {"0.weight": torch.ones(5, 6)}
    optimiser.restore(kept)
    loss(mine, torch.randn(4, 6)).backward()
    optimiser.step()
    assert torch.equal(kept["0.weight"], torch.ones(5, 6))


def test_no_round_loads_torchs_compiler(tmp_path: Path) -> None:
    """It is a quarter of what a trainer holds before its first step, and a board is short of memory. (torchvision imports it itself.)"""
    directory = make_site(tmp_path, each=20).round_dir("whole", recipe=replace(RECIPE, level=0.3))
    code, _, imported = run_trainer(directory, PYTHONPROFILEIMPORTTIME="1")
    assert code == 0
    assert "edgetune.learn.optimiser" in imported
    assert "torch._dynamo" not in imported
