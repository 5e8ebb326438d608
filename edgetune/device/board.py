"""Which board this is, for `status`, `doctor` and the manifest: names and sizes that do not change while it runs."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MODEL_FILES = ("proc/device-tree/model", "sys/firmware/devicetree/base/model", "sys/class/dmi/id/product_name")
_L4T = re.compile(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)")
_JETPACK_OF_L4T = {"32": "4", "34": "5", "35": "5", "36": "6", "38": "7", "39": "7"}
_POWER_MODEL = re.compile(r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", re.MULTILINE)
_CHOSEN_MODE = re.compile(r"pmode:\s*(\d+)")
_DEFAULT_MODE = re.compile(r"^<\s*PM_CONFIG\s+DEFAULT=(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """What this machine is."""

    model: str  # "Raspberry Pi 5 Model B Rev 1.0", "NVIDIA Jetson Orin Nano Developer Kit", ...
    kind: str  # "jetson" | "raspberry_pi" | "other"
    architecture: str  # "aarch64", "x86_64"
    cpu: str
    cores: int
    memory_mib: float | None
    system: str  # "Debian GNU/Linux 13 (trixie)"
    kernel: str
    l4t: str | None = None  # "36.4.3", on a Jetson
    jetpack: str | None = None  # its major version, from L4T's
    power_mode: str | None = None  # "15W", "MAXN_SUPER": nvpmodel's, on a Jetson


def identify(root: Path = Path("/")) -> Board:
    """Look at what the kernel and the distribution say about themselves; never raises."""
    model = next((text for name in _MODEL_FILES if (text := _text(root / name))), "unknown board")
    l4t = _l4t(root)
    lower = model.lower()
    if l4t is not None or "jetson" in lower:
        kind = "jetson"
    elif "raspberry pi" in lower:
        kind = "raspberry_pi"
    else:
        kind = "other"
    return Board(
        model=model,
        kind=kind,
        architecture=platform.machine(),
        cpu=_cpu(root),
        cores=_cores(),
        memory_mib=_memory_mib(root),
        system=_field(root / "etc/os-release", "PRETTY_NAME") or platform.system(),
        kernel=platform.release(),
        l4t=l4t,
        jetpack=None if l4t is None else _JETPACK_OF_L4T.get(l4t.partition(".")[0]),
        power_mode=_power_mode(root) if kind == "jetson" else None,
    )


def _cores() -> int:
    """Cores this process may use, which a cpuset can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _l4t(root: Path) -> str | None:
    match = _L4T.search(_text(root / "etc/nv_tegra_release"))
    return f"{match.group(1)}.{match.group(2)}" if match else None


def _power_mode(root: Path) -> str | None:
    """The name of nvpmodel's mode: the one last chosen, or else the default; both files are for all to read."""
    models = _text(root / "etc/nvpmodel.conf")
    chosen = _CHOSEN_MODE.search(_text(root / "var/lib/nvpmodel/status")) or _DEFAULT_MODE.search(models)
    names = {int(number): name for number, name in _POWER_MODEL.findall(models)}
    return None if chosen is None else names.get(int(chosen[1]), f"mode {int(chosen[1])}")


def _cpu(root: Path) -> str:
    text = _text(root / "proc/cpuinfo")
    match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or platform.machine()


def _memory_mib(root: Path) -> float | None:
    match = re.search(r"^MemTotal:\s*(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    return int(match.group(1)) / 1024 if match else None


def _field(path: Path, name: str) -> str:
    match = re.search(rf'^{name}="?([^"\n]*)"?$', _text(path), re.MULTILINE)
    return match.group(1) if match else ""


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip().strip("\0").strip()
    return ""
