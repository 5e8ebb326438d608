"""A status as the daemon tells it: a reshaped model on probation, a warm board, too few new samples."""

from __future__ import annotations

from typing import Any

STATUS: dict[str, Any] = {
    "version": "0.1.0", "pid": 1, "uptime_s": 90.0, "board": {"model": "Raspberry Pi 5"},
    "served": {"version": 7, "architecture": "cifar:resnet20", "kind": "reshape", "parent": 1, "classes": 3, "accuracy": 0.914,
               "accuracy_samples": 140, "latency_ms": 1.254, "parameters": 139_000, "pruned": 0.5, "model_sha256": "ab", "since": ""},
    "probation": {"version": 7, "fallback": 6, "ends_in_s": 7200.0},
    "serving": {"requests": 1234, "failed": 0, "rejected": 2, "p50_ms": 1.9, "p99_ms": 4.2},
    "buffer": {"samples": 312, "labelled": 300, "unlabelled": 12, "duplicates": 4, "stored_bytes": 3 * 2**20, "quota_bytes": 2**31,
               "pinned": 0, "evicted": 0, "quarantined": 1, "new_labelled": 37, "classes": [
                   {"label": "cat", "status": "accepted", "training": 100, "validation": 20, "holdout": 20, "labelled_since_round": 37},
                   {"label": "dgo", "status": "pending", "training": 2, "validation": 0, "holdout": 0, "labelled_since_round": 2},
                   {"label": "gul", "status": "pending", "training": 0, "validation": 0, "holdout": 0, "labelled_since_round": 0}]},
    "inbox": {"directory": "/x", "watch": "inotify", "waiting": 3, "taken": 312, "duplicates": 4, "trouble": ""},
    "round": {"state": "idle", "id": None, "kind": None, "reason": None, "phase": None, "step": None, "steps": None, "loss": None,
              "progress": 0.0, "eta_s": None, "duty": 1.0, "message": "", "failures": 0, "cooldown_s": None},
    "trigger": {"wanted": False, "kind": "adapt", "reason": "not enough that is new", "missing": ["37 of 200 new samples"], "next_in_s": None},
    "verdict": {"kind": "run", "duty": 1.0, "reasons": []},
    "readings": {
        "mem_available_mib": {"value": 2048.0, "limit": 300.0, "unit": "MiB", "source": "psutil", "why_unknown": "", "is_estimated": False},
        "soc_temp_c": {"value": 83.5, "limit": 80.0, "unit": "C", "source": "sysfs", "why_unknown": "", "is_estimated": False},
        "power_w": {"value": None, "limit": 10.0, "unit": "W", "source": "none", "why_unknown": "no sensor", "is_estimated": False}},
    "last_round": {"id": 4, "kind": "reshape", "outcome": "promoted", "message": "", "promoted": True,
                   "reasons": ["accuracy rose from 71.2 % to 91.4 %"], "warnings": [], "ended_at_s": 1000.0,
                   "accuracy_before": 0.712, "accuracy_after": 0.914, "latency_before_ms": 2.5, "latency_after_ms": 1.254,
                   "parameters_before": 278_000, "parameters_after": 139_000},
    "operator": {"paused": False}, "warnings": [],
    "config": {"path": "/etc/edgetune/config.yaml", "loaded_at": "", "needs_restart": []},
}  # fmt: skip
