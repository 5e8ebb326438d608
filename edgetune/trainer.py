"""
The trainer: `python -m edgetune.trainer ROUND_DIR [--parent PID]` does the round of ROUND_DIR/spec.json and exits.

It speaks JSON lines on stdout, takes orders as JSON lines on stdin, and leaves outcome.json. It may be run by hand on
any round directory. SIGTERM: checkpoint and leave; started again, it goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import fcntl
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from edgetune.errors import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_TRAINER_CHECKPOINTED,
    EXIT_TRAINER_OUTCOME,
    EXIT_USAGE,
    ConflictError,
    EdgetuneError,
    LossNotFiniteError,
    MissingLibraryError,
    ModelError,
    NoGradientError,
    NoSamplesError,
    OneClassError,
    OutOfMemoryError,
    TeacherError,
    UnprunableError,
    UsageError,
    WillNotFitError,
)
from edgetune.store.durable import remove_file, write_atomic
from edgetune.store.written import process_written_bytes
from edgetune.types import RoundSpec, TrainerOutcome
from edgetune.wire import from_json

if TYPE_CHECKING:
    from edgetune.learn.control import Control

SPEC_FILE = "spec.json"
OUTCOME_FILE = "outcome.json"
_PR_SET_PDEATHSIG = 1

_OUTCOMES: tuple[tuple[type[EdgetuneError], TrainerOutcome], ...] = (
    (NoSamplesError, TrainerOutcome.NO_SAMPLES),
    (OneClassError, TrainerOutcome.ONE_CLASS),
    (LossNotFiniteError, TrainerOutcome.NAN_LOSS),
    (OutOfMemoryError, TrainerOutcome.OUT_OF_MEMORY),
    (WillNotFitError, TrainerOutcome.WILL_NOT_FIT),
    (UnprunableError, TrainerOutcome.UNPRUNABLE),
    (NoGradientError, TrainerOutcome.UNPRUNABLE),
    (ModelError, TrainerOutcome.BAD_MODEL),
    (MissingLibraryError, TrainerOutcome.MISSING_LIBRARY),
    (TeacherError, TrainerOutcome.BAD_TEACHER),
)
_HEAVY = ("numpy", "onnxruntime", "torch", "onnx", "edgetune.learn.recipe")
# How torch says that there is no memory: a RuntimeError, told from others by its text alone.
_NO_MEMORY = ("not enough memory", "can't allocate", "out of memory", "cannot allocate memory", "bad_alloc")


def main(argv: list[str] | None = None) -> int:
    """Run the trainer; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m edgetune.trainer", description="Do one round of training.")
    parser.add_argument("round_dir", type=Path, help="directory with spec.json")
    parser.add_argument(
        "--plan", action="store_true", help="only forecast the round, and whether it fits; trains nothing"
    )
    parser.add_argument("--parent", type=int, help="process id of the daemon; the trainer dies with it")
    arguments = parser.parse_args(argv)
    if arguments.parent is not None:
        _die_with(arguments.parent)
    output = _protocol_output()
    try:
        with _locked(arguments.round_dir):
            return _run(arguments.round_dir, output, is_plan=arguments.plan)
    except (UsageError, ConflictError) as error:
        print(f"{error.message}\n{error.hint}".strip(), file=sys.stderr)  # noqa: T201 - a command line that was misused
        return EXIT_USAGE


def _run(round_dir: Path, output: TextIO, *, is_plan: bool = False) -> int:
    spec = _read_spec(round_dir)
    remove_file(round_dir / OUTCOME_FILE)
    try:
        from edgetune.learn.control import Control

        control = Control(output)
        _listen(control)
        control.phase("load")
        outcome, message, hint = _attempt(round_dir, spec, control, is_plan=is_plan)
    except BrokenPipeError:  # nobody reads any more: the checkpoint is what is left
        return EXIT_TRAINER_CHECKPOINTED
    record = {"outcome": outcome.value, "message": message, "hint": hint}
    with contextlib.suppress(OSError):  # a full disk: the line below still says it
        write_atomic(round_dir / OUTCOME_FILE, json.dumps(record).encode())
    with contextlib.suppress(BrokenPipeError):
        control.say("outcome", **record, version=spec.candidate_version, written_bytes=_written_bytes())
    if outcome is TrainerOutcome.PUBLISHED:
        return EXIT_OK
    if outcome is TrainerOutcome.CHECKPOINTED:
        return EXIT_TRAINER_CHECKPOINTED
    return EXIT_TRAINER_OUTCOME


def _written_bytes() -> int | None:
    """What this process has written so far; with what is still to be synced, for publishing ends with it."""
    return process_written_bytes()


def _attempt(
    round_dir: Path, spec: RoundSpec, control: Control, *, is_plan: bool = False
) -> tuple[TrainerOutcome, str, str]:
    """Do the round; every way it can end has a name."""
    try:
        from edgetune.learn.control import StopAskedError

        for library in _HEAVY:
            control.say("heartbeat", phase="load")  # each of them takes seconds on a small board
            importlib.import_module(library)
        from edgetune.learn.recipe import plan_round, run_round

        try:
            if is_plan:
                plan = plan_round(round_dir, spec, control)
                return TrainerOutcome.PLANNED, plan.reason, ""
            manifest = run_round(round_dir, spec, control)
        except StopAskedError:
            return TrainerOutcome.CHECKPOINTED, "stopped; the round can go on from its checkpoint", ""
        return TrainerOutcome.PUBLISHED, f"published version {manifest.version}", ""
    except BrokenPipeError:
        raise
    except ImportError as error:
        return TrainerOutcome.MISSING_LIBRARY, f"a library is missing: {error}", "pip install 'edgetune[train]'"
    except (EdgetuneError, MemoryError, OSError, RuntimeError) as error:
        return name_outcome(error)
    except Exception as error:  # noqa: BLE001 - the last line of a process that ends here: named, with its traceback
        traceback.print_exc()
        return TrainerOutcome.FAILED, f"{type(error).__name__}: {error}", ""


def name_outcome(error: BaseException) -> tuple[TrainerOutcome, str, str]:
    """
    The outcome, sentence and hint for an error that ended a round.

    torch says "no memory" as a plain RuntimeError, and an I/O library may wrap a full disk: the cause counts too.
    """
    text = str(error).lower()
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(t in text for t in _NO_MEMORY)):
        return TrainerOutcome.OUT_OF_MEMORY, f"the trainer ran out of memory: {error}", OutOfMemoryError.default_hint
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TrainerOutcome.DISK_FULL, f"the disk is full: {error}", "free some: edgetune models gc"
    if isinstance(error, EdgetuneError):
        for kind, outcome in _OUTCOMES:
            if isinstance(error, kind):
                return outcome, error.message, error.hint
        return TrainerOutcome.FAILED, error.message, error.hint
    if isinstance(error.__cause__, (OSError, MemoryError)):
        return name_outcome(error.__cause__)
    traceback.print_exception(type(error), error, error.__traceback__)
    return TrainerOutcome.FAILED, f"{type(error).__name__}: {error}", ""


def _read_spec(round_dir: Path) -> RoundSpec:
    path = round_dir / SPEC_FILE
    try:
        return from_json(RoundSpec, path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}", hint="give the directory of a round") from error
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error


@contextlib.contextmanager
def _locked(round_dir: Path) -> Iterator[None]:
    """One trainer a round; the lock goes with the process, however it ends."""
    try:
        file = (round_dir / "lock").open("w", encoding="ascii")
    except OSError as error:
        raise UsageError(f"{round_dir} is not a round directory: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConflictError(f"another trainer works on {round_dir}") from error
        yield


def _protocol_output() -> TextIO:
    """The real stdout, for the protocol alone: what libraries print goes to stderr."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    sys.stdout.flush()
    os.dup2(2, 1)
    return output


def _listen(control: Control) -> None:
    """Take SIGTERM and SIGINT as a wish to stop, and stdin as orders."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: control.stop())

    def read_orders() -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in sys.stdin:
                control.obey(line)

    if sys.stdin is not None:
        threading.Thread(target=read_orders, name="orders", daemon=True).start()


def _die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL when the daemon dies; it may have died before we asked."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    sys.exit(main())
