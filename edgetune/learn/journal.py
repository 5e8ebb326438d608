"""What a round writes down on the way: measurements and choices that later starts keep to, and what people are told."""

from __future__ import annotations

import json
from collections import UserDict
from pathlib import Path
from typing import Any

from edgetune.store.durable import write_atomic
from edgetune.types import Forecast
from edgetune.wire import from_json, to_plain

JOURNAL_FILE = "journal.json"


class Journal(UserDict[str, Any]):
    """
    A round's `journal.json`; nothing is on the disk before `write`.

    Args:
        round_dir: where it is.
        digest: of the round's spec; what another spec has left is forgotten.
    """

    def __init__(self, round_dir: Path, digest: str) -> None:
        super().__init__()
        self._path = round_dir / JOURNAL_FILE
        found = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        self.data = found if found.get("spec") == digest else {"spec": digest}

    def write(self) -> None:
        """Keep it as it is now."""
        write_atomic(self._path, json.dumps(self.data, indent=1).encode())

    @property
    def forecast(self) -> Forecast | None:
        """How the round is run, once that is settled."""
        return from_json(Forecast, json.dumps(self["forecast"])) if "forecast" in self else None

    @forecast.setter
    def forecast(self, plan: Forecast) -> None:
        self["forecast"] = to_plain(plan)
