"""A damaged database is set aside, named, and rebuilt from what can be read; the service still starts."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from store_samples import StillClock, make_buffer, sample

from edgetune.store.history import History

PAGE_BYTES = 4096


def filled(path: Path, count: int = 300, size: int = 1500) -> None:
    """A closed database with samples, history and state."""
    buffer = make_buffer(path)
    buffer.open()
    buffer.add([sample(n, "cat" if n % 3 else "dog", size=size) for n in range(count)])
    history = History(buffer, clock=StillClock())
    history.start_round("adapt", "test", state="idle")
    history.set_state("generation", 4)
    history.add_event("swap", "swapped")
    buffer.close()


def damage_pages(path: Path, pages: range) -> None:
    """Overwrite whole pages."""
    data = bytearray(path.read_bytes())
    for page in pages:
        data[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = b"\xa5" * PAGE_BYTES
    path.write_bytes(data)


@pytest.mark.parametrize("place", [0.3, 0.5, 0.7, 0.9])
def test_most_samples_survive_damaged_pages(tmp_path: Path, place: float) -> None:
    """Some pages in the middle are lost: the rest is there, byte for byte, and the damaged file is kept aside."""
    path = tmp_path / "edgetune.db"
    filled(path)
    pages = path.stat().st_size // PAGE_BYTES
    damage_pages(path, range(int(pages * place), int(pages * place) + 3))
    damaged = path.read_bytes()
    buffer = make_buffer(path)
    said = " ".join(buffer.open())
    (aside,) = tmp_path.glob("edgetune.db.corrupt-*[0-9]")
    assert aside.read_bytes() == damaged
    assert str(aside) in said
    assert buffer.check(full=True) == []
    assert buffer.stats().samples >= 200
    originals = {sample(n, size=1500).digest: sample(n, size=1500) for n in range(300)}
    for row in buffer.samples(limit=1000):
        image = buffer.database.execute("SELECT image FROM images WHERE sample_id = ?", (row["id"],)).fetchone()[0]
        assert image == originals[row["digest"]].image
    buffer.add([sample(1000, "cat")])
    buffer.close()
    assert buffer.open() == ()
    buffer.close()


@pytest.mark.parametrize("content", [b"", b"not a database at all", b"\0" * 10_000])
def test_a_file_that_is_no_database_does_not_stop_the_service(tmp_path: Path, content: bytes) -> None:
    """Nothing can be read, which is said; an empty file is simply a new database."""
    path = tmp_path / "edgetune.db"
    path.write_bytes(content)
    buffer = make_buffer(path)
    said = buffer.open()
    assert bool(said) == bool(content)
    assert buffer.add([sample(1, "cat")]) != []
    assert buffer.check(full=True) == []
    buffer.close()


def test_a_cut_file_gives_what_is_left(tmp_path: Path) -> None:
    """The file system lost the second half of the file."""
    path = tmp_path / "edgetune.db"
    filled(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 // PAGE_BYTES * PAGE_BYTES])
    buffer = make_buffer(path)
    assert buffer.open()
    assert buffer.check(full=True) == []
    buffer.close()


def test_committed_samples_in_the_log_are_read_too(tmp_path: Path) -> None:
    """A damaged main file beside a sound log: what only the log holds is salvaged."""
    path = tmp_path / "edgetune.db"
    filled(path)
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA wal_autocheckpoint = 0")
    writer.execute("INSERT INTO state VALUES ('only in the log', '1')")
    pages = path.stat().st_size // PAGE_BYTES
    damage_pages(path, range(pages // 2, pages // 2 + 2))
    kept = {name: Path(f"{path}{name}").read_bytes() for name in ("", "-wal")}
    writer.close()
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    for name, data in kept.items():
        Path(f"{path}{name}").write_bytes(data)
    buffer = make_buffer(path)
    assert buffer.open()
    history = History(buffer, clock=StillClock())
    assert history.get_state("only in the log") == 1
    assert history.get_state("generation") == 4
    assert buffer.stats().samples > 200
    buffer.close()
    assert len(list(tmp_path.glob("edgetune.db.corrupt-*-wal"))) == 1


def test_ids_of_lost_samples_are_not_given_again(tmp_path: Path) -> None:
    """The last ids may have been lost with their rows; a new sample gets a higher one all the same."""
    path = tmp_path / "edgetune.db"
    filled(path)
    db = sqlite3.connect(path)
    db.execute("DELETE FROM images WHERE sample_id = 300")
    db.commit()
    db.close()
    pages = path.stat().st_size // PAGE_BYTES
    damage_pages(path, range(pages // 2, pages // 2 + 1))
    buffer = make_buffer(path)
    buffer.open()
    buffer.add([sample(1000)])
    assert max(row["id"] for row in buffer.samples()) == 301
    buffer.close()
