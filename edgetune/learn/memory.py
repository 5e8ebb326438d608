"""What autograd keeps, and how much memory a pass that ranks filters takes; of training steps see `learn.forecaster`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import nn
from torch.nn import functional

_MIB = 2**20
# What a step holds beside what autograd keeps: gradients of activations, and the libraries' workspaces. Measured with
# torch 2.13 on x86: the CIFAR ResNet20, MobileNetV2 and SqueezeNet in batches of 64 and 128, torchvision's MobileNetV2
# (32 images of 224 px) and ResNet-18 (16) took 0.93 to 1.13 times what these two numbers say.
_GRADIENTS = 1.35  # of the activations, they and what is kept of them together
_WORKSPACE_MIB = 160


def kept_bytes(module: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> int:
    """
    Bytes of the activations that autograd keeps from the forward pass to the backward pass of a training step.

    Args:
        module: in train mode; its gradients and running statistics are not touched by more than a forward pass.
        images: a batch [N, 3, H, W]; two images tell as much as a hundred, for it grows with their number.
        labels: [N] int64.
    """
    return kept_by(module, lambda: functional.cross_entropy(module(images), labels))


def kept_by(module: nn.Module, work: Callable[[], object]) -> int:
    """Bytes that autograd keeps of what `work` does with the module, its weights left out, at most once a storage."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def give_back(tensor: Any) -> Any:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, give_back):
        made = work()  # alive: what it keeps cannot be counted twice
    del made
    return sum(kept.values())


def pass_mib(kept: float) -> float:
    """MiB of this process in a forward and backward pass of which autograd keeps so many bytes."""
    return held_mib() + _GRADIENTS * kept / _MIB + _WORKSPACE_MIB


def held_mib() -> float:
    """Resident memory of this process, and what torch holds of a GPU's memory that is the system's, as budgets count it."""
    shared = torch.cuda.memory_reserved() if _shares_gpu_memory() else 0
    return float(psutil.Process().memory_info().rss + shared) / _MIB


def begin_shared_peak() -> None:
    """Start the mark of `shared_peak_mib` anew."""
    if _shares_gpu_memory():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def shared_peak_mib() -> float:
    """The most that torch has held of a GPU's memory that is the system's; 0 where there is none, or it has its own."""
    return torch.cuda.max_memory_reserved() / _MIB if _shares_gpu_memory() else 0.0


def _shares_gpu_memory() -> bool:
    # torch leaves it untyped. Where nothing is held yet, asking would take memory.
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    return bool(torch.cuda.get_device_properties(torch.cuda.current_device()).is_integrated)
