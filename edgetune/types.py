"""
The values that cross a module border: frozen dataclasses and enums, nothing else.

`None` means unknown. A label is a class name, never an index. A digest is a lower-case SHA-256 in hexadecimal.
A share or an accuracy lies between 0 and 1, in files and on the socket too.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# --------------------------------------------------------------------------------------------------- samples


class Split(str, enum.Enum):
    """Which part of the buffer a sample belongs to, for ever: assigned by hash of its group."""

    TRAINING = "training"
    VALIDATION = "validation"
    HOLDOUT = "holdout"


class LabelSource(str, enum.Enum):
    """Who said what a sample shows."""

    FOLDER = "folder"  # the inbox folder it was dropped into
    SIDECAR = "sidecar"  # the JSON file beside it
    API = "api"  # POST /v1/samples?label= or `edgetune data label`
    FEEDBACK = "feedback"  # POST /v1/predictions/{id}/label
    FACTORY = (
        "factory"  # the factory model, of a class that came back; for training alone, and any other word counts more
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """How an image becomes the model's input: one decode, one resize, and a normalisation inside the graph."""

    height: int
    width: int
    resize: str = "stretch"  # "stretch": to (height, width); "center_crop": shorter side, then the middle
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of RGB in 0..1
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSample:
    """A checked image on its way into the buffer."""

    digest: str  # of the file's original bytes
    image: bytes  # what is stored: the original, or the upright image at the model's size
    width: int
    height: int
    label: str | None
    label_source: LabelSource | None
    group: str  # near-twins share it and so share a split
    origin: str  # path inside the inbox, or "api"
    taken_at_s: float  # wall clock, for people


class AddOutcome(str, enum.Enum):
    """What the buffer did with a sample."""

    STORED = "stored"
    DUPLICATE = "duplicate"  # these bytes were there already; its count went up
    RELABELLED = "relabelled"  # these bytes were there already, under another label or none


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenSample:
    """One sample of a running round."""

    sample_id: int
    digest: str
    label: str | None  # None: nobody has said, and it is for training
    split: Split


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassStats:
    """What the buffer holds of one class."""

    label: str
    status: str  # "accepted" | "pending" | "refused"
    training: int
    validation: int
    holdout: int
    labelled_since_round: int  # labelled or relabelled since the last finished round
    training_since_round: int = 0  # those of them that are for training

    @property
    def total(self) -> int:
        """Samples of this class in all splits."""
        return self.training + self.validation + self.holdout


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferStats:
    """What the buffer holds, as the trigger and `status` see it."""

    samples: int
    labelled: int
    unlabelled: int
    duplicates: int
    stored_bytes: int
    quota_bytes: int
    pinned: int
    evicted: int
    quarantined: int
    new_labelled: int  # training samples of accepted classes, labelled since the last finished round
    classes: tuple[ClassStats, ...]
    new_unlabelled: int = 0  # training samples without a label that no round has used


# --------------------------------------------------------------------------------------------------- the board


class Quantity(str, enum.Enum):
    """What a budget can be set on; the value is its name with its unit, everywhere."""

    MEM_AVAILABLE_MIB = "mem_available_mib"
    TRAINER_RSS_MIB = "trainer_rss_mib"
    SOC_TEMP_C = "soc_temp_c"
    POWER_W = "power_w"
    CPU_SHARE = "cpu_share"  # of all cores, 0..1
    DISK_FREE_MIB = "disk_free_mib"
    ON_MAINS = "on_mains"  # 1.0 or 0.0
    BATTERY_SHARE = "battery_share"  # of a full battery, 0..1
    IS_THROTTLED = "is_throttled"  # 1.0 while the firmware holds clocks down, for heat or low voltage
    MEM_PRESSURE = "mem_pressure"  # pressure stall information, "some" of the last 10 s, 0..1
    CPU_PRESSURE = "cpu_pressure"
    IO_PRESSURE = "io_pressure"
    SERVING_P99_MS = "serving_p99_ms"  # of the predictions of the last window; 0.0: there were none
    ENERGY_DAY_J = "energy_day_j"  # of the whole board while it trained, since the day's account was opened
    WRITTEN_DAY_MIB = "written_day_mib"  # by this service and its trainers, likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One quantity as read now."""

    value: float | None
    source: str  # "/sys/class/thermal/thermal_zone0", "psutil", "jtop", "none"
    why_unknown: str = ""
    is_estimated: bool = False
    resolution: float | None = None  # the smallest step of the value, in the quantity's unit; None: not known
    age_s: float = 0.0  # since the sensor was last really updated


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All quantities at one moment."""

    at_s: float  # Clock.now_s
    wall_s: float
    local_minute: int  # minutes since local midnight, 0..1439
    values: Mapping[Quantity, Measurement]

    def value(self, quantity: Quantity) -> float | None:
        """The number, or None when this board did not give one."""
        measurement = self.values.get(quantity)
        return None if measurement is None else measurement.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The operator's budgets; None means no limit."""

    mem_available_min_mib: float | None = None
    trainer_rss_max_mib: float | None = None
    soc_temp_max_c: float | None = None
    power_max_w: float | None = None
    cpu_share_max: float | None = None
    disk_free_min_mib: float | None = None
    round_energy_max_j: float | None = None  # needs the power to be known; the round keeps the sum
    energy_per_day_max_j: float | None = None  # likewise; the ledger keeps the sum
    writes_per_day_max_mib: float | None = None
    mains_only: bool = False
    battery_share_min: float | None = None
    mem_pressure_max: float | None = None
    cpu_pressure_max: float | None = None
    io_pressure_max: float | None = None
    serving_p99_max_ms: float | None = None
    window_s: float = 30.0  # over which what is paced is averaged
    hours: tuple[tuple[int, int], ...] = ()  # (from, to) in minutes since local midnight; empty: always
    hysteresis: float = 0.05  # how far inside a limit a value must come back before work goes on, as a share of it


class VerdictKind(str, enum.Enum):
    """What the budget allows a trainer, from the loosest to the strictest."""

    RUN = "run"
    THROTTLE = "throttle"
    PAUSE = "pause"  # gives back heat, watts and CPU
    STOP = "stop"  # gives back memory too


class BreachKind(str, enum.Enum):
    """Which of the round machine's events a breach becomes."""

    NONE = "none"
    TOO_HOT = "too_hot"
    TOO_HUNGRY = "too_hungry"  # watts or CPU
    TOO_BIG = "too_big"  # memory or disk
    WITHHELD = "withheld"  # hours of the day, an operator's pause


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the budget says now, and why."""

    kind: VerdictKind
    duty: float  # share of the time a trainer may compute, 0..1
    breach: BreachKind = BreachKind.NONE
    reasons: tuple[str, ...] = ()  # "soc_temp_c value=83.5 limit=80.0"


# --------------------------------------------------------------------------------------------------- forecasts


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a training step of a network consists of: for one image, where nothing else is said."""

    kept_mib: float  # activations that autograd keeps from the forward to the backward pass
    largest_mib: float  # of what one layer reads and writes, the most
    mega_macs: float  # of convolutions, in whole tiles of channels; a third of them forward, the rest backward
    grouped_mega_macs: float  # of grouped and depthwise convolutions, which processors are slow at
    layers: int  # with weights, as often as they run
    mega_weights: float  # parameters a step updates, whatever the batch


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPoint:
    """A training step as measured on this board."""

    workload: Workload
    batch_size: int
    threads: int
    rest_mib: float  # resident memory of the process before its first step
    peak_mib: float | None = None
    step_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What was left of a network when so much of its weights was left, as powers of that share."""

    macs: float
    kept: float  # activations that autograd keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFigures:
    """What a finished round took beside its training steps."""

    # Of a round in pieces, and of one that searched, the next two are not known.
    other_s: float | None = None  # loading, ranking, exporting, comparing
    other_share: float | None = None  # the process's peak in what came after its steps, as a share of that in its steps
    power_w: float | None = None  # of the board while it trained; None: not measured
    is_reshape: bool = False
    ranking_share: float | None = (
        None  # memory that ranking filters took, of what a pass was said to; None: none ranked
    )
    cut: Cut | None = None  # None: nothing was cut, or the whole network was not trained before


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardHistory:
    """What forecasts on this board learn from, oldest first."""

    points: tuple[StepPoint, ...] = ()
    rounds: tuple[RoundFigures, ...] = ()
    bare_mib: float | None = None  # that a trainer takes before it has loaded anything
    duties: tuple[float, ...] = ()  # the share of the time in which each round that trained was let compute, 0..1


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A number that is not known yet; nine of ten lie between `low` and `high`."""

    low: float
    likely: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a round will take, and how it would be run."""

    peak_mib: Interval
    step_s: Interval
    duration_s: Interval
    energy_j: Interval | None  # None: this board's power while it trains is not known
    batch_size: int
    accumulation: int  # batches that make one step
    threads: int
    update: str
    fits: bool
    reason: str  # why not, with the number that does not fit; else what differs from what the configuration asks for
    calibrated_on: int  # rounds
    beside_mib: float = 0.0  # that a teacher's process holds, which counts as the round's
    training: float = 1.0  # share of the epochs, 0..1, less than all because they would take too long


# --------------------------------------------------------------------------------------------------- rounds


class RoundKind(str, enum.Enum):
    """The kinds of round."""

    ADAPT = "adapt"  # fine-tune the served version
    RESHAPE = "reshape"  # prune the factory model anew
    IMPRINT = (
        "imprint"  # give the served version an output for a new class, without training; the daemon's own idea alone
    )


class RoundState(str, enum.Enum):
    """The states of the round machine (decide/rounds.py)."""

    IDLE = "idle"
    HELD = "held"
    TRAINING = "training"
    PAUSED = "paused"
    STOPPING = "stopping"
    SUSPENDED = "suspended"
    VERIFYING = "verifying"
    COOLDOWN = "cooldown"


CRITERIA = (
    "l1",
    "taylor",
    "fisher",
    "activation",
    "nonzeros",
    "class_activation",
    "class_activation_count",
    "random",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a round does to the weights, beside the samples. Defaults are those of config.yaml that stand for themselves."""

    criterion: str = "taylor"  # one of CRITERIA, or "package.module:Class"
    level: float = 0.5  # share of the factory model's cost to remove; 0 only fine-tunes
    level_of: str = "parameters"  # "parameters" | "macs" | "latency", measured in the serving runtime
    search: str = "steps"  # "steps" | "dapr": as far towards `level` as the accuracy allows; "none": exactly `level`
    accuracy_drop_max: float = 0.01  # of a search, on validation samples, 0..1
    trial_epochs: float = 4  # most epochs of one trial of a search
    search_time_max_s: float | None = None  # no trial begins that would not be retrained by then
    search_energy_max_j: float | None = None  # likewise
    remove_branches: bool = True  # where the level is a latency: residual branches as a whole, see learn.depth
    order: str = (
        "auto"  # "tune_first" | "prune_first" | "auto": the second where tuning the whole network takes too much
    )
    memory_max_mib: float | None = None  # of the trainer; None: any
    round_to: int | None = None  # kept channels are a multiple of this; None: measured, see learn.tuner
    epochs_before: float = 4  # on the site's samples, before filters are ranked
    epochs_after: float = 12
    batch_size: int = 64
    learning_rate: float = 0.02
    learning_rate_before: float = 0.005
    schedule: str = "auto"  # or "cosine", or "paper": for its networks the rates, epochs and batch of learn.schedules
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: str = "crop_flip"  # "none" | "crop" | "crop_flip"
    augment_views: int | None = None  # ways in which an image is changed, the same for ever; None: another each time
    max_steps: int | None = None  # over all epochs; None: no bound
    checkpoint_steps: int = 100
    scoring_batches: int = 30
    timing_runs: int = 50
    seed: int = 0
    threads: int = 2  # of the trainer; part of the result, because sums depend on it
    cores_max: float | None = None  # that may be busy: `threads` at most, as trains fastest; None: exactly `threads`
    memory_format: str = "auto"  # "contiguous" | "channels_last" | "auto": the faster one is measured at the start
    dtype: str = "auto"  # "float32" | "bfloat16" | "auto": measured, where the processor has instructions for it
    distillation: float = 0.0  # 0..1, share of the loss in which the factory model has its say, absent classes too
    temperature: float = 2.0  # of the distillation
    replay_max_bytes: int | None = (
        None  # of decoded images of old classes, beside new ones in an adapting round; None: all
    )
    replay: str = "random"  # how they are chosen, evenly over the classes: "random" | "herding"
    old_classes_drop_max: float | None = (
        None  # 0..1, of right answers that new classes may take; None: any, see learn.imprint
    )
    old_class_drop_max: float = 0.1  # 0..1, likewise of any one old class
    rehearsal: str = "plain"  # the loss of such a round: "plain" | "er_ace" | "der++"
    transfer: str = "hinton"  # how to learn from the teacher, one of learn.transfer.TRANSFERS
    unlabelled_confidence_min: float = 0.95  # 0..1, how sure the teacher must be of an unlabelled sample
    update: str = (
        "auto"  # what an adapting round trains: "full" | "tail" | "head" | "latent" | "auto", see learn.partial
    )
    accumulation: int = 1  # batches that make one step; the plan of a round raises it where memory is short
    time_max_s: float | None = None  # of the round; None: any
    energy_max_j: float | None = None  # likewise
    memory_available_min_mib: float | None = None  # that the round has to leave to others; None: any


# Of an image where a teacher is asked beside the trainer: what it has said of them is kept, so that it is asked about the
# eight once, and not in every epoch of every round.
OUTSIDE_VIEWS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSource:
    """Whom a round learns from beside the labels."""

    kind: str = "ancestor"  # the factory model | "file" | "server"
    file: str = ""  # an ONNX file, or the directory of a version
    server: str = ""  # https://HOST[:PORT]/v2/models/NAME
    ca_file: str = ""  # who vouches for the server; empty: those whom the system trusts
    classes: Mapping[str, str | int] = field(default_factory=dict)  # ours -> its output, by name or number
    unseen_classes: tuple[str, ...] | Literal["all"] = ()  # that it knows and no sample shows, and are to be learnt
    size: int | None = None  # side of its input where it leaves that open; None: the student's
    mean: tuple[float, float, float] | None = None  # of RGB in 0..1, for an input of floats; None: the student's
    std: tuple[float, float, float] | None = None
    memory_max_mib: float = 512.0  # of a file's process
    cache_max_bytes: int = 64 * 2**20
    timeout_s: float = 30.0  # of one answer


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSpec:
    """What a trainer is told: rounds/0042/spec.json. With the buffer it is all that a round depends on."""

    round_id: int
    kind: RoundKind
    reason: str
    base_version: int  # what is served now, and what the gate compares with
    factory_version: int  # what `level` is relative to
    candidate_version: int  # the version to publish as
    generation: int  # raised by hand promotions and rollbacks; an older candidate is refused
    classes: tuple[str, ...]  # the candidate's outputs, in order; begins with the base's
    samples: tuple[FrozenSample, ...]
    samples_digest: str  # SHA-256 over the sorted "digest label split" lines
    recipe: Recipe
    models_dir: str
    buffer_path: str
    serving_threads: int  # the candidate is timed with what the service uses
    created_at: str  # ISO 8601 wall time, for people
    builders: Mapping[str, str] = field(default_factory=dict)  # reserved names -> "package.module:function"
    reference_path: str = "reference.npz"  # images of the factory model's classes, if there are any
    teacher: TeacherSource = TeacherSource()
    answers_dir: str = "answers"  # where a teacher's answers are kept
    refused_classes: tuple[str, ...] = ()  # that the operator does not want, whoever knows them
    history: BoardHistory = BoardHistory()  # what its forecast learns from


class TrainerOutcome(str, enum.Enum):
    """How a trainer ended: outcome.json. Everything but the first two ends the round in a cool-down."""

    PUBLISHED = "published"
    CHECKPOINTED = "checkpointed"
    NO_SAMPLES = "no_samples"
    ONE_CLASS = "one_class"
    NAN_LOSS = "nan_loss"
    OUT_OF_MEMORY = "out_of_memory"
    UNPRUNABLE = "unprunable"
    BAD_MODEL = "bad_model"
    DISK_FULL = "disk_full"
    MISSING_LIBRARY = "missing_library"
    BAD_TEACHER = "bad_teacher"
    WILL_NOT_FIT = "will_not_fit"  # by its forecast: nothing was trained
    PLANNED = "planned"  # only a plan was asked for
    FAILED = "failed"
    KILLED = "killed"  # written by the daemon: no outcome was left


# --------------------------------------------------------------------------------------------------- models


class Mark(str, enum.Enum):
    """What a version says of a class of its own beside every answer: how far its word on that class can be trusted."""

    NEVER_SEEN_HERE = "never_seen_here"  # learnt from a teacher's word on images of other classes
    PROVISIONAL = "provisional"  # answered from a few images; no round has trained on the class yet


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """How a model does on one class of the hold-out."""

    count: int
    correct: int

    @property
    def top1(self) -> float | None:
        """Share of right answers, or None without samples."""
        return self.correct / self.count if self.count else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What a model does on a set of labelled samples."""

    count: int
    correct: int
    loss: float  # mean cross-entropy in nats
    per_class: Mapping[str, ClassScore]

    @property
    def top1(self) -> float | None:
        """Share of right answers, or None without samples."""
        return self.correct / self.count if self.count else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Time of one prediction with the serving engine on this board, batch of one."""

    median_ms: float
    p90_ms: float
    runs: int
    threads: int
    ratio: float | None = None  # to what it was timed beside: the median over turns of what one turn says
    ratio_quartiles: tuple[float, float] | None = None  # the lower and the upper one of the same
    undisturbed_ratio: float | None = None  # of the runs that little else was in the way of


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """How large a model is."""

    parameters: int
    macs: int
    onnx_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsentClasses:
    """What became of the classes that the training samples do not show."""

    classes: int  # how many there are
    count: int = 0  # reference images of them; 0: nothing is known
    base_correct: int = 0
    candidate_correct: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Candidate against base on the same hold-out samples and the same runtime, interleaved."""

    base: Metrics
    candidate: Metrics
    only_base_correct: int  # samples that the base got right and the candidate wrong
    only_candidate_correct: int
    base_latency: Latency
    candidate_latency: Latency
    base_cost: Cost
    candidate_cost: Cost
    new_classes: tuple[str, ...] = ()  # classes the base has no output for
    unseen_classes: tuple[str, ...] = ()  # those of them that no sample shows: known by a teacher's word
    gone_classes: tuple[str, ...] = ()  # that the base has an output for, and the candidate has none
    absent: AbsentClasses | None = None  # None: every class was shown

    @property
    def latency_ratio(self) -> float:
        """The candidate's latency over the base's. On a busy board turns tell it where medians do not."""
        ratio = self.candidate_latency.ratio
        return self.candidate_latency.median_ms / self.base_latency.median_ms if ratio is None else ratio

    @property
    def latency_ratio_quartiles(self) -> tuple[float, float]:
        """Between which two ratios half of the turns lie; one figure twice where the turns were not kept."""
        quartiles = self.candidate_latency.ratio_quartiles
        return (self.latency_ratio, self.latency_ratio) if quartiles is None else quartiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What was cut, relative to the factory model."""

    criterion: str
    level_asked: float
    level_achieved: float  # in the unit that was asked for
    round_to: int
    level_of: str = "parameters"  # "parameters" | "macs" | "latency"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """models/v000042/manifest.json: what a version is, where it comes from and how good it was when published."""

    version: int
    kind: str  # "factory" | "adapt" | "reshape" | "imprint"; "compressed" by `edgetune prune`
    architecture: str  # "cifar:resnet20", "torchvision:mobilenet_v2", "package.module:function"
    classes: tuple[str, ...]
    preprocess: Preprocess
    parent: int | None
    generation: int
    round_id: int | None
    created_at: str  # ISO 8601 wall time
    files: Mapping[str, str]  # name -> SHA-256
    cost: Cost
    latency: Latency | None = None
    comparison: Comparison | None = None  # None for a factory model
    pruning: Pruning | None = None
    samples_digest: str = ""
    sample_count: int = 0
    libraries: Mapping[str, str] = field(default_factory=dict)
    source: str = ""  # of a factory model: the file it was imported from
    marks: Mapping[str, str] = field(default_factory=dict)  # class -> a `Mark`'s value; most classes have none


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePolicy:
    """When a candidate is good enough."""

    holdout_min: int = 50
    class_min: int = 5  # hold-out samples below which a class is reported, not judged
    accuracy_drop_max: float = 0.01  # observed
    accuracy_risk_max: float = 0.05  # that the hold-out cannot rule out, at `confidence`
    class_drop_max: float = 0.10
    protected_drop_max: float | None = None  # of a protected class, instead of `class_drop_max` where it is less
    protected_classes: tuple[str, ...] | None = None  # None: all
    confidence: float = 0.95  # of the paired test
    latency_ratio_max: float = 1.0  # refused where three of four turns are above it, or the undisturbed ones clearly
    size_ratio_max: float = 1.05
    accuracy_gain_min: float = 0.005  # a candidate that is neither faster nor smaller must be better by this
    worthwhile_ratio: float = 0.95  # of latency or parameters: below it counts as faster or smaller
    absent_drop_max: float | None = None  # on reference images of classes that the site does not show; None: any


@dataclass(frozen=True, slots=True, kw_only=True)
class GateDecision:
    """Promote or refuse, with every reason."""

    is_promoted: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    uses_up_samples: bool = True  # False: the candidate was not judged by them, so they stay new


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One prediction."""

    prediction_id: str
    model_version: int
    top: tuple[tuple[str, float], ...]  # (class, probability), best first
    latency_ms: float
    marks: Mapping[str, str] = field(default_factory=dict)  # of the version that answered, see `Manifest`
    is_rejected: bool = False  # neither the served nor the factory model is sure: `top` is what the served one guesses

    @property
    def label(self) -> str | None:
        """The class that is answered; None: nobody knows."""
        return None if self.is_rejected else self.top[0][0]
