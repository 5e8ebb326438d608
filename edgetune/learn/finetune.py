"""Fine-tuning: one loop, in steps that can be stopped and resumed to the same weights, bit for bit on the CPU."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edgetune.errors import LossNotFiniteError, UsageError
from edgetune.learn.checkpoint import Checkpoint
from edgetune.learn.control import Control, StopAskedError
from edgetune.learn.data import EpochPlan, Integers, LabelledImages, Normaliser, augment, plan_epoch, step_seed
from edgetune.learn.layout import computing_in
from edgetune.learn.mixtures import Mixtures
from edgetune.learn.network import Network, load_strictly, state_tensors
from edgetune.learn.optimiser import Sgd
from edgetune.learn.partial import Part
from edgetune.learn.transfer import Output, Shown, Teacher, TransferLoss, answered, group_taps, look, make_transfer
from edgetune.serve.engine import return_free_memory

# Least share that a batch has in a batch norm's running statistics while it is trained. Some networks come with 0.01, for
# schedules of many thousand steps; after a short fine-tuning theirs are still those of other images: an EfficientNet-Lite0
# of 75 % stood at 48.
_STATISTICS_SHARE = 0.1
_WARMUP_SHARE = 0.05  # of the steps: the momentum of a freshly cut network is not yet of any use


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One run of the loop, as plain numbers."""

    name: str  # "tune" or "retrain"; part of the seed
    steps: int
    batch_size: int
    learning_rate: float
    schedule: str  # "constant", "cosine" towards zero after a short rise, or "steps"
    milestones: tuple[float, ...] = ()  # of "steps": shares of the phase after which the rate is multiplied by `decay`
    decay: float = 0.1
    momentum: float
    nesterov: bool = False
    weight_decay: float
    augment: str
    views: int | None = None  # see `data.plan_epoch`
    checkpoint_steps: int
    seed: int
    round_id: int
    dtype: str = "float32"  # "bfloat16": convolutions compute in it, the weights stay float32
    transfer: str = "hinton"  # how to learn from a teacher, see `transfer.make_transfer`
    distillation: float = 0.0  # 0..1, the teacher's share of the loss; "label_free" has no other part
    temperature: float = 2.0  # of "hinton"
    accumulation: int = 1  # a step's images go through in so many parts, one after another; a batch norm sees one part


# logits [B, C], labels int64 [B], sample ids [B] -> a scalar
LabelLoss = Callable[[torch.Tensor, torch.Tensor, Integers], torch.Tensor]


def never(_accuracies: Sequence[float]) -> bool:
    """No phase is over before its last step."""
    return False


def steps_per_epoch(data: LabelledImages, batch_size: int) -> int:
    """How many batches an epoch has; the same for every epoch."""
    return len(plan_epoch(data, seed=0, round_id=0, phase="", epoch=0, batch_size=batch_size).edges) - 1


def without_labels(data: LabelledImages) -> LabelledImages:
    """The same images as if they were all of one class: so they are planned where labels must not matter."""
    return replace(data, labels=np.zeros_like(data.labels))


def fine_tune(
    network: Network,
    phase: Phase,
    training: LabelledImages,
    validation: LabelledImages,
    normaliser: Normaliser,
    *,
    resume: Checkpoint | None,
    save: Callable[[Checkpoint], None],
    control: Control,
    teacher: nn.Module | Teacher | None = None,
    is_enough: Callable[[Sequence[float]], bool] = never,
    by_labels: LabelLoss | None = None,
    part: Part | None = None,
    mixtures: Mixtures | None = None,
) -> tuple[float, float] | None:
    """
    Train for `phase.steps` steps of SGD with momentum; afterwards the network has the weights of its best epoch.

    The best epoch is the one with the highest validation top-1, then the lowest loss; without validation samples it
    is the last one. A label-free transfer does not look at the labels of `training` at all, which may be anything: no
    class is repeated for being rare, and an epoch has the steps of `without_labels(training)`. Those of `validation`, if
    there are any, are told to `is_enough` and choose nothing: the weights are the last ones.

    Args:
        network: in place; on the device of `normaliser`.
        phase: what to do.
        training: what is learnt from.
        validation: what chooses the best epoch; may be empty.
        normaliser: uint8 images to the network's input.
        resume: the checkpoint of this phase that `network` was built from.
        save: writes a checkpoint.
        control: hears of progress, sets the pace, asks for a stop.
        teacher: as many outputs; asked once a step when the phase gives it a share. A module is in eval mode and sees
            the network's own input; anything else is asked by sample.
        by_labels: the loss without the teacher's share; None: the cross-entropy.
        mixtures: come in the place of a part of each batch, where the loss looks at no label and images are shown as such.
        part: all that is trained, see `Part.trained_alone`; None: the whole network. Where it keeps latents, images are shown
            as they are, and what a teacher is shown are the latents: only one that has its answers in store can be asked.
        is_enough: after each epoch takes the validation top-1 of all so far; True ends the phase. Not remembered over a resume.

    Returns:
        Validation top-1 and -loss of the epoch whose weights were taken; None without validation samples.

    Raises:
        LossNotFiniteError: the loss is NaN or infinite.
        ModelError: what is to be transferred does not fit the network.
        UsageError: the transfer is unknown, or needs a teacher and there is none.
        StopAskedError: a stop was asked for; the checkpoint is written.
    """
    run = _Run(network, phase, resume, teacher, by_labels=by_labels, part=part)
    if run.is_label_free:
        training = without_labels(training)
    accuracies: list[float] = []
    epoch_steps = steps_per_epoch(training, phase.batch_size)
    plan: EpochPlan | None = None
    while run.step < phase.steps:
        began_s = time.monotonic()
        epoch, index = divmod(run.step, epoch_steps)
        if plan is None or index == 0:
            plan = plan_epoch(
                training,
                seed=phase.seed,
                round_id=phase.round_id,
                phase=phase.name,
                epoch=epoch,
                batch_size=phase.batch_size,
                views=phase.views,
            )
        batch = slice(plan.edges[index], plan.edges[index + 1])
        positions, draws, said = plan.positions[batch], plan.draws[batch], None
        if part is not None and part.kept is not None:
            images = part.kept.batch(positions)
        else:
            pixels = augment(training.images(positions), draws, phase.augment)
            if mixtures is not None and run.is_label_free:
                pixels, said = mixtures(pixels, draws)
            images = normaliser(pixels)
        shown = Shown(images=images, sample_ids=training.sample_ids[positions], draws=draws, said=said)
        loss = run.train_step(shown, normaliser.labels(training.labels[positions]))
        is_over = False
        if run.step % epoch_steps == 0 or run.step == phase.steps:
            accuracies += run.judge(validation, normaliser, control)
            is_over = is_enough(accuracies)  # before the checkpoint: a run that goes on from there is not told again
        worked_s = time.monotonic() - began_s
        control.progress(
            step=run.step,
            steps=phase.steps,
            epoch=epoch,
            loss=round(loss, 4),
            samples_per_s=round(len(images) / max(worked_s, 1e-9), 1),
        )
        must_leave = control.is_stop_asked  # read once: a signal that comes later waits for the next step
        if must_leave or (run.step % phase.checkpoint_steps == 0 and run.step < phase.steps):
            save(run.checkpoint())
        if must_leave:
            raise StopAskedError
        if is_over:
            break
        control.count_step(worked_s)
        control.pace()
    run.take_best()
    return run.best_score


@contextlib.contextmanager
def _quick_statistics(module: nn.Module) -> Iterator[None]:
    """Let running statistics follow for a while; None stays the mean over everything."""
    norms = [layer for layer in module.modules() if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))]
    given = [layer.momentum for layer in norms]
    for layer in norms:
        if layer.momentum is not None:
            layer.momentum = max(layer.momentum, _STATISTICS_SHARE)
    try:
        yield
    finally:
        for layer, momentum in zip(norms, given, strict=True):
            layer.momentum = momentum


class _Run:
    """The state of one phase between two steps: all of it goes into the checkpoint."""

    def __init__(
        self,
        network: Network,
        phase: Phase,
        resume: Checkpoint | None,
        teacher: nn.Module | Teacher | None = None,
        *,
        by_labels: LabelLoss | None = None,
        part: Part | None = None,
    ) -> None:
        self._network = network
        self._phase = phase
        self._part = part
        self._by_labels = by_labels
        assert by_labels is None or phase.transfer == "hinton", (
            "no other transfer has a part that is the teacher's alone"
        )
        is_shared = by_labels is not None and phase.distillation > 0
        self._lesson = _lesson(replace(phase, distillation=1.0) if is_shared else phase, teacher)
        self._best: dict[str, torch.Tensor] = {}
        self.best_score: tuple[float, float] | None = None
        self.step = 0
        self._parameters = {n: p for n, p in network.module.named_parameters() if p.requires_grad}
        self._optimiser = Sgd(
            self._parameters,
            learning_rate=phase.learning_rate,
            momentum=phase.momentum,
            nesterov=phase.nesterov,
            weight_decay=phase.weight_decay,
        )
        if resume is not None:
            self._best, self.best_score, self.step = dict(resume.best), resume.best_score, resume.step
            self._optimiser.restore(resume.momentum)

    @property
    def is_label_free(self) -> bool:
        """Whether the labels that are trained on do not matter."""
        return self._lesson is not None and self._lesson[0].is_label_free

    def train_step(self, shown: Shown, labels: torch.Tensor) -> float:
        """One step; labels int64 [B]. Returns the loss before it."""
        phase = self._phase
        torch.manual_seed(step_seed(phase.seed, phase.round_id, sum(phase.name.encode()), self.step))
        self._optimiser.learning_rate = learning_rate(phase, self.step)
        self._network.module.train()
        if self._part is not None:
            self._part.rest()
        self._optimiser.forget_gradients()
        value = 0.0
        for part, mine in _parts(shown, labels, phase.accumulation):
            if phase.accumulation > 1:  # memory is short: what a part leaves in pieces is not to be added to the next
                return_free_memory()
            with _quick_statistics(self._network.module):
                loss = self._loss(part, mine) * (len(mine) / len(labels))
            value += loss.item()
            if not math.isfinite(value):
                raise LossNotFiniteError(f"the loss became {value} at step {self.step} of {phase.name}")
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._optimiser.step()
        self.step += 1
        return value

    def _loss(self, shown: Shown, labels: torch.Tensor) -> torch.Tensor:
        """Of what the network makes of a batch: by the labels, or by what a teacher says of it."""
        module = self._network.module
        wants_features = self._lesson is not None and self._lesson[0].wants_features
        with computing_in(self._phase.dtype, shown.images.device):
            if self._part is not None and self._part.kept is not None:
                mine = Output(logits=self._part.logits(shown.images).float())
            else:
                mine = look(module, shown.images, group_taps(module) if wants_features else ())
        own = None if self._by_labels is None else self._by_labels(mine.logits, labels, shown.sample_ids)
        if self._lesson is None:
            return functional.cross_entropy(mine.logits, labels) if own is None else own
        transfer, teacher = self._lesson
        word = transfer(mine, answered(teacher, shown), labels)
        share = self._phase.distillation
        return word if own is None else (1 - share) * own + share * word

    def judge(self, validation: LabelledImages, normaliser: Normaliser, control: Control) -> list[float]:
        """Keep the weights if they are the best so far; the top-1, if there is anything to judge on."""
        if len(validation) == 0:
            return []
        each = math.ceil(self._phase.batch_size / self._phase.accumulation)  # what a step holds at once, and no more
        score = validation_score(self._network.module, validation, normaliser, each, control)
        if self.is_label_free:  # labels choose nothing either
            self.best_score = score
        elif self.best_score is None or score > self.best_score:
            self._best, self.best_score = state_tensors(self._network.module), score
        return [score[0]]

    def take_best(self) -> None:
        """Go back to the weights of the best epoch."""
        if self._best:
            load_strictly(self._network.module, self._best)

    def checkpoint(self) -> Checkpoint:
        """All of it."""
        return Checkpoint(
            phase=self._phase.name,
            description=self._network.describe(),
            network=state_tensors(self._network.module),
            momentum=self._optimiser.momentum_buffers,
            best=self._best,
            best_score=self.best_score,
            step=self.step,
        )


def _parts(shown: Shown, labels: torch.Tensor, count: int) -> Iterator[tuple[Shown, torch.Tensor]]:
    """A step's images in equal parts, none of a single image: a batch norm has no variance of that."""
    count = max(1, min(count, len(labels) // 2))
    if count == 1:
        yield shown, labels
        return
    first = (
        0 if shown.said is None else len(shown.said.logits)
    )  # of another kind than the others: some of it in each part
    kinds = (np.arange(first), np.arange(first, len(labels)))
    for places in zip(*(np.array_split(rows, count) for rows in kinds), strict=True):
        own = np.concatenate(places)
        yield shown.part(own), labels[torch.from_numpy(own).to(labels.device)]


def _lesson(phase: Phase, teacher: nn.Module | Teacher | None) -> tuple[TransferLoss, Teacher] | None:
    """How the phase learns from whom; None where it learns from labels alone."""
    transfer = make_transfer(phase.transfer, share=phase.distillation, temperature=phase.temperature)
    if teacher is None and transfer is not None and transfer.is_label_free:
        raise UsageError("without labels there is nothing to learn from but a teacher, and there is none")
    if teacher is None or transfer is None:
        return None
    if not isinstance(teacher, nn.Module):
        return transfer, teacher
    module, taps = teacher, group_taps(teacher) if transfer.wants_features else ()

    def ask(shown: Shown) -> Output:
        with torch.no_grad(), computing_in(phase.dtype, shown.images.device):
            return look(module, shown.images, taps)

    return transfer, ask


def learning_rate(phase: Phase, step: int) -> float:
    """Constant, in steps, or a short linear rise and a cosine to a hundredth."""
    if phase.schedule == "constant":
        return phase.learning_rate
    if phase.schedule == "steps":
        return phase.learning_rate * phase.decay ** sum(step >= share * phase.steps for share in phase.milestones)
    warmup = int(phase.steps * _WARMUP_SHARE)
    if step < warmup:
        return phase.learning_rate * (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1, phase.steps - warmup)
    return phase.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


def validation_score(
    module: nn.Module, data: LabelledImages, normaliser: Normaliser, batch_size: int, control: Control
) -> tuple[float, float]:
    """(top-1, -mean cross-entropy); larger is better. NaN counts as the worst loss."""
    module.eval()
    correct, loss = 0, 0.0
    with torch.no_grad():
        for images, labels in data.in_order(batch_size):
            logits, target = module(normaliser(images)), normaliser.labels(labels)
            correct += int((logits.argmax(dim=1) == target).sum())
            loss += float(functional.cross_entropy(logits, target, reduction="sum"))
            control.alive()
    mean = loss / len(data)
    return correct / len(data), -mean if math.isfinite(mean) else -1e30
