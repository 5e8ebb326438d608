"""Fixtures of the storage tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests have no packages; store_samples.py is shared

from store_samples import make_buffer

from edgetune.store.buffer import Buffer


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[Buffer]:
    """An open, empty buffer that must be sound when the test ends."""
    opened = make_buffer(tmp_path / "edgetune.db")
    assert opened.open() == ()
    yield opened
    assert opened.check(full=True) == []
    opened.close()
