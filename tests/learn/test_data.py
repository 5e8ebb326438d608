"""Which samples an epoch draws, and how it is divided into batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.learn.data import EpochPlan, LabelledImages, augment, plan_epoch
from edgetune.types import Preprocess

SIZE = Preprocess(height=2, width=2)


def data_of(*counts: int) -> LabelledImages:
    """So many samples of class 0, 1, ...; ids that are not positions."""
    labels = np.repeat(np.arange(len(counts)), counts)
    pixels = np.zeros((len(labels), 2, 2, 3), dtype=np.uint8)
    return LabelledImages(np.arange(len(labels)) * 7 + 3, labels, pixels, Path("/nowhere"), SIZE)


def plan_of(data: LabelledImages, *, batch_size: int = 8, **changes: object) -> EpochPlan:
    """The first epoch of a phase, but for the changes."""
    arguments = {"seed": 0, "round_id": 1, "phase": "tune", "epoch": 0, **changes}
    return plan_epoch(data, batch_size=batch_size, **arguments)


def drawn(data: LabelledImages) -> list[int]:
    """How often each class is drawn in an epoch."""
    return np.bincount(data.labels[plan_of(data).positions], minlength=data.labels.max() + 1).tolist()


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((40, 40, 40), [40, 40, 40]),
        ((40, 30, 27), [40, 30, 27]),  # more than half of the largest: as it is
        ((100, 10, 25), [100, 50, 50]),  # five times, twice
        ((1000, 2, 500), [1000, 20, 500]),  # at most ten times
        ((60, 0, 6), [60, 0, 30]),  # a class without samples
    ],
)
def test_small_classes_are_drawn_until_they_have_half_of_the_largest(
    counts: tuple[int, ...], expected: list[int]
) -> None:
    """Every sample of a class equally often, at most ten times."""
    data = data_of(*counts)
    assert drawn(data) == expected
    times = np.bincount(plan_of(data).positions, minlength=len(data))
    for label in set(data.labels.tolist()):
        assert len(set(times[data.labels == label].tolist())) == 1


@given(st.lists(st.integers(1, 60), min_size=2, max_size=5), st.integers(2, 64), st.integers(0, 9))
def test_batches_cover_the_epoch_and_none_is_too_small_for_batch_norm(
    counts: list[int], batch_size: int, epoch: int
) -> None:
    """Every sample is drawn; no batch holds one image, or is below a quarter of the others, unless it is all."""
    data = data_of(*counts)
    plan = plan_of(data, batch_size=batch_size, epoch=epoch)
    sizes = np.diff(plan.edges)
    assert set(plan.positions.tolist()) == set(range(len(data)))
    assert (plan.edges[0], plan.edges[-1]) == (0, len(plan.positions)) and len(plan.draws) == len(plan.positions)
    assert (sizes[:-1] == batch_size).all()
    assert sizes[-1] >= 2
    assert len(sizes) == 1 or batch_size // 4 <= sizes[-1] < batch_size + max(2, batch_size // 4)


def test_an_epoch_is_a_function_of_its_seeds_and_of_nothing_else() -> None:
    """The same arguments give the same plan; another seed, round, phase or epoch gives another order and changes."""
    data = data_of(50, 12)
    first, again = plan_of(data), plan_of(data)
    np.testing.assert_array_equal(first.positions, again.positions)
    np.testing.assert_array_equal(first.draws, again.draws)
    for change in ({"seed": 1}, {"round_id": 2}, {"phase": "retrain"}, {"epoch": 1}):
        other = plan_of(data, **change)
        assert sorted(other.positions.tolist()) == sorted(first.positions.tolist())
        assert other.positions.tolist() != first.positions.tolist()
        assert not set(other.draws.tolist()) & set(first.draws.tolist())


def test_repeated_samples_get_changes_of_their_own() -> None:
    """A sample drawn twice is two different images, and half of all are mirrored."""
    data = data_of(100, 10)
    plan = plan_of(data)
    assert len(set(plan.draws.tolist())) == len(plan.draws)
    ramp = np.tile(np.arange(16, dtype=np.uint8)[None, None, :, None], (len(plan.draws), 16, 1, 3))
    changed = augment(ramp, plan.draws, "crop_flip")
    is_mirrored = changed[:, 0, 0, 0] > changed[:, 0, -1, 0]
    assert 0.3 < is_mirrored.mean() < 0.7
    assert not (augment(ramp, plan.draws, "crop")[:, 0, 0, 0] > 2).any()  # shifted by an eighth, never mirrored
    assert augment(ramp, plan.draws, "none") is ramp


def test_views_are_the_same_in_every_phase_and_round() -> None:
    """So many ways to change each image, one an epoch in turn; the order is as without them."""
    data = data_of(6, 6)
    seen: dict[int, set[int]] = {}
    for round_id, phase in ((1, "tune"), (1, "retrain"), (2, "retrain")):
        for epoch in range(6):
            plain = plan_of(data, round_id=round_id, phase=phase, epoch=epoch)
            plan = plan_of(data, round_id=round_id, phase=phase, epoch=epoch, views=3)
            assert np.array_equal(plan.positions, plain.positions)
            assert not np.array_equal(plan.draws, plain.draws)
            again = plan_of(data, round_id=9, phase="trial 1", epoch=epoch % 3, views=3)
            assert sorted(plan.draws.tolist()) == sorted(again.draws.tolist())
            for position, draw in zip(plan.positions.tolist(), plan.draws.tolist(), strict=True):
                seen.setdefault(position, set()).add(draw)
    assert {len(draws) for draws in seen.values()} == {3}
    assert len(set.union(*seen.values())) == 3 * len(data), "no two images share a change"
