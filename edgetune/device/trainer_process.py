"""
The trainer as seen by the daemon: one child process, its progress, its pace, its end.

The trainer speaks JSON lines on stdout, takes orders as JSON lines on stdin, and leaves `outcome.json` in its round
directory. What it prints on stderr, and anything on stdout that is not of the protocol, goes to `trainer.log`.
It dies with the daemon by itself (PR_SET_PDEATHSIG, set by the trainer on `--parent`).
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from edgetune.clock import Clock, SystemClock
from edgetune.device.memory_wall import MemoryWall
from edgetune.device.trainer_end import LOG_NAME, OUTCOME_NAME, TrainerEnd, judge
from edgetune.errors import RoundError

__all__ = ["Progress", "TrainerEnd", "TrainerProcess"]

_LINE_BYTES_MAX = 64 * 1024  # a longer line is not of the protocol
_CHUNK_BYTES = 64 * 1024
# Threads that wait for each other sleep instead of spinning. Alone on the board that takes a quarter longer; beside a busy
# process spinning takes twice as long and beside several five times, for the thread that is waited for does not get the
# core (benchmarks/waiting.py).
_WAITING = {"OMP_WAIT_POLICY": "passive"}
_LOG_BYTES_MAX = 4 * 2**20  # a trainer that floods its output must not fill the disk
_MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The last thing a trainer said about its work."""

    phase: str
    step: int = 0
    steps: int = 0
    epoch: float = 0.0
    loss: float | None = None
    samples_per_s: float | None = None
    at_s: float = 0.0  # Clock.now_s


class TrainerProcess:
    """One run of `python -m edgetune.trainer`; a second run is a second object."""

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        command: Sequence[str] | None = None,
        wall: MemoryWall | None = None,
        is_plan: bool = False,
    ) -> None:
        """
        Prepare; `start` starts it.

        Args:
            clock: for the ages of progress and heartbeat.
            wall: keeps its memory below a limit; None: nothing does.
            command: what to run before ROUND_DIR and `--parent PID`; default: this Python's `-m edgetune.trainer`.
            is_plan: the round is only to be planned.
        """
        self._clock: Clock = clock or SystemClock()
        self._command = tuple(command) if command is not None else (sys.executable, "-m", "edgetune.trainer")
        self._command += ("--plan",) if is_plan else ()
        self._wall = wall or MemoryWall()
        self._kills_before = 0
        self._process: asyncio.subprocess.Process | None = None
        self._round_dir = Path()
        self._reading: asyncio.Task[None] | None = None
        self._end: TrainerEnd | None = None
        self._said: dict[str, Any] | None = None  # the outcome event, in case outcome.json did not get written
        self._log_room = _LOG_BYTES_MAX
        self.is_paused = False
        self.is_kill_sent = False
        self.last_progress: Progress | None = None
        self.written_bytes: int | None = None  # by its own count, which it tells at its end
        self.last_heartbeat_s: float = 0.0  # Clock.now_s; any line of the protocol counts

    async def start(
        self, round_dir: Path, *, nice: int = 19, oom_score_adj: int = 800, extra_env: Mapping[str, str] | None = None
    ) -> None:
        """
        Start the trainer on a round directory.

        Args:
            round_dir: holds spec.json; gets trainer.log.
            nice: added to the daemon's own niceness, 0..19.
            oom_score_adj: how willingly the kernel kills it first, 0..1000 (raising it needs no privilege).
            extra_env: on top of the daemon's environment.

        Raises:
            RoundError: the process could not be started; the message says why.
        """
        if self._process is not None:
            raise RoundError("this trainer was started before")
        self._round_dir = round_dir
        (round_dir / OUTCOME_NAME).unlink(missing_ok=True)  # of an earlier run on the same spec
        environment = {**_WAITING, **os.environ, "PYTHONUNBUFFERED": "1", **(extra_env or {})}
        environment.pop("NOTIFY_SOCKET", None)  # only the daemon speaks to systemd
        try:
            log = (round_dir / LOG_NAME).open("ab", buffering=0)
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    str(round_dir),
                    "--parent",
                    str(os.getpid()),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log,
                    env=environment,
                    start_new_session=True,  # a Ctrl-C at the daemon's terminal is the daemon's to pass on
                )
            except BaseException:
                log.close()
                raise
        except OSError as error:
            raise RoundError(f"cannot start the trainer: {error}") from error
        self.last_heartbeat_s = self._clock.now_s()
        self._lower_priority(nice, oom_score_adj)
        self._kills_before = self._wall.kills()
        with suppress(OSError):  # without the wall the readings are what there is
            self._wall.admit(self._process.pid)
        self._reading = asyncio.create_task(self._read(log), name="trainer-output")

    @property
    def pid(self) -> int | None:
        """The process's number while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def rss_mib(self) -> float | None:
        """Resident memory of the trainer and its children; None when it does not run."""
        pid = self.pid
        return None if pid is None else process_rss_mib(pid)

    def set_duty(self, duty: float) -> None:
        """Pace the trainer: the share of the time it may compute, above 0 up to 1."""
        self._order({"duty": min(1.0, max(0.01, duty))})

    def set_energy(self, joules: float) -> None:
        """Tell the trainer what the board has used since it was started."""
        self._order({"energy_j": round(joules, 1)})

    def _order(self, order: Mapping[str, float]) -> None:
        process = self._process
        if process is None or process.stdin is None or self.pid is None or process.stdin.is_closing():
            return
        # A trainer that does not read leaves the pipe full; orders are then dropped rather than piled up without end.
        if process.stdin.transport.get_write_buffer_size() > _CHUNK_BYTES:
            return
        process.stdin.write(json.dumps(order).encode() + b"\n")

    def pause(self) -> None:
        """Freeze it: gives back CPU, heat and watts, no memory."""
        self.is_paused = self._signal(signal.SIGSTOP) or self.is_paused

    def resume(self) -> None:
        """Let it go on; the time it was frozen does not count as silence."""
        if self._signal(signal.SIGCONT) and self.is_paused:
            self.is_paused = False
            self.last_heartbeat_s = self._clock.now_s()

    def stop(self) -> None:
        """Ask it to checkpoint and leave. SIGCONT first: a frozen process does not act on SIGTERM."""
        self.resume()
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it now, with its children (it leads its own process group)."""
        pid = self.pid
        if pid is None:
            return
        self.is_kill_sent = True
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)

    def silent_s(self) -> float:
        """Seconds since its last sign of work; 0 while it is paused."""
        return 0.0 if self.is_paused else self._clock.now_s() - self.last_heartbeat_s

    async def wait(self) -> TrainerEnd:
        """
        Wait for the end. May be called again, and by several.

        Returns:
            The outcome that the trainer recorded; KILLED when it was killed and left none. An exit code that
            contradicts the record (0 with nothing published) is FAILED.
        """
        if self._process is None or self._reading is None:
            raise RoundError("the trainer was not started")
        exit_code = await self._process.wait()
        await asyncio.shield(self._reading)
        if self._end is None:
            phase = self.last_progress.phase if self.last_progress else "start"
            self._end = judge(
                exit_code,
                self._round_dir,
                said=self._said,
                phase=phase,
                is_kill_sent=self.is_kill_sent,
                is_out_of_memory=self._wall.kills() > self._kills_before,
            )
        return self._end

    # ------------------------------------------------------------------------------------------- inside

    def _lower_priority(self, nice: int, oom_score_adj: int) -> None:
        """From outside, after the start: a preexec_fn would run Python between fork and exec, beside our threads."""
        pid = self.pid
        if pid is None:
            return
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, pid, min(19, os.getpriority(os.PRIO_PROCESS, 0) + nice))
        with suppress(OSError):
            Path(f"/proc/{pid}/oom_score_adj").write_text(str(oom_score_adj), encoding="ascii")

    def _signal(self, number: signal.Signals) -> bool:
        if self.pid is None or self._process is None:
            return False
        try:
            self._process.send_signal(number)
        except ProcessLookupError:
            return False
        return True

    async def _read(self, log: IO[bytes]) -> None:
        """Split stdout into lines, without asyncio's own limit: an endless line must not end the reading."""
        stdout = self._process.stdout if self._process is not None else None
        rest = b""
        try:
            while stdout is not None and (chunk := await stdout.read(_CHUNK_BYTES)):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._take(line, log)
                if len(rest) > _LINE_BYTES_MAX:
                    self._note(rest, log)
                    rest = b""
            if rest:
                self._take(rest, log)
        finally:
            log.close()

    def _take(self, line: bytes, log: IO[bytes]) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict) or not self._understand(event):
            self._note(line + b"\n", log)

    def _understand(self, event: dict[str, Any]) -> bool:
        now_s = self._clock.now_s()
        kind = event.get("event")
        if kind in ("phase", "progress"):
            self.last_progress = Progress(
                phase=str(event.get("phase", "")),
                step=int(_number(event.get("step")) or 0),
                steps=int(_number(event.get("steps")) or 0),
                epoch=_number(event.get("epoch")) or 0.0,
                loss=_number(event.get("loss")),
                samples_per_s=_number(event.get("samples_per_s")),
                at_s=now_s,
            )
        elif kind == "outcome":
            self._said = event
            written = _number(event.get("written_bytes"))
            self.written_bytes = None if written is None else int(written)
        elif kind != "heartbeat":
            return False
        self.last_heartbeat_s = now_s
        return True

    def _note(self, text: bytes, log: IO[bytes]) -> None:
        if self._log_room > 0 and text.strip():
            with suppress(OSError):  # a full disk must not end the reading: the trainer would block on its output
                log.write(text[: self._log_room])
            self._log_room -= len(text)


def process_rss_mib(pid: int) -> float | None:
    """Resident memory of a process and all below it in MiB; None when it is gone or may not be looked at."""
    try:
        total = psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return None
    for child in process_family(pid)[1:]:
        with suppress(psutil.Error):
            total += psutil.Process(child).memory_info().rss
    return total / _MIB


def process_family(pid: int) -> list[int]:
    """A process and all below it, by number."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return [pid]


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None
