"""
Is pruning to the site's data better, and is it the data or the filters? A resumable grid on CIFAR-100.

    python -m benchmarks.data_aware --data DIR_WITH_cifar100.zip --weights resnet20_cifar100.safetensors
        [--work DIR] [--subsets aquatic ...] [--levels 25 50 75 90 95] [--seeds 0 1]
        [--arms agnostic ...] [--unit parameters|latency] [--device-images seen|unseen] [--full] [--report] [--markdown]

Arms at each level, with the same number of training steps but for agnostic:all:

    unpruned        the deployed model as it is, and tuned on the site's images ("unpruned+site")
    agnostic        pruned at once by mean |w|, retrained on images of all hundred classes
    agnostic:all    the same, given ten times the steps: as many epochs, of all the 40,000 images
    agnostic+site   the same filters, retrained on the site's images
    general:CRITERION ranked at once by the criterion on images of all hundred classes, retrained on the site's images
    first:CRITERION ranked at once on the site's images, and retrained on them: all of the training comes after the cut
    aware:CRITERION tuned on the site's images, ranked by the criterion on them, pruned, retrained on them
    width:CRITERION the same with `--unit latency`, where the three others take residual branches out first: narrower
                    layers alone

The deployed model was trained on the first 400 images of each class. "seen": the device shows those (the paper's
protocol); "unseen": it shows 80 of the last 100, and 20 of them validate. The best epoch is chosen on validation
images; the test images of the subset's classes are asked once, at the end, among all hundred outputs.

Every finished cell is a row of WORK/data_aware.csv; a run that was stopped goes on where it was. `--report` prints the
tables and draws the plots from that file, and says what was not run; `--markdown` prints the tables of docs/benchmarks.md.

Source of the protocol: arXiv 2006.08554 and its code. Differs from it in: by default at most 4,000 images and 2 + 4
epochs for every arm (the paper: all images, 5 + 25, and 30 on all classes for the agnostic arm; `--full`); edge pixels
instead of zeros around shifted crops.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.cells import FULL, Cell, timing
from benchmarks.cifar import PREPROCESS, SUBSETS, Archive, classes_of, read_archive
from benchmarks.rows import fill_missing, read_rows, with_grid_options
from benchmarks.served import cost_of, metered
from benchmarks.stage import machine, need, say
from edgetune.errors import OutOfReachError
from edgetune.learn.control import SilentControl
from edgetune.learn.cost import Size
from edgetune.learn.criteria import Batch, make_criterion
from edgetune.learn.data import LabelledImages, Normaliser
from edgetune.learn.depth import DEPTHS, Thinner
from edgetune.learn.finetune import Phase, fine_tune, steps_per_epoch, validation_score
from edgetune.learn.groups import find_groups
from edgetune.learn.importer import read_weights
from edgetune.learn.latency import Stopwatch, cut_to_latency, export_engine
from edgetune.learn.layout import arrange, training_device
from edgetune.learn.network import (
    Network,
    count_macs,
    count_parameters,
    load_strictly,
    new_network,
)
from edgetune.learn.prune import Limit, choose_channels, cut_channels, even_floors, residual_floors
from edgetune.learn.schedules import PAPER
from edgetune.learn.tuner import Tuner
from edgetune.types import Recipe

BATCH = 128
AGNOSTIC_STEPPED = (1 / 3, 2 / 3)
SCORING_BATCHES = 20
TIMING_RUNS = 60
VALIDATED_MOST = 1000
UNPRUNED_ARMS = ("unpruned", "unpruned+site")
ARMS = ("agnostic", "agnostic:all", "agnostic+site", "aware:l1", "aware:taylor")
PAPER_LEVELS = (95, 90, 75, 50, 25)  # the cheap ones first


@dataclass(frozen=True)
class Site:
    """What one device has."""

    training: LabelledImages
    validation: LabelledImages
    test: LabelledImages


@dataclass
class Spent:
    """On one network, from the deployed one on."""

    seconds: float = 0.0
    peak_mib: float = 0.0
    joules: float | None = None


class Grid:
    """All cells of one deployed model."""

    def __init__(self, arguments: argparse.Namespace, archive: Archive) -> None:
        self._arguments, self._archive = arguments, archive
        self._control = SilentControl()
        self._device = training_device()
        self._normaliser = Normaliser(PREPROCESS, self._device)
        self._epochs = (5, 25) if arguments.full else (2, 4)
        self._most = None if arguments.full else 4000
        self._schedule = FULL if arguments.full else "2+4 epochs, 4000 images"
        if arguments.dtype != "float32":
            self._schedule += f", {arguments.dtype}"
        self._paper = PAPER[arguments.net]
        self._base = self._deployed()
        self._whole = count_parameters(self._base.module)
        self._whole_macs = count_macs(self._base.module, 32, 32)
        engine = export_engine(self._base, PREPROCESS, threads=1)
        self._stopwatch = Stopwatch(engine, PREPROCESS, runs=TIMING_RUNS, beat=lambda: None)

    def _deployed(self) -> Network:
        network = new_network(self._arguments.net, len(self._archive.classes))
        load_strictly(network.module, read_weights(self._arguments.weights))
        return self._place(network)

    def _place(self, network: Network) -> Network:
        arrange(network.module, self._device, self._arguments.memory_format)
        return network

    # ------------------------------------------------------------------------------------------- data

    def site(self, subset: str, seed: int) -> Site:
        """The device's images of a subset."""
        labels, archive = classes_of(subset), self._archive
        is_seen = self._arguments.device_images == "seen"
        training, validation = (range(400), range(400, 500)) if is_seen else (range(400, 480), range(480, 500))
        return Site(
            archive.samples("train", labels, training, most=self._most, seed=seed),
            archive.samples("train", labels, validation, most=VALIDATED_MOST),
            archive.samples("test", labels, range(100)),
        )

    def _steps(self, epochs: float) -> int:
        """The same for every arm and subset: epochs of 4,000 images, or of what the subset has in the full run."""
        return int(epochs * -(-(self._most or 4000) // BATCH))

    # ------------------------------------------------------------------------------------------- parts of a cell

    def train(
        self, network: Network, data: Site, *, epochs: float, name: str, seed: int, milestones: tuple[float, ...]
    ) -> None:
        """`epochs` of the schedule on the site's images; ends with the best validation epoch."""
        paper = self._paper
        is_whole = self._arguments.full or len(data.training) > (self._most or 0)
        steps = int(epochs * steps_per_epoch(data.training, BATCH)) if is_whole else self._steps(epochs)
        phase = Phase(
            name=name, steps=steps, batch_size=BATCH,
            learning_rate=paper.learning_rate_before if name == "tune" else paper.learning_rate,
            schedule="constant" if name == "tune" else "steps", milestones=milestones,
            decay=0.1 if milestones == AGNOSTIC_STEPPED else paper.decay, momentum=paper.momentum,
            weight_decay=paper.weight_decay, augment="crop_flip", checkpoint_steps=1 << 40, seed=seed, round_id=0,
            dtype=self._arguments.dtype,
        )  # fmt: skip
        fine_tune(
            network, phase, data.training, data.validation, self._normaliser,
            resume=None, save=lambda _: None, control=self._control,
        )  # fmt: skip

    def cut(
        self, network: Network, criterion_name: str, data: Site, level: float, seed: int, *,
        takes_branches: bool = False,
    ) -> Network:  # fmt: skip
        """
        Rank on the site's images and cut to the level, one channel at a time; returns the smaller network.

        Where the level is a latency, residual branches may go first, as in a round; and where it cannot be reached, the
        network that came nearest is returned: the row says how fast it is.
        """
        network.module.eval()
        share = 1 - level / 100
        if self._arguments.unit == "latency" and takes_branches:
            recipe = Recipe(
                criterion=criterion_name, level=level / 100, level_of="latency", round_to=1, batch_size=BATCH,
                scoring_batches=SCORING_BATCHES, seed=seed, memory_format=self._arguments.memory_format, dtype="float32",
            )  # fmt: skip
            tuner = Tuner(
                recipe,
                data.training,
                data.validation,
                preprocess=PREPROCESS,
                device=self._device,
                control=self._control,
            )
            try:
                whole = Size(self._whole, self._whole_macs)
                return tuner.cut(network, share=share, whole=whole, stopwatch=self._stopwatch)[0].network
            except OutOfReachError:
                batches = list(itertools.islice(self._batches(data.training, seed), 4))
                thinner = Thinner(network, batches, image=(32, 32))
                network = self._place(thinner.thin_out(share=share, depth=DEPTHS[-1]))
        return self._narrower(network, criterion_name, data.training, share, seed)

    def _narrower(
        self, network: Network, criterion_name: str, data: LabelledImages, share: float, seed: int
    ) -> Network:
        groups = find_groups(network.module, network.head, 32, 32)
        criterion = make_criterion(criterion_name, seed=seed)
        scores = criterion.score(network.module, groups, self._batches(data, seed))
        is_papers = criterion_name == "l1"
        floors = residual_floors(network.module, groups, 1 - share) if is_papers else even_floors(groups, 1 - share)

        def smaller(limit: Limit) -> Network:
            cut = choose_channels(
                network.module, groups, scores, limit=limit, image=(32, 32), round_to=1, floors=floors,
                per_cost=criterion.adds_up,
            )  # fmt: skip
            other = copy.deepcopy(network)
            cut_channels(other.module, groups, cut.removed)
            return self._place(other)

        if self._arguments.unit == "parameters":
            return smaller(Limit("parameters", round(self._whole * share)))
        watch = self._stopwatch
        return cut_to_latency(
            smaller, macs=self._whole_macs, ratio=watch.ratio, sure_ratio=watch.sure_ratio, at_most=share
        )[0]

    def _batches(self, data: LabelledImages, seed: int) -> Iterator[Batch]:
        order = np.random.default_rng(seed).permutation(len(data))[: SCORING_BATCHES * BATCH]
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            yield self._normaliser(data.images(part)), self._normaliser.labels(data.labels[part])

    def finished(self, cell: Cell, network: Network, data: Site, spent: Spent) -> Cell:
        """Measure what came out."""
        served = cost_of(network, PREPROCESS, threads=1)
        parameters = count_parameters(network.module)
        return replace(
            cell, parameters=parameters, removed=round(100 * (1 - parameters / self._whole), 2),
            macs=count_macs(network.module, 32, 32), validation=self.top1(network, data.validation),
            test=self.top1(network, data.test), **timing(self._stopwatch, network),
            seconds=round(spent.seconds, 1), peak_mib=spent.peak_mib, joules=spent.joules, served_mib=served.memory_mib,
            served_joules=served.joules,
        )  # fmt: skip

    def top1(self, network: Network, data: LabelledImages) -> float:
        """Share of right answers among all outputs."""
        return validation_score(network.module, data, self._normaliser, 250, self._control)[0]

    # ------------------------------------------------------------------------------------------- cells

    def cells(self) -> Iterator[Cell]:
        """Every cell that was asked for, seed after seed and level after level, so that a part is already a result."""
        arguments = self._arguments
        for seed in arguments.seeds:
            for level in (0.0, *arguments.levels):
                for subset in arguments.subsets:
                    for arm in arguments.arms if level else UNPRUNED_ARMS[: 1 + arguments.tune_unpruned]:
                        yield Cell(
                            net=arguments.net, images=arguments.device_images, subset=subset, unit=arguments.unit,
                            level=level, arm=arm, seed=seed, schedule=self._schedule,
                        )  # fmt: skip

    def fill(self, cell: Cell) -> Cell:
        """Train and measure one."""
        data = self.site(cell.subset, cell.seed)
        if cell.arm == "unpruned":
            return self.finished(cell, self._base, data, Spent(peak_mib=peak_mib()))
        if cell.arm == "unpruned+site":
            return self._unpruned_site(cell, data)
        if cell.arm in {"agnostic", "agnostic:all"}:
            most = self._most if cell.arm == "agnostic" else None
            network, spent = self._agnostic(cell.level, cell.seed, most)
            return self.finished(cell, network, data, spent)
        if cell.arm == "agnostic+site" or cell.arm.startswith(("general:", "first:")):
            return self._untuned(cell, data)
        return self._aware(cell, self._tuned(cell.subset, cell.seed), data)

    def _unpruned_site(self, cell: Cell, data: Site) -> Cell:
        network = copy.deepcopy(self._base)
        with spending() as spent:
            self.train(
                network, data, epochs=sum(self._epochs), name="retrain", seed=cell.seed,
                milestones=self._paper.milestones,
            )  # fmt: skip
        return self.finished(cell, network, data, spent)

    @functools.lru_cache(maxsize=8)  # noqa: B019 - there is one grid
    def _tuned(self, subset: str, seed: int) -> tuple[Network, Spent]:
        network, data = copy.deepcopy(self._base), self.site(subset, seed)
        with spending() as spent:
            self.train(network, data, epochs=self._epochs[0], name="tune", seed=seed, milestones=())
        return network, spent

    def _everything(self, seed: int, most: int | None) -> Site:
        """Images of all hundred classes; nobody is tested on them."""
        archive = self._archive
        return Site(
            archive.samples("train", archive.classes, range(400), most=most, seed=seed),
            archive.samples("train", archive.classes, range(400, 500), most=VALIDATED_MOST),
            archive.samples("test", archive.classes, range(1)),
        )

    @functools.lru_cache(maxsize=8)  # noqa: B019 - there is one grid
    def _agnostic(self, level: float, seed: int, most: int | None) -> tuple[Network, Spent]:
        everything = self._everything(seed, most)
        with spending() as spent:
            network = self.cut(copy.deepcopy(self._base), "l1", everything, level, seed)
            self.train(
                network, everything, epochs=sum(self._epochs), name="retrain", seed=seed, milestones=AGNOSTIC_STEPPED
            )
        return network, spent

    def _untuned(self, cell: Cell, data: Site) -> Cell:
        """Cut at once, then trained on the site's images."""
        kind, _, criterion = cell.arm.partition(":")
        criterion = criterion or "l1"
        looked_at = data if kind == "first" else self._everything(cell.seed, self._most)
        with spending() as spent:
            network = self.cut(
                copy.deepcopy(self._base), criterion, looked_at, cell.level, cell.seed,
                takes_branches=criterion != "l1",
            )  # fmt: skip
            self.train(
                network, data, epochs=sum(self._epochs), name="retrain", seed=cell.seed,
                milestones=self._paper.milestones,
            )  # fmt: skip
        return self.finished(cell, network, data, spent)

    def _aware(self, cell: Cell, tuned: tuple[Network, Spent], data: Site) -> Cell:
        kind, _, criterion = cell.arm.partition(":")
        with spending(tuned[1]) as spent:
            network = self.cut(
                copy.deepcopy(tuned[0]), criterion, data, cell.level, cell.seed,
                takes_branches=kind == "aware" and criterion != "l1",
            )  # fmt: skip
            self.train(
                network, data, epochs=self._epochs[1], name="retrain", seed=cell.seed,
                milestones=self._paper.milestones,
            )  # fmt: skip
        return self.finished(cell, network, data, spent)


@contextlib.contextmanager
def spending(before: Spent | None = None) -> Iterator[Spent]:
    """Count what is spent in this context, on top of what was before."""
    before = before or Spent()
    spent, began_s = Spent(), begin()
    with metered() as used:
        yield spent
    spent.seconds = before.seconds + time.monotonic() - began_s
    spent.peak_mib = max(before.peak_mib, peak_mib())
    spent.joules = None if used.joules is None else (before.joules or 0.0) + used.joules


def begin() -> float:
    """Start a clock, and the high-water mark of this process's memory, where the kernel allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return time.monotonic()


def peak_mib() -> float:
    """Resident memory's high-water mark since `begin`."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


def run(arguments: argparse.Namespace) -> None:
    """Fill what is missing."""
    torch.set_num_threads(arguments.threads)
    path = arguments.work / "data_aware.csv"
    grid = Grid(arguments, read_archive(arguments.data, arguments.work))
    done = len(read_rows(path, Cell))
    say(f"{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads; {done} cells are there")
    fill_missing(path, grid.cells(), grid.fill, _tell)


def _tell(cell: Cell) -> None:
    say(
        f"  {cell.subset} {cell.level:g} % {cell.arm} seed {cell.seed}: test {cell.test:.1%}, "
        f"{cell.parameters:,} parameters, {cell.ratio:.2f}x, {cell.seconds:.0f} s"
    )


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--net", default="cifar:resnet20", choices=sorted(PAPER))
    parser.add_argument("--subsets", nargs="+", default=list(SUBSETS))
    parser.add_argument("--levels", nargs="+", type=float, default=list(PAPER_LEVELS))
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--unit", default="parameters", choices=["parameters", "latency"])
    parser.add_argument("--device-images", default="seen", choices=["seen", "unseen"])
    parser.add_argument("--memory-format", default="contiguous", choices=["contiguous", "channels_last"])
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="trained in; a series of its own"
    )
    parser.add_argument("--tune-unpruned", action="store_true", help="also the unpruned model tuned on the site")
    parser.add_argument("--full", action="store_true", help="the paper's 5 + 25 epochs on all images: days")
    with_grid_options(parser, report="tables and plots")
    parser.add_argument("--markdown", action="store_true", help="the tables of docs/benchmarks.md, nothing else")
    arguments = parser.parse_args()
    if arguments.markdown:
        from benchmarks.data_aware_markdown import markdown

        return markdown(arguments.work)
    if arguments.report:
        from benchmarks.data_aware_report import report

        return report(arguments.work)
    need(parser, arguments, data="a directory with cifar100.zip", weights="a file with the deployed model's weights")
    arguments.work.mkdir(parents=True, exist_ok=True)
    run(arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
