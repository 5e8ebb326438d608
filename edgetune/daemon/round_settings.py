"""What a round is told by the configuration, and what it needs of a trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgetune.decide.probation import ProbationPolicy
from edgetune.device.trainer_process import Progress, TrainerEnd
from edgetune.types import GatePolicy, Recipe, RoundSpec, TeacherSource


class Trainer(Protocol):
    """The trainer process (device/trainer_process.py) or a fake."""

    last_progress: Progress | None
    written_bytes: int | None  # by its own count, once it has ended

    @property
    def pid(self) -> int | None:
        """Its process, while it runs."""

    async def start(self, round_dir: Path, *, nice: int, oom_score_adj: int) -> None:
        """Start it."""

    async def wait(self) -> TrainerEnd:
        """Exit code, outcome, message."""

    def silent_s(self) -> float:
        """Seconds since its last sign of work, pauses not counted."""

    def set_duty(self, duty: float) -> None:
        """Pace it."""

    def set_energy(self, joules: float) -> None:
        """Tell it what the board has used since it was started."""

    def pause(self) -> None:
        """SIGSTOP."""

    def resume(self) -> None:
        """SIGCONT."""

    def stop(self) -> None:
        """SIGCONT, then SIGTERM."""

    def kill(self) -> None:
        """SIGKILL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSettings:
    """What the configuration says about rounds; replaced whole on reload."""

    recipe: Recipe
    gate: GatePolicy
    probation: ProbationPolicy
    builders: Mapping[str, str]
    teacher: TeacherSource
    samples_max: int | None  # labelled ones for training, and as many without a label
    learns_unlabelled: bool
    serving_threads: int
    versions_kept: int
    round_time_max_s: float
    round_energy_max_j: float | None
    paused_max_s: float
    spec_max_age_s: float
    stall_s: float
    stop_grace_s: float
    nice: int
    oom_score_adj: int
    cooldown_s: float
    cooldown_factor: float
    cooldown_max_s: float


def forbidden(spec: RoundSpec, settings: RoundSettings) -> str:
    """Why a round may not go on: it would send to a server what the configuration does not allow any more; empty: it may."""
    allowed, wanted = settings.teacher, spec.teacher
    if wanted.kind != "server":
        return ""
    if (allowed.kind, allowed.server, allowed.ca_file) != (wanted.kind, wanted.server, wanted.ca_file):
        return f"{wanted.server} is not the teacher any more (training.teacher)"
    if not settings.learns_unlabelled and any(sample.label is None for sample in spec.samples):
        return "it has unlabelled images to send, and training.unlabelled is ignore by now"
    return ""
