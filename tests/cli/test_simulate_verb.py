"""`edgetune simulate` at the command line: words, JSON, a picture, and refusals that say what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetune.cli import main
from edgetune.cli.simulate_words import describe
from edgetune.errors import EXIT_CONFIG, EXIT_OK, EXIT_USAGE

QUICK = (
    "simulate",
    "--days",
    "0.2",
    "--arrivals",
    "200/h",
    "--pattern",
    "even",
    "--labelled",
    "100%",
    "--network",
    "resnet18",
)
SOON = """
triggers: {new_samples: 60, imprint_samples: null}
gate: {holdout_min: 10, accuracy_risk_max: 50pp, class_drop_max: 50pp}
buffer: {group_block: 0s}
budgets: {hours: ["02:00-04:00"], temperature_max: 70C}
"""


def test_a_day_is_told_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The words have the day, its rounds and what held them back; the JSON has the same; the picture is one."""
    config, picture = tmp_path / "my.yaml", tmp_path / "days.png"
    config.write_text(SOON)

    assert main([*QUICK, "--config", str(config), "--brown-out", "01:00", "--plot", str(picture), "--json"]) == EXIT_OK

    answer = json.loads(capsys.readouterr().out)
    words = describe(answer)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [each["kind"] for each in answer["happened"]] == ["brown_out"]
    assert "Raspberry Pi 5 8 GB" in words
    assert "Mon 01 Jun" in words
    assert "budgets.hours" in words
    assert "Mon 01:00: the power went, for 5min" in words
    for each in answer["rounds"]:
        assert each["began"] >= "2026-06-01T02:00"
        assert f"{each['id']}  {each['kind']}" in words


def test_a_configuration_with_mistakes_is_refused_with_its_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `edgetune run` would, before anything is simulated."""
    config = tmp_path / "my.yaml"
    config.write_text("budgets:\n  power_max: 10\n  temprature_max: 75C\n")

    assert main(["simulate", "--config", str(config)]) == EXIT_CONFIG

    said = capsys.readouterr().err
    assert f"{config}:2" in said
    assert "no unit" in said
    assert f"{config}:3" in said
    assert "temperature_max" in said


def test_a_budget_that_the_board_cannot_measure_is_refused_by_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the way out."""
    config = tmp_path / "my.yaml"
    config.write_text("budgets: {power_max: 10W}\n")

    assert main(["simulate", "--board", "pi4", "--days", "0.1", "--config", str(config)]) == EXIT_CONFIG

    said = capsys.readouterr().err
    assert "budgets.power_max is set, but this board cannot measure power_w" in said
    assert "budgets.estimate" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--arrivals", "many"), "--arrivals many: expected a rate"),
        (("--ambient", "35C..20C"), "--ambient 35C..20C: expected LOW..HIGH"),
        (("--ambient", "20"), "has no unit"),
        (("--labelled", "1.5"), "--labelled"),
        (("--start", "monday"), "--start monday: expected a date"),
        (("--brown-out", "late"), "--brown-out late: expected"),
        (("--plot", "days.bmp"), "--plot is days.bmp"),
    ],
)
def test_an_option_that_says_nothing_is_refused(
    options: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the option, and what was expected."""
    assert main(["simulate", *options]) == EXIT_USAGE
    assert says in capsys.readouterr().err


def test_the_boards_and_networks_of_the_options_are_those_there_are() -> None:
    """They are spelt out in the verb so that its help needs no import."""
    from edgetune.cli.simulate import BOARD_NAMES, NETWORK_NAMES
    from edgetune.simulate.board import BOARDS
    from edgetune.simulate.network import NETWORKS

    assert tuple(BOARDS) == BOARD_NAMES
    assert tuple(NETWORKS) == NETWORK_NAMES
