"""
jetson-stats itself, with its own service under systemd, on the tree of a Jetson Orin Nano: what a stand-in cannot prove.

jtop's service sees the tree in place of /sys; edgetune's sees this machine's /sys, which has no sensor, so that what it says of
power and temperature can come from jtop alone.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from typing import Any

import board_life
import pytest
import trees
from board_life import PYTHON, is_answering, status
from conftest import CONFIG, installed
from debian_root import Machine

pytestmark = pytest.mark.jtop

BOARD = "/opt/board"
CURRENT = f"{BOARD}/sys/class/hwmon/hwmon1/curr1_input"
I2C_CURRENT = f"{BOARD}/sys/bus/i2c/devices/1-0040/hwmon/hwmon1/curr1_input"
TREE = {
    **trees.as_devices(trees.ORIN_NANO),
    "sys/devices/virtual/dmi/id/board_name": "not looked at",  # jtop on x86 lists this folder
    "sys/kernel/debug/nvmap/iovmm/maps": "CLIENT PROCESS PID SIZE\nuser systemd 1 2048K\ntotal 2048K",
    **{f"sys/devices/system/cpu/cpu{number}/online": "1" for number in range(os.cpu_count() or 1)},
}
ON_THE_TREE = f"[Service]\nBindReadOnlyPaths={BOARD}/sys:/sys\n"
# A budget that jtop alone can measure: the start has to wait for its first reading.
BUDGETED = CONFIG.replace("budgets: {", "budgets: {power_max: 10W, ")


@pytest.fixture(scope="module")
def jetson(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Debian 13 with edgetune and jetson-stats, installed as docs/operations.md says."""
    with installed(extras="train,jetson") as root:
        trees.plant(root / BOARD.lstrip("/"), TREE)
        trees.plant(root, {"etc/nv_tegra_release": TREE["etc/nv_tegra_release"]})
        machine = Machine(root, tmp_path_factory.mktemp("console") / "console.log")
        try:
            machine.must("ln", "-s", "/opt/edgetune/bin/jtop", "/usr/local/bin/jtop")
            machine.write("/etc/systemd/system/jtop.service.d/board.conf", ON_THE_TREE)
            machine.must("jtop", "--install-service")
            machine.must("usermod", "--append", "--groups", "jtop", "edgetune")
            machine.must("systemctl", "restart", "jtop.service")
            yield machine
        finally:
            machine.power_off()


@pytest.fixture
def service(jetson: Machine) -> Machine:
    """edgetune beside jtop, whatever the test before did to either."""
    jetson.write("/etc/edgetune/config.yaml", BUDGETED)
    draw(jetson, 952)
    jetson.must("systemctl", "restart", "jtop.service")
    jetson.run("systemctl", "reset-failed", "edgetune.service")
    jetson.must("systemctl", "restart", "edgetune.service")
    assert is_answering(jetson)
    return jetson


def draw(machine: Machine, milliamperes: int) -> None:
    """Let the board's input draw a current at 5.04 V."""
    for path in (CURRENT, I2C_CURRENT):
        machine.must("sh", "-c", f"echo {milliamperes} > {shlex.quote(path)}")


def power(machine: Machine) -> dict[str, Any]:
    """What edgetune says of the board's power."""
    found: dict[str, Any] = status(machine)["readings"]["power_w"]
    return found


def wait_for_power(machine: Machine, watts: float) -> None:
    """Until the daemon reads it."""
    machine.wait_until(
        lambda: (power(machine)["value"] or 0) == pytest.approx(watts, abs=0.01), f"{watts} W, {power(machine)}"
    )


def test_the_probe_says_what_the_service_reads(jetson: Machine) -> None:
    """Units right to the factor of 1,000: 5040 mV x 952 mA, the hottest zone but the PMIC's, KiB of the GPU's memory."""
    print(jetson.must("/opt/edgetune/bin/pip", "show", "jetson-stats").splitlines()[1])
    jetson.wait_until(lambda: jetson.run("test", "-S", "/run/jtop.sock").code == 0, "jtop's socket")
    told = jetson.run("timeout", "10", PYTHON, "-m", "edgetune.device.jtop_probe", user="edgetune").out
    lines = [json.loads(line) for line in told.splitlines()]
    assert len(lines) > 3, f"{told}\n{jetson.run('journalctl', '--no-pager', '--unit=jtop.service').out[-3000:]}"
    for line in lines:
        assert line["power_w"] == pytest.approx(5.040 * 0.952, abs=0.002)
        assert line["soc_temp_c"] == pytest.approx(49.312)
        assert line["gpu_mib"] == {"1": 2.0}


def test_the_service_starts_on_a_budget_that_jtop_alone_can_measure(service: Machine) -> None:
    """It waits for the first reading instead of refusing the key, and then follows the board."""
    wait_for_power(service, 5.040 * 0.952)
    assert power(service)["source"] == "jtop"
    assert power(service)["age_s"] < 10
    assert status(service)["readings"]["soc_temp_c"]["source"] == "jtop"
    draw(service, 1500)
    wait_for_power(service, 5.040 * 1.5)
    assert "power" in service.must("edgetune", "doctor", "--quick")


@pytest.mark.parametrize("whom", ["all of it", "the one that measures"])
def test_a_service_that_hangs_is_unknown_until_it_goes_on(service: Machine, whom: str) -> None:
    """Stopped as a whole it is silent; with its measuring process stopped its client may repeat the last reading."""
    wait_for_power(service, 5.040 * 0.952)
    if whom == "all of it":
        stop, go_on = (["systemctl", "kill", f"--signal={name}", "jtop.service"] for name in ("STOP", "CONT"))
    else:
        main = service.show("MainPID", "jtop.service")
        worker = service.must("pgrep", "--newest", "--parent", main).strip()
        stop, go_on = (["kill", f"-{name}", worker] for name in ("STOP", "CONT"))
    service.must(*stop)
    draw(service, 1900)
    service.wait_until(lambda: power(service)["value"] is None, "the power is unknown")
    assert power(service)["why_unknown"]
    assert is_answering(service)
    assert "power_w unknown" in " ".join(status(service)["verdict"]["reasons"])
    service.must(*go_on)
    wait_for_power(service, 5.040 * 1.9)


def test_a_service_that_is_restarted_is_found_again(service: Machine) -> None:
    """jtop's client cannot reconnect; a new probe can."""
    wait_for_power(service, 5.040 * 0.952)
    draw(service, 1200)
    service.must("systemctl", "restart", "jtop.service")
    wait_for_power(service, 5.040 * 1.2)


def test_a_service_that_vanishes_is_unknown_and_nothing_else_suffers(service: Machine) -> None:
    """With its program too: edgetune serves on, says why, and finds it when it is back."""
    board_life.import_first_model(service)
    wait_for_power(service, 5.040 * 0.952)
    service.must("systemctl", "stop", "jtop.service")
    service.must("mv", "/opt/edgetune/lib/python3.13/site-packages/jtop", "/root/jtop")
    service.wait_until(lambda: "jtop" in power(service)["why_unknown"], "the reason")
    print(power(service)["why_unknown"])
    assert is_answering(service)
    assert status(service)["served"]["version"] >= 1
    service.must("mv", "/root/jtop", "/opt/edgetune/lib/python3.13/site-packages/jtop")
    service.must("systemctl", "start", "jtop.service")
    wait_for_power(service, 5.040 * 0.952)
