"""Published versions: verified byte for byte, promoted by a link, never renumbered."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_samples import manifest

from edgetune.errors import ArtefactError, ConflictError, NotFoundError, UsageError
from edgetune.store.models import Models, publish


@pytest.fixture
def models(tmp_path: Path) -> Models:
    """An empty state directory's versions."""
    made = Models(tmp_path / "models", quarantine=tmp_path / "quarantine" / "models")
    assert made.recover() == ()
    return made


def publish_one(models: Models, kind: str = "adapt") -> int:
    """Publish the next version; returns its number."""
    version = models.next_version()
    publish(models._root, version, {"model.onnx": b"onnx" * 100, "network.json": b"{}"}, manifest(kind))
    return version


def test_a_published_version_says_what_it_is(models: Models) -> None:
    """The manifest comes back with its version and the hashes of its files, and it verifies."""
    version = publish_one(models)
    read = models.manifest(version)
    assert (read.version, read.kind, set(read.files)) == (1, "adapt", {"model.onnx", "network.json"})
    models.verify(version)
    assert models.check() == []
    assert models.versions() == [1]


def test_a_prepared_directory_can_be_published(models: Models, tmp_path: Path) -> None:
    """Large files are written once, into the `.tmp` directory, which is taken away."""
    prepared = tmp_path / "models" / "v000009.tmp"
    prepared.mkdir()
    (prepared / "model.onnx").write_bytes(b"x")
    publish(tmp_path / "models", 9, prepared, manifest())
    models.verify(9)
    assert not prepared.exists()


def test_a_published_version_is_never_replaced(models: Models, tmp_path: Path) -> None:
    """Publishing under a taken number, or files with strange names, is refused."""
    publish_one(models)
    with pytest.raises(ConflictError):
        publish(tmp_path / "models", 1, {}, manifest())
    with pytest.raises(UsageError):
        publish(tmp_path / "models", 2, {"../evil": b""}, manifest())
    with pytest.raises(UsageError):
        publish(tmp_path / "models", 2, {"manifest.json": b"{}"}, manifest())
    assert models.versions() == [1]
    models.recover()
    assert models.check() == []


@pytest.mark.parametrize("name", ["model.onnx", "network.json", "manifest.json", "manifest.sha256"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_to_any_file_is_named(models: Models, name: str, damage: str) -> None:
    """One flipped bit, a cut end or a missing file: `verify` and `check` name the file."""
    file = models.path(publish_one(models)) / name
    data = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    else:
        data[0] ^= 1
        file.write_bytes(data if damage == "flip" else data[1:])
    with pytest.raises(ArtefactError, match="manifest" if name == "manifest.sha256" else name.replace(".", r"\.")):
        models.verify(1)
    assert len(models.check()) == 1


def test_a_foreign_file_is_named(models: Models) -> None:
    """A file that was not published with the version does not pass."""
    (models.path(publish_one(models)) / "extra.bin").write_bytes(b"")
    with pytest.raises(ArtefactError, match=r"extra\.bin"):
        models.verify(1)


def test_promotion_and_factory_are_relative_links(models: Models, tmp_path: Path) -> None:
    """The state directory can be moved; links name a version that exists."""
    for _ in range(2):
        publish_one(models, "factory")
    models.set_factory(1)
    models.promote(2)
    assert str((tmp_path / "models/current").readlink()) == "v000002"
    moved = tmp_path / "moved"
    (tmp_path / "models").rename(moved)
    again = Models(moved, quarantine=tmp_path / "quarantine" / "models")
    assert (again.current(), again.factory()) == (2, 1)
    with pytest.raises(NotFoundError):
        again.promote(3)
    assert again.current() == 2


def test_sweep_keeps_what_is_needed(models: Models) -> None:
    """The newest, the served, the factory model and the protected stay; the rest goes."""
    for _ in range(8):
        publish_one(models)
    models.set_factory(1)
    models.promote(5)
    assert models.sweep(keep=2, protect=[3]) == [2, 4, 6]
    assert models.versions() == [1, 3, 5, 7, 8]
    assert models.sweep(keep=2, protect=[3]) == []


def test_numbers_are_never_used_twice(models: Models, tmp_path: Path) -> None:
    """Not after a sweep, a quarantine, nor after an emptied quarantine."""
    for _ in range(3):
        publish_one(models)
    models.promote(1)
    models.quarantine(3, "worse")
    assert models.next_version() == 4
    assert models.quarantined() == {3: "worse"}
    for path in (tmp_path / "quarantine/models").rglob("*"):
        if path.is_file():
            path.unlink()
    (tmp_path / "quarantine/models/v000003").rmdir()
    models.sweep(keep=0, protect=[])
    assert models.versions() == [1]
    assert models.next_version() == 4


def test_what_is_in_use_cannot_be_quarantined(models: Models) -> None:
    """Neither the served version nor the factory model."""
    for _ in range(2):
        publish_one(models)
    models.set_factory(1)
    models.promote(2)
    for version in (1, 2):
        with pytest.raises(ConflictError):
            models.quarantine(version, "no")
    with pytest.raises(NotFoundError):
        models.quarantine(7, "no")


def test_recover_removes_leftovers_and_mends_links(models: Models, tmp_path: Path) -> None:
    """Unfinished versions go; a link to nothing goes back to the factory model, and each is said."""
    publish_one(models, "factory")
    publish_one(models)
    models.set_factory(1)
    root = tmp_path / "models"
    (root / "v000003.tmp" / "sub").mkdir(parents=True)
    (root / "v000004.gone").mkdir()
    (root / ".current.tmp").symlink_to("v000001")
    (root / "current").symlink_to("v000077")
    said = models.recover()
    assert len(said) == 4
    assert models.current() == 1
    assert models.check() == []
    assert models.recover() == ()


def test_without_any_whole_version_a_dead_link_is_removed(models: Models, tmp_path: Path) -> None:
    """Then there is no model, which the service can say."""
    (tmp_path / "models" / "current").symlink_to("v000077")
    assert models.check() != []
    assert len(models.recover()) == 1
    assert models.current() is None
    assert models.check() == []
