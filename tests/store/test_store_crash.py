"""The first crash layer: the process is killed at faultpoint 0, 1, 2, ... and the next start must put things right."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from store_samples import make_buffer, manifest, sample

from edgetune.store import durable
from edgetune.store.history import History
from edgetune.store.models import Models, publish

FAULTPOINTS_MAX = 300


def run_killed_at(work: Callable[[], None], fault: int) -> bool:
    """Do the work in a process that dies at a faultpoint. Returns whether it got to the end instead."""
    child = os.fork()
    if child == 0:
        os.environ["EDGETUNE_FAULT"] = str(fault)
        try:
            work()
        except BaseException:  # noqa: BLE001 - whatever it is, the child must not run the tests on
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.waitstatus_to_exitcode(status) == 0, f"the work failed at fault {fault}"
    return True


def crash_everywhere(
    prepare: Callable[[Path], None], work: Callable[[Path], None], check: Callable[[Path], None], tmp_path: Path
) -> int:
    """Kill fresh copies of the work at each faultpoint, check each time; returns how many faultpoints there were."""
    for fault in range(FAULTPOINTS_MAX):
        state = tmp_path / f"fault-{fault}"
        state.mkdir()
        prepare(state)
        is_complete = run_killed_at(lambda state=state: work(state), fault)  # type: ignore[misc]
        check(state)
        work(state)  # the next start goes on and finishes
        check(state)
        if is_complete:
            return fault
    raise AssertionError("the work never ended")


def models_of(state: Path) -> Models:
    """The versions below a state directory."""
    return Models(state / "models", quarantine=state / "quarantine/models")


# ------------------------------------------------------------------------------------------------------ ingest


def fill_inbox(state: Path) -> None:
    """Six files wait."""
    inbox = state / "inbox"
    inbox.mkdir()
    for n in range(6):
        (inbox / f"{n}.png").write_bytes(sample(n).image)


def ingest(state: Path) -> None:
    """What the daemon does with files: add a batch, then remove the sources."""
    buffer = make_buffer(state / "edgetune.db", quota_bytes=500)
    buffer.open()
    for batch in ((0, 1, 2), (3, 4, 5)):
        paths = [state / "inbox" / f"{n}.png" for n in batch]
        present = [(n, path) for n, path in zip(batch, paths, strict=True) if path.exists()]
        buffer.add([sample(n, "cat" if n % 2 else None) for n, _ in present])
        durable.remove_files([path for _, path in present])
    buffer.close()


def check_ingest(state: Path) -> None:
    """Every file is somewhere."""
    buffer = make_buffer(state / "edgetune.db", quota_bytes=500)
    assert buffer.open() == ()
    assert buffer.check(full=True) == []
    stored = {row["digest"] for row in buffer.samples()}
    waiting = {n for n in range(6) if (state / "inbox" / f"{n}.png").exists()}
    missing = {n for n in range(6) if sample(n).digest not in stored and n not in waiting}
    assert len(missing) == buffer.stats().evicted  # gone only where the quota said so
    assert missing <= {0}  # the oldest unlabelled one
    buffer.close()


def test_no_file_is_lost_between_inbox_and_buffer(tmp_path: Path) -> None:
    """At every faultpoint of ingest each file is in the inbox, in the buffer, or evicted by policy and counted."""
    assert crash_everywhere(fill_inbox, ingest, check_ingest, tmp_path) >= 10


# ----------------------------------------------------------------------------------------------- round, models


def first_model(state: Path) -> None:
    """A served factory model, ten samples, and a round that has begun."""
    models = models_of(state)
    models.recover()
    publish(state / "models", 1, {"model.onnx": b"factory" * 20}, manifest())
    models.set_factory(1)
    models.promote(1)
    buffer = make_buffer(state / "edgetune.db")
    buffer.open()
    buffer.add([sample(n, "cat") for n in range(10)])
    History(buffer, clock=buffer._clock).start_round("adapt", "by hand", state="training", round_id=1)
    buffer.close()


def play_round(state: Path) -> None:
    """A round's storage steps: freeze, spec, publish twice, promote one, quarantine the other, record, sweep."""
    models = models_of(state)
    models.recover()
    buffer = make_buffer(state / "edgetune.db")
    buffer.open()
    history = History(buffer, clock=buffer._clock)
    buffer.freeze(1)
    durable.write_atomic(state / "spec.json", b"{}")
    for version in (2, 3, 4):
        if version not in models.versions() and version >= models.next_version():
            publish(state / "models", version, {"model.onnx": b"%d" % version * 50}, manifest("adapt"))
    if 4 in models.versions():
        models.promote(4)
        if 3 in models.versions():
            models.quarantine(3, "refused")
    history.update_round(1, state="idle", outcome="published", is_ended=True)
    history.set_state("round", {"state": "idle"})
    buffer.release(1, consumed=True)
    models.sweep(keep=1, protect=[])
    buffer.close()


def check_round(state: Path) -> None:
    """A whole model is served and nothing is lost."""
    models = models_of(state)
    models.recover()
    assert models.check() == []
    assert models.recover() == ()
    assert models.factory() == 1
    assert models.current() in (1, 4)
    models.verify(models.current() or 0)
    assert models.next_version() in (2, 3, 4, 5)
    assert set(models.quarantined()) <= {3}
    buffer = make_buffer(state / "edgetune.db")
    buffer.open()
    assert buffer.check(full=True) == []
    assert buffer.stats().samples == 10
    assert buffer.frozen_rounds() in ((), (1,))
    if buffer.stats().new_labelled == 0:
        assert buffer.frozen_rounds() == ()
    if History(buffer, clock=buffer._clock).get_state("round") is not None:
        assert History(buffer, clock=buffer._clock).round(1)["outcome"] == "published"
        assert models.current() == 4
    buffer.close()


def test_a_whole_model_is_served_wherever_a_round_is_cut(tmp_path: Path) -> None:
    """At every faultpoint of freeze, spec, publication, promotion, quarantine, record and sweep nothing is lost."""
    assert crash_everywhere(first_model, play_round, check_round, tmp_path) >= 30


# -------------------------------------------------------------------------------------------- purge and rebuild


def soil(state: Path) -> None:
    """Ten samples of two classes."""
    buffer = make_buffer(state / "edgetune.db")
    buffer.open()
    buffer.add([sample(n, "cat" if n < 5 else "dog", size=5000) for n in range(10)])
    buffer.close()


def test_a_purge_that_was_cut_can_be_asked_again(tmp_path: Path) -> None:
    """Cut anywhere, a purge has removed all or none of the rows; asked again, nothing is left in the file."""

    def purge(state: Path) -> None:
        buffer = make_buffer(state / "edgetune.db")
        buffer.open()
        buffer.purge(label="dog")
        buffer.close()

    def check(state: Path) -> None:
        buffer = make_buffer(state / "edgetune.db")
        buffer.open()
        assert buffer.check(full=True) == []
        assert buffer.stats().samples in (5, 10)
        buffer.close()

    assert crash_everywhere(soil, purge, check, tmp_path) >= 3
    assert b"image 7 image 7" not in (tmp_path / "fault-0" / "edgetune.db").read_bytes()


def test_a_rebuild_that_was_cut_goes_on(tmp_path: Path) -> None:
    """Killed anywhere while a damaged database is rebuilt, the next start ends with the same readable samples."""

    def damage(state: Path) -> None:
        soil(state)
        data = bytearray((state / "edgetune.db").read_bytes())
        place = data.index(b"image 7 image 7")
        data[place : place + 20] = bytes(20)  # one image, seen by its checksum
        page = 4096 * (len(data) // 4096 // 2)
        data[page : page + 64] = b"\xff" * 64
        (state / "edgetune.db").write_bytes(data)

    def start(state: Path) -> None:
        buffer = make_buffer(state / "edgetune.db")
        buffer.open()
        buffer.close()

    counts = set()

    def check(state: Path) -> None:
        buffer = make_buffer(state / "edgetune.db")
        buffer.open()
        assert buffer.check() == []
        counts.add(buffer.stats().samples)
        buffer.close()
        assert len(list(state.glob("edgetune.db.corrupt-*[0-9]"))) <= 1
        assert not list(state.glob("*.rebuil*"))

    assert crash_everywhere(damage, start, check, tmp_path) >= 5
    assert len(counts) == 1


# --------------------------------------------------------------------------------------------------- faultpoint


@pytest.mark.parametrize(("fault", "killed_after"), [("0", 1), ("2", 3), ("b:1", 5), ("c:0", None), ("9", None)])
def test_faultpoints_count_all_or_by_name(tmp_path: Path, fault: str, killed_after: int | None) -> None:
    """EDGETUNE_FAULT=n kills at the n-th, name:n at the n-th of that name; the trace lists all that were reached."""
    trace = tmp_path / "trace"
    code = "from edgetune.store.durable import faultpoint\nfor name in 'abaab':\n    faultpoint(name)"
    environment = {**os.environ, "EDGETUNE_FAULT": fault, "EDGETUNE_FAULT_TRACE": str(trace)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == (0 if killed_after is None else -signal.SIGKILL)
    assert trace.read_text().split() == list("abaab"[:killed_after])
