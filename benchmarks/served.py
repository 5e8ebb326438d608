"""
What a served network takes of the board: memory and, where a sensor says, energy of one prediction.

    python -m benchmarks.served DIRECTORY [--threads 1] [--seconds 5]

DIRECTORY is a published version or one that `edgetune models export` or `edgetune prune` wrote. A fresh process loads it as
the daemon does; memory is what its high-water mark grew by while it was loaded and asked fifty times, energy that of the
whole board while it is asked without pause, over the number of answers.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgetune.device.energy import PowerWatch
from edgetune.device.sensors import BoardSensors
from edgetune.serve.engine import Engine
from edgetune.types import Preprocess, Quantity

if TYPE_CHECKING:
    from edgetune.learn.network import Network

ASKED = 50


@dataclass
class Used:
    """Joules of the whole board; None: nothing here measures its power, or not yet."""

    is_metered: bool = False
    joules: float | None = None


@dataclass(frozen=True)
class ServedCost:
    """Of one network in the serving engine."""

    memory_mib: float
    joules: float | None = None  # of one prediction


@contextlib.contextmanager
def metered() -> Iterator[Used]:
    """Count the board's energy."""
    used, sensors = Used(), BoardSensors()

    def told(joules: float) -> None:
        used.joules = joules

    try:
        if sensors.supported()[Quantity.POWER_W].value is None:
            yield used
            return
        used.is_metered = True
        with PowerWatch(sensors, told, interval_s=0.2):
            yield used
    finally:
        sensors.close()


def ask(directory: Path, *, threads: int, seconds: float) -> ServedCost:
    """In this process, which should be fresh."""
    before = _peak_mib()
    engine = Engine.load(directory, threads=threads)
    size = engine.manifest.preprocess
    images = np.random.default_rng(0).integers(0, 256, (1, size.height, size.width, 3), dtype=np.uint8)
    for _ in range(ASKED):
        engine.predict(images)
    memory_mib = round(_peak_mib() - before, 2)
    answers, ends_s = 0, time.monotonic() + seconds
    with metered() as used:
        while used.is_metered and time.monotonic() < ends_s:
            engine.predict(images)
            answers += 1
    engine.close()
    return ServedCost(memory_mib, used.joules / answers if used.joules is not None and answers else None)


def cost_of(network: Network, preprocess: Preprocess, *, threads: int, seconds: float = 5.0) -> ServedCost:
    """Export it, and ask in a fresh process."""
    from edgetune.learn.export import artefact_files, draft_manifest, stage

    other = copy.deepcopy(network)
    other.module.to("cpu")
    files = artefact_files(other, preprocess, lambda: None)
    classes = [str(number) for number in range(network.num_classes)]
    with tempfile.TemporaryDirectory(prefix="edgetune-served-") as scratch:
        stage(Path(scratch), files, draft_manifest(other, preprocess, classes, len(files["model.onnx"])))
        command = [sys.executable, "-m", "benchmarks.served", scratch, "--threads", str(threads)]
        done = subprocess.run([*command, "--seconds", str(seconds)], check=True, text=True, capture_output=True)
    return ServedCost(**json.loads(done.stdout))


def _peak_mib() -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this kernel does not tell a process's high-water mark")


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    cost = ask(arguments.directory, threads=arguments.threads, seconds=arguments.seconds)
    print(json.dumps({"memory_mib": cost.memory_mib, "joules": cost.joules}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
