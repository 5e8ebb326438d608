"""What the inbox hands to the daemon at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgetune.types import NewSample


@dataclass(frozen=True, slots=True, kw_only=True)
class LateLabel:
    """A sidecar that came after its image had been taken."""

    path: Path
    digest: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one `collect` found."""

    items: tuple[tuple[Path, NewSample], ...] = ()
    late_labels: tuple[LateLabel, ...] = ()
    quarantined: int = 0
    has_more: bool = False  # collect again at once

    @property
    def paths(self) -> tuple[Path, ...]:
        """Everything that `committed` or `returned` must be told about."""
        return tuple(path for path, _ in self.items) + tuple(late.path for late in self.late_labels)
