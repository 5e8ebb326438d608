"""A published version, and the real server with it on a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_fakes import Running, serving, write_version

from edgetune.serve.engine import Engine


@pytest.fixture
def version_dir(tmp_path: Path) -> Path:
    """One published version."""
    return write_version(tmp_path / "v000001")


@pytest.fixture
def running(tmp_path: Path, version_dir: Path) -> Iterator[Running]:
    """The server with that version."""
    with serving(tmp_path / "et.sock", Engine.load(version_dir, threads=1)) as server:
        yield server
