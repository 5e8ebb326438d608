"""
The pruned networks behind shared measurements of which only "network, level" is told: rebuilt by their public description.

    python -m benchmarks.topologies --out benchmarks/results/tx2_workloads.json

Filters are removed from all convolutions alike (of networks that were not trained, no filter is better than another) until
`level` percent of the parameters are gone. Layers that are coupled lose the same indices: of a group that several layers
write a channel stays if none of them lost it, and at least the share 1 - level of its channels (level below one half:
`level`). Kept bytes, shapes and sums are those of `edgetune.learn.attributes`. MobileNetV2's ReLU6 counts as a ReLU, which
keeps no copy: so did the torch of those measurements.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from edgetune.learn.attributes import layers_of, workload
from edgetune.learn.cost import CostCounter
from edgetune.learn.groups import CoupledGroup, find_groups
from edgetune.learn.memory import kept_bytes
from edgetune.learn.network import count_parameters
from edgetune.learn.prune import cut_channels
from edgetune.learn.vision import torchvision_models
from edgetune.types import Workload

NETS = {  # name in the table -> torchvision's builder, its arguments, the output layer
    "googlenet": ("googlenet", {"aux_logits": False, "init_weights": False}, "fc"),
    "mnasnet": ("mnasnet1_0", {}, "classifier.1"),
    "mobilenetv2": ("mobilenet_v2", {}, "classifier.1"),
    "resnet18": ("resnet18", {}, "fc"),
    "resnet50": ("resnet50", {}, "fc"),
    "squeezenet": ("squeezenet1_0", {}, "classifier.1"),
}
LEVELS = tuple(range(0, 95, 5))
SIDE = 224
_FEWEST = 2


def build(name: str) -> tuple[nn.Module, tuple[CoupledGroup, ...]]:
    """A network with random weights, and what of it can be pruned."""
    builder, options, head = NETS[name]
    module = getattr(torchvision_models(), builder)(weights=None, **options)
    for parent in list(module.modules()):
        for child, layer in parent.named_children():
            if isinstance(layer, nn.ReLU6):
                setattr(parent, child, nn.ReLU(inplace=True))
    groups = find_groups(module, head, SIDE, SIDE)
    return module.train(), groups


def widths_at(groups: Sequence[CoupledGroup], modules: Mapping[str, nn.Module], kept: float, level: float) -> list[int]:
    """Channels that each group keeps when every layer keeps the share `kept` of its filters."""
    found = []
    for group in groups:
        writers = {m.layer for m in group.members if m.is_output and isinstance(modules[m.layer], nn.Conv2d)}
        least = 1 - level if level >= 0.5 else level
        floor = math.ceil(group.channels * least) if len(writers) > 1 else _FEWEST
        found.append(min(group.channels, max(_FEWEST, floor, round(group.channels * kept ** len(writers)))))
    return found


def prune(module: nn.Module, groups: Sequence[CoupledGroup], level: float) -> nn.Module:
    """A copy without the share `level` of its parameters, or as near to that as the floors allow."""
    modules, whole = dict(module.named_modules()), count_parameters(module)
    counter = CostCounter(module, groups, SIDE, SIDE)
    module.train()

    def left(widths: Sequence[int]) -> int:
        gone = [range(width, group.channels) for width, group in zip(widths, groups, strict=True)]
        for i, channels in enumerate(gone):
            counter.remove(i, channels)
        size = counter.size.parameters
        for i, channels in enumerate(gone):
            counter.restore(i, channels)
        return size

    low, high = 0.0, 1.0
    for _ in range(20 if level else 0):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if left(widths_at(groups, modules, middle, level)) > whole * (1 - level) else (middle, high)
        )
    widths = widths_at(groups, modules, high if level else 1.0, level)
    pruned = copy.deepcopy(module)
    cut_channels(pruned, groups, [range(width, group.channels) for width, group in zip(widths, groups, strict=True)])
    return pruned.train()


def workload_of(module: nn.Module) -> Workload:
    """Of a training step of all layers."""
    kept = kept_bytes(module, torch.zeros(2, 3, SIDE, SIDE), torch.zeros(2, dtype=torch.long)) / 2
    return workload(layers_of(module, torch.zeros(1, 3, SIDE, SIDE)), kept_bytes=kept)


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tx2_workloads.json"))
    arguments = parser.parse_args()
    found = {}
    for name in NETS:
        module, groups = build(name)
        for level in LEVELS:
            found[f"{name} {level}"] = asdict(workload_of(prune(module, groups, level / 100)))
            print(name, level, flush=True)
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in found.items())
    arguments.out.write_text(f"{{\n{lines}\n}}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
