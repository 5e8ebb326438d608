"""A stranger's path: the built wheel in an empty environment without the extra `train`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import picture, publish_factory
from site_on_disk import COLOURS, drop, write_config

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_the_wheel_serves_without_torch_and_says_what_to_install_for_a_round(tmp_path: Path) -> None:
    """Only what the wheel declares is there; the daemon serves, and a round ends in one clear sentence."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    bin_dir = tmp_path / "venv" / "bin"
    subprocess.run([str(bin_dir / "pip"), "install", "--quiet", str(wheel)], check=True)
    publish_factory(tmp_path / "state")
    config = write_config(tmp_path)
    drop(tmp_path, 40)
    (tmp_path / "cat.png").write_bytes(picture(COLOURS["cat"], 1))

    def edgetune(*arguments: str) -> str:
        command = [str(bin_dir / "edgetune"), *arguments, "--socket", str(tmp_path / "run" / "edgetune.sock"), "--json"]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout

    with (tmp_path / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [str(bin_dir / "edgetune"), "run", "--config", str(config)], stdout=log, stderr=log, cwd=tmp_path
        )
        try:
            last = None
            for _ in range(300):
                time.sleep(0.2)
                assert daemon.poll() is None, (tmp_path / "log").read_text()
                if (tmp_path / "run" / "edgetune.sock").exists():
                    last = json.loads(edgetune("status"))["last_round"]
                    if last:
                        break
            assert last is not None, (tmp_path / "log").read_text()
            assert last["outcome"] == "missing_library"
            assert "pip install 'edgetune[train]'" in last["message"]
            assert '"model_version": 1' in edgetune("predict", str(tmp_path / "cat.png"))
        finally:
            daemon.terminate()
            daemon.wait(timeout=60)
    listed = subprocess.run([str(bin_dir / "pip"), "list"], check=True, capture_output=True, text=True).stdout
    assert "torch" not in listed
