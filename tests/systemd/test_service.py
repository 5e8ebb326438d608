"""The unit under a real systemd: what an operator does with systemctl, and what goes wrong on a board."""

from __future__ import annotations

import re

import board_life
import pytest
from board_life import answer, call, is_answering, status
from conftest import CONFIG, SOURCE
from debian_root import Machine

pytestmark = pytest.mark.systemd

EXPOSURE_MAX = 2.0  # of 10, by `systemd-analyze security`


def test_install_lays_everything_down(machine: Machine) -> None:
    """`make install` leaves a program, a unit that systemd accepts, a user, a configuration and an inbox."""
    assert "edgetune" in machine.must("edgetune", "version")
    machine.must("systemd-analyze", "verify", "/etc/systemd/system/edgetune.service")
    assert machine.must("id", "--name", "--user", "edgetune").strip() == "edgetune"
    assert (
        machine.must("stat", "--format=%A %U:%G", "/var/lib/edgetune/inbox").strip() == "drwxrws--- edgetune:edgetune"
    )
    machine.must("edgetune", "config", "check", "--config", "/etc/edgetune/config.yaml")


def test_start_tells_systemd_in_words(service: Machine) -> None:
    """`systemctl start` returns once the socket answers, and `systemctl status` says what the service does."""
    assert is_answering(service)
    assert service.show("ActiveState") == "active"
    board_life.import_first_model(service)
    words = f"serving version {status(service)['served']['version']}"
    service.wait_until(lambda: words in service.show("StatusText"), "the words")
    assert "samples" in service.must("systemctl", "status", "--no-pager", "edgetune.service")


def test_a_member_of_the_group_predicts_and_a_stranger_is_refused(service: Machine) -> None:
    """The socket's group may ask and label but not train; others may not even connect."""
    board_life.import_first_model(service)
    board_life.take_pictures(service, first=9000, count=1)
    picture = "/home/alice/pictures/noon/9000.png"
    told = answer(service, "POST", "/v1/predict", picture, user="alice")
    assert told["model_version"] >= 1
    answer(service, "POST", f"/v1/predictions/{told['prediction_id']}/label", {"label": "noon"}, user="alice")
    service.must("edgetune", "predict", picture, user="alice")

    forbidden = call(service, "POST", "/v1/rounds", {"kind": "adapt"}, user="alice")
    assert forbidden.code == 1
    assert forbidden.err.startswith("forbidden:")
    stranger = call(service, "GET", "/v1/status", user="bob")
    assert stranger.code == 1
    assert stranger.err.startswith("forbidden:")
    assert service.run("ls", "/var/lib/edgetune", user="bob").code != 0
    service.must("rm", "-r", "/home/alice/pictures")


def test_a_member_drops_images_and_cannot_read_the_others(service: Machine) -> None:
    """Folders that alice makes with an ordinary umask are emptied by the daemon; the database stays closed to her."""
    board_life.import_first_model(service)
    before = status(service)["buffer"]["samples"]
    board_life.take_pictures(service, first=8000, count=3)
    board_life.drop_pictures(service)
    service.wait_until(lambda: status(service)["buffer"]["samples"] == before + 6, "taking six pictures in")
    service.wait_until(
        lambda: service.must("find", "/var/lib/edgetune/inbox", "-type", "f") == "", "the removal of what was taken"
    )
    assert service.run("ls", "/var/lib/edgetune", user="alice").code != 0
    assert service.run("cat", "/var/lib/edgetune/edgetune.db", user="alice").code != 0


def test_the_trainer_runs_below_the_daemon(service: Machine) -> None:
    """The sandbox lets the daemon make its trainer nicer, and offer it first when memory ends; both share no network."""
    board_life.import_first_model(service)
    board_life.fill_buffer(service, at_least=120)
    trainer = board_life.start_round(service)
    daemon = service.show("MainPID")
    # Its nice value is set right after the start.
    service.wait_until(lambda: service.must("ps", "-o", "ni=", "-p", str(trainer)).strip() == "15", "the nice value")
    assert service.must("cat", f"/proc/{trainer}/oom_score_adj").strip() == "500"
    # -200 by the unit; a container may not go below what it was started with.
    assert int(service.must("cat", f"/proc/{daemon}/oom_score_adj")) <= 0
    network = service.must("readlink", f"/proc/{trainer}/ns/net")
    assert network == service.must("readlink", f"/proc/{daemon}/ns/net")
    assert network != service.must("readlink", "/proc/1/ns/net")
    board_life.end_round(service)


def test_a_killed_trainer_is_one_failed_round(service: Machine) -> None:
    """SIGKILL of the trainer, as the kernel does when memory ends: the service goes on and names the outcome."""
    board_life.import_first_model(service)
    board_life.fill_buffer(service, at_least=120)
    daemon = service.show("MainPID")
    service.must("kill", "-KILL", str(board_life.start_round(service)))
    service.wait_until(lambda: status(service)["round"]["state"] != "training", "the end of the round")
    assert service.show("MainPID") == daemon
    assert service.show("NRestarts") == "0"
    assert board_life.rounds(service)[0]["outcome"] == "killed"


def test_a_killed_daemon_comes_back_and_takes_its_trainer_along(service: Machine) -> None:
    """SIGKILL of the daemon: no trainer outlives it, systemd starts it again, and the same version is served."""
    board_life.import_first_model(service)
    board_life.fill_buffer(service, at_least=120)
    version = status(service)["served"]["version"]
    trainer = board_life.start_round(service)
    daemon = service.show("MainPID")
    service.must("kill", "-KILL", daemon)
    service.wait_until(
        lambda: service.run("test", "-e", f"/proc/{trainer}").code != 0, "the end of the trainer", timeout_s=20
    )
    service.wait_until(lambda: service.show("MainPID") not in {"0", daemon} and is_answering(service), "the restart")
    assert service.show("NRestarts") == "1"
    assert status(service)["served"]["version"] == version
    board_life.end_round(service)


def test_the_watchdog_restarts_a_hung_daemon(service: Machine) -> None:
    """A daemon that makes no tick any more is killed by systemd and started again."""
    daemon = service.show("MainPID")
    service.must("kill", "-STOP", daemon)
    service.wait_until(lambda: service.show("MainPID") not in {"0", daemon} and is_answering(service), "the restart")
    assert service.show("NRestarts") == "1"
    assert "Watchdog timeout" in service.must(
        "journalctl", "--no-pager", "--unit=edgetune.service", "--grep=Watchdog timeout"
    )


def test_stop_ends_within_the_time_out(service: Machine) -> None:
    """`systemctl stop` in the middle of a round: a checkpoint, a clean exit, and nothing left running."""
    board_life.import_first_model(service)
    board_life.fill_buffer(service, at_least=120)
    board_life.start_round(service)
    assert board_life.seconds(lambda: service.must("systemctl", "stop", "edgetune.service")) < 60
    assert service.show("Result") == "success"
    assert service.run("pgrep", "--uid", "edgetune").out == ""
    service.must("systemctl", "start", "edgetune.service")
    service.wait_until(lambda: bool(board_life.trainers(service)), "the resumption of the round")
    assert status(service)["round"]["id"] == board_life.rounds(service)[0]["id"]
    board_life.end_round(service)


def test_reload_swaps_the_configuration_whole(service: Machine) -> None:
    """`systemctl reload` takes a valid change in the same process and keeps the old one when the new is wrong."""
    daemon = service.show("MainPID")
    service.write("/etc/edgetune/config.yaml", CONFIG.replace("new_samples: 1000", "new_samples: 777"))
    service.must("systemctl", "reload", "edgetune.service")
    service.wait_until(lambda: answer(service, "GET", "/v1/config")["triggers"]["new_samples"] == 777, "the reload")
    service.write("/etc/edgetune/config.yaml", CONFIG.replace("new_samples: 1000", "new_samples: -1\n  typo: 3"))
    service.must("systemctl", "reload", "edgetune.service")
    service.wait_until(lambda: "config.yaml:" in service.journal(20), "the complaint")
    assert answer(service, "GET", "/v1/config")["triggers"]["new_samples"] == 777
    assert service.show("MainPID") == daemon
    assert service.show("ActiveState") == "active"


def test_a_bad_configuration_ends_with_78_and_no_restart_loop(service: Machine) -> None:
    """A mistake does not heal by trying again: one start, exit code 78, and the line of the mistake in the journal."""
    service.must("systemctl", "stop", "edgetune.service")
    service.write("/etc/edgetune/config.yaml", CONFIG + "\nbudgetz: {}\n")
    assert service.run("systemctl", "start", "edgetune.service").code != 0
    # Longer than RestartSec: a restart would have happened by now.
    service.must("sleep", "4")
    assert service.show("ActiveState") == "failed"
    assert service.show("ExecMainStatus") == "78"
    assert service.show("NRestarts") == "0"
    assert re.search(r"config\.yaml:\d+.*budgetz", service.journal(20))


def test_the_sandbox_is_tight(service: Machine) -> None:
    """`systemd-analyze security` gives the running unit at most 2.0 of 10."""
    report = service.run("systemd-analyze", "security", "--no-pager", "edgetune.service").out
    found = re.search(r"exposure level for edgetune\.service: ([0-9.]+)", report)
    assert found is not None, report
    print(f"systemd-analyze security: {found[1]}")
    assert float(found[1]) <= EXPOSURE_MAX, report


def test_uninstall_stops_the_service_and_keeps_what_is_the_operators(service: Machine) -> None:
    """`make uninstall` on a running board: no unit, no program, no process; samples, models, configuration stay."""
    # The last test of this file: what it removes is not installed again.
    for name in ("Makefile", "systemd/before-uninstall"):
        service.write(f"/root/source/{name}", (SOURCE / name).read_text())
    service.must("make", "-C", "/root/source", "uninstall")
    assert service.show("LoadState") == "not-found"
    assert service.run("pgrep", "--full", "edgetune").out == ""
    assert service.run("edgetune", "version").code != 0
    assert service.run("ls", "/opt/edgetune").code != 0
    for kept in ("/etc/edgetune/config.yaml", "/var/lib/edgetune/edgetune.db", "/var/lib/edgetune/models"):
        service.must("test", "-e", kept)
