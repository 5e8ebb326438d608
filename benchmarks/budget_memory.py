"""
The memory budget of real rounds, from generous to impossible, kept by readings alone and by a control group.

    python -m benchmarks.budget_memory [--wall] [--most 1200] [--least 200] [--rounds 20] [--batch 128] [--csv FILE]

Each round is the real trainer on a round directory of its own: random ResNet20, 600 images of noise, two epochs and a cut. What
finished rounds took teaches the forecasts of the next ones, as in the daemon; the first know this machine by their micro-profile.
A trainer's memory is read once a second, as the daemon does, judged by `decide.budget`, and a breach stops it; its resident memory
is read every 20 ms beside that. With --wall (root, cgroup v2 with the memory controller) the trainer also runs behind
`memory.max`. Told are: how the round ended ("refused": by its forecast, before it trained; "no such budget": the configuration
does not take it), the peak and how far it was over the budget, and the time from the first 20 ms over it until the trainer was gone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.made_up import CLASSES, SIZE, fill
from benchmarks.rows import append_row, read_rows
from benchmarks.stage import machine, say, table
from edgetune.config.model import TRAINER_AT_REST
from edgetune.daemon import forecasts
from edgetune.decide import budget
from edgetune.device.memory_wall import MemoryWall, kernel_lacks
from edgetune.device.trainer_process import TrainerProcess, process_rss_mib
from edgetune.learn.importer import import_model
from edgetune.types import (
    BoardHistory,
    FrozenSample,
    Limits,
    Measurement,
    Quantity,
    Reading,
    Recipe,
    RoundKind,
    RoundSpec,
    TrainerOutcome,
    Verdict,
    VerdictKind,
)
from edgetune.wire import to_json

TICK_S = 1.0
GRACE_S = 60.0


@dataclass(frozen=True)
class Row:
    """One round."""

    budget_mib: int
    wall: str  # "readings" | "cgroup"
    batch: int
    outcome: str = ""
    peak_mib: float = 0.0
    over_mib: float = 0.0  # above the budget, as readings of resident memory see it
    reaction_s: float | None = None  # from the first moment over the budget until the trainer was gone
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, ...]:
        """Which round it is."""
        return (str(self.budget_mib), self.wall, str(self.batch))


def write_round(root: Path, samples: tuple[FrozenSample, ...], row: Row, history: BoardHistory) -> Path:
    """A round directory."""
    recipe = Recipe(
        level=0.5, search="none", epochs_before=1, epochs_after=1, batch_size=row.batch, scoring_batches=2, timing_runs=3,
        threads=1, memory_max_mib=row.budget_mib, memory_format="contiguous", dtype="float32",
    )  # fmt: skip
    directory = root / "rounds" / "-".join(row.key)
    directory.mkdir(parents=True)
    spec = RoundSpec(
        round_id=1, kind=RoundKind.RESHAPE, reason="benchmark", base_version=1, factory_version=1, generation=0,
        candidate_version=2 + len(list((root / "rounds").iterdir())), classes=CLASSES, samples=samples,
        samples_digest="", recipe=recipe, models_dir=str(root / "models"), buffer_path=str(root / "edgetune.db"),
        serving_threads=1, created_at="", history=history,
    )  # fmt: skip
    (directory / "spec.json").write_bytes(to_json(spec))
    return directory


async def run_round(directory: Path, row: Row, wall: MemoryWall) -> Row:
    """The trainer under the eyes of the budget."""
    began_s = time.monotonic()
    trainer = TrainerProcess(wall=wall)
    await trainer.start(directory, nice=0)
    pid = trainer.pid
    ending = asyncio.create_task(trainer.wait())
    last, next_s, over_s, stopped_s, peak = Verdict(kind=VerdictKind.RUN, duty=1.0), began_s, None, None, 0.0
    limits = Limits(trainer_rss_max_mib=float(row.budget_mib))
    while not ending.done():
        await asyncio.wait([ending], timeout=0.02)
        now_s, rss = time.monotonic(), None if pid is None else process_rss_mib(pid)
        if rss is not None:
            peak = max(peak, rss)
            over_s = over_s or (now_s if rss > row.budget_mib else None)
        if now_s < next_s or rss is None:
            continue
        next_s = now_s + TICK_S
        reading = Reading(at_s=now_s, wall_s=0, local_minute=0, values={
            Quantity.TRAINER_RSS_MIB: Measurement(value=rss, source="psutil"),
        })  # fmt: skip
        last = budget.judge(reading, limits, last, is_training=True)
        if last.kind is VerdictKind.STOP and stopped_s is None:
            stopped_s = now_s
            trainer.stop()
        elif stopped_s is not None and now_s - stopped_s > GRACE_S:
            trainer.kill()
    end, ended_s = ending.result(), time.monotonic()
    outcome = "refused" if end.outcome is TrainerOutcome.WILL_NOT_FIT else end.outcome.value
    return replace(
        row, outcome=outcome, peak_mib=round(peak, 1), over_mib=round(max(0.0, peak - row.budget_mib), 1),
        reaction_s=None if over_s is None else round(ended_s - over_s, 2), seconds=round(ended_s - began_s, 1),
    )  # fmt: skip


def open_wall(*, is_wanted: bool, memory_mib: float) -> MemoryWall:
    """A control group of this benchmark's own."""
    wall = MemoryWall()
    if not is_wanted:
        return wall
    if why := kernel_lacks():
        raise SystemExit(f"--wall: {why}")
    group = Path("/sys/fs/cgroup") / f"edgetune-benchmark-{os.getpid()}"
    group.mkdir(exist_ok=True)
    (group / "memory.swap.max").write_text("0")
    wall.stand_on(group)
    wall.limit(memory_mib)
    return wall


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wall", action="store_true")
    parser.add_argument("--most", type=int, default=1200, help="MiB, the most generous budget")
    parser.add_argument("--least", type=int, default=200, help="MiB, the least")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    kind = "cgroup" if arguments.wall else "readings"
    done = {row.key for row in read_rows(arguments.csv, Row)} if arguments.csv else set()
    shown: list[tuple[str, ...]] = [("budget", "kept by", "outcome", "peak", "over", "until it was gone", "took")]
    history = BoardHistory()
    with tempfile.TemporaryDirectory(prefix="edgetune-memory-") as directory:
        root = Path(directory)
        samples = fill(root / "edgetune.db")
        (root / "models").mkdir()
        import_model(
            root / "models", architecture="cifar:resnet20", weights=None, classes=CLASSES, preprocess=SIZE, version=1,
            allow_random=True, timing_runs=2,
        )  # fmt: skip
        for mib in np.linspace(arguments.most, arguments.least, arguments.rounds).round().astype(int):
            row = Row(int(mib), kind, arguments.batch)
            if row.key in done:
                continue
            wall = open_wall(is_wanted=arguments.wall, memory_mib=row.budget_mib)
            if row.budget_mib * 2**20 < TRAINER_AT_REST:
                row = replace(row, outcome="no such budget")
            elif forecasts.why_none_fits(history, row.budget_mib):
                row = replace(row, outcome="refused")
            else:
                round_dir = write_round(root, samples, row, history)
                row = asyncio.run(run_round(round_dir, row, wall))
                if (round_dir / "journal.json").exists():
                    journal = json.loads((round_dir / "journal.json").read_text())
                    history = forecasts.learn(history, journal, trained_s=row.seconds, trained_j=None)
            if arguments.csv:
                append_row(arguments.csv, row)
            gone = "" if row.reaction_s is None else f"{row.reaction_s:.1f} s"
            shown.append((
                f"{row.budget_mib} MiB", row.wall, row.outcome, f"{row.peak_mib:.0f} MiB", f"{row.over_mib:.0f} MiB", gone,
                f"{row.seconds:.0f} s",
            ))  # fmt: skip
            say("  " + "  ".join(shown[-1]))
    say(f"{machine()}, {time.strftime('%Y-%m-%d')}")
    say(table(shown))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
