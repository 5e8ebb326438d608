"""How a trainer ended: its exit code and the record it left, judged together."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.errors import EXIT_OK, EXIT_TRAINER_CHECKPOINTED, EXIT_TRAINER_OUTCOME, OutOfMemoryError
from edgetune.types import TrainerOutcome

LOG_NAME = "trainer.log"
OUTCOME_NAME = "outcome.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerEnd:
    """How a trainer ended."""

    exit_code: int  # negative: killed by this signal
    outcome: TrainerOutcome
    message: str
    hint: str = ""


def judge(
    exit_code: int,
    round_dir: Path,
    *,
    said: dict[str, Any] | None,
    phase: str,
    is_kill_sent: bool,
    is_out_of_memory: bool = False,
) -> TrainerEnd:
    """
    Decide how a trainer ended. The exit code and the record must agree; a contradiction is FAILED.

    Args:
        exit_code: negative for a signal.
        round_dir: may hold outcome.json.
        said: the outcome event from its stdout, in case the file did not get written.
        phase: the last it spoke of.
        is_kill_sent: whether the daemon killed it.
        is_out_of_memory: whether the kernel killed it at the limit of its control group.
    """
    outcome, message, hint = _recorded(round_dir, said)

    def end(outcome: TrainerOutcome, message: str, hint: str = hint) -> TrainerEnd:
        return TrainerEnd(exit_code=exit_code, outcome=outcome, message=message, hint=hint)

    if exit_code == EXIT_OK:
        if outcome is TrainerOutcome.PUBLISHED:
            return end(outcome, message)
        what = " and recorded nothing" if outcome is None else f" but recorded {outcome.value}: {message}"
        return end(TrainerOutcome.FAILED, f"the trainer exited with 0{what}")
    if exit_code == EXIT_TRAINER_CHECKPOINTED:
        return end(TrainerOutcome.CHECKPOINTED, message)
    if exit_code == -signal.SIGTERM and outcome is not None and not is_kill_sent:
        # Asked to leave when it had recorded how it ended and Python had given its signal handlers back.
        return end(outcome, message)
    success = (TrainerOutcome.PUBLISHED, TrainerOutcome.CHECKPOINTED)
    if exit_code == EXIT_TRAINER_OUTCOME and outcome is not None and outcome not in success:
        return end(outcome, message)
    where = f"see {round_dir / LOG_NAME}"
    if exit_code < 0 and is_out_of_memory and not is_kill_sent:
        message = f"the kernel killed the trainer at budgets.trainer_memory_max in phase {phase}"
        return end(TrainerOutcome.OUT_OF_MEMORY, message, OutOfMemoryError.default_hint)
    if exit_code < 0:
        return end(TrainerOutcome.KILLED, _killed(-exit_code, phase, is_kill_sent=is_kill_sent), where)
    return end(TrainerOutcome.FAILED, f"the trainer failed with exit code {exit_code} in phase {phase}", where)


def _killed(number: int, phase: str, *, is_kill_sent: bool) -> str:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    who = ""
    if is_kill_sent:
        who = ", by the daemon"
    elif number == signal.SIGKILL:
        who = ", not by the daemon: most likely the kernel, for want of memory"
    return f"the trainer was killed ({name}{who}) in phase {phase}"


def _recorded(round_dir: Path, said: dict[str, Any] | None) -> tuple[TrainerOutcome | None, str, str]:
    try:
        record: Any = json.loads((round_dir / OUTCOME_NAME).read_bytes())
    except (OSError, ValueError):
        record = said
    try:
        return TrainerOutcome(record["outcome"]), str(record.get("message", "")), str(record.get("hint", ""))
    except (TypeError, KeyError, AttributeError, ValueError):
        return None, "", ""
