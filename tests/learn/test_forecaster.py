"""What a step consists of, counted by hand; what it takes, from physics and from a few steps of this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from edgetune.learn.attributes import Layer, layers_of
from edgetune.learn.forecaster import Forecaster, micro_profile, workload_of
from edgetune.learn.layout import Layout
from edgetune.types import BoardHistory, StepPoint

IMAGES, LABELS = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])


class Small(nn.Module):
    """A 3x3 convolution, a depthwise one of stride 2, a 1x1 one, a norm and a linear layer: every kind there is."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Conv2d(3, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4)
        self.pointwise = nn.Conv2d(4, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, 8, 8] -> logits [N, 5]."""
        x = self.norm(self.pointwise(self.grouped(torch.relu(self.dense(x)))))
        return self.head(x.mean(dim=(2, 3)))


def test_layers_are_counted_in_the_order_in_which_they_run() -> None:
    """Weights without biases, multiply-accumulates of one image."""
    found = layers_of(Small(), IMAGES[:1])
    assert [layer.kind for layer in found] == ["dense", "grouped", "pointwise", "norm", "linear"]
    assert [layer.weights for layer in found] == [108, 36, 24, 12, 30]
    assert [layer.macs for layer in found] == [108 * 64, 36 * 16, 24 * 16, 0, 30]
    assert [layer.floats for layer in found] == [7 * 64, 4 * 64 + 4 * 16, 10 * 16, 12 * 16, 11]


def test_narrow_layers_cost_a_whole_tile() -> None:
    """One channel more than a tile holds costs a second one; a 3x3 kernel of stride 1 is a Winograd convolution."""
    narrow, wide = (Layer("pointwise", 1, 1, 32, channels, 100, 100) for channels in (32, 33))
    assert (narrow.tiled_macs, wide.tiled_macs) == (32 * 32 * 100, 2 * 32 * 32 * 100)
    strided, plain = (Layer("dense", 9, 1, 32, 32, 100 * factor, 100) for factor in (4, 1))
    assert strided.tiled_macs == pytest.approx(2.25 * plain.tiled_macs)


def test_a_step_that_trains_the_output_layer_alone_is_a_forward_pass_and_little_more() -> None:
    """No layer below keeps anything or has its weights updated."""
    module = Small().train()
    whole = workload_of(module, IMAGES, LABELS)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.startswith("head"))
    head = workload_of(module, IMAGES, LABELS)
    assert head.mega_macs == pytest.approx(whole.mega_macs / 3)
    assert head.mega_weights == pytest.approx(30 / 1e6)
    assert head.kept_mib < 0.1 * whole.kept_mib
    assert head.layers == whole.layers
    from_cut = workload_of(module, IMAGES, LABELS, is_from_cut=True)
    assert (from_cut.layers, from_cut.mega_macs) == (1, 0.0)
    assert module.training and all(m.training for m in module.modules())


def test_a_forecast_grows_with_the_batch() -> None:
    """By 1.35 times the bytes that an image keeps, as long as this board has said nothing else."""
    forecaster = Forecaster(BoardHistory(), threads=1)
    work = workload_of(Small().train(), IMAGES, LABELS)
    small, large = (forecaster.peak_mib(work, size).likely for size in (1000, 101_000))
    assert large - small == pytest.approx(1.35 * 100_000 * work.kept_mib, rel=0.01)
    assert forecaster.step_s(work, 64).low < forecaster.step_s(work, 64).likely < forecaster.step_s(work, 64).high


def test_a_board_that_has_measured_this_network_says_what_it_measured() -> None:
    """And is surer than one that has not."""
    work = workload_of(Small().train(), IMAGES, LABELS)
    blind = Forecaster(BoardHistory(), threads=1)
    peak = 1.5 * blind.peak_mib(work, 64).likely
    point = StepPoint(workload=work, batch_size=64, threads=1, rest_mib=blind.rest_mib, peak_mib=peak, step_s=7.0)
    known = Forecaster(BoardHistory(points=(point,) * 3), threads=1)
    assert known.step_s(work, 64).likely == pytest.approx(7.0, rel=0.05)
    assert known.peak_mib(work, 64).likely == pytest.approx(peak, rel=0.1)
    assert known.step_s(work, 64).high / known.step_s(work, 64).likely < 1.3


def test_a_micro_profile_measures_and_changes_nothing() -> None:
    """Two batches, the clock's seconds; weights and running statistics are what they were."""
    module = Small().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    ticks = iter(range(1000))
    batches = [(torch.randn(size, 3, 8, 8), torch.zeros(size, dtype=torch.long)) for size in (4, 8)]
    points = micro_profile(
        module, batches, Forecaster(BoardHistory(), threads=1), Layout("contiguous", "float32"), beat=lambda: None,
        now_s=lambda: float(next(ticks)),
    )  # fmt: skip
    assert [(point.batch_size, point.step_s) for point in points] == [(4, 1.0), (8, 1.0)]
    assert all(point.peak_mib is not None and point.peak_mib > 50 for point in points)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_slow_board_profiles_one_batch() -> None:
    """Steps of ten seconds: twenty seconds are over before the second batch."""
    ticks = iter(range(0, 10_000, 10))
    batches = [(torch.randn(size, 3, 8, 8), torch.zeros(size, dtype=torch.long)) for size in (4, 8)]
    points = micro_profile(
        Small(), batches, Forecaster(BoardHistory(), threads=1), Layout("contiguous", "float32"), beat=lambda: None,
        now_s=lambda: float(next(ticks)),
    )  # fmt: skip
    assert [point.batch_size for point in points] == [4]
