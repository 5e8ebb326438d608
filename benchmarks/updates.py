"""
What training a part of a network saves: memory and time of full, tail, latent and head updates side by side.

    python -m benchmarks.updates [--nets cifar:resnet20 torchvision:mobilenet_v2] [--size 32] [--batch 64] [--images 640]
        [--epochs 3] [--threads 1]

Random weights and noise: neither memory nor time looks at values. Every figure is of a fresh process that does what a round
does (`learn.tuner`): the time of all epochs, with what is worked out once (latents) beside it, and resident memory's
high-water mark (VmHWM) over what the process held before; the forecast is the one that `training.update: auto` goes by.
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
from edgetune.learn.finetune import steps_per_epoch
from edgetune.learn.network import new_network
from edgetune.learn.tuner import RETRAIN, Tuner
from edgetune.types import Preprocess, Recipe

UPDATES = ("full", "tail", "latent", "head")


def measure(
    *, net: str, update: str, size: int, batch: int, images: int, epochs: float, threads: int
) -> dict[str, float | str]:
    """In this process."""
    torch.set_num_threads(threads)
    recipe = Recipe(batch_size=batch, threads=threads, memory_format="contiguous", dtype="float32", update=update)
    preprocess = Preprocess(height=size, width=size)
    data = noise(images, preprocess)
    tuner = Tuner(
        recipe, data, noise(0, preprocess), preprocess=preprocess, device=torch.device("cpu"), control=SilentControl()
    )
    network = tuner.place(new_network(net, CLASSES))
    warm = tuner.normaliser(data.images(np.arange(2)))
    network.module.train()(warm).sum().backward()
    network.module.zero_grad(set_to_none=True)
    steps = round(epochs * steps_per_epoch(data, batch))
    tuner.updating.name = taken = tuner.updating.ways(network, update)[
        0
    ]  # a network that latents do not suit has its tail trained
    before_mib = psutil.Process().memory_info().rss / 2**20
    began_s = time.monotonic()
    tuner.fine_tune(network, RETRAIN, steps)
    return {
        "update": taken,
        "seconds": time.monotonic() - began_s,
        "mib": (tuner.measured[RETRAIN].peak_mib or 0.0) - before_mib,
        "images_a_second": steps * batch / (time.monotonic() - began_s),
    }


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["cifar:resnet20", "torchvision:mobilenet_v2"])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        say(json.dumps(measure(**json.loads(arguments.one))))
        return 0
    say(
        f"{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads; {arguments.images} images of "
        f"{arguments.size} px, {arguments.epochs:g} epochs in batches of {arguments.batch}"
    )
    rows: list[tuple[str, ...]] = [("net", "update", "trained", "seconds", "of full", "memory beside the process's")]
    for net in arguments.nets:
        full_s = 0.0
        for update in UPDATES:
            asked = {name: getattr(arguments, name) for name in ("size", "batch", "images", "epochs", "threads")}
            found = in_fresh_process("benchmarks.updates", net=net, update=update, **asked)
            full_s = full_s or found["seconds"]
            rows.append((
                net, update, found["update"], f"{found['seconds']:.1f}", f"{found['seconds'] / full_s:.2f}x",
                f"{found['mib']:.0f} MiB",
            ))  # fmt: skip
            say("  " + "  ".join(rows[-1]))
    say(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
