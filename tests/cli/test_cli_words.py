"""Status in words, and what doctor makes of what it finds."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_status import STATUS

from edgetune.cli import doctor, libraries
from edgetune.cli.readings import QUANTITIES, explain, explain_source
from edgetune.cli.words import as_text, describe
from edgetune.config import Config, parse
from edgetune.daemon.settings import budget_key
from edgetune.decide.budget import judge
from edgetune.types import Limits, Measurement, Quantity, Reading, Verdict, VerdictKind


def said(**changes: Any) -> str:
    """The words of a status that differs from the usual one."""
    status = copy.deepcopy(STATUS)
    for name, value in changes.items():
        status[name] = (
            {**status[name], **value} if isinstance(value, dict) and isinstance(status.get(name), dict) else value
        )
    return as_text(describe(status))


def test_status_says_what_became_of_unlabelled_images() -> None:
    """How many were learnt from and why the others were not; nothing where there were none."""
    text = said(last_round={"unlabelled": {"used": 1200, "unsure": 1040, "inconsistent": 7, "by_class": {}}})
    assert "it learnt from 1,200 unlabelled images by the teacher's word and left 1,047 out" in text
    assert "of 1,040 the teacher was not sure, of 7 not twice" in text
    assert "unlabelled images by" not in said(last_round={})


def test_status_says_what_was_sent_to_a_teacher_and_what_left_the_device() -> None:
    """A file's images stay; a server's are metered, with its address; the warning stands as long as it is switched on."""
    asked = {"images_asked": 1, "images_kept": 1200, "sent_bytes": 3 * 2**20, "received_bytes": 2048, "server": ""}
    text = said(last_round={"teacher": {"kind": "file", **asked}})
    assert "its teacher was asked about 1 image, 1,200 times its answer was kept from before" in text
    assert "left this device" not in text
    text = said(last_round={"teacher": {"kind": "server", **asked, "server": "https://cloud.example/v2/models/m"}})
    assert "images left this device: 3MiB were sent to https://cloud.example/v2/models/m, 2KiB came back" in text


def test_status_says_what_is_served_and_how_good_it_is() -> None:
    """Version, origin, accuracy with its sample size, size, speed, probation."""
    text = said()
    assert "version 7, cifar:resnet20, 3 classes; made by a round (reshape) from version 1" in text
    assert "91.4 % right on 140 hold-out samples" in text
    assert "on probation for another 2h; falls back to version 6" in text
    assert "1,234 answered, 0 failed, 2 turned away, half within 1.9 ms, 99 of 100 within 4.2 ms" in text


def test_status_names_the_classes_that_carry_a_mark() -> None:
    """One line a mark, in words."""
    text = said(served={"marks": {"tern": "provisional", "gull": "provisional", "crane": "never_seen_here"}})
    assert "provisional: gull, tern" in text
    assert "never seen here: crane" in text
    assert "provisional" not in said()


def test_status_says_how_far_classes_without_samples_can_be_trusted() -> None:
    """Measured on reference images, or unknown and why."""
    absent = {"classes": 3, "reference_images": 60, "accuracy": 0.84, "accuracy_before": 0.9}
    text = said(served={"absent": absent})
    assert "3 classes of it had no samples here: 84.0 % right on 60 reference images of them, 90.0 % before" in text
    unknown = {"classes": 1, "reference_images": 0, "accuracy": None, "accuracy_before": None}
    assert "1 class of it had no samples here: how well it still knows them is unknown" in said(
        served={"absent": unknown}
    )


def test_status_without_a_model_says_how_to_get_one() -> None:
    """The first thing a newcomer sees."""
    assert "edgetune models import --arch ARCH" in said(served=None, probation=None)


def test_status_says_what_is_in_the_buffer_and_what_waits_for_a_word() -> None:
    """A pending class names the command that accepts it."""
    text = said()
    assert "312 samples (300 labelled, 37 of them new to rounds), 3MiB of 2GiB" in text
    assert "new class 'dgo' with 2 samples waits for your word: edgetune data accept dgo" in text
    assert "'gul'" not in text, "its samples were put right: nothing waits"
    assert "3 waiting" in text
    assert "1 in quarantine" in text


def test_status_names_a_class_that_comes_back() -> None:
    """Once it has half of the sightings that it takes; fewer are the factory model's errors."""
    returning = {
        "looked_at": 150, "wanted": 12, "trouble": "",
        "sightings": [{"class": "lamp", "count": 7}, {"class": "clock", "count": 5}], "returned": [],
    }  # fmt: skip
    words = said(returning=returning)
    assert "class 'lamp', which this site had not shown, may be coming back: so far 7 of 12 sightings" in words
    assert "in the last 150 unlabelled images" in words
    assert "clock" not in words
    back = {**returning, "sightings": [], "returned": [{"class": "lamp", "count": 23, "looked_at": 150}]}
    assert "is back: the factory model sees it in 23 of 150 unlabelled images" in said(returning=back)


def test_status_says_how_often_the_model_is_right_without_labels_and_that_the_images_change() -> None:
    """With the error bar, or why it is unknown; and what to do about it."""
    watching = {
        "is_watched": True, "why_unknown": "", "is_low": False, "shift": None, "trouble": "",
        "estimate": {"accuracy": 0.8712, "error": 0.031, "unlabelled": 400, "labelled": 140, "labelled_accuracy": 0.9143},
    }  # fmt: skip
    words = said(watching=watching)
    assert (
        "about 87 ± 3 % right on the last 400 unlabelled images, by its calibrated confidence (91.4 % on 140" in words
    )
    assert "data next" not in words
    kept = [{"accuracy": 0.9, "model_version": 6}, {"accuracy": 0.88, "model_version": 7}]
    assert "in the windows before: 90 % (version 6), 88 % (version 7)" in said(watching={**watching, "kept": kept})
    assert "label some images (edgetune data next)" in said(watching={**watching, "is_low": True})
    unknown = {**watching, "estimate": None, "why_unknown": "12 of 50 answers to unlabelled images"}
    assert "on unlabelled images is unknown: 12 of 50 answers" in said(watching=unknown)
    shift = {"reason": "the images have changed: the served model is less sure of them"}
    assert f"{shift['reason']}; label some (edgetune data next)" in said(watching={**watching, "shift": shift})
    assert "on unlabelled images is unknown" not in said(watching={**unknown, "is_watched": False})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "none is running: not enough that is new"),
        ({}, "so far 37 of 200 new samples"),
        ({"trigger": {"wanted": True, "reason": "200 of 200 new samples"}}, "about to start: 200 of 200 new samples"),
        ({"round": {"state": "held", "message": "soc_temp_c value=83.5 limit=80.0"}}, "held back: temperature 83.5C, budget at most 80C"),
        (
            {"round": {"state": "training", "id": 5, "kind": "adapt", "reason": "new", "phase": "tune", "step": 50, "steps": 200,
                       "loss": 0.4, "progress": 0.25, "eta_s": 90.0, "duty": 0.5}},
            "tune, step 50 of 200 (25.0 %), loss 0.400, about 1.5min left, slowed to 50% of the time",
        ),
        ({"round": {"state": "paused", "id": 5, "kind": "adapt", "message": "too hot"}}, "round 5 (adapt) is paused: too hot"),
        ({"round": {"state": "cooldown", "cooldown_s": 600.0, "failures": 2}}, "cooling down for another 10min after 2 failures in a row"),
        ({"round": {"state": "verifying", "id": 5}}, "has a candidate, which is being checked"),
        ({"round": {"state": "suspended", "id": 5}}, "will go on from its checkpoint"),
        ({"operator": {"paused": True}}, "paused by the operator; go on with: edgetune resume"),
    ],
)  # fmt: skip
def test_status_says_why_a_round_is_or_is_not_running(changes: dict[str, Any], expected: str) -> None:
    """Every state of the round in words."""
    assert expected in said(**changes)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("soc_temp_c value=78 limit=80 comes back at 76", "temperature 78C, budget at most 80C, goes on at 76C"),
        ("mem_available_mib value=120 limit=300", "memory available 120MiB, budget at least 300MiB"),
        ("power_w unknown (no sensor) limit=10", "power unknown (no sensor), budget at most 10W"),
        (
            "outside the allowed hours (22:00-06:00), it is 12:00",
            "outside the allowed hours (22:00-06:00), it is 12:00",
        ),
    ],
)
def test_a_budgets_reason_is_put_in_words(reason: str, words: str) -> None:
    """What decide/budget.py writes for logs becomes what a person reads."""
    assert explain(reason) == words


def test_reasons_of_the_real_budget_are_understood() -> None:
    """The words follow decide/budget.py, so they cannot drift apart unnoticed."""
    last = Verdict(kind=VerdictKind.RUN, duty=1.0)
    values = {Quantity.SOC_TEMP_C: Measurement(value=83.5, source="fake")}
    reading = Reading(at_s=0.0, wall_s=0.0, local_minute=0, values=values)
    verdict = judge(reading, Limits(soc_temp_max_c=80.0, power_max_w=10.0), last, is_training=True)
    assert len(verdict.reasons) == 2
    assert not any("=" in explain(reason) for reason in verdict.reasons)


def test_status_says_what_the_last_round_did_and_why() -> None:
    """Promoted or refused, with figures and reasons."""
    text = said()
    assert "round 4 (reshape) was promoted" in text
    assert "accuracy 71.2 % -> 91.4 %, 2.50 -> 1.25 ms, 278,000 -> 139,000 parameters" in text
    assert "ended as out of memory" in said(last_round={"promoted": False, "outcome": "out_of_memory"})
    assert "there was none" in said(last_round=None)


def test_status_compares_the_board_with_its_budgets() -> None:
    """Over budget and unknown are both said."""
    text = said()
    assert "temperature 83.5C (budget: at most 80C) - over budget" in text
    assert "power unknown: no sensor (budget: at most 10W)" in text
    assert "memory available 2GiB (budget: at least 300MiB)\n" in text
    estimated = said(readings={"power_w": {"value": 4.0, "limit": 10.0, "is_estimated": True}})
    assert "power 4W estimated (budget: at most 10W)" in estimated


def test_status_is_silent_on_what_nobody_asked_for_unless_it_is_bad() -> None:
    """Pressure and mains without a budget on them are left out; clocks that are held down are not."""
    quiet = {"mem_pressure": {"value": 0.02}, "on_mains": {"value": 1.0}, "is_throttled": {"value": 0.0}}
    assert not {"pressure", "mains", "throttled"} & set(said(readings=quiet).split())
    source = "vcgencmd get_throttled (the supply's voltage is low)"
    text = said(readings={"is_throttled": {"value": 1.0, "source": source}, "on_mains": {"value": 0.0}})
    assert f"throttled: the board holds its clocks down - {source}" in text
    assert "on mains no" in text
    assert "memory pressure 2% (budget: at most 30%)" in said(readings={"mem_pressure": {"value": 0.02, "limit": 0.3}})


@pytest.mark.parametrize(
    ("name", "measured", "words"),
    [
        ("power_w", Measurement(value=5.0, source="x", resolution=0.04032, age_s=1.25), "from x, in steps of 0.04W, 1.2 s old"),
        ("power_w", Measurement(value=5.0, source="x", is_estimated=True), "estimated"),
        ("mem_available_mib", Measurement(value=5.0, source="psutil", resolution=1 / 1024), "from psutil, in steps of 1KiB"),
        ("mem_pressure", Measurement(value=0.0, source="x", resolution=0.0001), "from x, in steps of 0.01%"),
        ("soc_temp_c", Measurement(value=48.3, source="x", resolution=0.1), "from x, in steps of 0.1C"),
        ("is_throttled", Measurement(value=0.0, source="x", resolution=1.0), "from x"),
    ],
)  # fmt: skip
def test_doctor_says_source_step_and_age(name: str, measured: Measurement, words: str) -> None:
    """Of each sensor, in its unit."""
    assert explain_source(name, measured) == words


def test_doctor_says_whether_a_trainers_gpu_memory_is_counted() -> None:
    """A budget that does not see it is a warning with the way out."""
    assert "from jtop" in doctor.judge_gpu_memory(Measurement(value=0.0, source="jtop"), is_budgeted=True).says
    unseen = doctor.judge_gpu_memory(Measurement(value=None, source="none", why_unknown="for root"), is_budgeted=True)
    assert unseen.state == doctor.WARNING
    assert "trainer_memory_max does not see it" in unseen.says
    assert "jetson-stats" in unseen.fix


def test_every_quantity_has_words_and_every_budget_a_key() -> None:
    """A new quantity cannot be forgotten in either."""
    assert {quantity.value for quantity in Quantity} == set(QUANTITIES)
    for quantity in set(Quantity) - {Quantity.IS_THROTTLED}:
        assert budget_key(quantity, Config()).startswith(("budgets.", "serving."))


def test_doctor_names_a_torchvision_that_does_not_match_torch() -> None:
    """The most common install fault, by name, and that rounds work all the same."""
    finding = libraries.judge_import(
        "torchvision", 1, "Traceback\nRuntimeError: operator torchvision::nms does not exist\n"
    )
    assert finding.state == doctor.WARNING
    assert "was not built for torch" in finding.says
    assert "rounds work all the same" in finding.says


@pytest.mark.parametrize(
    ("code", "stderr", "words"),
    [
        (-4, "", "instructions that this processor does not have"),
        (1, "ImportError: libcudnn.so.8: cannot open", "NVIDIA"),
        (1, "x\nboom", "boom"),
    ],
)
def test_doctor_says_why_a_library_does_not_start(code: int, stderr: str, words: str) -> None:
    """Each with a way out."""
    finding = libraries.judge_import("torch", code, stderr)
    assert finding.state == doctor.FAULT
    assert words in finding.says
    assert finding.fix


def test_doctor_tries_libraries_in_a_process_of_their_own() -> None:
    """A library that kills its process does not kill doctor."""
    assert libraries.try_import("json").state == doctor.OK
    assert libraries.try_import("no_such_module").state == doctor.FAULT


def test_doctor_checks_disk_state_and_groups(tmp_path: Path) -> None:
    """Against what the configuration asks for."""
    free = shutil.disk_usage(tmp_path).free
    config = parse(
        f"paths: {{state_dir: {tmp_path}}}\nbudgets: {{disk_free_min: {free // 2**20 + 10_000}MiB}}\nserving: {{socket_group: nobody-has-this}}"
    )
    assert doctor.check_disk(config).state == doctor.FAULT
    assert doctor.check_state_dir(config).state == doctor.OK
    assert [finding.state for finding in doctor.check_group(config)] == [doctor.WARNING]
    assert doctor.check_state_dir(parse(f"paths: {{state_dir: {tmp_path / 'none'}}}")).state == doctor.WARNING
    (tmp_path / "file").write_bytes(b"")
    assert doctor.check_state_dir(parse(f"paths: {{state_dir: {tmp_path / 'file'}}}")).state == doctor.FAULT
    assert doctor.check_disk(Config()).state in {doctor.OK, doctor.WARNING, doctor.FAULT}


def test_status_reaches_a_terminal_with_colours_and_a_pipe_without(daemon: Any) -> None:
    """The program itself, through a pseudo-terminal and through a pipe."""
    words = [sys.executable, "-m", "edgetune", "status", "--socket", str(daemon.socket)]
    piped = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "\x1b[" not in piped.stdout
    assert piped.stdout.startswith("Model       version 7")
    outer, inner = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(words, stdout=inner, stderr=inner, env=environment):
        pass
    os.close(inner)
    with os.fdopen(outer, "rb", buffering=0) as terminal:
        text = terminal.read(65536).decode()
    assert "\x1b[" in text
    assert "version 7" in text


@pytest.mark.parametrize(("kept", "is_fault"), [("300MiB", False), ("900MiB", True)])
def test_doctor_names_a_budget_that_no_round_can_keep(kept: str, is_fault: bool) -> None:
    """On a board of 1 GiB; `test_daemon_budgets` has the rule's cases."""
    config = parse(f"budgets: {{memory_available_min: {kept}}}")
    findings = list(doctor.check_affordable(config, board_mib=1024, disk_mib=10_000))
    assert [finding.state for finding in findings] == ([doctor.FAULT] if is_fault else [])
    assert all("memory_available_min" in finding.says and finding.fix for finding in findings)
