"""
How soon a round is paused or stopped when a limit is passed: real daemon, real trainer, real time.

    python -m benchmarks.reaction [--repeats 5] [--interval 1]

A ResNet20 trains on 240 images of noise with one thread, and then, each --repeats times:

memory      another process takes so much that less than `memory_available_min` is left: the trainer is stopped
wall        a reload brings `trainer_memory_max` below what the trainer holds: stopped
heat        the chip is past `temperature_max` from one moment to the next: paused (as root alone: the daemon is shown a thermal
            zone that is a file of this benchmark, by a mount that nobody else sees)
hours       a reload brings hours of the day that are over: paused

Told is the time from that moment until the trainer's process was gone, or had used the processor for the last time before it
rested for a second, in seconds and in ticks of `budgets.interval`; the daemon is to react within two.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from benchmarks.budget import pictures
from benchmarks.stage import Stage, machine, say, table

MIB = 2**20
CONFIG = """
inbox: {settle: 0s, scan_interval: 1s}
triggers: {new_samples: 100000, cooldown: 1s}
gate: {holdout_min: 10}
buffer: {validation: 20%, holdout: 20%}
training: {epochs_before: 500, epochs_after: 500, batch_size: 64, threads: 1}
"""
COOL_C, HOT_C, LIMIT_C = 50.0, 95.0, 80.0
ROOM_MIB, TAKEN_MIB = 400, 900  # above the floor, and what the other process takes
REST_S = 1.0  # a trainer that has used nothing for so long is paused: a batch takes a tenth of that
TAKER = "import sys,time; held = bytearray(int(sys.argv[1])); print(flush=True); time.sleep(600)"


@dataclass(frozen=True)
class Case:
    """One way in which a limit is passed."""

    name: str
    ends: str  # how the trainer ends: "stopped" or "paused"
    break_it: Callable[[Scene], float]  # the moment on the monotonic clock
    mend_it: Callable[[Scene], None]


class Scene:
    """The daemon with its round, and hands on the board."""

    def __init__(self, root: Path, interval_s: float) -> None:
        self._zone = root / "thermal" / "thermal_zone0"
        self._zone.mkdir(parents=True)
        (self._zone / "type").write_text("cpu-thermal\n")
        self.temperature_c = COOL_C
        self.heated_s = 0.0
        self._warm()
        self.taker: subprocess.Popen[bytes] | None = None
        self.limits: dict[str, str | list[str]] = {"interval": f"{interval_s:g}s", "window": "10s", "memory_available_min": "100MiB",
                       "disk_free_min": "100MiB"}  # fmt: skip
        self.has_zone = os.geteuid() == 0
        if self.has_zone:
            self.limits["temperature_max"] = f"{LIMIT_C:g}C"
        shown = f'mount --bind {root}/thermal /sys/class/thermal && exec "$@"'
        self.stage = Stage(root, CONFIG, wrapper=("unshare", "-m", "sh", "-c", shown, "sh") if self.has_zone else ())
        self._written = self.stage.config_path.read_text()
        self._write()

    def _warm(self) -> None:
        """Write what the chip's sensor says, which is never the same twice."""
        written = f"{1000 * (self.temperature_c + random.uniform(-1, 1)):5.0f}\n"
        mode = "r+" if (self._zone / "temp").exists() else "w"
        with (self._zone / "temp").open(mode) as file:  # in place: a reader sees a whole number at any time
            file.write(written)

    def live(self, until: threading.Event) -> None:
        """Be a sensor that a driver reads five times a second."""
        while not until.wait(0.2):
            self._warm()

    def heat(self, temperature_c: float) -> float:
        """Be as warm as that at once."""
        self.temperature_c = temperature_c
        self._warm()
        return time.monotonic()

    def _write(self) -> None:
        self.stage.config_path.write_text(self._written + yaml.safe_dump({"budgets": self.limits}))

    def limit(self, **limits: str | list[str]) -> float:
        """Set keys of `budgets` and reload; None takes one away."""
        self.limits = {**self.limits, **limits}
        self._write()
        began_s = time.monotonic()
        self.stage.client().post("/v1/reload")
        return began_s

    def unlimit(self, *names: str) -> None:
        """Take keys away."""
        self.limits = {name: value for name, value in self.limits.items() if name not in names}
        self.limit()

    def trainer(self) -> psutil.Process | None:
        """The round's process."""
        for child in psutil.Process(self.stage.pid).children():
            try:
                if "edgetune.trainer" in child.cmdline():
                    return child
            except psutil.NoSuchProcess:
                continue
        return None

    def is_idle(self) -> bool:
        """Whether another round could begin."""
        return bool(self.stage.status()["round"]["state"] == "idle")

    def training(self) -> psutil.Process:
        """Let a round train for a few steps; its process."""

        def trains() -> psutil.Process | None:
            status = self.stage.status()
            if status["round"]["state"] == "idle" and status["verdict"]["kind"] == "run":
                self.stage.client().post("/v1/rounds", {"kind": "adapt", "force": True})
            is_under_way = status["round"]["state"] == "training" and (status["round"]["step"] or 0) > 3
            found = self.trainer()
            return found if is_under_way and found is not None and _is_working(found) else None

        found = self.stage.wait_for("a round that trains", trains, 120)
        assert found is not None
        return found

    # ------------------------------------------------------------------------------------------- what happens

    def take_memory(self) -> float:
        """Leave less than the floor; from the moment at which it was passed."""
        room = psutil.virtual_memory().available / MIB
        self.limit(memory_available_min=f"{room - ROOM_MIB:.0f}MiB")
        self.training()  # it still fits
        command = [sys.executable, "-c", TAKER, str(TAKEN_MIB * MIB)]
        self.taker = subprocess.Popen(command, stdout=subprocess.PIPE)
        while psutil.virtual_memory().available / MIB > room - ROOM_MIB:
            time.sleep(0.002)
        return time.monotonic()

    def give_memory(self) -> None:
        """As before."""
        if self.taker is not None:
            self.taker.kill()
            self.taker.wait()
        self.limit(memory_available_min="100MiB")

    def lower_wall(self) -> float:
        """Nine tenths of what the trainer holds."""
        trainer = self.trainer()
        assert trainer is not None
        return self.limit(trainer_memory_max=f"{0.9 * trainer.memory_info().rss / MIB:.0f}MiB")

    def end_hours(self) -> float:
        """An hour that is not now, in the zone that the daemon lives in."""
        hour = (time.localtime().tm_hour + 2) % 24
        return self.limit(hours=[f"{hour:02d}:00-{(hour + 1) % 24:02d}:00"])


CASES = (
    Case("memory", "stopped", Scene.take_memory, Scene.give_memory),
    Case("wall", "stopped", Scene.lower_wall, lambda scene: scene.unlimit("trainer_memory_max")),
    Case("heat", "paused", lambda scene: scene.heat(HOT_C), lambda scene: (scene.heat(COOL_C), None)[1]),
    Case("hours", "paused", Scene.end_hours, lambda scene: scene.unlimit("hours")),
)


def _is_working(process: psutil.Process) -> bool:
    """Whether it uses the processor now."""
    try:
        return process.cpu_percent(0.3) > 20
    except psutil.NoSuchProcess:
        return False


def reaction_s(process: psutil.Process, began_s: float, ends: str, timeout_s: float = 60.0) -> float:
    """
    Seconds until a trainer is gone, or has worked for the last time before it rests.

    Args:
        process: the trainer.
        began_s: when the limit was passed, on the monotonic clock.
        ends: "stopped" or "paused".
        timeout_s: after which a benchmark ends instead.
    """
    used, last_s = -1.0, began_s
    while time.monotonic() - began_s < timeout_s:
        now_s = time.monotonic()
        try:
            times = process.cpu_times()
            is_gone = process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            is_gone = True
        if is_gone and ends == "stopped":
            return now_s - began_s
        if is_gone:
            raise SystemExit("the trainer is gone where it was to be paused")
        if times.user + times.system > used + 0.02:  # a paused one still looks whether it may go on
            used, last_s = times.user + times.system, now_s
        elif ends == "paused" and now_s - last_s > REST_S:
            return last_s - began_s
        time.sleep(0.01)
    raise SystemExit(f"the trainer was not {ends} within {timeout_s:.0f} s")


def taken_by(case: Case, arguments: argparse.Namespace) -> list[float]:
    """Seconds of each time, on a daemon of its own: rounds that were ended too often have to wait longer and longer."""
    with tempfile.TemporaryDirectory(prefix="edgetune-reaction-") as directory:
        root = Path(directory)
        scene = Scene(root, arguments.interval)
        classes = root / "classes.txt"
        classes.write_text("red\ngreen\n")
        scene.stage.import_model("cifar:resnet20", "--random", "--classes", str(classes), "--size", "32x32")
        for number, (label, body) in enumerate(pictures(32, 240)):
            (scene.stage.inbox / label).mkdir(parents=True, exist_ok=True)
            (scene.stage.inbox / label / f"{number}.json").write_text(json.dumps({"group": str(number)}))
            (scene.stage.inbox / label / f"{number}.png").write_bytes(body)
        is_over = threading.Event()
        sensor = threading.Thread(target=scene.live, args=(is_over,))
        sensor.start()
        taken_s: list[float] = []
        try:
            with scene.stage:
                scene.stage.wait_for("the images", lambda: scene.stage.status()["buffer"]["samples"] >= 240, 120)
                for _ in range(arguments.repeats):
                    process = scene.training()
                    began_s = case.break_it(scene)
                    taken_s.append(reaction_s(process, began_s, case.ends))
                    say(f"  {case.name}: {case.ends} after {taken_s[-1]:.2f} s")
                    case.mend_it(scene)
                    if case.ends == "stopped":  # or the round would be given up: stopped three times
                        scene.stage.client().post("/v1/cancel")
                        scene.stage.wait_for("idleness", scene.is_idle, 300)
                if case.ends == "paused":
                    scene.stage.client().post("/v1/cancel")
        finally:
            is_over.set()
            sensor.join()
    return taken_s


def run(arguments: argparse.Namespace) -> None:
    """All cases."""
    rows: list[tuple[str, ...]] = [("", "the trainer is", "times", "median", "most", "in ticks")]
    for case in CASES:
        if case.name == "heat" and os.geteuid() != 0:
            say("heat: left out, showing the daemon a thermal zone takes root")
            continue
        taken_s = taken_by(case, arguments)
        most_s = max(taken_s)
        rows.append(
            (case.name, case.ends, str(len(taken_s)), f"{statistics.median(taken_s):.2f} s", f"{most_s:.2f} s",
             f"{most_s / arguments.interval:.1f}")
        )  # fmt: skip
    say(f"{machine()}, {time.strftime('%Y-%m-%d')}, a tick of {arguments.interval:g} s\n{table(rows)}")


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--interval", type=float, default=1.0, help="seconds of a tick")
    run(parser.parse_args())
    return 0


if __name__ == "__main__":
    sys.exit(main())
