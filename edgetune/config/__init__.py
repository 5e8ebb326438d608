"""The configuration: YAML to `Config` and to what the rest of edgetune takes from it."""

from __future__ import annotations

import os
from typing import Any

from pydantic import TypeAdapter

from edgetune.config.load import known_keys, load, parse
from edgetune.config.model import Config
from edgetune.config.quantities import split_address, split_server
from edgetune.config.text import default_text, reference_text
from edgetune.types import GatePolicy, Limits, Recipe, TeacherSource

__all__ = [
    "Config", "changed_keys", "default_text", "gate_policy", "json_schema", "known_keys", "limits", "load", "needs_restart",
    "parse", "privacy_note", "recipe", "reference_text", "serving_threads", "split_address", "teacher", "to_plain",
]  # fmt: skip

_SEARCHING = 0.8  # of a round's time, the last retraining included: the rest is for measuring and for publishing
_MIB = 2.0**20


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as nested dicts, with quantities as text with units."""
    return config.model_dump(mode="json")


def json_schema() -> dict[str, Any]:
    """The JSON Schema of config.yaml, for editors."""
    schema = TypeAdapter(Config).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "edgetune", **schema}


def changed_keys(old: Config, new: Config) -> list[str]:
    """The dotted keys whose values differ."""
    return [key for key in known_keys() if _value(old, key) != _value(new, key)]


def needs_restart(old: Config, new: Config) -> list[str]:
    """Those of the changed keys that take effect only after a restart."""
    return [key for key in changed_keys(old, new) if not is_reloadable(key)]


def is_reloadable(key: str) -> bool:
    """Whether a change of this dotted key takes effect without a restart."""
    section, _, name = key.rpartition(".")
    fields = type(getattr(Config(), section)).model_fields if section else Config.model_fields
    extra = fields[name].json_schema_extra
    return bool(extra["reloadable"]) if isinstance(extra, dict) else True


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def limits(config: Config) -> Limits:
    """The operator's budgets, as decide/budget takes them."""
    budgets = config.budgets
    return Limits(
        mem_available_min_mib=_mib(budgets.memory_available_min),
        trainer_rss_max_mib=_mib(budgets.trainer_memory_max),
        soc_temp_max_c=budgets.temperature_max,
        power_max_w=budgets.power_max,
        round_energy_max_j=budgets.round_energy_max,
        energy_per_day_max_j=budgets.energy_per_day_max,
        writes_per_day_max_mib=_mib(budgets.writes_per_day_max),
        mains_only=budgets.mains_only,
        battery_share_min=budgets.battery_min,
        mem_pressure_max=budgets.memory_pressure_max,
        cpu_pressure_max=budgets.cpu_pressure_max,
        io_pressure_max=budgets.io_pressure_max,
        serving_p99_max_ms=None if config.serving.latency_max is None else 1000 * config.serving.latency_max,
        window_s=budgets.window,
        cpu_share_max=budgets.cpu_max,
        disk_free_min_mib=_mib(budgets.disk_free_min),
        hours=budgets.hours,
        hysteresis=budgets.hysteresis,
    )


def _mib(value: int | None) -> float | None:
    return None if value is None else value / _MIB


def recipe(config: Config) -> Recipe:
    """What a round does, with the number of threads settled for this board."""
    pruning, training = config.pruning, config.training
    return Recipe(
        criterion=pruning.criterion,
        level=pruning.level,
        search=pruning.search,
        accuracy_drop_max=pruning.accuracy_drop_max,
        trial_epochs=pruning.trial_epochs,
        search_time_max_s=_SEARCHING * config.budgets.round_time_max,
        search_energy_max_j=_energy(config),
        level_of=pruning.level_of,
        order=pruning.order,
        memory_max_mib=_mib(config.budgets.trainer_memory_max),
        remove_branches=pruning.remove_branches,
        round_to=pruning.round_to,
        epochs_before=training.epochs_before,
        epochs_after=training.epochs_after,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        learning_rate_before=training.learning_rate_before,
        schedule=training.schedule,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        augment=training.augment,
        augment_views=training.views,
        max_steps=training.max_steps,
        checkpoint_steps=training.checkpoint_steps,
        scoring_batches=pruning.scoring_batches,
        timing_runs=training.timing_runs,
        seed=training.seed,
        threads=training.threads or _cores(),
        cores_max=None if training.threads else _cores() * (config.budgets.cpu_max or 1.0),
        memory_format=training.memory_format,
        dtype=training.dtype,
        distillation=training.share,
        temperature=training.temperature,
        replay_max_bytes=training.replay_max,
        replay=training.replay,
        rehearsal=training.rehearsal,
        old_classes_drop_max=config.gate.accuracy_drop_max,
        old_class_drop_max=config.gate.class_drop_max,
        transfer=training.transfer,
        unlabelled_confidence_min=training.unlabelled_confidence_min,
        update=training.update,
        time_max_s=config.budgets.round_time_max,
        energy_max_j=config.budgets.round_energy_max,
        memory_available_min_mib=_mib(config.budgets.memory_available_min),
    )


def _energy(config: Config) -> float | None:
    whole = config.budgets.round_energy_max
    return None if whole is None else _SEARCHING * whole


def teacher(config: Config) -> TeacherSource:
    """Whom a round learns from beside the labels."""
    training = config.training
    return TeacherSource(
        kind=training.teacher,
        file=str(training.teacher_file or ""),
        server=training.teacher_server or "",
        ca_file=str(training.teacher_ca or ""),
        classes=training.teacher_classes,
        unseen_classes=() if training.unseen_classes == "none" else training.unseen_classes,
        size=training.teacher_size,
        mean=training.teacher_mean,
        std=training.teacher_std,
        memory_max_mib=training.teacher_memory_max / _MIB,
        cache_max_bytes=training.teacher_cache_max,
        timeout_s=training.teacher_timeout,
    )


def privacy_note(config: Config) -> str:
    """Where images go that leave the device; empty: none does."""
    training = config.training
    if training.teacher != "server" or training.teacher_server is None:
        return ""
    server = split_server(training.teacher_server)
    images = "training images, unlabelled ones too," if training.uses_unlabelled else "training images"
    return f"images leave this device: rounds send {images} to {server.where} (training.teacher: server)"


def gate_policy(config: Config) -> GatePolicy:
    """When a candidate is good enough."""
    return GatePolicy(**{name: getattr(config.gate, name) for name in type(config.gate).model_fields})


def serving_threads(config: Config) -> int:
    """Threads of a prediction, settled for this board."""
    return config.serving.threads or _cores()


def _cores() -> int:
    """The cores this process may use, which a container or systemd may have made fewer than the board's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
