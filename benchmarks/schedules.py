"""
A round's cosine schedule beside the paper's two steps: what each makes of one site, at one level.

    python -m benchmarks.schedules --data DIR_WITH_cifar100.zip --weights resnet20_cifar100.safetensors
        [--subsets aquatic indoor] [--level 75] [--seeds 0 1] [--threads 1]

The given ResNet20 and 800 images of a site that it was not trained on; taylor, in multiples of 8, no distillation. "paper" is
5 + 25 epochs of batch 128 at the rates of arXiv 2006.08554; "cosine" a round's own rates in batches of 64, once with its 4
+ 12 epochs and once with the paper's number. Top-1 on validation images, which may choose, and on the test images.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from benchmarks.one_site import OneSite, add_arguments
from benchmarks.stage import machine, say, table
from edgetune.types import Recipe

RECIPE = Recipe(schedule="cosine", round_to=8, memory_format="contiguous", dtype="float32")
SCHEDULES = {
    "cosine, 4 + 12 epochs": RECIPE,
    "cosine, 5 + 25 epochs": replace(RECIPE, epochs_before=5, epochs_after=25),
    "paper, 5 + 25 epochs": replace(RECIPE, schedule="paper"),
}


def main() -> int:
    """Read the arguments, run every combination."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--subsets", nargs="+", default=["aquatic", "indoor"])
    parser.add_argument("--level", type=float, default=75)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    arguments = parser.parse_args()
    say(f"{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads, level {arguments.level:g} %")
    rows = [("subset", "schedule", "seed", "validation", "test", "seconds")]
    for subset in arguments.subsets:
        site = OneSite(arguments, subset)
        for seed in arguments.seeds:
            for name, schedule in SCHEDULES.items():
                recipe = replace(schedule, level=arguments.level / 100, seed=seed, threads=arguments.threads)
                rows.append((subset, name, str(seed), *site.tried(recipe)))
                say("  " + "  ".join(rows[-1]))
    say(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
