"""Memory formats and number types of a training: chosen by the clock, never the ones that crash or are emulated."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from edgetune.learn.layout import (
    Layout,
    arrange,
    best_threads,
    candidate_layouts,
    computing_in,
    fastest_layout,
    has_bfloat16,
)

CPU = torch.device("cpu")


def net(channels: int, stride: int = 2) -> nn.Module:
    """A convolution and a shortcut of so many channels."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.Conv2d(channels, 16, 1, stride),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


@pytest.mark.parametrize(("channels", "stride", "is_safe"), [(5, 2, False), (8, 2, False), (16, 2, True), (5, 1, True)])
def test_a_narrow_strided_shortcut_is_never_trained_in_channels_last(channels: int, stride: int, is_safe: bool) -> None:
    """oneDNN writes out of bounds there; the other layers are moved as asked."""
    module = arrange(net(channels, stride), CPU, "channels_last")
    first = module[0].weight
    assert first.is_contiguous(memory_format=torch.channels_last) == is_safe
    assert arrange(module, CPU, "contiguous")[0].weight.is_contiguous()


def test_the_layout_with_the_shortest_median_step_wins() -> None:
    """One step of warm-up is not counted, and one slow step does not decide."""
    ticks: Iterator[float] = iter(
        second
        for begin, steps in ((0.0, (9.0, 1.0, 1.0, 5.0)), (100.0, (0.1, 2.0, 2.0, 0.1)))
        for start, took in zip((begin, begin + 20, begin + 40, begin + 60), steps, strict=True)
        for second in (start, start + took)
    )
    module = net(16)
    before = copy.deepcopy(module.state_dict())
    layouts = [Layout("contiguous", "float32"), Layout("channels_last", "float32")]
    best, measured_s = fastest_layout(
        module, torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64), layouts, now_s=lambda: next(ticks)
    )
    assert best == layouts[0]
    assert measured_s == {"contiguous float32": 1.0, "channels_last float32": 2.0}
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_hopeless_layout_is_not_tried_twice() -> None:
    """bfloat16 that is emulated takes ten seconds a step: its first one is enough."""
    steps: list[None] = []
    ticks = iter(range(0, 1000, 1))
    slow = {8: 400}  # the ninth reading of the clock, the first of the second layout, and what follows it

    def now_s() -> float:
        number = next(ticks)
        return number + sum(extra for after, extra in slow.items() if number > after)

    layouts = [Layout("contiguous", "float32"), Layout("channels_last", "float32")]
    images, labels = torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)
    best, measured_s = fastest_layout(net(16), images, labels, layouts, beat=lambda: steps.append(None), now_s=now_s)
    assert best == layouts[0]
    assert len(steps) == 4 + 1
    assert measured_s["channels_last float32"] > 400


def test_bfloat16_is_a_candidate_only_where_the_processor_computes_in_it(tmp_path: Path) -> None:
    """x86 and Arm name it in /proc/cpuinfo; a board without that file has none."""
    for flags, expected in (("avx2 avx512_bf16 fma", True), ("asimd bf16 i8mm", True), ("avx2 fma", False)):
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
        assert has_bfloat16(CPU, tmp_path / "cpuinfo") is expected
    assert not has_bfloat16(CPU, tmp_path / "missing")


def test_auto_stands_for_all_and_a_name_for_itself() -> None:
    """What the operator names is taken as it is."""
    assert candidate_layouts("channels_last", "float32", CPU) == [Layout("channels_last", "float32")]
    assert [layout.memory_format for layout in candidate_layouts("auto", "float32", CPU)] == [
        "contiguous", "channels_last",
    ]  # fmt: skip


def test_a_step_in_bfloat16_keeps_the_weights_in_float32() -> None:
    """Convolutions compute in it; gradients and weights do not."""
    module = net(16)
    with computing_in("bfloat16", CPU):
        answer = module(torch.randn(2, 3, 8, 8))
    assert answer.dtype == torch.bfloat16
    answer.float().sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in module.parameters())


@pytest.mark.parametrize(
    ("seconds", "cores", "expected"),
    [
        ({4: 1.0, 2: 1.6, 1: 2.6}, 4.0, 4),  # all may be busy, and four are faster
        ({4: 1.0, 2: 1.6, 1: 2.6}, 2.0, 2),  # four would sleep half of the time: 2 s a step
        ({4: 1.0, 2: 1.6, 1: 2.6}, 1.0, 1),
        ({4: 1.0, 2: 1.6, 1: 2.6}, 0.5, 1),  # one sleeps half of the time too, and still loses the least
        ({4: 3.0, 2: 1.1, 1: 1.4}, 4.0, 2),  # others use the cores: threads wait for each other
    ],
)
def test_as_many_threads_train_as_are_fastest_on_the_cores_that_may_be_busy(
    seconds: dict[int, float], cores: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step's seconds at each number are measured, and what the pace would add counts."""
    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    at_s = [0.0]
    is_begun = [False]

    def now_s() -> float:
        at_s[0] += seconds[given[-1]] if is_begun[0] else 0.0
        is_begun[0] = not is_begun[0]
        return at_s[0]

    module, layout = net(16), Layout("contiguous", "float32")
    images, labels = torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)
    best, measured_s = best_threads(module, images, labels, layout, most=4, cores=cores, now_s=now_s)
    assert best == given[-1] == expected
    assert measured_s == pytest.approx(seconds)
