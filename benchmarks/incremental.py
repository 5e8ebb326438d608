"""
New classes in steps, with a small memory of the old ones: ways to learn them side by side. Resumable.

    python -m benchmarks.incremental --data DIR [--work DIR] [--data-set cifar10|cifar100] [--net NET] [--arms ...]
        [--buffers 200 500] [--seeds 0 1 2] [--images N] [--epochs N] [--batch N] [--judge test|validation] [--report]

CIFAR-10 in five steps of two classes, CIFAR-100 in ten steps of ten, in alphabetical order; one head over all classes, from
scratch, and no word at the test about the step that an image belongs to. Only a step's own images and the memory can be
learnt from. The arms, with the same epochs over the same batches of each step, the same shifts and mirroring:

    naive    fine-tuning on each step, no memory
    gdumb    a class-balanced memory; at the end the network learns from it alone, in as many steps (Prabhu et al. 2020)
    er       plain rehearsal: a batch of the memory beside each of the stream (Chaudhry et al. 2019)
    er_ace   the same, but the stream's part of the loss leaves the old classes out (Caccia et al. 2022)
    der++    logits of one batch of the memory and labels of another (Buzzega et al. 2020): half as many images again
    +head    er, er_ace and der++ once more, served with the head fitted again to the memory's features
    ours     er with a class-balanced memory, and on the same replayed batch the logits of the classes that were known when
             they were stored; what is served has its head fitted again to the memory's features
    joint    all classes at once, no steps: what there is to reach

SGD at a constant rate. The last 300 training images of each class never train: they chose what ours is (see WAYS), and
`--judge validation --rate R` tries other rates on them. The test images are asked at the end, all of them, and 150 of each
class after each step for the forgetting: the mean, over the steps but the last, of the best accuracy that a step's classes
had less the one at the end.

Every finished cell is a row of WORK/incremental.csv; a run that was stopped goes on where it was. `--report` prints the
tables and says what was not run. On CUDA where torch finds it; `--net resnet18 --epochs 50 --batch 32` is the schedule of the
published tables and wants one.

DIR holds cifar10_train.zip and cifar10_test.zip, or cifar100.zip, with entries train/<class>/<name> and test/...
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from benchmarks.cifar import PREPROCESS, Archive, read_archive
from benchmarks.incremental_report import ARMS, SEEDS, WITHOUT_MEMORY, Cell, report
from benchmarks.rows import fill_missing, read_rows, with_grid_options
from benchmarks.stage import machine, need, say
from edgetune.learn.data import Images, Integers, Normaliser, augment
from edgetune.learn.imprint import features_of, refit_head
from edgetune.learn.layout import arrange, training_device
from edgetune.learn.network import Network, new_network
from edgetune.learn.replay import (
    Floats,
    Memory,
    Remembered,
    der_pp_loss,
    er_ace_loss,
    logits_replay_loss,
    rehearsal_loss,
)
from edgetune.learn.vision import torchvision_models

STEPS = {"cifar10": 5, "cifar100": 10}
VALIDATED = 300  # of each class, the last ones of the archive
JUDGED_MOST = 150  # of each class, after each step
JUDGING_BATCH = 250
COPIES = 4  # of each remembered image when the head is fitted again
CLIP, CYCLES = 10.0, 8  # of GDumb's gradient norm, and of its rate
NETS = {"resnet18": "benchmarks.incremental:resnet18"}


@dataclass(frozen=True, kw_only=True)
class Way:
    """What an arm is."""

    rate: float
    loss: str = "rehearsal"  # | "er_ace" | "der++"; without anything replayed "rehearsal" is plain cross-entropy
    policy: str = ""  # of the memory; "": none
    draws: int = 0  # replayed batches beside each of the stream
    alpha: float = 0.0  # weight of the stored logits
    beta: float = 0.0  # weight of the replayed labels, of der++
    is_from_memory_alone: bool = False  # nothing is learnt while the stream lasts
    refits: bool = False  # whether what is served has its head fitted again to the memory


# Weights of der++ (those for a buffer of 500) and all of gdumb as published for CIFAR-10; 0.03 is der++'s and er_ace's
# published rate, and better than er's 0.1 here. Ours was chosen in single passes over 500 images a class, buffer 500, one
# seed, on 1,500 validation images (standard error 1.3): 43.5 % so, 29.9 with the head as it was trained, 42.6 without the
# stored logits; at rate 0.1 without them 39.3, with er_ace's loss 33.6, with that and the logits (alpha 0.3) 23.1, where
# learning went on with the refitted head 26.5, with averaged weights (an exponential mean, 0.99) 37.3. As they are: er with
# a balanced memory 30.1 (at 0.1: 25.4), er_ace at 0.1 28.7, der++ 24.1, or 42.3 with a refitted head.
WAYS = {
    "naive": Way(rate=0.03),
    "gdumb": Way(rate=0.05, policy="greedy", is_from_memory_alone=True),
    "er": Way(rate=0.03, policy="reservoir", draws=1),
    "er_ace": Way(rate=0.03, loss="er_ace", policy="reservoir", draws=1),
    "der++": Way(rate=0.03, loss="der++", policy="reservoir", draws=2, alpha=0.2, beta=0.5),
    "er+head": Way(rate=0.03, policy="reservoir", draws=1, refits=True),
    "er_ace+head": Way(rate=0.03, loss="er_ace", policy="reservoir", draws=1, refits=True),
    "der+++head": Way(rate=0.03, loss="der++", policy="reservoir", draws=2, alpha=0.2, beta=0.5, refits=True),
    "ours": Way(rate=0.03, policy="balanced", draws=1, alpha=0.2, refits=True),
    "joint": Way(rate=0.1),
}


@dataclass(frozen=True)
class Pool(Archive):
    """A data set, and what a step or a judge takes of it."""

    def stream(self, labels: Sequence[int], most: int | None) -> tuple[Images, Integers]:
        """What is learnt from: images [N, 32, 32, 3] of some classes and their labels [N]."""
        rows = slice(0, min(most or self.train.shape[1], self.train.shape[1] - VALIDATED))
        return self._flat(self.train[:, rows], labels)

    def judged(self, part: str, labels: Sequence[int], most: int | None = None) -> tuple[Images, Integers]:
        """The first `most` test or validation images of each of some classes."""
        pixels = self.test if part == "test" else self.train[:, -VALIDATED:]
        return self._flat(pixels[:, :most], labels)

    @staticmethod
    def _flat(pixels: Images, labels: Sequence[int]) -> tuple[Images, Integers]:
        chosen = pixels[list(labels)]
        return chosen.reshape(-1, *chosen.shape[2:]), np.repeat(np.array(labels, np.int64), chosen.shape[1])


def read_pool(data: Path, data_set: str, cache: Path) -> Pool:
    """See `read_archive`."""
    archive = read_archive(data, cache, data_set)
    return Pool(archive.classes, archive.train, archive.test)


def resnet18(num_classes: int) -> nn.Module:
    """torchvision's ResNet-18 with the stem of the published tables: 3x3 at stride 1, no pooling."""
    module: nn.Module = torchvision_models().resnet18(num_classes=num_classes)
    module.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    module.maxpool = nn.Identity()
    return module


class Learner:
    """A network that learns a stream, and its memory."""

    def __init__(self, way: Way, network: Network, *, buffer: int, batch: int, seed: int, device: torch.device) -> None:
        self.way, self._batch, self._device = way, batch, device
        self.network = network
        arrange(network.module, device, "contiguous")
        self._normaliser = Normaliser(PREPROCESS, device)
        self._rng = np.random.default_rng(seed)
        self._seen = torch.zeros(network.num_classes, dtype=torch.bool, device=device)
        self._optimiser = torch.optim.SGD(network.module.parameters(), lr=self.way.rate, foreach=False)
        self.trained_images = 0
        size = (PREPROCESS.height, PREPROCESS.width, 3)
        policy = self.way.policy
        self.memory = Memory(buffer, size, network.num_classes, policy=policy, seed=seed) if policy else None

    def learn(self, images: Images, labels: Integers, epochs: int) -> None:
        """One step: epochs over its images [N, H, W, 3] in an order of its own. The last one fills the memory."""
        for epoch in range(epochs):
            order = self._rng.permutation(len(labels))
            for start in range(0, len(order), self._batch):
                part = order[start : start + self._batch]
                self._learn_batch(images[part], labels[part], is_remembered=epoch == epochs - 1)

    def served(self) -> Network:
        """What answers after a step. A refitted head is a copy's: learning goes on with the one it had."""
        if not self.way.refits:
            return self.network
        served = copy.deepcopy(self.network)
        self._refit(served)
        return served

    def _refit(self, network: Network) -> None:
        """The head, on some changed copies of what is remembered."""
        assert self.memory is not None
        kept = self.memory.everything()
        copies = (self._changed(kept.images) for _ in range(COPIES))
        batches = (
            self._normaliser(images[at : at + JUDGING_BATCH])
            for images in copies
            for at in range(0, len(images), JUDGING_BATCH)
        )
        refit_head(network, features_of(network, batches), self._normaliser.labels(np.tile(kept.labels, COPIES)))

    def _learn_batch(self, images: Images, labels: Integers, *, is_remembered: bool) -> None:
        said = None
        if not self.way.is_from_memory_alone:
            said = self._train(images, labels)
        if self.memory is not None and is_remembered:
            self.memory.offer(images, labels, said)

    def _train(self, images: Images, labels: Integers) -> Floats:
        """A step of SGD; the logits [B, C] before it, NaN for the classes that were not seen yet."""
        self.network.module.train()
        self._seen[torch.from_numpy(labels).to(self._device)] = True
        drawn = self._replayed()
        pieces = [images, *(old.images for old in drawn)]
        logits = self.network.module(self._normaliser(self._changed(np.concatenate(pieces))))
        mine, *olds = logits.split([len(piece) for piece in pieces])
        loss = self._loss(mine, self._normaliser.labels(labels), list(zip(olds, drawn, strict=True)))
        self._descend(loss, len(logits))
        known = torch.ones_like(self._seen) if self.way.loss == "der++" else self._seen
        said: Floats = mine.detach().masked_fill(~known, float("nan")).cpu().numpy()
        return said

    def _replayed(self) -> list[Remembered]:
        if self.memory is None or len(self.memory) == 0:
            return []
        return [self.memory.draw(self._batch) for _ in range(self.way.draws)]

    def _loss(
        self, logits: torch.Tensor, labels: torch.Tensor, olds: list[tuple[torch.Tensor, Remembered]]
    ) -> torch.Tensor:
        way = self.way
        if way.loss == "der++" and olds:
            (first, one), (second, two) = olds
            return der_pp_loss(
                functional.cross_entropy(logits, labels), (first, self._stored(one)),
                (second, self._normaliser.labels(two.labels)), alpha=way.alpha, beta=way.beta,
            )  # fmt: skip
        old, targets = logits[:0], labels[:0]
        if olds:
            old = torch.cat([answered for answered, _ in olds])
            targets = torch.cat([self._normaliser.labels(drawn.labels) for _, drawn in olds])
        if way.loss == "er_ace":
            loss = er_ace_loss(logits, labels, old, targets, self._seen)
        else:
            loss = rehearsal_loss(logits, labels, old, targets)
        if olds and way.alpha:
            stored = torch.cat([self._stored(drawn) for _, drawn in olds])
            loss = loss + way.alpha * logits_replay_loss(old, stored)
        return loss

    def _stored(self, drawn: Remembered) -> torch.Tensor:
        return torch.from_numpy(drawn.logits).to(self._device)

    def _changed(self, images: Images) -> Images:
        """Shifted and mirrored, each time another way."""
        return augment(images, self._rng.integers(0, 2**63, len(images), dtype=np.uint64), "crop_flip")

    def _descend(self, loss: torch.Tensor, images: int, *, clip: float | None = None) -> None:
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if clip is not None:
            nn.utils.clip_grad_norm_(self.network.module.parameters(), clip)
        self._optimiser.step()
        self.trained_images += images

    def learn_memory(self, steps: int) -> None:
        """
        GDumb's only training: from the memory alone, so many batches.

        Source: Prabhu et al. 2020, section 4: SGD with momentum 0.9, weight decay 1e-6, rate 0.05 to 0.0005 on cosines
        with warm restarts, gradients clipped, CutMix on half of the batches. Differs from it in: as many batches as the
        other arms have, instead of 256 epochs; see `restarting_rate`.
        """
        assert self.memory is not None
        kept = self.memory.everything()
        batch = 2 * self._batch
        epoch_steps = max(1, len(kept.labels) // batch)
        optimiser = torch.optim.SGD(
            self.network.module.parameters(), lr=self.way.rate, momentum=0.9, weight_decay=1e-6, foreach=False
        )
        self._optimiser = optimiser
        self.network.module.train()
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = restarting_rate(self.way.rate, step, steps)
            if step % epoch_steps == 0:
                order = self._rng.permutation(len(kept.labels))
            part = order[step % epoch_steps * batch :][:batch]
            images = self._normaliser(self._changed(kept.images[part]))
            labels = self._normaliser.labels(kept.labels[part])
            share, others = self._cutmix(images)
            logits = self.network.module(images)
            loss = share * functional.cross_entropy(logits, labels)
            loss = loss + (1 - share) * functional.cross_entropy(logits, labels[others])
            self._descend(loss, len(part), clip=CLIP)

    def _cutmix(self, images: torch.Tensor) -> tuple[float, torch.Tensor]:
        """
        Paste, in half of the calls, a rectangle of another image of the batch [B, 3, H, W] into each, in place.

        Returns:
            The share of each image that is its own, and the positions [B] of the others.

        Source: Yun et al. 2019, "CutMix" (arXiv 1905.04899), section 3, with alpha 1.
        """
        count, _, height, width = images.shape
        others = torch.from_numpy(self._rng.permutation(count)).to(images.device)
        if self._rng.random() < 0.5:
            return 1.0, others
        side = float(np.sqrt(1 - self._rng.random()))
        top, bottom = _span(int(self._rng.integers(height)), side * height, height)
        left, right = _span(int(self._rng.integers(width)), side * width, width)
        images[:, :, top:bottom, left:right] = images[others, :, top:bottom, left:right]
        return 1 - (bottom - top) * (right - left) / (height * width), others


def is_right(
    network: Network, normaliser: Normaliser, images: Images, labels: Integers, among: Sequence[int]
) -> npt.NDArray[np.bool_]:
    """Which images [N] are answered right, where only some classes can be the answer."""
    network.module.eval()
    columns = np.array(among)
    answers = []
    with torch.no_grad():
        for start in range(0, len(images), JUDGING_BATCH):
            logits = network.module(normaliser(images[start : start + JUDGING_BATCH]))
            answers.append(columns[logits.cpu().numpy()[:, columns].argmax(axis=1)])
    right: npt.NDArray[np.bool_] = np.concatenate(answers) == labels
    return right


def restarting_rate(rate: float, step: int, steps: int) -> float:
    """
    Cosines from `rate` to a hundredth of it, each twice as long as the one before; the eighth ends with the last step.

    In the paper the first takes one epoch and the eighth ends after 255; here they are as much shorter as there are fewer.
    """
    position = step / steps * (2**CYCLES - 1) + 1
    share = position / 2 ** int(math.log2(position)) - 1  # of this cosine
    return rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


def _span(centre: int, length: float, most: int) -> tuple[int, int]:
    """Of this length around a centre, cut off at the border."""
    return max(0, int(centre - length / 2)), min(most, int(centre + length / 2))


def class_steps(classes: int, steps: int, arm: str) -> list[list[int]]:
    """The labels of each step; of `joint` all at once."""
    each = classes // steps
    return [list(range(classes))] if arm == "joint" else [list(range(s * each, (s + 1) * each)) for s in range(steps)]


def forgetting(history: Sequence[Sequence[float]]) -> float | None:
    """
    What was lost: over the steps but the last, the best accuracy that its classes ever had less the one at the end.

    Args:
        history: after each step the accuracy of its classes and of those before, in per cent; empty: None is returned.
    """
    if not history:
        return None
    lost = [max(row[step] for row in history[step:]) - history[-1][step] for step in range(len(history) - 1)]
    return round(sum(lost) / len(lost), 2)


class Experiment:
    """Fills cells."""

    def __init__(self, arguments: argparse.Namespace, pool: Pool) -> None:
        self._arguments, self._pool = arguments, pool
        self._device = training_device()
        self._normaliser = Normaliser(PREPROCESS, self._device)
        self._steps = STEPS[arguments.data_set]

    def cells(self) -> Iterator[Cell]:
        """What was asked for, the larger memory first."""
        a = self._arguments
        images = min(a.images or self._pool.train.shape[1], self._pool.train.shape[1] - VALIDATED)
        schedule = f"{a.epochs} epoch{'s' * (a.epochs > 1)} of {images} images a class, batches of {a.batch}"
        schedule += f", rate {a.rate:g}" if a.rate else ""
        for seed, buffer in itertools.product(a.seeds, sorted(a.buffers, reverse=True)):
            for arm in a.arms:
                if arm in WITHOUT_MEMORY and buffer != max(a.buffers):
                    continue
                yield Cell(
                    data_set=a.data_set, net=a.net, schedule=schedule, judge=a.judge,
                    buffer=0 if arm in WITHOUT_MEMORY else buffer, arm=arm, seed=seed,
                )  # fmt: skip

    def _network(self, seed: int) -> Network:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return new_network(NETS.get(self._arguments.net, self._arguments.net), len(self._pool.classes))

    def fill(self, cell: Cell) -> Cell:
        """Learn all steps; then ask."""
        a = self._arguments
        way = WAYS[cell.arm]
        learner = Learner(
            replace(way, rate=a.rate or way.rate), self._network(cell.seed), buffer=cell.buffer, batch=a.batch, seed=cell.seed,
            device=self._device,
        )  # fmt: skip
        steps = class_steps(len(self._pool.classes), self._steps, cell.arm)
        has_old = len(steps) > 1 and not learner.way.is_from_memory_alone  # else there is nothing to ask before the end
        seconds, history = 0.0, []
        for number, labels in enumerate(steps):
            images, targets = self._pool.stream(labels, a.images)
            began_s = time.monotonic()
            learner.learn(images, targets, a.epochs)
            if learner.way.is_from_memory_alone and number == len(steps) - 1:
                learner.learn_memory(len(steps) * a.epochs * -(-len(targets) // a.batch))
            served = learner.served()
            seconds += time.monotonic() - began_s
            if has_old:
                history.append(self._by_step(served, cell.judge, steps[: number + 1], JUDGED_MOST))
        final = self._by_step(served, cell.judge, class_steps(len(self._pool.classes), self._steps, ""), None)
        return replace(
            cell, accuracy=round(float(np.mean(final)), 2), forgetting=forgetting(history),
            by_step=" ".join(f"{value:.1f}" for value in final), trained_images=learner.trained_images,
            seconds=round(seconds, 1),
            memory_kib=round(learner.memory.nbytes / 1024, 1) if learner.memory is not None else 0.0,
        )  # fmt: skip

    def _by_step(self, network: Network, judge: str, steps: Sequence[Sequence[int]], most: int | None) -> list[float]:
        """Per cent right of each step's classes, where the classes of all of them can be the answer."""
        among = [label for labels in steps for label in labels]
        images, labels = self._pool.judged(judge, among, most)
        right = is_right(network, self._normaliser, images, labels, among)
        return [100 * float(right[np.isin(labels, mine)].mean()) for mine in steps]


def run(arguments: argparse.Namespace) -> None:
    """Fill what is missing."""
    torch.set_num_threads(arguments.threads)
    path = arguments.work / "incremental.csv"
    experiment = Experiment(arguments, read_pool(arguments.data, arguments.data_set, arguments.work))
    say(
        f"{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads; {len(read_rows(path, Cell))} cells are there"
    )
    fill_missing(path, experiment.cells(), experiment.fill, _tell)


def _tell(cell: Cell) -> None:
    say(
        f"  {cell.arm} buffer {cell.buffer} seed {cell.seed}: {cell.accuracy:.1f} % ({cell.by_step}), {cell.seconds:.0f} s"
    )


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--data-set", default="cifar10", choices=sorted(STEPS))
    parser.add_argument("--net", default="cifar:resnet20", help="an architecture, or resnet18 with a stem for 32x32")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--buffers", nargs="+", type=int, default=[200, 500])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--images", type=int, help="of each class; default: all but those that validate")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16, help="of the stream; as many of the memory beside it")
    parser.add_argument("--rate", type=float, help="of all arms, in place of each one's own")
    parser.add_argument("--judge", default="test", choices=["test", "validation"])
    with_grid_options(parser, report="tables")
    arguments = parser.parse_args()
    if arguments.report:
        return report(arguments.work / "incremental.csv")
    need(parser, arguments, data=f"a directory with {arguments.data_set}")
    arguments.work.mkdir(parents=True, exist_ok=True)
    run(arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
