"""How long predictions take: several engines in turn, so that heat and other work hit all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from edgetune.errors import UsageError
from edgetune.serve.engine import WARMUP_RUNS, Engine, Images
from edgetune.types import Latency

_UNDISTURBED = 0.1  # the quickest tenth of the runs


def time_interleaved(
    engines: Sequence[Engine | Callable[[Images], object]],
    images: Images,
    *,
    runs: int,
) -> list[Latency]:
    """
    Time predictions of one image, as `taken_in_turn` does.

    Returns:
        Of each engine, in the order given, with its ratio to the first. A callable that has no `threads` counts as one.
    """
    taken_ms = taken_in_turn(engines, images, runs=runs)
    return [
        as_latency(row, taken_ms[0], threads=getattr(engine, "threads", 1))
        for engine, row in zip(engines, taken_ms, strict=True)
    ]


def as_latency(taken_ms: npt.NDArray[np.float64], beside_ms: npt.NDArray[np.float64], *, threads: int) -> Latency:
    """
    Put times into words.

    Args:
        taken_ms: of one prediction in each turn, [runs].
        beside_ms: of what it is compared with, in the same turns, [runs].
        threads: that it was run with.
    """
    low, ratio, high = np.percentile(taken_ms / beside_ms, [25, 50, 75])
    return Latency(
        median_ms=float(np.median(taken_ms)),
        p90_ms=float(np.percentile(taken_ms, 90)),
        runs=len(taken_ms),
        threads=threads,
        ratio=float(ratio),
        ratio_quartiles=(float(low), float(high)),
        undisturbed_ratio=undisturbed_ratio(taken_ms, beside_ms),
    )


def undisturbed_ratio(taken_ms: npt.NDArray[np.float64], beside_ms: npt.NDArray[np.float64]) -> float:
    """
    What a prediction takes over what another one takes, by the runs [runs] of each in which little else was in the way.

    Other work adds to most runs, and to short and long ones differently. Of one network beside another process twelve
    measurements in a minute differed by 3 % so, and by 12 % as medians over the turns.
    """
    return float(np.quantile(taken_ms, _UNDISTURBED) / np.quantile(beside_ms, _UNDISTURBED))


def taken_in_turn(
    engines: Sequence[Engine | Callable[[Images], object]],
    images: Images,
    *,
    runs: int,
) -> npt.NDArray[np.float64]:
    """
    Time predictions of one image, engine after engine in turn, so that heat and other work hit all of them alike.

    Args:
        engines: engines, or callables that take images uint8 [1, H, W, 3].
        images: uint8 [N, H, W, 3], N >= 1; used in turn.
        runs: timed predictions of each engine, after `WARMUP_RUNS` untimed ones.

    Returns:
        Milliseconds [engines, runs]; a column is one turn.
    """
    if runs < 1 or not len(images):
        raise UsageError("timing needs at least one run and one image")
    calls = [engine.predict if isinstance(engine, Engine) else engine for engine in engines]
    batches = [np.ascontiguousarray(images[i : i + 1]) for i in range(len(images))]
    for call in calls:
        for run in range(WARMUP_RUNS):
            call(batches[run % len(batches)])
    taken_ms = np.empty((len(calls), runs))  # [engines, runs]
    for run in range(runs):
        batch = batches[run % len(batches)]
        # The one that goes first finds the caches as the last of the turn before left them: take turns at that too.
        for i in range(len(calls)) if run % 2 == 0 else reversed(range(len(calls))):
            started_ns = time.perf_counter_ns()
            calls[i](batch)
            taken_ms[i, run] = (time.perf_counter_ns() - started_ns) / 1e6
    return taken_ms
