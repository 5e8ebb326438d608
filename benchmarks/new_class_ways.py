"""
New classes on a board: ways to learn them beside the old ones, side by side, and what there is to reach. Resumable.

    python -m benchmarks.new_class_ways --data DIR --weights benchmarks/bases/resnet20_cifar10_without_ship_truck.safetensors
        [--arms ...] [--epochs 1 2 4 8 12] [--old 250] [--new 450] [--seeds 0] [--judge test|validation] [--threads N]
        [--report]
    python -m benchmarks.new_class_ways --data DIR --weights resnet20_cifar100.safetensors --old 70 --new 70

Two boards. The first one's network is that of `benchmarks.train_base --nets resnet20 --data-set cifar10 --without ship truck`
(its classes are in a .txt beside the weights): it was trained on the first 2,400 images of each of eight classes, the board
shows all of them, and ship and truck arrive. The other one's is the given ResNet20 of CIFAR-100 after one adapting round on
the ten aquatic classes, and airplane and cat of CIFAR-10 arrive. Either board holds images that its network was not trained
on: so many of each old class that it shows, and so many of each new one.

Each arm begins where the daemon's imprint round ends and does what an adapting round does with these images (`learn.tuner`,
the defaults of a round but for what is named), some more of each class choosing the epoch:

    imprinted  two imprinted rows, nothing trained
    full       cross-entropy alone: plain fine-tuning of the whole network
    free       half of the loss is the factory model's word, put right by the label (`training.absent_classes: keep`)
    ancestor   the same, and at the end the new classes are held back to take a point from the old ones: a round's defaults
    served     likewise with the word of the version that is served; on the first board they are one
    er_ace     ancestor, with `training.rehearsal: er_ace`
    der++      ancestor, with `training.rehearsal: der++`
    tail, latent, head   ancestor, with a part trained (`training.update`)
    joint      cross-entropy on the board's images and on all that the factory model was trained on of the classes shown:
               what there is to reach, and what no board can do

`--judge test` asks the test images, 500 or 100 of each class, once per cell; `validation` those that choose the epoch.
Accuracy is top-1 in per cent among all outputs, over the classes that the board shows. Seconds are of the training, images
are those that went through a step. Every finished cell is a row of WORK/new_class_ways.csv.

DIR holds cifar10_train.zip, cifar10_test.zip and, for the second board, cifar100.zip, with entries train/<class>/<name> and
test/...
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.cifar import PREPROCESS, classes_of, read_archive
from benchmarks.incremental_report import spread
from benchmarks.rows import fill_missing, rows_to_report, with_grid_options
from benchmarks.stage import machine, need, say, table
from edgetune.learn.control import SilentControl
from edgetune.learn.data import LabelledImages, Normaliser
from edgetune.learn.importer import read_weights
from edgetune.learn.imprint import features_of, hold_back, imprint, right_without
from edgetune.learn.network import Network, load_strictly, new_network, widen_head
from edgetune.learn.rehearsal import Rehearsal
from edgetune.learn.tuner import RETRAIN, Tuner
from edgetune.types import Recipe

ARCHITECTURE, FILE = "cifar:resnet20", "new_class_ways.csv"
BATCH = 250
AQUATIC = classes_of("aquatic")
PLAIN = Recipe(memory_format="contiguous", dtype="float32", distillation=0.5, old_classes_drop_max=0.01)
FREE = replace(PLAIN, old_classes_drop_max=None)
ARMS: dict[str, Recipe] = {
    "imprinted": PLAIN,
    "full": replace(FREE, distillation=0.0),
    "free": FREE,
    "ancestor": PLAIN,
    "served": PLAIN,
    "er_ace": replace(PLAIN, rehearsal="er_ace"),
    "der++": replace(PLAIN, rehearsal="der++"),
    "tail": replace(PLAIN, update="tail"),
    "latent": replace(PLAIN, update="latent"),
    "head": replace(PLAIN, update="head"),
    "joint": replace(FREE, distillation=0.0),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One way; the first fields are its key."""

    board: str  # "cifar10" | "aquatic"
    arm: str
    epochs: float
    old: int  # images of each old class on the board
    new: int  # of each new one
    seed: int
    judge: str  # "test" | "validation"
    accuracy: float = 0.0  # per cent of all classes shown
    accuracy_before: float = 0.0  # of the old ones, of the version that was served, among its outputs
    accuracy_old: float = 0.0
    accuracy_new: float = 0.0
    seconds: float = 0.0
    images: int = 0

    @property
    def key(self) -> tuple[str, ...]:
        """What says which cell it is."""
        return self.board, self.arm, str(self.epochs), str(self.old), str(self.new), str(self.seed), self.judge


@dataclass(frozen=True)
class Rows:
    """Which images of each class, in the archives' order."""

    begin: int  # of those that the network was not trained on
    judge: range  # that choose the epoch, and come after those to learn from
    tested: int  # the first so many test images


class Board:
    """
    What it shows, and what its network was.

    Attributes:
        name: "cifar10" or "aquatic".
        known: classes of the factory model, in the order of its outputs.
        shown: those of them that the board shows.
        new: those that arrive; their outputs come after all known ones.
        factory: the network as it was imported.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.set_num_threads(arguments.threads)
        self._arguments = arguments
        cifar10 = read_archive(arguments.data, arguments.work, "cifar10")
        listed = arguments.weights.with_suffix(".txt")
        if listed.exists():
            self.name, self.known = "cifar10", tuple(listed.read_text(encoding="utf-8").split())
            self._old, self._rows = cifar10, Rows(2400, range(2900, 2940), 500)
            self.shown, self.new = self.known, tuple(label for label in cifar10.classes if label not in self.known)
        else:
            self._old, self._rows = read_archive(arguments.data, arguments.work), Rows(400, range(470, 480), 100)
            self.name, self.known, self.shown = "aquatic", self._old.classes, AQUATIC
            self.new = ("airplane", "cat")
        self._new = cifar10
        self.factory = new_network(ARCHITECTURE, len(self.known))
        load_strictly(self.factory.module, read_weights(arguments.weights))
        self._normaliser = Normaliser(PREPROCESS, torch.device("cpu"))
        self._served: dict[int, Network] = {}

    def _samples(self, part: str, old: range, new: range, seed: int = 0) -> LabelledImages:
        """Of both; numbers are those of the outputs."""
        return together(
            renumbered(self._old.samples(part, self.shown, old, seed=seed), self._old.classes, self.outputs),
            renumbered(self._new.samples(part, self.new, new, seed=seed), self._new.classes, self.outputs),
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """Classes of a network that has learnt the new ones."""
        return (*self.known, *self.new)

    def training(self, *, old: int, new: int, seed: int, is_joint: bool = False) -> LabelledImages:
        """Of the board; joint training has what the factory model was trained on too."""
        begin, room = self._rows.begin, self._rows.judge.start - self._rows.begin
        if max(old, new) > room:
            raise SystemExit(f"there are {room} images of each class that the network has not seen")
        return self._samples("train", range(0 if is_joint else begin, begin + old), range(begin, begin + new), seed)

    def validation(self) -> LabelledImages:
        """Of the board, all classes that it shows."""
        return self._samples("train", self._rows.judge, self._rows.judge)

    def judged(self, part: str) -> LabelledImages:
        """What a cell is asked at its end."""
        tested = range(self._rows.tested)
        return self.validation() if part == "validation" else self._samples("test", tested, tested)

    def served(self, *, old: int, seed: int) -> Network:
        """What the new classes meet: the factory model, where it does not show it all after an adapting round."""
        if self.shown == self.known:
            return self.factory
        if seed not in self._served:
            training, validation = (
                only(data, self.is_old(data)) for data in (self.training(old=old, new=1, seed=seed), self.validation())
            )
            tuner = self.tuner(replace(PLAIN, seed=seed), training, validation, self.factory)
            network = tuner.place(copy.deepcopy(self.factory))
            tuner.fine_tune(network, RETRAIN, round(PLAIN.epochs_after * tuner.epoch_steps))
            self._served[seed] = network
        return self._served[seed]

    def tuner(self, recipe: Recipe, training: LabelledImages, validation: LabelledImages, teacher: Network) -> Tuner:
        """A round's hands; the teacher has as many outputs as the student."""
        word = copy.deepcopy(teacher.module).eval() if recipe.distillation else None
        return Tuner(
            replace(recipe, threads=self._arguments.threads), training, validation, preprocess=PREPROCESS,
            device=torch.device("cpu"), control=SilentControl(), teacher=word,
        )  # fmt: skip

    def widened(self, network: Network) -> Network:
        """As a round widens the factory model to ask it about new classes too."""
        wide = copy.deepcopy(network)
        widen_head(wide, self.known, self.outputs)
        return wide

    def is_old(self, data: LabelledImages) -> npt.NDArray[np.bool_]:
        """[N]."""
        return np.asarray(data.labels < len(self.known))

    def logits(self, network: Network, data: LabelledImages) -> torch.Tensor:
        """[N, outputs]."""
        network.module.eval()
        with torch.no_grad():
            return torch.cat([network.module(self._normaliser(images)) for images, _ in data.in_order(BATCH)])

    def imprinted(self, served: Network, training: LabelledImages) -> Network:
        """The served version as the imprint round leaves it."""
        network, known = self.widened(served), len(self.known)
        validation = self.validation()
        of_training, labels = self._features(network, training), torch.from_numpy(training.labels)
        of_validation, truth = self._features(network, validation), torch.from_numpy(validation.labels)
        rows = {row: of_training[labels == row] for row in range(known, len(self.outputs))}
        right, _ = right_without(network, list(rows), of_validation, truth)
        imprint(network, rows, of_training[labels < known], right)
        return network

    def hold_back(self, network: Network, recipe: Recipe) -> None:
        """As a round ends."""
        share = recipe.old_classes_drop_max or 0.0
        data, new = self.validation(), range(len(self.known), len(self.outputs))
        data = only(data, self.is_old(data))
        right = right_without(network, new, self._features(network, data), torch.from_numpy(data.labels))
        hold_back(network, new, right, share=share, class_share=recipe.old_class_drop_max)

    def _features(self, network: Network, data: LabelledImages) -> torch.Tensor:
        return features_of(network, (self._normaliser(images) for images, _ in data.in_order(BATCH)))


def renumbered(data: LabelledImages, classes: Sequence[str], outputs: Sequence[str]) -> LabelledImages:
    """Labels as numbers of `outputs`, where they were those of `classes`; ids that no other class has."""
    number = np.array([outputs.index(label) if label in outputs else -1 for label in classes], dtype=np.int64)
    labels = number[data.labels]
    return replace(data, labels=labels, sample_ids=labels * 10_000 + data.sample_ids % 10_000)


def only(data: LabelledImages, is_wanted: npt.NDArray[np.bool_]) -> LabelledImages:
    """Some of the samples, all of which are in memory."""
    return replace(
        data, sample_ids=data.sample_ids[is_wanted], labels=data.labels[is_wanted], pixels=data.pixels[is_wanted]
    )


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

    def __init__(self, board: Board) -> None:
        self._board = board

    def fill(self, cell: Cell) -> Cell:
        """Train and ask."""
        board = self._board
        served = board.served(old=cell.old, seed=cell.seed)
        on_board = board.training(old=cell.old, new=cell.new, seed=cell.seed)
        network = board.imprinted(served, on_board)
        seconds, images = (0.0, 0) if cell.arm == "imprinted" else self._train(cell, network, served, on_board)
        asked = board.judged(cell.judge)
        is_old = board.is_old(asked)
        was_right = board.logits(served, asked).argmax(dim=1).numpy() == asked.labels
        is_right = board.logits(network, asked).argmax(dim=1).numpy() == asked.labels
        return replace(
            cell, accuracy=percent(is_right), accuracy_old=percent(is_right[is_old]),
            accuracy_before=percent(was_right[is_old]), accuracy_new=percent(is_right[~is_old]),
            seconds=round(seconds, 1), images=images,
        )  # fmt: skip

    def _train(self, cell: Cell, network: Network, served: Network, training: LabelledImages) -> tuple[float, int]:
        board = self._board
        recipe = replace(ARMS[cell.arm], seed=cell.seed)
        if cell.arm == "joint":
            training = board.training(old=cell.old, new=cell.new, seed=cell.seed, is_joint=True)
        teacher = served if cell.arm == "served" else board.factory
        tuner = board.tuner(recipe, training, board.validation(), board.widened(teacher))
        tuner.place(network)
        began_s = time.monotonic()
        if recipe.rehearsal != "plain":
            new, count = range(len(board.known), len(board.outputs)), len(board.outputs)
            shown = np.unique(training.labels).tolist()
            tuner.by_labels = Rehearsal(recipe.rehearsal, new=new, shown=shown, classes=count)
            tuner.by_labels.remember(training.sample_ids, board.logits(served, training).numpy())
        steps = round(cell.epochs * tuner.epoch_steps)
        tuner.updating.name = tuner.updating.ways(network, recipe.update)[0]
        tuner.fine_tune(network, RETRAIN, steps)
        if recipe.old_classes_drop_max is not None:
            board.hold_back(network, recipe)
        return time.monotonic() - began_s, steps * recipe.batch_size


def percent(is_right: npt.NDArray[np.bool_]) -> float:
    """Of [N]."""
    return round(100 * float(is_right.mean()), 2)


def wanted(arguments: argparse.Namespace, board: Board) -> Iterator[Cell]:
    """The cells, the cheap ones first."""
    arms = [arm for arm in arguments.arms if arm != "served" or board.shown != board.known]
    for seed in arguments.seeds:
        for epochs in arguments.epochs:
            for arm in arms:
                if arm == "imprinted" and epochs != arguments.epochs[0]:
                    continue
                yield Cell(
                    board=board.name, arm=arm, epochs=0.0 if arm == "imprinted" else epochs, old=arguments.old, new=arguments.new,
                    seed=seed, judge=arguments.judge,
                )  # fmt: skip


def report(cells: Sequence[Cell]) -> str:
    """A table for each board."""
    texts = []
    for key in sorted({(cell.board, cell.judge, cell.old, cell.new) for cell in cells}):
        mine = [cell for cell in cells if (cell.board, cell.judge, cell.old, cell.new) == key]
        rows: list[tuple[str, ...]] = [("way", "epochs", "all", "old classes", "change", "new classes", "s", "images")]
        for arm in [arm for arm in ARMS if any(cell.arm == arm for cell in mine)]:
            for epochs in sorted({cell.epochs for cell in mine if cell.arm == arm}):
                group = [cell for cell in mine if (cell.arm, cell.epochs) == (arm, epochs)]
                everything, old, new = (
                    spread([getattr(c, n) for c in group]) for n in ("accuracy", "accuracy_old", "accuracy_new")
                )
                change = mean(cell.accuracy_old - cell.accuracy_before for cell in group)
                seconds = median(cell.seconds for cell in group)
                rows.append((
                    arm, f"{epochs:g}", everything, old, f"{change:+.1f}", new, f"{seconds:.0f}",
                    f"{group[0].images:,}",
                ))  # fmt: skip
        board, judge, old_images, new_images = key
        texts.append(
            f"{board}, {judge} images; {old_images} of each old class, {new_images} of each new one\n{table(rows)}"
        )
    return "\n\n".join(texts)


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--epochs", nargs="+", type=float, default=[1.0, 2.0, 4.0, 8.0, 12.0])
    parser.add_argument("--old", type=int, default=250, help="images of each old class on the board")
    parser.add_argument("--new", type=int, default=450, help="of each new one")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--judge", default="test", choices=["test", "validation"])
    with_grid_options(parser, report="the table")
    arguments = parser.parse_args()
    path = arguments.work / FILE
    if not arguments.report:
        need(parser, arguments, data="a directory with cifar10_train.zip", weights="what benchmarks.train_base makes")
        arguments.work.mkdir(parents=True, exist_ok=True)
        board = Board(arguments)
        say(f"{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads")
        fill_missing(path, wanted(arguments, board), Experiment(board).fill, _tell)
    cells = rows_to_report(path, Cell)
    if not cells:
        return 1
    say(report(cells))
    return 0


def _tell(cell: Cell) -> None:
    say(
        f"  {cell.arm}, {cell.epochs:g} epochs, seed {cell.seed}: all {cell.accuracy:.1f} %, "
        f"old {cell.accuracy_before:.1f} to {cell.accuracy_old:.1f}, new {cell.accuracy_new:.1f}, {cell.seconds:.0f} s"
    )


if __name__ == "__main__":
    raise SystemExit(main())
