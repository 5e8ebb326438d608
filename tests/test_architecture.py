"""The directions in which modules may import each other (docs/architecture.md), read from the source itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "edgetune"

BASE = {"errors", "types", "clock", "units", "images", "config", "wire", "__init__"}
FOLDERS = {"decide", "store", "device", "serve"}

# layer -> what it may import of edgetune, itself not counted. "serve.engine" allows that module alone.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "types": set(),
    "clock": set(),
    "__init__": set(),
    "units": {"errors", "types"},
    "wire": {"errors", "types"},
    "images": {"errors", "types", "units"},
    "config": BASE,
    "decide": BASE,
    "store": BASE,
    "device": BASE,
    "serve": BASE,
    "client": BASE,
    "teach": BASE | {"store.durable"},
    "learn": BASE | {"store", "serve.engine", "serve.timing", "decide.search", "decide.forecast", "teach"},
    "daemon": BASE | FOLDERS,
    "trainer": BASE | {"learn", "store"},
    "simulate": BASE | FOLDERS | {"daemon"},
    "cli": BASE | FOLDERS | {"client", "daemon", "learn", "simulate", "teach", "trainer"},
    "__main__": {"cli"},
}

# third-party or standard library module -> the only places that may import it, and why
CONFINED: dict[str, set[str]] = {
    "torch": {"learn"},  # 226 MiB that the daemon does not carry
    "torchvision": {"learn"},
    "torch_pruning": {"learn"},
    "onnx": {"learn"},
    "safetensors": {"learn"},
    "onnxruntime": {"serve"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "sqlite_utils": {"store"},
    "sqlite3": {"store"},
    "watchdog": {"device"},
    "jtop": {"device.jtop_probe"},  # AGPL-3.0, and may hang: a program of its own
    "matplotlib": {"cli"},  # an extra, imported when a plot is asked for
    "rich": {"cli"},
    "click": {"cli"},
    "ssl": {"teach.server"},  # the only code that speaks to another machine
    "http": {"teach.server", "client", "cli.bench"},  # the latter two over the Unix socket
    "pickle": set(),  # no artefact is a pickle
    "multiprocessing": set(),  # programs of their own instead, which can be stopped and killed alone
}

# The base library that needs nothing but Python: a decision can be tested without a board.
PURE = {"decide", "errors", "types", "clock", "units"}


class Import(NamedTuple):
    """One import statement."""

    importer: str  # "learn.recipe"
    imported: str  # "edgetune.store.durable", "torch.nn"
    line: int

    def __str__(self) -> str:
        return f"edgetune/{self.importer.replace('.', '/')}.py:{self.line} imports {self.imported}"


def module_name(path: Path) -> str:
    """'learn.recipe' of edgetune/learn/recipe.py; a package is named after its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports_of(path: Path) -> Iterator[Import]:
    """Every import in a module, those inside functions and behind TYPE_CHECKING too."""
    importer = module_name(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(importer, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            assert node.module is not None
            # `from edgetune import errors` and `from edgetune.serve import engine` name modules, not only values
            for alias in node.names:
                deeper = PACKAGE.joinpath(*node.module.split(".")[1:], alias.name)
                is_module = node.module.split(".")[0] == "edgetune" and (
                    deeper.is_dir() or deeper.with_suffix(".py").exists()
                )
                yield Import(importer, f"{node.module}.{alias.name}" if is_module else node.module, node.lineno)


SOURCES = sorted(PACKAGE.rglob("*.py"))
IMPORTS = [found for path in SOURCES for found in imports_of(path)]


def is_inside(name: str, places: set[str]) -> bool:
    """Whether a dotted module name is one of the places or lies below one."""
    return any(name == place or name.startswith(place + ".") for place in places)


def layer(name: str) -> str:
    """The first part of a module's name."""
    return name.split(".", maxsplit=1)[0]


def test_every_module_belongs_to_a_layer() -> None:
    """A module that no rule speaks of escapes all of them."""
    strangers = [str(path) for path in SOURCES if layer(module_name(path)) not in MAY_IMPORT]
    assert strangers == []


def test_the_source_was_found() -> None:
    """The other tests of this file would pass on an empty folder."""
    assert len(SOURCES) > 20
    assert any(found.imported.startswith("edgetune.") for found in IMPORTS)


def test_imports_follow_the_directions() -> None:
    """cli -> daemon, trainer, client -> learn, serve, store, device, decide -> config -> the base."""
    wrong = []
    for found in IMPORTS:
        target = found.imported.removeprefix("edgetune.")
        if layer(found.imported) != "edgetune" or layer(target) == layer(found.importer):
            continue
        if found.imported == "edgetune":  # `from edgetune import __version__`
            target = "__init__"
        if not is_inside(target, MAY_IMPORT[layer(found.importer)]):
            wrong.append(str(found))
    assert wrong == []


def test_libraries_stay_in_their_folders() -> None:
    """Each heavy, dangerous or replaceable library is imported in one folder, or nowhere."""
    wrong = [
        str(found)
        for found in IMPORTS
        if layer(found.imported) in CONFINED and not is_inside(found.importer, CONFINED[layer(found.imported)])
    ]
    assert wrong == []


def test_decisions_import_nothing_but_python() -> None:
    """decide/ and the base below it use the standard library and edgetune alone."""
    wrong = [
        str(found)
        for found in IMPORTS
        if layer(found.importer) in PURE
        and layer(found.imported) != "edgetune"
        and layer(found.imported) not in sys.stdlib_module_names
    ]
    assert wrong == []


def test_decisions_do_no_input_or_output() -> None:
    """decide/ imports no module that reads a clock, a file, a socket or the environment."""
    outside = {
        "asyncio",
        "io",
        "logging",
        "os",
        "pathlib",
        "random",
        "shutil",
        "socket",
        "subprocess",
        "tempfile",
        "time",
    }
    wrong = [str(found) for found in IMPORTS if layer(found.importer) == "decide" and layer(found.imported) in outside]
    assert wrong == []


def test_only_durable_makes_things_durable() -> None:
    """fsync and rename are called in store/durable.py alone, so that the power-cut tests see every one of them."""
    wrong = [
        f"{path}:{node.lineno} {node.func.value.id}.{node.func.attr}"
        for path in SOURCES
        if module_name(path) != "store.durable"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "os"
        and node.func.attr in {"fsync", "fdatasync", "rename", "replace", "renames", "link", "symlink"}
    ]
    assert wrong == []


def loaded_by(program: str, *, modules: tuple[str, ...]) -> list[str]:
    """Run a program in a fresh interpreter; which of these modules had it imported by its end?"""
    script = f"import sys\n{program}\nprint('LOADED', *(m for m in {modules!r} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("LOADED")]
    return line.split()[1:]


def test_the_daemon_imports_no_torch() -> None:
    """Every module that the daemon could import leaves torch and its company unloaded."""
    names = [
        f"edgetune.{module_name(path)}"
        for path in SOURCES
        if layer(module_name(path)) in MAY_IMPORT["daemon"] | {"daemon"}
        and module_name(path) not in {"device.jtop_probe", "__init__"}
        and not module_name(path).endswith("__main__")
    ]
    assert "edgetune.daemon" in names
    assert loaded_by("\n".join(f"import {name}" for name in names), modules=("torch", "torchvision", "onnx")) == []


def test_status_imports_nothing_heavy(tmp_path: Path) -> None:
    """`edgetune status` has to answer at once on a Raspberry Pi: no torch, no runtime, no database, no web server."""
    if not any((PACKAGE / name).exists() for name in ("cli.py", "cli")):
        pytest.fail("edgetune has no command line")
    program = f"""
from edgetune.cli import main
try:
    main(["status", "--socket", {str(tmp_path / "edgetune.sock")!r}])
except SystemExit as leaving:
    assert leaving.code == 3, leaving.code
"""
    heavy = ("torch", "onnxruntime", "numpy", "pydantic", "sqlite_utils", "starlette", "uvicorn", "PIL", "asyncio")
    assert loaded_by(program, modules=heavy) == []
