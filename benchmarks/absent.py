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
import time
from dataclasses import replace

from benchmarks.one_site import OneSite, add_arguments
from benchmarks.stage import machine, say, table
from edgetune.types import Recipe

RECIPE = Recipe(round_to=8, epochs_before=2, epochs_after=8, memory_format="contiguous", dtype="float32")


def main() -> int:
    """Read the arguments, run every combination."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--levels", nargs="+", type=float, default=[30, 60])
    parser.add_argument("--weights-of-teacher", nargs="+", type=float, default=[0, 0.5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    arguments = parser.parse_args()
    site = OneSite(arguments)
    others = [label for label in site.archive.classes if label not in site.shown]
    absent = site.archive.samples("test", others, range(15))
    rows = [("level", "teacher's weight", "seed", "site", "absent classes", "seconds")]
    say(f"{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads, {arguments.subset}")
    for level in (0.0, *arguments.levels):
        for weight in arguments.weights_of_teacher if level else (0.0,):
            for seed in arguments.seeds if level else (0,):
                recipe = replace(RECIPE, level=level / 100, distillation=weight, seed=seed, threads=arguments.threads)
                began_s = time.monotonic()
                network = site.pruned(recipe) if level else copy.deepcopy(site.given)
                top1 = [site.top1(network, data) for data in (site.test, absent)]
                rows.append((
                    f"{level:g} %", f"{weight:g}", str(seed), f"{top1[0]:.1%}", f"{top1[1]:.1%}",
                    f"{time.monotonic() - began_s:.0f}",
                ))  # fmt: skip
                say("  " + "  ".join(rows[-1]))
    say(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
