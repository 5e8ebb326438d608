"""What `make install` lays down, staged into a directory: no root, no network, no systemd needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent.parent
EXPOSURE_MAX = 2.0


def make(target: str, stage: Path, *settings: str) -> None:
    """Run one target of the Makefile with DESTDIR."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = subprocess.run(
        ["make", "--no-print-directory", "-C", str(SOURCE), target, f"DESTDIR={stage}", *settings],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def files_below(stage: Path) -> set[str]:
    """Paths of all files, relative to the stage."""
    return {str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file() or path.is_symlink()}


def test_files_go_where_a_board_expects_them(tmp_path: Path) -> None:
    """Unit, user, inbox, configuration and documentation; nothing outside DESTDIR."""
    make("install-files", tmp_path)
    assert {
        "etc/edgetune/config.yaml",
        "etc/systemd/system/edgetune.service",
        "etc/sysusers.d/edgetune.conf",
        "etc/tmpfiles.d/edgetune.conf",
        "opt/edgetune/share/doc/edgetune/operations.md",
    } <= files_below(tmp_path)
    assert (tmp_path / "etc/edgetune/config.yaml").read_bytes() == (SOURCE / "config.yaml").read_bytes()


def test_a_configuration_that_is_there_is_kept(tmp_path: Path) -> None:
    """An upgrade lays the new defaults beside the operator's file and does not touch it."""
    mine = tmp_path / "etc/edgetune/config.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("log: {level: debug}\n")
    make("install-files", tmp_path)
    assert mine.read_text() == "log: {level: debug}\n"
    assert mine.with_name("config.yaml.new").read_bytes() == (SOURCE / "config.yaml").read_bytes()


def test_another_prefix_reaches_the_unit(tmp_path: Path) -> None:
    """PREFIX and SYSCONFDIR are written into the unit."""
    make("install-files", tmp_path, "PREFIX=/usr/lib/edgetune", "SYSCONFDIR=/usr/local/etc")
    unit = (tmp_path / "etc/systemd/system/edgetune.service").read_text()
    assert "ExecStart=/usr/lib/edgetune/bin/edgetune run --config /usr/local/etc/edgetune/config.yaml" in unit
    assert "/opt/edgetune" not in unit


def test_uninstall_keeps_what_is_the_operators(tmp_path: Path) -> None:
    """Program and unit go; configuration, samples and models stay."""
    make("install-files", tmp_path)
    sample = tmp_path / "var/lib/edgetune/edgetune.db"
    sample.parent.mkdir(parents=True)
    sample.write_bytes(b"samples")
    make("uninstall", tmp_path)
    assert files_below(tmp_path) == {"etc/edgetune/config.yaml", "var/lib/edgetune/edgetune.db"}


def test_the_unit_as_written_is_tight() -> None:
    """`systemd-analyze security --offline` gives the unit at most 2.0 of 10."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(SOURCE / "systemd/edgetune.service")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.search(r"exposure level for edgetune\.service: ([0-9.]+)", done.stdout)
    if found is None:
        pytest.skip(f"systemd-analyze cannot look at a unit offline here (needs systemd 250): {done.stderr.strip()}")
    assert float(found[1]) <= EXPOSURE_MAX
