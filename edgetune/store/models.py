"""
Published versions: `models/v000042/`, the links `current` and `factory`, quarantine and sweep.

A version appears by one rename and is never changed afterwards. `models/current` says which one is served: replacing
that link is the commit point of a promotion. Numbers are never used twice: what is removed leaves the highest number
in `models/.highest` first.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from edgetune import wire
from edgetune.errors import ArtefactError, ConflictError, NotFoundError, UsageError
from edgetune.store import durable
from edgetune.types import Manifest

MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.sha256"  # of manifest.json itself, which cannot name its own
_HIGHEST = ".highest"
_VERSION = re.compile(r"^v(\d{6,})$")
_QUARANTINED = re.compile(r"^v(\d{6,})(\.reason\.json)?$")


def version_name(version: int) -> str:
    """The name of a version's directory, `v000042`."""
    return f"v{version:06d}"


def publish(models_dir: Path, version: int, files: Mapping[str, bytes] | Path, manifest: Manifest) -> Path:
    """
    Make a version appear, whole.

    Args:
        models_dir: the directory of all versions.
        version: its number, from `Models.next_version`.
        files: name -> content; or a directory on the same file system, best `v000042.tmp`, that holds the files and
            is taken away.
        manifest: all but `version` and `files`, which are filled in here.

    Returns:
        The version's directory.

    Raises:
        ConflictError: the version exists already.
        UsageError: a file has the manifest's name, or a name with a directory in it.
    """
    final = models_dir / version_name(version)
    if final.exists():
        raise ConflictError(f"{final} exists already; a published version is never changed")
    temporary = files if isinstance(files, Path) else _write_files(models_dir, version, files)
    hashes = {}
    for path in sorted(temporary.iterdir()):
        if path.name in (MANIFEST, MANIFEST_HASH) or not path.is_file() or path.is_symlink():
            raise UsageError(f"a model cannot hold {path.name!r}: plain files with names of their own only")
        hashes[path.name] = durable.sha256_file(path)
    text = wire.to_json(dataclasses.replace(manifest, version=version, files=hashes), indent=2)
    durable.write_file(temporary / MANIFEST, text)
    durable.write_file(temporary / MANIFEST_HASH, durable.sha256_file(temporary / MANIFEST).encode())
    durable.publish_dir(temporary, final)
    return final


def _write_files(models_dir: Path, version: int, files: Mapping[str, bytes]) -> Path:
    durable.make_dir(models_dir)
    temporary = models_dir / f"{version_name(version)}.tmp"
    durable.remove_dir(temporary)
    durable.make_dir(temporary)
    for name, data in files.items():
        if Path(name).name != name:
            raise UsageError(f"a model's file cannot be called {name!r}")
        durable.write_file(temporary / name, data)
        durable.faultpoint("publish.file")
    return temporary


class Models:
    """The published versions of one board. One process promotes and removes; anyone may read."""

    def __init__(self, root: Path, *, quarantine: Path) -> None:
        """`root` is the directory of versions, `quarantine` takes refused ones; both on one file system."""
        self._root = root
        self._quarantine = quarantine

    # ------------------------------------------------------------------------------------------------- reading

    def versions(self) -> list[int]:
        """The numbers of all published versions, ascending."""
        return _numbers(self._root, _VERSION)

    def quarantined(self) -> dict[int, str]:
        """Quarantined version -> why."""
        found = {}
        for version in set(_numbers(self._quarantine, _QUARANTINED)):
            reason = self._quarantine / f"{version_name(version)}.reason.json"
            found[version] = str(json.loads(reason.read_bytes())["reason"]) if reason.exists() else "unknown"
        return dict(sorted(found.items()))

    def path(self, version: int) -> Path:
        """
        The version's directory.

        Raises:
            NotFoundError: no such version is published.
        """
        directory = self._root / version_name(version)
        if not directory.is_dir():
            raise NotFoundError(f"there is no version {version}", hint="see: edgetune models ls")
        return directory

    def manifest(self, version: int) -> Manifest:
        """
        What the version is.

        Raises:
            NotFoundError: no such version is published.
            ArtefactError: its manifest is missing or damaged.
        """
        path = self.path(version) / MANIFEST
        try:
            manifest = wire.from_json(Manifest, path.read_bytes())
        except (OSError, ValueError) as error:
            raise ArtefactError(f"version {version}: {MANIFEST} cannot be read: {error}") from error
        if manifest.version != version:
            raise ArtefactError(f"version {version}: {MANIFEST} says that it is version {manifest.version}")
        return manifest

    def verify(self, version: int) -> None:
        """
        Compare every file with the hash that was recorded when the version was published.

        Raises:
            NotFoundError: no such version is published.
            ArtefactError: names the first file that is missing, is not as it was published, or does not belong.
        """
        directory = self.path(version)
        hash_file = directory / MANIFEST_HASH
        if not hash_file.is_file():
            raise ArtefactError(f"version {version}: {MANIFEST_HASH} is missing")
        expected = {MANIFEST: hash_file.read_text(encoding="utf-8", errors="replace").strip()}
        _compare(directory, version, expected)
        expected = dict(self.manifest(version).files)
        _compare(directory, version, expected)
        for path in sorted(directory.iterdir()):
            if path.name not in expected and path.name not in (MANIFEST, MANIFEST_HASH):
                raise ArtefactError(f"version {version}: {path.name} does not belong to it")

    def current(self) -> int | None:
        """The promoted version, or None when there is none."""
        return self._linked("current")

    def factory(self) -> int | None:
        """The version that pruning levels are relative to, or None when there is none."""
        return self._linked("factory")

    def next_version(self) -> int:
        """A number that no version, quarantined or removed ones included, has had."""
        return max([0, self._recorded_highest(), *self.versions(), *_numbers(self._quarantine, _QUARANTINED)]) + 1

    # ------------------------------------------------------------------------------------------------ changing

    def promote(self, version: int) -> None:
        """
        Make this version the served one. When this returns it is; when it does not, the old one is or the new one is.

        Raises:
            NotFoundError: no such version is published.
        """
        self.path(version)
        durable.faultpoint("promote.before")
        durable.replace_link(self._root / "current", version_name(version))

    def set_factory(self, version: int) -> None:
        """
        Make this version the one that pruning levels are relative to.

        Raises:
            NotFoundError: no such version is published.
        """
        self.path(version)
        durable.replace_link(self._root / "factory", version_name(version))

    def quarantine(self, version: int, why: str) -> None:
        """
        Take a version out of service for good, with the reason beside it.

        Raises:
            NotFoundError: no such version is published.
            ConflictError: it is the served version or the factory model; promote another one first.
        """
        directory = self.path(version)
        if version in (self.current(), self.factory()):
            raise ConflictError(
                f"version {version} is in use and cannot be quarantined", hint="promote another version first"
            )
        durable.make_dir(self._quarantine)
        self._record_highest()
        reason = json.dumps({"version": version, "reason": why}, ensure_ascii=False).encode()
        durable.write_atomic(self._quarantine / f"{version_name(version)}.reason.json", reason)
        durable.move(directory, self._quarantine / version_name(version))

    def sweep(self, *, keep: int, protect: Iterable[int]) -> list[int]:
        """
        Remove old versions: all but the newest `keep`, the served one, the factory model and the protected ones.

        Returns:
            The numbers that were removed.
        """
        removed = self.sweepable(keep=keep, protect=protect)
        if removed:
            self._record_highest()
        for version in removed:
            durable.remove_dir(self._root / version_name(version))
        return removed

    def sweepable(self, *, keep: int, protect: Iterable[int]) -> list[int]:
        """What `sweep` would remove."""
        versions = self.versions()
        kept = {*versions[max(0, len(versions) - keep) :], self.current(), self.factory(), *protect}
        return [version for version in versions if version not in kept]

    def sweep_quarantine(self, *, keep: int) -> list[int]:
        """Remove all but the newest `keep` quarantined versions; their reasons stay. Returns the removed numbers."""
        removed = _numbers(self._quarantine, _VERSION)[: -keep or None]
        for version in removed:
            durable.remove_dir(self._quarantine / version_name(version))
        return removed

    def recover(self) -> tuple[str, ...]:
        """
        Clear up after whatever interrupted the last process; to be called at every start.

        Returns:
            A sentence for everything that was found and done; empty after a clean stop.
        """
        durable.make_dir(self._root)
        durable.make_dir(self._quarantine)
        said = [*self._remove_leftovers(), *self._finish_quarantine()]
        for name in ("factory", "current"):
            link = self._root / name
            if link.is_symlink() and self._linked(name) is None:
                said.append(self._repair_link(name))
        return tuple(said)

    def check(self) -> list[str]:
        """What is wrong with the published versions, as sentences; empty when all is well. Reads every file."""
        problems = []
        for version in self.versions():
            try:
                self.verify(version)
            except ArtefactError as error:
                problems.append(error.message)
        for name in ("current", "factory"):
            link = self._root / name
            if link.is_symlink() and self._linked(name) is None:
                problems.append(f"the link {link} points at {link.readlink()}, which is not a published version")
            elif link.exists() and not link.is_symlink():
                problems.append(f"{link} is not a link")
        names = {path.name for path in self._root.iterdir()} if self._root.is_dir() else set()
        strange = {name for name in names if not _VERSION.match(name)} - {"current", "factory", _HIGHEST}
        problems += [f"{self._root / name} does not belong there" for name in sorted(strange)]
        return problems

    # ------------------------------------------------------------------------------------------------- details

    def _linked(self, name: str) -> int | None:
        link = self._root / name
        if not link.is_symlink():
            return None
        match = _VERSION.match(str(link.readlink()))
        return int(match.group(1)) if match and link.is_dir() else None

    def _remove_leftovers(self) -> list[str]:
        said = []
        for directory in (self._root, self._quarantine):
            for path in sorted(directory.iterdir()):
                if path.suffix not in (".tmp", ".gone"):
                    continue
                if path.is_dir() and not path.is_symlink():
                    durable.remove_dir(path)
                else:
                    durable.remove_file(path)
                said.append(f"removed the unfinished {path.name} in {directory}")
        return said

    def _finish_quarantine(self) -> list[str]:
        """A reason was written and the power went before the rename."""
        said = []
        for version, why in self.quarantined().items():
            directory = self._root / version_name(version)
            if directory.is_dir() and version not in (self.current(), self.factory()):
                durable.move(directory, self._quarantine / version_name(version))
                said.append(f"finished the quarantine of version {version}: {why}")
        return said

    def _repair_link(self, name: str) -> str:
        """A link to nothing: back to the factory model, or to the newest version that is whole."""
        was = (self._root / name).readlink()
        whole = [version for version in reversed(self.versions()) if self._is_whole(version)]
        factory = self.factory()
        if name == "factory":
            whole = [version for version in whole if self.manifest(version).kind == "factory"]
        elif factory in whole:
            whole = [factory]
        if not whole:
            durable.remove_file(self._root / name)
            return (
                f"models/{name} pointed at {was}, which is gone, and no other version can take its place: link removed"
            )
        durable.replace_link(self._root / name, version_name(whole[0]))
        return f"models/{name} pointed at {was}, which is gone: now at version {whole[0]}"

    def _is_whole(self, version: int) -> bool:
        try:
            self.verify(version)
        except ArtefactError:
            return False
        return True

    def _recorded_highest(self) -> int:
        """0 when nothing was removed yet; a damaged record only matters until the next removal writes it again."""
        path = self._root / _HIGHEST
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        return int(text) if text.isascii() and text.isdigit() else 0

    def _record_highest(self) -> None:
        highest = self.next_version() - 1
        if highest > self._recorded_highest():
            durable.write_atomic(self._root / _HIGHEST, str(highest).encode())


def _numbers(directory: Path, pattern: re.Pattern[str]) -> list[int]:
    if not directory.is_dir():
        return []
    matches = (pattern.match(path.name) for path in directory.iterdir())
    return sorted({int(match.group(1)) for match in matches if match})


def _compare(directory: Path, version: int, expected: Mapping[str, str]) -> None:
    for name, digest in sorted(expected.items()):
        path = directory / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            raise ArtefactError(f"version {version}: {name} is missing")
        if durable.sha256_file(path) != digest:
            raise ArtefactError(f"version {version}: {name} is damaged: its SHA-256 is not the recorded one")
