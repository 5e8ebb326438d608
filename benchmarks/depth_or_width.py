"""
What makes a residual network fast in ONNX Runtime: narrower layers or fewer? No training, random weights.

    python -m benchmarks.depth_or_width [--runs 400]

ResNet20 for 32 px, with the widths of its three stages and, for each residual block, the width of its inner layer (0: the
block is not there); timed in turn, one thread.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import nn

from benchmarks.cifar import PREPROCESS
from benchmarks.stage import machine, say, table
from edgetune.learn.cifar import BasicBlock, projection
from edgetune.learn.export import Served, export_onnx

Inner = tuple[tuple[int, ...], ...]
NETS: dict[str, tuple[tuple[int, ...], Inner]] = {
    "as built": ((16, 32, 64), ((16,) * 3, (32,) * 3, (64,) * 3)),
    "all layers at half their width": ((8, 16, 32), ((8,) * 3, (16,) * 3, (32,) * 3)),
    "all layers at a quarter": ((4, 8, 16), ((4,) * 3, (8,) * 3, (16,) * 3)),
    "inner layers at half": ((16, 32, 64), ((8,) * 3, (16,) * 3, (32,) * 3)),
    "two blocks a stage": ((16, 32, 64), ((16,) * 2, (32,) * 2, (64,) * 2)),
    "two blocks a stage at half": ((8, 16, 32), ((8,) * 2, (16,) * 2, (32,) * 2)),
    "one block a stage": ((16, 32, 64), ((16,), (32,), (64,))),
    "one block a stage at half": ((8, 16, 32), ((8,), (16,), (32,))),
    "0, 1 and 2 blocks": ((16, 32, 64), ((), (32,), (64, 64))),
}


def network(widths: tuple[int, ...], inner: Inner) -> nn.Module:
    """[N, 3, 32, 32] -> [N, 100]."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    channels = widths[0]
    for stage, (width, blocks) in enumerate(zip(widths, inner, strict=True)):
        for index, narrow in enumerate(blocks):
            stride = 2 if stage and index == 0 else 1
            shortcut = projection(channels, width, stride) if channels != width else None
            block = BasicBlock(channels, width, stride, shortcut, "downsample", inner=narrow)
            layers.append(block)
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 100)).eval()


def main() -> int:
    """Read the arguments, time, print."""
    import numpy as np
    import onnxruntime

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    arguments = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    built = {name: network(*shape) for name, shape in NETS.items()}
    sessions = [
        onnxruntime.InferenceSession(export_onnx(Served(module, PREPROCESS).eval(), PREPROCESS), options)
        for module in built.values()
    ]
    image = np.zeros((1, 32, 32, 3), np.uint8)
    taken = np.empty((len(sessions), arguments.runs))
    for run in range(arguments.runs):
        for row, session in enumerate(sessions):
            began_s = time.perf_counter()
            session.run(None, {"images": image})
            taken[row, run] = 1000 * (time.perf_counter() - began_s)
    ratios = np.median(taken / taken[0], axis=1)
    rows = [("ResNet20", "parameters", "latency", "")]
    for row, (name, module) in enumerate(built.items()):
        count = sum(parameter.numel() for parameter in module.parameters())
        rows.append((name, f"{count:,}", f"{np.median(taken[row]):.3f} ms", f"{ratios[row]:.2f}x"))
    say(f"{machine()}, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}")
    say(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
