"""What a student learns from a teacher: each loss against numpy, where its gradient goes, and what labels matter."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from conftest_site import RecordingControl
from tiny_nets import TinyNet

from edgetune.errors import ModelError, UsageError
from edgetune.learn.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from edgetune.learn.cifar import CifarResNet, zero_padding
from edgetune.learn.control import StopAskedError
from edgetune.learn.data import LabelledImages, Normaliser
from edgetune.learn.finetune import Phase, fine_tune, steps_per_epoch, without_labels
from edgetune.learn.network import Network, build, rebuild, state_tensors
from edgetune.learn.sparsity import thin_student
from edgetune.learn.transfer import (
    Hinton,
    LabelFree,
    Output,
    Replay,
    Shown,
    StoredLogits,
    Teacher,
    TransferLoss,
    group_taps,
    look,
    make_transfer,
    tapped,
)
from edgetune.learn.wide_resnet import WideResNet, Widths
from edgetune.types import Preprocess

Array = npt.NDArray[np.float64]
SIZE = Preprocess(height=16, width=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
PHASE = Phase(
    name="retrain", steps=7, batch_size=8, learning_rate=0.05, schedule="cosine", momentum=0.9, nesterov=True,
    weight_decay=5e-4, augment="crop_flip", checkpoint_steps=1000, seed=0, round_id=1, transfer="label_free",
)  # fmt: skip
LOSSES = [LabelFree(), Hinton(share=0.7, temperature=3.0), Replay(), Replay(share=0.4)]
LABELS = torch.tensor([0, 1, 2, 3, 1, 0])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def output(seed: int, channels: tuple[int, ...], batch: int = 6) -> Output:
    """Four classes, maps of 6x5 and half of that, some of them zero everywhere; everything asks for a gradient."""
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(batch, c, 6 >> i, 4 >> i, generator=generator).relu() for i, c in enumerate(channels)]
    for maps in features:
        maps[:, 0] = 0
    logits = 2 * torch.randn(batch, 4, generator=generator)
    return Output(logits=logits.requires_grad_(), features=tuple(maps.requires_grad_() for maps in features))


def numbers(tensor: torch.Tensor) -> Array:
    """In double precision."""
    return tensor.detach().double().numpy()


def softened(logits: Array, temperature: float) -> Array:
    """Softmax over a temperature."""
    powers = np.exp(logits / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def entropy(logits: Array) -> float:
    """The mean cross-entropy with LABELS."""
    return float(-np.log(softened(logits, 1)[np.arange(len(logits)), LABELS.numpy()]).mean())


def label_free_by_hand(student: Output, teacher: Output) -> float:
    """One value after the other."""
    total = np.sqrt(np.square(numbers(student.logits) - numbers(teacher.logits)).mean())
    for mine, theirs in zip(map(numbers, student.features), map(numbers, teacher.features), strict=True):
        squares = []
        for place in np.ndindex(*theirs.shape[1:]):
            t = theirs[(slice(None), *place)]
            s = mine[(slice(None), *place)] if place[0] < mine.shape[1] else np.zeros(len(t))
            t, s = (x / np.linalg.norm(x) if np.linalg.norm(x) > 1e-6 else 0 * x for x in (t, s))
            squares += list((t - s) ** 2)
        total += np.sqrt(np.mean(squares))
    return float(total)


def hinton_by_hand(student: Output, teacher: Output, share: float, temperature: float) -> float:
    """With the teacher put right where it is wrong."""
    z, t = numbers(student.logits), numbers(teacher.logits)
    soft, said = softened(t, temperature), softened(z, temperature)
    wrong = [i for i in range(len(t)) if t[i].argmax() != LABELS[i]]
    assert 0 < len(wrong) < len(t), "the example has both"
    for i in wrong:
        top, label = t[i].argmax(), int(LABELS[i])
        soft[i, top], soft[i, label] = soft[i, label], soft[i, top]
    divergence = (soft * (np.log(soft) - np.log(said))).sum() / len(t)
    return (1 - share) * entropy(z) + share * temperature**2 * float(divergence)


def replay_by_hand(student: Output, teacher: Output, share: float) -> float:
    """A mean over images and classes."""
    z, t = numbers(student.logits), numbers(teacher.logits)
    return (1 - share) * entropy(z) + share * float(((z - t) ** 2).mean())


def test_each_loss_is_what_numpy_makes_of_it() -> None:
    """The student has fewer channels in both groups, some of them silent over the whole batch."""
    student, teacher = output(1, (3, 5)), output(2, (4, 9))
    expected = [
        label_free_by_hand(student, teacher),
        hinton_by_hand(student, teacher, 0.7, 3.0),
        replay_by_hand(student, teacher, 1.0),
        replay_by_hand(student, teacher, 0.4),
    ]
    got = [loss(student, teacher, LABELS).item() for loss in LOSSES]
    assert got == pytest.approx(expected, rel=1e-5)
    assert len(set(got)) == 4


def test_the_padding_counts_in_the_mean() -> None:
    """What the student has no channel for is the teacher's alone: half of a norm of one over three images."""
    maps = torch.ones(3, 1, 1, 1)
    logits = torch.zeros(3, 2)
    loss = LabelFree()(
        Output(logits=logits, features=(maps,)), Output(logits=logits, features=(maps.repeat(1, 2, 1, 1),)), LABELS[:3]
    )
    assert float(loss) == pytest.approx((1 / 3 / 2) ** 0.5)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_a_gradient_reaches_the_student_alone(loss: TransferLoss) -> None:
    """Its logits, and its features where they are compared; never the teacher's, even where these could take one."""
    student, teacher = output(1, (3, 5)), output(2, (4, 9))
    loss(student, teacher, LABELS).backward()
    assert student.logits.grad is not None
    assert bool(student.logits.grad.any())
    assert [maps.grad is not None and bool(maps.grad.any()) for maps in student.features] == [loss.wants_features] * 2
    assert teacher.logits.grad is None
    assert all(maps.grad is None for maps in teacher.features)


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    """No loss and no gradient, and no NaN of a root at zero."""
    teacher = output(2, (4, 9))
    right = teacher.logits.argmax(dim=1)
    for loss in (LabelFree(), Hinton(share=1.0, temperature=3.0), Replay()):
        student = output(2, (4, 9))
        value = loss(student, teacher, right)
        value.backward()
        assert value.item() == pytest.approx(0, abs=1e-6)
        grads = [tensor.grad for tensor in (student.logits, *student.features) if tensor.grad is not None]
        assert max(float(grad.abs().max()) for grad in grads) < 1e-6


def test_without_features_on_one_side_logits_alone_are_compared() -> None:
    """A teacher somewhere else sends none, and a student may have no groups."""
    student, teacher = output(1, (3, 5)), output(2, (4, 9))
    bare = [Output(logits=side.logits) for side in (student, teacher)]
    expected = np.sqrt(np.square(numbers(student.logits) - numbers(teacher.logits)).mean())
    got = [LabelFree()(one, other, LABELS) for one, other in ((student, bare[1]), (bare[0], teacher), bare)]
    assert [value.item() for value in got] == pytest.approx([expected] * 3)


def test_in_a_batch_of_one_only_the_logits_teach() -> None:
    """Over one image a norm leaves the signs: the loss is finite, and features have no gradient."""
    student, teacher = output(1, (3, 5), batch=1), output(2, (4, 9), batch=1)
    value = LabelFree()(student, teacher, LABELS[:1])
    assert value.item() == pytest.approx(label_free_by_hand(student, teacher), rel=1e-5)
    value.backward()
    assert all(float(maps.grad.abs().max()) < 1e-6 for maps in student.features if maps.grad is not None)
    assert student.logits.grad is not None
    assert bool(student.logits.grad.any())
    assert all(np.isfinite(loss(student, teacher, LABELS[:1]).item()) for loss in LOSSES)


def test_pairs_that_do_not_fit_are_refused_by_what_is_wrong() -> None:
    """Classes, groups, channels, sizes: with both numbers."""
    student = output(1, (3, 5))
    fewer = replace(output(2, (4, 9)), logits=torch.zeros(6, 3))
    for loss in LOSSES:
        with pytest.raises(ModelError, match=r"teacher answers \[6, 3\] .* student \[6, 4\]"):
            loss(student, fewer, LABELS)
    with pytest.raises(ModelError, match="student has 2 groups of layers and the teacher 1"):
        LabelFree()(student, output(2, (4,)), LABELS)
    with pytest.raises(ModelError, match="group 2 has 5 channels in the student and only 4 in the teacher"):
        LabelFree()(student, output(2, (4, 4)), LABELS)
    coarse = output(2, (4, 9))
    coarse = replace(coarse, features=(coarse.features[0], torch.zeros(6, 9, 6, 4)))
    with pytest.raises(ModelError, match="group 2 are 3 x 2 in the student and 6 x 4 in the teacher"):
        LabelFree()(student, coarse, LABELS)


def test_a_loss_is_made_by_its_name() -> None:
    """Where the teacher has no share there is none; the label-free one has no other part."""
    assert make_transfer("hinton", share=0.3, temperature=4.0) == Hinton(share=0.3, temperature=4.0)
    assert make_transfer("replay", share=0.3, temperature=4.0) == Replay(share=0.3)
    assert make_transfer("label_free", share=0.0, temperature=4.0) == LabelFree()
    assert (
        make_transfer("hinton", share=0.0, temperature=4.0) is make_transfer("replay", share=0, temperature=1) is None
    )
    with pytest.raises(UsageError, match="no transfer 'osmosis'"):
        make_transfer("osmosis", share=0.5, temperature=1.0)
    free = [make_transfer(name, share=1.0, temperature=1.0) for name in ("label_free", "replay", "hinton")]
    assert [loss is not None and loss.is_label_free for loss in free] == [True, True, False]


# ---------------------------------------------------------------------------------------------- taps


def hooks_of(module: nn.Module) -> int:
    """How many listen."""
    return sum(len(layer._forward_hooks) for layer in module.modules())


def test_features_are_what_the_groups_give_after_their_relu() -> None:
    """A WRN's are where the next group begins; a ResNet's are its stages; another network has none."""
    torch.manual_seed(0)
    module = WideResNet(2, Widths(stem=4, groups=((6, 8), (5, 12), (10, 16))), 10, zero_padding).eval()
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        seen = look(module, images, group_taps(module))
        x = module.layer1(module.conv1(images))
        first = torch.relu(module.layer2[0].bn1(x))
        x = module.layer2(x)
        second = torch.relu(module.layer3[0].bn1(x))
        last = torch.relu(module.bn1(module.layer3(x)))
        assert torch.equal(seen.logits, module(images))
    assert [tuple(maps.shape[1:]) for maps in seen.features] == [(8, 16, 16), (12, 8, 8), (16, 4, 4)]
    assert all(torch.equal(got, maps) for got, maps in zip(seen.features, (first, second, last), strict=True))
    assert group_taps(build("cifar:resnet56a", 10)) == ("layer1", "layer2", "layer3")
    assert group_taps(build("torchvision:resnet18", 10)) == ("layer1", "layer2", "layer3", "layer4")
    assert group_taps(TinyNet(3)) == ()
    resnet = CifarResNet(1, 10, zero_padding, "shortcut", "linear").eval()
    assert [maps.shape[1] for maps in look(resnet, images, group_taps(resnet)).features] == [16, 32, 64]
    assert all(bool((maps >= 0).all()) for maps in look(resnet, images, group_taps(resnet)).features)


def test_taps_are_closed_whatever_happens() -> None:
    """After a look, after an error inside, and when a name is wrong; outside, nothing is kept."""
    module = build("cifar:resnet8a", 10)
    look(module, torch.zeros(2, 3, 8, 8), ("layer1", "relu"))
    assert hooks_of(module) == 0
    with pytest.raises(RuntimeError), tapped(module, ("layer1",)):
        module(torch.zeros(2, 4, 8, 8))
    assert hooks_of(module) == 0
    with pytest.raises(ModelError, match="no layer 'layer9'"):
        look(module, torch.zeros(2, 3, 8, 8), ("layer1", "layer9"))
    assert hooks_of(module) == 0
    module.spare = nn.ReLU()
    with pytest.raises(ModelError, match="'spare' took no part"):
        look(module, torch.zeros(2, 3, 8, 8), ("spare",))


# ---------------------------------------------------------------------------------------------- training


def noisy_data(count: int, seed: int) -> LabelledImages:
    """Three classes, each brighter in its own channel, under noise; the third one rare."""
    rng = np.random.default_rng(seed)
    labels = np.array([(0, 0, 0, 1, 1, 1, 0, 1, 2)[i % 9] for i in range(count)], dtype=np.int64)
    pixels = rng.integers(0, 200, (count, 16, 16, 3))
    pixels[np.arange(count), :, :, labels] += 25
    return LabelledImages(100 + np.arange(count), labels, pixels.astype(np.uint8), Path("/nowhere"), SIZE)


def normaliser() -> Normaliser:
    """On the CPU."""
    return Normaliser(SIZE, torch.device("cpu"))


def wide_teacher() -> nn.Module:
    """Two blocks a group, in eval mode."""
    torch.manual_seed(5)
    module = WideResNet(2, Widths(stem=8, groups=((8, 8), (12, 12), (16, 16))), 3, zero_padding)
    module.train()
    with torch.no_grad():
        for _ in range(5):
            module(normaliser()(noisy_data(40, 3).pixels))
        module.fc.weight.mul_(3)
    return module.eval()


def thin_network() -> Network:
    """One block a group, fewer channels."""
    torch.manual_seed(6)
    return thin_student("cifar:wrn28_10", 3, Widths(stem=6, groups=((4, 6), (5, 8), (6, 16))))


def tune(
    phase: Phase,
    training: LabelledImages,
    teacher: nn.Module | Teacher | None,
    *,
    network: Network | None = None,
    resume: Checkpoint | None = None,
    states: list[Checkpoint] | None = None,
    control: RecordingControl | None = None,
) -> tuple[Network, list[float]]:
    """The network after the phase, and the losses on the way."""
    network, control = network or thin_network(), control or RecordingControl()
    kept: list[Checkpoint] = [] if states is None else states
    fine_tune(
        network, phase, training, noisy_data(0, 2), normaliser(), resume=resume, save=kept.append, control=control,
        teacher=teacher,
    )  # fmt: skip
    return network, [float(line["loss"]) for line in control.said if "loss" in line]


def same_bits(one: Network, other: Network) -> bool:
    """Of all weights and statistics."""
    theirs = state_tensors(other.module)
    return all(torch.equal(tensor, theirs[name]) for name, tensor in state_tensors(one.module).items())


FREE = [PHASE, replace(PHASE, transfer="replay", distillation=1.0)]


@pytest.mark.parametrize("phase", FREE, ids=lambda phase: phase.transfer)
@pytest.mark.parametrize("kind", ["shuffled", "one class", "unknown"])
def test_without_labels_labels_change_no_bit(phase: Phase, kind: str) -> None:
    """Shuffled among images of classes of unlike sizes, all the same, or none at all: the same weights to the last bit."""
    training, teacher = noisy_data(20, 1), wide_teacher()
    labels = {
        "shuffled": np.random.default_rng(0).permutation(training.labels),
        "one class": np.full_like(training.labels, 2),
        "unknown": np.full_like(training.labels, -1),
    }[kind]
    assert not np.array_equal(labels, training.labels)
    one, losses = tune(phase, training, teacher)
    other, same = tune(phase, replace(training, labels=labels), teacher)
    assert losses == same
    assert same_bits(one, other)
    assert not same_bits(one, thin_network())


def test_with_labels_they_matter() -> None:
    """The check above would see it."""
    training, teacher = noisy_data(20, 1), wide_teacher()
    shuffled = replace(training, labels=np.random.default_rng(0).permutation(training.labels))
    for phase in (replace(PHASE, transfer=name, distillation=0.5) for name in ("hinton", "replay")):
        assert not same_bits(tune(phase, training, teacher)[0], tune(phase, shuffled, teacher)[0])


def test_a_label_free_epoch_shows_every_image_once() -> None:
    """No class is repeated for being rare; `without_labels` says how many steps that is."""
    training, teacher, asked = noisy_data(45, 1), wide_teacher(), list[Shown]()

    def ask(shown: Shown) -> Output:
        asked.append(shown)
        with torch.no_grad():
            return look(teacher, shown.images)

    steps = steps_per_epoch(without_labels(training), 8)
    assert steps == 6 != steps_per_epoch(training, 8)
    tune(replace(PHASE, steps=steps), training, ask)
    assert sorted(int(i) for shown in asked for i in shown.sample_ids) == list(range(100, 145))
    assert len({int(draw) for shown in asked for draw in shown.draws}) == 45
    assert all(len(shown.images) == len(shown.sample_ids) == len(shown.draws) for shown in asked)


def test_one_step_is_the_loss_of_what_both_make_of_the_batch() -> None:
    """The first loss by hand, from the student in training mode and the teacher in eval mode."""
    training, teacher, student = noisy_data(8, 1), wide_teacher(), thin_network()
    _, (loss,) = tune(replace(PHASE, steps=1, augment="none"), training, teacher)
    images = normaliser()(training.pixels)
    mine, theirs = (look(module, images, group_taps(module)) for module in (student.module.train(), teacher))
    assert loss == pytest.approx(label_free_by_hand(mine, theirs), abs=1e-4)  # said with four decimals


def test_a_label_free_student_comes_closer_to_its_teacher() -> None:
    """In features and logits; the teacher is left as it was, and no layer listens any more."""
    training, teacher = noisy_data(40, 1), wide_teacher()
    before = state_tensors(teacher)
    network, losses = tune(replace(PHASE, steps=60), training, teacher)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_tensors(teacher).items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert hooks_of(network.module) == hooks_of(teacher) == 0


@pytest.mark.parametrize(
    "phase", [*FREE, replace(PHASE, transfer="hinton", distillation=0.5)], ids=lambda phase: phase.transfer
)
def test_a_stop_and_a_resume_change_no_bit(phase: Phase, tmp_path: Path) -> None:
    """Stopped after the third of seven steps, written, rebuilt from the file, and gone on with."""
    training, teacher, states = noisy_data(20, 1), wide_teacher(), list[Checkpoint]()
    whole, _ = tune(phase, training, teacher)
    with pytest.raises(StopAskedError):
        tune(phase, training, teacher, states=states, control=RecordingControl(stop_after=[2]))
    save_checkpoint(tmp_path, states[-1], "spec")
    found = load_checkpoint(tmp_path, "spec")
    assert found is not None
    assert 0 < found.step < phase.steps
    resumed, _ = tune(
        phase, training, wide_teacher(), network=rebuild(found.description, found.network), resume=found
    )  # fmt: skip
    assert same_bits(whole, resumed)


def test_stored_logits_teach_like_the_teacher_that_said_them() -> None:
    """Bit for bit where images are not changed, for then it would say the same again."""
    training, teacher = noisy_data(20, 1), wide_teacher()
    phase = replace(PHASE, transfer="replay", distillation=1.0, augment="none", batch_size=20)
    with torch.no_grad():
        said = teacher(normaliser()(training.pixels)).numpy()
    shuffled = np.random.default_rng(1).permutation(20)
    stored = StoredLogits(training.sample_ids[shuffled], said[shuffled])
    (one, losses), (other, same) = tune(phase, training, teacher), tune(phase, training, stored)
    assert losses == pytest.approx(same, abs=2e-4)
    for name, tensor in state_tensors(one.module).items():
        torch.testing.assert_close(state_tensors(other.module)[name], tensor, rtol=1e-3, atol=1e-4)
    with pytest.raises(UsageError, match="no logits are stored of sample 119"):
        tune(phase, training, StoredLogits(training.sample_ids[:19], said[:19]))


def test_nesterov_momentum_looks_ahead() -> None:
    """Two steps of it by torch's own optimiser on the same gradients are two steps of the loop."""
    training, teacher = noisy_data(8, 1), wide_teacher()
    phase = replace(PHASE, steps=2, augment="none", schedule="constant", transfer="replay", distillation=1.0)
    network, _ = tune(phase, training, teacher)
    plain, _ = tune(replace(phase, nesterov=False), training, teacher)
    module = thin_network().module.train()
    images, velocity = normaliser()(training.pixels), dict[str, torch.Tensor]()
    with torch.no_grad():
        said = teacher(images)
    for _ in range(2):
        module.zero_grad()
        (module(images) - said).square().mean().backward()
        for name, parameter in module.named_parameters():
            if parameter.grad is None:
                continue  # a zero-padded shortcut
            slope = parameter.grad + 5e-4 * parameter.detach()
            velocity[name] = 0.9 * velocity.get(name, torch.zeros_like(slope)) + slope
            parameter.data.sub_(0.05 * (slope + 0.9 * velocity[name]))
    got, other = state_tensors(network.module), state_tensors(plain.module)
    for name, tensor in module.named_parameters():
        torch.testing.assert_close(got[name], tensor.detach(), rtol=1e-3, atol=1e-5)
    assert not torch.allclose(other["fc.weight"], got["fc.weight"], rtol=1e-3, atol=1e-5)


def test_a_phase_without_what_it_needs_is_refused_before_a_step() -> None:
    """No teacher where there is nothing else to learn from; a name that is none; a teacher of other classes."""
    training = noisy_data(20, 1)
    with pytest.raises(UsageError, match="nothing to learn from but a teacher"):
        tune(PHASE, training, None)
    with pytest.raises(UsageError, match="no transfer 'osmosis'"):
        tune(replace(PHASE, transfer="osmosis"), training, wide_teacher())
    torch.manual_seed(0)
    other = WideResNet(1, Widths(stem=8, groups=((8, 8), (12, 12), (16, 16))), 5, zero_padding).eval()
    with pytest.raises(ModelError, match=r"teacher answers \[8, 5\]"):
        tune(PHASE, training, other)
    narrow = WideResNet(1, Widths(stem=8, groups=((8, 8), (8, 8), (8, 8))), 3, zero_padding).eval()
    network = thin_network()
    before = state_tensors(network.module)["fc.weight"]
    with pytest.raises(ModelError, match="only 8 in the teacher"):
        tune(PHASE, training, narrow, network=network)
    assert torch.equal(state_tensors(network.module)["fc.weight"], before)
