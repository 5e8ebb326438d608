"""
How small and fast a network may become for a site, and what finding out costs: `steps` against the paper's `dapr`.

    python -m benchmarks.search --data DIR_WITH_cifar100.zip --weights resnet20_cifar100.safetensors
        [--net cifar:resnet20] [--subset aquatic] [--strategies dapr equal steps] [--seeds 0] [--ratio 0.333]
        [--unit latency|parameters] [--order auto] [--work DIR]

The given network was not trained on the site's images: 80 of each class are learnt from, 20 select, the 100 test images of
each class are asked once at the end. The least latency, or number of parameters, is looked for at which validation accuracy is at most one point below
that of the network as given; with `--ratio` a search by steps ends where it is reached; `equal` is one that ends at what `dapr` found. Both strategies tune, rank and
retrain with the same recipe: 2 epochs before, 12 after (a trial of `steps` has at most 4). "epochs until found" are those before and those
of all trials: then there is a network that is accurate enough, which steps trains on to the end of its 12.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.cifar import PREPROCESS
from benchmarks.one_site import OneSite, add_arguments
from benchmarks.stage import machine, say, table
from edgetune.learn.compress import Goal, Material, compress
from edgetune.learn.network import count_parameters
from edgetune.types import Recipe

STRATEGIES = ("dapr", "equal", "steps")  # in the order they are run


def main() -> int:
    """Read the arguments, run every strategy on every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--ratio", type=float)
    parser.add_argument("--unit", choices=["latency", "parameters"], default="latency")
    parser.add_argument("--distillation", type=float, default=0.5)
    parser.add_argument("--order", choices=["auto", "tune_first", "prune_first"], default="auto")
    arguments = parser.parse_args()
    site = OneSite(arguments)
    say(f"{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads, {arguments.net}, {arguments.subset}")
    rows = [(
        "strategy", "seed", "test top-1", "parameters", "latency", "trials", "epochs until found", "epochs", "seconds",
        "ended because",
    )]  # fmt: skip
    whole = count_parameters(site.given.module)
    rows.append(("as given", "", f"{site.top1(site.given, site.test):.1%}", f"{whole:,}", "1.00x", "", "", "", "", ""))
    for seed in arguments.seeds:
        material = Material(
            training=site.training(seed),
            validation=site.validation,
            preprocess=PREPROCESS,
            classes=site.archive.classes,
        )
        found = arguments.ratio
        for strategy in (name for name in STRATEGIES if name in arguments.strategies):
            recipe = Recipe(
                level_of=arguments.unit, epochs_before=2, seed=seed, threads=arguments.threads,
                distillation=arguments.distillation, order=arguments.order,
            )  # fmt: skip
            goal = Goal(
                strategy="dapr" if strategy == "dapr" else "steps",
                ratio=found if strategy == "equal" else arguments.ratio,
            )
            with tempfile.TemporaryDirectory(prefix="edgetune-search-") as scratch:
                outcome = compress(
                    site.given, material, recipe, goal, work=Path(scratch), threads=1,
                    told=lambda p: say(
                        f"    {p.share:.0%} asked: {p.latency_ratio:.2f}x, {p.parameters:,} parameters, "
                        f"validation {p.accuracy:.1%}, {p.epochs:g} epochs, {'kept' if p.is_success else 'not kept'}"
                    ),
                )  # fmt: skip
            if strategy == "dapr":
                is_timed = arguments.unit == "latency"
                found = outcome.best.latency_ratio if is_timed else outcome.best.parameters / whole
            rows.append((
                strategy, str(seed), f"{site.top1(outcome.network, site.test):.1%}", f"{outcome.best.parameters:,}",
                f"{outcome.best.latency_ratio:.2f}x", str(len(outcome.points)),
                f"{recipe.epochs_before + sum(point.epochs for point in outcome.points):g}", f"{outcome.epochs:g}",
                f"{outcome.seconds:.0f}", outcome.stopped_by,
            ))  # fmt: skip
            say("  " + "  ".join(rows[-1]))
    say(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
