"""Where a round is, as one safetensors file that is replaced atomically: tensors, and JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from edgetune.learn.network import NetworkDescription
from edgetune.store.durable import write_atomic

CHECKPOINT_FILE = "checkpoint.safetensors"


@dataclass(slots=True)
class Checkpoint:
    """Everything that the rest of the round depends on, beside the spec and the samples."""

    phase: str  # "tune", "prune", "retrain" or "finish"
    description: NetworkDescription
    network: Mapping[str, torch.Tensor]
    momentum: Mapping[str, torch.Tensor] = field(default_factory=dict)  # of the optimiser, by parameter
    best: Mapping[str, torch.Tensor] = field(default_factory=dict)  # the network at the best validation epoch
    best_score: tuple[float, float] | None = None  # (top-1, -loss) of it on the validation split
    step: int = 0  # steps done in this phase


def save_checkpoint(directory: Path, checkpoint: Checkpoint, spec_digest: str) -> None:
    """Replace the round's checkpoint; a crash leaves the old one or the new one."""
    tensors = {}
    for prefix in ("network", "momentum", "best"):
        for name, tensor in getattr(checkpoint, prefix).items():
            tensors[f"{prefix}.{name}"] = tensor.detach().to("cpu").contiguous()
    header = {
        "spec": spec_digest,
        "phase": checkpoint.phase,
        "step": checkpoint.step,
        "best_score": checkpoint.best_score,
        "network": checkpoint.description.to_json(),
    }
    write_atomic(directory / CHECKPOINT_FILE, save(tensors, metadata={"edgetune": json.dumps(header)}))


def load_checkpoint(directory: Path, spec_digest: str) -> Checkpoint | None:
    """The round's checkpoint, or None when there is none, or it is damaged or of another spec: then start anew."""
    path = directory / CHECKPOINT_FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            header: dict[str, Any] = json.loads(file.metadata()["edgetune"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:
        if isinstance(error, (OSError, ValueError, KeyError, TypeError)) or type(error).__name__ == "SafetensorError":
            return None
        raise
    if header["spec"] != spec_digest:
        return None
    score = header["best_score"]
    return Checkpoint(
        phase=header["phase"],
        description=NetworkDescription.from_json(header["network"]),
        network=_under(tensors, "network."),
        momentum=_under(tensors, "momentum."),
        best=_under(tensors, "best."),
        best_score=None if score is None else (score[0], score[1]),
        step=header["step"],
    )


def _under(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
