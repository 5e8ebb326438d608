"""
The only module that makes changes to files last: write, fsync, rename, fsync the directory, in that order.

Every change goes through one `FileSystem` object, so that a test can record what was done and then forget, as a power
cut does, whatever was not synced. `faultpoint` stands before each step that a power cut could separate from the next;
it does nothing unless a crash test arms it.

What is promised: after a function here returns, its effect survives a power cut; when it does not return, either the
old or the new state is there, never a mixture. What is not: that a disk which lies about fsync keeps the promise.
"""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

_CHUNK_BYTES = 1 << 20
_seen_faultpoints: dict[str, int] = {}


class FileSystem:
    """The calls that change files. The one in use is replaced by `use_file_system`, in tests."""

    def write(self, path: Path, data: bytes) -> None:
        """Make a file, or empty the one that is there, and write it; nothing of it is durable yet."""
        with path.open("wb") as file:
            file.write(data)

    def fsync(self, path: Path) -> None:
        """Bring a file's content to the disk."""
        _fsync(path, os.O_RDONLY)

    def fsync_dir(self, path: Path) -> None:
        """Bring a directory's entries to the disk."""
        _fsync(path, os.O_RDONLY | os.O_DIRECTORY)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file, link or directory another name, replacing a file or link of that name in one step."""
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """Remove a file or link."""
        path.unlink()

    def symlink(self, path: Path, target: str) -> None:
        """Make a symbolic link at `path`."""
        path.symlink_to(target)

    def mkdir(self, path: Path) -> None:
        """Make one directory."""
        path.mkdir()

    def rmdir(self, path: Path) -> None:
        """Remove one empty directory."""
        path.rmdir()


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_file_system = FileSystem()


def use_file_system(replacement: FileSystem) -> FileSystem:
    """Make all durable changes through another object; returns the one used until now."""
    global _file_system
    previous, _file_system = _file_system, replacement
    return previous


def faultpoint(name: str) -> None:
    """
    Die here, as in a power cut, when a crash test asks for it.

    Environment: EDGETUNE_FAULT is "n" (the n-th faultpoint this process reaches, from 0) or "name:n" (the n-th of that
    name); EDGETUNE_FAULT_TRACE names a file to which every faultpoint reached is appended.
    """
    trace = os.environ.get("EDGETUNE_FAULT_TRACE")
    fault = os.environ.get("EDGETUNE_FAULT")
    if trace:
        with Path(trace).open("a", encoding="utf-8") as file:
            file.write(f"{name}\n")
    if not fault:
        return
    wanted, _, index = fault.rpartition(":")
    if wanted not in ("", name):
        return
    seen = _seen_faultpoints.get(wanted, 0)
    _seen_faultpoints[wanted] = seen + 1
    if seen == int(index):
        os.kill(os.getpid(), signal.SIGKILL)


def fsync_dir(path: Path) -> None:
    """Bring a directory's entries to the disk."""
    _file_system.fsync_dir(path)


def make_dir(path: Path) -> None:
    """Make a directory and its missing parents, durably; one that is there is left alone."""
    if path.is_dir():
        return
    make_dir(path.parent)
    _file_system.mkdir(path)
    _file_system.fsync_dir(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """
    Replace a file's content: afterwards it is the old content or the new, never a part.

    Leaves `.NAME.tmp` beside it when it is interrupted; the next write replaces that.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    _file_system.write(temporary, data)
    _file_system.fsync(temporary)
    faultpoint("write_atomic.written")
    _file_system.rename(temporary, path)
    faultpoint("write_atomic.renamed")
    _file_system.fsync_dir(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write a file inside a directory that `publish_dir` will publish; durable only then."""
    _file_system.write(path, data)


def publish_dir(temporary: Path, final: Path) -> None:
    """
    Give a finished directory its name: it appears whole or not at all.

    Args:
        temporary: the directory, on the same file system; gone afterwards.
        final: a name that nothing has.

    Raises:
        FileExistsError: something has that name already.
    """
    if final.exists() or final.is_symlink():
        raise FileExistsError(f"{final} exists already")
    for path in sorted(temporary.rglob("*"), reverse=True):  # children before the directory that holds them
        if path.is_dir() and not path.is_symlink():
            _file_system.fsync_dir(path)
        elif not path.is_symlink():
            _file_system.fsync(path)
    _file_system.fsync_dir(temporary)
    faultpoint("publish_dir.written")
    _file_system.rename(temporary, final)
    faultpoint("publish_dir.renamed")
    _sync_parents(temporary, final)


def publish_file(temporary: Path, final: Path) -> None:
    """Give a finished file its name, replacing one that has it; on disk when this returns."""
    _file_system.fsync(temporary)
    faultpoint("publish_file.written")
    _file_system.rename(temporary, final)
    faultpoint("publish_file.renamed")
    _sync_parents(temporary, final)


def replace_link(link: Path, target: str) -> None:
    """Point a symbolic link somewhere else in one step; whoever reads it sees the old target or the new."""
    temporary = link.with_name(f".{link.name}.tmp")
    if temporary.is_symlink() or temporary.exists():
        _file_system.unlink(temporary)
    _file_system.symlink(temporary, target)
    faultpoint("replace_link.made")
    _file_system.rename(temporary, link)
    faultpoint("replace_link.renamed")
    _file_system.fsync_dir(link.parent)


def move(source: Path, target: Path) -> None:
    """Rename a file or directory within one file system; it has one of the two names, never none."""
    faultpoint("move.before")
    _file_system.rename(source, target)
    faultpoint("move.renamed")
    _sync_parents(source, target)


def remove_file(path: Path) -> None:
    """Remove a file or link; one that is not there is no error."""
    faultpoint("remove_file.before")
    try:
        _file_system.unlink(path)
    except FileNotFoundError:
        return
    faultpoint("remove_file.removed")
    _file_system.fsync_dir(path.parent)


def remove_files(paths: list[Path]) -> None:
    """Remove many files with one sync of each directory, for the sources of a whole batch."""
    faultpoint("remove_files.before")
    for path in paths:
        try:
            _file_system.unlink(path)
        except FileNotFoundError:
            continue
        faultpoint("remove_files.one")
    for directory in sorted({path.parent for path in paths}):
        if directory.is_dir():
            _file_system.fsync_dir(directory)


def remove_dir(path: Path) -> None:
    """
    Remove a directory and all that it holds; whoever looks sees it whole or not at all.

    It is first renamed to `NAME.gone`, which whoever recovers the parent directory removes by calling this again.
    """
    if path.is_symlink() or not path.exists():
        return
    gone = path if path.suffix == ".gone" else path.with_name(path.name + ".gone")
    if gone != path:
        if gone.exists():
            _remove_tree(gone)
        faultpoint("remove_dir.before")
        _file_system.rename(path, gone)
        _file_system.fsync_dir(path.parent)
    faultpoint("remove_dir.renamed")
    _remove_tree(gone)
    _file_system.fsync_dir(path.parent)


def sha256_file(path: Path) -> str:
    """The file's SHA-256 in lower-case hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _remove_tree(path: Path) -> None:
    for child in sorted(path.iterdir()):
        if child.is_dir() and not child.is_symlink():
            _remove_tree(child)
        else:
            _file_system.unlink(child)
        faultpoint("remove_dir.child")
    _file_system.rmdir(path)


def _sync_parents(source: Path, target: Path) -> None:
    _file_system.fsync_dir(target.parent)
    if source.parent != target.parent:
        _file_system.fsync_dir(source.parent)
