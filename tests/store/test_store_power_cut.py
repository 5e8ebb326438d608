"""The second crash layer: every write and rename that was not synced is forgotten, in many combinations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from power_cut import ForgetfulFileSystem
from store_samples import make_buffer, manifest, sample

from edgetune.store import durable, integrity
from edgetune.store.database import connect
from edgetune.store.migrations import migrate
from edgetune.store.models import Models, publish

TRIES = 8


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[Callable[[Path], ForgetfulFileSystem]]:
    """Start recording below a directory; the real file system is back afterwards."""
    real = durable.FileSystem()

    def record(root: Path) -> ForgetfulFileSystem:
        recording = ForgetfulFileSystem(root)
        durable.use_file_system(recording)
        return recording

    yield record
    durable.use_file_system(real)


def cuts(recording: ForgetfulFileSystem, tmp_path: Path, tries: int = TRIES) -> Iterator[tuple[Path, bool]]:
    """The trees after power cuts, with the real file system in use for the recovery."""
    durable.use_file_system(durable.FileSystem())
    yield from recording.after_power_cuts(tmp_path / "cuts", tries=tries)


def three_versions(state: Path) -> Models:
    """Factory model 1, served 2, old 3 below a state directory."""
    models = Models(state / "models", quarantine=state / "quarantine" / "models")
    models.recover()
    for version in (1, 2, 3):
        publish(state / "models", version, {"model.onnx": b"onnx %d" % version * 50}, manifest())
    models.set_factory(1)
    models.promote(2)
    return models


def recovered(state: Path) -> Models:
    """A start after a power cut: everything must be in order again, and a second start finds nothing to do."""
    models = Models(state / "models", quarantine=state / "quarantine" / "models")
    models.recover()
    assert models.check() == []
    assert models.recover() == ()
    return models


def test_a_replaced_file_is_old_or_new(tmp_path: Path, forgetful: Callable[[Path], ForgetfulFileSystem]) -> None:
    """`write_atomic` never leaves a part, and what it returned from is the new content."""
    root = tmp_path / "state"
    root.mkdir()
    (root / "spec.json").write_bytes(b"old" * 100)
    recording = forgetful(root)
    durable.write_atomic(root / "spec.json", b"new" * 100)
    for tree, is_done in cuts(recording, tmp_path):
        content = (tree / "spec.json").read_bytes()
        assert content in ([b"new" * 100] if is_done else [b"old" * 100, b"new" * 100])


def test_a_version_is_there_whole_or_not_at_all(
    tmp_path: Path, forgetful: Callable[[Path], ForgetfulFileSystem]
) -> None:
    """Publication: after any cut the served model is untouched and a published candidate has every byte."""
    state = tmp_path / "state"
    three_versions(state)
    recording = forgetful(state)
    publish(state / "models", 4, {"model.onnx": b"new" * 500, "weights.safetensors": b"w" * 999}, manifest())
    for tree, is_done in cuts(recording, tmp_path):
        models = recovered(tree)
        assert models.current() == 2
        assert models.versions() in ([[1, 2, 3, 4]] if is_done else [[1, 2, 3], [1, 2, 3, 4]])


def test_promotion_serves_the_old_or_the_new(tmp_path: Path, forgetful: Callable[[Path], ForgetfulFileSystem]) -> None:
    """The link is never missing and never dangling; once `promote` returned it is the new one."""
    state = tmp_path / "state"
    models = three_versions(state)
    recording = forgetful(state)
    models.promote(3)
    for tree, is_done in cuts(recording, tmp_path):
        assert recovered(tree).current() in ([3] if is_done else [2, 3])


def test_quarantine_keeps_the_version_and_its_reason(
    tmp_path: Path, forgetful: Callable[[Path], ForgetfulFileSystem]
) -> None:
    """A version is in one place or the other, and never in quarantine without the reason."""
    state = tmp_path / "state"
    models = three_versions(state)
    recording = forgetful(state)
    models.quarantine(3, "self-test failed")
    for tree, is_done in cuts(recording, tmp_path):
        after = recovered(tree)
        if is_done or 3 not in after.versions():
            assert after.quarantined() == {3: "self-test failed"}
            assert (tree / "quarantine/models/v000003/model.onnx").read_bytes() == b"onnx 3" * 50
        assert after.next_version() == 4
        assert after.current() == 2


def test_sweep_leaves_whole_versions(tmp_path: Path, forgetful: Callable[[Path], ForgetfulFileSystem]) -> None:
    """Versions go one by one, whole; numbers of swept ones are not used again."""
    state = tmp_path / "state"
    models = three_versions(state)
    publish(state / "models", 4, {"model.onnx": b"4"}, manifest())
    models.promote(4)
    publish(state / "models", 5, {"model.onnx": b"5"}, manifest())
    models.quarantine(5, "refused")
    recording = forgetful(state)
    assert models.sweep(keep=1, protect=[]) == [2, 3]
    for tree, is_done in cuts(recording, tmp_path):
        after = recovered(tree)
        assert {1, 4} <= set(after.versions()) <= {1, 2, 3, 4}
        assert not is_done or after.versions() == [1, 4]
        assert (after.current(), after.factory(), after.next_version()) == (4, 1, 6)


def test_setting_a_damaged_database_aside_survives_power_cuts(
    tmp_path: Path, forgetful: Callable[[Path], ForgetfulFileSystem]
) -> None:
    """Wherever the power goes while a rebuilt database takes its place, the next start ends with the rebuilt one."""
    state = tmp_path / "state"
    state.mkdir()
    rebuilt = make_buffer(state / "edgetune.db.rebuilt")
    rebuilt.open()
    rebuilt.add([sample(n, "cat") for n in range(5)])
    rebuilt.close()
    (state / "edgetune.db").write_bytes(b"damaged")
    (state / "edgetune.db-wal").write_bytes(b"damaged log")
    recording = forgetful(state)
    integrity.finish_rebuild(state / "edgetune.db")
    for tree, _ in cuts(recording, tmp_path, tries=12):
        buffer = make_buffer(tree / "edgetune.db")
        buffer.open()
        assert buffer.check(full=True) == []
        assert buffer.stats().samples == 5
        buffer.close()
        (aside,) = tree.glob("edgetune.db.corrupt-*[0-9]")
        assert aside.read_bytes() == b"damaged"


def test_the_disk_that_forgets_finds_a_missing_sync(
    tmp_path: Path, forgetful: Callable[[Path], ForgetfulFileSystem]
) -> None:
    """The proof that this layer can fail: publishing without any fsync is found out."""

    class Careless(ForgetfulFileSystem):
        """Forgets to sync files."""

        def fsync(self, path: Path) -> None:
            """Do nothing."""

    state = tmp_path / "state"
    three_versions(state)
    recording = Careless(state)
    durable.use_file_system(recording)
    publish(state / "models", 4, {"model.onnx": b"new" * 500}, manifest())
    found = []
    for tree, _ in cuts(recording, tmp_path):
        models = Models(tree / "models", quarantine=tree / "quarantine" / "models")
        models.recover()
        found += models.check()
    assert any("damaged" in problem for problem in found)


def test_an_empty_database_survives(tmp_path: Path) -> None:
    """A database made and closed is complete: the schema is in the file, not in a log that could be lost."""
    db = connect(tmp_path / "edgetune.db")
    migrate(db)
    db.close()
    assert not (tmp_path / "edgetune.db-wal").exists()
    again = connect(tmp_path / "edgetune.db")
    assert integrity.problems(again, full=True) == []
    again.close()
