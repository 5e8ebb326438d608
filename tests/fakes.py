"""Stand-ins with the real interfaces: a clock, a board, a trainer. They replace the outside world, not our code."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgetune.device.trainer_process import Progress, TrainerEnd
from edgetune.store.models import publish, version_name
from edgetune.types import (
    ClassScore,
    Comparison,
    Cost,
    Latency,
    Manifest,
    Mark,
    Measurement,
    Metrics,
    Preprocess,
    Pruning,
    Quantity,
    Reading,
    RoundKind,
    RoundSpec,
    Split,
    TrainerOutcome,
)
from edgetune.wire import from_json

SIDE = 8
Weights = npt.NDArray[np.float32]  # [3, classes] of a tiny model


class FakeClock:
    """Time that passes only when told to; sleeping is over at once."""

    def __init__(self, now_s: float = 1000.0, wall_s: float = 1.7e9) -> None:
        self._now_s, self._wall_s = now_s, wall_s

    def now_s(self) -> float:
        """Monotonic."""
        return self._now_s

    def wall_s(self) -> float:
        """Wall."""
        return self._wall_s

    async def sleep(self, duration_s: float) -> None:
        """Be there at once, in the future."""
        self.advance(duration_s)
        await asyncio.sleep(0)

    def advance(self, by_s: float) -> None:
        """Let time pass on both clocks."""
        self._now_s += by_s
        self._wall_s += by_s

    def set_wall(self, wall_s: float) -> None:
        """What an NTP client, or a board without a clock battery, does."""
        self._wall_s = wall_s


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


def tiny_model(classes: int, seed: int, weights: Weights | None = None) -> bytes:
    """ONNX: uint8 [N, 8, 8, 3] -> mean colour -> linear -> logits [N, classes]; ready in a millisecond."""
    from onnx import TensorProto, helper, numpy_helper

    if weights is None:
        weights = np.random.default_rng(seed).normal(size=(3, classes)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIDE, SIDE, 3])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, [numpy_helper.from_array(weights, "weights")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())


def tiny_files(classes: int, seed: int, weights: Weights | None = None) -> dict[str, bytes]:
    """The files of a version, with a self-test recorded from the model."""
    import onnxruntime

    model = tiny_model(classes, seed, weights)
    images = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
    (logits,) = onnxruntime.InferenceSession(model).run(None, {"images": images})
    record = io.BytesIO()
    np.savez(record, images=images, logits=logits)
    return {"model.onnx": model, "selftest.npz": record.getvalue()}


def manifest(classes: tuple[str, ...], **changes: object) -> Manifest:
    """Of a tiny model."""
    fields: dict[str, object] = {
        "version": 0, "kind": "factory", "architecture": "tiny", "classes": classes,
        "preprocess": Preprocess(height=SIDE, width=SIDE), "parent": None, "generation": 0, "round_id": None,
        "created_at": "2026-01-01T00:00:00+00:00", "files": {}, "cost": Cost(parameters=100, macs=100, onnx_bytes=100),
        "latency": Latency(median_ms=2.0, p90_ms=2.1, runs=10, threads=1),
    }  # fmt: skip
    return Manifest(**{**fields, **changes})  # type: ignore[arg-type]


def publish_factory(state_dir: Path, classes: tuple[str, ...] = ("cat", "dog"), weights: Weights | None = None) -> None:
    """A first model, served and named the factory model."""
    from edgetune.store.models import Models

    models = Models(state_dir / "models", quarantine=state_dir / "quarantine" / "models")
    models.recover()
    publish(state_dir / "models", 1, tiny_files(len(classes), 1, weights), manifest(classes))
    models.set_factory(1)
    models.promote(1)


def publish_candidate(
    spec: RoundSpec,
    *,
    right: float = 0.9,
    weights: Weights | None = None,
    changes: Callable[[Comparison], Comparison] = lambda comparison: comparison,
) -> None:
    """What a good trainer leaves: half the size, and right on this share of the hold-out (the base: on 80 %)."""
    before = from_json(
        Manifest, (Path(spec.models_dir) / version_name(spec.base_version) / "manifest.json").read_bytes()
    )
    counts: dict[str, int] = {}
    for sample in spec.samples:
        if sample.split is Split.HOLDOUT:
            counts[sample.label] = counts.get(sample.label, 0) + 1

    def metrics(share: float) -> Metrics:
        scores = {label: ClassScore(count=n, correct=round(n * share)) for label, n in counts.items()}
        total = sum(counts.values())
        return Metrics(count=total, correct=sum(s.correct for s in scores.values()), loss=0.5, per_class=scores)

    base, candidate = metrics(0.8), metrics(right)
    comparison = Comparison(
        base=base,
        candidate=candidate,
        only_base_correct=max(0, base.correct - candidate.correct),
        only_candidate_correct=max(0, candidate.correct - base.correct),
        base_latency=Latency(median_ms=2.0, p90_ms=2.1, runs=10, threads=1),
        candidate_latency=Latency(median_ms=1.0, p90_ms=1.1, runs=10, threads=1),
        base_cost=Cost(parameters=100, macs=100, onnx_bytes=100),
        candidate_cost=Cost(parameters=50, macs=50, onnx_bytes=50),
        new_classes=tuple(c for c in spec.classes if c not in before.classes),
    )
    shown = {sample.label for sample in spec.samples if sample.split is Split.TRAINING}
    if spec.kind is RoundKind.IMPRINT:
        marks = {**before.marks, **dict.fromkeys(comparison.new_classes, Mark.PROVISIONAL.value)}
    else:
        marks = {label: mark for label, mark in before.marks.items() if label not in shown}
    made = manifest(
        spec.classes, kind=spec.kind.value, parent=spec.base_version, generation=spec.generation, round_id=spec.round_id,
        comparison=changes(comparison), samples_digest=spec.samples_digest, sample_count=len(spec.samples),
        pruning=Pruning(criterion="taylor", level_asked=0.5, level_achieved=0.5, round_to=8), marks=marks,
    )  # fmt: skip
    files = tiny_files(len(spec.classes), spec.candidate_version, weights)
    publish(Path(spec.models_dir), spec.candidate_version, files, made)


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
        if not (Path(self.spec.models_dir) / f"v{self.spec.candidate_version:06d}").exists():
            publish_candidate(self.spec, right=self._right, weights=self._weights)
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
