"""Where bad files go: moved, never deleted, never over another one, with the reason beside them."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from edgetune.clock import Clock
from edgetune.device.scan import printable

REASON_SUFFIX = ".reason.json"
_NAME_BYTES_MAX = 255  # of nearly every file system


class Quarantine:
    """A directory tree of bad files, in the folders they came from."""

    def __init__(self, root: Path, move: Callable[[Path, Path], None], clock: Clock) -> None:
        self._root = root
        self._move = move
        self._clock = clock
        self.count = sum(
            not name.endswith(REASON_SUFFIX) and not name.lower().endswith(".json")
            for _, _, names in os.walk(root)
            for name in names
        )

    def put(self, path: Path, relative: Path, reason: str, *, counts: bool = True) -> Path:
        """
        Move a file here.

        Args:
            path: the bad file.
            relative: where below this directory it belongs.
            reason: a sentence for the operator.
            counts: False for what only accompanies a bad file.

        Returns:
            Where it is now.

        Raises:
            OSError: it could not be moved and is where it was.
        """
        size_bytes = path.lstat().st_size
        target = self._free_name(self._root / relative)
        target.parent.mkdir(parents=True, exist_ok=True)
        note = {
            "file": printable(relative),
            "reason": reason,
            "bytes": size_bytes,
            "at": datetime.fromtimestamp(self._clock.wall_s(), timezone.utc).isoformat(timespec="seconds"),
        }
        reason_path = target.with_name(target.name + REASON_SUFFIX)
        # The reason first: a crash leaves a note without a file, never a file that nobody can explain.
        reason_path.write_text(json.dumps(note, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        try:
            self._move(path, target)
        except BaseException:
            reason_path.unlink(missing_ok=True)
            raise
        self.count += counts
        return target

    def _free_name(self, wanted: Path) -> Path:
        room = _NAME_BYTES_MAX - len(REASON_SUFFIX) - len("-1000000")
        stem, suffix = wanted.stem, wanted.suffix
        stem = os.fsdecode(os.fsencode(stem)[: max(1, room - len(os.fsencode(suffix)))])
        for number in itertools.count(1):
            name = wanted.with_name(f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}")
            if not os.path.lexists(name) and not os.path.lexists(f"{name}{REASON_SUFFIX}"):
                return name
        raise AssertionError("unreachable")
