"""
The daemon at rest, and how fast it takes images in.

    python -m benchmarks.rest [--seconds 60] [--images 2000]

With MobileNetV2 at 224 px loaded and nobody asking: resident memory, CPU time over a minute as a share of one core, the
time of `edgetune status` as a whole process (median of 20). Then JPEGs of 224 px are dropped into the inbox by renaming,
and the time is taken until the buffer holds them all.
"""

from __future__ import annotations

import argparse
import io
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.stage import Stage, machine, say, table

CONFIG = "inbox: {settle: 500ms, scan_interval: 30s}\n"
SIDE = 224


def jpegs(count: int) -> list[bytes]:
    """Different pictures of 224 px, about 15 kB each: smooth shapes with some grain, as photographs have."""
    draw, files = np.random.default_rng(0), []
    for _ in range(count):
        coarse = draw.integers(0, 256, (7, 7, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        pixels = np.asarray(picture, dtype=np.int16) + draw.integers(-6, 7, (SIDE, SIDE, 3), dtype=np.int16)
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
        files.append(file.getvalue())
    return files


def status_s(stage: Stage) -> float:
    """Seconds that `edgetune status` takes, from the start of the process to its end."""
    socket = str(stage.root / "run" / "edgetune.sock")
    began_s = time.perf_counter()
    subprocess.run([sys.executable, "-m", "edgetune", "status", "--socket", socket], check=True, capture_output=True)
    return time.perf_counter() - began_s


def ingest_s(stage: Stage, files: list[bytes]) -> float:
    """Seconds from the first file to the moment in which the buffer holds them all."""
    before = stage.status()["buffer"]["samples"]
    folder = stage.inbox / "cat"
    folder.mkdir(parents=True, exist_ok=True)
    began_s = time.monotonic()
    for i, data in enumerate(files):
        part = stage.inbox / "cat" / f"{i}.jpg.part"
        part.write_bytes(data)
        part.rename(folder / f"{i}.jpg")

    def are_taken() -> bool:
        return bool(stage.status()["buffer"]["samples"] >= before + len(files))

    stage.wait_for("the images to be taken", are_taken, 600)
    return time.monotonic() - began_s


def play(arguments: argparse.Namespace, root: Path) -> int:
    """The benchmark; returns the exit code."""
    stage = Stage(root, CONFIG)
    (root / "classes.txt").write_text("cat\ndog\n")
    stage.import_model(
        "torchvision:mobilenet_v2", "--random", "--classes", str(root / "classes.txt"), "--size", str(SIDE)
    )
    with stage:
        daemon = psutil.Process(stage.pid)
        time.sleep(5)
        before, began_s = daemon.cpu_times(), time.monotonic()
        time.sleep(arguments.seconds)
        after, took_s = daemon.cpu_times(), time.monotonic() - began_s
        cpu = (after.user + after.system - before.user - before.system) / took_s
        rss_mib = daemon.memory_info().rss / 2**20
        words_s = statistics.median(status_s(stage) for _ in range(20))
        taken_s = ingest_s(stage, jpegs(arguments.images))
    rows = [
        ("", "measured", "aim"),
        ("resident memory", f"{rss_mib:.0f} MiB", "under 120 MiB"),
        (f"CPU over {took_s:.0f} s", f"{cpu:.2%} of a core", "under 0.5 %"),
        ("edgetune status, median of 20", f"{words_s * 1000:.0f} ms", "under 300 ms"),
        (f"{arguments.images} JPEGs of 224 px taken in", f"{arguments.images / taken_s:.0f} a second", ""),
    ]
    say(f"{machine()}, {time.strftime('%Y-%m-%d')}\n{table(rows)}")
    return 0


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--images", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgetune-rest-") as directory:
        return play(arguments, Path(directory))


if __name__ == "__main__":
    sys.exit(main())
