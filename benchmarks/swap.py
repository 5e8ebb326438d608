"""
Swaps under load: 100 of them while four clients ask without pause.

    python -m benchmarks.swap [--swaps 100] [--clients 4] [--arch torchvision:mobilenet_v2] [--size 224]

Two versions of the same network are published and promoted in turn over the socket (each promotion verifies, loads, warms
and self-tests the version off the request path). Reported: requests failed, the median and 99th percentile of requests that
began during a swap and outside one, and the daemon's resident memory
at rest after ten swaps under load and again after all of them.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.stage import Asker, Stage, machine, say, table

CONFIG = "budgets: {memory_available_min: 100MiB, disk_free_min: 100MiB}\nprobation: {duration: 0s}\n"
_WARM_UP_SWAPS = 10


def quantile(values: list[float], share: float) -> float:
    """In milliseconds."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] * 1000 if values else float("nan")


def publish_twice(stage: Stage, architecture: str, side: int) -> None:
    """A factory model with random weights, and a second version of it."""
    from edgetune.learn.importer import import_model
    from edgetune.types import Preprocess

    classes = stage.root / "classes.txt"
    classes.write_text("".join(f"class {i}\n" for i in range(10)))
    stage.import_model(architecture, "--random", "--classes", str(classes), "--size", f"{side}x{side}")
    import_model(
        stage.root / "state" / "models", architecture=architecture, weights=None,
        classes=classes.read_text().splitlines(), preprocess=Preprocess(height=side, width=side), version=2,
        allow_random=True,
    )  # fmt: skip


def play(arguments: argparse.Namespace, root: Path) -> int:
    """The benchmark; returns the exit code."""
    stage = Stage(root, CONFIG)
    publish_twice(stage, arguments.arch, arguments.size)
    pixels = np.random.default_rng(0).integers(0, 256, (arguments.size, arguments.size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    spans: list[tuple[float, float]] = []
    with stage:
        daemon = psutil.Process(stage.pid)
        _, rss_before_mib = load(stage, daemon, file.getvalue(), arguments, _WARM_UP_SWAPS)
        askers, rss_after_mib = load(stage, daemon, file.getvalue(), arguments, arguments.swaps, spans)
    during, outside = split([pair for asker in askers for pair in asker.latencies], spans)
    failures = [failure for asker in askers for failure in asker.failures]
    p99 = quantile(during, 0.99), quantile(outside, 0.99)
    rows = [
        ("", "during a swap", "outside", "ratio"),
        ("requests", str(len(during)), str(len(outside)), ""),
        ("median", f"{quantile(during, 0.5):.1f} ms", f"{quantile(outside, 0.5):.1f} ms", f"{quantile(during, 0.5) / quantile(outside, 0.5):.2f}x"),
        ("p99", f"{p99[0]:.1f} ms", f"{p99[1]:.1f} ms", f"{p99[0] / p99[1]:.2f}x"),
    ]  # fmt: skip
    say(
        f"{machine()}, {time.strftime('%Y-%m-%d')}: {arguments.arch} at {arguments.size} px, {arguments.clients} clients"
    )
    say(table(rows))
    say(
        f"  {arguments.swaps} swaps, {len(failures)} requests failed, {statistics.median(b - a for a, b in spans) * 1000:.0f} ms a swap"
    )
    growth = rss_after_mib / rss_before_mib - 1
    say(f"  resident memory at rest {rss_before_mib:.0f} MiB before, {rss_after_mib:.0f} MiB after ({growth:+.1%})")
    for failure in failures[:5]:
        say(f"  failed: {failure}")
    return 1 if failures else 0


def load(  # noqa: PLR0917 - one scene, two callers
    stage: Stage,
    daemon: psutil.Process,
    body: bytes,
    arguments: argparse.Namespace,
    swaps: int,
    spans: list[tuple[float, float]] | None = None,
) -> tuple[list[Asker], float]:
    """Swap under load, then let the daemon rest; the clients, and its resident memory at rest in MiB."""
    askers = [Asker(stage.client(), body) for _ in range(arguments.clients)]
    for asker in askers:
        asker.start()
    admin = stage.client()
    time.sleep(2)
    for _ in range(swaps):
        target = 2 if stage.status()["served"]["version"] == 1 else 1
        began_s = time.monotonic()
        admin.post(f"/v1/models/{target}/promote")
        if spans is not None:
            spans.append((began_s, time.monotonic()))
        time.sleep(arguments.pause)
    for asker in askers:
        asker.stop()
    time.sleep(3)
    return askers, daemon.memory_info().rss / 2**20


def split(latencies: list[tuple[float, float]], spans: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Latencies of requests that overlapped a swap, and of the others."""
    during: list[float] = []
    outside: list[float] = []
    for began_s, took_s in latencies:
        overlaps = any(began_s < ended and began_s + took_s > started for started, ended in spans)
        (during if overlaps else outside).append(took_s)
    return during, outside


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between swaps")
    parser.add_argument("--arch", default="torchvision:mobilenet_v2")
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgetune-swap-") as directory:
        return play(arguments, Path(directory))


if __name__ == "__main__":
    sys.exit(main())
