"""One row of the data-aware grid, and of what is compared with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgetune.learn.latency import Stopwatch
from edgetune.learn.network import Network

FULL = "full"  # how the name of the paper's whole schedule begins


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One trained network; the first fields are its key."""

    net: str
    images: str  # "seen" | "unseen"
    subset: str
    unit: str  # of the level
    level: float  # per cent of that unit to remove; 0: unpruned
    arm: str
    seed: int
    schedule: str
    parameters: int = 0
    removed: float = 0.0  # per cent of the parameters
    macs: int = 0
    validation: float = 0.0
    test: float = 0.0  # top-1 of the subset's test images among all classes
    latency_ms: float = 0.0
    base_ms: float = 0.0  # of the unpruned network, interleaved with it
    seconds: float = 0.0  # tune, score, cut, retrain
    peak_mib: float = 0.0  # resident memory of this process meanwhile
    joules: float | None = None  # of the whole board meanwhile; None: nothing measured them, as in the next two
    served_mib: float | None = None  # what the result takes of memory in the serving engine
    served_joules: float | None = None  # of the whole board, for one prediction
    latency_ratio: float | None = (
        None  # to the base's, of turns in which little was in the way; None: an older run, which kept two medians
    )

    @property
    def ratio(self) -> float:
        """Of the latency to the base's."""
        return self.latency_ms / self.base_ms if self.latency_ratio is None else self.latency_ratio

    @property
    def key(self) -> tuple[str, ...]:
        """What says which cell it is."""
        return (
            self.net, self.images, self.subset, self.unit, f"{self.level:g}", self.arm, str(self.seed), self.schedule,
        )  # fmt: skip


def timing(stopwatch: Stopwatch, network: Network) -> dict[str, Any]:
    """The fields about latency: medians, and the ratio of the undisturbed turns."""
    (ratio, mine), (_, base) = stopwatch.compared([network])
    return {
        "latency_ms": round(mine.median_ms, 4),
        "base_ms": round(base.median_ms, 4),
        "latency_ratio": round(ratio, 4),
    }
