"""The parts that a simulation is made of: its loop, its trainer, its moments, its models."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetune.errors import UsageError
from edgetune.simulate import network as model
from edgetune.simulate.candidate import read_manifest
from edgetune.simulate.clock import SimulatedClock, SimulatedLoop
from edgetune.simulate.network import NETWORKS
from edgetune.simulate.scenario import DAY_S, happenings
from edgetune.simulate.supply import Supply
from edgetune.simulate.tiny import publish_factory, tiny_model
from edgetune.simulate.trainer import SimulatedTrainer
from edgetune.types import FrozenSample, Recipe, RoundKind, RoundSpec, Split, TrainerOutcome
from edgetune.wire import to_json


def run(work: Coroutine[Any, Any, Any], clock: SimulatedClock | None = None) -> Any:
    """Live through it on a simulated loop."""
    loop = SimulatedLoop(clock or SimulatedClock(0.0, 0.0, passing=lambda _: None))
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


# ------------------------------------------------------------------------------------------------------- time


def test_hours_pass_in_no_time_and_in_order() -> None:
    """Who sleeps shorter wakes first; the clock shows what was slept; the world hears of every second."""
    passed: list[float] = []
    clock, woken = SimulatedClock(100.0, 1e9, passing=passed.append), []

    async def sleeper(seconds: float) -> None:
        await asyncio.sleep(seconds)
        woken.append((seconds, clock.now_s(), clock.wall_s()))

    async def play() -> None:
        await asyncio.gather(sleeper(7200), sleeper(60))

    run(play(), clock)

    assert [seconds for seconds, _, _ in woken] == [60, 7200]
    assert woken[1][1] == pytest.approx(7300)
    assert woken[1][2] == pytest.approx(1e9 + 7200)
    assert sum(passed) == pytest.approx(7200)


def test_work_for_a_thread_is_done_at_once_and_its_error_reaches_who_waits() -> None:
    """There is one thread, so that nothing depends on which of two is faster."""

    async def play() -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor() as pool:
            assert await loop.run_in_executor(pool, lambda: 6 * 7) == 42
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)

    run(play())


def test_a_loop_in_which_nothing_can_happen_says_so() -> None:
    """Instead of standing still for ever."""

    async def play() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="nothing would ever happen"):
        run(play())


# ---------------------------------------------------------------------------------------------------- moments


def test_a_battery_is_emptied_by_what_the_board_draws_and_filled_in_five_hours() -> None:
    """Between nothing and full, and only while mains are there."""
    supply = Supply(36_000.0)
    supply.is_on_mains = False
    supply.feed(3600, 9_000.0)
    assert (supply.share, supply.is_out) == (0.75, False)
    supply.feed(3600, 90_000.0)
    assert (supply.share, supply.is_out) == (0.0, True)
    supply.is_on_mains = True
    assert not supply.is_out
    supply.feed(2.5 * 3600, 90_000.0)
    assert supply.share == pytest.approx(0.5)
    supply.feed(10 * 3600, 0.0)
    assert supply.share == 1.0
    plain = Supply(None)
    plain.feed(10, 5.0)
    assert (plain.share, plain.is_out) == (None, False)


def test_a_moment_is_of_each_day_or_of_one() -> None:
    """With a length, or the usual one."""
    daily = happenings("brown_out", ["03:00"], days=2.5)
    once = happenings("disk_full", ["2/14:30+4h"], days=7)

    assert [each.at_s for each in daily] == [3 * 3600, DAY_S + 3 * 3600, 2 * DAY_S + 3 * 3600]
    assert daily[0].length_s == 300
    assert (once[0].at_s, once[0].length_s) == (DAY_S + 14.5 * 3600, 4 * 3600)
    assert happenings("clock_jump", ["1/10:00-1h"], days=1)[0].length_s == -3600


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("reboot", "25:00", "expected"),
        ("reboot", "noon", "expected"),
        ("brown_out", "9/03:00", "7 days"),
        ("brown_out", "0/03:00", "7 days"),
        ("disk_full", "03:00+4", "no unit"),
        ("disk_full", "03:00-4h", "only a clock jumps back"),
        ("clock_jump", "03:00", "how far"),
    ],
)
def test_what_is_no_moment_is_refused(kind: str, text: str, says: str) -> None:
    """With the option's name and what was expected."""
    with pytest.raises(UsageError, match=says) as caught:
        happenings(kind, [text], days=7)
    assert f"--{kind.replace('_', '-')} {text}" in caught.value.message


# ---------------------------------------------------------------------------------------------------- trainer


def spec_of(root: Path, kind: RoundKind = RoundKind.ADAPT, **recipe: Any) -> Path:
    """A round directory with a spec over forty images, and the version that it begins with."""
    publish_factory(root, ("cat", "dog"))
    splits = (Split.TRAINING, Split.TRAINING, Split.VALIDATION, Split.HOLDOUT)
    samples = tuple(
        FrozenSample(sample_id=i, digest=f"{i:064x}", label=("cat", "dog")[i % 2], split=splits[i % 4])
        for i in range(40)
    )
    spec = RoundSpec(
        round_id=1, kind=kind, reason="", base_version=1, factory_version=1, candidate_version=2, generation=0,
        classes=("cat", "dog"), samples=samples, samples_digest="", recipe=Recipe(**recipe), models_dir=str(root / "models"),
        buffer_path="", serving_threads=1, created_at="",
    )  # fmt: skip
    directory = root / "rounds" / "0001"
    directory.mkdir(parents=True)
    (directory / "spec.json").write_bytes(to_json(spec))
    return directory


class Bench:
    """A trainer on a clock of its own, at work in steps of a second."""

    def __init__(self, directory: Path) -> None:
        self.clock = SimulatedClock(0.0, 0.0, passing=lambda seconds: self.trainer.work(seconds, 1.0))
        self.directory = directory
        self.trainer = SimulatedTrainer(self.clock, NETWORKS["resnet20"], 0.5, seed=0)

    async def start(self) -> None:
        """Begin, in a new process."""
        self.trainer = SimulatedTrainer(self.clock, NETWORKS["resnet20"], 0.5, seed=0)
        await self.trainer.start(self.directory, nice=0, oom_score_adj=0)

    def likely(self) -> model.Work:
        """What the round takes."""
        assert self.trainer.spec is not None
        likely = model.work(self.trainer.spec, NETWORKS["resnet20"], 0.5)
        return model.taken(self.trainer.spec, likely, seed=0)

    async def seconds(self, limit: float = 10_000) -> float:
        """Until it has ended, or so long; how long that took."""
        begun_s = self.clock.now_s()
        while self.trainer.pid is not None and self.clock.now_s() - begun_s < limit:
            await self.clock.sleep(1.0)
        return self.clock.now_s() - begun_s


def test_a_trainer_takes_the_time_of_its_plan_and_more_at_half_the_duty(tmp_path: Path) -> None:
    """Twice as much; a pause stops it, and its silence does not count."""
    bench = Bench(spec_of(tmp_path))

    async def play() -> None:
        await bench.start()
        assert bench.trainer.spec is not None
        whole_s = bench.likely().whole_s
        bench.trainer.set_duty(0.5)
        await bench.clock.sleep(10)
        bench.trainer.pause()
        await bench.clock.sleep(5000)
        assert bench.trainer.silent_s() == 0
        assert bench.trainer.load == 0
        bench.trainer.resume()
        assert await bench.seconds() == pytest.approx(2 * whole_s - 10, abs=3)
        end = await bench.trainer.wait()
        assert (end.exit_code, end.outcome) == (0, TrainerOutcome.PUBLISHED)
        assert bench.trainer.spec is not None
        assert read_manifest(bench.trainer.spec, 2).comparison is not None

    run(play(), bench.clock)


def test_a_trainer_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    """One that was killed goes on from its last checkpoint."""
    bench = Bench(spec_of(tmp_path, epochs_after=400))

    async def play() -> None:
        await bench.start()
        await bench.clock.sleep(500)
        bench.trainer.stop()
        stopping_s = await bench.seconds()
        assert stopping_s < 10
        assert (await bench.trainer.wait()).outcome is TrainerOutcome.CHECKPOINTED
        assert bench.trainer.spec is not None
        likely = bench.likely()
        await bench.start()
        assert await bench.seconds() == pytest.approx(likely.whole_s - (500 - likely.start_s), abs=5)

    run(play(), bench.clock)


def test_a_killed_trainer_publishes_nothing(tmp_path: Path) -> None:
    """And gives its memory back."""
    bench = Bench(spec_of(tmp_path))

    async def play() -> None:
        await bench.start()
        await bench.clock.sleep(5)
        assert bench.trainer.rss_mib > 0
        bench.trainer.kill()
        assert (await bench.trainer.wait()).outcome is TrainerOutcome.KILLED
        assert bench.trainer.rss_mib == 0
        assert not (tmp_path / "models" / "v000002").exists()

    run(play(), bench.clock)


def test_a_reshape_cuts_the_factory_model(tmp_path: Path) -> None:
    """To the level that the recipe asks for."""
    bench = Bench(spec_of(tmp_path, RoundKind.RESHAPE, level=0.5))

    async def play() -> None:
        await bench.start()
        await bench.seconds()
        assert bench.trainer.spec is not None
        made, factory = (read_manifest(bench.trainer.spec, version) for version in (2, 1))
        assert made.cost.parameters == factory.cost.parameters / 2
        assert made.pruning is not None
        assert made.pruning.level_achieved == 0.5

    run(play(), bench.clock)


# ----------------------------------------------------------------------------------------------------- models


def test_the_model_by_hand_is_what_the_library_would_write() -> None:
    """Valid to onnx's own checker, and mean colour times weights to the runtime."""
    onnx = pytest.importorskip("onnx", reason="onnx, which checks the model, is not installed")
    import onnxruntime

    weights = np.random.default_rng(1).normal(size=(3, 130)).astype(np.float32)
    images = np.random.default_rng(2).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)

    plain = tiny_model(130, 0, weights)

    onnx.checker.check_model(onnx.load_from_string(plain), full_check=True)
    (logits,) = onnxruntime.InferenceSession(plain).run(None, {"images": images})
    np.testing.assert_allclose(logits, images.mean(axis=(1, 2)) @ weights, rtol=1e-4, atol=1e-3)
