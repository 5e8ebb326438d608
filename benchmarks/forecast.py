"""
How well the forecast of memory and time is met.

    python -m benchmarks.forecast --data DIR_WITH_tx2_training_profiles.csv
    python -m benchmarks.forecast --own

The table holds measurements of one training step of six networks on a Jetson TX2, pruned to 19 levels, at 224 pixels and
up to 25 batch sizes (perf4sight, arXiv 2108.05580, whose memory column is `mem_used`: what the system holds more than
before; `mem_alloc` is torch's own count). Five levels of all networks calibrate, the other fourteen are forecast; the
choice of five varies. Then each network in turn is left out and forecast from the others, all levels; and the same with
four steps of its unpruned form known, as a micro-profile gives. The kernel is the one under which what calibrates is
likeliest, and how wide intervals have to be shows when a level (a network) at a time of that is left out: what is forecast
is never looked at. What the networks look
like is rebuilt, see `benchmarks.topologies`.

`--own`: rounds on this machine, see `benchmarks.own_rounds`.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np

from benchmarks.stage import machine, need, say, table
from edgetune.learn.calibration import Kernel, Physics, StepModel, calibrated, memory_terms, time_terms
from edgetune.types import StepPoint, Workload

WORKLOADS = Path(__file__).parent / "results" / "tx2_workloads.json"
FIVES = (
    (0, 30, 50, 70, 90), (0, 25, 50, 75, 90), (0, 20, 45, 65, 90), (5, 30, 50, 70, 85), (0, 20, 40, 60, 80),
    (10, 30, 50, 70, 90),
)  # fmt: skip
KERNELS = (
    Kernel(noise=0.02, parts=((0.07, 0.3, 1.0), (0.07, 2.0, 0.4))),
    Kernel(noise=0.03, parts=((0.1, 0.3, 1.0), (0.1, 2.0, 0.4))),
    Kernel(noise=0.02, parts=((0.07, 0.4, 0.4), (0.07, 2.0, 2.0))),
    Kernel(noise=0.03, parts=((0.1, 0.4, 0.4), (0.1, 2.0, 2.0))),
    Kernel(noise=0.03, parts=((0.15, 0.5, 0.5),)),
    Kernel(noise=0.03, parts=((0.15, 0.5, 1.0),)),
)
COVERED = 1.645  # standard deviations to either side of an interval that is to hold nine of ten


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement."""

    net: str
    level: int
    point: StepPoint
    value: float


@dataclass(frozen=True, slots=True)
class Target:
    """A column of the table, and where it counts."""

    column: str
    passed: str
    physics: Physics


TARGETS = {
    "memory (mem_used)": Target("mem_used", "passed", Physics(memory_terms, has_floor=True, has_ceiling=True)),
    "memory (mem_alloc)": Target("mem_alloc", "passed", Physics(memory_terms)),
    "time": Target("latency_ms", "lat_passed", Physics(time_terms)),
}


def read(path: Path, target: Target) -> list[Row]:
    """The rows whose step ended well."""
    workloads = {key: Workload(**value) for key, value in json.loads(WORKLOADS.read_text()).items()}
    rows = []
    with path.open(newline="") as file:
        for plain in csv.DictReader(file):
            if plain[target.passed] == "True":
                level = int(float(plain["level"]))
                work = workloads[f"{plain['net']} {level}"]
                point = StepPoint(workload=work, batch_size=int(plain["bs"]), threads=1, rest_mib=0.0)
                rows.append(Row(plain["net"], level, point, float(plain[target.column])))
    return rows


def fit(target: Target, rows: Sequence[Row], group: Callable[[Row], object]) -> StepModel:
    """The model of these rows."""
    return calibrated(
        target.physics, [r.point for r in rows], [r.value for r in rows], [group(r) for r in rows], KERNELS
    )


def judge(model: StepModel, rows: Sequence[Row]) -> tuple[float, float]:
    """Mean relative error, and the share of the rows that lie in their intervals."""
    likely, spread = model.predict([row.point for row in rows])
    values = np.array([row.value for row in rows])
    inside = np.abs(np.log(likely / values)) <= COVERED * spread
    return float(np.abs(likely / values - 1).mean()), float(inside.mean())


def unseen_levels(target: Target, rows: Sequence[Row]) -> list[tuple[float, float]]:
    """For each choice of five levels: error and coverage on the others."""
    found = []
    for five in FIVES:
        model = fit(target, [row for row in rows if row.level in five], lambda row: row.level)
        found.append(judge(model, [row for row in rows if row.level not in five]))
    return found


def unseen_networks(target: Target, rows: Sequence[Row], *, is_profiled: bool) -> dict[str, tuple[float, float]]:
    """For each network, forecast from the first five levels of the others, and from four steps of its own."""
    found = {}
    for net in sorted({row.net for row in rows}):
        known = [row for row in rows if row.net != net and row.level in FIVES[0]]
        model = fit(target, known, lambda row: row.net)
        own = [row for row in rows if row.net == net]
        if is_profiled:
            steps = [row for row in own if row.level == 0 and row.point.batch_size in (2, 4, 8, 16)]
            own = [row for row in own if row not in steps]
            model = model.corrected([row.point for row in steps], [row.value for row in steps])
        found[net] = judge(model, own)
    return found


def play(data: Path) -> None:
    """Print the tables."""
    say(f"{machine()}, {time.strftime('%Y-%m-%d')}; calibrated on levels, of all networks:")
    heads = [", ".join(map(str, five)) for five in FIVES]
    rows = [("error (share inside 90 % intervals)", *heads, "mean", "worst")]
    for name, target in TARGETS.items():
        found = unseen_levels(target, read(data, target))
        errors = [error for error, _ in found]
        cells = [f"{error:.1%} ({inside:.0%})" for error, inside in found]
        rows.append((name, *cells, f"{mean(errors):.1%}", f"{max(errors):.1%}"))
        say("  " + "  ".join(rows[-1]))
    say(table(rows))
    say("\nwith a network left out:")
    nets = sorted({row.net for row in read(data, TARGETS["time"])})
    rows = [("error (share inside 90 % intervals)", *nets, "mean", "worst")]
    for is_profiled in (False, True):
        for name, target in TARGETS.items():
            by_net = unseen_networks(target, read(data, target), is_profiled=is_profiled)
            errors = [error for error, _ in by_net.values()]
            cells = [f"{by_net[net][0]:.1%} ({by_net[net][1]:.0%})" for net in nets]
            label = f"{name}, four steps of it known" if is_profiled else name
            rows.append((label, *cells, f"{mean(errors):.1%}", f"{max(errors):.1%}"))
            say("  " + "  ".join(rows[-1]))
    say(table(rows))


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the directory with tx2_training_profiles.csv")
    parser.add_argument("--own", action="store_true", help="rounds on this machine instead")
    arguments = parser.parse_args()
    if arguments.own:
        from benchmarks.own_rounds import play as play_own

        play_own()
        return 0
    need(parser, arguments, data="the directory with tx2_training_profiles.csv (perf4sight's measurements)")
    play(arguments.data / "tx2_training_profiles.csv")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
