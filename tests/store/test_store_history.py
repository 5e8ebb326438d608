"""Rounds, events, readings and state survive a restart and stay within bounds."""

from __future__ import annotations

import pytest
from store_samples import StillClock, manifest

from edgetune.errors import NotFoundError
from edgetune.store.buffer import Buffer
from edgetune.store.history import History
from edgetune.types import Measurement, Quantity, Reading


def reading(at_s: float, wall_s: float | None = None) -> Reading:
    """A temperature, and a power that cannot be read."""
    values = {
        Quantity.SOC_TEMP_C: Measurement(value=at_s, source="test"),
        Quantity.POWER_W: Measurement(value=None, source="none"),
    }
    return Reading(at_s=at_s, wall_s=at_s if wall_s is None else wall_s, local_minute=0, values=values)


def test_a_rounds_row_follows_it(buffer: Buffer) -> None:
    """Columns are replaced, details merged, dataclasses become JSON, and a restart changes nothing."""
    history = History(buffer, clock=StillClock())
    assert history.next_round_id() == 1
    number = history.start_round("adapt", "37 new samples", state="training", trigger={"new": 37})
    assert history.start_round("adapt", "again", state="training", round_id=number) == number
    history.update_round(number, state="verifying", manifest=manifest())
    history.update_round(number, outcome="published", is_ended=True, message="done", promoted=True)
    buffer.close()
    buffer.open()
    row = history.round(number)
    assert (row["reason"], row["state"], row["outcome"], row["message"]) == (
        "37 new samples",
        "verifying",
        "published",
        "done",
    )
    assert row["ended_at_s"] == 1_700_000_000.0
    assert (row["details"]["trigger"], row["details"]["promoted"]) == ({"new": 37}, True)
    assert row["details"]["manifest"]["architecture"] == "cifar:resnet20"
    assert history.next_round_id() == 2
    assert [r["id"] for r in history.rounds()] == [1]
    with pytest.raises(NotFoundError):
        history.update_round(9, state="idle")


def test_events_are_numbered_for_ever_and_bounded(buffer: Buffer) -> None:
    """A reader goes on from the number it saw last; the oldest beyond the bound are gone."""
    history = History(buffer, clock=StillClock(), events_max=5)
    assert history.last_event_seq() == 0
    numbers = [history.add_event("swap", f"event {n}", {"n": n}) for n in range(9)]
    assert numbers == sorted(set(numbers))
    assert [event["data"]["n"] for event in history.events_after(0)] == [4, 5, 6, 7, 8]
    assert [event["text"] for event in history.events_after(numbers[6], limit=1)] == ["event 7"]
    assert history.last_event_seq() == numbers[-1]


def test_readings_are_thinned_and_bounded_whatever_the_wall_clock_does(buffer: Buffer) -> None:
    """At most one an interval, as many as fit into the age; a clock that jumps ten years loses none."""
    history = History(buffer, clock=StillClock(), readings_interval_s=10, readings_max_age_s=50)
    kept = [history.record_reading(reading(float(at_s), wall_s=3e8 if at_s == 50 else None)) for at_s in range(100)]
    assert kept.count(True) == 10
    rows = history.readings()
    assert [row["soc_temp_c"] for row in rows] == [50.0, 60.0, 70.0, 80.0, 90.0]
    assert rows[0]["power_w"] is None
    assert history.record_reading(reading(1.0))  # the other clock began anew: a reboot


def test_state_is_kept_and_set_together(buffer: Buffer) -> None:
    """Values of any JSON shape and dataclasses come back after a restart; absent ones are the default."""
    history = History(buffer, clock=StillClock())
    history.set_state("pause", value=True)
    history.set_states({"generation": 3, "round": {"state": "held", "since": None}})
    history.set_state("manifest", manifest())
    buffer.close()
    buffer.open()
    assert history.get_state("pause") is True
    assert history.get_state("round") == {"state": "held", "since": None}
    assert history.get_state("manifest")["classes"] == ["cat", "dog"]
    assert history.get_state("absent", default=7) == 7
    with pytest.raises(TypeError):
        history.set_states({"generation": 4, "bad": object()})
    assert history.get_state("generation") == 3


def test_estimates_are_kept_in_their_order_and_the_oldest_go(buffer: Buffer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all versions, each with its time; a restart changes nothing."""
    monkeypatch.setattr("edgetune.store.history._ESTIMATES_MAX", 3)
    history = History(buffer, clock=StillClock())
    for number in range(5):
        history.add_estimate(number // 3 + 1, {"accuracy": number / 10})
    buffer.close()
    buffer.open()
    assert [(row["model_version"], row["accuracy"]) for row in history.estimates()] == [(1, 0.2), (2, 0.3), (2, 0.4)]
    assert history.estimates(1) == [{"model_version": 2, "wall_s": 1_700_000_000.0, "accuracy": 0.4}]
