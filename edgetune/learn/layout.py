"""How tensors lie in memory and how many bits they have while a network is trained: measured, not believed."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

_STEPS = 3  # timed of each layout, after one that is not
_HOPELESS = 3.0  # a first step so many times slower than the best layout's median is not repeated
# oneDNN writes past its workspace in the weight gradient of a strided 1x1 convolution with fewer input channels than
# its block, in channels-last: wrong gradients, a hang, or a crash (uxlfoundation/oneDNN issue 6035; seen with 2 to 5
# channels). Pruning makes such layers. Blocks have 8 or 16 channels.
_BLOCK = 16


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to train."""

    memory_format: str  # "contiguous" | "channels_last"
    dtype: str  # "float32" | "bfloat16": of the convolutions' inputs and weights; the weights themselves stay float32


def training_device() -> torch.device:
    """Where this machine trains: CUDA where torch finds it."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait_for(device: torch.device) -> None:
    """Until the device has done all that it was given: what a clock has to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def pin_torch(threads: int, journal: MutableMapping[str, Any]) -> torch.device:
    """Everything that changes sums: threads, algorithms, device. The device of a round's first start stays its own."""
    torch.set_num_threads(threads)
    # The same as use_deterministic_algorithms(True, warn_only=True), which also imports the compiler: see `learn.optimiser`.
    torch.set_deterministic_debug_mode("warn")
    chosen = journal.setdefault("device", str(training_device()))
    journal["torch"] = torch.__version__
    return torch.device(chosen)


def arrange(module: nn.Module, device: torch.device, memory_format: str) -> nn.Module:
    """Move a module, in place, to a device and into a memory format; into "contiguous" where the other is not safe."""
    is_last = memory_format == "channels_last" and not (device.type == "cpu" and _has_narrow_shortcut(module))
    wanted = torch.channels_last if is_last else torch.contiguous_format
    # torch's annotation leaves the keyword out
    module.to(device, memory_format=wanted)  # type: ignore[call-overload]
    return module


def computing_in(dtype: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The context of a forward pass."""
    if dtype == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def fastest_layout(
    module: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    candidates: Sequence[Layout],
    *,
    beat: Callable[[], None] = lambda: None,
    now_s: Callable[[], float] = time.perf_counter,
) -> tuple[Layout, dict[str, float]]:
    """
    Time a few training steps in each layout, on copies.

    Args:
        module: to be trained; not changed.
        images: one batch [N, 3, H, W], normalised, on the module's device.
        labels: [N] int64.
        candidates: at least one.
        beat: called after every step.
        now_s: the clock, replaceable in tests.

    Returns:
        The fastest, and the median seconds of a step of each, by "memory_format dtype".
    """
    medians: dict[Layout, float] = {}
    for layout in candidates:
        bored_s = _HOPELESS * min(medians.values(), default=math.inf)
        medians[layout] = _median_step_s(module, images, labels, layout, bored_s=bored_s, beat=beat, now_s=now_s)
    best = min(candidates, key=lambda layout: medians[layout])
    return best, {f"{layout.memory_format} {layout.dtype}": round(s, 4) for layout, s in medians.items()}


def best_threads(
    module: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    layout: Layout,
    *,
    most: int,
    cores: float,
    beat: Callable[[], None] = lambda: None,
    now_s: Callable[[], float] = time.perf_counter,
) -> tuple[int, dict[int, float]]:
    """
    How many threads train fastest where only so many cores may be kept busy; torch is left with them.

    More threads than that would have to sleep in turn, and two threads are rarely twice as fast as one.

    Args:
        module, images, labels, layout, beat, now_s: as for `fastest_layout`.
        most: of the threads; this many, half of them, and so on down to one are tried.
        cores: that may be busy on average, above 0.

    Returns:
        Their number, and the median seconds of a step with each, without those sleeps.
    """
    medians: dict[int, float] = {}
    threads = most
    while threads:
        torch.set_num_threads(threads)
        medians[threads] = _median_step_s(module, images, labels, layout, bored_s=math.inf, beat=beat, now_s=now_s)
        threads //= 2
    best = min(medians, key=lambda threads: medians[threads] * max(1.0, threads / cores))
    torch.set_num_threads(best)
    return best, {threads: round(s, 4) for threads, s in medians.items()}


def _median_step_s(
    module: nn.Module, images: torch.Tensor, labels: torch.Tensor, layout: Layout, *,
    bored_s: float, beat: Callable[[], None], now_s: Callable[[], float],
) -> float:  # fmt: skip
    """Of a few steps of a copy, the first not counted; of the first alone where it took longer than `bored_s`."""
    copied = arrange(copy.deepcopy(module), images.device, layout.memory_format).train()
    taken_s: list[float] = []
    for step in range(1 + _STEPS):
        began_s = now_s()
        with computing_in(layout.dtype, images.device):
            loss = functional.cross_entropy(copied(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        wait_for(images.device)
        taken_s.append(now_s() - began_s)
        copied.zero_grad(set_to_none=True)
        beat()
        if step == 0 and taken_s[0] > bored_s:
            break
    timed = sorted(taken_s[1:] or taken_s)
    return timed[len(timed) // 2]


def candidate_layouts(memory_format: str, dtype: str, device: torch.device) -> list[Layout]:
    """What "auto" stands for; bfloat16 only where the processor computes in it, for elsewhere it is emulated."""
    formats = ["contiguous", "channels_last"] if memory_format == "auto" else [memory_format]
    dtypes = ["float32", *(["bfloat16"] if has_bfloat16(device) else [])] if dtype == "auto" else [dtype]
    return [Layout(f, d) for d in dtypes for f in formats]


def has_bfloat16(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether there are instructions for it: CUDA from Ampere, x86 AVX512-BF16 or AMX, Arm BF16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    try:
        words = set(cpuinfo.read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def _has_narrow_shortcut(module: nn.Module) -> bool:
    return any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and max(layer.stride) > 1
        and layer.in_channels // layer.groups < _BLOCK
        for layer in module.modules()
    )
