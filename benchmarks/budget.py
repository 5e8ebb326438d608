"""
The governor on boards with noise and lag, and on this machine's own load.

    python -m benchmarks.budget boards [--hours 1] [--seeds 3] [--csv FILE]
    python -m benchmarks.budget cpu [--limits 30 50 70] [--seconds 120] [--csv FILE]
    python -m benchmarks.budget serving [--seconds 60] [--latency 0]

boards: `edgetune.simulate.board` models of two masses, sensors and firmware; a trainer works in batches of --batch seconds
and sleeps between them. An oracle knows the board: for heat it works whenever the chip, exact, is below the limit, for power
at the one constant duty that fits. Told are: readings at which the window's true average was over the limit, more than two in
a row; the most that the chip itself was over; work lost against the oracle; and how often a pause began or ended.

cpu: a real process that multiplies matrices and is paced by the trainer's own `Control`, and the governor on this machine's
readings, at a reading a second. The whole machine's share counts, so whatever else runs has its part in it; with --own the
worker's alone.

serving: the real daemon, asked ten times a second at rest and beside a real round; --latency sets serving.latency_max in ms.
The memory arm is `benchmarks.budget_memory`.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.rows import append_row
from benchmarks.stage import Asker, Stage, machine, say, table
from edgetune.decide.governor import Governor, step
from edgetune.simulate.board import BOARDS, BoardModel
from edgetune.types import Limits, Measurement, Quantity, Reading

TICK_S = 2.0
WINDOW_S = 30.0
SAMPLE_S = {"pi5": 0.5}  # the firmware's command; other boards have a file
SAMPLE_DEFAULT_S = 0.25
REST_SHARE = 0.03  # of the cores, of all else on the board
HEAT = (
    ("pi3", 60.0),
    ("pi4", 65.0),
    ("pi4", 75.0),
    ("pi5", 72.0),
    ("nano", 55.0),
    ("orin-nano", 50.0),
    ("agx-orin", 50.0),
)
POWER = (("pi5", 5.5), ("nano", 4.0), ("xavier-nx", 8.0), ("orin-nano", 8.0), ("agx-orin", 18.0))


@dataclass(frozen=True)
class BoardRow:
    """One run on a board."""

    board: str
    quantity: str
    limit: float
    batch_s: float
    seed: int
    over: int = 0  # readings beyond two in a row
    worst: float = 0.0  # the true value over the limit at its worst, in the quantity's unit
    worked: float = 0.0  # share of the time, clocks counted
    oracle: float = 0.0
    flaps: int = 0

    @property
    def key(self) -> tuple[str, ...]:
        """Which run it is."""
        return (self.board, self.quantity, str(self.limit), str(self.batch_s), str(self.seed))


@dataclass
class Worker:
    """A trainer that works in batches, as long as real ones differ, and sleeps between them."""

    batch_s: float
    random: random.Random
    is_working: bool = True
    left_s: float = 0.0
    done_s: float = 0.0
    power_j: float = 0.0
    hottest_c: float = -273.0

    def run(self, board: BoardModel, duty: float, for_s: float) -> None:
        """Some seconds at a duty; 0 is a pause."""
        while for_s > 1e-9:
            part_s = min(for_s, 0.2) if duty <= 0 else min(for_s, 0.2, max(1e-3, self.left_s))
            busy = self.is_working and duty > 0
            board.step(part_s, 1.0 if busy else REST_SHARE)
            self.done_s += part_s * board.clock_share * busy
            self.power_j += part_s * board.power_w
            self.hottest_c = max(self.hottest_c, board.chip_c)
            for_s -= part_s
            if duty > 0:
                self.left_s -= part_s
                self._turn(duty)

    def _turn(self, duty: float) -> None:
        if self.left_s > 1e-9:
            return
        if self.is_working and duty < 1:
            self.is_working, self.left_s = False, self.batch_s * (1 / duty - 1)
        else:
            self.is_working, self.left_s = True, self.batch_s * max(0.2, self.random.gauss(1.0, 0.1))


def oracle(row: BoardRow, hours: float) -> float:
    """The share of the time that could be worked, clocks counted."""
    board = BoardModel(BOARDS[row.board])
    if row.quantity == Quantity.POWER_W.value:
        facts = board.facts
        busy = (row.limit - facts.idle_w) / (facts.busy_w - facts.idle_w)
        return min(1.0, max(0.0, (busy - REST_SHARE) / (1 - REST_SHARE)))
    done_s, dt_s = 0.0, 0.1
    for _ in range(int(hours * 3600 / dt_s)):
        before = board.chip_c, board.board_c
        board.step(dt_s, 1.0)
        if board.chip_c > row.limit:
            board.chip_c, board.board_c = before
            board.step(dt_s, REST_SHARE)
        else:
            done_s += dt_s * board.clock_share
    return done_s / (hours * 3600)


def run_board(row: BoardRow, hours: float) -> BoardRow:
    """The governor on a board for so long."""
    chance = random.Random(row.seed)
    board, worker = BoardModel(BOARDS[row.board], seed=row.seed), Worker(row.batch_s, chance)
    is_heat = row.quantity == Quantity.SOC_TEMP_C.value
    limit_c, limit_w = (row.limit, None) if is_heat else (None, row.limit)
    limits = Limits(soc_temp_max_c=limit_c, power_max_w=limit_w, window_s=WINDOW_S)
    now, at_s, over, in_a_row, worst, flaps = Governor(), 0.0, 0, 0, -1e9, 0
    true: deque[tuple[float, float]] = deque()
    while at_s < 60 + hours * 3600:
        is_training, duty = at_s >= 60, now.verdict.duty
        tick_s = TICK_S * chance.uniform(0.75, 1.0)  # as the daemon's
        worker.power_j = 0.0
        power_w = _mean_power(board, worker, duty if is_training else 0.0, tick_s, is_sampled=is_training)
        at_s += tick_s
        true.append((at_s, board.chip_c if is_heat else worker.power_j / tick_s))
        while true[0][0] <= at_s - WINDOW_S:
            true.popleft()
        mean = sum(value for _, value in true) / len(true)
        in_a_row = in_a_row + 1 if mean > row.limit else 0
        over += in_a_row > 2
        worst = max(worst, (worker.hottest_c if is_heat else mean) - row.limit)
        values = {Quantity.SOC_TEMP_C: board.read_temp_c(), Quantity.POWER_W: power_w}
        measured = {quantity: Measurement(value=value, source="model") for quantity, value in values.items()}
        reading = Reading(at_s=at_s, wall_s=at_s, local_minute=0, values=measured)
        now = step(now, reading, limits, worked=duty if is_training else 0.0, is_training=is_training)
        flaps += is_training and (duty > 0) != (now.verdict.duty > 0)
    return BoardRow(
        board=row.board, quantity=row.quantity, limit=row.limit, batch_s=row.batch_s, seed=row.seed, over=over,
        worst=round(worst, 2), worked=round(worker.done_s / (hours * 3600), 4), oracle=round(oracle(row, hours), 4),
        flaps=flaps,
    )  # fmt: skip


def _mean_power(board: BoardModel, worker: Worker, duty: float, for_s: float, *, is_sampled: bool) -> float | None:
    """Let a tick pass; what `edgetune.device.mean_power` would say at its end."""
    says: list[float] = []
    while for_s > 1e-9:
        part_s = min(for_s, SAMPLE_S.get(board.facts.name, SAMPLE_DEFAULT_S)) if is_sampled else for_s
        worker.run(board, duty, part_s)
        for_s -= part_s
        if (said_w := board.read_power_w()) is not None:
            says.append(said_w)
    return statistics.fmean(says) if says else None


def boards(arguments: argparse.Namespace) -> int:
    """Every board at its limit."""
    cells = [(b, Quantity.SOC_TEMP_C.value, limit) for b, limit in HEAT]
    cells += [(b, Quantity.POWER_W.value, limit) for b, limit in POWER]
    shown: list[tuple[str, ...]] = [
        ("board", "limit", "batch", "readings over", "worst", "worked", "oracle", "lost", "flaps")
    ]
    for name, quantity, limit in cells:
        for batch_s in arguments.batch:
            rows = [
                run_board(BoardRow(name, quantity, limit, batch_s, seed), arguments.hours)
                for seed in range(arguments.seeds)
            ]
            for row in rows:
                if arguments.csv:
                    append_row(arguments.csv, row)
            worked = sum(row.worked for row in rows) / len(rows)
            unit = "C" if quantity == Quantity.SOC_TEMP_C.value else "W"
            shown.append((
                name, f"{limit:g} {unit}", f"{batch_s:g} s", str(sum(row.over for row in rows)),
                f"{max(row.worst for row in rows):+.2f} {unit}", f"{worked:.1%}", f"{rows[0].oracle:.1%}",
                f"{1 - worked / rows[0].oracle:.1%}", str(sum(row.flaps for row in rows)),
            ))  # fmt: skip
            say("  " + "  ".join(shown[-1]))
    say(table(shown))
    return 0


# -------------------------------------------------------------------------------------------------- this machine


@dataclass(frozen=True)
class CpuRow:
    """One run under real load."""

    limit: float
    seconds: float
    share: float = 0.0  # the whole machine's, the last half
    over: int = 0  # readings at which the window's average was over the limit, beyond two in a row
    worst: float = 0.0
    duty: float = 0.0
    flaps: int = 0
    others: float = 0.0  # before it began

    @property
    def key(self) -> tuple[str, ...]:
        """Which run it is."""
        return (str(self.limit), str(self.seconds))


def work() -> int:
    """In a process of its own: multiply matrices in steps, at the pace that stdin says."""
    import threading

    import numpy as np

    from edgetune.learn.control import Control

    control = Control(io.StringIO())

    def listen() -> None:
        for line in sys.stdin:
            control.obey(line)
        control.stop()

    threading.Thread(target=listen, daemon=True).start()
    left, right = np.random.default_rng(0).normal(size=(2, 400, 400))
    while not control.is_stop_asked:
        for _ in range(30):
            left @ right
        control.pace()
    return 0


class OwnShare:
    """Readings in which the worker is all that runs: for a machine that others use as well."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._last = self._mark()

    def _mark(self) -> tuple[float, float]:
        times = self._process.cpu_times()
        return time.monotonic(), times.user + times.system

    def read(self, trainer_pid: int | None) -> Reading:
        """The share of all cores since the last time."""
        del trainer_pid
        before, self._last = self._last, self._mark()
        share = (self._last[1] - before[1]) / (self._last[0] - before[0]) / (os.cpu_count() or 1)
        values = {Quantity.CPU_SHARE: Measurement(value=min(1.0, share), source="/proc/PID/stat")}
        return Reading(at_s=self._last[0], wall_s=time.time(), local_minute=0, values=values)

    def close(self) -> None:
        """Nothing runs."""


def run_cpu(limit: float, seconds: float, *, is_own: bool) -> CpuRow:
    """A paced worker and the governor, on this machine's own sensors."""
    from edgetune.device.sensors import BoardSensors

    limits, now = Limits(cpu_share_max=limit, window_s=10.0), Governor()
    worker = subprocess.Popen([sys.executable, "-m", "benchmarks.budget", "work"], stdin=subprocess.PIPE, text=True)
    assert worker.stdin is not None
    sensors: OwnShare | BoardSensors = OwnShare(worker.pid) if is_own else BoardSensors()
    shares: list[float] = []
    averages: list[float] = []
    duties: list[float] = []
    over = in_a_row = 0
    try:
        worker.stdin.write('{"duty": 0.02}\n')
        worker.stdin.flush()
        began_s, others = time.monotonic(), 0.0
        while (for_s := time.monotonic() - began_s) < seconds + 20:
            time.sleep(random.uniform(0.75, 1.0))
            reading, is_training = sensors.read(None), for_s > 20
            duty = now.verdict.duty
            now = step(now, reading, limits, worked=duty if is_training else 0.0, is_training=is_training)
            share = reading.value(Quantity.CPU_SHARE) or 0.0
            if not is_training:
                others = now.averages.get(Quantity.CPU_SHARE, 0.0)
                continue
            worker.stdin.write(json.dumps({"duty": max(0.02, now.verdict.duty)}) + "\n")
            worker.stdin.flush()
            shares.append(share)
            averages.append(sum(shares[-11:]) / len(shares[-11:]))
            duties.append(now.verdict.duty)
            in_a_row = in_a_row + 1 if averages[-1] > limit else 0
            over += in_a_row > 2
    finally:
        worker.stdin.close()
        worker.wait(timeout=30)
        sensors.close()
    half = len(shares) // 2
    return CpuRow(
        limit=limit, seconds=seconds, share=round(sum(shares[half:]) / len(shares[half:]), 4), over=over,
        worst=round(max(averages) - limit, 4), duty=round(sum(duties[half:]) / len(duties[half:]), 3),
        flaps=sum((a > 0) != (b > 0) for a, b in itertools.pairwise(duties)), others=round(others, 4),
    )  # fmt: skip


def cpu(arguments: argparse.Namespace) -> int:
    """Each limit in turn."""
    shown: list[tuple[str, ...]] = [("limit", "others", "share held", "readings over", "worst", "duty", "flaps", "of")]
    for percent in arguments.limits:
        row = run_cpu(percent / 100, arguments.seconds, is_own=arguments.own)
        if arguments.csv:
            append_row(arguments.csv, row)
        shown.append((
            f"{row.limit:.0%}", f"{row.others:.1%}", f"{row.share:.1%}", str(row.over), f"{row.worst:+.1%}",
            f"{row.duty:.0%}", str(row.flaps), f"{row.seconds:.0f} s",
        ))  # fmt: skip
        say("  " + "  ".join(shown[-1]))
    say(f"{machine()}, {time.strftime('%Y-%m-%d')}")
    say(table(shown))
    return 0


# ------------------------------------------------------------------------------------------------------- serving


@dataclass
class Timed:
    """Latencies of one client, in milliseconds."""

    name: str
    latencies_ms: list[float] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """Of all of them."""
        values = sorted(self.latencies_ms)
        return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


SERVING = """
inbox: {{settle: 0s, scan_interval: 1s}}
triggers: {{new_samples: 100000}}
gate: {{holdout_min: 10}}
buffer: {{validation: 20%, holdout: 20%}}
budgets: {{interval: 1s, memory_available_min: 100MiB, disk_free_min: 100MiB, nice: {nice}, window: 10s}}
training: {{epochs_before: 200, epochs_after: 200, batch_size: 64, threads: 1}}
"""


def pictures(side: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Noise in two colours."""
    import numpy as np
    from PIL import Image

    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 120, (side, side, 3))
        pixels[..., number % 2] += 100
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        yield ("red", "green")[number % 2], file.getvalue()


def serving(arguments: argparse.Namespace) -> int:
    """The same client at rest and beside a round."""
    with tempfile.TemporaryDirectory(prefix="edgetune-budget-") as directory:
        root = Path(directory)
        config = SERVING.format(nice=arguments.nice)
        stage = Stage(root, config)
        latency = f", latency_max: {arguments.latency}ms" if arguments.latency else ""
        written = stage.config_path.read_text().replace(
            "socket_group: null", f"socket_group: null, threads: 1{latency}"
        )
        stage.config_path.write_text(written)
        classes = root / "classes.txt"
        classes.write_text("red\ngreen\n")
        stage.import_model("cifar:resnet20", "--random", "--classes", str(classes), "--size", "32x32")
        body = b""
        for number, (label, body) in enumerate(pictures(32, 240)):
            (stage.inbox / label).mkdir(parents=True, exist_ok=True)
            (stage.inbox / label / f"{number}.json").write_text(json.dumps({"group": str(number)}))
            (stage.inbox / label / f"{number}.png").write_bytes(body)
        with stage:
            stage.wait_for("the images", lambda: stage.status()["buffer"]["samples"] >= 240, 120)
            rest, duties = Timed("at rest"), []
            ask(stage, body, arguments.seconds, rest)
            stage.client().post("/v1/rounds", {"kind": "adapt", "force": True})
            stage.wait_for("a round", lambda: (stage.status()["round"]["step"] or 0) > 3, 300)
            beside = Timed("beside a round")
            duties = ask(stage, body, arguments.seconds, beside)
            stage.client().post("/v1/cancel")
        say(
            f"{machine()}, {time.strftime('%Y-%m-%d')}, nice {arguments.nice}, mean duty {sum(duties) / len(duties):.0%}"
        )
        rows: list[tuple[str, ...]] = [("", "requests", "median", "p99")]
        rows += [
            (t.name, str(len(t.latencies_ms)), f"{t.quantile(0.5):.1f} ms", f"{t.quantile(0.99):.1f} ms")
            for t in (rest, beside)
        ]
        say(table(rows))
        say(f"  p99 beside a round: {beside.quantile(0.99) / rest.quantile(0.99):.2f}x")
    return 0


def ask(stage: Stage, body: bytes, seconds: float, timed: Timed) -> list[float]:
    """One client, ten times a second; the duties meanwhile."""
    asker = Asker(stage.client(), body, pause_s=0.1)
    asker.start()
    duties = []
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        time.sleep(2)
        duties.append(float(stage.status()["verdict"]["duty"]))
    asker.stop()
    timed.latencies_ms += [1000 * taken for _, taken in asker.latencies]
    return duties


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("boards", "cpu", "serving", "work"))
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=float, nargs="+", default=[0.5, 2.0])
    parser.add_argument("--limits", type=float, nargs="+", default=[30, 50, 70], help="percent of all cores")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--own", action="store_true", help="count the worker's share alone")
    parser.add_argument("--latency", type=float, default=0.0, help="serving.latency_max in ms; 0: none")
    parser.add_argument("--nice", type=int, default=15)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "work":
        return work()
    return {"boards": boards, "cpu": cpu, "serving": serving}[arguments.what](arguments)


if __name__ == "__main__":
    raise SystemExit(main())
