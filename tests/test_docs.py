"""What is made from the code stands in the documentation as the code has it now."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from edgetune import errors
from edgetune.types import TrainerOutcome

ROOT = Path(__file__).parent.parent


def generator() -> ModuleType:
    """docs/generate.py, which is a script and not a module of the package."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = generator().pages()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_generated_page_is_current(path: Path) -> None:
    """Every key, verb, error and state of the round; `make docs` writes them."""
    assert path.read_text() == PAGES[path], "run: make docs"


def test_every_exit_code_is_documented() -> None:
    """Those of the command line and those of the trainer."""
    text = (ROOT / "docs" / "operations.md").read_text()
    section = text[text.index("## Exit codes and errors") :]
    for name, code in vars(errors).items():
        if name.startswith("EXIT_"):
            assert str(code) in section, name


def test_every_end_of_a_round_is_documented() -> None:
    """An operator who reads `no_samples` finds what it means."""
    text = (ROOT / "docs" / "operations.md").read_text()
    for outcome in [*(o.value for o in TrainerOutcome), "promoted", "refused", "cancelled", "expired", "not_started"]:
        assert f"`{outcome}`" in text, outcome
