"""
A Debian 13 system to break: a cached root, an overlay on it, booted with systemd-nspawn.

The cached root is never written to after it was made; each machine writes to an overlay that is thrown away. Commands
enter the container with nsenter, because `systemd-run -M` needs machined on the host.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil
import pytest

SUITE = "trixie"
MIRROR = os.environ.get("EDGETUNE_TEST_MIRROR", "http://deb.debian.org/debian")
# A bare system with a bus and systemd, what `make install` needs, and what a Raspberry Pi owner takes from apt.
PACKAGES = (
    "acl",
    "ca-certificates",
    "dbus",
    "make",
    "procps",
    "python3",
    "python3-onnxruntime",
    "python3-torch",
    "python3-torchvision",
    "python3-venv",
    "systemd-sysv",
)
TOOLS = ("systemd-nspawn", "nsenter", "mount", "chroot")
RUN_TIMEOUT_S = 300.0


def roots_dir() -> Path:
    """Where roots are kept between runs."""
    return Path(os.environ.get("EDGETUNE_TEST_ROOTS", "/var/tmp/edgetune-roots"))


def skip_unless_possible() -> None:
    """Say why, where no container can be booted."""
    if os.geteuid() != 0:
        pytest.skip("booting a Debian root needs root")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (apt-get install systemd-container)")


def base_root() -> Path:
    """
    The cached Debian root, made on first use.

    It counts as whole only once everything in PACKAGES is there: an interrupted debootstrap is done again. They are apt's,
    because debootstrap knows nothing of a package that provides another one.
    """
    root = roots_dir() / SUITE
    if not (root / "usr/bin/dpkg").exists():
        if shutil.which("debootstrap") is None:
            pytest.skip(f"no Debian root in {root}, and debootstrap is not installed to make one")
        making = root.with_name(f"{SUITE}.making")
        shutil.rmtree(making, ignore_errors=True)
        making.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["debootstrap", "--variant=minbase", SUITE, str(making), MIRROR], check=True)
        making.rename(root)
    missing = [name for name in PACKAGES if not list((root / "var/lib/dpkg/info").glob(f"{name}*.list"))]
    if missing:
        command = f"apt-get update && apt-get install -y --no-install-recommends {shlex.join(missing)}"
        enter(root, ["sh", "-c", command], environment={"DEBIAN_FRONTEND": "noninteractive"})
    return root


@contextlib.contextmanager
def overlay(*lower: Path) -> Iterator[Path]:
    """A writable view on roots that stay as they are; what was written is thrown away at the end."""
    scratch = Path(tempfile.mkdtemp(prefix=".overlay-", dir=roots_dir()))
    merged = scratch / "merged"
    for name in ("merged", "upper", "work"):
        (scratch / name).mkdir()
    options = f"lowerdir={':'.join(map(str, lower))},upperdir={scratch / 'upper'},workdir={scratch / 'work'}"
    made = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, str(merged)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        shutil.rmtree(scratch)
        pytest.skip(f"no overlay file system here: {made.stderr.strip()}")
    try:
        yield merged
    finally:
        subprocess.run(["umount", "--lazy", str(merged)], check=True)
        shutil.rmtree(scratch, ignore_errors=True)


def nspawn(root: Path, *arguments: str) -> list[str]:
    """The start of a systemd-nspawn command line that works with and without systemd on the host."""
    on_systemd = Path("/run/systemd/system").is_dir()
    unit = ["--register=no"] if on_systemd else ["--register=no", "--keep-unit"]
    return [
        "systemd-nspawn",
        "--quiet",
        f"--directory={root}",
        f"--machine=edgetune-{uuid.uuid4().hex[:8]}",
        *unit,
        *arguments,
    ]


def nspawn_environment() -> dict[str, str]:
    """systemd 256 and later boot on the unified cgroup hierarchy alone, whatever the host has."""
    return {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}


def enter(
    root: Path,
    command: list[str],
    *,
    environment: Mapping[str, str] = MappingProxyType({}),
    binds: Mapping[Path, str] = MappingProxyType({}),
    writable_binds: Mapping[Path, str] = MappingProxyType({}),
) -> str:
    """Run one command in a root that is not booted, with the host's network; pip's and apt's way in."""
    arguments = ["--pipe", *(f"--setenv={name}={value}" for name, value in environment.items())]
    arguments += [f"--bind-ro={source}:{target}" for source, target in binds.items()]
    arguments += [f"--bind={source}:{target}" for source, target in writable_binds.items()]
    done = subprocess.run(
        [*nspawn(root, *arguments), "--resolv-conf=copy-host", *command],
        env=nspawn_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    if done.returncode != 0:
        raise AssertionError(
            f"{shlex.join(command)} exited {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
    return done.stdout


def pip_environment() -> tuple[dict[str, str], dict[Path, str]]:
    """The host's own way to its package index, for the time of one pip run: settings, and files to bind."""
    environment = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    environment.pop("PIP_FIND_LINKS", None)  # a folder of the host
    environment["PIP_ROOT_USER_ACTION"] = "ignore"
    binds: dict[Path, str] = {}
    certificates = environment.get("PIP_CERT")
    if certificates and Path(certificates).exists():
        environment["PIP_CERT"] = "/run/host-certificates.crt"
        binds[Path(certificates).resolve()] = environment["PIP_CERT"]
    return environment, binds


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command in the container said."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit {self.code}\n{self.out}\n{self.err}"


class Machine:
    """A booted container."""

    def __init__(self, root: Path, console: Path) -> None:
        self.root = root
        self.console = console
        with console.open("wb") as log:
            self._nspawn = subprocess.Popen(
                # Its own network: without one the container may not make any, and PrivateNetwork= would go unnoticed.
                nspawn(root, "--boot", "--console=pipe", "--private-network"),
                env=nspawn_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._init = self._wait_for_init()
        self.wait_until(
            lambda: self.run("systemctl", "is-system-running").out.strip() in {"running", "degraded"}, "the boot"
        )

    def _wait_for_init(self) -> int:
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s:
            if self._nspawn.poll() is not None:
                raise AssertionError(f"systemd-nspawn ended: {self.console.read_text(errors='replace')[-4000:]}")
            for child in psutil.Process(self._nspawn.pid).children():
                if child.name() in {"systemd", "init"}:
                    return child.pid
            time.sleep(0.1)
        raise AssertionError(f"no init after a minute: {self.console.read_text(errors='replace')[-4000:]}")

    def run(
        self, *command: str, user: str | None = None, timeout_s: float = RUN_TIMEOUT_S, stdin: str = ""
    ) -> Finished:
        """Run a command inside, as root or as somebody, and wait for it."""
        as_user = [] if user is None else ["runuser", "--user", user, "--"]
        done = subprocess.run(
            ["nsenter", f"--target={self._init}", "--all", "--", "/usr/bin/env", "--chdir=/", "-i",
             "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8",
             *as_user, *command],
            input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        return Finished(done.returncode, done.stdout, done.stderr)

    def must(self, *command: str, user: str | None = None, timeout_s: float = RUN_TIMEOUT_S, stdin: str = "") -> str:
        """Run a command that has to succeed; its output."""
        done = self.run(*command, user=user, timeout_s=timeout_s, stdin=stdin)
        assert done.code == 0, f"{shlex.join(command)}: {done}\n{self.journal()}"
        return done.out

    def write(self, path: str, text: str) -> None:
        """Lay a file down inside, as root."""
        self.must(
            "sh", "-c", f"mkdir -p {shlex.quote(str(Path(path).parent))} && cat > {shlex.quote(path)}", stdin=text
        )

    def show(self, name: str, unit: str = "edgetune.service") -> str:
        """One property of a unit."""
        return self.must("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def journal(self, lines: int = 60) -> str:
        """The service's last lines, less what Debian's onnx and onnxruntime say about each other."""
        out = self.run("journalctl", "--no-pager", "--unit=edgetune.service").out
        return "\n".join([line for line in out.splitlines() if "Schema error: Trying" not in line][-lines:])

    def wait_until(self, is_so: Callable[[], bool], what: str, *, timeout_s: float = 120.0) -> None:
        """Look until something is so."""
        deadline_s = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < deadline_s, f"{what} did not happen in {timeout_s:.0f} s\n{self.journal()}"
            time.sleep(0.2)

    def power_off(self) -> None:
        """Shut down as a power button does; pull the plug after a minute."""
        if self._nspawn.poll() is None:
            self._nspawn.send_signal(signal.SIGTERM)
            try:
                self._nspawn.wait(timeout=120)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait(timeout=30)
