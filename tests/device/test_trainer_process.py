"""The daemon's side of the trainer, against real processes that behave and misbehave."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from edgetune.device.trainer_process import TrainerEnd, TrainerProcess
from edgetune.errors import RoundError
from edgetune.types import TrainerOutcome

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in_trainer.py")))


class Hands:
    """A clock whose hands the test moves."""

    def __init__(self) -> None:
        self.at_s = 100.0

    def now_s(self) -> float:
        return self.at_s

    def wall_s(self) -> float:
        return self.at_s

    async def sleep(self, duration_s: float) -> None:
        self.at_s += duration_s


def play(
    directory: Path, name: str, act: Callable[[TrainerProcess], Awaitable[None]] | None = None, **options: object
) -> tuple[TrainerProcess, TrainerEnd]:
    """Run a stand-in to its end."""
    (directory / "play").write_text(name)

    async def run() -> tuple[TrainerProcess, TrainerEnd]:
        trainer = TrainerProcess(clock=Hands(), command=STAND_IN)
        await trainer.start(directory, **options)  # type: ignore[arg-type]
        if act is not None:
            await act(trainer)
        return trainer, await asyncio.wait_for(trainer.wait(), 60)

    return asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for another process to get somewhere."""
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


def status(pid: int) -> str:
    """What the kernel says a process is doing."""
    try:
        return psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return "gone"


def test_a_published_candidate_and_its_progress(tmp_path: Path) -> None:
    """What the trainer said last, and what it recorded."""
    trainer, end = play(tmp_path, "publish")
    assert (end.exit_code, end.outcome, end.message, end.hint) == (0, TrainerOutcome.PUBLISHED, "v2", "try less")
    said = trainer.last_progress
    assert said is not None
    assert (said.phase, said.step, said.steps, said.epoch, said.loss) == ("tune", 3, 10, 0.5, 1.25)
    assert said.at_s == trainer.last_heartbeat_s == 100.0
    assert trainer.pid is None
    assert trainer.rss_mib() is None


def test_an_outcome_that_was_only_said_counts(tmp_path: Path) -> None:
    """The disk may have been full when it was to be written."""
    assert play(tmp_path, "say_only")[1].outcome is TrainerOutcome.PUBLISHED


@pytest.mark.parametrize("name", ["nothing", "contradict"])
def test_an_exit_code_that_contradicts_the_record_is_a_failure(tmp_path: Path, name: str) -> None:
    """Success is believed only when both say so."""
    assert play(tmp_path, name)[1].outcome is TrainerOutcome.FAILED


def test_a_record_of_an_earlier_run_is_not_believed(tmp_path: Path) -> None:
    """A resumed round must say anew how it ended."""
    (tmp_path / "outcome.json").write_text('{"outcome": "published", "message": "v1"}')
    assert play(tmp_path, "nothing")[1].outcome is TrainerOutcome.FAILED


def test_a_named_outcome_is_kept_with_its_words(tmp_path: Path) -> None:
    """The reason reaches the operator as the trainer wrote it."""
    end = play(tmp_path, "nan")[1]
    assert (end.outcome, end.message) == (TrainerOutcome.NAN_LOSS, "loss became NaN in step 7")


def test_a_crash_points_to_the_log_which_holds_the_traceback(tmp_path: Path) -> None:
    """Nothing of stderr is lost."""
    end = play(tmp_path, "crash")[1]
    assert (end.exit_code, end.outcome) == (1, TrainerOutcome.FAILED)
    assert "trainer.log" in end.hint
    assert "the reason" in (tmp_path / "trainer.log").read_text()


def test_a_trainer_that_is_asked_to_leave_while_it_leaves_has_ended_as_it_recorded(tmp_path: Path) -> None:
    """Python gives its signal handlers back before it is gone."""
    end = play(tmp_path, "late")[1]
    assert (end.exit_code, end.outcome, end.message) == (-15, TrainerOutcome.WILL_NOT_FIT, "too large")


def test_a_killed_trainer_says_by_whom(tmp_path: Path) -> None:
    """A SIGKILL that the daemon did not send is most likely the kernel's, for want of memory."""
    end = play(tmp_path, "die")[1]
    assert (end.exit_code, end.outcome) == (-9, TrainerOutcome.KILLED)
    assert "memory" in end.message


def test_a_flood_of_output_neither_blocks_nor_fills_the_disk(tmp_path: Path) -> None:
    """Endless lines, lines that are no JSON, wrong types: the protocol is still read and the log stays bounded."""
    trainer, end = play(tmp_path, "flood")
    assert end.outcome is TrainerOutcome.PUBLISHED
    assert trainer.last_progress is not None
    assert (trainer.last_progress.phase, trainer.last_progress.step) == ("export", 9)
    assert (tmp_path / "trainer.log").stat().st_size <= 4 * 2**20


def test_priority_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Niced, first to be killed when memory ends, without a line to systemd; its threads sleep while they wait."""
    options = {"nice": 7, "oom_score_adj": 500, "extra_env": {"EXTRA": "1"}}
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    nice, oom, notify, extra, waiting = json.loads(play(tmp_path, "environment", **options)[1].message)
    assert nice == min(19, os.nice(0) + 7)
    assert int(oom) == 500
    assert notify is None
    assert (extra, waiting) == ("1", "passive")


def test_an_operators_waiting_policy_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set for the service, it is the trainer's too."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert json.loads(play(tmp_path, "environment")[1].message)[-1] == "active"


def test_orders_arrive_as_json_lines(tmp_path: Path) -> None:
    """The pace is kept within what a trainer can follow."""

    async def order(trainer: TrainerProcess) -> None:
        trainer.set_duty(0.25)

    assert json.loads(play(tmp_path, "orders", order)[1].message) == {"duty": 0.25}


def test_it_hears_what_the_board_has_used(tmp_path: Path) -> None:
    """In joules."""

    async def order(trainer: TrainerProcess) -> None:
        trainer.set_energy(1234.56)

    assert json.loads(play(tmp_path, "orders", order)[1].message) == {"energy_j": 1234.6}


def test_orders_to_a_trainer_that_is_gone_are_dropped(tmp_path: Path) -> None:
    """It may end at any moment; no order raises then."""
    trainer, _ = play(tmp_path, "publish")
    trainer.set_duty(0.5)
    trainer.pause()
    trainer.resume()
    trainer.stop()
    trainer.kill()
    assert not trainer.is_paused


def test_a_paused_trainer_is_frozen_and_stops_on_request(tmp_path: Path) -> None:
    """SIGSTOP freezes it, paused time is not silence, and stop wakes it first so that it can checkpoint."""

    async def act(trainer: TrainerProcess) -> None:
        await until(lambda: trainer.last_progress is not None and trainer.last_progress.step == 1)
        clock: Hands = trainer._clock  # type: ignore[assignment]
        trainer.pause()
        assert trainer.pid is not None
        pid = trainer.pid
        await until(lambda: status(pid) == psutil.STATUS_STOPPED)
        clock.at_s += 1000
        assert trainer.silent_s() == 0
        trainer.resume()
        assert trainer.silent_s() == 0
        await until(lambda: status(pid) != psutil.STATUS_STOPPED)
        clock.at_s += 50
        assert trainer.silent_s() == 50
        assert (trainer.rss_mib() or 0) > 1
        trainer.pause()
        trainer.stop()

    _, end = play(tmp_path, "checkpoint", act)
    assert end.outcome is TrainerOutcome.CHECKPOINTED
    assert end.message == "step 12"


def test_a_trainer_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    """The last resort leaves nothing behind."""
    children: list[int] = []

    async def act(trainer: TrainerProcess) -> None:
        await until(lambda: (tmp_path / "grandchild").exists() and (tmp_path / "grandchild").read_text() != "")
        children.append(int((tmp_path / "grandchild").read_text()))
        trainer.stop()
        trainer.pause()
        assert trainer.pid is not None
        trainer.kill()

    end = play(tmp_path, "stubborn", act)[1]
    assert end.outcome is TrainerOutcome.KILLED
    assert "by the daemon" in end.message
    asyncio.run(until(lambda: status(children[0]) in ("gone", psutil.STATUS_ZOMBIE)))


def test_a_trainer_that_cannot_be_started_says_why(tmp_path: Path) -> None:
    """No interpreter, or no round directory."""

    async def start(command: tuple[str, ...], directory: Path) -> None:
        await TrainerProcess(clock=Hands(), command=command).start(directory)

    for command, directory in ((("/no/such/python",), tmp_path), (STAND_IN, tmp_path / "absent")):
        with pytest.raises(RoundError, match="cannot start the trainer"):
            asyncio.run(start(command, directory))


def test_waiting_twice_gives_the_same_end(tmp_path: Path) -> None:
    """The shutdown and the round both wait for it."""

    async def run() -> None:
        (tmp_path / "play").write_text("publish")
        trainer = TrainerProcess(clock=Hands(), command=STAND_IN)
        await trainer.start(tmp_path)
        first, second = await asyncio.gather(trainer.wait(), trainer.wait())
        assert first == second == await trainer.wait()

    asyncio.run(run())
