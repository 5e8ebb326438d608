"""A pruned network in its three forms: cut in memory, rebuilt from network.json, and exported to ONNX."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from conftest_site import draft_manifest, generated_images

from edgetune.errors import ModelError
from edgetune.learn.criteria import make_criterion
from edgetune.learn.export import artefact_files, check_export, served_module, stage
from edgetune.learn.groups import overlaps
from edgetune.learn.network import Network, count_parameters, load_network, new_network
from edgetune.learn.prune import Limit, check_prunable, choose_channels, cut_channels, even_floors
from edgetune.serve.engine import Engine
from edgetune.types import Preprocess

TOLERANCE = 1e-4  # of the largest logit: float32 sums in another order
FAST = ["cifar:resnet20", "cifar:resnet20a", "cifar:mobilenet_v2", "tiny_nets:tiny"]
SLOW = [
    "torchvision:resnet18",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:squeezenet1_1",
    "torchvision:efficientnet_b0",
]
ARCHITECTURES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def size_of(architecture: str) -> Preprocess:
    """32 px for the small-image networks, 96 px for torchvision's."""
    side = 96 if architecture.startswith("torchvision") else 32
    return Preprocess(height=side, width=side, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def pruned(architecture: str, size: Preprocess) -> Network:
    """A network of seven classes with lively weights and statistics, cut to less than half of its parameters."""
    torch.manual_seed(0)
    network = new_network(architecture, 7)
    groups = check_prunable(network, size.height, size.width)
    assert not overlaps(groups)
    enliven(network.module, size)
    scores = make_criterion("l1", seed=0).score(network.module, groups, [])
    whole = count_parameters(network.module)
    cut = choose_channels(
        network.module, groups, scores, limit=Limit("parameters", whole // 2), image=(size.height, size.width),
        round_to=8, floors=even_floors(groups, 0.5), per_cost=False,
    )  # fmt: skip
    cut_channels(network.module, groups, cut.removed)
    assert count_parameters(network.module) == cut.size.parameters <= whole // 2
    enliven(network.module, size)
    return network


def enliven(module: nn.Module, size: Preprocess) -> None:
    """Random affine parameters and real statistics: batch norms that are forgotten or mixed up change the answer."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
            layer.momentum = 0.5
        elif isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(layer.weight) if layer.weight.requires_grad else None
            nn.init.uniform_(layer.bias, -0.1, 0.1) if layer.bias is not None else None
    module.train()
    with torch.no_grad():
        for _ in range(4):
            module(torch.randn(8, 3, size.height, size.width))
    module.eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pruned_network_answers_the_same_rebuilt_and_in_onnx_and_still_learns(
    architecture: str, tmp_path: Path
) -> None:
    """Cut, saved, rebuilt strictly: the same outputs and gradients bit for bit; in ONNX the same at any batch size."""
    size = size_of(architecture)
    network = pruned(architecture, size)
    stage(tmp_path, artefact_files(network, size, lambda: None), draft_manifest(architecture, 7, size))
    again = load_network(tmp_path)
    images = generated_images(5, size)
    with torch.no_grad():
        expected = served_module(network, size)(torch.from_numpy(images))
        assert torch.equal(served_module(again, size)(torch.from_numpy(images)), expected)
    spread = float(expected.std(dim=0).max())
    largest = float(expected.abs().max())
    assert spread > 100 * TOLERANCE * largest, "answers that do not depend on the image would prove nothing"
    engine = Engine.load(tmp_path, threads=1)
    check_export(engine, network, size)
    engine.selftest()
    for count in (1, 2, 5):
        got = engine.predict(images[:count])
        np.testing.assert_allclose(got, expected[:count].numpy(), rtol=0, atol=TOLERANCE * largest)
    assert_same_gradients(network.module, again.module, size)


def assert_same_gradients(one: nn.Module, other: nn.Module, size: Preprocess) -> None:
    """Both trained on the same batch with the same random state."""
    batch = torch.randn(4, 3, size.height, size.width)
    gradients = []
    for module in (one, other):
        torch.manual_seed(1)
        module.train().zero_grad(set_to_none=True)
        module(batch).square().mean().backward()
        gradients.append({name: p.grad for name, p in module.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert torch.equal(gradient, gradients[1][name]), name
    assert any(bool(gradient.any()) for gradient in gradients[0].values())


def test_an_export_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    """A graph with one filter changed, or with another normalisation, is told from the trained network."""
    size = size_of("tiny_nets:tiny")
    network = pruned("tiny_nets:tiny", size)
    stage(tmp_path, artefact_files(network, size, lambda: None), draft_manifest("tiny_nets:tiny", 7, size))
    engine = Engine.load(tmp_path, threads=1)
    check_export(engine, network, size)
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.module.get_submodule("left.0").weight[0] *= -1
    with pytest.raises(ModelError, match="differs"):
        check_export(engine, other, size)
    with pytest.raises(ModelError, match="differs"):
        check_export(engine, network, replace(size, mean=(0.485, 0.456, 0.406)))


def test_a_network_that_answers_nan_is_not_written(tmp_path: Path) -> None:
    """It would make every later self-test meaningless."""
    size = size_of("tiny_nets:tiny")
    network = new_network("tiny_nets:tiny", 3)
    with torch.no_grad():
        network.module.get_submodule("head").bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="NaN"):
        artefact_files(network, size, lambda: None)
