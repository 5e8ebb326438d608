"""
The engine against torch-pruning, used as its README shows: accuracy on a site at equal measured latency.

    python -m benchmarks.versus_torch_pruning --data DIR_WITH_cifar100.zip --weights resnet20_cifar100.safetensors
        [--subsets aquatic indoor] [--latencies 0.75 0.5 0.33] [--arms ...] [--seeds 0 1] [--work DIR] [--report]

The given ResNet20 was not trained on the site's images: 80 of each class are learnt from, 20 select the best epoch, the 100
test images of each class are asked once at the end, among all hundred outputs. Every arm trains 14 epochs with the same
loop, optimiser, rates and augmentation, and is timed by the same ONNX Runtime in turn with the unpruned network:

    unpruned                   as given, and trained 14 epochs on the site ("unpruned+site")
    edgetune                   2 epochs, then `Tuner.cut` goes down to the latency (residual branches, then channels by
                               taylor, multiples measured), 12 epochs
    edgetune+distillation      the same with half of the loss from the network as given: not an equal loss, shown beside
    tp:quickstart              the README's example: the given network pruned at once, GroupMagnitudeImportance(p=2), one
                               ratio for every layer; 14 epochs
    tp:taylor                  2 epochs, then GroupTaylorImportance on the site's images with global_pruning; 12 epochs
    tp:isomorphic              the same with isomorphic=True beside it

torch-pruning knows no latency. What its user would do is done for it: all `pruning_ratio`s of a grid are cut and timed, each
with both of the README's `round_to` (8 and 4), and the smallest ratio that is fast enough is taken. (A bisection would not
do: with round_to a larger ratio is often slower, because a layer that would become narrower than 8 is left whole.) The
latency that was reached is printed, not the one asked for: the grid of legal widths is coarse for both. The last table
therefore also compares at equal latency, on the line between the neighbouring measured points of torch-pruning.

Every finished network is a row of WORK/versus_torch_pruning.csv; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch.nn import functional

from benchmarks.cells import Cell, timing
from benchmarks.cifar import PREPROCESS, SUBSETS, Archive, classes_of, read_archive
from benchmarks.data_aware import begin, peak_mib
from benchmarks.data_aware_report import bootstrap
from benchmarks.rows import append_row, read_rows, rows_to_report, with_grid_options
from benchmarks.stage import machine, need, say, table
from edgetune.errors import UnprunableError
from edgetune.learn.control import SilentControl
from edgetune.learn.cost import size_of
from edgetune.learn.data import LabelledImages, Normaliser
from edgetune.learn.finetune import validation_score
from edgetune.learn.importer import read_weights
from edgetune.learn.latency import Stopwatch, export_engine
from edgetune.learn.layout import arrange
from edgetune.learn.network import Network, count_macs, count_parameters, load_strictly, new_network
from edgetune.learn.tuner import RETRAIN, TUNE, Tuner
from edgetune.types import Recipe

NET = "cifar:resnet20"
FILE = "versus_torch_pruning.csv"
RECIPE = Recipe(
    level_of="latency", epochs_before=2, epochs_after=12, threads=1, memory_format="contiguous", dtype="float32"
)
SCHEDULE = "2+12 epochs"
DISTILLATION = 0.5
RATIOS = tuple(round(0.02 + 0.04 * i, 2) for i in range(24))  # of torch-pruning: 0.02 to 0.94
ROUND_TO = (8, 4)  # what its README recommends
TIMING_RUNS, FINAL_RUNS = 60, 300


@dataclass(frozen=True)
class Library:
    """One way to call torch-pruning."""

    importance: str  # "magnitude" | "taylor"
    is_global: bool
    is_isomorphic: bool
    is_tuned: bool  # pruned after the 2 epochs; otherwise at once, and trained all 14 afterwards


LIBRARY = {
    "tp:quickstart": Library("magnitude", is_global=False, is_isomorphic=False, is_tuned=False),
    "tp:taylor": Library("taylor", is_global=True, is_isomorphic=False, is_tuned=True),
    "tp:isomorphic": Library("taylor", is_global=True, is_isomorphic=True, is_tuned=True),
}
ENGINE = {"edgetune": 0.0, "edgetune+distillation": DISTILLATION}  # arm -> the given network's share of the loss
ARMS = (*ENGINE, *LIBRARY)


@dataclass(frozen=True)
class Timed:
    """One network that torch-pruning made."""

    pruning_ratio: float
    latency_ratio: float
    network: Network


def fastest_enough(candidates: Sequence[Timed], at_most: float) -> Timed:
    """The least pruned one within the latency; where there is none, the fastest."""
    within = [timed for timed in candidates if timed.latency_ratio <= at_most]
    if within:
        return min(within, key=lambda timed: (timed.pruning_ratio, timed.latency_ratio))
    return min(candidates, key=lambda timed: timed.latency_ratio)


class Comparison:
    """All cells of the given network."""

    def __init__(self, weights: Path, archive: Archive) -> None:
        self._archive, self._control = archive, SilentControl()
        self._device = torch.device("cpu")
        self._normaliser = Normaliser(PREPROCESS, self._device)
        self._given = new_network(NET, len(archive.classes))
        load_strictly(self._given.module, read_weights(weights))
        self._whole = size_of(self._given, PREPROCESS)
        self._engine = export_engine(self._given, PREPROCESS, threads=1)
        self._stopwatch = self._timing(TIMING_RUNS)

    def _timing(self, runs: int) -> Stopwatch:
        return Stopwatch(self._engine, PREPROCESS, runs=runs, beat=lambda: None)

    def fill(self, cell: Cell) -> Cell:
        """
        Cut, train and measure one.

        Raises:
            UnprunableError: the engine cannot cut so far.
        """
        began_s = begin()
        if cell.arm == "unpruned":
            return self._finished(cell, copy.deepcopy(self._given), began_s)
        if cell.arm == "unpruned+site":
            network, epochs, distillation = copy.deepcopy(self._given), _all_epochs(), 0.0
        elif cell.arm in ENGINE:
            distillation, epochs = ENGINE[cell.arm], RECIPE.epochs_after
            network = self._cut_by_engine(cell, distillation)
        else:
            distillation, epochs = 0.0, RECIPE.epochs_after if LIBRARY[cell.arm].is_tuned else _all_epochs()
            found = fastest_enough(self._grid(cell.subset, cell.seed, cell.arm), 1 - cell.level / 100)
            network = copy.deepcopy(found.network)
        tuner = self._tuner(cell.subset, cell.seed, distillation)
        tuner.fine_tune(network, RETRAIN, round(epochs * tuner.epoch_steps))
        return self._finished(cell, network, began_s)

    def _tuner(self, subset: str, seed: int, distillation: float) -> Tuner:
        shown = classes_of(subset)
        teacher = arrange(copy.deepcopy(self._given.module), self._device, "contiguous").eval()
        return Tuner(
            replace(RECIPE, seed=seed, distillation=distillation),
            self._training(subset, seed),
            self._archive.samples("train", shown, range(480, 500)),
            preprocess=PREPROCESS,
            device=self._device,
            control=self._control,
            teacher=teacher if distillation else None,
        )

    def _training(self, subset: str, seed: int) -> LabelledImages:
        return self._archive.samples("train", classes_of(subset), range(400, 480), seed=seed)

    @functools.lru_cache(maxsize=4)  # noqa: B019 - there is one comparison
    def _tuned(self, subset: str, seed: int, distillation: float) -> Network:
        tuner = self._tuner(subset, seed, distillation)
        network = tuner.place(copy.deepcopy(self._given))
        tuner.fine_tune(network, TUNE, round(RECIPE.epochs_before * tuner.epoch_steps))
        return network

    def _cut_by_engine(self, cell: Cell, distillation: float) -> Network:
        tuner = self._tuner(cell.subset, cell.seed, distillation)
        tuned = self._tuned(cell.subset, cell.seed, distillation)
        shape, _ = tuner.cut(tuned, share=1 - cell.level / 100, whole=self._whole, stopwatch=self._stopwatch)
        return shape.network

    # ------------------------------------------------------------------------------------------- torch-pruning

    @functools.lru_cache(maxsize=8)  # noqa: B019 - there is one comparison
    def _grid(self, subset: str, seed: int, arm: str) -> tuple[Timed, ...]:
        """Every ratio and rounding, cut and timed; widths that came out before are not timed again."""
        library = LIBRARY[arm]
        start = self._tuned(subset, seed, 0.0) if library.is_tuned else self._given
        gradients = self._gradients(start, self._training(subset, seed)) if library.importance == "taylor" else {}
        found: dict[tuple[torch.Size, ...], Timed] = {}
        for ratio in RATIOS:
            for round_to in ROUND_TO:
                network = prune_as_documented(start, library, ratio, round_to, gradients)
                shapes = tuple(parameter.shape for parameter in network.module.parameters())
                if shapes not in found:
                    found[shapes] = Timed(ratio, self._stopwatch.ratio(network), network)
        return tuple(found.values())

    def _gradients(self, network: Network, data: LabelledImages) -> dict[str, torch.Tensor]:
        """Of the loss on all of the site's training images, as the importance wants them."""
        module = copy.deepcopy(network.module).eval()
        for images, labels in data.in_order(RECIPE.batch_size):
            loss = functional.cross_entropy(module(self._normaliser(images)), self._normaliser.labels(labels))
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}

    # ------------------------------------------------------------------------------------------- measuring

    def _finished(self, cell: Cell, network: Network, began_s: float) -> Cell:
        seconds, peak = time.monotonic() - began_s, peak_mib()
        shown, parameters = classes_of(cell.subset), count_parameters(network.module)
        validation, test = (
            validation_score(network.module, data, self._normaliser, 250, self._control)[0]
            for data in (
                self._archive.samples("train", shown, range(480, 500)),
                self._archive.samples("test", shown, range(100)),
            )
        )
        return replace(
            cell, parameters=parameters, removed=round(100 * (1 - parameters / self._whole.parameters), 2),
            macs=count_macs(network.module, 32, 32), validation=validation, test=test,
            **timing(self._timing(FINAL_RUNS), network), seconds=round(seconds, 1),
            peak_mib=peak,
        )  # fmt: skip


def _all_epochs() -> float:
    return RECIPE.epochs_before + RECIPE.epochs_after


def prune_as_documented(
    network: Network, library: Library, ratio: float, round_to: int, gradients: dict[str, torch.Tensor]
) -> Network:
    """
    A copy of the network, pruned by torch-pruning.

    Args:
        network: not changed.
        library: which importance, and how layers compete.
        ratio: `pruning_ratio`, of the channels.
        round_to: channels that are left are a multiple of it.
        gradients: by parameter, for "taylor".
    """
    import torch_pruning

    other = copy.deepcopy(network)
    other.module.eval()
    for name, parameter in other.module.named_parameters():
        parameter.grad = gradients[name].clone() if name in gradients else None
    importance: Any = (
        torch_pruning.importance.GroupMagnitudeImportance(p=2)
        if library.importance == "magnitude"
        else torch_pruning.importance.GroupTaylorImportance()
    )
    pruner = torch_pruning.pruner.BasePruner(
        other.module,
        torch.zeros(1, 3, PREPROCESS.height, PREPROCESS.width),
        importance=importance,
        pruning_ratio=ratio,
        global_pruning=library.is_global,
        isomorphic=library.is_isomorphic,
        round_to=round_to,
        ignored_layers=[dict(other.module.named_modules())[network.head]],
    )
    pruner.step()
    other.module.zero_grad(set_to_none=True)
    return other


def cells(arguments: argparse.Namespace) -> Iterator[Cell]:
    """Every cell that was asked for; a seed is done before the next begins, so that a part is already a result."""
    for seed in arguments.seeds:
        for subset in arguments.subsets:
            for arm, latency in (
                ("unpruned", 1.0),
                ("unpruned+site", 1.0),
                *((arm, latency) for latency in arguments.latencies for arm in arguments.arms),
            ):
                level = round(100 * (1 - latency), 2)
                yield Cell(
                    net=NET, images="unseen", subset=subset, unit="latency", level=level, arm=arm, seed=seed,
                    schedule=SCHEDULE,
                )  # fmt: skip


# ----------------------------------------------------------------------------------------------- the report


def at_latency(points: Sequence[tuple[float, float]], latency: float) -> float | None:
    """
    Accuracy on the straight line between the two neighbouring points.

    Args:
        points: (latency, accuracy), in any order.
        latency: where to read.

    Returns:
        None outside of what was measured.
    """
    ordered = sorted(points)
    for (low, below), (high, above) in itertools.pairwise(ordered):
        if low <= latency <= high:
            return above if high == low else below + (above - below) * (latency - low) / (high - low)
    return None


def equal_latency_gains(done: Sequence[Cell], arm: str, over: str) -> list[float]:
    """
    Percentage points of test top-1 of each of an arm's networks over another arm at the latency that it reached.

    The other arm's line goes through its networks of the same subset and seed and the unpruned one trained on the site.
    """
    found = []
    for cell in done:
        if cell.arm != arm:
            continue
        same = [c for c in done if (c.subset, c.seed) == (cell.subset, cell.seed) and c.arm in {over, "unpruned+site"}]
        points = [(c.ratio, 100 * c.test) for c in same]
        other = at_latency(points, cell.ratio)
        if other is not None:
            found.append(100 * cell.test - other)
    return found


def report(done: Sequence[Cell]) -> str:
    """The tables."""
    rows = [("subset", "asked", "arm", "test top-1", "latency", "parameters", "MACs", "seconds", "seeds")]
    for subset in [name for name in SUBSETS if any(cell.subset == name for cell in done)]:
        for level in sorted({cell.level for cell in done}):
            for arm in ("unpruned", "unpruned+site", *ARMS):
                mine = [c for c in done if (c.subset, c.level, c.arm) == (subset, level, arm)]
                if mine:
                    rows.append((
                        subset, f"{1 - level / 100:.2f}x", arm, f"{100 * mean(c.test for c in mine):.1f} %",
                        ", ".join(f"{c.ratio:.2f}x" for c in mine),
                        f"{mean(c.parameters for c in mine):,.0f}", f"{mean(c.macs for c in mine) / 1e6:.1f} M",
                        f"{mean(c.seconds for c in mine):.0f}", str(len(mine)),
                    ))  # fmt: skip
    gains = [
        ("test top-1, percentage points, at the same measured latency", "mean (95 % of the bootstrap)", "networks")
    ]
    for arm in ENGINE:
        for over in LIBRARY:
            values = equal_latency_gains(done, arm, over)
            if values:
                middle, low, high = bootstrap(values)
                gains.append((f"{arm} over {over}", f"{middle:+.1f} ({low:+.1f} to {high:+.1f})", str(len(values))))
    return table(rows) + "\n\n" + table(gains)


def run(arguments: argparse.Namespace) -> None:
    """Fill what is missing."""
    torch.set_num_threads(arguments.threads)
    path = arguments.work / FILE
    comparison = Comparison(arguments.weights, read_archive(arguments.data, arguments.work))
    done = {cell.key for cell in read_rows(path, Cell)}
    say(f"{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads; {len(done)} cells are there")
    for cell in cells(arguments):
        if cell.key in done:
            continue
        words = f"  {cell.subset} {1 - cell.level / 100:.2f}x {cell.arm} seed {cell.seed}"
        try:
            filled = comparison.fill(cell)
        except UnprunableError as error:
            say(f"{words}: {error}")
            continue
        append_row(path, filled)
        say(
            f"{words}: test {filled.test:.1%}, {filled.ratio:.2f}x, {filled.parameters:,} "
            f"parameters, {filled.seconds:.0f} s"
        )


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--subsets", nargs="+", default=["aquatic", "indoor"])
    parser.add_argument("--latencies", nargs="+", type=float, default=[0.75, 0.5, 0.33])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    with_grid_options(parser, report="tables", threads=1)
    arguments = parser.parse_args()
    if not arguments.report:
        need(parser, arguments, data="a directory with cifar100.zip", weights="a file with the given network's weights")
        arguments.work.mkdir(parents=True, exist_ok=True)
        run(arguments)
    done = rows_to_report(arguments.work / FILE, Cell)
    if not done:
        return 1
    say(report(done))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
