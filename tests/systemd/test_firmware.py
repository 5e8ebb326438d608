"""A Raspberry Pi's firmware from within the unit's sandbox: closed by default, and opened by what the documentation says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trees
from board_life import is_answering, status
from conftest import CONFIG, SOURCE
from debian_root import Machine

pytestmark = pytest.mark.systemd

BOARD = "/opt/pi"
UNIT = "/etc/systemd/system/edgetune.service.d"
BUDGETED = CONFIG.replace("budgets: {", "budgets: {power_max: 15W, ")
COMMAND = f"""#!/bin/sh
[ -r /dev/vcio ] && [ -w /dev/vcio ] || {{ echo "{trees.NOT_IN_VIDEO.splitlines()[0]}"; exit 255; }}
case "$1" in
pmic_read_adc) cat <<'END'
{trees.PMIC}
END
;;
get_throttled) echo throttled=0x50005 ;;
esac
"""


def documented_drop_in() -> str:
    """What docs/operations.md tells the owner of a Pi to add."""
    text = (SOURCE / "docs/operations.md").read_text()
    section = text[text.index("# a Raspberry Pi's firmware") :]
    return "[Service]\n" + section[: section.index("```")]


@pytest.fixture
def pi(machine: Machine) -> Iterator[Machine]:
    """The unit on a Pi 5's /sys, with the firmware's device and a stand-in of its command."""
    tree = {**trees.PI_5, "sys/firmware/devicetree/base/model": trees.PI_5["proc/device-tree/model"]}
    # systemd mounts the control groups in the service's namespace: there must be a place for them
    tree["sys/fs/cgroup/system.slice/edgetune.service/memory.pressure"] = ""
    trees.plant(machine.root / BOARD.lstrip("/"), tree)
    machine.write("/usr/bin/vcgencmd", COMMAND)
    machine.must("chmod", "0755", "/usr/bin/vcgencmd")
    machine.must("sh", "-c", "touch /dev/vcio && chgrp video /dev/vcio && chmod 0660 /dev/vcio")
    machine.write(f"{UNIT}/pi.conf", f"[Service]\nBindReadOnlyPaths={BOARD}/sys:/sys\n")
    machine.write("/etc/edgetune/config.yaml", BUDGETED)
    machine.must("systemctl", "daemon-reload")
    machine.run("systemctl", "reset-failed", "edgetune.service")
    yield machine
    machine.must("rm", "-f", f"{UNIT}/pi.conf", f"{UNIT}/firmware.conf", "/usr/bin/vcgencmd", "/dev/vcio")
    machine.write("/etc/edgetune/config.yaml", CONFIG)
    machine.must("systemctl", "daemon-reload")
    machine.run("systemctl", "reset-failed", "edgetune.service")
    machine.must("systemctl", "restart", "edgetune.service")


def test_the_sandbox_hides_the_firmware_until_the_documented_lines_open_it(pi: Machine) -> None:
    """The refusal names the key and the group; with the lines the service reads watts and why the clocks are held down."""
    assert pi.run("systemctl", "restart", "edgetune.service").code != 0
    said = pi.journal()
    assert "budgets.power_max" in said, said
    assert "group video" in said
    pi.write(f"{UNIT}/firmware.conf", documented_drop_in())
    pi.must("systemctl", "daemon-reload")
    pi.run("systemctl", "reset-failed", "edgetune.service")
    pi.must("systemctl", "restart", "edgetune.service")
    assert is_answering(pi)
    readings = status(pi)["readings"]
    assert readings["power_w"]["value"] == pytest.approx(trees.PMIC_W, abs=0.001)
    assert readings["power_w"]["age_s"] < 15
    assert readings["is_throttled"]["value"] == 1
    assert "voltage is low" in readings["is_throttled"]["source"]
