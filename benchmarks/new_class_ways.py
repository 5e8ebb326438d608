"""
Two new classes on a board whose network knows eight: ways to learn them side by side, and what there is to reach. Resumable.

    python -m benchmarks.new_class_ways --data DIR --weights WEIGHTS_DIR/resnet20_cifar10_without_ship_truck.safetensors
        [--arms ...] [--epochs 1 2 4 8 12] [--old 250] [--new 450] [--seeds 0] [--judge test|validation] [--threads N]
        [--report]

The base is that of `benchmarks.train_base --nets resnet20 --data-set cifar10 --without ship truck`: it was trained on the
first 2,400 images of each of eight classes. The board holds images that it was not trained on: so many of each old class, and
so many of the two that arrive. Each arm begins where the daemon's imprint round ends and does what an adapting round does
with these images (`learn.tuner`, the defaults of a round but for what is named), 40 more of each class choosing the epoch:

    imprinted  the base with two imprinted rows, nothing trained
    full       cross-entropy alone: plain fine-tuning of the whole network
    base       half of the loss is the base's word on the eight classes (`training.absent_classes: keep`, the default)
    er_ace     the same with `training.rehearsal: er_ace`
    der++      the same with `training.rehearsal: der++`
    tail, latent, head   `base` with a part trained (`training.update`)
    joint      cross-entropy on the board's images and on all 19,200 that the base was trained on: what there is to reach,
               and what no board can do

`--judge test` asks 500 test images of each class, once per cell; `validation` the 40. Accuracy is top-1 in per cent among all
ten outputs; the eight outputs of the base alone are the line "base as it was". Seconds are of the training, images are those
that went through a step. Every finished cell is a row of WORK/new_class_ways.csv.

DIR holds cifar10_train.zip and cifar10_test.zip, with entries train/<class>/<name> and test/...
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.cifar import PREPROCESS, Archive, read_archive
from benchmarks.incremental_report import spread
from benchmarks.rows import fill_missing, read_rows
from benchmarks.stage import machine, need, say, table
from edgetune.learn.control import SilentControl
from edgetune.learn.data import LabelledImages, Normaliser
from edgetune.learn.importer import read_weights
from edgetune.learn.imprint import answers, features_of, imprint
from edgetune.learn.network import Network, load_strictly, new_network, widen_head
from edgetune.learn.rehearsal import Rehearsal
from edgetune.learn.transfer import telling_logits
from edgetune.learn.tuner import RETRAIN, Tuner
from edgetune.types import Recipe

ARCHITECTURE, FILE = "cifar:resnet20", "new_class_ways.csv"
BASE_SAW, BOARD_ENDS, VALIDATED = 2400, 2900, 40  # of each class's training images, in the archive's order
TESTED, BATCH = 500, 250
PLAIN = Recipe(memory_format="contiguous", dtype="float32", distillation=0.5)
ARMS: dict[str, Recipe] = {
    "imprinted": PLAIN,
    "full": replace(PLAIN, distillation=0.0),
    "base": PLAIN,
    "er_ace": replace(PLAIN, rehearsal="er_ace"),
    "der++": replace(PLAIN, rehearsal="der++"),
    "tail": replace(PLAIN, update="tail"),
    "latent": replace(PLAIN, update="latent"),
    "head": replace(PLAIN, update="head"),
    "joint": replace(PLAIN, distillation=0.0),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One way; the first fields are its key."""

    arm: str
    epochs: float
    old: int  # images of each old class on the board
    new: int  # of each new one
    seed: int
    judge: str  # "test" | "validation"
    accuracy: float = 0.0  # per cent of all ten classes
    accuracy_old: float = 0.0
    accuracy_new: float = 0.0
    seconds: float = 0.0
    images: int = 0

    @property
    def key(self) -> tuple[str, ...]:
        """What says which cell it is."""
        return self.arm, str(self.epochs), str(self.old), str(self.new), str(self.seed), self.judge


class Board:
    """What it holds, and what its network was."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.set_num_threads(arguments.threads)
        archive = read_archive(arguments.data, arguments.work, "cifar10")
        self.known = tuple(arguments.weights.with_suffix(".txt").read_text(encoding="utf-8").split())
        self.new = tuple(label for label in archive.classes if label not in self.known)
        order = [archive.classes.index(label) for label in (*self.known, *self.new)]
        self.archive = Archive((*self.known, *self.new), archive.train[order], archive.test[order])
        self.base = new_network(ARCHITECTURE, len(self.known))
        load_strictly(self.base.module, read_weights(arguments.weights))
        self.base.module.eval()
        self._normaliser = Normaliser(PREPROCESS, torch.device("cpu"))

    def training(self, cell: Cell) -> LabelledImages:
        """Of the board; joint training has the base's images too."""
        if cell.old > BOARD_ENDS - BASE_SAW or cell.new > BOARD_ENDS - BASE_SAW:
            raise SystemExit(f"there are {BOARD_ENDS - BASE_SAW} images of each class that the base has not seen")
        begins = 0 if cell.arm == "joint" else BASE_SAW
        old = self.archive.samples("train", self.known, range(begins, BASE_SAW + cell.old), seed=cell.seed)
        new = self.archive.samples("train", self.new, range(BASE_SAW, BASE_SAW + cell.new), seed=cell.seed)
        return together(old, new)

    def validation(self) -> LabelledImages:
        """Of the board, all ten classes."""
        return self.archive.samples("train", self.archive.classes, range(BOARD_ENDS, BOARD_ENDS + VALIDATED))

    def judged(self, part: str) -> LabelledImages:
        """What a cell is asked at its end."""
        if part == "validation":
            return self.validation()
        return self.archive.samples("test", self.archive.classes, range(TESTED))

    def features(self, network: Network, data: LabelledImages) -> torch.Tensor:
        """What the head reads, [N, D]."""
        return features_of(network, (self._normaliser(images) for images, _ in data.in_order(BATCH)))

    def logits(self, network: Network, data: LabelledImages) -> torch.Tensor:
        """[N, outputs]."""
        network.module.eval()
        with torch.no_grad():
            return torch.cat([network.module(self._normaliser(images)) for images, _ in data.in_order(BATCH)])

    def imprinted(self, training: LabelledImages) -> Network:
        """The base as the imprint round leaves it."""
        network, known = copy.deepcopy(self.base), len(self.known)
        widen_head(network, self.known, self.archive.classes)
        validation = self.validation()
        of_training, labels = self.features(network, training), torch.from_numpy(training.labels)
        of_validation, shown = self.features(network, validation), torch.from_numpy(validation.labels)
        rows = {row: of_training[labels == row] for row in range(known, len(self.archive.classes))}
        right = of_validation[answers(network, of_validation, known) == shown]
        imprint(network, rows, of_training[labels < known], right)
        return network


def together(one: LabelledImages, other: LabelledImages) -> LabelledImages:
    """Both."""
    return replace(
        one,
        sample_ids=np.concatenate([one.sample_ids, other.sample_ids]),
        labels=np.concatenate([one.labels, other.labels]),
        pixels=np.concatenate([one.pixels, other.pixels]),
    )


class Experiment:
    """Fills cells."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.board, self._threads = Board(arguments), arguments.threads

    def before(self, judge: str) -> float:
        """Per cent of the old classes' images that the base answers right, among its eight outputs."""
        board = self.board
        asked = board.judged(judge)
        is_old = asked.labels < len(board.known)
        right = board.logits(board.base, asked).argmax(dim=1).numpy() == asked.labels
        return 100 * float(right[is_old].mean())

    def fill(self, cell: Cell) -> Cell:
        """Train and ask."""
        board = self.board
        training = board.training(cell)
        network = board.imprinted(board.training(replace(cell, arm="full")))
        seconds, images = (0.0, 0) if cell.arm == "imprinted" else self._train(cell, network, training)
        asked = board.judged(cell.judge)
        right = board.logits(network, asked).argmax(dim=1).numpy() == asked.labels
        is_new = asked.labels >= len(board.known)
        return replace(
            cell, accuracy=round(100 * right.mean(), 2), accuracy_old=round(100 * right[~is_new].mean(), 2),
            accuracy_new=round(100 * right[is_new].mean(), 2), seconds=round(seconds, 1), images=images,
        )  # fmt: skip

    def _train(self, cell: Cell, network: Network, training: LabelledImages) -> tuple[float, int]:
        board = self.board
        recipe = replace(ARMS[cell.arm], seed=cell.seed, threads=self._threads)
        teacher = None
        if recipe.distillation:
            teacher = telling_logits(copy.deepcopy(board.base).module.eval(), range(len(board.known)))
        tuner = Tuner(
            recipe, training, board.validation(), preprocess=PREPROCESS, device=torch.device("cpu"),
            control=SilentControl(), teacher=teacher,
        )  # fmt: skip
        tuner.place(network)
        began_s = time.monotonic()
        if recipe.rehearsal != "plain":
            count = len(board.archive.classes)
            new = range(len(board.known), count)
            tuner.by_labels = Rehearsal(recipe.rehearsal, new=new, shown=range(count), classes=count)
            tuner.by_labels.remember(training.sample_ids, board.logits(board.base, training).numpy())
        steps = round(cell.epochs * tuner.epoch_steps)
        tuner.choose_update(network, steps)
        tuner.fine_tune(network, RETRAIN, steps)
        return time.monotonic() - began_s, steps * recipe.batch_size


def wanted(arguments: argparse.Namespace) -> Iterator[Cell]:
    """The cells, the cheap ones first."""
    for seed in arguments.seeds:
        for epochs in arguments.epochs:
            for arm in arguments.arms:
                if arm == "imprinted" and epochs != arguments.epochs[0]:
                    continue
                yield Cell(
                    arm=arm, epochs=0.0 if arm == "imprinted" else epochs, old=arguments.old, new=arguments.new,
                    seed=seed, judge=arguments.judge,
                )  # fmt: skip


def report(cells: Sequence[Cell]) -> str:
    """A table for each board."""
    texts = []
    for judge, old, new in sorted({(cell.judge, cell.old, cell.new) for cell in cells}):
        mine = [cell for cell in cells if (cell.judge, cell.old, cell.new) == (judge, old, new)]
        rows: list[tuple[str, ...]] = [("way", "epochs", "seeds", "all", "old classes", "new classes", "s", "images")]
        for arm in [arm for arm in ARMS if any(cell.arm == arm for cell in mine)]:
            for epochs in sorted({cell.epochs for cell in mine if cell.arm == arm}):
                group = [cell for cell in mine if (cell.arm, cell.epochs) == (arm, epochs)]
                figures = [spread([getattr(c, n) for c in group]) for n in ("accuracy", "accuracy_old", "accuracy_new")]
                seconds = sorted(cell.seconds for cell in group)[len(group) // 2]
                rows.append((arm, f"{epochs:g}", str(len(group)), *figures, f"{seconds:.0f}", f"{group[0].images:,}"))
        texts.append(f"{judge} images; on the board {old} of each old class, {new} of each new one\n{table(rows)}")
    return "\n\n".join(texts)


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--work", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--epochs", nargs="+", type=float, default=[1.0, 2.0, 4.0, 8.0, 12.0])
    parser.add_argument("--old", type=int, default=250, help="images of each old class on the board")
    parser.add_argument("--new", type=int, default=450, help="of each new one")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--judge", default="test", choices=["test", "validation"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--report", action="store_true", help="the table of what was run, nothing else")
    arguments = parser.parse_args()
    path = arguments.work / FILE
    if not arguments.report:
        need(parser, arguments, data="a directory with cifar10_train.zip", weights="what benchmarks.train_base makes")
        arguments.work.mkdir(parents=True, exist_ok=True)
        experiment = Experiment(arguments)
        say(f"{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads")
        say(f"  base as it was: {experiment.before(arguments.judge):.1f} % of {', '.join(experiment.board.known)}")
        fill_missing(path, wanted(arguments), experiment.fill, _tell)
    if not path.exists():
        say(f"nothing was run yet: {path} is missing")
        return 1
    say(report(read_rows(path, Cell)))
    return 0


def _tell(cell: Cell) -> None:
    say(
        f"  {cell.arm}, {cell.epochs:g} epochs, seed {cell.seed}: all {cell.accuracy:.1f} %, old {cell.accuracy_old:.1f}, "
        f"new {cell.accuracy_new:.1f}, {cell.seconds:.0f} s"
    )


if __name__ == "__main__":
    raise SystemExit(main())
