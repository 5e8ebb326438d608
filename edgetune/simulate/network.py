"""
How long a round takes, what it holds, and how good its candidate is: a simple model, stated here and nowhere measured.

Time: a training step of an image is three passes (one forward, two backward), four with the factory model's word. A board
does so many multiply-adds a second (`BoardFacts.trains_gmac_per_s`), a network reaches a share of it.
Memory: what Python and torch take, three times the weights, and what autograd keeps of each image of a batch.
Forecast: these figures with the width of a real board's, wider in its first rounds; `decide.forecast` chooses by them whether a
step's images go through in parts, or that the round does not fit. What a round then takes is off by some per cent.
Accuracy: errors fall with the number of labelled samples, by two thirds for each `SAMPLES_SCALE` of them, towards a floor.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgetune.decide.forecast import Allowance, choose_shorter, in_parts, paced, shares_of, spread, times
from edgetune.types import Cost, Forecast, Interval, Latency, RoundKind, RoundSpec, Split, Workload

AT_REST_MIB = 330.0  # Python with torch, before it has a network
START_S = 20.0  # until torch is imported, on four cores of a Raspberry Pi 4; a faster board takes less
FINISH_S = 30.0  # exporting, measuring on the hold-out, timing; likewise
REFERENCE_GMAC_PER_S = 5.0  # the board that these two were said for
RIGHT_AT_FIRST, RIGHT_AT_BEST, SAMPLES_SCALE = 0.80, 0.95, 1500.0
_TRIALS = 3  # of a search for how far to cut
_IMPRINT_S = 5.0
_NOISE = 0.004  # of an accuracy
# As shares of what is likely; figures of real rounds are in docs/benchmarks.md.
_PEAK_AT_FIRST, _PEAK_KNOWN = Interval(low=0.9, likely=1.0, high=1.15), Interval(low=0.95, likely=1.0, high=1.06)
_TIME_AT_FIRST, _TIME_KNOWN = Interval(low=0.6, likely=1.0, high=1.6), Interval(low=0.85, likely=1.0, high=1.2)
_PEAK_NOISE, _TIME_NOISE = 0.02, 0.07  # of one round; no more than twice as much
_KNOWN_AFTER = 3  # rounds
_SMALLEST_BATCH = 8
_DUTY_MIN = 0.05
_NO_POWER = Interval(low=0.0, likely=0.0, high=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What is trained."""

    name: str
    gmac: float  # multiply-adds of one image, in thousand millions
    parameters_m: float  # in millions
    kept_mib: float  # of each image of a batch, while training
    speed: float = 1.0  # share of the board's rate that it reaches: depthwise layers wait for memory
    batch_ms: float = 30.0  # one prediction, on the reference board

    def workload(self) -> Workload:
        """Of a training step, as far as this model knows it."""
        return Workload(
            kept_mib=self.kept_mib, largest_mib=0.0, mega_macs=3000 * self.gmac, grouped_mega_macs=0.0, layers=1,
            mega_weights=self.parameters_m,
        )  # fmt: skip


# Multiply-adds and parameters: the papers'. Memory of an image: slopes of memory over batch size, 224 pixels, Jetson TX2
# (measurements published with perf4sight, arXiv 2108.05580); of the CIFAR network by its layers.
NETWORKS = {
    network.name: network
    for network in (
        Network(name="resnet20", gmac=0.041, parameters_m=0.27, kept_mib=1.6, batch_ms=6.0),
        Network(name="resnet18", gmac=1.82, parameters_m=11.7, kept_mib=30.5, batch_ms=150.0),
        Network(name="mobilenet_v2", gmac=0.31, parameters_m=3.5, kept_mib=71.2, speed=0.4, batch_ms=50.0),
        Network(name="squeezenet", gmac=0.35, parameters_m=1.24, kept_mib=46.6, speed=0.8, batch_ms=45.0),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One round on one board."""

    peak_mib: float
    start_s: float  # of these three, with all cores, at full clock and full duty
    train_s: float
    finish_s: float

    @property
    def whole_s(self) -> float:
        """All of it."""
        return self.start_s + self.train_s + self.finish_s


def work(spec: RoundSpec, network: Network, gmac_per_s: float, *, accumulation: int = 1, share: float = 1.0) -> Work:
    """What a round is likely to take whose steps are made in so many parts, with so much of the training."""
    recipe, slower = spec.recipe, REFERENCE_GMAC_PER_S / gmac_per_s
    training = sum(sample.split is Split.TRAINING for sample in spec.samples)
    others = len(spec.samples) - training
    passes = (4.0 if recipe.distillation > 0 else 3.0) * training * epochs(spec) + 2.0 * others + training
    train_s = share * passes * network.gmac / (gmac_per_s * network.speed) * in_parts(accumulation) / accumulation
    if spec.kind is RoundKind.IMPRINT:
        train_s = _IMPRINT_S * slower
    return Work(
        peak_mib=peak_mib(network, math.ceil(recipe.batch_size / accumulation)),
        start_s=START_S * slower,
        train_s=train_s,
        finish_s=FINISH_S * slower,
    )


def taken(spec: RoundSpec, likely: Work, *, seed: int) -> Work:
    """What it takes in the end, the same each time for a round and a seed."""
    chance = random.Random(f"taken {seed} {spec.round_id}")
    peak, train = (
        1 + max(-2 * noise, min(2 * noise, chance.gauss(0.0, noise))) for noise in (_PEAK_NOISE, _TIME_NOISE)
    )
    return Work(
        peak_mib=likely.peak_mib * peak,
        start_s=likely.start_s,
        train_s=likely.train_s * train,
        finish_s=likely.finish_s,
    )


def plan(spec: RoundSpec, network: Network, gmac_per_s: float, *, duty: float = 1.0) -> Forecast:
    """How the round is run at such a pace so that it fits, or that it does not, as `decide.forecast` chooses."""
    recipe = spec.recipe
    return choose_shorter(
        lambda share: _ways(spec, network, gmac_per_s, duty, share),
        Allowance(peak_mib=recipe.memory_max_mib, duration_s=recipe.time_max_s, energy_j=recipe.energy_max_j),
        shares_of(round(steps(spec)), _epoch_steps(spec)),
    )


def _ways(spec: RoundSpec, network: Network, gmac_per_s: float, duty: float, share: float) -> Iterator[Forecast]:
    """Best first: in smaller and smaller parts of a step."""
    recipe, rounds = spec.recipe, spec.history.rounds
    peak, time = (_PEAK_KNOWN, _TIME_KNOWN) if len(rounds) >= _KNOWN_AFTER else (_PEAK_AT_FIRST, _TIME_AT_FIRST)
    watts = [figures.power_w for figures in rounds if figures.power_w is not None]
    accumulation = 1
    while accumulation == 1 or recipe.batch_size / accumulation >= _SMALLEST_BATCH:
        likely = work(spec, network, gmac_per_s, accumulation=accumulation, share=share)
        duration = paced(times(time, likely.whole_s), max(_DUTY_MIN, duty), spec.history.duties)
        yield Forecast(
            peak_mib=times(peak, likely.peak_mib),
            step_s=times(time, likely.train_s / (share * steps(spec))),
            duration_s=duration,
            energy_j=times(duration, spread(watts, _NO_POWER)) if watts else None,
            batch_size=math.ceil(recipe.batch_size / accumulation),
            accumulation=accumulation,
            threads=recipe.threads,
            update="full",
            fits=False,
            reason="",
            calibrated_on=len(rounds),
        )
        accumulation *= 2


def epochs(spec: RoundSpec) -> float:
    """Over the training samples, with those of a search for how far to cut."""
    recipe = spec.recipe
    if spec.kind is RoundKind.IMPRINT:
        return 0.0
    if spec.kind is not RoundKind.RESHAPE:
        return recipe.epochs_after
    searched = 0.0 if recipe.search == "none" else _TRIALS * recipe.trial_epochs
    return recipe.epochs_before + searched + recipe.epochs_after


def steps(spec: RoundSpec) -> float:
    """Of the round's training."""
    return max(1.0, epochs(spec) * _epoch_steps(spec))


def _epoch_steps(spec: RoundSpec) -> int:
    training = sum(sample.split is Split.TRAINING for sample in spec.samples)
    return math.ceil(training / spec.recipe.batch_size)


def peak_mib(network: Network, batch_size: int) -> float:
    """Of the trainer, with batches of this many images."""
    return AT_REST_MIB + 3 * 4 * network.parameters_m * 1e6 / 2**20 + network.kept_mib * batch_size


def accuracy(samples: int) -> float:
    """Of a version whose round had so many labelled training samples, 0..1."""
    return RIGHT_AT_BEST - (RIGHT_AT_BEST - RIGHT_AT_FIRST) * math.exp(-samples / SAMPLES_SCALE)


def scored(spec: RoundSpec, base_right: float, *, seed: int) -> float:
    """The candidate's accuracy on the hold-out, the same each time for a round and a seed."""
    chance = random.Random(f"{seed} {spec.round_id}")
    if spec.kind is RoundKind.IMPRINT:
        return base_right
    training = sum(sample.split is Split.TRAINING and sample.label is not None for sample in spec.samples)
    cost = 0.004 if spec.kind is RoundKind.RESHAPE else 0.0
    return min(1.0, accuracy(training) - cost + chance.gauss(0.0, _NOISE))


def factory_facts(network: Network, gmac_per_s: float) -> dict[str, Any]:
    """What the factory model's manifest says of this network on this board."""
    median_ms = network.batch_ms * REFERENCE_GMAC_PER_S / gmac_per_s
    return {
        "architecture": network.name,
        "cost": Cost(
            parameters=round(network.parameters_m * 1e6), macs=round(network.gmac * 1e9),
            onnx_bytes=round(4e6 * network.parameters_m),
        ),
        "latency": Latency(median_ms=median_ms, p90_ms=1.05 * median_ms, runs=50, threads=1),
    }  # fmt: skip
