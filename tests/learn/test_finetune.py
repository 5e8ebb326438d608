"""The training loop: a pinned curve, an independent loop beside it, and batches that batch norm can bear."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))

from conftest_site import RecordingControl
from tiny_nets import TinyNet, steady

from edgetune.errors import LossNotFiniteError
from edgetune.learn.checkpoint import Checkpoint
from edgetune.learn.data import LabelledImages, Normaliser, plan_epoch
from edgetune.learn.finetune import Phase, fine_tune, learning_rate, steps_per_epoch, validation_score
from edgetune.learn.network import Network, state_tensors
from edgetune.types import Preprocess

SIZE = Preprocess(height=8, width=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
PHASE = Phase(
    name="retrain", steps=18, batch_size=8, learning_rate=0.05, schedule="cosine", momentum=0.9, weight_decay=5e-4,
    augment="none", checkpoint_steps=1000, seed=0, round_id=1,
)  # fmt: skip
# Losses of PHASE on torch 2.13, x86-64, one thread. A change of the loop that is not meant to change training leaves
# them; one that is meant to replaces them.
PINNED = [
    1.3377, 1.1923, 1.1598, 1.1534, 1.1488, 1.2830, 0.8912, 0.9450, 1.0111,
    0.9766, 0.8886, 1.0956, 0.8274, 0.7513, 0.8348, 0.8839, 0.7048, 0.7261,
]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noisy_data(count: int, seed: int) -> LabelledImages:
    """Three classes, each brighter in its own channel, under noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = rng.integers(0, 200, (count, 8, 8, 3))
    pixels[np.arange(count), :, :, labels] += 25
    return LabelledImages(np.arange(count), labels, pixels.astype(np.uint8), Path("/nowhere"), SIZE)


def tiny_network(classes: int = 3) -> Network:
    """Weights from numpy, and no dropout: the same on every torch and every processor."""
    module = steady(classes)
    rng = np.random.default_rng(11)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                bound = math.sqrt(3.0 / parameter[0].numel())
                parameter.copy_(torch.from_numpy(rng.uniform(-bound, bound, tuple(parameter.shape))))
        nn.init.zeros_(module.head.bias)
    return Network(module, "tiny_nets:steady", classes, "head")


def normaliser() -> Normaliser:
    """Of the tiny images, on the CPU."""
    return Normaliser(SIZE, torch.device("cpu"))


def tune(network: Network, phase: Phase, training: LabelledImages, validation: LabelledImages) -> list[float]:
    """Run the loop; the loss of every step, to four decimals."""
    control = RecordingControl()
    fine_tune(
        network, phase, training, validation, normaliser(), resume=None, save=lambda _: None, control=control
    )  # fmt: skip
    return [float(line["loss"]) for line in control.said if "loss" in line]


def test_the_loss_curve_of_a_tiny_run_is_the_pinned_one() -> None:
    """Eighteen steps over three epochs, every loss within 1e-4."""
    losses = tune(tiny_network(), PHASE, noisy_data(46, 1), noisy_data(0, 2))
    assert losses == pytest.approx(PINNED, rel=1e-4, abs=1e-4)  # abs: the losses are said with four decimals
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


COSINE = [0.05 * (0.01 + 0.99 * (1 + math.cos(math.pi * step / 18)) / 2) for step in range(18)]  # 5 %: no warm-up
STEPS = [0.05] * 9 + [0.005] * 5 + [0.0005] * 4  # a half of 18 is 9, three quarters are 13.5


@pytest.mark.parametrize(
    ("schedule", "milestones", "rates"),
    [("cosine", (), COSINE), ("steps", (0.5, 0.75), STEPS), ("steps", (), [0.05] * 18), ("constant", (), [0.05] * 18)],
)
def test_training_is_sgd_with_momentum_decay_and_the_schedules_rate(
    schedule: str, milestones: tuple[float, ...], rates: list[float]
) -> None:
    """A loop written from the formulas, with an update in plain tensors, ends with the same weights."""
    training = noisy_data(46, 1)
    network = tiny_network()
    module = copy.deepcopy(network.module).train()
    tune(network, replace(PHASE, schedule=schedule, milestones=milestones), training, noisy_data(0, 2))
    velocity = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for step, rate in enumerate(rates):
        epoch, index = divmod(step, 6)
        plan = plan_epoch(training, seed=0, round_id=1, phase="retrain", epoch=epoch, batch_size=8)
        assert len(plan.edges) == 7
        chosen = plan.positions[plan.edges[index] : plan.edges[index + 1]]
        images = (torch.from_numpy(training.pixels[chosen]).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
        module.zero_grad()
        functional.cross_entropy(module(images), torch.from_numpy(training.labels[chosen])).backward()
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                velocity[name] = 0.9 * velocity[name] + parameter.grad + 5e-4 * parameter
                parameter.sub_(rate * velocity[name])
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(network.module.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("milestones", "falls_at"),
    [((0.5, 0.75), [100, 150]), ((0.75, 0.5), [100, 150]), ((0.25, 0.5, 0.625), [50, 100, 125]), ((0.0,), [0])],
)
def test_the_rate_falls_to_a_tenth_at_each_milestone(milestones: tuple[float, ...], falls_at: list[int]) -> None:
    """From that share of the phase's steps on, in any order, with no warm-up; nothing else changes it."""
    phase = replace(PHASE, steps=200, learning_rate=0.1, schedule="steps", milestones=milestones)
    expected = [0.1 / 10 ** len([at for at in falls_at if step >= at]) for step in range(200)]
    assert [learning_rate(phase, step) for step in range(200)] == pytest.approx(expected, rel=1e-9)


def test_the_weights_of_the_best_epoch_are_kept() -> None:
    """Validation that gets worse with every epoch: what is left is the network after the first."""
    training, validation = noisy_data(46, 1), noisy_data(30, 2)
    against = replace(validation, labels=(validation.labels + 1) % 3)  # what is learnt is wrong here
    network, scores = tiny_network(), []
    steps = steps_per_epoch(training, 8)

    def save(state: Checkpoint) -> None:
        other = tiny_network()
        other.module.load_state_dict(dict(state.network))
        scores.append(validation_score(other.module, against, normaliser(), 8, RecordingControl()))

    phase = replace(PHASE, steps=6 * steps, learning_rate=0.1, checkpoint_steps=steps)
    fine_tune(network, phase, training, against, normaliser(), resume=None, save=save, control=RecordingControl())
    got = validation_score(network.module, against, normaliser(), 8, RecordingControl())
    assert got == scores[0] == max(scores)
    assert scores[-1] < scores[0]


class PooledNorm(nn.Module):
    """Batch norm after pooling: one value for each image and channel, so a batch of one cannot be normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images -> logits."""
        return self.head(self.norm(self.stem(x).mean(dim=(2, 3), keepdim=True)).flatten(1))


@pytest.mark.parametrize(("count", "batch_size"), [(17, 8), (9, 8), (5, 2), (3, 2), (33, 32), (2, 64)])
def test_a_last_batch_of_one_does_not_meet_batch_norm(count: int, batch_size: int) -> None:
    """One sample more than whole batches is trained with the batch before it."""
    module = PooledNorm().train()
    with pytest.raises(ValueError, match="more than 1 value"):
        module(torch.zeros(1, 3, 8, 8))
    training = noisy_data(count, 1)
    steps = 2 * steps_per_epoch(training, batch_size)
    phase = replace(PHASE, steps=steps, batch_size=batch_size, learning_rate=0.01)
    # validation has a last batch of one too: in eval mode that is no trouble
    losses = tune(Network(module, "test:pooled", 3, "head"), phase, training, noisy_data(batch_size + 1, 2))
    assert len(losses) == steps
    assert all(math.isfinite(loss) for loss in losses)
    assert all(tensor.isfinite().all() for tensor in state_tensors(module).values())


def test_a_loss_that_is_not_finite_ends_the_phase_before_the_weights_are_touched() -> None:
    """The step that fails changes nothing, and says which it was."""
    network = tiny_network()
    with torch.no_grad():
        network.module.get_submodule("head").weight[0, 0] = float("inf")
    before = [parameter.detach().clone() for parameter in network.module.parameters()]
    with pytest.raises(LossNotFiniteError, match="step 0 of retrain"):
        tune(network, PHASE, noisy_data(20, 1), noisy_data(0, 2))
    assert all(torch.equal(a, b) for a, b in zip(before, network.module.parameters(), strict=True))


def teacher_network() -> nn.Module:
    """Of the same architecture with other weights and statistics, in eval mode."""
    torch.manual_seed(5)
    module = TinyNet(3)
    module.head.weight.data.mul_(3)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 2.0)
    return module.eval()


def taught(phase: Phase, training: LabelledImages, teacher: nn.Module | None) -> tuple[Network, list[float]]:
    """The network after the phase, and what was said of every step's loss."""
    network, control = tiny_network(), RecordingControl()
    fine_tune(
        network, phase, training, noisy_data(0, 2), normaliser(), resume=None, save=lambda _: None, control=control,
        teacher=teacher,
    )  # fmt: skip
    return network, [float(line["loss"]) for line in control.said if "loss" in line]


def softened(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax of logits [B, C] over a temperature, in plain numpy."""
    powers = np.exp(logits / temperature - (logits / temperature).max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("weight", "temperature"), [(0.3, 1.0), (0.5, 2.0), (0.5, 5.0), (1.0, 3.0)])
def test_one_step_of_distillation_is_hintons_loss_and_its_gradient(weight: float, temperature: float) -> None:
    """The loss by numpy; the head's gradient by hand: T/B (softmax(z/T) - softmax(t/T)) beside the cross-entropy's."""
    training, teacher, start = noisy_data(12, 1), teacher_network(), tiny_network().module.train()
    phase = replace(
        PHASE, steps=1, batch_size=12, schedule="constant", momentum=0.0, weight_decay=0.0, distillation=weight,
        temperature=temperature,
    )  # fmt: skip
    network, (loss,) = taught(phase, training, teacher)
    plan = plan_epoch(training, seed=0, round_id=1, phase="retrain", epoch=0, batch_size=12)
    labels = training.labels[plan.positions]
    images = (torch.from_numpy(training.pixels[plan.positions]).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    features: list[torch.Tensor] = []
    hook = start.head.register_forward_hook(lambda _module, inputs, _output: features.append(inputs[0]))
    with torch.no_grad():
        z, t = start(images).double().numpy(), teacher(images).double().numpy()
    hook.remove()
    hard, mine, theirs = softened(z, 1.0), softened(z, temperature), softened(t, temperature)
    wrong = [i for i in range(12) if t[i].argmax() != labels[i]]
    assert 0 < len(wrong) < 12, "the teacher is right on some and wrong on others"
    for i in wrong:  # its word is put right
        top, label = t[i].argmax(), labels[i]
        theirs[i, top], theirs[i, label] = theirs[i, label], theirs[i, top]
    entropy = -np.log(hard[np.arange(12), labels]).mean()
    divergence = (theirs * (np.log(theirs) - np.log(mine))).sum(axis=1).mean()
    assert loss == pytest.approx((1 - weight) * entropy + weight * temperature**2 * divergence, abs=1e-4)
    assert weight * temperature**2 * divergence > 0.01, "the teacher says something else"
    slope = (1 - weight) * (hard - np.eye(3)[labels]) / 12 + weight * temperature * (mine - theirs) / 12  # [B, C]
    expected = start.head.weight.detach().double().numpy() - 0.05 * slope.T @ features[0].double().numpy()
    got = network.module.get_submodule("head").weight.detach().double().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    bias = start.head.bias.detach().double().numpy() - 0.05 * slope.sum(axis=0)
    np.testing.assert_allclose(
        network.module.get_submodule("head").bias.detach().double().numpy(), bias, rtol=1e-4, atol=1e-6
    )


def test_a_teacher_without_a_share_of_the_loss_changes_no_bit() -> None:
    """Dropout and all: whether it is given or not."""
    without, losses = taught(PHASE, noisy_data(46, 1), None)
    beside, same = taught(replace(PHASE, distillation=0.0), noisy_data(46, 1), teacher_network())
    assert losses == same
    assert all(torch.equal(t, state_tensors(beside.module)[n]) for n, t in state_tensors(without.module).items())


class Sure(nn.Module):
    """Says of each image that it is so many classes beside its label, and hardly anything else."""

    def __init__(self, training: LabelledImages, beside: int) -> None:
        super().__init__()
        images = normaliser()(training.pixels)
        self.known = {image.numpy().tobytes(): int(label) for image, label in zip(images, training.labels, strict=True)}
        self.beside = beside

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] -> logits [N, 3]."""
        said = [(self.known[image.numpy().tobytes()] + self.beside) % 3 for image in images]
        return 9 * functional.one_hot(torch.tensor(said), 3).float()


def test_a_teacher_that_is_wrong_teaches_what_it_would_if_it_were_right() -> None:
    """After a change of the camera the factory model may be wrong everywhere: the labels stay what is learnt."""
    training = noisy_data(46, 1)
    phase = replace(PHASE, augment="none", distillation=0.9)
    right, _ = taught(phase, training, Sure(training, 0))
    wrong, _ = taught(phase, training, Sure(training, 1))
    for name, tensor in state_tensors(right.module).items():
        torch.testing.assert_close(state_tensors(wrong.module)[name], tensor)


def test_the_teacher_is_not_changed() -> None:
    """No weight, no statistic of its batch norms, no gradient; it stays in eval mode, and is asked once a step."""
    teacher = teacher_network()
    before, asked = state_tensors(teacher), []
    teacher.register_forward_hook(lambda module, _inputs, output: asked.append((module.training, output.requires_grad)))
    taught(replace(PHASE, distillation=0.5), noisy_data(46, 1), teacher)
    assert asked == [(False, False)] * PHASE.steps
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_tensors(teacher).items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_enough_ends_a_phase_at_an_epochs_end_with_the_best_epochs_weights() -> None:
    """Told each epoch's accuracy; after the third the phase is over, and the network is the one of the best epoch."""
    training, validation = noisy_data(46, 1), noisy_data(30, 2)
    against = replace(validation, labels=(validation.labels + 1) % 3)  # every epoch is worse than the one before
    network, states = tiny_network(), list[Checkpoint]()
    told: list[list[float]] = []

    def is_enough(accuracies: object) -> bool:
        told.append(list(accuracies))  # type: ignore[call-overload]  # a sequence
        return len(told[-1]) == 3

    phase = replace(PHASE, steps=60, learning_rate=0.1, schedule="constant", checkpoint_steps=1)
    control = RecordingControl()
    score = fine_tune(
        network, phase, training, against, normaliser(), resume=None, save=states.append, control=control,
        is_enough=is_enough,
    )  # fmt: skip
    scores = []
    for state in states:
        if state.step % 6 == 0:
            other = tiny_network()
            other.module.load_state_dict(dict(state.network))
            scores.append(validation_score(other.module, against, normaliser(), 8, RecordingControl()))
    assert [state.step for state in states] == list(range(1, 19)), "three epochs of six steps"
    assert told[-1] == [top1 for top1, _ in scores]
    assert score == scores[0] == max(scores) > scores[-1]
    best = next(state for state in states if state.step == 6)
    assert all(torch.equal(tensor, best.network[name]) for name, tensor in state_tensors(network.module).items())


def test_whether_it_is_enough_is_asked_once_an_epoch() -> None:
    """A question that looks at a clock cannot end a phase in the middle of an epoch, before anything was judged."""
    told: list[int] = []
    phase = replace(PHASE, steps=15)
    fine_tune(
        tiny_network(), phase, noisy_data(46, 1), noisy_data(9, 2), normaliser(), resume=None, save=lambda _: None,
        control=RecordingControl(), is_enough=lambda accuracies: told.append(len(accuracies)) is not None,
    )  # fmt: skip
    assert told == [1, 2, 3], "after 6, 12 and 15 steps"


def test_what_a_phase_returns_is_the_best_epochs_score_or_nothing() -> None:
    """Without validation samples, or without a step, there is none."""
    training, validation = noisy_data(46, 1), noisy_data(30, 2)
    network = tiny_network()

    def score_of(phase: Phase, judged_by: LabelledImages) -> tuple[float, float] | None:
        return fine_tune(
            network, phase, training, judged_by, normaliser(), resume=None, save=lambda _: None,
            control=RecordingControl(),
        )  # fmt: skip

    assert score_of(PHASE, noisy_data(0, 2)) is None
    assert score_of(replace(PHASE, steps=0), validation) is None
    score = score_of(PHASE, validation)
    assert score == validation_score(network.module, validation, normaliser(), 8, RecordingControl())


def test_running_statistics_follow_a_short_training_and_the_networks_own_share_comes_back() -> None:
    """A batch norm made for long schedules would be judged by the statistics of other images."""
    network = tiny_network()
    norms = [layer for layer in network.module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer, momentum in zip(norms, (0.001, 0.5, None), strict=False):
        layer.momentum = momentum
        layer.running_mean.fill_(100.0)
    fine_tune(
        network, replace(PHASE, steps=40), noisy_data(30, 1), noisy_data(0, 2), normaliser(), resume=None,
        save=lambda _: None, control=RecordingControl(),
    )  # fmt: skip
    assert [layer.momentum for layer in norms[:3]] == [0.001, 0.5, None]
    assert float(norms[0].running_mean.abs().max()) < 100 * 0.9**40 + 10, "a tenth from each of 40 batches"
