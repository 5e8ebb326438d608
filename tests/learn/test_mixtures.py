"""Mixtures of images that a teacher is asked about: what they are made of, which are picked, and what is learnt of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from conftest_site import RecordingControl
from test_transfer import FREE, noisy_data, normaliser, same_bits, thin_network

from edgetune.learn.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from edgetune.learn.control import StopAskedError
from edgetune.learn.data import Images, LabelledImages, draws_of, uniform
from edgetune.learn.finetune import Phase, fine_tune
from edgetune.learn.mixtures import Mixtures, _cut_out, mixed
from edgetune.learn.network import Network, rebuild
from edgetune.learn.transfer import Output, Shown, answered

STUDENT_CLASSES = (0, 1, 2)


def pictures(count: int = 24, size: int = 16) -> tuple[Images, Any]:
    """Smooth images, each of its own colours, and hashes to draw from."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 1, size)[:, None, None] * rng.integers(40, 200, (count, 1, 1, 3))
    images = (ramp + rng.integers(0, 50, (count, size, size, 3))).astype(np.uint8)
    return images, draws_of(np.arange(count), 3)


def colours(images: Images) -> Any:
    """A teacher of three classes: how red, green and blue an image is, float32 [N, 3]."""
    return (images.astype(np.float32).mean(axis=(1, 2)) - 100) / 10


def test_a_mixture_depends_on_its_draw_alone() -> None:
    """The same again, another one with another draw, and as many in the same form."""
    images, draws = pictures()
    before = images.copy()
    made = mixed(images, draws)
    assert (made.shape, made.dtype) == (images.shape, np.uint8)
    assert np.array_equal(made, mixed(images, draws))
    assert np.array_equal(images, before)
    other = mixed(images, draws_of(np.arange(len(images)), 4))
    assert (made != other).any(axis=(1, 2, 3)).mean() > 0.8


def test_mixtures_hold_parts_of_two_images() -> None:
    """Of black and white ones most are neither; blends and patches both occur."""
    images = np.zeros((64, 16, 16, 3), np.uint8)
    images[::2] = 255
    made = mixed(images, draws_of(np.arange(64), 1)).astype(float)
    spread = made.std(axis=(1, 2)).max(axis=1)
    patched, blended = spread > 20, (spread < 5) & (made.mean(axis=(1, 2, 3)) > 30) & (made.mean(axis=(1, 2, 3)) < 225)
    assert patched.mean() > 0.1
    assert blended.mean() > 0.1


def test_what_is_cut_out_lies_inside_and_is_enlarged() -> None:
    """Of a ramp every part is a ramp within it, and less steep: a fifth to the whole of its area."""
    ramp = torch.linspace(0, 1, 32).reshape(1, 1, 1, 32).expand(200, 3, 32, 32).contiguous()
    made = _cut_out(ramp, lambda what: torch.from_numpy(uniform(draws_of(np.arange(200), 2), what)).float())
    low, high = made.amin(dim=(1, 2, 3)), made.amax(dim=(1, 2, 3))
    assert made.shape == ramp.shape
    assert float(low.min()) >= 0 and float(high.max()) <= 1
    steps = made[:, 0, 0, 2:-2].diff(dim=1)
    assert (steps >= -1e-6).all()
    assert ((high - low) < 0.9).float().mean() > 0.5
    assert float((high - low).min()) > 0.3


def test_those_that_look_most_like_a_class_that_is_not_shown_are_picked() -> None:
    """A third of the batch is the bluest there is, a sixth is drawn, and the other half stays as it is."""
    images, draws = pictures()
    asked: list[Images] = []

    def ask(shown: Images) -> Any:
        asked.append(shown)
        return colours(shown)

    made, said = Mixtures(ask, STUDENT_CLASSES, {2})(images, draws)
    assert said is not None
    (tried,) = asked
    assert len(tried) == len(images)
    assert np.array_equal(made[12:], images[12:])
    assert (len(made), tuple(said.logits.shape), said.classes) == (24, (12, 3), STUDENT_CLASSES)
    assert np.allclose(said.logits.numpy(), colours(made[:12]), atol=1e-4), "each with the answer that is its own"
    share = torch.softmax(torch.from_numpy(colours(tried)).double(), dim=1)[:, 2]
    picked = torch.softmax(said.logits[:8].double(), dim=1)[:, 2]
    assert torch.allclose(picked, share.sort(descending=True).values[:8], atol=1e-6)
    assert torch.softmax(said.logits[8:].double(), dim=1)[:, 2].max() <= picked.min() + 1e-6
    again, same = Mixtures(ask, STUDENT_CLASSES, {2})(images, draws)
    assert same is not None
    assert np.array_equal(made, again) and torch.equal(said.logits, same.logits)


def test_a_batch_of_one_is_left_alone() -> None:
    """There is nothing to mix it with."""
    images, draws = pictures(1)
    made, said = Mixtures(colours, STUDENT_CLASSES, {2})(images, draws)
    assert said is None
    assert made is images


def test_only_those_are_asked_about_that_nobody_has_spoken_of() -> None:
    """Whole batches, batches in parts, and none."""
    asked: list[int] = []

    def teacher(shown: Shown) -> Output:
        asked.append(len(shown.images))
        return Output(logits=shown.images.mean(dim=(2, 3)), classes=STUDENT_CLASSES)

    images = torch.randn(6, 3, 4, 4)
    plain = Shown(images=images, sample_ids=np.arange(6), draws=np.arange(6, dtype=np.uint64))
    expected = images.mean(dim=(2, 3))
    said = Output(logits=expected[:4].clone(), classes=STUDENT_CLASSES)
    for shown, wanted in (
        (plain, [6]), (replace(plain, said=said), [2]), (replace(plain, said=said).part(np.arange(3)), []),
        (replace(plain, said=said).part(np.array([0, 3, 5])), [1]),
    ):  # fmt: skip
        asked.clear()
        assert torch.allclose(answered(teacher, shown).logits, shown.images.mean(dim=(2, 3)))
        assert asked == wanted


# ---------------------------------------------------------------------------------------------- training


def tune(
    phase: Phase, training: LabelledImages, mixtures: Mixtures | None, *, ask: Callable[[Images], Any] = colours,
    network: Network | None = None, resume: Checkpoint | None = None, states: list[Checkpoint] | None = None,
    control: RecordingControl | None = None,
) -> Network:  # fmt: skip
    """The network after the phase."""
    kept = [] if states is None else states
    network = network or thin_network()

    def teacher(shown: Shown) -> Output:
        pixels = ((shown.images * 0.25 + 0.5) * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return Output(logits=torch.from_numpy(ask(pixels)), classes=STUDENT_CLASSES)

    fine_tune(
        network, phase, training, noisy_data(0, 2), normaliser(), resume=resume, save=kept.append,
        control=control or RecordingControl(), teacher=teacher, mixtures=mixtures,
    )  # fmt: skip
    return network


@pytest.mark.parametrize("accumulation", [1, 2])
def test_mixtures_change_what_is_learnt_and_no_label_does(accumulation: int) -> None:
    """In whole steps and in parts; a loss that looks at labels has no use for them."""
    training, phase = noisy_data(20, 1), replace(FREE[1], accumulation=accumulation)
    mixtures = Mixtures(colours, STUDENT_CLASSES, {2})
    one = tune(phase, training, mixtures)
    shuffled = replace(training, labels=np.random.default_rng(0).permutation(training.labels))
    assert same_bits(one, tune(phase, shuffled, mixtures))
    assert not same_bits(one, tune(phase, training, None))
    by_labels = replace(phase, distillation=0.5)
    assert same_bits(tune(by_labels, training, mixtures), tune(by_labels, training, None))


def test_a_stop_and_a_resume_change_no_bit_with_mixtures(tmp_path: Path) -> None:
    """They are drawn from the step's own hashes."""
    training, phase, mixtures = noisy_data(20, 1), FREE[1], Mixtures(colours, STUDENT_CLASSES, {2})
    whole, states = tune(phase, training, mixtures), list[Checkpoint]()
    with pytest.raises(StopAskedError):
        tune(phase, training, mixtures, states=states, control=RecordingControl(stop_after=[2]))
    save_checkpoint(tmp_path, states[-1], "spec")
    found = load_checkpoint(tmp_path, "spec")
    assert found is not None
    rebuilt = rebuild(found.description, found.network)
    assert same_bits(whole, tune(phase, training, mixtures, network=rebuilt, resume=found))
