"""
What does a student know of classes that it was never shown? Label-free transfer on CIFAR-10, split by split. Resumable.

    python -m benchmarks.unseen --data DIR --teacher-weights resnet56_cifar10.safetensors [--work DIR] [--splits ...]
        [--students thin resnet20 pruned-50 pruned-90] [--seeds 0] [--images 3000] [--epochs 10 | --full] [--threads N]
        [--report]

The teacher is a ResNet56 that knows all ten classes. A student with ten outputs sees images of the split's seen classes alone,
through the teacher: its logits and, where the student is fresh, the features of its three groups, by the losses of arXiv
2201.10947 (`LabelFree`). It sees no image of another class, no label (they are all 0 here), and nothing chooses: it is tested
after its last step, on the test images of the seen and of the unseen classes, each among all ten outputs. Chance is then 10 %.

    7,8,9      horse, ship, truck seen; the other seven unseen
    0-6        airplane to frog seen; horse, ship, truck unseen
    0          airplane seen; the other nine unseen
    3,4,8,9    cat, deer, ship, truck seen; airplane, automobile, dog, horse unseen
    noise      the control: 5,000 images of noise, and no class seen

The fresh students: `thin`, one block a group, as wide as the teacher's activations on these images are not zero (at most 60,000
parameters), and `resnet20`. SGD with Nesterov's momentum 0.9, batches of 128, rate 0.1 on a cosine, weight decay 5e-4, as in the
paper; shifts and mirroring, where its code also has AutoAugment and cutout. 10 epochs are what a CPU can do; `--full` is the
paper's 200. The paper's 5,000 images a class are 3,000 here where DIR has no more.

`pruned-50` and `pruned-90` begin with the teacher's own weights: half and nine tenths of its parameters are cut away, ranked by
the classes that the teacher itself finds likeliest on these images, and what is left learns as a round does (its rates, batches
of 64). With `--epochs 0`, what the cut alone leaves.

Every finished cell is a row of WORK/unseen.csv; a run that was stopped goes on inside a fresh student's cell. `--report` prints the tables and
what was not run. DIR holds cifar10_train.zip and cifar10_test.zip, with entries train/<class>/<name> and test/...
"""

from __future__ import annotations

import argparse
import copy
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.incremental import Pool, is_right, read_pool
from benchmarks.incremental_report import spread
from benchmarks.plots import draw_bars, gathered
from benchmarks.rows import append_row, read_rows, rows_to_report, with_grid_options
from benchmarks.stage import machine, need, say, table
from edgetune.learn.cifar import count_learnt
from edgetune.learn.compress import Material
from edgetune.learn.control import SilentControl, StopAskedError
from edgetune.learn.cost import size_of
from edgetune.learn.data import Images, LabelledImages, Normaliser
from edgetune.learn.importer import load_weights, read_weights
from edgetune.learn.layout import arrange, training_device
from edgetune.learn.network import Network, new_network
from edgetune.learn.student import Lesson, teach
from edgetune.learn.transfer import telling_logits
from edgetune.learn.tuner import RETRAIN, Tuner
from edgetune.types import Preprocess, Recipe

PREPROCESS = Preprocess(height=32, width=32)  # ImageNet's mean and deviation: the teacher was trained with them
TEACHER = "cifar:resnet56a"
FRESH = {"thin": None, "resnet20": "cifar:resnet20a"}
PRUNED = {"pruned-50": 0.5, "pruned-90": 0.9}  # of the teacher's parameters
STUDENTS = (*FRESH, *PRUNED)
THIN_PARAMETERS = 60_000
SPLITS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "7,8,9": ((7, 8, 9), (0, 1, 2, 3, 4, 5, 6)),
    "0-6": ((0, 1, 2, 3, 4, 5, 6), (7, 8, 9)),
    "0": ((0,), (1, 2, 3, 4, 5, 6, 7, 8, 9)),
    "3,4,8,9": ((3, 4, 8, 9), (0, 1, 5, 7)),
    "noise": ((), (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)),
}
NOISE_IMAGES = 5_000
CLASSES, CHANCE = 10, 10.0  # per cent, among ten outputs
SHORT, FULL = 10, 200
PAPER = 78.92  # per cent, of its best split, which is not known


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One student; the first fields are its key."""

    split: str
    student: str
    epochs: int
    images: int  # of each seen class; of noise in all
    seed: int
    parameters: int = 0
    seen: float | None = None  # top-1 in per cent on test images, among all ten outputs; None: no class was seen
    unseen: float = 0.0
    teacher_seen: float | None = None
    teacher_unseen: float = 0.0
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, ...]:
        """What says which cell it is."""
        return self.split, self.student, str(self.epochs), str(self.images), str(self.seed)


def shown(pool: Pool, split: str, images: int, seed: int) -> Images:
    """What the student may see: uint8 [N, 32, 32, 3] of the seen classes, or noise."""
    seen, _ = SPLITS[split]
    if not seen:
        rng = np.random.default_rng(seed)
        return rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    return np.concatenate([pool.train[number, :images] for number in seen])


def unlabelled(pixels: Images) -> LabelledImages:
    """Images of which nothing is said."""
    count = len(pixels)
    return LabelledImages(np.arange(count), np.zeros(count, np.int64), pixels, Path(), PREPROCESS)


NOTHING = unlabelled(np.empty((0, 32, 32, 3), np.uint8))  # to choose by


def of_classes(right: npt.NDArray[np.float64], numbers: Sequence[int]) -> float | None:
    """Per cent right over some classes with as many images each; `right` [10] are shares. None: of no class."""
    return round(100 * float(right[list(numbers)].mean()), 2) if numbers else None


class Experiment:
    """Fills cells."""

    def __init__(self, arguments: argparse.Namespace, pool: Pool, teacher: Network, control: SilentControl) -> None:
        self._work, self._threads = arguments.work / "unseen", arguments.threads
        self._pool, self._teacher, self._control = pool, teacher, control
        self._device = training_device()
        self._normaliser = Normaliser(PREPROCESS, self._device)
        self._teacher_right = self._right(teacher)
        every = of_classes(self._teacher_right, range(CLASSES))
        say(f"  the teacher is right on {every:.1f} % of the test images")

    def fill(self, cell: Cell) -> Cell:
        """
        Teach and test.

        Raises:
            StopAskedError: a stop was asked for; the same cell goes on.
        """
        seen, unseen = SPLITS[cell.split]
        training = unlabelled(shown(self._pool, cell.split, cell.images, cell.seed))
        network, seconds = (self._taught if cell.student in FRESH else self._pruned)(cell, training)
        right = self._right(network)
        return replace(
            cell, parameters=count_learnt(network.module), seen=of_classes(right, seen),
            unseen=of_classes(right, unseen) or 0.0, teacher_seen=of_classes(self._teacher_right, seen),
            teacher_unseen=of_classes(self._teacher_right, unseen) or 0.0, seconds=seconds,
        )  # fmt: skip

    def _taught(self, cell: Cell, training: LabelledImages) -> tuple[Network, float]:
        """A fresh student and the seconds of its lesson."""
        material = Material(
            training=training, validation=NOTHING, preprocess=PREPROCESS, classes=self._pool.classes
        )  # fmt: skip
        lesson = Lesson(
            parameters_max=THIN_PARAMETERS, student=FRESH[cell.student], transfer="label_free", epochs=cell.epochs,
            seed=cell.seed, threads=self._threads,
        )  # fmt: skip
        work = self._work / " ".join(cell.key).replace(",", "")
        taught = teach(self._teacher, material, lesson, work=work, control=self._control)
        shutil.rmtree(work)
        return taught.network, taught.seconds

    def _pruned(self, cell: Cell, training: LabelledImages) -> tuple[Network, float]:
        """What is left of the teacher, after a round's retraining on its word, and the seconds of both."""
        began_s = time.monotonic()
        recipe = Recipe(
            transfer="label_free", level=PRUNED[cell.student], round_to=1, seed=cell.seed, threads=self._threads,
            memory_format="contiguous", dtype="float32",
        )  # fmt: skip
        teacher = arrange(copy.deepcopy(self._teacher).module, self._device, "contiguous").eval()
        tuner = Tuner(
            recipe, training, NOTHING, preprocess=PREPROCESS, device=self._device, control=self._control,
            teacher=telling_logits(teacher),
        )  # fmt: skip
        network = tuner.place(copy.deepcopy(self._teacher))
        whole = size_of(self._teacher, PREPROCESS)
        shape, _ = tuner.cut(network, share=1 - recipe.level, whole=whole, stopwatch=None)
        tuner.fine_tune(shape.network, RETRAIN, cell.epochs * tuner.epoch_steps)
        return shape.network, round(time.monotonic() - began_s, 1)

    def _right(self, network: Network) -> npt.NDArray[np.float64]:
        """The share of each class's test images [10] that is answered right, among all ten outputs."""
        network.module.to(self._device)
        images, labels = self._pool.judged("test", range(CLASSES))
        right = is_right(network, self._normaliser, images, labels, range(CLASSES))
        shares: npt.NDArray[np.float64] = right.reshape(CLASSES, -1).mean(axis=1)
        return shares


def wanted(arguments: argparse.Namespace) -> list[Cell]:
    """What was asked for."""
    return [
        Cell(
            split=split, student=student, epochs=arguments.epochs, seed=seed,
            images=arguments.images if SPLITS[split][0] else NOISE_IMAGES,
        )
        for seed in arguments.seeds for student in arguments.students for split in arguments.splits
    ]  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Fill what is missing."""
    torch.set_num_threads(arguments.threads)
    path = arguments.work / "unseen.csv"
    done = {cell.key for cell in read_rows(path, Cell)}
    missing = [cell for cell in wanted(arguments) if cell.key not in done]
    say(f"{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads; {len(missing)} cells to fill")
    if not missing:
        return 0
    control = SilentControl()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: control.stop())
    pool = read_pool(arguments.data, "cifar10", arguments.work)
    teacher = new_network(TEACHER, CLASSES)
    load_weights(teacher, read_weights(arguments.teacher_weights), pool.classes)
    experiment = Experiment(arguments, pool, teacher, control)
    for cell in missing:
        try:
            filled = experiment.fill(cell)
        except StopAskedError:
            say("  stopped; the same command goes on")
            return 1
        append_row(path, filled)
        seen = "" if filled.seen is None else f"seen {filled.seen:.1f} %, "
        say(
            f"  {cell.split} {cell.student} seed {cell.seed}: {seen}unseen {filled.unseen:.1f} %, {filled.seconds:.0f} s"
        )
    return 0


def rows_of(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """A row for each split, of one student and schedule."""
    rows: list[tuple[str, ...]] = [
        ("seen classes", "seen, %", "unseen, %", "chance, %", "teacher on the unseen, %", "images", "s")
    ]
    for split in SPLITS:
        mine = [cell for cell in cells if cell.split == split]
        if mine:
            rows.append((
                split if SPLITS[split][0] else "none: noise", spread([c.seen for c in mine if c.seen is not None]),
                spread([c.unseen for c in mine]), f"{CHANCE:.0f}", f"{mean(c.teacher_unseen for c in mine):.1f}",
                f"{mine[0].images * max(1, len(SPLITS[split][0])):,}", f"{mean(c.seconds for c in mine):.0f}",
            ))  # fmt: skip
    return rows


def verdict(cells: Sequence[Cell]) -> str:
    """The best split beside the paper's figure and the control."""
    means: Mapping[str, float] = {
        split: mean(mine) for split in SPLITS if (mine := [c.unseen for c in cells if c.split == split])
    }
    real = {split: value for split, value in means.items() if SPLITS[split][0]}
    if not real:
        return "no split was run yet"
    best = max(real, key=lambda split: real[split])
    control = f"{means['noise']:.1f} % with noise alone" if "noise" in means else "the control with noise was not run"
    return f"best: {real[best]:.1f} % unseen with {best} seen; {control}; the paper tells {PAPER} % of a split that it does not name"


def report(path: Path) -> int:
    """Print what was run."""
    cells = rows_to_report(path, Cell)
    if not cells:
        return 1
    for student, epochs, images in sorted({(c.student, c.epochs, c.images) for c in cells if SPLITS[c.split][0]}):
        mine = [
            cell
            for cell in cells
            if (cell.student, cell.epochs) == (student, epochs) and (cell.images == images or not SPLITS[cell.split][0])
        ]
        kind = "the paper's schedule" if epochs == FULL else f"a short schedule, {FULL} epochs in the paper"
        say(f"\n{student}, {mine[0].parameters:,} parameters, {images} images a class, {epochs} epochs ({kind})")
        say(table(rows_of(mine)))
        say("  " + verdict(mine))
        absent = [split for split in SPLITS if split not in {cell.split for cell in mine}]
        if absent:
            say(f"  not run: {'; '.join(absent)}")
        draw(mine, path.with_name(f"unseen-{student}-{images}-images-{epochs}-epochs.svg"))
    return 0


def draw(cells: Sequence[Cell], path: Path) -> None:
    """A picture of one student and schedule: what it was shown and what it was not, for each split."""
    rows = [("seen classes", cell.split, cell.seen) for cell in cells if cell.seen is not None]
    rows += [("unseen classes", cell.split, cell.unseen) for cell in cells]
    draw_bars(
        path, gathered(rows), groups=list(SPLITS), y="test top-1 among all ten classes, %", levels={"chance": CHANCE}
    )


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--teacher-weights", type=Path)
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), choices=SPLITS)
    parser.add_argument("--students", nargs="+", default=list(FRESH), choices=STUDENTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--images", type=int, default=3000, help="of each seen class")
    parser.add_argument("--epochs", type=int, default=SHORT)
    parser.add_argument("--full", action="store_const", dest="epochs", const=FULL, help="the paper's 200 epochs")
    with_grid_options(parser, report="tables")
    arguments = parser.parse_args()
    if arguments.report:
        return report(arguments.work / "unseen.csv")
    need(parser, arguments, data="a directory with cifar10_train.zip", teacher_weights="a file with its weights")
    arguments.work.mkdir(parents=True, exist_ok=True)
    return run(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
