"""Latency: the search for the largest network that is fast enough, against made-up boards, and the real stopwatch."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from conftest_site import SIZE, generated_images
from test_finetune import tiny_network

from edgetune.learn.export import served_module
from edgetune.learn.latency import Stopwatch, cut_to_latency, export_engine
from edgetune.learn.network import Network, state_tensors
from edgetune.learn.prune import Limit

MACS = 1_000_000
HALVINGS = 2**5  # six trials: the first settles on which side of `at_most` it lies, five halve what is left


def find(ratio_of_share: Callable[[float], float], at_most: float) -> tuple[float, list[float]]:
    """The share of the operations that was settled on, and all that were tried; a network is its limit here."""
    tried: list[float] = []
    taken: dict[int, list[float]] = {}

    def smaller(limit: Limit) -> Network:
        assert limit.unit == "macs"
        tried.append(limit.most / MACS)
        return cast(Network, limit)

    def ratio(network: Network) -> float:
        most = cast(Limit, network).most
        taken.setdefault(most, []).append(ratio_of_share(most / MACS))
        return taken[most][-1]

    found, last = cut_to_latency(smaller, macs=MACS, ratio=ratio, sure_ratio=ratio, at_most=at_most)
    said = taken[cast(Limit, found).most]
    assert last == said[-1]
    return cast(Limit, found).most / MACS, tried


@given(st.floats(0.05, 0.95), st.floats(0.3, 4.0), st.floats(0.0, 0.6))
def test_the_largest_network_that_is_fast_enough_is_found(at_most: float, power: float, overhead: float) -> None:
    """Time = a constant part and a power of the operations: fast enough, and hardly larger would be too slow."""

    def ratio(share: float) -> float:
        return overhead + (1 - overhead) * share**power

    share, tried = find(ratio, at_most)
    assert len(tried) == 6
    width = max(at_most, 1 - at_most) / HALVINGS + 2 / MACS
    if ratio(share) <= at_most:
        assert ratio(min(1.0, share + width)) > at_most or share + width >= 1
    else:  # the constant part alone is too long, or what is left of the range is smaller than the last step
        assert share == min(tried)
        assert ratio(at_most / HALVINGS - 2 / MACS) > at_most


@given(st.floats(0.1, 0.9), st.integers(2, 12))
def test_a_latency_that_falls_in_steps_is_reached(at_most: float, levels: int) -> None:
    """A board on which only every so many operations make a difference: on a step, not above the ratio."""

    def ratio(share: float) -> float:
        return math.ceil(share * levels) / levels

    share, tried = find(ratio, at_most)
    edge = max(step / levels for step in range(levels + 1) if step / levels <= at_most)  # up to here it is fast enough
    if edge > 0:
        assert ratio(share) <= at_most
        assert share >= edge - max(at_most, 1 - at_most) / HALVINGS - 2 / MACS
    else:
        assert share == min(tried) or ratio(share) <= at_most


def test_worked_by_hand_where_time_is_proportional_to_the_operations() -> None:
    """The first try is the ratio itself, which is fast enough; then halfway to the whole network, and back."""
    share, tried = find(lambda share: share, 0.5)
    assert tried == pytest.approx([0.5, 0.75, 0.625, 0.5625, 0.53125, 0.515625], abs=1e-5)
    assert share == 0.5


def test_a_ratio_out_of_reach_gives_the_smallest_network_that_was_tried() -> None:
    """Nothing helps: half of the range each time, and the last one for the caller to see what was achieved."""
    share, tried = find(lambda _: 0.9, 0.5)
    assert tried == pytest.approx([0.5 / 2**n for n in range(6)], abs=1e-5)
    assert share == tried[-1]


@given(st.floats(0.1, 0.9), st.lists(st.floats(0.0, 1.5), min_size=11, max_size=11))
def test_on_a_board_that_says_anything_the_last_word_of_what_is_taken_is_known(
    at_most: float, answers: list[float]
) -> None:
    """Of those that seemed fast enough the largest is timed again, and less of it until one is fast enough twice over."""
    asked: list[tuple[float, float]] = []

    def ratio(share: float) -> float:
        asked.append((share, answers[len(asked)]))
        return asked[-1][1]

    share, tried = find(ratio, at_most)
    searched, checked = asked[:6], asked[6:]
    fast = [each for each, measured in searched if measured <= at_most]
    if not fast:
        assert (share, checked) == (tried[-1], [])
        return
    assert checked[0][0] == max(fast)
    assert share == checked[-1][0]
    assert all(measured > at_most for _, measured in checked[:-1])
    assert checked[-1][1] <= at_most or len(checked) == 5
    less = [1.0, 0.97, 0.97 * 0.94, 0.97 * 0.94 * 0.88, 0.97 * 0.94 * 0.88 * 0.76]
    assert [each for each, _ in checked] == pytest.approx([max(fast) * n for n in less[: len(checked)]], abs=1e-5)


def test_a_network_that_was_timed_too_fast_once_is_not_taken() -> None:
    """Where time is proportional to the operations, and a single try is said to take a fifth less than it does."""
    asked: list[float] = []

    def ratio(share: float) -> float:
        asked.append(share)
        return share * (0.8 if len(asked) == 3 else 1.0)

    share, _ = find(ratio, 0.5)
    assert asked[2] == pytest.approx(0.625)
    assert 0.35 < share <= 0.5


def test_an_exported_network_answers_as_torch_does_and_leaves_the_network_alone() -> None:
    """In the serving engine, with its number of threads; the scratch directory is gone."""
    network = tiny_network()
    network.module.train()
    before = state_tensors(network.module)
    scratch = set(Path(tempfile.gettempdir()).glob("edgetune-timing-*"))
    engine = export_engine(network, SIZE, threads=1)
    assert not set(Path(tempfile.gettempdir()).glob("edgetune-timing-*")) - scratch
    images = generated_images(5, SIZE)
    with torch.no_grad():
        expected = served_module(network, SIZE)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(engine.predict(images), expected, rtol=1e-4, atol=1e-4)
    assert (engine.threads, len(engine.classes)) == (1, 3)
    assert network.module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_tensors(network.module).items())
    engine.close()


class SlowNet(torch.nn.Module):
    """Hundreds of times the operations of the tiny one."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = torch.nn.Conv2d(3, 64, 7, padding=3)
        self.deep = torch.nn.Conv2d(64, 64, 7, padding=3)
        self.head = torch.nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images -> logits."""
        return self.head(self.deep(self.wide(x)).mean(dim=(2, 3)))


def slow(_classes: int) -> torch.nn.Module:
    """The builder."""
    return SlowNet()


def test_networks_are_timed_in_their_order_and_beside_the_base() -> None:
    """Each gets its own figure, with the base's threads and the runs asked for; a beat after every turn."""
    beats = []
    base = export_engine(tiny_network(), SIZE, threads=1)
    stopwatch = Stopwatch(base, SIZE, runs=4, beat=lambda: beats.append(1))
    heavy = Network(SlowNet(), "test_latency:slow", 3, "head")
    for networks, slowest in (([heavy, tiny_network()], 0), ([tiny_network(), heavy], 1)):
        *latencies, of_base = [latency for _, latency in stopwatch.compared(networks)]
        assert [(each.runs, each.threads) for each in (*latencies, of_base)] == [(4, 1)] * 3
        # 54 million operations against less than 0.1 million: no noise of a busy machine turns that around
        assert max(range(2), key=lambda i: latencies[i].median_ms) == slowest
        assert latencies[slowest].median_ms > of_base.median_ms
        assert latencies[slowest].ratio > 2 and of_base.ratio == 1.0
    assert stopwatch.ratio(heavy) > 2
    heavier, lighter = stopwatch.ratios([heavy, tiny_network()])
    assert heavier > 2 > lighter
    assert len(beats) >= 3 * 4
    base.close()
