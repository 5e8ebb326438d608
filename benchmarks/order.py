"""
When to cut, in a round's own schedule: after tuning on the site, which the paper does, or at once.

    python -m benchmarks.order --data DIR_WITH_cifar100.zip --weights resnet20_cifar100.safetensors
        [--subsets aquatic indoor] [--levels 75 50 90] [--seeds 0 1] [--distillation 0] [--threads 1]

The given ResNet20 and 800 images or more of a site that it was not trained on; taylor, in multiples of 8, the rates and the
sixteen epochs of a round: 4 before and 12 after, or all of them after. Both see the same images in as many steps, but the steps
of a cut network are cheaper. Top-1 on validation images, which choose the epoch, and on the test images.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from benchmarks.one_site import OneSite, add_arguments
from benchmarks.stage import machine, say, table
from edgetune.types import Recipe

RECIPE = Recipe(round_to=8, memory_format="contiguous", dtype="float32")
ORDERS = {
    "tune_first": RECIPE,
    "prune_first": replace(RECIPE, epochs_before=0, epochs_after=RECIPE.epochs_before + RECIPE.epochs_after),
}


def main() -> int:
    """Read the arguments, run every combination."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--subsets", nargs="+", default=["aquatic", "indoor"])
    parser.add_argument("--levels", nargs="+", type=float, default=[75, 50, 90])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--distillation", type=float, default=0.0)
    arguments = parser.parse_args()
    say(
        f"{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads, distillation {arguments.distillation:g}"
    )
    rows = [("subset", "level", "seed", "order", "validation", "test", "seconds")]
    sites = {subset: OneSite(arguments, subset) for subset in arguments.subsets}
    for level in arguments.levels:
        for seed in arguments.seeds:
            for subset, site in sites.items():
                for name, order in ORDERS.items():
                    recipe = replace(
                        order,
                        level=level / 100,
                        seed=seed,
                        threads=arguments.threads,
                        distillation=arguments.distillation,
                    )
                    rows.append((subset, f"{level:g} %", str(seed), name, *site.tried(recipe)))
                    say("  " + "  ".join(rows[-1]))
    say(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
