"""What `edgetune status` shows, as plain JSON. Only reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgetune import __version__
from edgetune.config import limits as limits_of
from edgetune.config import privacy_note
from edgetune.daemon.round_records import iso
from edgetune.decide.budget import budgeted, rules
from edgetune.decide.trigger import Want
from edgetune.types import AbsentClasses, BufferStats, Limits, Manifest, Quantity, Reading, RoundState, Verdict
from edgetune.wire import to_plain

if TYPE_CHECKING:
    from edgetune.daemon.core import Daemon

_QUARANTINE_FULL = 1000  # files; nothing removes them but the operator
ESTIMATES_SHOWN = 10
_ETA_FROM = 0.02  # below this share of a round its pace says little
_UNITS = {"mib": "MiB", "c": "C", "w": "W", "j": "J", "ms": "ms", "share": "share", "pressure": "share"}
_SHOWN_WITH_LIMIT = (Quantity.SERVING_P99_MS,)  # elsewhere in the status otherwise


def served(manifest: Manifest | None, since: str) -> dict[str, Any] | None:
    """What is served and how good it was when it was published."""
    if manifest is None:
        return None
    comparison = manifest.comparison
    candidate = None if comparison is None else comparison.candidate
    return {
        "version": manifest.version,
        "architecture": manifest.architecture,
        "kind": manifest.kind,
        "parent": manifest.parent,
        "classes": len(manifest.classes),
        "marks": dict(manifest.marks),
        "accuracy": None if candidate is None else candidate.top1,
        "accuracy_samples": 0 if candidate is None else candidate.count,
        "absent": None if comparison is None else absent(comparison.absent),
        "latency_ms": None if manifest.latency is None else manifest.latency.median_ms,
        "parameters": manifest.cost.parameters,
        "pruned": None if manifest.pruning is None else manifest.pruning.level_achieved,
        "model_sha256": manifest.files.get("model.onnx"),
        "since": since,
    }


def absent(found: AbsentClasses | None) -> dict[str, Any] | None:
    """How far the classes can be trusted that the served version's round had no samples of: measured, or unknown."""
    if found is None:
        return None
    share = (lambda correct: correct / found.count) if found.count else (lambda _: None)
    return {
        "classes": found.classes,
        "reference_images": found.count,
        "accuracy": share(found.candidate_correct),
        "accuracy_before": share(found.base_correct),
    }


def buffer(stats: BufferStats) -> dict[str, Any]:
    """What is in the buffer."""
    plain: dict[str, Any] = to_plain(stats)
    return plain


def trigger(want: Want) -> dict[str, Any]:
    """Why a round is wanted or not."""
    return {
        "wanted": want.is_wanted,
        "kind": want.kind.value,
        "reason": want.reason,
        "missing": list(want.missing),
        "next_in_s": want.next_in_s,
    }


def verdict(now: Verdict) -> dict[str, Any]:
    """What the budget says."""
    return {"kind": now.kind.value, "duty": now.duty, "reasons": list(now.reasons)}


def readings(reading: Reading | None, limits: Limits, averages: Mapping[Quantity, float]) -> dict[str, Any]:
    """The board against its budgets, averaged where they are; quantities without sensor and limit are left out."""
    if reading is None:
        return {}
    limit_of = {rule.quantity: rule.limit for rule in rules(limits)}
    shown = {}
    for quantity, measurement in reading.values.items():
        is_of_interest = measurement.value is not None and quantity not in _SHOWN_WITH_LIMIT
        if not is_of_interest and quantity not in budgeted(limits):
            continue
        shown[quantity.value] = {
            "value": averages.get(quantity, measurement.value),
            "limit": limit_of.get(quantity),
            "unit": _UNITS.get(quantity.value.rpartition("_")[2], ""),
            "source": measurement.source,
            "resolution": measurement.resolution,
            "age_s": measurement.age_s,
            "why_unknown": measurement.why_unknown,
            "is_estimated": measurement.is_estimated,
            "is_average": quantity in averages,
        }
    return shown


def last_round(row: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the last round did, and why it was promoted or refused."""
    if row is None:
        return None
    details = row["details"]
    decision = details.get("decision") or {}
    return {
        "id": row["id"],
        "kind": row["kind"],
        "outcome": row["outcome"],
        "message": row["message"],
        "promoted": row["outcome"] == "promoted",
        "reasons": decision.get("reasons") or ([row["message"]] if row["message"] else []),
        "warnings": decision.get("warnings") or [],
        "ended_at_s": row["ended_at_s"],
        "trained_s": details.get("trained_s"),
        "trained_j": details.get("trained_j"),
        "is_energy_estimated": details.get("is_energy_estimated", False),
        **{name: details[name] for name in ("forecast", "actual", "forecast_error") if name in details},
        **details.get("summary", {}),
    }


def whole(
    daemon: Daemon, stats: BufferStats, last: dict[str, Any] | None, estimates: list[dict[str, Any]]
) -> dict[str, Any]:
    """Everything `edgetune status` shows; `last` is the newest ended round's row, `estimates` those kept last."""
    limits = limits_of(daemon.config)
    return {
        "version": __version__,
        "pid": os.getpid(),
        "uptime_s": round(daemon.clock.now_s() - daemon.started_s, 1),
        "board": {} if daemon.board is None else asdict(daemon.board),
        "served": served(daemon.serving.manifest(), iso(daemon.serving.since_s)),
        "probation": _probation(daemon),
        "serving": daemon.serving.summary(),
        "buffer": buffer(stats),
        "inbox": _inbox(daemon),
        "round": _round(daemon),
        "trigger": trigger(daemon.want),
        "returning": daemon.returning.summary(),
        "watching": {**daemon.watching.summary(), "kept": estimates},
        "verdict": verdict(daemon.budgeting.verdict),
        "readings": readings(daemon.budgeting.reading, limits, daemon.budgeting.governor.averages),
        "day": _day(daemon),
        "memory_wall": {
            "is_up": not daemon.budgeting.memory_wall.why_not,
            "why_not": daemon.budgeting.memory_wall.why_not,
        },
        "last_round": last_round(last),
        "operator": {"paused": daemon.is_paused},
        "warnings": _warnings(daemon),
        "config": {
            "path": str(daemon.config_path),
            "loaded_at": daemon.loaded_at,
            "needs_restart": daemon.restart_keys,
        },
    }


def _day(daemon: Daemon) -> dict[str, Any]:
    """The day's account against what is allowed."""
    account, budgets = daemon.budgeting.ledger.account, daemon.config.budgets
    return {
        **asdict(account),
        "energy_max_j": budgets.energy_per_day_max,
        "writes_max_bytes": budgets.writes_per_day_max,
    }


def _probation(daemon: Daemon) -> dict[str, Any] | None:
    trial = daemon.serving.trial
    left_s = trial.ends_in_s()
    if left_s is None:
        return None
    return {"version": trial.version, "fallback": trial.fallback, "ends_in_s": round(left_s, 1)}


def _inbox(daemon: Daemon) -> dict[str, Any]:
    shown: dict[str, Any] = {"directory": str(daemon.config.paths.inbox)}
    if daemon.inbox is None or daemon.ingest is None:
        return {**shown, "watch": "waiting for a first model", "waiting": None, "taken": 0, "trouble": ""}
    return {
        **shown,
        "watch": daemon.inbox.watch,
        "waiting": daemon.inbox.waiting,
        "taken": daemon.ingest.taken,
        "duplicates": daemon.ingest.duplicates,
        "quarantined": daemon.inbox.quarantined,
        "trouble": daemon.ingest.trouble,
        "problems": list(daemon.inbox.problems),
    }


def _round(daemon: Daemon) -> dict[str, Any]:
    rounds, machine = daemon.rounds, daemon.rounds.machine
    is_open = machine.state not in (RoundState.IDLE, RoundState.HELD, RoundState.COOLDOWN)
    spec = rounds.spec if is_open else None
    progress = rounds.trainer.last_progress if rounds.trainer is not None else None
    share = progress.step / progress.steps if progress is not None and progress.steps else 0.0
    left_s = max(0.0, rounds.cooldown_ends_s - daemon.service_time.now_s())
    return {
        "state": machine.state.value,
        "id": None if spec is None else spec.round_id,
        "kind": None if spec is None else spec.kind.value,
        "reason": None if spec is None else spec.reason,
        "phase": None if progress is None else progress.phase,
        "step": None if progress is None else progress.step,
        "steps": None if progress is None else progress.steps,
        "loss": None if progress is None else progress.loss,
        "progress": share,
        "eta_s": round(rounds.spending.trained_s * (1 - share) / share, 1) if share > _ETA_FROM else None,
        "duty": machine.duty,
        "message": _round_message(daemon),
        "failures": rounds.failures,
        "cooldown_s": round(left_s, 1) if machine.state is RoundState.COOLDOWN else None,
    }


def _round_message(daemon: Daemon) -> str:
    state = daemon.rounds.machine.state
    if state is RoundState.HELD:
        return "; ".join(daemon.budgeting.verdict.reasons) or "about to start"
    return "" if state in (RoundState.IDLE, RoundState.TRAINING) else daemon.rounds.machine.reason


def _warnings(daemon: Daemon) -> list[str]:
    warnings = [note] if (note := privacy_note(daemon.config)) else []
    warnings += daemon.budgeting.never_affordable
    if daemon.ingest is not None and daemon.ingest.trouble:
        warnings.append(f"the inbox waits: {daemon.ingest.trouble}")
    if daemon.inbox is not None:
        warnings += daemon.inbox.problems
        if daemon.inbox.quarantined > _QUARANTINE_FULL:
            warnings.append(f"{daemon.inbox.quarantined} bad files lie in the quarantine: edgetune data quarantine")
    if daemon.books.trouble:
        warnings.append(f"the database cannot be written: {daemon.books.trouble}")
    if daemon.rounds.is_unrecorded:
        warnings.append("the end of the last round could not be written down; no other begins before it is")
    warnings += [f"the sample buffer is damaged: {problem}" for problem in daemon.books.damage]
    if daemon.restart_keys:
        warnings.append(f"changed in the configuration, in force after a restart: {', '.join(daemon.restart_keys)}")
    return warnings


def in_words(status: dict[str, Any]) -> str:
    """One line for systemd's STATUS=."""
    model = status["served"]
    if model is None:
        what = "no model: edgetune models import"
    else:
        accuracy = "" if model["accuracy"] is None else f" ({model['accuracy']:.1%} on the hold-out)"
        what = f"serving version {model['version']}{accuracy}"
    now = status["round"]
    if now["state"] in ("idle", "cooldown"):
        missing = status["trigger"]["missing"]
        doing = f"round {now['state']}" + (f", needs {missing[0]}" if missing else "")
    else:
        doing = f"round {now['id'] or ''} {now['state']}".replace("  ", " ")
        doing += f" {now['progress']:.0%}" if now["progress"] else ""
        doing += f" ({now['message']})" if now["message"] else ""
    return f"edgetune {__version__}: {what}; {status['buffer']['samples']} samples; {doing}"
