"""
Does the engine choose the right multiple of channels? Each one's latency, what it keeps of the scores, and its accuracy.

    python -m benchmarks.multiples --data DIR_WITH_cifar100.zip --weights resnet20_cifar100.safetensors
        [--subset aquatic] [--levels 50 75] [--seeds 0 1] [--net cifar:resnet20] [--threads 1]

The engine cuts to a level of the parameters, times every multiple in turn with the whole network, and takes the fastest
that keeps nearly as much of the scores as the best of them; what becomes of the accuracy it cannot know before it has
trained. Here every candidate is retrained, with the same 4 + 12 epochs on 800 images of a site, no distillation. Top-1
on the test images among all hundred outputs.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import replace

from benchmarks.cifar import PREPROCESS
from benchmarks.one_site import OneSite, add_arguments
from benchmarks.stage import machine, say, table
from edgetune.learn.control import SilentControl
from edgetune.learn.cost import size_of
from edgetune.learn.latency import Stopwatch, export_engine
from edgetune.learn.tuner import RETRAIN, TUNE
from edgetune.serve.engine import Engine
from edgetune.types import Recipe

RECIPE = Recipe(memory_format="contiguous", dtype="float32", timing_runs=200)
HEAD = ("level", "seed", "multiple", "parameters", "latency", "quartiles", "scores kept", "test", "taken")


def main() -> int:
    """Read the arguments, run every multiple."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--levels", nargs="+", type=float, default=[50, 75])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    arguments = parser.parse_args()
    say(f"{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads, {arguments.net}, {arguments.subset}")
    site = OneSite(arguments)
    engine = export_engine(site.given, PREPROCESS, threads=arguments.threads)
    rows: list[tuple[str, ...]] = [HEAD]
    for level in arguments.levels:
        for seed in arguments.seeds:
            recipe = replace(RECIPE, level=level / 100, seed=seed, threads=arguments.threads)
            for row in each_multiple(site, recipe, engine):
                rows.append((f"{level:g} %", str(seed), *row))
                say("  " + "  ".join(rows[-1]))
    say(table(rows))
    return 0


def each_multiple(site: OneSite, recipe: Recipe, engine: Engine) -> list[tuple[str, ...]]:
    """A row for every candidate that the engine timed."""
    tuner = site.tuner(recipe)
    tuned = tuner.place(copy.deepcopy(site.given))
    tuner.fine_tune(tuned, TUNE, round(recipe.epochs_before * tuner.epoch_steps))
    ranking, whole = tuner.rank(tuned), size_of(site.given, PREPROCESS)
    stopwatch = Stopwatch(engine, PREPROCESS, runs=recipe.timing_runs, beat=SilentControl().beat)
    taken = tuner.shape(tuned, ranking, share=1 - recipe.level, whole=whole, stopwatch=stopwatch)
    rows: list[tuple[str, ...]] = []
    for candidate in taken.candidates:
        mine = site.tuner(replace(recipe, round_to=candidate.round_to))
        network = mine.shape(tuned, ranking, share=1 - recipe.level, whole=whole, stopwatch=None).network
        mine.fine_tune(network, RETRAIN, round(recipe.epochs_after * mine.epoch_steps))
        low, high = candidate.ratio_quartiles or (float("nan"), float("nan"))
        rows.append(
            (
                str(candidate.round_to),
                f"{candidate.parameters:,}",
                f"{candidate.latency_ratio:.2f}x",
                f"{low:.2f} to {high:.2f}",
                f"{candidate.kept_share:.1%}",
                f"{site.top1(network, site.test):.1%}",
                "x" if candidate.round_to == taken.round_to else "",
            )
        )
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
