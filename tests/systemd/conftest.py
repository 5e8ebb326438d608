"""One booted Debian 13 with edgetune installed as an operator would, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import board_life
import debian_root
import pytest
from debian_root import Machine

SOURCE = Path(__file__).parent.parent.parent

# Small enough that a round takes a minute on two cores, with a watchdog and a settle time that a test can wait for.
CONFIG = """
inbox: {settle: 1s, scan_interval: 2s}
buffer: {readings_interval: 1s, validation: 20%, holdout: 20%, group_block: 1s}
triggers: {new_samples: 1000, cooldown: 1s}
budgets: {interval: 1s, memory_available_min: 100MiB, trainer_memory_max: 3GiB, disk_free_min: 100MiB, stop_grace: 20s}
pruning: {level: 30%, search: none, scoring_batches: 2}
training: {epochs_before: 6, epochs_after: 6, learning_rate_before: 0.02, batch_size: 16, augment: none, checkpoint_steps: 5, timing_runs: 5}
gate: {holdout_min: 5, class_min: 100, accuracy_drop_max: 100pp, class_drop_max: 100pp, latency_ratio_max: 10}
probation: {duration: 0s}
"""
DROP_IN = """
[Service]
WatchdogSec=8
TimeoutAbortSec=2
RestartSec=1
"""


@contextmanager
def installed(*, extras: str = "train") -> Iterator[Path]:
    """Debian 13 after `make install SITE_PACKAGES=1`: torch and ONNX Runtime from apt, the rest from the index."""
    debian_root.skip_unless_possible()
    base = debian_root.base_root()
    with debian_root.overlay(base) as root:
        environment, binds = debian_root.pip_environment()
        cache = debian_root.roots_dir() / "pip-cache"
        cache.mkdir(exist_ok=True)
        (root / "root/.cache/pip").mkdir(parents=True, exist_ok=True)
        debian_root.enter(
            root,
            ["make", "-C", "/run/source", "install", "SITE_PACKAGES=1", f"EXTRAS={extras}"],
            environment=environment,
            binds={**binds, SOURCE: "/run/source"},
            writable_binds={cache: "/root/.cache/pip"},
        )
        yield root


@pytest.fixture(scope="session")
def installed_root() -> Iterator[Path]:
    """That system, as most boards have it."""
    with installed() as root:
        yield root


@pytest.fixture(scope="session")
def machine(installed_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """That system, booted, with a member of the group edgetune (alice) and a stranger (bob)."""
    booted = Machine(installed_root, tmp_path_factory.mktemp("console") / "console.log")
    try:
        booted.must("useradd", "--create-home", "--groups", "edgetune", "alice")
        booted.must("useradd", "--create-home", "bob")
        booted.write("/etc/systemd/system/edgetune.service.d/test.conf", DROP_IN)
        booted.must("systemctl", "daemon-reload")
        yield booted
    finally:
        booted.power_off()


@pytest.fixture
def service(machine: Machine) -> Machine:
    """The service running on a valid configuration, whatever the test before did to it."""
    machine.write("/etc/edgetune/config.yaml", CONFIG)
    machine.run("systemctl", "reset-failed", "edgetune.service")
    machine.must("systemctl", "restart", "edgetune.service")
    board_life.end_round(machine)
    return machine
