"""`edgetune run` where the state directory cannot be written: the process, its words, its exit code."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgetune.errors import EXIT_FAILED

# Root may write anywhere: as root, run without the capabilities that make it so.
AS_ANYBODY = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()

pytestmark = pytest.mark.skipif(
    bool(AS_ANYBODY) and shutil.which("setpriv") is None, reason="root without setpriv can write everything"
)


def start(root: Path) -> tuple[int, str]:
    """Exit code and last words of a daemon that has to fail."""
    config = root / "config.yaml"
    config.write_text(
        f'paths: {{state_dir: "{root}/state", runtime_dir: "{root}/run"}}\nserving: {{socket_group: null}}\n'
    )
    ended = subprocess.run(
        [*AS_ANYBODY, sys.executable, "-m", "edgetune", "run", "--config", str(config)],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("name", ["", "edgetune.db", "edgetune.db-wal", "models"])
def test_a_path_that_cannot_be_written_is_named_with_its_owner_and_what_to_do(tmp_path: Path, name: str) -> None:
    """Before anything is touched; a directory of somebody else's beside ours is none of our business."""
    state = tmp_path / "state"
    (state / "lost+found").mkdir(parents=True)
    (state / "lost+found").chmod(0o000)
    path = state / name
    if name == "models":
        path.mkdir()
    elif name:
        path.write_bytes(b"")
    path.chmod(0o555)
    try:
        code, err = start(tmp_path)
    finally:
        path.chmod(0o755)
        (state / "lost+found").chmod(0o755)
    assert code == EXIT_FAILED
    kind = "-" if name.startswith("edgetune") else "d"
    user = getpass.getuser()
    assert (
        f"edgetune: {path} cannot be written: it belongs to {user} ({kind}r-xr-xr-x), and edgetune runs as {user}\n"
        in err
    )
    assert f"\n  sudo chmod -R u+rwX {state}\n" in f"\n{err}"
    assert len(err.splitlines()) == 2


def test_a_state_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """With the command that makes it."""
    (tmp_path / "config.yaml").touch()
    tmp_path.chmod(0o555)
    try:
        code, err = start(tmp_path)
    finally:
        tmp_path.chmod(0o755)
    assert code == EXIT_FAILED
    assert (
        f"the state directory {tmp_path}/state does not exist and cannot be made: {tmp_path} cannot be written" in err
    )
    assert f"\n  sudo install -d -m 710 -o {getpass.getuser()} {tmp_path}/state\n" in err
