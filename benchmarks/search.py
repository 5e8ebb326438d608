"""
How small and fast a network may become for a site, and what finding out costs: `steps` against the paper's `dapr`.

    python -m benchmarks.search --data DIR_WITH_cifar100.zip --weights resnet20_cifar100.safetensors
        [--subset aquatic] [--strategies steps dapr] [--seeds 0] [--ratio 0.333] [--work DIR]

The given ResNet20 was not trained on the site's images: 80 of each class are learnt from, 20 select, the 100 test images of
each class are asked once at the end. The least latency is looked for at which validation accuracy is at most one point below
that of the network as given; with `--ratio` a search by steps ends where it is reached. Both strategies tune, rank and
retrain with the same recipe: 2 epochs before, 12 after (a trial of `steps` has at most 4).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.cifar import PREPROCESS, classes_of, read_archive
from benchmarks.stage import machine, say, table
from edgetune.learn.compress import Goal, Material, compress
from edgetune.learn.control import SilentControl
from edgetune.learn.data import Normaliser
from edgetune.learn.finetune import validation_score
from edgetune.learn.importer import read_weights
from edgetune.learn.network import Network, load_strictly, new_network
from edgetune.types import Recipe


def main() -> int:
    """Read the arguments, run every strategy on every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--subset", default="aquatic")
    parser.add_argument("--strategies", nargs="+", default=["steps", "dapr"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--ratio", type=float)
    parser.add_argument("--distillation", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    archive = read_archive(arguments.data, arguments.work)
    network = new_network("cifar:resnet20", len(archive.classes))
    load_strictly(network.module, read_weights(arguments.weights))
    shown = classes_of(arguments.subset)
    test = archive.samples("test", shown, range(100))
    normaliser = Normaliser(PREPROCESS, torch.device("cpu"))

    def top1(found: Network) -> float:
        return validation_score(found.module, test, normaliser, 250, SilentControl())[0]

    say(f"{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads, {arguments.subset}")
    rows = [("strategy", "seed", "test top-1", "parameters", "latency", "trials", "epochs", "seconds", "ended because")]
    rows.append(("as given", "", f"{top1(network):.1%}", "278,324", "1.00x", "", "", "", ""))
    for seed in arguments.seeds:
        material = Material(
            training=archive.samples("train", shown, range(400, 480), seed=seed),
            validation=archive.samples("train", shown, range(480, 500)),
            preprocess=PREPROCESS,
            classes=archive.classes,
        )
        for strategy in arguments.strategies:
            recipe = Recipe(
                level_of="latency", epochs_before=2, seed=seed, threads=arguments.threads,
                distillation=arguments.distillation,
            )  # fmt: skip
            goal = Goal(strategy=strategy, ratio=arguments.ratio)
            with tempfile.TemporaryDirectory(prefix="edgetune-search-") as scratch:
                outcome = compress(
                    network, material, recipe, goal, work=Path(scratch), threads=1,
                    told=lambda p: say(
                        f"    {p.share:.0%} asked: {p.latency_ratio:.2f}x, {p.parameters:,} parameters, "
                        f"validation {p.accuracy:.1%}, {p.epochs:g} epochs, {'kept' if p.is_success else 'not kept'}"
                    ),
                )  # fmt: skip
            rows.append((
                strategy, str(seed), f"{top1(outcome.network):.1%}", f"{outcome.best.parameters:,}",
                f"{outcome.best.latency_ratio:.2f}x", str(len(outcome.points)), f"{outcome.epochs:g}",
                f"{outcome.seconds:.0f}", outcome.stopped_by,
            ))  # fmt: skip
            say("  " + "  ".join(rows[-1]))
    say(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
