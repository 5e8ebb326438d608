"""From the configuration to what each part of the daemon takes: configuration objects do not travel further."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgetune import config as configuration
from edgetune import units
from edgetune.clock import Clock
from edgetune.config import Config
from edgetune.config.model import TRAINER_AT_REST
from edgetune.daemon.round_settings import RoundSettings
from edgetune.daemon.watching import WatchPolicy
from edgetune.decide import budget
from edgetune.decide.drift import DriftPolicy
from edgetune.decide.probation import ProbationPolicy
from edgetune.decide.returning import ReturnPolicy
from edgetune.decide.trigger import TriggerPolicy
from edgetune.device.board import identify
from edgetune.device.inbox import Inbox
from edgetune.device.jtop import JtopProbe
from edgetune.device.raspberry import Vcgencmd
from edgetune.device.sensors import BoardSensors
from edgetune.images import ImageLimits
from edgetune.serve.service import ApiLimits
from edgetune.store import durable
from edgetune.store.retention import BufferPolicy
from edgetune.types import Measurement, Preprocess, Quantity

_BUDGET_KEYS = {
    Quantity.MEM_AVAILABLE_MIB: "budgets.memory_available_min",
    Quantity.TRAINER_RSS_MIB: "budgets.trainer_memory_max",
    Quantity.DISK_FREE_MIB: "budgets.disk_free_min",
    Quantity.SOC_TEMP_C: "budgets.temperature_max",
    Quantity.POWER_W: "budgets.power_max",
    Quantity.CPU_SHARE: "budgets.cpu_max",
    Quantity.ON_MAINS: "budgets.mains_only",
    Quantity.BATTERY_SHARE: "budgets.battery_min",
    Quantity.MEM_PRESSURE: "budgets.memory_pressure_max",
    Quantity.CPU_PRESSURE: "budgets.cpu_pressure_max",
    Quantity.IO_PRESSURE: "budgets.io_pressure_max",
    Quantity.ENERGY_DAY_J: "budgets.energy_per_day_max",
    Quantity.WRITTEN_DAY_MIB: "budgets.writes_per_day_max",
    Quantity.SERVING_P99_MS: "serving.latency_max",
}


def budget_key(quantity: Quantity, config: Config) -> str:
    """The key that sets the budget which needs a quantity."""
    budgets = config.budgets
    if quantity is Quantity.POWER_W and budgets.power_max is None:
        return "budgets.energy_per_day_max" if budgets.round_energy_max is None else "budgets.round_energy_max"
    return _BUDGET_KEYS[quantity]


def unmeasurable(config: Config, supported: Mapping[Quantity, Measurement]) -> list[str]:
    """A sentence for each budget that is set on something which the board cannot measure."""
    return [
        f"{budget_key(quantity, config)} is set, but this board cannot measure {quantity.value}: {why}"
        for quantity in budget.budgeted(configuration.limits(config))
        if quantity is not Quantity.TRAINER_RSS_MIB and (why := _unmeasured(supported.get(quantity)))
    ]


def _unmeasured(measurement: Measurement | None) -> str:
    if measurement is None:
        return "no sensor"
    return "" if measurement.value is not None else measurement.why_unknown or "no sensor"


def never_affordable(config: Config, *, board_mib: float | None, disk_mib: float | None) -> list[str]:
    """
    A sentence for each budget that no round can ever keep on this board.

    Args:
        config: the budgets.
        board_mib: memory of the board; None: not known.
        disk_mib: size of the file system of `paths.state_dir`; None: not known.
    """
    budgets, sentences = config.budgets, []
    kept, disk = budgets.memory_available_min, budgets.disk_free_min
    if board_mib is not None and kept is not None and board_mib * 2**20 - kept < TRAINER_AT_REST:
        left = units.show(max(0, board_mib * 2**20 - kept), "bytes")
        sentences.append(
            f"no round can ever run: of {units.show(board_mib * 2**20, 'bytes')} budgets.memory_available_min leaves "
            f"{left}, and Python and torch alone take {units.show(TRAINER_AT_REST, 'bytes')}"
        )
    if disk_mib is not None and disk is not None and disk >= disk_mib * 2**20:
        sentences.append(
            f"no round can ever run: budgets.disk_free_min is {units.show(disk, 'bytes')}, "
            f"and the whole disk of paths.state_dir has {units.show(disk_mib * 2**20, 'bytes')}"
        )
    return sentences


def merged(old: Config, new: Config) -> Config:
    """The new configuration, with the old value wherever a key takes effect only after a restart."""
    for key in configuration.needs_restart(old, new):
        section, _, name = key.partition(".")
        if not name:
            new = new.model_copy(update={section: getattr(old, section)})
            continue
        mended = getattr(new, section).model_copy(update={name: getattr(getattr(old, section), name)})
        new = new.model_copy(update={section: mended})
    return new


def api_limits(config: Config) -> ApiLimits:
    """How much a client may ask for."""
    serving = config.serving
    return ApiLimits(
        body_max_bytes=serving.body_max,
        connections_max=serving.connections_max,
        queue_max=serving.queue_max,
        header_timeout_s=serving.header_timeout,
        body_timeout_s=serving.body_timeout,
        request_timeout_s=serving.request_timeout,
    )


def board_sensors(config: Config, clock: Clock, *, disk_path: Path | None = None) -> BoardSensors:
    """The sensors of this board; `disk_path`: another than the state directory, while that is not there yet."""
    budgets, kind = config.budgets, identify().kind
    return BoardSensors(
        jtop=JtopProbe(clock=clock) if kind == "jetson" else None,
        vcgencmd=Vcgencmd(clock=clock) if kind == "raspberry_pi" else None,
        clock=clock,
        disk_path=disk_path or config.paths.state_dir,
        estimate=budgets.estimate,
        idle_w=budgets.estimated_idle,
        busy_w=budgets.estimated_busy,
    )


def inbox(config: Config, preprocess: Preprocess | None, limits: ImageLimits, clock: Clock) -> Inbox:
    """Where images arrive; `preprocess` is the served model's."""
    return Inbox(
        config.paths.inbox,
        config.paths.state_dir / "quarantine" / "inbox",
        preprocess=preprocess,
        store=config.buffer.store,
        settle_s=config.inbox.settle,
        scan_interval_s=config.inbox.scan_interval,
        watch=config.inbox.watch,
        limits=limits,
        group_block_s=config.buffer.group_block,
        keep_originals=config.inbox.keep_originals,
        batch=config.inbox.batch,
        clock=clock,
        move=durable.move,
        remove=durable.remove_files,
    )


def trigger_policy(config: Config) -> TriggerPolicy:
    """When a round is wanted."""
    triggers, training = config.triggers, config.training
    return TriggerPolicy(
        new_samples=triggers.new_samples,
        new_class_samples=triggers.new_class_samples,
        max_interval_s=triggers.max_interval,
        min_interval_s=triggers.min_interval,
        holdout_min=config.gate.holdout_min,
        prunes=config.pruning.level > 0,
        concern_samples=triggers.drift_samples,
        new_unlabelled=triggers.new_unlabelled if training.uses_unlabelled and training.teacher != "ancestor" else None,
        learns_unlabelled=training.uses_unlabelled,
    )


def watch_policy(config: Config) -> WatchPolicy | None:
    """How the served model's answers to unlabelled images are watched; None: nobody asks it."""
    triggers = config.triggers
    if triggers.watch_interval is None:
        return None
    return WatchPolicy(
        interval_s=triggers.watch_interval,
        window=triggers.estimate_window,
        drop_max=triggers.estimate_drop_max,
        drift=None
        if triggers.drift_window is None
        else DriftPolicy(
            warm_up=triggers.drift_warm_up, window=triggers.drift_window, cool_down=triggers.drift_cool_down
        ),
    )


def return_policy(config: Config) -> ReturnPolicy | None:
    """When a class that the site had not shown has returned; None: nobody looks."""
    triggers = config.triggers
    if triggers.returned_class_sightings is None:
        return None
    return ReturnPolicy(
        sightings=triggers.returned_class_sightings,
        window=triggers.returned_class_window,
        confidence=triggers.returned_class_confidence,
    )


def round_settings(config: Config) -> RoundSettings:
    """What the configuration says about rounds."""
    budgets, triggers, probation = config.budgets, config.triggers, config.probation
    return RoundSettings(
        recipe=configuration.recipe(config),
        gate=configuration.gate_policy(config),
        probation=ProbationPolicy(
            duration_s=probation.duration,
            feedback_min=probation.feedback_min,
            accuracy_drop_max=probation.accuracy_drop_max,
            confidence_drop_max=probation.confidence_drop_max,
            latency_ratio_max=probation.latency_ratio_max,
        ),
        builders=config.builders,
        teacher=configuration.teacher(config),
        samples_max=config.training.samples_max,
        learns_unlabelled=config.training.uses_unlabelled,
        serving_threads=configuration.serving_threads(config),
        versions_kept=config.serving.versions_kept,
        round_time_max_s=budgets.round_time_max,
        round_energy_max_j=budgets.round_energy_max,
        paused_max_s=budgets.paused_max,
        spec_max_age_s=budgets.spec_max_age,
        stall_s=budgets.stall,
        stop_grace_s=budgets.stop_grace,
        nice=budgets.nice,
        oom_score_adj=budgets.oom_score_adj,
        cooldown_s=triggers.cooldown,
        cooldown_factor=triggers.cooldown_factor,
        cooldown_max_s=triggers.cooldown_max,
    )


def buffer_policy(config: Config) -> BufferPolicy:
    """What the buffer is told, at the start and on reload."""
    return BufferPolicy(
        quota_bytes=config.buffer.quota,
        validation_share=config.buffer.validation,
        holdout_share=config.buffer.holdout,
        validation_min=config.buffer.validation_min,
        holdout_min=config.buffer.holdout_min,
        new_classes=config.classes.new,
        predictions_max=config.buffer.predictions_max,
    )
