"""
What the training of a round takes of memory: as forecast, as measured, and with pruning first.

    python -m benchmarks.memory [--nets cifar:resnet20 cifar:mobilenet_v2 cifar:squeezenet] [--batches 64 128]
        [--level 75] [--threads 1]
    python -m benchmarks.memory --bare

Random weights and noise: memory does not look at values. Every figure is of a fresh process: resident memory's high-water
mark (VmHWM) after three training steps of the whole network, and of a round's phases in both orders at one level of
parameters: tune_first (train the whole network, score, cut, train what is left) and prune_first (score in batches that fit
into what the smaller network will take, cut, train). --bare: what making torch's own optimiser takes, which imports torch's
compiler, and what making this project's does.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import psutil
import torch

from benchmarks.fresh import CLASSES, in_fresh_process, noise
from benchmarks.stage import machine, say, table
from edgetune.learn.control import SilentControl
from edgetune.learn.cost import size_of
from edgetune.learn.forecaster import Forecaster, process_peak_mib
from edgetune.learn.layout import pin_torch
from edgetune.learn.network import new_network
from edgetune.learn.optimiser import Sgd
from edgetune.learn.tuner import RETRAIN, TUNE, Tuner
from edgetune.types import BoardHistory, Preprocess, Recipe

SIZE = Preprocess(height=32, width=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
STEPS = 3


def measure(
    *, net: str, batch: int, order: str, level: float, threads: int, most_mib: float | None
) -> dict[str, float]:
    """In this process: what was forecast for the whole network, and the peak."""
    torch.set_num_threads(threads)
    recipe = Recipe(
        level_of="parameters", level=level / 100, round_to=1, batch_size=batch, scoring_batches=3, threads=threads,
        memory_format="contiguous", dtype="float32", order="tune_first" if order == "whole" else order,
        memory_max_mib=most_mib,
    )  # fmt: skip
    data = noise(8 * batch, SIZE)
    tuner = Tuner(
        recipe, data, noise(0, SIZE), preprocess=SIZE, device=torch.device("cpu"), control=SilentControl()
    )  # fmt: skip
    network = tuner.place(new_network(net, CLASSES))
    warm = tuner.normaliser(data.images(np.arange(2)))
    network.module.train()(warm).sum().backward()
    network.module.zero_grad(set_to_none=True)
    tuner.forecaster = Forecaster(BoardHistory(), threads=threads)  # the libraries are there by now
    forecast = tuner.forecaster.peak_mib(tuner.workload(network), batch).likely
    if order != "whole":
        why = tuner.prunes_first(network)
        if not why:
            tuner.fine_tune(network, TUNE, STEPS)
        shape, _ = tuner.cut(network, share=1 - level / 100, whole=size_of(network, SIZE), stopwatch=None)
        network = shape.network
    tuner.fine_tune(network, RETRAIN, STEPS)
    return {"forecast": round(forecast), "peak": process_peak_mib() or 0.0, "scoring_batch": tuner.scoring_batch}


def bare(*, optimiser: str) -> dict[str, float]:
    """In this process: what making an optimiser takes, torch's own or this project's, and the seconds of it."""
    before_mib, began_s = psutil.Process().memory_info().rss / 2**20, time.monotonic()
    weight = torch.nn.Parameter(torch.zeros(1))
    if optimiser == "torch":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    else:
        pin_torch(1, {})
        Sgd({"weight": weight}, learning_rate=0.1, momentum=0.9)
    taken_s = time.monotonic() - began_s
    return {"before": before_mib, "after": psutil.Process().memory_info().rss / 2**20, "seconds": taken_s}


def show_bare() -> None:
    """Three fresh processes each."""
    for _ in range(3):
        for optimiser in ("torch", "edgetune"):
            found = in_fresh_process("benchmarks.memory", optimiser=optimiser)
            say(f"  {optimiser}: {found['before']:.0f} -> {found['after']:.0f} MiB, {found['seconds']:.2f} s")


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["cifar:resnet20", "cifar:mobilenet_v2", "cifar:squeezenet"])
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--level", type=float, default=75)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--bare", action="store_true", help="what an optimiser takes before its first step, nothing else"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        asked = json.loads(arguments.one)
        say(json.dumps(bare(**asked) if "optimiser" in asked else measure(**asked)))
        return 0
    if arguments.bare:
        show_bare()
        return 0
    say(f"{machine()}, {arguments.threads} threads, level {arguments.level:g} % of the parameters")
    rows = [("net", "batch", "forecast", "whole", "tune_first", "prune_first", "scored in batches of")]
    for net in arguments.nets:
        for batch in arguments.batches:
            asked = {"net": net, "batch": batch, "level": arguments.level, "threads": arguments.threads}
            whole = in_fresh_process("benchmarks.memory", **asked, order="whole", most_mib=None)
            late = in_fresh_process("benchmarks.memory", **asked, order="tune_first", most_mib=None)
            most_mib = 0.6 * whole["peak"]
            early = in_fresh_process("benchmarks.memory", **asked, order="prune_first", most_mib=most_mib)
            rows.append((
                net, str(batch), f"{whole['forecast']:.0f} MiB", f"{whole['peak']:.0f} MiB", f"{late['peak']:.0f} MiB",
                f"{early['peak']:.0f} MiB", f"{early['scoring_batch']:.0f}",
            ))  # fmt: skip
            say("  " + "  ".join(rows[-1]))
    say(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
