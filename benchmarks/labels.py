"""
How good does the loop become with few labels, and is the labelling queue worth more than chance? Resumable.

    python -m benchmarks.labels --data DIR_WITH_cifar100.zip --weights resnet20_cifar100.safetensors [--subset aquatic]
        [--labels 0 1 5 20] [--choices random queue] [--unlabelled ignore use] [--seeds 0 1 2] [--threads N] [--report]

The given ResNet20 knows a hundred classes and is what a site serves that shows the subset's alone: 80 images of each, which
it was not trained on and nobody has labelled. A person labels so many a class on average, and the board fine-tunes the
served model with the defaults of a round (12 epochs, half of the loss the factory model's word), without pruning:

    random    the labelled images are drawn from all
    queue     they are those that `edgetune data next --count 20` names, twenty after twenty (`decide.labelling`)
    ignore    the rest is not used
    use       what the factory model is sure of joins with its word for a label (`training.unlabelled: use`)

No label is spent on validation: the weights are those of the last epoch. The test images of the subset are asked once, among
all hundred outputs. No label and `ignore` is the served model as it is. Every finished cell is a row of WORK/labels.csv.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.cifar import PREPROCESS
from benchmarks.incremental_report import spread
from benchmarks.one_site import OneSite, add_arguments
from benchmarks.plots import draw_lines, gathered
from benchmarks.rows import append_row, read_rows, rows_to_report
from benchmarks.stage import machine, say, table
from edgetune.decide.labelling import Candidate, next_questions
from edgetune.learn.control import SilentControl
from edgetune.learn.data import Images, LabelledImages, Normaliser
from edgetune.learn.network import Network
from edgetune.learn.tuner import RETRAIN
from edgetune.learn.unlabelled import joined, sift
from edgetune.types import Recipe

LABELS, CHOICES, UNLABELLED = (0, 1, 5, 20), ("random", "queue"), ("ignore", "use")
ASKED_AT_ONCE = 20  # of `edgetune data next`
RECIPE = Recipe(distillation=0.5, memory_format="contiguous", dtype="float32")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One fine-tuned model; the first fields are its key."""

    subset: str
    labels: int  # a class, on average
    choice: str  # "random" | "queue"; without labels "random"
    unlabelled: str  # "ignore" | "use"
    seed: int
    accuracy: float = 0.0  # top-1 in per cent on the subset's test images, among all outputs
    used: int = 0  # unlabelled images that joined
    used_right: float | None = None  # per cent of these whose label is true; None: there were none
    classes_labelled: int = 0  # of the subset's, with a label or more
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, ...]:
        """What says which cell it is."""
        return self.subset, str(self.labels), self.choice, self.unlabelled, str(self.seed)


def choose(logits: npt.NDArray[np.float32], count: int, choice: str, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Which images a person labels: rows of the served model's logits [N, classes]."""
    if choice == "random":
        return rng.permutation(len(logits))[:count]
    asked: list[int] = []
    waiting = {
        row: Candidate(sample=row, group=str(row), logits=tuple(logits[row].tolist())) for row in range(len(logits))
    }
    while len(asked) < count:
        known = [tuple(logits[row].tolist()) for row in asked]
        wanted = min(ASKED_AT_ONCE, count - len(asked))
        for question in next_questions(list(waiting.values()), known, count=wanted):
            asked.append(question.sample)
            del waiting[question.sample]
    return np.array(asked, np.int64)


def rows_at(data: LabelledImages, rows: npt.NDArray[np.int64]) -> LabelledImages:
    """Some of the samples, all of which are in memory."""
    return replace(data, sample_ids=data.sample_ids[rows], labels=data.labels[rows], pixels=data.pixels[rows])


class Experiment:
    """Fills cells."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._site = OneSite(arguments)
        self._control = SilentControl()
        self._normaliser = Normaliser(PREPROCESS, torch.device("cpu"))

    def fill(self, cell: Cell) -> Cell:
        """Label, fine-tune, test."""
        began_s = time.monotonic()
        site, recipe = self._site, replace(RECIPE, seed=cell.seed)
        pool = site.training(cell.seed)
        logits = self._logits(pool.pixels)
        count = cell.labels * len(site.shown)
        labelled = choose(logits, count, cell.choice, np.random.default_rng(cell.seed))
        training, rest = rows_at(pool, labelled), rows_at(pool, np.setdiff1d(np.arange(len(pool)), labelled))
        shown = len(np.unique(training.labels))
        used, right = 0, None
        if cell.unlabelled == "use":
            found = sift(
                rest, lambda images: softmax(self._logits(images)), how=recipe.augment, seed=recipe.seed,
                confidence_min=recipe.unlabelled_confidence_min, control=self._control,
            ).labels  # fmt: skip
            truth = dict(zip(rest.sample_ids.tolist(), rest.labels.tolist(), strict=True))
            used = len(found)
            right = round(100 * mean(truth[i] == label for i, label in found.items()), 1) if found else None
            training = joined(training, rest, found)
        network = site.given
        if len(training):
            network = self._tuned(recipe, training)
        return replace(
            cell, accuracy=round(100 * site.top1(network, site.test), 2), used=used, used_right=right,
            classes_labelled=shown, seconds=round(time.monotonic() - began_s, 1),
        )  # fmt: skip

    def _tuned(self, recipe: Recipe, training: LabelledImages) -> Network:
        """The served model after a round; nothing selects."""
        tuner = self._site.tuner(recipe, training, rows_at(training, np.empty(0, np.int64)))
        network = tuner.place(copy.deepcopy(self._site.given))
        tuner.fine_tune(network, RETRAIN, round(recipe.epochs_after * tuner.epoch_steps))
        return network

    def _logits(self, images: Images) -> npt.NDArray[np.float32]:
        """What the served model says: float32 [N, classes]."""
        module = self._site.given.module.eval()
        with torch.no_grad():
            parts = [module(self._normaliser(images[at : at + 250])) for at in range(0, len(images), 250)]
        logits: npt.NDArray[np.float32] = torch.cat(parts).numpy()
        return logits


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Of each row."""
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return shares


def wanted(arguments: argparse.Namespace) -> list[Cell]:
    """What was asked for; without labels there is nothing to choose."""
    every = itertools.product(arguments.seeds, arguments.labels, arguments.choices, arguments.unlabelled)
    return [
        Cell(subset=arguments.subset, labels=labels, choice=choice, unlabelled=unlabelled, seed=seed)
        for seed, labels, choice, unlabelled in every
        if labels or choice == "random"
    ]


def run(arguments: argparse.Namespace) -> None:
    """Fill what is missing."""
    path = arguments.work / "labels.csv"
    done = {cell.key for cell in read_rows(path, Cell)}
    missing = [cell for cell in wanted(arguments) if cell.key not in done]
    say(f"{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads; {len(missing)} cells to fill")
    experiment = Experiment(arguments)
    for cell in missing:
        filled = experiment.fill(cell)
        append_row(path, filled)
        named = (
            ""
            if filled.used_right is None
            else f", {filled.used} named by the teacher ({filled.used_right:.0f} % right)"
        )
        say(
            f"  {cell.labels} labels a class, {cell.choice}, {cell.unlabelled}, seed {cell.seed}: {filled.accuracy:.1f} %"
            f"{named}, {filled.seconds:.0f} s"
        )


def rows_of(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """A row for each number of labels, of one subset."""
    kinds = [(choice, unlabelled) for unlabelled in UNLABELLED for choice in CHOICES]
    rows: list[tuple[str, ...]] = [
        ("labels a class", *(f"{choice}, {unlabelled}" for choice, unlabelled in kinds), "queue over random, pp")
    ]
    for labels in sorted({cell.labels for cell in cells}):
        mine = [cell for cell in cells if cell.labels == labels]
        found = [[c.accuracy for c in mine if (c.choice, c.unlabelled) == kind] for kind in kinds]
        rows.append((str(labels), *(spread(values) for values in found), gain(mine)))
    return rows


def gain(cells: Sequence[Cell]) -> str:
    """The queue over random choice, in pairs of the same seed and use of the rest; "-" without a pair."""
    by = {(cell.choice, cell.unlabelled, cell.seed): cell.accuracy for cell in cells}
    pairs = [(by["queue", how, seed], by.get(("random", how, seed))) for choice, how, seed in by if choice == "queue"]
    gains = [round(queue - random, 4) for queue, random in pairs if random is not None]
    return spread(gains).replace("seed", "pair")


def report(path: Path) -> int:
    """Print what was run."""
    cells = rows_to_report(path, Cell)
    if not cells:
        return 1
    for subset in sorted({cell.subset for cell in cells}):
        say(f"\n{subset}: top-1 in per cent on its test images, among all hundred outputs")
        mine = [cell for cell in cells if cell.subset == subset]
        say(table(rows_of(mine)))
        draw(mine, path.with_name(f"labels-{subset}.svg"))
    return 0


def draw(cells: Sequence[Cell], path: Path) -> None:
    """A picture of one subset: a line for each way of choosing what is labelled and of using the rest."""
    rows = [(f"{cell.choice}, the rest: {cell.unlabelled}", cell.labels, cell.accuracy) for cell in cells]
    lines = gathered((name, float(labels), accuracy) for name, labels, accuracy in rows)
    draw_lines(path, lines, x="labels a class", y="top-1 on the site's test images, %", levels={})


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--labels", nargs="+", type=int, default=list(LABELS), help="a class")
    parser.add_argument("--choices", nargs="+", default=list(CHOICES), choices=CHOICES)
    parser.add_argument("--unlabelled", nargs="+", default=list(UNLABELLED), choices=UNLABELLED)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--report", action="store_true", help="tables of what was run, nothing else")
    arguments = parser.parse_args()
    if arguments.report:
        return report(arguments.work / "labels.csv")
    run(arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
