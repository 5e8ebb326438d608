"""The memory of old samples, what it keeps, and the losses that replay it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.learn.replay import (
    POLICIES,
    Memory,
    choose_samples,
    cross_entropy_among,
    der_pp_loss,
    er_ace_loss,
    even_shares,
    herd,
    images_within,
    logits_replay_loss,
    rehearsal_loss,
)

DOT = (1, 1, 3)
Doubles = npt.NDArray[np.float64]


def _stream(labels: list[int]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    return np.zeros((len(labels), *DOT), np.uint8), np.array(labels, np.int64)


def _kept(policy: str, labels: list[int], capacity: int, seed: int = 0) -> npt.NDArray[np.int64]:
    memory = Memory(capacity, DOT, 2, policy=policy, seed=seed)
    memory.offer(*_stream(labels))
    return memory.everything().labels


# ----------------------------------------------------------------------------------------------- what is remembered


def test_a_reservoir_keeps_every_sample_of_the_stream_with_the_same_probability() -> None:
    """200 samples through room for 20, 500 times: the counts scatter as those of a fair choice."""
    runs, offered, capacity = 500, 200, 20
    counts = np.zeros(offered)
    for seed in range(runs):
        counts[_kept("reservoir", list(range(offered)), capacity, seed)] += 1
    share = capacity / offered
    assert counts.sum() == runs * capacity
    statistic = ((counts - runs * share) ** 2 / (runs * share * (1 - share))).sum()  # about chi-squared, 199 degrees
    assert 130 < statistic < 280
    assert abs(counts[:100].mean() - counts[100:].mean()) < 3.0  # neither the first nor the last are preferred


def test_a_class_in_a_balanced_memory_is_a_fair_choice_of_that_class() -> None:
    """Of two classes, one after the other, the first and the last images of each are kept as often."""
    counts = np.zeros(80)
    for seed in range(500):
        memory = Memory(10, DOT, 2, policy="balanced", seed=seed)
        images = np.arange(80, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=3)
        memory.offer(images, np.repeat([0, 1], 40))
        counts[memory.everything().images[:, 0, 0, 0]] += 1
    assert counts[:40].sum() == counts[40:].sum() == 2500
    for mine in (counts[:40], counts[40:]):
        assert abs(mine[:20].mean() - mine[20:].mean()) < 12.0  # expected 62.5 each


@pytest.mark.parametrize("policy", ["balanced", "greedy"])
@pytest.mark.parametrize("capacity", [9, 10, 33])
def test_classes_that_come_one_after_the_other_end_within_one_image_of_each_other(policy: str, capacity: int) -> None:
    """However unequal their numbers, as long as each has its share."""
    labels = [0] * 300 + [1] * 40 + [2, 3] * 60 + [4] * 500
    counts = np.bincount(_kept(policy, labels, capacity))
    assert counts.sum() == capacity
    assert len(counts) == 5 and counts.max() - counts.min() <= 1


def test_a_rare_class_keeps_all_it_has() -> None:
    """The others share what it leaves."""
    counts = np.bincount(_kept("balanced", [0] * 100 + [1] * 3 + [2] * 100, 20))
    assert counts[1] == 3 and abs(counts[0] - counts[2]) <= 1


@pytest.mark.parametrize("policy", POLICIES)
def test_the_memory_never_takes_more_bytes_than_its_budget(policy: str) -> None:
    """The arrays have their size from the beginning, and every piece of the stream fits in."""
    budget, shape, outputs = 100_000, (16, 16, 3), 7
    capacity = images_within(budget, shape, outputs)
    memory = Memory(capacity, shape, outputs, policy=policy, seed=0)
    assert budget - (16 * 16 * 3 + 8 + 4 * outputs) < memory.nbytes <= budget
    for _ in range(5):
        memory.offer(np.zeros((90, *shape), np.uint8), np.arange(90) % outputs, np.zeros((90, outputs), np.float32))
        assert memory.nbytes <= budget and len(memory) <= capacity
    assert len(memory) == capacity


@pytest.mark.parametrize("policy", POLICIES)
def test_image_label_and_logits_of_a_sample_stay_together(policy: str) -> None:
    """What is drawn is what was offered, no sample twice; what was not said is NaN."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    images = rng.integers(0, 256, (300, 2, 2, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = labels
    logits = images[:, 0, 0, :].astype(np.float32)
    logits[labels == 2] = np.nan
    memory = Memory(24, (2, 2, 3), 3, policy=policy, seed=1)
    for start in range(0, 300, 50):
        memory.offer(images[start : start + 50], labels[start : start + 50], logits[start : start + 50])
    drawn = memory.draw(16)
    assert len(np.unique(drawn.images.reshape(16, -1), axis=0)) == 16
    assert np.array_equal(drawn.images[:, 0, 0, 0], drawn.labels)
    known = drawn.labels != 2
    assert np.array_equal(drawn.logits[known], drawn.images[known, 0, 0, :])
    assert np.isnan(drawn.logits[~known]).all()
    assert len(memory.draw(100).labels) == 24
    memory.offer(images[:50], labels[:50])
    assert np.isnan(memory.everything().logits).any()


def test_an_unknown_policy_is_refused() -> None:
    """With the names of those there are."""
    with pytest.raises(ValueError, match="reservoir, balanced, greedy"):
        Memory(1, DOT, 1, policy="newest", seed=0)


# ----------------------------------------------------------------------------------------------- what is chosen


@settings(deadline=None)
@given(st.lists(st.integers(0, 60), max_size=9), st.integers(0, 200))
def test_shares_are_even_where_there_is_enough_and_use_all_room(counts: list[int], capacity: int) -> None:
    """Nobody gets more than there is, nothing is left over, and who gets less than others has no more."""
    shares = even_shares(counts, capacity)
    assert sum(shares) == min(capacity, sum(counts))
    assert all(0 <= share <= count for share, count in zip(shares, counts, strict=True))
    limited = [share for share, count in zip(shares, counts, strict=True) if share < count]
    if limited:
        assert max(limited) - min(limited) <= 1 and max(shares) <= min(limited) + 1


def _herd_slowly(features: Doubles, count: int) -> list[int]:
    """Algorithm 4 of iCaRL, word by word."""
    unit = [row / np.sqrt((row**2).sum()) for row in features]
    mean = sum(unit) / len(unit)
    chosen: list[int] = []
    for k in range(1, count + 1):
        best, best_distance = -1, np.inf
        for candidate in range(len(unit)):
            if candidate in chosen:
                continue
            of_chosen = sum((unit[p] for p in chosen), np.zeros(features.shape[1])) + unit[candidate]
            distance = float(((mean - of_chosen / k) ** 2).sum())
            if distance < best_distance - 1e-15:
                best, best_distance = candidate, distance
        chosen.append(best)
    return chosen


def test_herding_chooses_what_a_slow_greedy_search_chooses() -> None:
    """In its order; and its mean is nearer to that of all than random ones' are."""
    rng = np.random.default_rng(0)
    features = rng.gamma(2.0, size=(40, 6)).astype(np.float32)
    assert herd(features, 15).tolist() == _herd_slowly(features.astype(np.float64), 15)
    assert sorted(herd(features, 99).tolist()) == list(range(40))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    far = np.linalg.norm(unit[herd(features, 5)].mean(axis=0) - unit.mean(axis=0))
    others = [np.linalg.norm(unit[rng.permutation(40)[:5]].mean(axis=0) - unit.mean(axis=0)) for _ in range(50)]
    assert far < min(others)


def test_samples_are_chosen_evenly_over_the_classes() -> None:
    """With features the herded ones of each class, without them random ones."""
    rng = np.random.default_rng(3)
    labels = np.array([5] * 50 + [2] * 4 + [9] * 30)
    features = rng.normal(size=(84, 8)).astype(np.float32)
    for chosen in (choose_samples(labels, 20, features=features), choose_samples(labels, 20, seed=1)):
        assert {label: int((labels[chosen] == label).sum()) for label in (2, 5, 9)} == {2: 4, 5: 8, 9: 8}
        assert np.array_equal(chosen, np.unique(chosen))
    herded = choose_samples(labels, 20, features=features)
    assert herded[herded < 50].tolist() == sorted(herd(features[:50], 8).tolist())
    assert len(choose_samples(labels, 1000)) == 84
    assert len(choose_samples(labels[:0], 10)) == 0


# ----------------------------------------------------------------------------------------------- losses


def _nll(logits: Doubles, labels: list[int], among: list[int]) -> float:
    """Mean of -log softmax over some columns."""
    terms = [
        -row[label] + np.log(sum(np.exp(row[column]) for column in among))
        for row, label in zip(logits, labels, strict=True)
    ]
    return float(np.mean(terms))


@pytest.fixture
def batch() -> Callable[[int], torch.Tensor]:
    """Random logits [n, 6] with a gradient."""
    generator = torch.Generator().manual_seed(0)
    return lambda n: torch.randn(n, 6, generator=generator, dtype=torch.float64).mul(3).requires_grad_()


def test_rehearsal_is_the_cross_entropy_of_both_batches_together(batch: Callable[[int], torch.Tensor]) -> None:
    """Each image weighs the same, whichever batch it is of."""
    new, old = batch(3), batch(5)
    labels, old_labels = [4, 5, 4], [0, 1, 2, 3, 0]
    loss = rehearsal_loss(new, torch.tensor(labels), old, torch.tensor(old_labels))
    both = np.concatenate([new.detach().numpy(), old.detach().numpy()])
    assert loss.item() == pytest.approx(_nll(both, labels + old_labels, list(range(6))))


def test_er_ace_is_its_formula_and_does_not_push_old_classes_down(batch: Callable[[int], torch.Tensor]) -> None:
    """The stream's images give no gradient to any class but those of their batch; plain rehearsal's do."""
    new, old = batch(3), batch(4)
    labels, old_labels = [2, 3, 3], [0, 1, 2, 0]
    seen = torch.tensor([True, True, True, True, False, False])
    loss = er_ace_loss(new, torch.tensor(labels), old, torch.tensor(old_labels), seen)
    expected = _nll(new.detach().numpy(), labels, [2, 3]) + _nll(old.detach().numpy(), old_labels, [0, 1, 2, 3])
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert new.grad is not None and old.grad is not None
    assert (new.grad[:, [0, 1, 4, 5]] == 0).all() and (new.grad[:, [2, 3]] != 0).all()
    assert (old.grad[:, :4] != 0).all() and (old.grad[:, 4:] == 0).all()
    plain = new.detach().clone().requires_grad_()
    rehearsal_loss(plain, torch.tensor(labels), old.detach(), torch.tensor(old_labels)).backward()
    assert plain.grad is not None and (plain.grad[:, [0, 1]] > 0).all()  # descent lowers the old classes' logits


def test_er_ace_without_anything_remembered_is_the_streams_part(batch: Callable[[int], torch.Tensor]) -> None:
    """Finite, as at the first step."""
    new = batch(2)
    nothing, none = torch.empty(0, 6, dtype=torch.float64), torch.empty(0, dtype=torch.int64)
    loss = er_ace_loss(new, torch.tensor([0, 1]), nothing, none, torch.ones(6, dtype=torch.bool))
    assert loss.item() == pytest.approx(_nll(new.detach().numpy(), [0, 1], [0, 1]))


def test_replayed_logits_count_only_where_the_class_was_known(batch: Callable[[int], torch.Tensor]) -> None:
    """NaN is neither a target nor a gradient, and nothing known is no loss."""
    now, stored = batch(4), batch(4).detach().clone()
    stored[:2, 3:] = float("nan")
    loss = logits_replay_loss(now, stored)
    pairs = [(a, b) for a, b in zip(now.detach().numpy().ravel(), stored.numpy().ravel(), strict=True) if b == b]  # noqa: PLR0124 - NaN
    assert len(pairs) == 18 and loss.item() == pytest.approx(np.mean([(a - b) ** 2 for a, b in pairs]))
    loss.backward()
    assert now.grad is not None and (now.grad[:2, 3:] == 0).all() and torch.isfinite(now.grad).all()
    assert logits_replay_loss(now, torch.full((4, 6), float("nan"), dtype=torch.float64)).item() == 0.0


def test_der_pp_is_its_formula(batch: Callable[[int], torch.Tensor]) -> None:
    """The stream, the logits of one batch, the labels of another, with their weights."""
    new, first, second, stored = batch(3), batch(4), batch(5), batch(4).detach()
    labels, old = [1, 0, 5], [2, 2, 3, 0, 1]
    loss = der_pp_loss(
        torch.nn.functional.cross_entropy(new, torch.tensor(labels)),
        (first, stored),
        (second, torch.tensor(old)),
        alpha=0.2,
        beta=0.5,
    )
    squares = (first.detach().numpy() - stored.numpy()) ** 2
    every = list(range(6))
    expected = _nll(new.detach().numpy(), labels, every) + 0.2 * squares.mean()
    expected += 0.5 * _nll(second.detach().numpy(), old, every)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert first.grad is not None
    assert np.allclose(first.grad.numpy(), 0.2 * 2 * (first.detach() - stored).numpy() / squares.size)


def test_classes_that_do_not_compete_get_no_gradient(batch: Callable[[int], torch.Tensor]) -> None:
    """And their logits do not matter."""
    logits, among = batch(3), torch.tensor([True, False, True, False, False, True])
    labels = torch.tensor([0, 2, 5])
    loss = cross_entropy_among(logits, labels, among)
    assert loss.item() == pytest.approx(_nll(logits.detach().numpy(), [0, 2, 5], [0, 2, 5]))
    loss.backward()
    assert logits.grad is not None and (logits.grad[:, ~among] == 0).all()
    shifted = logits.detach() + 100.0 * ~among
    assert cross_entropy_among(shifted, labels, among).item() == pytest.approx(loss.item())
