"""The jtop probe from both sides; jetson-stats itself is not needed."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import trees
from hands import Hands, Load

from edgetune.device.gpu_memory import gpu_memory, nvmap_clients
from edgetune.device.jtop import JtopProbe
from edgetune.device.jtop_probe import reading
from edgetune.device.sensors import BoardSensors
from edgetune.device.sysfs import UnreadableError
from edgetune.types import Measurement, Quantity


def probe(clock: Hands, program: str) -> JtopProbe:
    """A probe that runs a Python program of the test."""
    return JtopProbe(clock=clock, command=(sys.executable, "-c", program), silent_max_s=10, restart_s=5)


def value(made: JtopProbe, field: str) -> tuple[float | None, str]:
    """What it says, or why it says nothing."""
    try:
        return made.value(field).value, ""
    except UnreadableError as error:
        return None, str(error)


def patiently(made: JtopProbe, field: str) -> float | None:
    """Ask until there is an answer: a child process needs real time to start."""
    for _ in range(2000):
        found, _ = value(made, field)
        if found is not None:
            return found
        time.sleep(0.005)
    return None


def test_offline_sensors_and_other_parts_do_not_count() -> None:
    """jtop says -256 for a part that is off, its power is in milliwatts, and memory in KiB by process."""
    stats = SimpleNamespace(
        temperature={
            "cpu": {"temp": 51.5, "online": True}, "gpu": {"temp": -256.0, "online": False},
            "tj": {"temp": 52.25, "online": True}, "cv0": {"temp": -256.0, "online": True},
            "PMIC": {"temp": 100.0, "online": True},
        },
        power={"rail": {}, "tot": {"name": "VDD_IN", "power": 4800}},
        processes=[[77, "root", "I", "G", 20, "S", 0.0, 5000, 2048, "python"], [77, "root", "I", "G", 20, "S", 0.0, 1, 1024, "python"]],
    )  # fmt: skip
    assert reading(stats) == {"soc_temp_c": 52.25, "power_w": 4.8, "gpu_mib": {"77": 3.0}}


@pytest.mark.parametrize(
    ("stats", "power_w", "temp_c"),
    [
        (SimpleNamespace(temperature={}, power={}, processes=[]), None, None),
        (SimpleNamespace(), None, None),
        (SimpleNamespace(power=({"cur": 3100, "avg": 3000}, {}), temperature={"BCPU": 42.5, "GPU": 39.0}), 3.1, 42.5),
        (SimpleNamespace(power={"tot": {"watts": 3}}, temperature={"cpu": {"temp": "n/a"}, "tj": {"temp": 44.0}}), None, 44.0),
        (SimpleNamespace(power=None, temperature=None, processes=[["text"]]), None, None),
    ],
)  # fmt: skip
def test_another_version_of_jtop_gives_what_is_understood(
    stats: SimpleNamespace, power_w: float | None, temp_c: float | None
) -> None:
    """Version 3 had a pair for the power and numbers for the temperatures; one to come may have anything."""
    found = reading(stats)
    assert (found["power_w"], found["soc_temp_c"]) == (power_w, temp_c)


def test_readings_of_a_live_probe_reach_the_sensors(tmp_path: Path) -> None:
    """What /sys does not give, jtop does."""
    clock = Hands()
    made = probe(clock, "import time; print('noise'); print('{\"power_w\": 7.5}', flush=True); time.sleep(600)")
    try:
        assert patiently(made, "power_w") == 7.5
        assert value(made, "soc_temp_c") == (None, "jtop does not give soc_temp_c")
        found = BoardSensors(tmp_path, clock=clock, disk_path=tmp_path, jtop=made).read(None).values[Quantity.POWER_W]
        assert (found.value, found.source, found.resolution) == (7.5, "jtop", 0.001)
        clock.at_s += 4
        assert made.value("power_w").age_s == pytest.approx(4)
    finally:
        made.stop()


def test_a_silent_probe_is_killed_and_started_again() -> None:
    """Its old reading is none, and the new process is another one."""
    clock = Hands()
    made = probe(clock, "import time; print('{\"power_w\": 7.5}', flush=True); time.sleep(600)")
    try:
        assert patiently(made, "power_w") == 7.5
        clock.at_s += 11
        found, why = value(made, "power_w")
        assert found is None
        assert "silent" in why
        assert made.starts == 2
        assert patiently(made, "power_w") == 7.5
    finally:
        made.stop()


def test_a_probe_that_fails_says_why_and_is_restarted_ever_more_rarely() -> None:
    """Without jetson-stats it must not be started in every tick."""
    clock = Hands()
    made = probe(clock, 'print(\'{"error": "No module named jtop"}\')')
    try:
        for _ in range(2000):
            if "jtop" in (why := value(made, "power_w")[1]) and "No module" in why:
                break
            time.sleep(0.005)
        assert "No module named jtop" in why
        for _ in range(600):
            clock.at_s += 1
            value(made, "power_w")
        assert 3 <= made.starts <= 9
    finally:
        made.stop()


def test_the_real_probe_without_jetson_stats_ends_with_a_reason() -> None:
    """The program itself, as the daemon starts it."""
    pytest.importorskip("sys")
    try:
        import jtop  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("jetson-stats is installed here")
    clock = Hands()
    made = JtopProbe(clock=clock)
    try:
        for _ in range(4000):
            if "ModuleNotFoundError" in value(made, "power_w")[1]:
                break
            time.sleep(0.005)
        assert "ModuleNotFoundError" in value(made, "power_w")[1]
    finally:
        made.stop()


@pytest.mark.parametrize("text", ["NaN", "-3", '"hot"', "9e9", "true", "null", "[]"])
def test_what_cannot_be_is_unknown_from_jtop_too(tmp_path: Path, text: str) -> None:
    """A service that lies."""
    clock = Hands()
    made = probe(
        clock,
        f'import time; print(\'{{"power_w": {text.replace(chr(34), chr(92) + chr(34))}, "soc_temp_c": 40}}\', flush=True); time.sleep(600)',
    )
    try:
        assert patiently(made, "soc_temp_c") == 40
        values = BoardSensors(tmp_path, clock=clock, disk_path=tmp_path, jtop=made).read(None).values
        assert values[Quantity.POWER_W].value is None
        assert values[Quantity.SOC_TEMP_C].value == 40
    finally:
        made.stop()


def test_nvmaps_table_in_both_layouts() -> None:
    """K, M and G, with and without the column that counts shared pages once."""
    assert nvmap_clients(trees.NVMAP_CLIENTS) == {
        4481: pytest.approx(118372 / 1024),
        2831: pytest.approx(5384 / 1024),
        1012: 0,
    }
    assert nvmap_clients(trees.NVMAP_CLIENTS_WITH_PSS) == {4481: 2.0}
    assert nvmap_clients("nothing of the kind") == {}


def test_gpu_memory_counts_into_the_trainers(tmp_path: Path) -> None:
    """Where the GPU's memory is the system's it is in no process's resident memory: from nvmap, else from jtop, else said."""
    clock, pid = Hands(), os.getpid()
    root = trees.plant(tmp_path, trees.ORIN_NANO)
    made = probe(
        clock,
        f'import time; print(\'{{"gpu_mib": {{"{pid}": 512.0, "7": 9.0, "x": 1}}}}\', flush=True); time.sleep(600)',
    )

    def memory(**options: object) -> Measurement:
        sensors = BoardSensors(root, clock=clock, disk_path=root, cpu_times=Load(clock), **options)  # type: ignore[arg-type]
        try:
            return sensors.read(pid).values[Quantity.TRAINER_RSS_MIB]
        finally:
            sensors.close()

    try:
        without = memory()
        assert "without the GPU's memory" in without.source
        assert 5 < (without.value or 0) < 5000
        for _ in range(2000):
            try:
                assert gpu_memory(root, made, [pid]).value == 512
                break
            except UnreadableError:
                time.sleep(0.005)
        found = memory(jtop=made)
        assert found.source == "psutil and jtop"
        assert found.value == pytest.approx((without.value or 0) + 512, abs=100)
        trees.plant(root, {"sys/kernel/debug/nvmap/iovmm/clients": trees.NVMAP_CLIENTS.replace("4481", str(pid))})
        found = memory(jtop=made)
        assert found.source == "psutil and nvmap"
        assert found.value == pytest.approx((without.value or 0) + 118372 / 1024, abs=100)
    finally:
        made.stop()


def test_the_start_waits_for_jtops_first_reading(tmp_path: Path) -> None:
    """A budget on power must not be refused because a service takes a second."""
    made = JtopProbe(
        command=(
            sys.executable,
            "-c",
            "import time; time.sleep(0.6); print('{\"power_w\": 7.5}', flush=True); time.sleep(600)",
        )
    )
    sensors = BoardSensors(tmp_path, disk_path=tmp_path, jtop=made)
    try:
        assert sensors.supported()[Quantity.POWER_W].value == 7.5
        assert sensors.gpu_memory() is None  # not on a Jetson
    finally:
        sensors.close()


def test_at_boot_the_start_waits_for_a_service_that_does_not_listen_yet(tmp_path: Path) -> None:
    """The first probe is refused; the next one is not, and a budget on power stands."""
    program = (
        "import pathlib, sys, time\n"
        f"mark = pathlib.Path({str(tmp_path / 'mark')!r})\n"
        "if not mark.exists():\n"
        '    mark.touch(); print(\'{"error": "the jtop.service is not active"}\'); sys.exit(1)\n'
        "print('{\"power_w\": 7.5}', flush=True); time.sleep(600)\n"
    )
    made = JtopProbe(command=(sys.executable, "-c", program), restart_s=0.5)
    sensors = BoardSensors(tmp_path, disk_path=tmp_path, jtop=made)
    try:
        assert sensors.supported()[Quantity.POWER_W].value == 7.5
        assert made.starts == 2
    finally:
        sensors.close()


def test_without_jetson_stats_the_start_does_not_wait(tmp_path: Path) -> None:
    """Nothing will come of it."""
    clock = Hands()
    made = probe(clock, 'print(\'{"error": "ModuleNotFoundError: No module named jtop"}\')')
    sensors = BoardSensors(tmp_path, clock=clock, disk_path=tmp_path, cpu_times=Load(clock), jtop=made)
    try:
        assert sensors.supported()[Quantity.POWER_W].value is None
        assert not made.is_pending
    finally:
        sensors.close()


def test_doctor_asks_jtop_for_the_gpus_memory(tmp_path: Path) -> None:
    """On a Jetson whose other sensors /sys gives, the probe is started for this alone."""
    program = "import time; time.sleep(0.3); print('{\"gpu_mib\": {}}', flush=True); time.sleep(600)"
    root = trees.plant(tmp_path, trees.ORIN_NANO)
    made = JtopProbe(command=(sys.executable, "-c", program))
    sensors = BoardSensors(root, disk_path=root, jtop=made)
    try:
        assert sensors.supported()[Quantity.POWER_W].value == pytest.approx(5.04 * 0.952)
        assert made.starts == 0
        found = sensors.gpu_memory()
        assert found is not None
        assert (found.value, found.source) == (0, "jtop")
    finally:
        sensors.close()
    without = BoardSensors(root, disk_path=root).gpu_memory()
    assert without is not None
    assert "root" in without.why_unknown
