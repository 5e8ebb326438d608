"""What a compression is asked for, what decides, and what came out; see `learn.compress`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgetune.learn.data import LabelledImages
from edgetune.learn.network import Network
from edgetune.types import Preprocess


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a compression has to keep and what it is after."""

    accuracy_drop_max: float = 0.01  # of the validation top-1 below that of the network as given, 0..1
    ratio: float | None = None  # of the cost (the recipe's `level_of`) that is small enough; None: as far as it goes
    strategy: str = "steps"  # "steps" | "dapr", see decide.search
    accuracy_min: float = 0.0  # least validation top-1, whatever that of the network as given
    trial_epochs: float = 4  # most epochs of one trial of "steps"; "dapr" gives each its full retraining
    epochs_max: float | None = None  # over everything; None: no bound
    seconds_max: float | None = None  # likewise, by the pace of the epochs so far; what is under way is finished
    joules_max: float | None = None  # likewise, of the whole board; needs a control that knows them


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """The images that decide."""

    training: LabelledImages
    validation: LabelledImages  # selects; is never trained on
    preprocess: Preprocess
    classes: tuple[str, ...]  # of the network's outputs, in order


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One network that was looked at: where it lies between small and good."""

    share: float  # asked, of the cost
    parameters: int
    macs: int
    latency_ratio: float  # to the network as given, interleaved
    accuracy: float  # validation top-1
    epochs: float  # that this trial took
    is_success: bool
    is_limit: bool = False  # only just, after the whole retraining
    cut: Mapping[str, Any] | None = None  # of its trial, see `shaping.describe_cut`; None: nothing was cut
    why: str = ""  # it cannot be cut so far; empty: it could


@dataclass(slots=True)
class Outcome:
    """What a compression found."""

    network: Network  # on the CPU, wherever it was trained
    base: Point  # the network as given
    best: Point  # `network`
    points: list[Point] = field(default_factory=list)  # every trial, in order
    epochs: float = 0.0  # over everything
    seconds: float = 0.0
    joules: float | None = None  # of the whole board; None: nothing measures them
    stopped_by: str = ""  # why the search ended
