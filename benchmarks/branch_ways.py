"""
Two ways to choose the residual branches that go: each by what the loss rises without it alone, or when those before it have gone.

    python -m benchmarks.branch_ways --data DIR --weights resnet20_cifar100.safetensors [--work DIR]
        [--subsets aquatic indoor outdoor] [--levels 50 67 75] [--seeds 0]

`Tuner.cut` cuts both ways and takes the network that keeps more parameters at the latency that was asked for. Here each way
cuts alone, and both networks are retrained and asked: is the larger one the better one? As in
`benchmarks.versus_torch_pruning`: ResNet20 on a site's unseen images of CIFAR-100, 2 epochs before the cut and 12 after.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from benchmarks.cells import Cell
from benchmarks.cifar import read_archive
from benchmarks.stage import machine, need, say, table
from benchmarks.versus_torch_pruning import NET, SCHEDULE, Comparison
from edgetune.learn.depth import DEPTHS, Thinner
from edgetune.learn.network import Network

WAYS = {"alone": True, "one by one": False}


@contextmanager
def one_way(*, is_alone: bool) -> Iterator[None]:
    """Let every cut choose in this way, whichever it asks for."""

    class OneWay(Thinner):
        def thin_out(self, *, share: float, depth: float = DEPTHS[0], is_alone: bool = is_alone) -> Network:  # noqa: ARG002
            return super().thin_out(share=share, depth=depth, is_alone=wanted)

    wanted = is_alone
    with mock.patch("edgetune.learn.tuner.Thinner", OneWay):
        yield


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="where the decoded images are kept")
    parser.add_argument("--subsets", nargs="+", default=["aquatic", "indoor", "outdoor"])
    parser.add_argument(
        "--levels", type=float, nargs="+", default=[50.0, 67.0, 75.0], help="% of the latency to remove"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    need(parser, arguments, weights="a ResNet20 of CIFAR-100 as safetensors")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="edgetune-branches-") as directory:
        comparison = Comparison(arguments.weights, read_archive(arguments.data, arguments.work or Path(directory)))
        rows: list[tuple[str, ...]] = [("site", "seed", "level", "chosen", "parameters", "latency", "test top-1")]
        for subset in arguments.subsets:
            for seed in arguments.seeds:
                for level in arguments.levels:
                    for words, is_alone in WAYS.items():
                        cell = Cell(
                            net=NET, images="unseen", subset=subset, unit="latency", level=level, arm="edgetune", seed=seed,
                            schedule=SCHEDULE,
                        )  # fmt: skip
                        with one_way(is_alone=is_alone):
                            done = comparison.fill(cell)
                        rows.append(
                            (subset, str(seed), f"{level:.0f} %", words, f"{done.parameters:,}",
                             f"{done.latency_ratio:.2f}x", f"{done.test:.1%}")
                        )  # fmt: skip
                        say("  " + "  ".join(rows[-1]))
    say(f"\n{machine()}, {time.strftime('%Y-%m-%d')}, 1 thread\n{table(rows)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
