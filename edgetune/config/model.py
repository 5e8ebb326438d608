"""
The configuration as a model: every key with its default, its unit and its meaning.

config.yaml and docs/configuration.md are written from here and from `round_sections`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgetune import units
from edgetune.config.quantities import (
    AbsolutePath,
    Bytes,
    Celsius,
    Count,
    Duration,
    Hours,
    Joules,
    LoopbackAddress,
    Name,
    Pixels,
    Points,
    PositiveCount,
    PositiveDuration,
    PositiveShare,
    Reference,
    Share,
    Watts,
)
from edgetune.config.round_sections import Gate, Probation, Pruning, Training
from edgetune.config.section import Contradictions, Section, key

TRAINER_AT_REST = (
    200 * 2**20
)  # bytes; 266 MiB were resident after its imports with torch 2.13 on x86, and some less may do
_SOCKET_PATH_MAX = 107  # bytes, of sockaddr_un.sun_path less its final NUL


class Paths(Section):
    """Where things are."""

    state_dir: AbsolutePath = key("/var/lib/edgetune", "Everything that must survive a power cut.", reload=False)
    inbox_dir: AbsolutePath | None = key(
        None,
        "Where images are dropped; null: inbox/ in state_dir.",
        reload=False,
        example="/srv/camera/edgetune",
    )
    runtime_dir: AbsolutePath = key("/run/edgetune", "Where the socket edgetune.sock is made.", reload=False)

    @property
    def inbox(self) -> Path:
        """The inbox, wherever it is."""
        return self.inbox_dir or self.state_dir / "inbox"

    @property
    def socket(self) -> Path:
        """The service's socket."""
        return self.runtime_dir / "edgetune.sock"

    @model_validator(mode="after")
    def _check(self) -> Paths:
        if len(str(self.socket).encode()) > _SOCKET_PATH_MAX:
            raise ValueError(f"runtime_dir is too long: a socket's path has at most {_SOCKET_PATH_MAX} bytes")
        return self


class Inbox(Section):
    """How images are taken in."""

    settle: Duration = key("2s", "A file is taken once its size and time have stood still this long.", reload=False)
    scan_interval: PositiveDuration = key(
        "30s", "Time between full scans; a file event only makes the next one come sooner.", reload=False
    )
    watch: Literal["auto", "inotify", "poll"] = key(
        "auto", "How changes are noticed: auto, inotify, or poll (for network mounts).", reload=False
    )
    max_file: Bytes = key("32MiB", "Larger files go to the quarantine.", reload=False)
    max_pixels: Pixels = key("50Mpx", "Images with more pixels go to the quarantine, undecoded.", reload=False)
    keep_originals: bool = key(False, "Leave a file in the inbox after it was taken.", reload=False)
    batch: PositiveCount = key(256, "Files taken with one commit.", reload=False)


class Classes(Section):
    """Classes that the factory model does not know."""

    new: Literal["ask", "accept", "refuse"] = key(
        "ask",
        "A class never seen before: ask waits for `edgetune data accept CLASS`, accept takes it, refuse keeps its"
        " samples out of rounds.",
    )
    accepted: Annotated[tuple[Name, ...], Field(strict=False)] = key(
        (), "Classes accepted without asking. Names in quotes: YAML reads no, on and 1 as something else.",
        example='["salmon", "trout"]',
    )  # fmt: skip
    refused: Annotated[tuple[Name, ...], Field(strict=False)] = key(
        (), "Classes never to be trained, for instance a mistyped folder.", example='["slamon"]'
    )

    @model_validator(mode="after")
    def _check(self) -> Classes:
        both = sorted(set(self.accepted) & set(self.refused))
        if both:
            raise ValueError(f"accepted and refused both name {', '.join(map(repr, both))}")
        return self


class Buffer(Section):
    """The samples kept on this board."""

    quota: Bytes = key("2GiB", "Stored image bytes; over it, the oldest samples of the largest classes go first.")
    store: Literal["model_size", "original"] = key(
        "model_size", "What is kept of an image: model_size (lossless, at the model's input size) or original.",
        reload=False,
    )  # fmt: skip
    validation: PositiveShare = key("15%", "Share of new samples that choose settings and stop early, never train.")
    holdout: PositiveShare = key("15%", "Share of new samples that only the gate sees.")
    validation_min: Count = key(20, "Validation samples of a class that are never evicted.")
    holdout_min: Count = key(20, "Hold-out samples of a class that are never evicted.")
    group_block: Duration = key(
        "10min", "Images of one source within this time are near-twins and share a split; 0s: each image for itself.",
        reload=False,
    )  # fmt: skip
    predictions_max: Count = key(100_000, "Rows of answered predictions kept for feedback and probation.", reload=False)
    keep_prediction_images: bool = key(
        False, "Keep the image of each prediction so that a later label makes it a sample.", reload=False
    )
    readings_interval: PositiveDuration = key("10s", "Time between stored readings of the board.", reload=False)
    readings_max_age: PositiveDuration = key("7d", "Older readings are dropped.", reload=False)

    @model_validator(mode="after")
    def _check(self) -> Buffer:
        if self.validation + self.holdout > 0.8:
            raise ValueError("validation and holdout together leave less than 20 % of the samples for training")
        return self


class Triggers(Section):
    """When a round is wanted."""

    new_samples: PositiveCount = key(200, "New labelled training samples that make a round worth it.")
    new_unlabelled: PositiveCount | None = key(
        1_000,
        "New unlabelled training images that do, where rounds learn from them (training.unlabelled) and from another "
        "teacher than the factory model: that one can teach nothing new; null: never for this reason.",
    )
    new_class_samples: PositiveCount = key(
        20, "Training samples that do, of a class the model does not know or was not shown here."
    )
    imprint_samples: PositiveCount | None = key(
        5,
        "Training samples of a new class with which it is answered at once, from their mean and marked provisional, until a"
        " round learns it; null: not before a round has.",
    )
    returned_class_sightings: PositiveCount | None = key(
        12,
        "Want a round when the factory model sees a class that this site had not shown in so many unlabelled images and"
        " the served model says another one; null: nobody looks.",
    )
    returned_class_window: PositiveCount = key(
        400, "These sightings must be among so many images last looked at.", le=10_000
    )
    returned_class_confidence: float = key(
        0.7, "How sure the factory model must be for a sighting, from 0 to 1.", gt=0, lt=1
    )
    returned_class_interval: PositiveDuration = key(
        "1min", "Time between two looks, each at 32 images at most; none while a round trains or over budget."
    )
    watch_interval: PositiveDuration | None = key(
        "1min",
        "Time between two looks of the served model at unlabelled images, each at 32 at most, none while a round trains or"
        " over budget: for what to label next, its accuracy without labels, and whether the images change; null: never.",
    )
    estimate_window: PositiveCount = key(
        400, "Unlabelled images, the last ones, whose accuracy is estimated.", le=10_000
    )
    estimate_drop_max: Points | None = key(
        "10pp", "Want a round when this estimate is lower than on labelled images by more than this; null: never."
    )
    drift_window: PositiveCount | None = key(
        100,
        "Compare the model's confidence in so many images with its beginning, and want a round when it has changed; of near-"
        "twins only the first image counts; null: never.",
        le=10_000,
    )
    drift_warm_up: PositiveCount = key(
        200, "Images of a version's beginning that later ones are compared with.", le=10_000
    )
    drift_cool_down: Count = key(500, "Images after an alarm that are not compared.")
    drift_samples: PositiveCount = key(
        20, "New labelled training samples of such images that a round for either of these reasons needs."
    )
    max_interval: PositiveDuration | None = key(
        None, "Want a round after this long if there is anything new at all; null: never for this reason.", example="7d"
    )
    min_interval: Duration = key("0s", "At least this long between the end of one round and the next.")
    cooldown: PositiveDuration = key("10min", "Wait after a round that failed or was refused.")
    cooldown_factor: float = key(
        2.0, "Each further failure in a row makes the wait this many times longer.", ge=1, le=100
    )
    cooldown_max: PositiveDuration = key("24h", "The wait never gets longer than this.")

    @model_validator(mode="after")
    def _check(self) -> Triggers:
        if self.cooldown_max < self.cooldown:
            raise ValueError("cooldown_max is shorter than cooldown")
        if (self.returned_class_sightings or 0) > self.returned_class_window:
            raise ValueError("returned_class_sightings is more than returned_class_window")
        if self.max_interval is not None and self.max_interval < self.min_interval:
            raise ValueError("max_interval is shorter than min_interval")
        return self


class Budgets(Section):
    """What a round may take from this board. Null: no limit. A limit on what the board cannot measure is an error."""

    interval: PositiveDuration = key("2s", "Time between readings of the board.", reload=False)
    window: PositiveDuration = key(
        "30s",
        "Temperature, power, CPU, pressures and latencies are averaged over this long, and the trainer is slowed down to keep"
        " the averages below their limits; it should be several times as long as a step of training.",
    )
    memory_available_min: Bytes | None = key("300MiB", "Stop the trainer when less memory than this is available.")
    trainer_memory_max: Bytes | None = key(
        "1.5GiB",
        "Stop the trainer when it holds more than this; a round that is forecast to is run in smaller batches, or refused.",
    )
    disk_free_min: Bytes | None = key("500MiB", "Stop the trainer when state_dir has less room than this.")
    temperature_max: Celsius | None = key(
        None,
        "Keep the chip below this temperature: slow the trainer down, pause it where that is not enough.",
        example="80C",
    )
    power_max: Watts | None = key(
        None, "Keep the power of the whole board below this, on average over the window, likewise.", example="10W"
    )
    cpu_max: PositiveShare | None = key(
        None, "Slow the trainer down to keep all cores together below this, on average over the window.", example="60%"
    )
    memory_pressure_max: PositiveShare | None = key(
        None, "Stop the trainer when processes wait for memory more of the time than this (PSI).", example="20%"
    )
    cpu_pressure_max: PositiveShare | None = key(
        None, "Slow the trainer down when processes, itself included, wait for a core more of the time than this (PSI).",
        example="50%",
    )  # fmt: skip
    io_pressure_max: PositiveShare | None = key(
        None, "Slow the trainer down when processes wait for the disk more of the time than this (PSI).", example="30%"
    )
    mains_only: bool = key(False, "Train only while the board is on mains power.")
    battery_min: PositiveShare | None = key(None, "Pause the trainer when less of the battery is left.", example="40%")
    energy_per_day_max: Joules | None = key(
        None,
        "When the whole board has used this much while it trained, no round begins or goes on until the next local day.",
        example="20Wh",
    )
    writes_per_day_max: Bytes | None = key(
        None,
        "When the service and its rounds have written this much to the disk, no round begins or goes on until the next local"
        " day; an SD card wears out by it.",
        example="2GiB",
    )
    hours: Annotated[tuple[Hours, ...], Field(strict=False)] = key(
        (), "Hours of the day, local time, in which a round may run; empty: always.", example='["22:00-06:00"]'
    )
    hysteresis: Share = key(
        "5%", "How far inside a limit a value must come back before work goes on, as a share of it."
    )
    round_time_max: PositiveDuration = key(
        "2h",
        "A round is stopped after this much training time; it trains for fewer epochs where its forecast is longer.",
    )
    round_energy_max: Joules | None = key(
        None,
        "A round is stopped after the whole board used this much while it trained; it trains for fewer epochs where its "
        "forecast is more.",
        example="20Wh",
    )
    paused_max: PositiveDuration = key("2h", "A pause longer than this stops the trainer, which frees its memory.")
    spec_max_age: PositiveDuration = key("7d", "A stopped round is given up after this long; its samples are too old.")
    nice: int = key(15, "Niceness of the trainer.", ge=0, le=19)
    oom_score_adj: int = key(500, "How readily the kernel kills the trainer when memory ends.", ge=0, le=1000)
    stall: PositiveDuration = key("5min", "Kill a trainer that reports no progress for this long, pauses not counted.")
    stop_grace: PositiveDuration = key("60s", "Time a trainer has to write its checkpoint before it is killed.")
    estimate: bool = key(
        False, "Estimate power from CPU use where no sensor gives it; status then says so.", reload=False
    )
    estimated_idle: Watts | None = key(None, "Power of the idle board, for the estimate.", reload=False, example="3W")
    estimated_busy: Watts | None = key(
        None, "Power of the board with all cores busy, for the estimate.", reload=False, example="8W"
    )

    @model_validator(mode="after")
    def _check(self) -> Budgets:
        if self.estimate and (self.estimated_idle is None or self.estimated_busy is None):
            raise ValueError("estimate needs estimated_idle and estimated_busy")
        found = [(key, sentence) for key, is_wrong, sentence in self._contradictions() if is_wrong]
        if found:
            raise Contradictions(found)
        return self

    def _contradictions(self) -> Iterator[tuple[str, bool, str]]:
        """Each key that may contradict another, whether it does, and how."""
        idle_w, busy_w, power_w = self.estimated_idle, self.estimated_busy, self.power_max
        round_j, day_j, memory = self.round_energy_max, self.energy_per_day_max, self.trainer_memory_max
        yield "estimated_busy", bool(idle_w and busy_w and busy_w <= idle_w), "it must be more than estimated_idle"
        yield "hysteresis", self.hysteresis > 0.5, "it is more than 50%, so that work would hardly ever go on"
        yield "window", self.window < self.interval, "it is shorter than interval: there is nothing to average"
        yield (
            "power_max",
            bool(self.estimate and power_w and idle_w and power_w <= idle_w),
            (
                f"the idle board is estimated to take {units.show(idle_w or 0, 'power')} (estimated_idle), so no round could run"
            ),
        )
        yield (
            "round_energy_max",
            bool(round_j and day_j and round_j > day_j),
            (f"a round may not use more than a whole day, {units.show(day_j or 0, 'energy')} (energy_per_day_max)"),
        )
        yield (
            "trainer_memory_max",
            memory is not None and memory < TRAINER_AT_REST,
            (f"Python and torch alone take {units.show(TRAINER_AT_REST, 'bytes')} before there is anything to train"),
        )


class Serving(Section):
    """The socket and the served model."""

    threads: PositiveCount | None = key(
        None, "Threads of a prediction; null: as many as the board has cores.", reload=False, le=256
    )
    spinning: bool = key(False, "Let idle threads spin: a little faster under load, warm at rest.", reload=False)
    reject: float | None = key(
        None,
        "Answers of a calibrated confidence below this, from 0 to 1, go to the factory model, and are rejected where that is "
        'unsure too ("label": null); it then takes memory as well. null: every answer stands.',
        gt=0,
        lt=1,
        example="0.5",
    )
    latency_max: PositiveDuration | None = key(
        None,
        "While a round runs, 99 of 100 predictions of the last budgets.window are to be answered within this; else the trainer"
        " is slowed down, and paused where that is not enough.",
        example="50ms",
    )
    versions_kept: PositiveCount = key(5, "Versions kept on disk, beside the served, the former and the factory model.")
    socket_group: Name | None = key(
        "edgetune", "Group that may read, predict and label; null: leave the socket's group alone.", reload=False
    )
    admin_group: Name | None = key(
        None, "Group that may also train, promote, roll back, reload and purge; root always may.", reload=False,
        example="edgetune-admin",
    )  # fmt: skip
    tcp: LoopbackAddress | None = key(
        None, "A loopback address to serve on as well, with the group's rights for whoever is on this board.",
        reload=False, example='"127.0.0.1:8090"',
    )  # fmt: skip
    body_max: Bytes = key("32MiB", "Largest request.", reload=False)
    connections_max: PositiveCount = key(64, "Most open connections.", reload=False)
    queue_max: PositiveCount = key(64, "Most predictions waiting; more are answered with 503.", reload=False)
    header_timeout: PositiveDuration = key("5s", "A client must have sent its request's head by then.", reload=False)
    body_timeout: PositiveDuration = key("30s", "A client must have sent its request's body by then.", reload=False)
    request_timeout: PositiveDuration = key("60s", "An answer must be given by then.", reload=False)


class Log(Section):
    """What goes to the journal."""

    level: Literal["debug", "info", "warning", "error"] = key("info", "Least severe message written.")


class Config(Section):
    """The whole configuration of a board."""

    paths: Paths = Paths()
    inbox: Inbox = Inbox()
    classes: Classes = Classes()
    buffer: Buffer = Buffer()
    triggers: Triggers = Triggers()
    budgets: Budgets = Budgets()
    pruning: Pruning = Pruning()
    training: Training = Training()
    gate: Gate = Gate()
    probation: Probation = Probation()
    serving: Serving = Serving()
    builders: dict[Name, Reference] = key(
        {}, "Architectures of your own: a name and the package.module:function that builds it, called with num_classes.",
        example="{mynet: mypackage.nets:mynet}",
    )  # fmt: skip
    log: Log = Log()
