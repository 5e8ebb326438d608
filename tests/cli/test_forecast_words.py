"""A forecast as an operator reads it."""

from __future__ import annotations

from typing import Any

from edgetune.cli.forecast_words import forecast_words, met_lines

FORECAST: dict[str, Any] = {
    "peak_mib": {"low": 450.0, "likely": 480.0, "high": 510.0}, "step_s": {"low": 0.1, "likely": 0.2, "high": 0.3},
    "duration_s": {"low": 480.0, "likely": 540.0, "high": 660.0}, "energy_j": None, "batch_size": 16, "accumulation": 4,
    "threads": 2, "update": "full", "fits": True, "reason": "", "calibrated_on": 3,
}  # fmt: skip


def test_a_plan_that_fits_says_so_first() -> None:
    """Each figure with its budget and its interval, and how the round would be run."""
    words = forecast_words(FORECAST, {"peak_mib": 1536.0, "duration_s": 7200.0, "energy_j": None})
    assert words.splitlines() == [
        "fits: peak 480MiB of 1.5GiB (450MiB to 510MiB), time 9min of 2h (8min to 11min), energy not known yet: no round was"
        " measured here",
        "  update full, 4 batches of 16 images a step, 2 threads; learnt from 3 rounds here",
    ]


def test_a_plan_that_does_not_fit_says_why() -> None:
    """In the line of the budget."""
    words = forecast_words({**FORECAST, "fits": False, "reason": "it would take up to 510 MiB of 400"}, {})
    assert words.startswith("does not fit: peak 480MiB")
    assert words.endswith("  because: it would take up to 510 MiB of 400")


def test_a_finished_round_is_compared_with_its_forecast() -> None:
    """Only what both have; a round without a forecast says nothing, one that was refused shows it."""
    actual = {"peak_mib": 504.0, "duration_s": 486.0, "energy_j": None, "step_s": None}
    found = met_lines(
        {"forecast": FORECAST, "actual": actual, "forecast_error": {"peak_mib": 0.05, "duration_s": -0.1}}
    )
    assert found == ["took peak 504MiB, 5.0% above its forecast; time 8.1min, 10.0% below its forecast"]
    assert met_lines({}) == []
    assert met_lines({"forecast": FORECAST})[0].startswith("fits: ")
