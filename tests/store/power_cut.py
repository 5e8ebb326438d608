"""
A disk that forgets: records every change to files, then makes the trees that a power cut could leave behind.

The model is harsher than ext4. Content that was not synced is gone, cut short or whole. A change of a directory
(a new name, a rename, a removal) that was not synced by an fsync of that directory happened or not, independently of
all others, except that it cannot happen before the thing it needs exists. A rename is one change, never half of one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edgetune.store.durable import FileSystem


@dataclass
class Node:
    """A file's or directory's identity, which stays when it is renamed."""

    is_dir: bool = False
    target: str | None = None  # of a symbolic link
    synced: bytes | None = None
    latest: bytes = b""


@dataclass
class Change:
    """One change of names, and whether an fsync has made it last."""

    kind: str
    node: Node
    path: Path
    new_path: Path | None = None
    is_synced: bool = False

    @property
    def directories(self) -> set[Path]:
        """Whose fsync makes it last."""
        return {self.path.parent} | ({self.new_path.parent} if self.new_path else set())


@dataclass
class ForgetfulFileSystem(FileSystem):
    """Does everything for real below `root`, and remembers it so that it can be forgotten."""

    root: Path
    start: dict[Path, Node] = field(default_factory=dict)
    now: dict[Path, Node] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    trees: list[tuple[list[Change], dict[int, tuple[bytes | None, bytes]]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Take what is there as safely on the disk."""
        for path in sorted(self.root.rglob("*")):
            if path.is_symlink():
                node = Node(target=str(path.readlink()))
            elif path.is_dir():
                node = Node(is_dir=True)
            else:
                node = Node(synced=path.read_bytes(), latest=path.read_bytes())
            self.start[path] = self.now[path] = node
        self._moment()

    def _moment(self) -> None:
        """The power may go here."""
        nodes = {id(node): node for node in [*self.start.values(), *(change.node for change in self.changes)]}
        content = {key: (node.synced, node.latest) for key, node in nodes.items()}
        self.trees.append(([Change(**vars(change)) for change in self.changes], content))

    def _record(self, change: Change) -> None:
        self.changes.append(change)
        self._moment()

    def write(self, path: Path, data: bytes) -> None:
        """Do it and remember it."""
        super().write(path, data)
        if path not in self.now:
            self.now[path] = Node()
            self._record(Change("make", self.now[path], path))
        self.now[path].synced = None
        self.now[path].latest = data
        self._moment()

    def fsync(self, path: Path) -> None:
        """From now on the content lasts."""
        super().fsync(path)
        self.now[path].synced = self.now[path].latest
        self._moment()

    def fsync_dir(self, path: Path) -> None:
        """From now on what was done to names in this directory lasts."""
        super().fsync_dir(path)
        for change in self.changes:
            change.is_synced = change.is_synced or path in change.directories
        self._moment()

    def rename(self, source: Path, target: Path) -> None:
        """Do it and remember it."""
        super().rename(source, target)
        node = self.now[source]
        for path in [path for path in self.now if path == source or source in path.parents]:
            self.now[target / path.relative_to(source)] = self.now.pop(path)
        self._record(Change("rename", node, source, target))

    def unlink(self, path: Path) -> None:
        """Do it and remember it."""
        super().unlink(path)
        self._record(Change("remove", self.now.pop(path), path))

    def symlink(self, path: Path, target: str) -> None:
        """Do it and remember it."""
        super().symlink(path, target)
        self.now[path] = Node(target=target)
        self._record(Change("make", self.now[path], path))

    def mkdir(self, path: Path) -> None:
        """Do it and remember it."""
        super().mkdir(path)
        self.now[path] = Node(is_dir=True)
        self._record(Change("make", self.now[path], path))

    def rmdir(self, path: Path) -> None:
        """Do it and remember it."""
        super().rmdir(path)
        self._record(Change("remove", self.now.pop(path), path))

    def after_power_cuts(self, scratch: Path, *, tries: int, seed: int = 0) -> Iterator[tuple[Path, bool]]:
        """
        Make the trees that power cuts could leave.

        Yields:
            (a copy of root below `scratch`, whether the recorded work had ended before this cut).
        """
        for moment, (changes, content) in enumerate(self.trees):
            is_last = moment == len(self.trees) - 1
            for attempt in range(tries):
                rng = random.Random(f"{seed}/{moment}/{attempt}")
                keep_share = (0.0, 1.0, 0.5)[attempt % 3]  # forget all, forget nothing, forget some
                tree = self._survivors(changes, rng, keep_share)
                copy = scratch / f"cut-{moment}-{attempt}"
                self._write_tree(copy, tree, content, rng, keep_share)
                yield copy, is_last

    def _survivors(self, changes: list[Change], rng: random.Random, keep_share: float) -> dict[Path, Node]:
        tree = dict(self.start)
        for change in changes:
            if not change.is_synced and rng.random() >= keep_share:
                continue
            if change.kind == "make" and (change.path.parent in tree or change.path.parent == self.root):
                tree[change.path] = change.node
            elif change.kind == "remove" and tree.get(change.path) is change.node:
                for path in [path for path in tree if path == change.path or change.path in path.parents]:
                    del tree[path]
            elif change.kind == "rename" and change.new_path is not None and tree.get(change.path) is change.node:
                moved = [path for path in tree if path == change.path or change.path in path.parents]
                for path in moved:
                    tree[change.new_path / path.relative_to(change.path)] = tree.pop(path)
        return tree

    def _write_tree(
        self,
        copy: Path,
        tree: dict[Path, Node],
        content: dict[int, tuple[bytes | None, bytes]],
        rng: random.Random,
        keep_share: float,
    ) -> None:
        copy.mkdir(parents=True)
        for path, node in sorted(tree.items(), key=lambda item: len(item[0].parts)):
            place = copy / path.relative_to(self.root)
            if node.is_dir:
                place.mkdir()
            elif node.target is not None:
                place.symlink_to(node.target)
            else:
                synced, latest = content[id(node)]
                cut = len(latest) if keep_share == 1.0 else rng.randint(0, len(latest)) if keep_share else 0
                place.write_bytes(latest[:cut] if synced is None else synced)
