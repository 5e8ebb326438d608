"""The figures that people plot, for GET /metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgetune import __version__
from edgetune.types import RoundState, VerdictKind

if TYPE_CHECKING:
    from edgetune.daemon.core import Daemon
    from edgetune.serve.service import Metric


def collect(daemon: Daemon) -> list[Metric]:
    """All metrics; a value that is unknown is left out by whoever writes the text."""
    return [*_serving(daemon), *_watching(daemon), *_samples(daemon), *_round(daemon), *_board(daemon)]


def _serving(daemon: Daemon) -> list[Metric]:
    serving = daemon.serving
    version = serving.served.version
    counters = serving.counters
    quantiles: list[tuple[dict[str, str], float | None]] = [
        ({"quantile": str(share)}, _seconds(counters.quantile_ms(share))) for share in (0.5, 0.9, 0.99)
    ]
    manifest = serving.manifest()
    marks = {} if manifest is None else manifest.marks
    return [
        ("edgetune_info", "gauge", "The program that runs.", [({"version": __version__}, 1.0)]),
        ("edgetune_model_version", "gauge", "The served version.", [({}, None if version is None else float(version))]),
        (
            "edgetune_class_marked",
            "gauge",
            "1 for a class of the served version whose answers carry a mark.",
            [({"class": label, "mark": mark}, 1.0) for label, mark in marks.items()],
        ),
        ("edgetune_predictions_total", "counter", "Predictions asked for.", [({}, float(serving.total_requests))]),
        ("edgetune_predictions_failed_total", "counter", "Predictions failed.", [({}, float(serving.total_failed))]),
        (
            "edgetune_predictions_rejected_total",
            "counter",
            "Images that neither the served nor the factory model was sure of (serving.reject).",
            [({}, float(serving.rejecting.rejected))],
        ),
        (
            "edgetune_predictions_by_factory_total",
            "counter",
            "Images that the served model was unsure of and the factory model sure.",
            [({}, float(serving.rejecting.by_factory))],
        ),
        ("edgetune_prediction_seconds", "gauge", "Recent latency of the served version.", quantiles),
    ]


def _watching(daemon: Daemon) -> list[Metric]:
    summary = daemon.watching.summary()
    found = summary["estimate"] or {}
    return [
        (
            "edgetune_estimated_accuracy",
            "gauge",
            "Of the served version on the last unlabelled images, by its calibrated confidence.",
            [({}, found.get("accuracy"))],
        ),
        (
            "edgetune_estimated_accuracy_error",
            "gauge",
            "Half of the 95 % interval of the sampling.",
            [({}, found.get("error"))],
        ),
        ("edgetune_drift", "gauge", "1 while the images have changed.", [({}, float(summary["shift"] is not None))]),
    ]


def _samples(daemon: Daemon) -> list[Metric]:
    stats, ingest = daemon.stats, daemon.ingest
    if stats is None:
        return []
    sighted = [({"class": entry["class"]}, float(entry["count"])) for entry in daemon.returning.summary()["sightings"]]
    classes = [({"class": entry.label, "status": entry.status}, float(entry.total)) for entry in stats.classes]
    return [
        ("edgetune_samples", "gauge", "Samples in the buffer.", [({}, float(stats.samples))]),
        ("edgetune_samples_new", "gauge", "Labelled since the last round.", [({}, float(stats.new_labelled))]),
        ("edgetune_class_samples", "gauge", "Labelled samples of each class.", classes),
        ("edgetune_class_sightings", "gauge", "Sightings of a class that was not shown here.", sighted),
        ("edgetune_buffer_bytes", "gauge", "Image bytes in the buffer.", [({}, float(stats.stored_bytes))]),
        ("edgetune_buffer_quota_bytes", "gauge", "Image bytes allowed.", [({}, float(stats.quota_bytes))]),
        ("edgetune_samples_evicted_total", "counter", "Evicted for the quota.", [({}, float(stats.evicted))]),
        ("edgetune_quarantined_total", "counter", "Bad files in quarantine.", [({}, float(stats.quarantined))]),
        ("edgetune_inbox_taken_total", "counter", "Taken since start.", [({}, float(ingest.taken if ingest else 0))]),
    ]


def _round(daemon: Daemon) -> list[Metric]:
    state, verdict = daemon.rounds.machine.state, daemon.budgeting.verdict.kind
    return [
        (
            "edgetune_round_state",
            "gauge",
            "1 for the state the round machine is in.",
            [({"state": each.value}, float(each is state)) for each in RoundState],
        ),
        (
            "edgetune_budget_verdict",
            "gauge",
            "1 for what the budget allows.",
            [({"verdict": each.value}, float(each is verdict)) for each in VerdictKind],
        ),
        (
            "edgetune_round_duty",
            "gauge",
            "Share of the time a trainer may compute.",
            [({}, daemon.budgeting.verdict.duty)],
        ),
        (
            "edgetune_round_failures",
            "gauge",
            "Rounds in a row that promoted nothing.",
            [({}, float(daemon.rounds.failures))],
        ),
    ]


def _board(daemon: Daemon) -> list[Metric]:
    if daemon.budgeting.reading is None:
        return []
    account = daemon.budgeting.ledger.account
    disk_bytes = None if account.disk_bytes is None else float(account.disk_bytes)
    read: list[Metric] = [
        (f"edgetune_{quantity.value}", "gauge", f"Read from {measurement.source}.", [({}, measurement.value)])
        for quantity, measurement in daemon.budgeting.reading.values.items()
    ]
    return [
        *read,
        ("edgetune_board_energy_day_j", "gauge", "Of the board in the day's account.", [({}, account.board_j)]),
        ("edgetune_disk_written_day_bytes", "gauge", "By all on the disk, likewise.", [({}, disk_bytes)]),
    ]


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000.0
