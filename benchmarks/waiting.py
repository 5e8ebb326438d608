"""
How threads of a training wait for each other, beside other work: a step's time by OMP_WAIT_POLICY.

    python -m benchmarks.waiting [--net cifar:resnet20] [--batch 64] [--threads 2] [--neighbours 0 1 2] [--runs 3]

Neighbours are processes that never pause, at the niceness of this one, as a camera application and its decoder may be. Every
figure is the median step of a fresh process; the policies take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median

from benchmarks.stage import machine, say, table

POLICIES = {"active": {"OMP_WAIT_POLICY": "active"}, "as torch comes": {}, "passive": {"OMP_WAIT_POLICY": "passive"}}
STEPS = 7
_KEYS = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")


def step_s(net: str, batch: int, threads: int) -> float:
    """In this process: the median of some training steps on noise."""
    import torch
    from torch.nn import functional

    from edgetune.learn.network import new_network

    torch.set_num_threads(threads)
    module = new_network(net, 100).module.train()
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 100, (batch,))
    taken_s = []
    for _ in range(STEPS):
        began_s = time.perf_counter()
        functional.cross_entropy(module(images), labels).backward()  # type: ignore[no-untyped-call]  # torch's
        taken_s.append(time.perf_counter() - began_s)
    return median(taken_s)


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Processes that keep a core busy each."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def elsewhere(arguments: argparse.Namespace, policy: dict[str, str]) -> float:
    """`step_s` in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key not in _KEYS} | policy
    call = [sys.executable, "-m", "benchmarks.waiting", "--one", "--net", arguments.net]
    call += ["--batch", str(arguments.batch), "--threads", str(arguments.threads)]
    return float(subprocess.run(call, check=True, capture_output=True, text=True, env=environment).stdout)


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="cifar:resnet20")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--neighbours", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        say(str(step_s(arguments.net, arguments.batch, arguments.threads)))
        return 0
    say(
        f"{machine()}, {time.strftime('%Y-%m-%d')}, {arguments.threads} threads, {arguments.net}, {arguments.batch} images"
    )
    rows: list[tuple[str, ...]] = [("busy neighbours", *POLICIES)]
    for count in arguments.neighbours:
        with neighbours(count):
            taken = [
                {name: elsewhere(arguments, policy) for name, policy in POLICIES.items()} for _ in range(arguments.runs)
            ]
        rows.append((str(count), *(f"{median(run[name] for run in taken):.2f} s" for name in POLICIES)))
    say(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
