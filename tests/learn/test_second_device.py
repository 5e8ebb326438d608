"""Tests of what trains, again where training is on another device than the CPU: nothing is left behind on either."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

TESTS = Path(__file__).parents[1]
QUICK = (
    ("learn/test_compress.py", "each_kind"),
    ("learn/test_imprint_round.py", "eight_images"),
    ("learn/test_unseen_classes.py", "is_learnt_and_marked"),
)
WHOLE = (
    "cli/test_prune.py",
    "learn/test_absent_classes.py",
    "learn/test_compress.py",
    "learn/test_imprint_round.py",
    "learn/test_learning_rounds.py",
    "learn/test_partial.py",
    "learn/test_student.py",
    "learn/test_unlabelled.py",
    "learn/test_unseen_classes.py",
    "test_trainer.py",
)

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch takes no device that is written in Python",
)


def run_there(file: str, which: str) -> None:
    """Run tests of a file in a process of their own, for a device is registered once and for all."""
    # Not channels_last: what `layout.arrange` avoids on a CPU it does not avoid here, where the CPU still computes.
    words = [sys.executable, "-m", "pytest", "-q", "-p", "second_device", "-k", f"({which}) and not channels_last"]
    path = os.pathsep.join([str(Path(__file__).parent), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*words, str(TESTS / file)], cwd=TESTS.parent, env={**os.environ, "PYTHONPATH": path}, text=True,
        capture_output=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.parametrize(("file", "which"), QUICK)
def test_training_leaves_nothing_on_the_cpu(file: str, which: str) -> None:
    """The tests' own assertions hold, and no operation met tensors of both devices."""
    run_there(file, which)


@pytest.mark.slow
@pytest.mark.parametrize("file", WHOLE)
def test_everything_that_trains_does_so_on_another_device(file: str) -> None:
    """All that a file tests."""
    run_there(file, "not second")


def test_what_is_left_on_the_cpu_is_found() -> None:
    """Otherwise this would show nothing."""
    words = (
        "import second_device as s, torch\n"
        "layer = torch.nn.Linear(2, 2).to(s.DEVICE)\n"
        "print(layer(torch.zeros(1, 2, device=s.DEVICE)).device)\n"
        "layer(torch.zeros(1, 2))"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(TESTS.parent)])
    done = subprocess.run(
        [sys.executable, "-c", words],
        env={**os.environ, "PYTHONPATH": path},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.stdout.strip() == "second:0"
    assert "is on the CPU" in done.stderr
