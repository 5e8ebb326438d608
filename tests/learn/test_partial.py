"""Training the upper part of a network: what stays stays bit for bit, with latents that are kept or worked out anew."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from conftest_site import RECIPE, RecordingControl, Site, make_site, run_here
from test_finetune import noisy_data, normaliser, tiny_network
from test_tuner import make_tuner, same_bits

from edgetune.errors import ModelError
from edgetune.learn.network import Network, new_network, state_tensors
from edgetune.learn.partial import Latents, Part, last_stage
from edgetune.learn.transfer import telling_logits
from edgetune.learn.tuner import RETRAIN
from edgetune.types import Recipe, RoundKind, TrainerOutcome

PLAIN = replace(RECIPE, augment="none", momentum=0.9, weight_decay=5e-4)
IMAGE = torch.zeros(1, 3, 32, 32)
TRAINING = noisy_data(46, 1)


@pytest.fixture(scope="module", autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    """One thread, and a round pins torch's threads and algorithms for its process."""
    threads, is_strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(is_strict)


@pytest.mark.parametrize(
    ("architecture", "cut"),
    [
        ("cifar:resnet20", "layer3.0"),
        ("cifar:mobilenet_v2", None),
        ("cifar:squeezenet", "fire9"),
        ("torchvision:resnet18", "layer4.0"),
        ("torchvision:mobilenet_v2", "features.14"),
        ("torchvision:vgg11_bn", "features.21"),
    ],
)
def test_the_last_stage_begins_where_the_resolution_falls_for_the_last_time(architecture: str, cut: str | None) -> None:
    """A block with a stride, or a pooling layer that convolutions follow; and nothing passes it by."""
    network = new_network(architecture, 10)
    found = last_stage(network, IMAGE)
    assert cut in (None, found)
    assert found != network.head
    part = Part(network, found, torch.rand(1, 3, 32, 32))
    assert part.is_the_only_way()
    below = {id(p) for m in part._below for p in m.parameters(recurse=False)}
    learnt = [p for p in network.module.parameters() if p.requires_grad]
    assert 0 < sum(id(p) in below for p in learnt) < len(learnt)


class Bypassed(nn.Module):
    """What its stem says of an image reaches the answer beside the last stage too."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.stage = nn.Conv2d(8, 8, 3, 2, 1)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.stem(x)
        return self.head(self.stage(x).mean(dim=(2, 3)) + x.amax(dim=(2, 3)))


def test_a_network_with_a_way_round_the_cut_is_noticed() -> None:
    """Its latents would not tell all; a layer that is not run is named."""
    network = Network(Bypassed(3), "test:bypassed", 3, "head")
    assert last_stage(network, IMAGE) == "stage"
    assert not Part(network, "stage", torch.rand(1, 3, 32, 32)).is_the_only_way()
    assert Part(network, "head", torch.rand(1, 3, 32, 32)).is_the_only_way()
    network.module.extra = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="does not run its layer 'extra'"):
        Part(network, "extra", IMAGE)


def trained(
    update: str, recipe: Recipe = PLAIN, network: Network | None = None, **more: object
) -> tuple[Network, Network]:
    """The network before and after 12 steps."""
    network = network or tiny_network()
    before = copy.deepcopy(network)
    tuner = make_tuner(recipe, TRAINING, **more)
    tuner.updating.name = update
    tuner.fine_tune(network, RETRAIN, 12)
    return before, network


@pytest.mark.parametrize("update", ["tail", "head", "latent"])
@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_what_is_below_the_cut_does_not_change_by_a_bit(update: str, augment: str) -> None:
    """Neither weights nor running statistics; everything from the cut on does, and wants a gradient again afterwards."""
    before, after = trained(update, replace(PLAIN, augment=augment))
    old, new = state_tensors(before.module), state_tensors(after.module)
    upper = ("head.",) if update == "head" else ("depth.", "head.")
    for name, tensor in new.items():
        assert torch.equal(tensor, old[name]) is not name.startswith(upper), name
    assert all(parameter.requires_grad for parameter in after.module.parameters())


def test_frozen_weights_stay_frozen() -> None:
    """What wanted no gradient before does not want one after."""
    network = tiny_network()
    network.module.get_submodule("stem.0").weight.requires_grad_(False)
    _, after = trained("tail", network=network)
    assert not after.module.get_submodule("stem.0").weight.requires_grad
    assert after.module.get_submodule("expand.0").weight.requires_grad


@pytest.mark.parametrize("classes", [None, [], [0, 2]])
def test_kept_latents_give_the_weights_that_working_them_out_gives(classes: list[int] | None) -> None:
    """
    Without random changes the update with a cache is the update without one, bit for bit.

    So it is without a teacher (None), with a network that teaches all classes ([]), and with one that has a say in two.
    """
    recipe, module = replace(PLAIN, distillation=0.0 if classes is None else 0.5), tiny_network().module.eval()
    with torch.no_grad():
        module.head.weight.mul_(-1.0)
    teacher = telling_logits(module, classes) if classes else module
    _, tail = trained("tail", recipe, teacher=teacher)
    _, latent = trained("latent", recipe, teacher=teacher)
    assert same_bits(tail, latent)
    _, shifted = trained("latent", replace(recipe, augment="crop_flip"), teacher=teacher)
    assert same_bits(latent, shifted), "latents are those of the images as they are"


@pytest.mark.parametrize("changed", ["head.weight", "stem.0.weight", "stem.1.running_mean"])
def test_a_teacher_with_the_same_lower_part_answers_from_the_latents(changed: str) -> None:
    """It is shown single images then, to find that out; one that differs below the cut is shown them all, to the same end."""
    recipe, module = replace(PLAIN, distillation=0.5), tiny_network().module.eval()
    with torch.no_grad():
        module.state_dict()[changed].add_(0.1)
    _, tail = trained("tail", recipe, teacher=copy.deepcopy(module))
    shown: list[int] = []
    module.get_submodule("stem").register_forward_hook(lambda _layer, inputs, _output: shown.append(len(inputs[0])))
    _, latent = trained("latent", recipe, teacher=module)
    assert same_bits(tail, latent)
    assert (sum(shown) >= len(TRAINING)) is not changed.startswith("head")


def test_latents_that_are_too_many_for_memory_lie_in_a_file_without_a_name(tmp_path: Path) -> None:
    """The same numbers in any order, and nothing is left in the folder."""
    network = tiny_network()
    part = Part(network, "depth.0", normaliser()(TRAINING.images(np.arange(1))))
    kept = [
        Latents(part, TRAINING, normaliser(), scratch=tmp_path, beat=lambda: None, memory_max_bytes=most)
        for most in (2**20, 100)
    ]
    assert [each._file._rolled for each in kept] == [False, True]  # type: ignore[attr-defined]
    order = np.array([45, 3, 3, 0, 17])
    one, other = (each.batch(order) for each in kept)
    assert torch.equal(one, other)
    torch.testing.assert_close(one, part.latents(normaliser()(TRAINING.images(order))))
    assert list(tmp_path.iterdir()) == []
    for each in kept:
        each.close()


def test_latents_are_not_kept_where_they_cannot_be() -> None:
    """Where something passes the cut by, the same layers are trained without a cache."""
    tuner = make_tuner(PLAIN, TRAINING)
    assert tuner.updating.ways(tiny_network(), "latent") == ["latent"]
    assert tuner.updating.ways(Network(Bypassed(3), "test:bypassed", 3, "head"), "latent") == ["tail"]


def test_auto_is_everything_then_the_last_stage_then_the_output_layer() -> None:
    """What a plan tries, best first."""
    assert make_tuner(PLAIN, TRAINING).updating.ways(tiny_network(), "auto") == ["full", "latent", "head"]
    assert make_tuner(PLAIN, TRAINING).updating.ways(tiny_network(), "full") == ["full"]


# ----------------------------------------------------------------------------------------------- whole rounds


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """An untrained model and three colours."""
    return make_site(tmp_path_factory.mktemp("partial"), each=40)


@pytest.mark.parametrize(("update", "share"), [("tail", 0.0), ("head", 0.5), ("latent", 0.5)])
def test_a_round_that_trains_a_part_goes_on_after_stops_to_the_same_bits(site: Site, update: str, share: float) -> None:
    """What was chosen is in the journal; what is below the cut is the base's."""
    recipe = replace(RECIPE, level=0.0, epochs_after=4, update=update, distillation=share)
    weights = []
    for stops in ((), (2, 5, 1)):
        models = Path(shutil.copytree(site.root / "models", site.root / f"models-{update}-{len(stops)}"))
        directory = site.round_dir(f"{update}-{len(stops)}", kind=RoundKind.ADAPT, recipe=recipe, models_dir=models)
        for steps in stops:
            assert run_here(directory, RecordingControl(stop_after=[steps]))[0] is TrainerOutcome.CHECKPOINTED
        outcome, message, _ = run_here(directory)
        assert outcome is TrainerOutcome.PUBLISHED, message
        weights.append((models / "v000002" / "weights.safetensors").read_bytes())
        assert json.loads((directory / "journal.json").read_text())["update"] == {"update": update, "why": ""}
    assert weights[0] == weights[1]


def test_a_reshape_trains_everything(site: Site) -> None:
    """What is left after a cut has to settle as a whole."""
    models = Path(shutil.copytree(site.root / "models", site.root / "models-reshape"))
    directory = site.round_dir("reshape", recipe=replace(RECIPE, update="head"), models_dir=models)
    assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
    assert "update" not in json.loads((directory / "journal.json").read_text())
