"""A trainer that computes nothing and takes its time: it follows duty, pause, stop and kill as the real one does."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgetune.clock import Clock
from edgetune.device.trainer_process import Progress, TrainerEnd
from edgetune.errors import EXIT_OK, EXIT_TRAINER_CHECKPOINTED, EXIT_TRAINER_OUTCOME
from edgetune.simulate import network as model
from edgetune.simulate.candidate import compare, publish_candidate, read_manifest, size_after
from edgetune.simulate.network import Network, Work
from edgetune.store import durable
from edgetune.store.models import version_name
from edgetune.types import Forecast, RoundKind, RoundSpec, StepPoint, TrainerOutcome
from edgetune.wire import from_json, to_plain

_CHECKPOINT = "checkpoint.simulated.json"
_STOP_S = 3.0  # to write a checkpoint and leave
_NO_PROCESS = 2**22 + 1  # a number that the kernel gives to none


class SimulatedTrainer:
    """
    One run of a trainer; a second run is a second object. Time is brought to it by `work`.

    Attributes:
        rss_mib: what it holds now.
        written_so_far: bytes to disk in this run.
        written_bytes: the same, once it has ended.
    """

    def __init__(self, clock: Clock, network: Network, gmac_per_s: float, *, seed: int) -> None:
        """Nothing runs before `start`."""
        self._clock, self._network, self._gmac_per_s, self._seed = clock, network, gmac_per_s, seed
        self._end: asyncio.Future[TrainerEnd] | None = None
        self._round_dir = Path()
        self._work: Work | None = None
        self._journal: dict[str, Any] = {}
        self._is_planned = False
        self._stepping_s = self._slept_s = 0.0  # in this run
        self._duty, self._is_paused = 1.0, False
        self._stop_in_s: float | None = None  # it was asked to stop, and is so far from it
        self._done_s = 0.0  # seconds of work in this run, as an idle board at full clock would count them
        self._before_s = self._kept_s = 0.0  # of training: in runs before this one, and as the checkpoint has it
        self.spec: RoundSpec | None = None
        self.last_progress: Progress | None = None
        self._heard_s = 0.0
        self.rss_mib = 0.0
        self.written_so_far = 0
        self.written_bytes: int | None = None

    @property
    def pid(self) -> int | None:
        """A number while it runs."""
        return _NO_PROCESS if self._is_running else None

    @property
    def _is_running(self) -> bool:
        return self._end is not None and not self._end.done()

    @property
    def load(self) -> float:
        """The share of all cores that it uses just now, 0..1."""
        return 0.0 if self._is_paused or not self._is_running else self._duty

    async def start(self, round_dir: Path, *, nice: int, oom_score_adj: int) -> None:
        """Read the spec, and how far an earlier run came."""
        del nice, oom_score_adj
        self._end = asyncio.get_running_loop().create_future()
        self._round_dir, self._heard_s = round_dir, self._clock.now_s()
        self.spec = from_json(RoundSpec, (round_dir / "spec.json").read_bytes())
        with suppress(OSError, ValueError):
            self._before_s = self._kept_s = float(json.loads((round_dir / _CHECKPOINT).read_bytes())["train_s"])
        self.rss_mib = model.AT_REST_MIB
        with suppress(OSError, ValueError):
            self._journal = json.loads((round_dir / "journal.json").read_bytes())
        made = self._journal.get("forecast")
        self._take(None if made is None else from_json(Forecast, json.dumps(made)))
        self._is_planned = self.spec.kind is RoundKind.IMPRINT or (made is not None and made["fits"])

    def _take(self, plan: Forecast | None) -> None:
        """Work as planned; None: there is no plan yet."""
        assert self.spec is not None
        parts, share = (1, 1.0) if plan is None else (plan.accumulation, plan.training)
        likely = model.work(self.spec, self._network, self._gmac_per_s, accumulation=parts, share=share)
        self._work = model.taken(self.spec, likely, seed=self._seed)

    def _plan(self) -> None:
        """Once the model is loaded, at the pace of then: how the round is run, or that it does not fit."""
        assert self.spec is not None
        plan = model.plan(self.spec, self._network, self._gmac_per_s, duty=self._duty)
        self._is_planned = True
        self._journal = {"starts": 1, "bare_mib": model.AT_REST_MIB, "forecast": to_plain(plan)}
        self._write_journal()
        self._take(plan)
        if not plan.fits:
            self._leave(EXIT_TRAINER_OUTCOME, TrainerOutcome.WILL_NOT_FIT, f"the round does not fit: {plan.reason}")

    def _write_journal(self) -> None:
        with suppress(OSError):
            durable.write_atomic(self._round_dir / "journal.json", json.dumps(self._journal).encode())

    # ------------------------------------------------------------------------------------------------- its work

    def work(self, seconds: float, clock_share: float) -> None:
        """Let so many seconds pass on a board at this share of its full clock."""
        work = self._work
        if work is None or self._is_paused or not self._is_running:
            return
        if self._stop_in_s is not None:
            self._stop_in_s -= seconds
            if self._stop_in_s <= 0:
                self._keep()
                self._leave(EXIT_TRAINER_CHECKPOINTED, TrainerOutcome.CHECKPOINTED, "asked to stop")
            return
        self._heard_s = self._clock.now_s()
        self._done_s += seconds * self._duty * clock_share
        if self._done_s > work.start_s and not self._is_planned:
            self._plan()
            return
        trained_s = self._trained_s
        if 0 < trained_s < work.train_s:
            self._stepping_s += seconds * self._duty
        self._slept_s += seconds * (1 - self._duty)
        if self._done_s > work.start_s:
            self.rss_mib = work.peak_mib
        if trained_s - self._kept_s >= max(60.0, work.train_s / 20):
            self._keep()
        phase = "start" if self._done_s < work.start_s else "training" if trained_s < work.train_s else "measuring"
        share = 1.0 if work.train_s <= 0 else trained_s / work.train_s
        self.last_progress = Progress(phase=phase, step=round(1000 * share), steps=1000, at_s=self._clock.now_s())
        if self._done_s >= work.start_s + (work.train_s - self._before_s) + work.finish_s:
            self._publish()

    @property
    def _trained_s(self) -> float:
        assert self._work is not None
        done_s = self._before_s + max(0.0, self._done_s - self._work.start_s)
        return min(self._work.train_s, done_s)

    def _keep(self) -> None:
        """Write a checkpoint: the weights and their momentum."""
        self._kept_s = self._trained_s
        with suppress(OSError):
            durable.write_atomic(self._round_dir / _CHECKPOINT, json.dumps({"train_s": self._kept_s}).encode())
            self.written_so_far += round(2 * 4 * self._network.parameters_m * 1e6)

    def _publish(self) -> None:
        spec = self.spec
        assert spec is not None
        base = read_manifest(spec, spec.base_version)
        found = None if base.comparison is None else base.comparison.candidate.top1
        base_right = model.RIGHT_AT_FIRST if found is None else found
        right = model.scored(spec, base_right, seed=self._seed)
        try:
            if not (Path(spec.models_dir) / version_name(spec.candidate_version)).exists():
                size = size_after(spec)
                compared = compare(spec, right=right, base_right=base_right, size=size)
                publish_candidate(spec, compared, size=size)
        except OSError as error:
            self._leave(EXIT_TRAINER_OUTCOME, TrainerOutcome.DISK_FULL, f"cannot publish: {error.strerror}")
            return
        self.written_so_far += round(4 * self._network.parameters_m * 1e6)
        if self._journal and self._work is not None:
            self._journal["measured"] = {
                "points": [to_plain(self._step(spec, self._work))], "peak_mib": self._work.peak_mib,
                "other_mib": model.AT_REST_MIB, "stepping_s": self._stepping_s, "slept_s": self._slept_s,
            }  # fmt: skip
            self._write_journal()
        self._leave(EXIT_OK, TrainerOutcome.PUBLISHED, "")

    def _step(self, spec: RoundSpec, work: Work) -> StepPoint:
        """One of its training steps, as a real trainer tells of it."""
        return StepPoint(
            workload=self._network.workload(), batch_size=spec.recipe.batch_size, threads=spec.recipe.threads,
            rest_mib=model.AT_REST_MIB, peak_mib=work.peak_mib, step_s=work.train_s / model.steps(spec),
        )  # fmt: skip

    def _leave(self, exit_code: int, outcome: TrainerOutcome, message: str) -> None:
        if self._end is not None and not self._end.done():
            self.rss_mib, self.written_bytes = 0.0, self.written_so_far
            self._end.set_result(TrainerEnd(exit_code=exit_code, outcome=outcome, message=message))

    # ------------------------------------------------------------------------------------- as the daemon sees it

    async def wait(self) -> TrainerEnd:
        """How it ended."""
        assert self._end is not None
        return await self._end

    def silent_s(self) -> float:
        """Since its last sign of work; 0 while it is paused."""
        return 0.0 if self._is_paused else self._clock.now_s() - self._heard_s

    def set_duty(self, duty: float) -> None:
        """The share of the time in which it computes."""
        self._duty = min(1.0, max(0.01, duty))

    def set_energy(self, joules: float) -> None:
        """It does not ask."""

    def pause(self) -> None:
        """Freeze it."""
        self._is_paused = True

    def resume(self) -> None:
        """Let it go on."""
        self._is_paused = False
        self._heard_s = self._clock.now_s()

    def stop(self) -> None:
        """Let it write a checkpoint and leave."""
        self.resume()
        self._stop_in_s = _STOP_S

    def kill(self) -> None:
        """Gone."""
        self._leave(-9, TrainerOutcome.KILLED, "killed")
