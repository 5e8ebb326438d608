"""
New classes on a site: answered at once, then learnt, and what it does to the old ones. The daemon runs as a user runs it.

    python -m benchmarks.new_classes --data DIR --weights resnet20_cifar100.safetensors [--new airplane cat] [--images 100]
        [--old 100] [--level 0%] [--update full] [--rehearsal plain] [--epochs 12] [--distillation null] [--seed 0] [--threads 2]
    python -m benchmarks.new_classes --data DIR --weights benchmarks/bases/resnet20_cifar10_without_ship_truck.safetensors
        --new ship truck --images 450 --old 250

The given ResNet20 knows CIFAR-100's classes, and no airplane and no cat; its site shows the ten aquatic classes. With a list
of classes beside the weights (.txt), as `benchmarks.train_base --without` writes it, the site shows these, of CIFAR-10. In
either case the old images are ones that the network was not trained on. Once the daemon has learnt from these, images of the
new classes, from CIFAR-10, are dropped at 50 a second. Accuracy is asked over the socket on test images, among all outputs:
100 of each class of CIFAR-100, 250 of CIFAR-10. Seconds are from the first new file to the moment at which the version is
served.

DIR holds cifar100.zip, cifar10_train.zip and cifar10_test.zip, with entries train/<class>/<name> and test/...
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.site import AQUATIC, MEAN, STD, TRAINED_ON, archive, drop, of_class, png
from benchmarks.stage import Stage, machine, need, say, table

CONFIG = """
inbox: {settle: 500ms, scan_interval: 2s}
buffer: {validation: 10%, holdout: 20%}
classes: {new: accept}
triggers: {new_samples: ENOUGH, new_class_samples: NEEDED, cooldown: 5s}
budgets: {interval: 1s, memory_available_min: 200MiB, disk_free_min: 200MiB}
pruning: {level: LEVEL}
training:
  {epochs_after: EPOCHS, seed: SEED, threads: THREADS, update: UPDATE, rehearsal: "REHEARSAL", distillation: DISTILLATION}
"""
PER_SECOND = 50.0
TESTED = {"cifar100": 100, "cifar10": 250}  # of each class
BASE_SAW = 2400  # of each class of CIFAR-10, in the archive's order

Picture = tuple[str, str, bytes]  # name, label, PNG


class Site:
    """What is shown, and what is asked."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        listed = arguments.weights.with_suffix(".txt")
        if listed.exists():
            self._read_cifar10(arguments, tuple(listed.read_text(encoding="utf-8").split()))
        else:
            self._read_cifar100(arguments)
        self.new = in_turn(
            [_cifar10(arguments.data, label, "train", range(arguments.images)) for label in arguments.new]
        )
        self.new_tests = as_tests(arguments.data, arguments.new, self._tested)

    def _read_cifar10(self, arguments: argparse.Namespace, known: tuple[str, ...]) -> None:
        self.classes, self._tested = known, TESTED["cifar10"]
        rows = range(BASE_SAW, BASE_SAW + arguments.old)
        self.old = in_turn([_cifar10(arguments.data, label, "train", rows) for label in known])
        self.old_tests = as_tests(arguments.data, known, self._tested)

    def _read_cifar100(self, arguments: argparse.Namespace) -> None:
        self._tested = TESTED["cifar100"]
        with archive(arguments.data) as zipped:
            names = zipped.namelist()
            self.classes = tuple(sorted({name.split("/")[1] for name in names if name.startswith("test/")}))
            of = {label: of_class(names, "train", label)[TRAINED_ON:][: arguments.old] for label in AQUATIC}
            self.old = in_turn([[(Path(n).stem, label, png(zipped.read(n))) for n in of[label]] for label in AQUATIC])
            self.old_tests = [
                (png(zipped.read(n)), label)
                for label in AQUATIC
                for n in of_class(names, "test", label)[: self._tested]
            ]


def staged(root: Path, config: str, weights: Path, classes: Sequence[str]) -> Stage:
    """A daemon in that directory, not started yet, whose factory model is the given ResNet20 of these classes."""
    (root / "classes.txt").write_text("".join(f"{label}\n" for label in classes))
    stage = Stage(root, config)
    stage.import_model(
        "cifar:resnet20", "--weights", str(weights), "--classes", str(root / "classes.txt"),
        "--size", "32x32", "--mean", MEAN, "--std", STD,
    )  # fmt: skip
    return stage


def in_turn(classes: list[list[Picture]]) -> list[Picture]:
    """One of each class after the other."""
    return [picture for row in zip(*classes, strict=True) for picture in row]


def _cifar10(data: Path, label: str, part: str, rows: range) -> list[Picture]:
    path = data / f"cifar10_{part}.zip"
    if not path.exists():
        raise SystemExit(f"{path} is missing: a zip of CIFAR-10 with entries {part}/<class>/<name>.webp")
    with zipfile.ZipFile(path) as zipped:
        names = of_class(zipped.namelist(), part, label)[rows.start : rows.stop]
        return [(f"{label}-{Path(name).stem}", label, png(zipped.read(name))) for name in names]


def classes_of_cifar10(data: Path) -> tuple[str, ...]:
    """All ten, in the order of the given networks' outputs."""
    with zipfile.ZipFile(data / "cifar10_test.zip") as zipped:
        return tuple(sorted({name.split("/")[1] for name in zipped.namelist() if name.startswith("test/")}))


def as_tests(data: Path, labels: Sequence[str], count: int) -> list[tuple[bytes, str]]:
    """The first test images of some classes of CIFAR-10."""
    return [(pixels, label) for label in labels for _, _, pixels in _cifar10(data, label, "test", range(count))]


class Play:
    """One run."""

    def __init__(self, stage: Stage, site: Site) -> None:
        self._stage, self._site = stage, site
        self.rows: list[tuple[str, ...]] = [
            ("served", "old classes", "new classes", "seconds since the first new file")
        ]

    def note(self, words: str, seconds: float | None = None) -> None:
        """Ask the served version."""
        stage, site = self._stage, self._site
        self.rows.append((
            words, f"{stage.accuracy(site.old_tests):.1%}", f"{stage.accuracy(site.new_tests):.1%}",
            "" if seconds is None else f"{seconds:.0f}",
        ))  # fmt: skip
        say("  " + "  ".join(self.rows[-1]))

    def round_after(self, last_id: int, *, imprints: bool) -> Any:
        """The status at the end of the next round, of the next one that trains or of the next imprint."""
        while True:
            status = self._stage.wait_for_round(last_id)
            last = status["last_round"]
            say(f"round {last['id']} ({last['kind']}) {last['outcome']}: {'; '.join(last['reasons'])}")
            if (last["kind"] == "imprint") is imprints:
                return status
            last_id = last["id"]

    def run(self, new: list[str]) -> None:
        """All of it."""
        stage, site = self._stage, self._site
        self.note("factory model")
        say(f"dropping {len(site.old)} images of the old classes")
        drop(stage.inbox, site.old, PER_SECOND)
        status = self.round_after(0, imprints=False)
        self.note(f"{status['served']['version']}, {status['last_round']['kind']} {status['last_round']['outcome']}")
        say(f"dropping {len(site.new)} images of {', '.join(new)}")
        began_s = time.monotonic()
        drop(stage.inbox, site.new, PER_SECOND)
        last_id = status["last_round"]["id"]
        while not set(new) <= set(stage.status()["served"]["marks"]):
            status = self.round_after(last_id, imprints=True)
            last_id = status["last_round"]["id"]
            if status["last_round"]["outcome"] != "promoted":
                break
        self.note(f"{stage.status()['served']['version']}, imprinted", time.monotonic() - began_s)
        status = self.round_after(last_id, imprints=False)
        last = status["last_round"]
        self.note(f"{status['served']['version']}, {last['kind']} {last['outcome']}", time.monotonic() - began_s)


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--new", nargs="+", default=["airplane", "cat"], help="classes of CIFAR-10")
    parser.add_argument("--images", type=int, default=100, help="of each new class")
    parser.add_argument("--old", type=int, default=100, help="of each old class on the board")
    parser.add_argument("--distillation", default="null", help="training.distillation")
    parser.add_argument("--level", default="0%", help="of pruning; 0%%: rounds only fine-tune")
    parser.add_argument("--update", default="full", choices=["full", "tail", "head", "latent", "auto"])
    parser.add_argument("--rehearsal", default="plain", choices=["plain", "er_ace", "der++"])
    parser.add_argument("--epochs", type=float, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="of the trainer")
    arguments = parser.parse_args()
    need(parser, arguments, weights="a ResNet20 as safetensors")
    site = Site(arguments)
    config = CONFIG
    for word, value in (
        ("NEEDED", round(0.55 * arguments.images)), ("LEVEL", arguments.level), ("EPOCHS", arguments.epochs),
        ("SEED", arguments.seed), ("THREADS", arguments.threads), ("UPDATE", arguments.update),
        ("REHEARSAL", arguments.rehearsal), ("DISTILLATION", arguments.distillation),
        ("ENOUGH", round(0.64 * len(site.old))),
    ):  # fmt: skip
        config = config.replace(word, str(value))
    with tempfile.TemporaryDirectory(prefix="edgetune-new-classes-") as directory:
        root = Path(directory)
        with staged(root, config, arguments.weights, site.classes) as stage:
            play = Play(stage, site)
            play.run(arguments.new)
    say(f"\n{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads\n{table(play.rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
