"""
What a training step takes on this board, learnt from steps that were measured on it.

First physics: memory = a + b * weights + c * batch * kept activations + d * batch * largest layer, time = sum of terms as
in a roofline (a constant a layer, a rate for multiply-accumulates, a bandwidth for activations), with coefficients that are
not negative and have the least relative error. Then what physics leaves over: a Gaussian process on the logarithm of
measured over expected, which also says how sure it is. A board without enough measurements takes the coefficients of
another machine, and its own measurements then correct a common factor (`Kernel.scale_sd`) and each coefficient
(`Kernel.term_sds`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune.types import Interval, StepPoint

Floats = npt.NDArray[np.float64]

_SWEEPS = 2000
_SCALES = (
    1.4,
    0.6,
    1.0,
    0.9,
    0.45,
    0.5,
)  # how far measured networks spread in the logarithm of each input of the process
_SHARE = 0.9  # of the measurements, that an interval is to hold
_NORMAL_QUANTILE = 1.645  # of a normal distribution, for that share
_FLOOR_TOLERANCE = 1.03
_FEWEST = 1e-9
_SPEED_UP = 0.7  # two threads are 1.6 times as fast as one: a guess that the first measurements put right


@dataclass(frozen=True, slots=True)
class Physics:
    """Which terms add up to a quantity, and between which bounds they do."""

    terms: Callable[[StepPoint], tuple[float, ...]]
    has_floor: bool = False  # what is there from the start is no less with a small batch
    has_ceiling: bool = False  # a board whose memory is full swaps


def memory_terms(point: StepPoint) -> tuple[float, ...]:
    """Of resident memory."""
    work = point.workload
    return (
        1.0,
        point.batch_size * work.kept_mib,
        work.mega_weights,
        point.batch_size * work.largest_mib,
        point.rest_mib,
    )


def time_terms(point: StepPoint) -> tuple[float, ...]:
    """Of a step's seconds."""
    work, batch = point.workload, point.batch_size
    terms = (
        1.0,
        float(work.layers),
        work.mega_weights,
        batch * work.mega_macs,
        batch * work.grouped_mega_macs,
        batch * work.kept_mib,
    )
    return tuple(term / point.threads**_SPEED_UP for term in terms)


@dataclass(frozen=True, slots=True)
class Kernel:
    """How measured over expected varies: standard deviations and lengths, in the logarithm."""

    noise: float = 0.05
    parts: tuple[tuple[float, float, float], ...] = ((0.1, 0.3, 1.0), (0.1, 2.0, 0.4))  # (sd, length of batch, of nets)
    scale_sd: float = 0.0  # of a factor that all measurements share
    term_sds: tuple[float, ...] = ()  # of each coefficient of physics, as a share of it; none: it is certain

    def between(self, one: Floats, other: Floats) -> Floats:
        """Covariance [N, M] of inputs [N, D] and [M, D]."""
        total = np.full((len(one), len(other)), self.scale_sd**2)
        for sd, batch_length, shape_length in self.parts:
            lengths = np.full(one.shape[1], shape_length, dtype=np.float64)
            lengths[0] = batch_length
            squares = (((one[:, None] - other[None]) / lengths) ** 2).sum(axis=2)
            distance = math.sqrt(3) * np.sqrt(squares)
            total += sd**2 * (1 + distance) * np.exp(-distance)
        return total

    @property
    def variance(self) -> float:
        """Of one value before anything was measured."""
        return self.scale_sd**2 + sum(sd**2 for sd, _, _ in self.parts)


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Of a `Physics`."""

    weights: tuple[float, ...]
    floor: float = 0.0
    ceiling: float = math.inf


class StepModel:
    """
    One quantity of a training step.

    Args:
        physics: its terms.
        points: measured; may be empty where `prior` is given.
        values: [N] of that quantity, of the points.
        kernel: of what physics leaves over.
        prior: coefficients from elsewhere; None: fitted to the points.
        widen: what the process's own standard deviations are multiplied with, see `calibrated`.

    Attributes:
        evidence: logarithm of the points' likelihood under the kernel, up to a constant.
    """

    def __init__(
        self,
        physics: Physics,
        points: Sequence[StepPoint],
        values: Sequence[float],
        *,
        kernel: Kernel | None = None,
        prior: Coefficients | None = None,
        widen: float = 1.0,
    ) -> None:
        self._physics, self.kernel, self.widen = physics, kernel or Kernel(), widen
        self._points, self._values = tuple(points), tuple(values)
        measured = np.asarray(values, dtype=np.float64)
        self.coefficients = prior or _fit(physics, points, measured)
        self._inputs = _inputs(points)
        left = np.log(measured / self._expected(points)) if points else np.empty(0)
        self._shares = self._shares_of(points)
        covariance = self.kernel.between(self._inputs, self._inputs) + self._shares @ self._shares.T
        covariance += self.kernel.noise**2 * np.eye(len(left))
        self._factor = np.linalg.cholesky(covariance)
        self._weights = np.linalg.solve(self._factor.T, np.linalg.solve(self._factor, left))
        self.evidence = float(-0.5 * left @ self._weights - np.log(np.diag(self._factor)).sum())

    def predict(self, points: Sequence[StepPoint]) -> tuple[Floats, Floats]:
        """Likely values [N], and the standard deviations [N] of their logarithms."""
        shares = self._shares_of(points)
        across = self.kernel.between(_inputs(points), self._inputs) + shares @ self._shares.T
        explained = (np.linalg.solve(self._factor, across.T) ** 2).sum(axis=0)
        unknown = self.kernel.variance + (shares**2).sum(axis=1) - explained
        spread = np.sqrt(np.maximum(0.0, unknown) + self.kernel.noise**2)
        likely = np.minimum(self._expected(points) * np.exp(across @ self._weights), self.coefficients.ceiling)
        return likely, spread * self.widen

    def interval(self, point: StepPoint) -> Interval:
        """Of one step."""
        (likely,), (spread,) = self.predict([point])
        factor = math.exp(_NORMAL_QUANTILE * float(spread))
        return Interval(low=float(likely) / factor, likely=float(likely), high=float(likely) * factor)

    def corrected(self, points: Sequence[StepPoint], values: Sequence[float]) -> StepModel:
        """The same with a few measurements more, and the coefficients it has."""
        return StepModel(
            self._physics,
            (*self._points, *points),
            (*self._values, *values),
            kernel=self.kernel,
            prior=self.coefficients,
            widen=self.widen,
        )

    def _shares_of(self, points: Sequence[StepPoint]) -> Floats:
        """[N, J]: by how much the logarithm moves when a coefficient moves by its standard deviation."""
        if not self.kernel.term_sds:
            return np.zeros((len(points), 1))
        if not points:
            return np.empty((0, len(self.kernel.term_sds)))
        moved = _terms(self._physics, points) * np.asarray(self.coefficients.weights) * np.asarray(self.kernel.term_sds)
        return np.asarray(moved / self._expected(points)[:, None])

    def _expected(self, points: Sequence[StepPoint]) -> Floats:
        """By physics alone."""
        found = self.coefficients
        plain = _terms(self._physics, points) @ np.asarray(found.weights)
        return np.asarray(np.clip(plain, max(found.floor, _FEWEST), found.ceiling))


def calibrated(
    physics: Physics,
    points: Sequence[StepPoint],
    values: Sequence[float],
    groups: Sequence[Any],
    kernels: Sequence[Kernel],
) -> StepModel:
    """
    The model with the likeliest kernel, and with intervals that hold on what it has not seen.

    Each group is left out in turn and predicted from the others; nothing but these points is looked at.

    Args:
        physics: of the quantity.
        points: measured [N].
        values: [N] of the quantity.
        groups: [N] what is left out together: a pruning level, a network.
        kernels: to choose from.
    """
    models = [StepModel(physics, points, values, kernel=kernel) for kernel in kernels]
    best = max(models, key=lambda model: model.evidence)
    measured = np.asarray(values, dtype=np.float64)
    ratios: list[float] = []
    for group in dict.fromkeys(groups):
        known = [i for i, other in enumerate(groups) if other != group]
        asked = [i for i, other in enumerate(groups) if other == group]
        model = StepModel(physics, [points[i] for i in known], measured[known].tolist(), kernel=best.kernel)
        likely, spread = model.predict([points[i] for i in asked])
        ratios += (np.abs(np.log(likely / measured[asked])) / spread).tolist()
    widen = float(np.quantile(ratios, _SHARE)) / _NORMAL_QUANTILE
    return StepModel(physics, points, values, kernel=best.kernel, widen=widen)


def _terms(physics: Physics, points: Sequence[StepPoint]) -> Floats:
    if not points:
        return np.empty((0, 0))
    return np.asarray([physics.terms(point) for point in points], dtype=np.float64)


def _inputs(points: Sequence[StepPoint]) -> Floats:
    rows = [
        (
            math.log(point.batch_size),
            _log(work.kept_mib),
            _log(work.mega_weights),
            _log(work.mega_macs),
            math.log(max(1, work.layers)),
            math.log(point.threads),
        )
        for point in points
        for work in (point.workload,)
    ]
    return np.asarray(np.asarray(rows, dtype=np.float64).reshape(len(points), len(_SCALES)) / np.asarray(_SCALES))


def _log(value: float) -> float:
    return math.log(max(value, 1e-6))


def _fit(physics: Physics, points: Sequence[StepPoint], values: Floats) -> Coefficients:
    """Least relative error; with a floor, of the points that lie above it."""
    terms = _terms(physics, points)
    ceiling = float(values.max()) if physics.has_ceiling else math.inf
    if not physics.has_floor:
        return Coefficients(tuple(_nonnegative(terms, values)), 0.0, ceiling)
    floor = float(np.quantile(values, 0.02))
    above = np.ones(len(values), dtype=bool)
    weights = np.zeros(terms.shape[1])
    for _ in range(20):
        weights = _nonnegative(terms[above], values[above])
        is_low = terms @ weights < floor
        resting = is_low & (values < 1.1 * floor)
        floor = float(np.median(values[resting])) if resting.any() else floor
        now = ~((terms @ weights < floor) & (values < _FLOOR_TOLERANCE * floor))
        if (now == above).all():
            break
        above = now
    return Coefficients(tuple(weights), floor, ceiling)


def _nonnegative(terms: Floats, values: Floats) -> Floats:
    """Coefficients >= 0 of least relative error, by coordinate descent."""
    scale = np.abs(terms).max(axis=0) + 1e-12
    rows = terms / scale / values[:, None]
    gram, target = rows.T @ rows, rows.sum(axis=0)
    weights = np.zeros(terms.shape[1])
    for _ in range(_SWEEPS):
        before = weights.copy()
        for j in range(len(weights)):
            weights[j] = max(0.0, weights[j] + (target[j] - gram[j] @ weights) / (gram[j, j] + 1e-12))
        if np.abs(weights - before).max() < 1e-9 * (1e-9 + np.abs(weights).max()):
            break
    return np.asarray(weights / scale)
