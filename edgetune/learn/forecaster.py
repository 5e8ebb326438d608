"""What a training step of this network will take on this board: physics with numbers from elsewhere, put right by measurements."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from edgetune.learn.attributes import layers_of, workload
from edgetune.learn.calibration import Coefficients, Kernel, Physics, StepModel, memory_terms, time_terms
from edgetune.learn.layout import Layout, arrange, computing_in, wait_for
from edgetune.learn.memory import begin_shared_peak, held_mib, kept_bytes, shared_peak_mib
from edgetune.learn.optimiser import Sgd
from edgetune.serve.engine import return_free_memory
from edgetune.types import BoardHistory, Interval, StepPoint, Workload

_MIB = 2**20
# Beside what the process holds before its first step: a workspace, gradients of activations, gradients and momentum of
# weights. Measured with torch 2.13 on x86: the CIFAR ResNet20, MobileNetV2 and SqueezeNet in batches of 64 and 128,
# torchvision's MobileNetV2 (32 images of 224 px) and ResNet-18 (16) took 0.93 to 1.13 times what these numbers say.
MEMORY_PRIOR = Coefficients((160.0, 1.35, 8e6 / _MIB, 0.0, 1.0))
# One of two shared x86 cores, torch 2.13: seven networks of 32 to 128 px, within 0.6 to 1.4 of these. Of another board they say little but how its layers compare: `scale_sd` below.
TIME_PRIOR = Coefficients((0.018, 0.0003, 0.016, 5e-4, 4e-3, 1.5e-3))
_MEMORY_KERNEL = Kernel(noise=0.03, parts=((0.05, 1.5, 0.7),), term_sds=(0.4, 0.4, 0.4, 0.0, 0.0))
_TIME_KERNEL = Kernel(noise=0.05, parts=((0.15, 1.5, 1.0),), scale_sd=1.2, term_sds=(0.5,) * 6)
PROFILE_S = 20.0  # a micro-profile takes no longer than this and one step
_PROFILE_STEPS = 3  # of each batch, after one that is not timed


class Forecaster:
    """
    What is known of this board; knows nothing of budgets.

    Args:
        history: steps that were measured here.
        threads: of the trainer.
    """

    def __init__(self, history: BoardHistory, *, threads: int) -> None:
        self.threads = threads
        self.rest_mib = held_mib()
        self._points = list(history.points)
        self._fit()

    def _fit(self) -> None:
        held = [point for point in self._points if point.peak_mib is not None]
        timed = [point for point in self._points if point.step_s is not None]
        self._memory = StepModel(
            Physics(memory_terms),
            held,
            [point.peak_mib or 0.0 for point in held],
            kernel=_MEMORY_KERNEL,
            prior=MEMORY_PRIOR,
        )
        self._time = StepModel(
            Physics(time_terms), timed, [point.step_s or 0.0 for point in timed], kernel=_TIME_KERNEL, prior=TIME_PRIOR
        )

    def learn(self, points: Sequence[StepPoint]) -> None:
        """Take measurements of this process into account."""
        self._points += points
        self._fit()

    def point(self, work: Workload, batch_size: int) -> StepPoint:
        """A step here."""
        return StepPoint(workload=work, batch_size=batch_size, threads=self.threads, rest_mib=self.rest_mib)

    def peak_mib(self, work: Workload, batch_size: int) -> Interval:
        """Resident MiB of this process in a training step."""
        return self._memory.interval(self.point(work, batch_size))

    def step_s(self, work: Workload, batch_size: int) -> Interval:
        """Seconds of a training step."""
        return self._time.interval(self.point(work, batch_size))


def workload_of(
    module: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, is_from_cut: bool = False
) -> Workload:
    """
    Of a step that trains what wants a gradient.

    Args:
        module: in train mode, see `kept_bytes`; what is below a cut rests.
        images: two of them, [2, 3, H, W], normalised.
        labels: [2] int64.
        is_from_cut: the layers below do not run.
    """
    kept = kept_bytes(module, images, labels) / len(images)
    is_training = {m: m.training for m in module.modules()}
    updated = [
        m
        for m in module.modules()
        if next(m.children(), None) is None and any(p.requires_grad for p in m.parameters(recurse=False))
    ]
    layers = layers_of(module, images[:1])
    trained = layers_of(module, images[:1], only=updated)
    for each, was in is_training.items():  # a part of it rests
        each.training = was
    return workload(trained if is_from_cut else layers, kept_bytes=kept, trained=trained)


def micro_profile(
    module: nn.Module,
    batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    forecaster: Forecaster,
    layout: Layout,
    *,
    beat: Callable[[], None],
    now_s: Callable[[], float] = time.perf_counter,
) -> list[StepPoint]:
    """
    Measure a few training steps of a copy, the smallest batch first, for no longer than `PROFILE_S` and a step.

    Args:
        module: not changed.
        batches: (images [N, 3, H, W], labels [N]) of growing size.
        forecaster: says what the process held before.
        layout: that is trained in.
        beat: called after every step.
        now_s: the clock, replaceable in tests.
    """
    copied = arrange(copy.deepcopy(module), batches[0][0].device, layout.memory_format).train()
    parameters = {name: p for name, p in copied.named_parameters() if p.requires_grad}
    optimiser = Sgd(parameters, learning_rate=1e-6, momentum=0.9)
    few = batches[0][0][:2], batches[0][1][:2]
    work = workload_of(copied, *few)
    points: list[StepPoint] = []
    began_s = now_s()
    for images, labels in batches:
        begin_peak()
        taken_s: list[float] = []
        for _ in range(1 + _PROFILE_STEPS):
            if points and now_s() - began_s > PROFILE_S:
                return points
            step_began_s = now_s()
            optimiser.forget_gradients()
            with computing_in(layout.dtype, images.device):
                loss = functional.cross_entropy(copied(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
            wait_for(images.device)
            taken_s.append(now_s() - step_began_s)
            beat()
        timed = sorted(taken_s[1:])
        points.append(
            StepPoint(
                workload=work,
                batch_size=len(images),
                threads=forecaster.threads,
                rest_mib=forecaster.rest_mib,
                peak_mib=peak_mib(),
                step_s=timed[len(timed) // 2],
            )
        )
    return points


class _Before:
    """What was before the mark was started anew: as the mark itself, of the whole process."""

    highest_mib = 0.0


_before = _Before()


def begin_peak() -> bool:
    """
    Hand what was freed back to the system and start this process's high-water mark of resident memory anew.

    Returns:
        Whether the next mark is of what follows alone: glibc and the kernel can both do it.
    """
    _before.highest_mib = process_peak_mib() or 0.0
    is_given_back = return_free_memory()
    begin_shared_peak()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return is_given_back


def peak_mib() -> float | None:
    """
    The high-water mark since `begin_peak`: of resident memory, and of what is held of a GPU's that is the system's.

    The two marks need not be of one moment, so this may be a little more than there was. None where the system does not tell.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    resident = next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)
    return None if resident is None else resident + shared_peak_mib()


def process_peak_mib() -> float | None:
    """The most that this process has held, however often the mark was started anew; None where the system does not tell."""
    since_mib = peak_mib()
    return None if since_mib is None else max(_before.highest_mib, since_mib)
