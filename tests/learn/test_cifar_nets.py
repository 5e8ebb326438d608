"""The small-image networks: the sizes that the papers print, and what a factory model needs of a network."""

from __future__ import annotations

import pytest
import torch

from edgetune.learn.cifar import CIFAR_BUILDERS
from edgetune.learn.network import build, count_macs, count_parameters, find_head, new_network, widen_head

# with 100 classes: parameters, and millions of multiply-accumulates as printed (None: the paper's text names none)
PAPER = {
    "alexnet": (2_495_396, None),
    "resnet20": (278_324, 40.8),
    "mobilenet_v2": (2_412_212, 91.3),
    "squeezenet": (781_156, 53.3),
}
HEADS = {
    "alexnet": "classifier", "resnet8": "fc", "resnet20": "fc", "resnet56": "fc", "resnet8a": "linear",
    "resnet20a": "linear", "resnet56a": "linear", "mobilenet_v2": "linear", "squeezenet": "conv10",
    "wrn10_10": "fc", "wrn28_10": "fc", "wrn10_10p": "fc", "wrn28_10p": "fc",
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_a_network_has_the_papers_size(name: str) -> None:
    """Parameters to the last one, operations as rounded in the paper."""
    parameters, mmacs = PAPER[name]
    module = build(f"cifar:{name}", 100)
    assert count_parameters(module) == parameters
    if mmacs is not None:
        assert round(count_macs(module, 32, 32) / 1e6, 1) == mmacs


def test_alexnets_operations_are_the_sum_over_its_layers() -> None:
    """Counted by hand: positions x weights of each layer at 32x32, where the first layer's stride is 4."""
    by_hand = 64 * 3 * 121 * 64 + 16 * 64 * 25 * 192 + 4 * 9 * (192 * 384 + 384 * 256 + 256 * 256) + 256 * 100
    assert count_macs(build("cifar:alexnet", 100), 32, 32) == by_hand


def test_zero_padded_shortcuts_cost_nothing_that_is_trained() -> None:
    """Option A of the ResNet paper: what is trained is 278,324 less the two projections and their batch norms."""
    module = build("cifar:resnet20a", 100)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert trained == 278_324 - (16 * 32 + 2 * 32) - (32 * 64 + 2 * 64)


def test_every_network_is_in_the_table() -> None:
    """A network without a known head would not be tested below."""
    assert set(HEADS) == set(CIFAR_BUILDERS)


@pytest.mark.parametrize("name", CIFAR_BUILDERS)
def test_a_network_has_one_head_and_sees_larger_images(name: str) -> None:
    """Exactly one layer depends on the number of classes; 48x48 images give logits of the same shape as 32x32."""
    assert find_head(f"cifar:{name}", 10) == HEADS[name]
    module = build(f"cifar:{name}", 10).eval()
    with torch.no_grad():
        for side in (32, 48):
            assert module(torch.randn(2, 3, side, side)).shape == (2, 10)


@pytest.mark.parametrize("name", ["alexnet", "squeezenet"])
def test_every_layer_takes_part(name: str) -> None:
    """The gradient of the logits reaches each parameter: no layer is built and then left out."""
    torch.manual_seed(0)
    module = build(f"cifar:{name}", 10).train()
    module(torch.randn(4, 3, 32, 32)).square().sum().backward()
    # a bias in front of a batch norm cancels out: its gradient is rounding noise, but it is there
    silent = [n for n, p in module.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert silent == []


@pytest.mark.parametrize("name", ["alexnet", "squeezenet"])
def test_a_head_is_widened_by_name(name: str) -> None:
    """Also where it is a convolution: the classes keep their logits in their new places."""
    torch.manual_seed(0)
    network = new_network(f"cifar:{name}", 3)
    network.module.eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = network.module(images)
        widen_head(network, ["a", "b", "c"], ["c", "new", "a", "b"])
        after = network.module(images)
    torch.testing.assert_close(after[:, [2, 3, 0]], before)


def test_a_shortcut_of_squeezenet_adds_its_input() -> None:
    """With everything in fire3 silent, fire4 reads what fire2 gave."""
    module = build("cifar:squeezenet", 10).eval()
    seen: dict[str, torch.Tensor] = {}
    module.get_submodule("fire2").register_forward_hook(lambda _m, _i, output: seen.update(fire2=output))
    module.get_submodule("fire4").register_forward_pre_hook(lambda _m, inputs: seen.update(fire4=inputs[0]))
    with torch.no_grad():
        for parameter in module.get_submodule("fire3").parameters():
            parameter.zero_()
        module(torch.randn(1, 3, 32, 32))
    assert torch.equal(seen["fire4"], seen["fire2"])
    assert bool(seen["fire2"].any())
