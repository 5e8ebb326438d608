"""Events of the real kernel: they make the scan come sooner, and nothing depends on them."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from test_inbox import image, move, remove

from edgetune.device.inbox import Inbox
from edgetune.device.watching import Watcher, filesystem_of


def make(home: Path, **options: object) -> Inbox:
    """An inbox that waits an hour for everything unless an event says otherwise."""
    settings = {"remove": remove, "move": move, "settle_s": 3600.0, "scan_interval_s": 3600.0, **options}
    return Inbox(home / "inbox", home / "quarantine", **settings)  # type: ignore[arg-type]


def test_a_file_renamed_into_place_is_taken_at_once(tmp_path: Path) -> None:
    """Its writer is done; an hour of settling does not apply to it, inside a new folder and from outside."""

    async def run() -> None:
        inbox = make(tmp_path)
        inbox.start()
        assert inbox.watch == "inotify"
        try:
            inbox.collect()
            (tmp_path / "inbox/cat").mkdir()
            await asyncio.wait_for(inbox.wake.wait(), 30)
            (tmp_path / "inbox/cat/a.png.part").write_bytes(image())
            (tmp_path / "inbox/cat/a.png.part").rename(tmp_path / "inbox/cat/a.png")
            for _ in range(60):
                inbox.wake.clear()
                batch = await asyncio.to_thread(inbox.collect)
                if batch.items:
                    break
                waiting = asyncio.wait_for(inbox.wake.wait(), max(0.05, min(1.0, inbox.due_s() - inbox._clock.now_s())))
                try:
                    await waiting
                except asyncio.TimeoutError:
                    continue
            (item,) = batch.items
            assert item[1].label == "cat"
            inbox.committed(batch.paths)
            assert not list((tmp_path / "inbox/cat").iterdir())
        finally:
            inbox.stop()

    asyncio.run(run())


def test_taking_files_does_not_wake_the_taker(tmp_path: Path) -> None:
    """Reading and removing makes events too; they must not make a scan for ever."""

    async def run() -> None:
        (tmp_path / "inbox/cat").mkdir(parents=True)
        (tmp_path / "inbox/cat/a.png").write_bytes(image())
        inbox = make(tmp_path, settle_s=0.0)
        inbox.start()
        try:
            batch = inbox.collect()
            assert len(batch.items) == 1
            inbox.committed(batch.paths)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(inbox.wake.wait(), 0.5)
        finally:
            inbox.stop()

    asyncio.run(run())


def test_polling_needs_no_events(tmp_path: Path) -> None:
    """Where asked, no watch is made and scans come every two seconds."""
    inbox = make(tmp_path, watch="poll")
    inbox.start()
    inbox.collect()
    assert inbox.watch == "poll"
    assert inbox.due_s() - inbox._clock.now_s() <= 2.0
    inbox.stop()


def test_a_kernel_that_refuses_to_watch_means_polling_and_a_word_about_it(tmp_path: Path) -> None:
    """Here the directory is not there; with too few watches the same error comes."""
    watcher = Watcher(tmp_path / "absent", "auto", lambda: None)
    watcher.start()
    assert not watcher.is_watching
    assert "polling" in watcher.problem


def test_events_of_hidden_and_unfinished_files_are_not_told(tmp_path: Path) -> None:
    """A download that grows for an hour must not make a scan each time."""
    told, after = threading.Event(), threading.Event()
    watcher = Watcher(tmp_path, "inotify", lambda: after.set() if (tmp_path / "end").exists() else told.set())
    watcher.start()
    try:
        (tmp_path / "a.part").write_bytes(b"1")
        (tmp_path / ".b.png").write_bytes(b"1")
        (tmp_path / "end").write_bytes(b"1")
        assert after.wait(30)
        assert not told.is_set()
    finally:
        watcher.stop()


def test_the_file_system_of_a_path_is_known() -> None:
    """Network mounts send no events; /proc is one that is always there."""
    assert filesystem_of(Path("/proc/self")) == "proc"
