"""What several benchmarks begin with: a network of a hundred classes, and a site that shows images which it was not trained on."""

from __future__ import annotations

import argparse
import copy
import os
import time
from pathlib import Path

import torch

from benchmarks.cifar import PREPROCESS, classes_of, read_archive
from edgetune.learn.control import SilentControl
from edgetune.learn.cost import size_of
from edgetune.learn.data import LabelledImages
from edgetune.learn.finetune import validation_score
from edgetune.learn.importer import read_weights
from edgetune.learn.layout import arrange
from edgetune.learn.network import Network, load_strictly, new_network
from edgetune.learn.schedules import PAPER, settle
from edgetune.learn.tuner import RETRAIN, TUNE, Tuner
from edgetune.types import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that `OneSite` reads."""
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--net", default="cifar:resnet20", choices=sorted(PAPER), help="of --weights")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--subset", default="aquatic")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)


class OneSite:
    """
    A subset of CIFAR-100's classes; the network answers among all hundred.

    Attributes:
        given: trained on the first 400 images of each class.
        shown: names of the site's classes.
        validation: 20 images of each that were not trained on.
        test: the test images of each.
    """

    def __init__(self, arguments: argparse.Namespace, subset: str | None = None) -> None:
        """`subset`: default is the arguments'."""
        torch.set_num_threads(arguments.threads)
        self.archive = read_archive(arguments.data, arguments.work)
        self.architecture = arguments.net
        self.given = new_network(self.architecture, len(self.archive.classes))
        load_strictly(self.given.module, read_weights(arguments.weights))
        self.shown = classes_of(subset or arguments.subset)
        self.validation = self.archive.samples("train", self.shown, range(480, 500))
        self.test = self.archive.samples("test", self.shown, range(100))

    def training(self, seed: int) -> LabelledImages:
        """80 images of each class, in the order of a seed, that were not trained on."""
        return self.archive.samples("train", self.shown, range(400, 480), seed=seed)

    def tuner(
        self, recipe: Recipe, training: LabelledImages | None = None, validation: LabelledImages | None = None
    ) -> Tuner:
        """A round's hands, by default on all of the site's images; the given network is the teacher."""
        device = torch.device("cpu")
        return Tuner(
            settle(recipe, self.architecture), self.training(recipe.seed) if training is None else training,
            self.validation if validation is None else validation, preprocess=PREPROCESS,
            device=device, control=SilentControl(),
            teacher=arrange(copy.deepcopy(self.given).module, device, "contiguous").eval(),
        )  # fmt: skip

    def pruned(self, recipe: Recipe) -> Network:
        """Tuned where the recipe has epochs for that, cut to its level of parameters, retrained."""
        recipe = settle(recipe, self.architecture)
        tuner = self.tuner(recipe)
        network = tuner.place(copy.deepcopy(self.given))
        if recipe.epochs_before:
            tuner.fine_tune(network, TUNE, round(recipe.epochs_before * tuner.epoch_steps))
        whole = size_of(self.given, PREPROCESS)
        shape, _ = tuner.cut(network, share=1 - recipe.level, whole=whole, stopwatch=None)
        tuner.fine_tune(shape.network, RETRAIN, round(recipe.epochs_after * tuner.epoch_steps))
        return shape.network

    def tried(self, recipe: Recipe) -> tuple[str, str, str]:
        """What a recipe makes of the given network, for a table: validation and test top-1, and how long it took."""
        began_s = time.monotonic()
        network = self.pruned(recipe)
        validation, test = (f"{self.top1(network, data):.1%}" for data in (self.validation, self.test))
        return validation, test, f"{time.monotonic() - began_s:.0f}"

    def top1(self, network: Network, data: LabelledImages) -> float:
        """Share of right answers among all outputs."""
        return validation_score(network.module, data, self.tuner(Recipe()).normaliser, 250, SilentControl())[0]
