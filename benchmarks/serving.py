"""
Throughput through the daemon's socket against the same work in process, block by block in turn.

    python -m benchmarks.serving [--seconds 3] [--rounds 5] [--arch torchvision:mobilenet_v2] [--size 224]

Tensors: KServe v2 `infer` with a binary uint8 image over kept connections, against `Engine.predict` on the same model
file with the same threads, by as many callers. Pictures: `POST /v1/predict` with a JPEG, against decode, resize and
predict. Clients are threads of this process, which shares the cores with the daemon: the bare call has no client to
feed, so requests per CPU-second (daemon and client together) are told as well.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.stage import Stage, machine, say, table
from edgetune import images
from edgetune.serve.engine import Engine, rank

CONFIG = "budgets: {memory_available_min: 100MiB, disk_free_min: 100MiB}\n"
CALLERS = (1, 2, 4)


class Connection(http.client.HTTPConnection):
    """One kept connection to the daemon's socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        """Open it."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self._path))

    def ask(self, path: str, body: bytes, headers: dict[str, str]) -> None:
        """Post, and insist on an answer that is one."""
        self.request("POST", path, body, headers)
        answer = self.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{path} answered {answer.status}: {content[:300]!r}")


@dataclass
class Way:
    """One way to get predictions, and what its blocks gave."""

    name: str
    make_call: Callable[[], Callable[[], object]]  # one a caller
    rates: list[float] = field(default_factory=list)  # predictions a second, a block
    per_cpu_s: list[float] = field(default_factory=list)  # predictions per CPU-second, a block
    latencies_s: list[float] = field(default_factory=list)

    def block(self, callers: int, seconds: float, processes: list[psutil.Process]) -> None:
        """Let so many callers ask without pause for so long."""
        calls = [self.make_call() for _ in range(callers)]
        for call in calls:
            call()
        taken: list[list[float]] = [[] for _ in calls]
        cpu_before_s, started_s = cpu_s(processes), time.perf_counter()
        ends_s = started_s + seconds

        def ask(call: Callable[[], object], mine: list[float]) -> None:
            began_s = time.perf_counter()
            while began_s < ends_s:
                call()
                mine.append(-began_s + (began_s := time.perf_counter()))

        threads = [threading.Thread(target=ask, args=pair) for pair in zip(calls, taken, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        answered = sum(len(mine) for mine in taken)
        self.rates.append(answered / (time.perf_counter() - started_s))
        self.per_cpu_s.append(answered / (cpu_s(processes) - cpu_before_s))
        self.latencies_s += [one for mine in taken for one in mine]


def cpu_s(processes: list[psutil.Process]) -> float:
    """What these processes have used of all cores."""
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def tensor_body(pixels: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """A KServe v2 request with a binary tensor, and its headers."""
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "images",
                    "shape": [1, *pixels.shape],
                    "datatype": "UINT8",
                    "parameters": {"binary_data_size": pixels.nbytes},
                }
            ],
            "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
        }
    ).encode()
    return head + pixels.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def over_socket(path: Path, target: str, body: bytes, headers: dict[str, str]) -> Callable[[], Callable[[], object]]:
    """Callers with a connection each."""

    def make() -> Callable[[], object]:
        connection = Connection(path)
        return lambda: connection.ask(target, body, headers)

    return make


def ways(stage: Stage, engine: Engine, side: int) -> list[tuple[Way, Way]]:
    """Pairs of (through the socket, in process)."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    # Twice as large as the model's input and smooth, as a camera's picture is.
    large = Image.fromarray(pixels[: side // 8, : side // 8]).resize((2 * side, 2 * side), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    large.save(file, "JPEG", quality=90)
    jpeg = file.getvalue()

    def predict_jpeg() -> object:
        decoded = images.to_input(images.decode(jpeg), engine.manifest.preprocess)
        return rank(engine.predict(decoded[None])[0], engine.classes, 5)

    socket_path = stage.root / "run" / "edgetune.sock"
    return [
        (
            Way("tensor, socket", over_socket(socket_path, "/v2/models/edgetune/infer", *tensor_body(pixels))),
            Way("tensor, bare", lambda: lambda: engine.predict(pixels[None])),
        ),
        (
            Way("JPEG, socket", over_socket(socket_path, "/v1/predict?record=false", jpeg, {})),
            Way("JPEG, in process", lambda: predict_jpeg),
        ),
    ]


def compare(
    served: Way, bare: Way, callers: int, arguments: argparse.Namespace, processes: list[psutil.Process]
) -> list[str]:
    """Blocks of both in turn; one row of the table."""
    for round_number in range(arguments.rounds):
        pair = (served, bare) if round_number % 2 else (bare, served)
        for way in pair:
            way.block(callers, arguments.seconds, processes)
    ratios = [mine / theirs for mine, theirs in zip(served.rates, bare.rates, strict=True)]
    return [
        served.name.partition(",")[0],
        str(callers),
        f"{statistics.median(served.rates):.1f}",
        f"{statistics.median(bare.rates):.1f}",
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f}..{max(ratios):.3f})",
        f"{statistics.median(served.latencies_s) * 1000:.2f} ms",
        f"{statistics.median(bare.latencies_s) * 1000:.2f} ms",
        f"{statistics.median(served.per_cpu_s):.1f}",
        f"{statistics.median(bare.per_cpu_s):.1f}",
    ]


def play(arguments: argparse.Namespace, root: Path) -> None:
    """The benchmark."""
    threads = os.cpu_count() or 1
    stage = Stage(root, CONFIG)
    classes = root / "classes.txt"
    classes.write_text("".join(f"class {i}\n" for i in range(10)))
    stage.import_model(
        arguments.arch, "--random", "--classes", str(classes), "--size", f"{arguments.size}x{arguments.size}"
    )
    engine = Engine.load(root / "state" / "models" / "v000001", threads=threads)
    rows = [
        ["", "callers", "socket/s", "bare/s", "ratio (worst..best)", "socket", "bare", "socket/CPU-s", "bare/CPU-s"]
    ]
    with stage:
        processes = [psutil.Process(stage.pid), psutil.Process()]
        say(
            f"{machine()}, {time.strftime('%Y-%m-%d')}: {arguments.arch} at {arguments.size} px, {threads} threads a prediction"
        )
        for callers in arguments.callers:
            for served, bare in ways(stage, engine, arguments.size):
                if arguments.only in served.name:
                    rows.append(compare(served, bare, callers, arguments, processes))
                    say("  " + "  ".join(rows[-1]))
    say(table(rows))


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a block")
    parser.add_argument("--rounds", type=int, default=5, help="blocks of each way")
    parser.add_argument("--callers", type=int, nargs="+", default=CALLERS)
    parser.add_argument("--only", default="", help="'tensor' or 'JPEG'")
    parser.add_argument("--arch", default="torchvision:mobilenet_v2")
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgetune-serving-") as directory:
        play(arguments, Path(directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
