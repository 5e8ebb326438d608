"""
What a site's training does to the classes it does not show, with and without the factory model's word.

    python -m benchmarks.absent --data DIR_WITH_cifar100.zip --weights resnet20_cifar100.safetensors
        [--subset aquatic] [--levels 30 60] [--weights-of-teacher 0 0.5] [--seeds 0 1]

The given ResNet20 knows a hundred classes. The site shows 80 images of each class of the subset that the network was not
trained on; 20 more select. Tuned for 2 epochs, pruned with the default criterion in multiples of 8, retrained for 8. Top-1
among all hundred outputs: on the test images of the site's classes, and on 15 test images of each of the others.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.cifar import PREPROCESS, classes_of, read_archive
from benchmarks.stage import machine, say, table
from edgetune.learn.control import SilentControl
from edgetune.learn.finetune import validation_score
from edgetune.learn.importer import read_weights
from edgetune.learn.layout import arrange
from edgetune.learn.network import load_strictly, new_network
from edgetune.learn.tuner import RETRAIN, TUNE, Tuner, size_of
from edgetune.types import Recipe

RECIPE = Recipe(round_to=8, epochs_before=2, epochs_after=8, memory_format="contiguous", dtype="float32")


def main() -> int:
    """Read the arguments, run every combination."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--subset", default="aquatic")
    parser.add_argument("--levels", nargs="+", type=float, default=[30, 60])
    parser.add_argument("--weights-of-teacher", nargs="+", type=float, default=[0, 0.5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    archive = read_archive(arguments.data, arguments.work)
    given = new_network("cifar:resnet20", len(archive.classes))
    load_strictly(given.module, read_weights(arguments.weights))
    shown = classes_of(arguments.subset)
    absent = archive.samples("test", [label for label in archive.classes if label not in shown], range(15))
    site = archive.samples("test", shown, range(100))
    rows = [("level", "teacher's weight", "seed", "site", "absent classes", "seconds")]
    say(f"{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads, {arguments.subset}")
    for level in (0.0, *arguments.levels):
        for weight in arguments.weights_of_teacher if level else (0.0,):
            for seed in arguments.seeds if level else (0,):
                recipe = replace(RECIPE, distillation=weight, seed=seed, threads=arguments.threads)
                began_s = time.monotonic()
                control, device = SilentControl(), torch.device("cpu")
                tuner = Tuner(
                    recipe,
                    archive.samples("train", shown, range(400, 480), seed=seed),
                    archive.samples("train", shown, range(480, 500)),
                    preprocess=PREPROCESS,
                    device=device,
                    control=control,
                    teacher=arrange(copy.deepcopy(given.module), device, "contiguous").eval(),
                )
                network = tuner.place(copy.deepcopy(given))
                if level:
                    tuner.fine_tune(network, TUNE, round(recipe.epochs_before * tuner.epoch_steps))
                    whole, share = size_of(given, PREPROCESS), 1 - level / 100
                    shape, _ = tuner.cut(network, share=share, whole=whole, stopwatch=None)
                    network = shape.network
                    tuner.fine_tune(network, RETRAIN, round(recipe.epochs_after * tuner.epoch_steps))
                top1 = [
                    validation_score(network.module, data, tuner.normaliser, 250, control)[0] for data in (site, absent)
                ]
                rows.append((
                    f"{level:g} %", f"{weight:g}", str(seed), f"{top1[0]:.1%}", f"{top1[1]:.1%}",
                    f"{time.monotonic() - began_s:.0f}",
                ))  # fmt: skip
                say("  " + "  ".join(rows[-1]))
    say(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
