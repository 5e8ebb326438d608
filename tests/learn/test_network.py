"""Architectures, heads and network.json."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from edgetune.errors import ModelError, UnprunableError
from edgetune.learn.importer import _refuse_unsafe_torch, load_weights, read_weights
from edgetune.learn.network import (
    Network,
    NetworkDescription,
    build,
    count_macs,
    count_parameters,
    new_network,
    rebuild,
    state_tensors,
    widen_head,
)
from edgetune.learn.prune import check_prunable


@pytest.mark.parametrize(
    ("architecture", "parameters", "macs"),
    [("cifar:resnet20", 278_324, 40_818_944), ("cifar:mobilenet_v2", 2_412_212, 91_270_144)],
)
def test_the_papers_networks_have_the_papers_sizes(architecture: str, parameters: int, macs: int) -> None:
    """Parameter and operation counts are those of arXiv 2006.08554's nets."""
    module = build(architecture, 100)
    assert (count_parameters(module), count_macs(module, 32, 32)) == (parameters, macs)


def test_shufflenet_is_refused_with_a_clear_sentence() -> None:
    """A channel shuffle cannot be followed."""
    with pytest.raises(UnprunableError, match="ShuffleNet"):
        check_prunable(new_network("torchvision:shufflenet_v2_x0_5", 10), 64, 64)


@pytest.mark.parametrize("architecture", ["cifar:resnet20", "torchvision:squeezenet1_1"])
def test_a_widened_head_keeps_its_rows_and_new_classes_do_not_win(architecture: str) -> None:
    """Known logits stay as they were, in their new places; a new class is never above all of them."""
    torch.manual_seed(0)
    network = new_network(architecture, 3)
    images = torch.randn(4, 3, 64, 64)
    before = network.module.eval()(images)
    widen_head(network, ["a", "b", "c"], ["a", "b", "c", "new"])
    after = network.module(images)
    torch.testing.assert_close(after[:, :3], before)
    assert (after[:, 3] <= after[:, :3].max(dim=1).values + 1e-6).all()
    rebuild(network.describe(), state_tensors(network.module))


@pytest.mark.parametrize("name", ["nonsense", "cifar:resnet7", "torchvision:no_such_net", "no.such.module:net"])
def test_an_unknown_architecture_is_named(name: str) -> None:
    """The error says which."""
    with pytest.raises(ModelError, match=name):
        build(name, 10)


def test_a_builder_with_two_heads_is_refused() -> None:
    """Which one to widen would be a guess."""
    with pytest.raises(ModelError, match="one, two"):
        new_network("tiny_nets:two_heads", 4)


def test_weights_that_do_not_fit_are_refused() -> None:
    """A missing tensor is named."""
    network = new_network("cifar:resnet20", 10)
    tensors = state_tensors(network.module)
    del tensors["conv1.weight"]
    with pytest.raises(ModelError, match=r"conv1\.weight"):
        rebuild(NetworkDescription(architecture="cifar:resnet20", num_classes=10), tensors)


def test_a_foreign_checkpoint_may_leave_out_counters_and_constants(tmp_path: Path) -> None:
    """DataParallel's prefix is taken off; shortcuts fixed by the architecture need not be in the file."""
    network: Network = new_network("cifar:resnet20a", 10)
    tensors = {
        f"module.{n}": t for n, t in state_tensors(network.module).items() if "shortcut" not in n and "tracked" not in n
    }
    torch.save({"state_dict": tensors}, tmp_path / "w.pt")
    other = new_network("cifar:resnet20a", 10)
    load_weights(other, read_weights(tmp_path / "w.pt"), [str(i) for i in range(10)])
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(other.module.eval()(images), network.module.eval()(images))


def test_a_pickle_is_refused_on_a_torch_that_cannot_read_it_safely(tmp_path: Path) -> None:
    """Below torch 2.6 the reason is given."""
    with pytest.raises(ModelError, match="CVE-2025-32434"):
        _refuse_unsafe_torch(tmp_path / "w.pt", "2.5.1")


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    """An object that is not a tensor is never built."""
    torch.save(Path("/tmp"), tmp_path / "w.pt")
    with pytest.raises(ModelError, match="cannot be read"):
        read_weights(tmp_path / "w.pt")
