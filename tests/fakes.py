"""Stand-ins with the real interfaces: a clock, a board, a trainer. They replace the outside world, not our code."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from edgetune.device.trainer_process import Progress, TrainerEnd
from edgetune.simulate.candidate import Size, compare, publish_candidate
from edgetune.simulate.clock import FakeClock
from edgetune.simulate.tiny import SIDE, Weights, manifest, publish_factory, tiny_files, tiny_model
from edgetune.store.models import version_name
from edgetune.types import Cost, Latency, Measurement, Pruning, Quantity, Reading, RoundSpec, TrainerOutcome
from edgetune.wire import from_json

__all__ = [
    "SIDE", "FakeClock", "FakeSensors", "FakeTrainer", "Weights", "manifest", "picture", "publish_factory", "tiny_files",
    "tiny_model",
]  # fmt: skip

HALF = Size(
    cost=Cost(parameters=50, macs=50, onnx_bytes=50),
    latency=Latency(median_ms=1.0, p90_ms=1.1, runs=10, threads=1),
    pruning=Pruning(criterion="taylor", level_asked=0.5, level_achieved=0.5, round_to=8),
)


@dataclass
class FakeSensors:
    """A board whose values a test sets; None is an unreadable sensor."""

    clock: FakeClock
    values: dict[Quantity, float | None] = field(
        default_factory=lambda: {
            Quantity.MEM_AVAILABLE_MIB: 4000.0,
            Quantity.TRAINER_RSS_MIB: 100.0,
            Quantity.SOC_TEMP_C: 40.0,
            Quantity.POWER_W: 4.0,
            Quantity.CPU_SHARE: 0.1,
            Quantity.DISK_FREE_MIB: 8000.0,
        }
    )

    def read(self, trainer_pid: int | None) -> Reading:
        """What was set."""
        del trainer_pid
        return Reading(at_s=self.clock.now_s(), wall_s=self.clock.wall_s(), local_minute=720, values=self.supported())

    def supported(self) -> Mapping[Quantity, Measurement]:
        """What was set."""
        return {
            q: Measurement(value=v, source="fake", why_unknown="" if v is not None else "the fake sensor is gone")
            for q, v in self.values.items()
        }

    def close(self) -> None:
        """Nothing runs."""


class FakeTrainer:
    """A trainer that does what the test says, when it says so; by default it publishes a good candidate at once."""

    def __init__(
        self, clock: FakeClock, *, right: float = 0.9, is_held: bool = False, weights: Weights | None = None
    ) -> None:
        self._clock, self._right, self._is_held, self._weights = clock, right, is_held, weights
        self._end: asyncio.Future[TrainerEnd] | None = None
        self.spec: RoundSpec | None = None
        self.last_progress: Progress | None = None
        self.last_heartbeat_s = clock.now_s()
        self.said: list[str] = []
        self.energy_j = 0.0

    @property
    def pid(self) -> int | None:
        """There is no process."""
        return None

    async def start(self, round_dir: Path, *, nice: int, oom_score_adj: int) -> None:
        """Read the spec; publish unless held."""
        del nice, oom_score_adj
        self._end = asyncio.get_running_loop().create_future()
        self.spec = from_json(RoundSpec, (round_dir / "spec.json").read_bytes())
        self.said.append("start")
        if not self._is_held:
            self.finish()

    def finish(self) -> None:
        """Publish and exit 0."""
        assert self.spec is not None
        if not (Path(self.spec.models_dir) / version_name(self.spec.candidate_version)).exists():
            # half the size, and right on this share of the hold-out (the base: on 80 %)
            compared = compare(self.spec, right=self._right, base_right=0.8, size=HALF)
            publish_candidate(self.spec, compared, size=HALF, weights=self._weights)
        self.end(TrainerOutcome.PUBLISHED, 0)

    def end(self, outcome: TrainerOutcome, exit_code: int, message: str = "") -> None:
        """Exit."""
        assert self._end is not None
        if not self._end.done():
            self._end.set_result(TrainerEnd(exit_code=exit_code, outcome=outcome, message=message))

    async def wait(self) -> TrainerEnd:
        """How it ended."""
        assert self._end is not None
        return await self._end

    def silent_s(self) -> float:
        """Since the last heartbeat."""
        return self._clock.now_s() - self.last_heartbeat_s

    def set_duty(self, duty: float) -> None:
        """Noted."""
        self.said.append(f"duty {duty:.2f}")

    def set_energy(self, joules: float) -> None:
        """Noted."""
        self.energy_j = joules

    def pause(self) -> None:
        """Noted."""
        self.said.append("pause")

    def resume(self) -> None:
        """Noted."""
        self.said.append("resume")

    def stop(self) -> None:
        """Checkpoint and leave."""
        self.said.append("stop")
        self.end(TrainerOutcome.CHECKPOINTED, 20)

    def kill(self) -> None:
        """Gone."""
        self.said.append("kill")
        self.end(TrainerOutcome.KILLED, -9, "killed")


def picture(colour: tuple[int, int, int], seed: int) -> bytes:
    """A small PNG, a little different for each seed."""
    pixels = np.random.default_rng(seed).integers(-20, 20, (SIDE, SIDE, 3)) + np.array(colour)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
