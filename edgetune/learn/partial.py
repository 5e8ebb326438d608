"""
Training the upper part of a network alone: its last stage, or its output layer; what is below stays as it is, bit for bit.

A stage is the layers of one resolution. What is below the first trained layer, the *cut*, gives the same for an image in
every epoch, so that it can be worked out once: its latents (Pellegrini et al. 2020, "Latent replay for real-time continual
learning", arXiv 1912.01100; differs from it in: the layers below are frozen and not slowed, and the latents are those of
the images as they are, without random changes).
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from torch import nn

from edgetune.errors import ModelError
from edgetune.learn.data import Integers, LabelledImages, Normaliser
from edgetune.learn.network import Network, show

IN_MEMORY_BYTES = 64 * 2**20  # of latents; more go to a file
_BATCH = 64
_FLOAT_BYTES = 4


class _ReachedError(Exception):
    """The cut was reached: what lies above need not run."""


class Part:
    """
    The upper part of a network, from one layer on, and how to train it alone.

    Args:
        network: whose lower part is to stay.
        cut: the first layer that is trained.
        image: [1, 3, H, W], normalised, on the network's device; what is below is found by running it.

    Raises:
        ModelError: the network does not run its layer `cut`.
    """

    def __init__(self, network: Network, cut: str, image: torch.Tensor) -> None:
        self._module, self.image = network.module, image
        self._cut = network.module.get_submodule(cut)
        self.cut = cut
        self._below = self._find_below()
        self.kept: Latents | None = None  # of the samples that are trained on; None: they are worked out in each step

    def _find_below(self) -> list[nn.Module]:
        """The modules that are through before the cut is reached."""
        done: list[nn.Module] = []
        hooks = [m.register_forward_hook(lambda m, *_: done.append(m)) for m in self._module.modules()]
        try:
            self._latents_of(self.image)
        finally:
            for hook in hooks:
                hook.remove()
        return list(dict.fromkeys(done))

    @contextlib.contextmanager
    def trained_alone(self) -> Iterator[None]:
        """While it lasts, parameters below the cut want no gradient."""
        frozen = [p for m in self._below for p in m.parameters(recurse=False) if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_()

    def rest(self) -> None:
        """After `train()`: what is below uses its running statistics, moves none of them and drops nothing out."""
        for module in self._below:
            module.training = False

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """What the cut reads of images [B, 3, H, W]: [B, C, H', W'], or [B, D] for an output layer."""
        self._module.eval()
        return self._latents_of(images)

    def _latents_of(self, images: torch.Tensor) -> torch.Tensor:
        seen: list[torch.Tensor] = []

        def stop(_cut: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen.append(inputs[0])
            raise _ReachedError

        was_training = self._module.training
        hook = self._cut.register_forward_pre_hook(stop)
        try:
            with torch.no_grad(), contextlib.suppress(_ReachedError):
                self._module.eval()(images)
        finally:
            hook.remove()
            self._module.train(was_training)
        if not seen:
            raise ModelError(f"the network does not run its layer {self.cut!r}")
        return seen[0]

    def below_is_of(self, other: Part) -> bool:
        """Whether another network has the same layers with the same weights below its cut, so that its latents are these."""
        mine, its = self._tensors_below(), other._tensors_below()
        if mine.keys() != its.keys() or any(not torch.equal(tensor, its[name]) for name, tensor in mine.items()):
            return False
        return torch.equal(self._latents_of(self.image), other._latents_of(self.image))

    def _tensors_below(self) -> dict[str, torch.Tensor]:
        names = {module: name for name, module in self._module.named_modules()}
        return {
            f"{names[module]}.{name}": tensor
            for module in self._below
            for name, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        }

    def logits(self, latents: torch.Tensor) -> torch.Tensor:
        """
        The network's answer [B, K] from latents on; with a gradient.

        Below the cut one image runs whose latents are replaced: that holds for any network of which nothing passes the cut
        by, see `is_the_only_way`, and costs a batch's share of one.
        """
        hook = self._cut.register_forward_pre_hook(lambda _cut, _inputs: (latents,))
        try:
            return cast(torch.Tensor, self._module(self.image))
        finally:
            hook.remove()

    def is_the_only_way(self) -> bool:
        """Whether the answer depends on the image through the cut alone."""
        images = torch.cat([self.image + 0.5 * shift for shift in range(3)])
        was_training = self._module.training
        self._module.eval()
        try:
            with torch.no_grad():
                expected = self._module(images)
                found = self.logits(self._latents_of(images))
        except RuntimeError:  # shapes that do not fit: a batch of three meets one image
            return False
        finally:
            self._module.train(was_training)
        return expected.shape == found.shape and torch.allclose(expected, found, rtol=1e-3, atol=1e-4)


class Latents:
    """The latents of samples, worked out once; in memory, or in a file without a name that ends with the process."""

    def __init__(
        self,
        part: Part,
        data: LabelledImages,
        normaliser: Normaliser,
        *,
        scratch: Path | None,
        beat: Callable[[], None],
        memory_max_bytes: int = IN_MEMORY_BYTES,
    ) -> None:
        """`scratch` is where the file is that holds more than `memory_max_bytes`; None: where the system has such files."""
        place = None if scratch is None else str(scratch)
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(memory_max_bytes, dir=place)  # noqa: SIM115 - see close
        self._shape: tuple[int, ...] = ()
        for images, _ in data.in_order(_BATCH):
            latents = part.latents(normaliser(images)).float().cpu()
            self._device = normaliser.labels(np.zeros(1, np.int64)).device
            self._shape = tuple(latents.shape[1:])
            self._file.write(np.ascontiguousarray(latents.numpy()).tobytes())
            beat()

    def batch(self, positions: Integers) -> torch.Tensor:
        """float32 [B, ...] of the samples at these positions, on the network's device."""
        row = math.prod(self._shape) * _FLOAT_BYTES
        pieces = []
        for position in positions.tolist():
            self._file.seek(position * row)
            pieces.append(np.frombuffer(self._file.read(row), dtype=np.float32))
        return torch.from_numpy(np.stack(pieces)).reshape(len(positions), *self._shape).to(self._device)

    def close(self) -> None:
        """Let them go."""
        self._file.close()


def last_stage(network: Network, image: torch.Tensor) -> str:
    """
    The first layer of a network's last stage: where the resolution falls for the last time before its last convolutions.

    Args:
        network: in any mode, which is left as it was.
        image: [1, 3, H, W], normalised.

    Returns:
        The name of a layer that is run once; the output layer where there is no other.
    """
    units = _run(network.module, image)
    names = [name for name, _, _ in units]
    found = network.head
    for place, (_, before, after) in enumerate(units):
        is_smaller = len(before) == len(after) == 4 and math.prod(after[2:]) < math.prod(before[2:])
        if is_smaller and any(_has_convolution(network, later) for later in names[place:]):
            # a pooling layer that is used again and again is no place to cut at: what follows it is
            found = next((name for name in names[place:] if names.count(name) == 1), network.head)
    return found


def _has_convolution(network: Network, name: str) -> bool:
    """Whether a layer other than the output layer learns filters."""
    layers = network.module.get_submodule(name).named_modules(prefix=name)
    return any(isinstance(layer, nn.Conv2d) and path != network.head for path, layer in layers)


def _run(module: nn.Module, image: torch.Tensor) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """The layers one after another as they run, sequences taken apart, as (name, shape read, shape given)."""
    seen: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []

    def look(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def note(_layer: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            if len(inputs) == 1 and isinstance(inputs[0], torch.Tensor) and isinstance(output, torch.Tensor):
                seen.append((name, tuple(inputs[0].shape), tuple(output.shape)))

        return note

    show(module, image, [layer.register_forward_hook(look(name)) for name, layer in _chain(module, "")])
    return seen


def _chain(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if isinstance(child, nn.Sequential):
            yield from _chain(child, f"{path}.")
        else:
            yield path, child
