"""What the owner of a Raspberry Pi gets from apt: Debian 13's Python, torch, torchvision and ONNX Runtime."""

from __future__ import annotations

import board_life
import pytest
from board_life import PYTHON, answer, status
from debian_root import Machine

pytestmark = pytest.mark.debian13

_VERSIONS = """
import sys, onnxruntime, torch, torchvision
print(sys.version_info[:2] >= (3, 13), torch.__version__, torchvision.__version__, onnxruntime.__version__)
print(torch.__file__, torchvision.__file__, onnxruntime.__file__)
"""


def test_torch_and_the_runtime_are_debians_own(machine: Machine) -> None:
    """The virtual environment takes them from the system instead of bringing gigabytes of its own."""
    versions, places = machine.must(PYTHON, "-c", _VERSIONS).splitlines()
    print(versions)
    assert versions.startswith("True 2.6")
    assert all(place.startswith("/usr/lib/python3/dist-packages/") for place in places.split()), places


@pytest.mark.parametrize("kind", ["adapt", "reshape"])
def test_a_whole_round_promotes_a_model(service: Machine, kind: str) -> None:
    """Pictures in the inbox, a round on Debian's torch, and the service answers with the new version."""
    board_life.import_first_model(service)
    board_life.fill_buffer(service, at_least=240)
    before = status(service)["served"]["version"]
    board_life.start_round(service, kind)
    service.wait_until(lambda: not board_life.trainers(service), "the end of the trainer", timeout_s=400)
    service.wait_until(lambda: status(service)["round"]["state"] in {"idle", "cooldown"}, "the gate's answer")
    newest = board_life.rounds(service)[0]
    log = service.run("tail", "-n", "30", f"/var/lib/edgetune/rounds/{newest['id']:04}/trainer.log").out
    assert status(service)["served"]["version"] > before, f"{newest}\n{log}\n{service.journal()}"
    board_life.take_pictures(service, first=9500, count=1)
    told = answer(service, "POST", "/v1/predict", "/home/alice/pictures/noon/9500.png", user="alice")
    assert told["model_version"] == status(service)["served"]["version"]
    service.must("rm", "-r", "/home/alice/pictures")
    report = service.must("edgetune", "status")
    print(report)
    assert f"version {told['model_version']}" in report.lower()
