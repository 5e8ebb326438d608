"""What doctor says of the libraries: whether they are installed, match each other, and start on this processor."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

OK, WARNING, FAULT = "ok", "warning", "fault"
_SERVE = (
    "numpy",
    "onnxruntime",
    "pillow",
    "psutil",
    "pydantic",
    "pyyaml",
    "sqlite-utils",
    "starlette",
    "uvicorn",
    "watchdog",
)
_TRAIN = ("torch", "torchvision", "torch-pruning", "onnx", "safetensors")
_IMPORT_TIMEOUT_S = 120.0  # `import torch` from a cold SD card takes most of a minute
_SIGILL = -4


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: str  # OK | WARNING | FAULT
    says: str
    fix: str = ""


def check_libraries(*, is_quick: bool) -> Iterator[Finding]:
    """Whether what serving and training need is installed and starts on this processor."""
    missing = [name for name in _SERVE if _version(name) is None]
    if missing:
        yield Finding(
            "libraries",
            FAULT,
            f"missing: {', '.join(missing)}",
            "install edgetune again: pip install --force-reinstall edgetune",
        )
    else:
        yield Finding(
            "libraries",
            OK,
            ", ".join(f"{name} {_version(name)}" for name in ("onnxruntime", "numpy", "pydantic", "sqlite-utils")),
        )
    untrained = [name for name in _TRAIN if _version(name) is None]
    if untrained:
        yield Finding("training", WARNING, f"missing: {', '.join(untrained)}; this board serves, but cannot make a better model",
                      "pip install 'edgetune[train]', or on Raspberry Pi OS: apt install python3-torch python3-torchvision")  # fmt: skip
    if is_quick:
        return
    if "onnxruntime" not in missing:
        yield try_import("onnxruntime")
    if "torch" not in untrained:
        yield try_import("torch")
        if "torchvision" not in untrained:
            yield try_import("torchvision")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def try_import(name: str, *, python: str = sys.executable) -> Finding:
    """Import a library in a process of its own, where it may take memory, hang or die."""
    try:
        done = subprocess.run(
            [python, "-c", f"import {name}"], capture_output=True, text=True, timeout=_IMPORT_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(
            name, FAULT, f"importing it took more than {_IMPORT_TIMEOUT_S:.0f} s", "look at the disk: dmesg | tail"
        )
    if done.returncode == 0:
        return Finding(name, OK, f"{_version(name)} starts")
    return judge_import(name, done.returncode, done.stderr)


def judge_import(name: str, exit_code: int, stderr: str) -> Finding:
    """Why an import failed, in words, and what helps."""
    last = stderr.strip().splitlines()[-1] if stderr.strip() else f"exit code {exit_code}"
    if "torchvision::" in stderr and "does not exist" in stderr:
        pair = f"torchvision {_version('torchvision')} was not built for torch {_version('torch')}"
        return Finding(name, WARNING, f"{pair}: {last}\nrounds work all the same, because edgetune needs none of its compiled operators",
                       "install the pair from one place (both from pip, both from apt, or both of NVIDIA's wheels)")  # fmt: skip
    if exit_code == _SIGILL:
        return Finding(name, FAULT, "it uses instructions that this processor does not have",
                       f"install a build of {name} for this board: apt install python3-{name}, or an older version")  # fmt: skip
    if "libcud" in stderr or "libcublas" in stderr or "libnv" in stderr:
        return Finding(
            name,
            FAULT,
            f"a library of NVIDIA's is missing: {last}",
            f"install {name} for this JetPack, or its CPU build",
        )
    return Finding(name, FAULT, last, f"install it again: pip install --force-reinstall {name}")
