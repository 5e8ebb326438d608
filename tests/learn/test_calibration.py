"""The regression behind forecasts, on boards whose truth is known because the test made it up."""

from __future__ import annotations

import numpy as np
import pytest

from edgetune.learn.calibration import Coefficients, Kernel, Physics, StepModel, calibrated, memory_terms, time_terms
from edgetune.types import StepPoint, Workload

TRUTH = Coefficients((0.01, 0.001, 0.02, 1e-4, 2e-3, 3e-3))
TIME, MEMORY = Physics(time_terms), Physics(memory_terms)


def net(width: float) -> Workload:
    """A network of this width."""
    return Workload(
        kept_mib=4 * width, largest_mib=width, mega_macs=100 * width**2, grouped_mega_macs=3 * width, layers=20,
        mega_weights=2 * width**2,
    )  # fmt: skip


def step(width: float, batch: int, *, threads: int = 1, rest_mib: float = 0.0) -> StepPoint:
    """A step of it."""
    return StepPoint(workload=net(width), batch_size=batch, threads=threads, rest_mib=rest_mib)


def truth(points: list[StepPoint], noise: float = 0.0, factor: float = 1.0) -> list[float]:
    """Seconds on the made-up board."""
    plain = np.array([time_terms(point) for point in points]) @ np.array(TRUTH.weights)
    return list(factor * plain * np.exp(np.random.default_rng(0).normal(0, noise, len(points))))


GRID = [step(width, batch) for width in (0.4, 0.7, 1.0, 1.5) for batch in (2, 8, 32, 128)]


def test_physics_is_found_again() -> None:
    """Without noise the fitted terms give every measurement, and widths and batches that were never measured."""
    model = StepModel(TIME, GRID, truth(GRID))
    unseen = [step(0.5, 16), step(1.2, 100)]
    likely, _ = model.predict(unseen)
    assert likely == pytest.approx(truth(unseen), rel=0.01)
    assert min(model.coefficients.weights) >= 0


def test_the_process_learns_what_physics_leaves_over() -> None:
    """One network is 40 % slower than its attributes say: so are its other batches, and the others are not."""
    values = truth(GRID)
    slow = [value * (1.4 if point.workload == net(1.5) else 1.0) for point, value in zip(GRID, values, strict=True)]
    model = StepModel(TIME, GRID, slow, prior=TRUTH, kernel=Kernel(noise=0.02, parts=((0.3, 1.5, 0.3),)))
    likely, _ = model.predict([step(1.5, 64), step(0.4, 64)])
    assert likely[0] == pytest.approx(1.4 * truth([step(1.5, 64)])[0], rel=0.05)
    assert likely[1] == pytest.approx(truth([step(0.4, 64)])[0], rel=0.05)


def test_memory_has_a_floor_and_a_ceiling() -> None:
    """What the libraries hold from the start is there with any batch, and a full board swaps."""
    physics = Physics(memory_terms, has_floor=True, has_ceiling=True)
    points = [step(width, batch) for width in (0.4, 1.0, 1.5) for batch in (1, 2, 4, 8, 64, 128, 256, 512)]
    values = [min(2500.0, max(800.0, 300 + 1.2 * p.batch_size * p.workload.kept_mib)) for p in points]
    likely, _ = StepModel(physics, points, values).predict([step(1.0, 1), step(1.0, 256), step(1.5, 2000)])
    assert likely == pytest.approx([800, 1529, 2500], rel=0.05)


def test_a_board_that_nobody_measured_is_put_right_by_two_steps() -> None:
    """It is thirty times as slow as where the coefficients come from; another batch is then known to 15 %."""
    kernel = Kernel(parts=((0.15, 1.5, 1.0),), scale_sd=1.2)
    blind = StepModel(TIME, [], [], kernel=kernel, prior=TRUTH)
    asked = step(1.0, 64)
    known = blind.corrected([step(1.0, 8), step(1.0, 16)], truth([step(1.0, 8), step(1.0, 16)], factor=30))
    before, after, expected = blind.interval(asked), known.interval(asked), truth([asked], factor=30)[0]
    assert before.likely == pytest.approx(expected / 30)
    assert after.likely == pytest.approx(expected, rel=0.15)
    assert after.low < expected < after.high
    assert after.high / after.likely < before.high / before.likely


def test_more_threads_take_less_time() -> None:
    """Until measurements say otherwise."""
    model = StepModel(TIME, [], [], prior=TRUTH)
    (one, four), _ = model.predict([step(1.0, 32), step(1.0, 32, threads=4)])
    assert one / 3 < four < one / 2


def test_intervals_hold_at_their_rate_on_what_was_left_out() -> None:
    """Nine of ten steps of networks that were not measured, give or take what chance allows with so many."""
    widths = np.random.default_rng(1).uniform(0.3, 2.0, 40)
    points = [step(float(width), batch) for width in widths for batch in (4, 16, 64)]
    values = truth(points, noise=0.1)
    groups = [point.workload.layers + point.workload.mega_weights for point in points]
    known = list(range(60))
    model = calibrated(
        TIME, [points[i] for i in known], [values[i] for i in known], [groups[i] for i in known],
        [Kernel(noise=0.02), Kernel(noise=0.1)],
    )  # fmt: skip
    assert model.kernel.noise == 0.1
    likely, spread = model.predict(points[60:])
    inside = np.abs(np.log(likely / np.array(values[60:]))) <= 1.645 * spread
    assert 0.75 <= inside.mean() <= 1.0


def test_what_the_process_held_before_is_part_of_its_peak() -> None:
    """A hundred MiB more before the first step are a hundred more in it."""
    model = StepModel(MEMORY, [], [], prior=Coefficients((100.0, 1.35, 8.0, 0.0, 1.0)))
    (less, more), _ = model.predict([step(1.0, 16, rest_mib=200), step(1.0, 16, rest_mib=300)])
    assert more - less == pytest.approx(100)
