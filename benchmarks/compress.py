"""
How small a student of a large CIFAR-10 network can be, and how good, with labels and without. Resumable.

    python -m benchmarks.compress --data DIR --weights resnet56_cifar10.safetensors [--teacher cifar:resnet56a]
        [--normalisation imagenet|cifar] [--targets 10 3 1] [--transfers label_free hinton] [--epochs 60] [--images 2900]
        [--seeds 0] [--minutes 60] [--threads 2] [--work DIR] [--report]

    --teacher cifar:wrn28_10 --weights wrn28_10_cifar10.safetensors --normalisation cifar --targets 0.64 --epochs 200

The second is the paper's headline, 99.36 % of a WRN-28-10's parameters removed, with a teacher from
`python -m benchmarks.train_base --nets wrn28_10 --data-set cifar10 --trained-on 3000`; it wants a GPU. A target is the per
cent of the teacher's learnt parameters that the student may have; what it has is in the table. Students learn from the
first images of each class in the archive's order; the last 100 are asked after each epoch, to look at only. Nothing selects:
the weights are those of the last epoch, and the 10,000 test images are asked once. The teacher was trained on images that
the student sees too, as in the paper.

Every finished student is a row of WORK/compress.csv and a file WORK/compress/<student>.safetensors. Killed or out of its
`--minutes`, the same command goes on where it was, to the same weights on the CPU. On CUDA where torch finds it.

DIR holds cifar10_train.zip and cifar10_test.zip, with entries train/<class>/<name> and test/...
"""

from __future__ import annotations

import argparse
import itertools
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save

from benchmarks.cifar import PREPROCESS, Archive, read_archive
from benchmarks.plots import draw_lines, gathered
from benchmarks.rows import append_row, read_rows, rows_to_report, with_grid_options
from benchmarks.stage import machine, need, say, table
from edgetune.learn.cifar import count_learnt
from edgetune.learn.control import SilentControl, StopAskedError
from edgetune.learn.data import LabelledImages, Normaliser
from edgetune.learn.finetune import validation_score
from edgetune.learn.goal import Material
from edgetune.learn.importer import load_weights, read_weights
from edgetune.learn.latency import Stopwatch, export_engine
from edgetune.learn.layout import training_device
from edgetune.learn.network import Network, count_macs, new_network, state_tensors
from edgetune.learn.student import Lesson, teach
from edgetune.store.durable import write_atomic
from edgetune.types import Preprocess

FILE = "compress.csv"
WATCHED = 100  # images of each class, the last ones
TIMING_RUNS = 60
IMAGENET = Preprocess(height=32, width=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
NORMALISATIONS = {"imagenet": IMAGENET, "cifar": PREPROCESS}


@dataclass(frozen=True, kw_only=True)
class Student:
    """One, at the end of its lesson; the first fields are its key."""

    teacher: str
    target: float  # per cent of the teacher's learnt parameters
    transfer: str
    schedule: str
    seed: int
    device: str = ""
    teacher_parameters: int = 0  # learnt
    teacher_test: float = 0.0  # top-1, as all of them
    parameters: int = 0  # learnt
    macs: int = 0
    zeros: int = 0  # per cent of zeros from which a channel counted as silent
    watched: float = 0.0
    test: float = 0.0
    seconds: float = 0.0  # of the last call, all of it where it was not stopped
    latency_ratio: float = 0.0  # to the teacher's, interleaved, one thread

    @property
    def key(self) -> tuple[str, ...]:
        """What says which one it is."""
        return self.teacher, f"{self.target:g}", self.transfer, self.schedule, str(self.seed)

    @property
    def removed(self) -> float:
        """Per cent of the teacher's learnt parameters that are gone."""
        return 100 * (1 - self.parameters / self.teacher_parameters)


class Chunk(SilentControl):
    """Asks for a stop when the time is over."""

    def __init__(self, ends_s: float | None) -> None:
        super().__init__()
        self._ends_s = ends_s

    def progress(self, **_values: object) -> None:
        """A step is done."""
        if self._ends_s is not None and time.monotonic() >= self._ends_s:
            self.stop()


class School:
    """One teacher."""

    def __init__(self, arguments: argparse.Namespace, archive: Archive) -> None:
        self._arguments, self._archive = arguments, archive
        self._device = training_device()
        self._teacher = new_network(arguments.teacher, len(archive.classes))
        load_weights(self._teacher, read_weights(arguments.weights), archive.classes)
        self._control = Chunk(None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._control.stop())
        self._stopwatch = Stopwatch(
            export_engine(self._teacher, archive.preprocess, threads=1), archive.preprocess, runs=TIMING_RUNS,
            beat=lambda: None,
        )  # fmt: skip
        self._teacher_test = self._top1(self._teacher, self._test())

    def _test(self) -> LabelledImages:
        return self._archive.samples("test", self._archive.classes, range(self._archive.test.shape[1]))

    def _material(self, seed: int) -> Material:
        archive, each = self._archive, self._archive.train.shape[1]
        images = min(self._arguments.images, each - WATCHED)
        return Material(
            training=archive.samples("train", archive.classes, range(images), seed=seed),
            validation=archive.samples("train", archive.classes, range(each - WATCHED, each)),
            preprocess=archive.preprocess,
            classes=archive.classes,
        )

    def teach(self, student: Student) -> Student:
        """
        From the first step, or from where an earlier call was stopped.

        Raises:
            StopAskedError: the time is over, or somebody wants it to end.
        """
        arguments, learnt = self._arguments, count_learnt(self._teacher.module)
        lesson = Lesson(
            parameters_max=int(learnt * student.target / 100), transfer=student.transfer, epochs=arguments.epochs,
            seed=student.seed, threads=arguments.threads,
        )  # fmt: skip
        name = "-".join(student.key).replace(":", "_").replace(" ", "_").replace(",", "")
        taught = teach(
            self._teacher, self._material(student.seed), lesson, work=arguments.work / "compress" / f"{name}.work",
            control=self._control, told=lambda epoch, share: say(f"    epoch {epoch}: watched {share:.1%}"),
        )  # fmt: skip
        write_atomic(arguments.work / "compress" / f"{name}.safetensors", save(state_tensors(taught.network.module)))
        size = (self._archive.preprocess.height, self._archive.preprocess.width)
        return replace(
            student, device=self._device.type, teacher_parameters=learnt, teacher_test=self._teacher_test,
            parameters=count_learnt(taught.network.module), macs=count_macs(taught.network.module, *size),
            zeros=taught.zeros_percent or 0, watched=taught.accuracy, test=self._top1(taught.network, self._test()),
            seconds=taught.seconds, latency_ratio=round(self._stopwatch.ratio(taught.network), 4),
        )  # fmt: skip

    def _top1(self, network: Network, data: LabelledImages) -> float:
        network.module.to(self._device)
        normaliser = Normaliser(self._archive.preprocess, self._device)
        return validation_score(network.module, data, normaliser, 250, SilentControl())[0]


def students(arguments: argparse.Namespace) -> Iterator[Student]:
    """Those that were asked for."""
    schedule = f"{arguments.epochs:g} epochs, {arguments.images} images a class"
    for seed, target, transfer in itertools.product(arguments.seeds, arguments.targets, arguments.transfers):
        yield Student(teacher=arguments.teacher, target=target, transfer=transfer, schedule=schedule, seed=seed)


def report(done: list[Student]) -> str:
    """The table."""
    rows: list[tuple[str, ...]] = [
        ("teacher", "student", "removed", "zeros", "transfer", "schedule", "seed", "test", "latency", "s", "on")
    ]
    rows += [
        (
            f"{s.teacher} {s.teacher_test:.1%}", f"{s.parameters:,}", f"{s.removed:.2f} %", f"{s.zeros} %", s.transfer,
            s.schedule, str(s.seed), f"{s.test:.1%}", f"{s.latency_ratio:.2f}x", f"{s.seconds:.0f}", s.device,
        )
        for s in sorted(done, key=lambda s: (s.teacher, -s.target, s.transfer, s.schedule, s.seed))
    ]  # fmt: skip
    return table(rows)


def draw(mine: Sequence[Student], path: Path) -> None:
    """A picture of one teacher's students: accuracy against size, a line for each transfer and schedule."""
    rows = [(f"{s.transfer}, {s.schedule}", float(s.parameters), 100 * s.test) for s in mine]
    levels = {"teacher": 100 * mine[0].teacher_test}
    draw_lines(path, gathered(rows), x="learnt parameters", y="test top-1, %", levels=levels, is_log=True)


def run(arguments: argparse.Namespace) -> int:
    """Teach those that are missing; 1 when some still are."""
    torch.set_num_threads(arguments.threads)
    path = arguments.work / FILE
    archive = replace(
        read_archive(arguments.data, arguments.work, "cifar10"), preprocess=NORMALISATIONS[arguments.normalisation]
    )
    school = School(arguments, archive)
    done = {student.key for student in read_rows(path, Student)}
    say(f"{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads; {len(done)} students are there")
    for student in students(arguments):
        if student.key in done:
            continue
        say(f"  {student.target:g} % of {student.teacher}, {student.transfer}, seed {student.seed}")
        try:
            finished = school.teach(student)
        except StopAskedError:
            say("  stopped; the same command goes on")
            return 1
        append_row(path, finished)
        say(f"  test {finished.test:.1%} with {finished.parameters:,} parameters ({finished.removed:.2f} % removed)")
    return 0


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path, help="the teacher's")
    parser.add_argument("--teacher", default="cifar:resnet56a", help="its architecture")
    parser.add_argument("--normalisation", default="imagenet", choices=sorted(NORMALISATIONS), help="the teacher's")
    parser.add_argument("--targets", nargs="+", type=float, default=[10, 3, 1], help="per cent of the parameters")
    parser.add_argument("--transfers", nargs="+", default=["label_free", "hinton"])
    parser.add_argument("--epochs", type=float, default=60)
    parser.add_argument("--images", type=int, default=2900, help="of each class")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, help="stop after so many; the same command goes on")
    with_grid_options(parser, report="the table")
    arguments = parser.parse_args()
    status = 0
    if not arguments.report:
        need(parser, arguments, data="a directory with cifar10_train.zip", weights="a file with the teacher's weights")
        arguments.work.mkdir(parents=True, exist_ok=True)
        status = run(arguments)
    done = rows_to_report(arguments.work / FILE, Student)
    if not done:
        return 1
    say(report(done))
    for teacher in sorted({student.teacher for student in done}):
        mine = [student for student in done if student.teacher == teacher]
        draw(mine, arguments.work / f"compress-{teacher.rpartition(':')[2]}.svg")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
