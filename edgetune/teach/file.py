"""A model file as a teacher: in a process of its own, whose memory is its own and which can be killed alone."""

from __future__ import annotations

import contextlib
import os
import select
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from edgetune.errors import TeacherError
from edgetune.teach.patience import Patience
from edgetune.teach.protocol import read_json

_LENGTHS = struct.Struct("<II")
_TURN_S = 0.1  # between two looks at its memory and at the clock
_CHUNK_BYTES = 64 * 1024
_FRAME_BYTES_MAX = 2**28
_MIB = 2**20


class FileModel:
    """One process of `python -m edgetune.serve.teacher`; everything it cannot do is a TeacherError that says so."""

    sent_bytes = 0  # nothing leaves the board
    received_bytes = 0

    def __init__(
        self,
        path: Path,
        *,
        threads: int,
        memory_max_mib: float,
        timeout_s: float,
        alive: Callable[[], None] = lambda: None,
        command: Sequence[str] | None = None,
    ) -> None:
        """
        Prepare; `describe` starts it.

        Args:
            path: an ONNX file.
            threads: of the model.
            memory_max_mib: it is killed when it holds more.
            timeout_s: it is killed when it takes longer to load, or to answer.
            alive: called while it is waited for.
            command: what to run before the file; default: this Python's `-m edgetune.serve.teacher`.
        """
        own = (sys.executable, "-m", "edgetune.serve.teacher", f"--threads={threads}", "--")
        self._command = [*(own if command is None else command), str(path)]
        self._memory_max_mib, self._timeout_s, self._alive = memory_max_mib, timeout_s, alive
        self._process: subprocess.Popen[bytes] | None = None
        self.is_binary = True

    @property
    def pid(self) -> int | None:
        """The process, while it runs."""
        return None if self._process is None else self._process.pid

    @property
    def held_mib(self) -> float:
        """Resident memory of the process; 0 when it does not run."""
        with contextlib.suppress(psutil.Error):
            if self._process is not None:
                return float(psutil.Process(self._process.pid).memory_info().rss / _MIB)
        return 0.0

    def describe(self) -> dict[str, Any]:
        """Start it and read what the model is."""
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )  # what it writes to stderr goes to the trainer's log
        except OSError as error:
            raise TeacherError(f"the teacher's process cannot be started: {error}") from error
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        return self._read(b"")[0]

    def ask(self, header: bytes, data: bytes) -> tuple[bytes, bytes]:
        """Send a request and wait for its answer: JSON and tensor bytes."""
        _, answer, tensor = self._exchange(_LENGTHS.pack(len(header), len(data)) + header + data)
        return answer, tensor

    def close(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait()

    def _read(self, request: bytes) -> tuple[dict[str, Any], bytes]:
        value, _, tensor = self._exchange(request)
        return value, tensor

    def _exchange(self, request: bytes) -> tuple[dict[str, Any], bytes, bytes]:
        """Write and read at once, so that neither side waits for the other; watch its memory and the clock."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise TeacherError("the teacher's process has ended")
        patience = Patience(self._timeout_s, _TURN_S)
        unsent, received = memoryview(request), bytearray()
        while not _is_whole(received):
            writers = [process.stdin] if unsent else []
            readable, writable, _ = select.select([process.stdout], writers, [], _TURN_S)
            self._look_after(process, patience)
            if readable:
                chunk = os.read(process.stdout.fileno(), _CHUNK_BYTES)
                if not chunk:
                    raise self._ended(process)
                received += chunk
            if writable:
                try:
                    unsent = unsent[os.write(process.stdin.fileno(), unsent[:_CHUNK_BYTES]) :]
                except BrokenPipeError:
                    unsent = memoryview(b"")  # its last words are still to be read
        self._look_after(process, patience)
        header_bytes, data_bytes = _LENGTHS.unpack_from(received)
        start = _LENGTHS.size
        header, data = received[start : start + header_bytes], received[start + header_bytes :]
        value = read_json(bytes(header))
        if "error" in value or len(data) != data_bytes:
            self.close()
            raise TeacherError(str(value.get("error", "the teacher's process answered more than it announced")))
        return value, bytes(header), bytes(data)

    def _look_after(self, process: subprocess.Popen[bytes], patience: Patience) -> None:
        self._alive()
        try:
            held_mib = psutil.Process(process.pid).memory_info().rss / _MIB
        except psutil.Error:
            return  # it is gone: its pipe says so
        if held_mib > self._memory_max_mib:
            self.close()
            raise TeacherError(
                f"the teacher holds {held_mib:.0f} MiB; {self._memory_max_mib:.0f} are allowed",
                hint="raise training.teacher_memory_max, or take a smaller teacher",
            )
        if patience.is_over():
            self.close()
            raise TeacherError(
                f"the teacher did not answer within {self._timeout_s:g} s",
                hint="raise training.teacher_timeout, or take a smaller teacher",
            )

    def _ended(self, process: subprocess.Popen[bytes]) -> TeacherError:
        code = process.wait()
        self.close()
        how = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
        return TeacherError(f"the teacher's process {how} and gave no answer", hint="its last words are in trainer.log")


def _is_whole(frame: bytearray) -> bool:
    if len(frame) < _LENGTHS.size:
        return False
    wanted: int = sum(_LENGTHS.unpack_from(frame))
    if wanted > _FRAME_BYTES_MAX:
        raise TeacherError("the teacher's process answers in no frames that edgetune knows")
    return len(frame) >= _LENGTHS.size + wanted
