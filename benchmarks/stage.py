"""The real daemon in a directory of its own, and a client that never stops asking: what demo and benchmarks play on."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from edgetune.client import Client
from edgetune.errors import EdgetuneError

T = TypeVar("T")


def say(text: str) -> None:
    """Tell the reader what happens, at once."""
    print(text, flush=True)


def need(parser: argparse.ArgumentParser, arguments: argparse.Namespace, **wanted: str) -> None:
    """End with a sentence unless every option named in `wanted` is a path that exists; the value says what it is to be."""
    for name, what in wanted.items():
        path: Path | None = getattr(arguments, name)
        if path is None or not path.exists():
            given = "" if path is None else f" {path}"
            parser.error(f"--{name.replace('_', '-')}{given}: {what} is missing")


def edgetune(*arguments: str) -> str:
    """Run a verb of the command line as a user would, and return what it printed."""
    done = subprocess.run([sys.executable, "-m", "edgetune", *arguments], check=False, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"edgetune {' '.join(arguments)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def machine() -> str:
    """What the figures were taken on."""
    name = platform.machine()
    with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


class Stage:
    """A running daemon. As a context manager it starts and stops it."""

    def __init__(self, root: Path, config: str, *, wrapper: Sequence[str] = ()) -> None:
        """`config` is YAML; its paths must lie below `root`, as `paths()` writes them. `wrapper` is a command that becomes the daemon."""
        self.root, self._wrapper = root, wrapper
        self.config_path = root / "config.yaml"
        self.config_path.write_text(self.paths() + config)
        self.inbox = root / "state" / "inbox"
        self._daemon: subprocess.Popen[bytes] | None = None

    def paths(self) -> str:
        """The section of the configuration that keeps everything below the root."""
        return f'paths: {{state_dir: "{self.root}/state", runtime_dir: "{self.root}/run"}}\nserving: {{socket_group: null}}\n'

    def client(self) -> Client:
        """A connection of one's own."""
        return Client(self.root / "run" / "edgetune.sock", timeout_s=60)

    def import_model(self, architecture: str, *more: str) -> None:
        """`edgetune models import` before the daemon runs."""
        edgetune("models", "import", "--config", str(self.config_path), "--arch", architecture, *more)

    @property
    def pid(self) -> int:
        """Of the daemon."""
        assert self._daemon is not None
        return self._daemon.pid

    def __enter__(self) -> Stage:  # noqa: PYI034 - Self is of Python 3.11
        log = (self.root / "daemon.log").open("ab")
        command = [*self._wrapper, sys.executable, "-m", "edgetune", "run", "--config", str(self.config_path)]
        self._daemon = subprocess.Popen(command, stderr=log, stdout=log)
        self.wait_for("the daemon", self._is_up, 60)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._daemon is not None
        self._daemon.terminate()
        self._daemon.wait(timeout=90)

    def _is_up(self) -> bool:
        assert self._daemon is not None
        if self._daemon.poll() is not None:
            raise SystemExit(f"the daemon ended with {self._daemon.returncode}:\n{self.log()[-3000:]}")
        try:
            self.client().get("/v1/status")
        except EdgetuneError:
            return False
        return True

    def log(self) -> str:
        """What the daemon said."""
        return (self.root / "daemon.log").read_text(errors="replace")

    def status(self) -> Any:
        """GET /v1/status."""
        return self.client().get("/v1/status")

    def wait_for(self, what: str, check: Callable[[], T], timeout_s: float = 600.0) -> T:
        """Wait until `check` answers something true."""
        ends_s = time.monotonic() + timeout_s
        while time.monotonic() < ends_s:
            found = check()
            if found:
                return found
            time.sleep(0.2)
        raise SystemExit(f"waited {timeout_s:.0f} s in vain for {what}; the daemon's last words:\n{self.log()[-3000:]}")

    def wait_for_round(self, after_id: int, timeout_s: float = 3600.0) -> Any:
        """Wait for the end of the next round, telling what it does; the status at its end."""
        shown = ""

        def check() -> Any:
            nonlocal shown
            status = self.status()
            now = status["round"]
            words = f"   {time.strftime('%H:%M:%S')} round {now['state']}" + (
                f", {now['phase']}" if now["phase"] else ""
            )
            words += f" ({now['message']})" if now["message"] else ""
            if words[12:] != shown:
                shown = words[12:]
                say(words)
            last = status["last_round"]
            return status if last and last["id"] > after_id else None

        return self.wait_for("a round", check, timeout_s)

    def accuracy(self, pictures: Sequence[tuple[bytes, str]]) -> float:
        """Share of right answers of the served model, asked over the socket."""
        client, right = self.client(), 0
        for picture, label in pictures:
            answer = client.post("/v1/predict", picture, record="false", top_k=1)
            right += answer["top"][0]["class"] == label
        return right / len(pictures)

    def model_bytes(self, version: int) -> int:
        """Size of a version's ONNX file."""
        return (self.root / "state" / "models" / f"v{version:06d}" / "model.onnx").stat().st_size


@dataclass
class Asker:
    """A client in a thread of its own that asks until told to stop."""

    client: Client
    body: bytes
    pause_s: float = 0.0
    answered: int = 0
    versions: dict[int, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)  # (when it began, how long), seconds
    is_done: bool = False

    def start(self) -> None:
        """Begin to ask."""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self.is_done = True
        self._thread.join()

    def _run(self) -> None:
        while not self.is_done:
            began_s = time.monotonic()
            try:
                answer = self.client.post("/v1/predict", self.body, record="false")
            except EdgetuneError as error:
                self.failures.append(str(error))
            else:
                self.answered += 1
                version = int(answer["model_version"])
                self.versions[version] = self.versions.get(version, 0) + 1
                self.latencies.append((began_s, time.monotonic() - began_s))
            time.sleep(self.pause_s)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text, the first one as a head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = (cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        return "  " + "   ".join(cells)

    return "\n".join([line(rows[0]), line(["-" * w for w in widths]), *(line(row) for row in rows[1:])])
