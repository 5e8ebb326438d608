"""
The samples of a round as batches, without loader workers, every choice a pure function of seeds.

Shapes: N images, H height, W width; images stay uint8 [N, H, W, 3] until the network needs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from edgetune.errors import ImageError
from edgetune.images import decode, to_input
from edgetune.store.buffer import read_images
from edgetune.types import FrozenSample, Preprocess, Split

Images = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]

MEMORY_MAX_BYTES = 256 * 2**20  # decoded images kept in memory; the others are decoded again for every batch
_REPEATS_MAX = 10  # a class of two samples is not drawn a thousand times
_U64 = np.uint64


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Samples of one split. `pixels` holds the first of them decoded; the rest is read from the buffer when needed."""

    sample_ids: Integers  # [N]
    labels: Integers  # [N] index of the class
    pixels: Images  # [M, H, W, 3], M <= N
    buffer_path: Path
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.sample_ids)

    def images(self, positions: Integers) -> Images:
        """uint8 [len(positions), H, W, 3]."""
        if len(self.pixels) == len(self):
            return self.pixels[positions]
        shape = (len(positions), self.preprocess.height, self.preprocess.width, 3)
        batch = np.empty(shape, dtype=np.uint8)
        inside = positions < len(self.pixels)
        batch[inside] = self.pixels[positions[inside]]
        places: dict[int, list[int]] = {}
        for place in np.flatnonzero(~inside):
            places.setdefault(int(self.sample_ids[positions[place]]), []).append(int(place))
        for sample_id, data in read_images(self.buffer_path, list(places)):
            batch[places[sample_id]] = to_input(decode(data), self.preprocess)
        return batch

    def in_order(self, batch_size: int) -> Iterator[tuple[Images, Integers]]:
        """All samples, unchanged, as (images [B, H, W, 3], labels [B])."""
        for start in range(0, len(self), batch_size):
            positions = np.arange(start, min(start + batch_size, len(self)))
            yield self.images(positions), self.labels[positions]


def held_bytes(count: int, preprocess: Preprocess) -> int:
    """Of so many samples, as they are kept in memory."""
    return min(count * preprocess.height * preprocess.width * 3, MEMORY_MAX_BYTES)


def load_samples(
    buffer_path: Path,
    samples: Sequence[FrozenSample],
    classes: Sequence[str],
    preprocess: Preprocess,
    *,
    beat: Callable[[], None],
    memory_max_bytes: int = MEMORY_MAX_BYTES,
) -> tuple[dict[Split, LabelledImages], tuple[int, ...]]:
    """
    Read and decode a round's samples.

    Args:
        buffer_path: edgetune.db.
        samples: of the round; those of a class not in `classes`, or without a label, are ignored.
        classes: the candidate's outputs, in order.
        preprocess: of the model.
        beat: called after every image.
        memory_max_bytes: decoded images kept, over all splits, training first.

    Returns:
        The samples by split, in the order of their ids, and the ids of those whose image cannot be decoded.
    """
    index = {label: number for number, label in enumerate(classes)}
    bad: list[int] = []
    splits: dict[Split, LabelledImages] = {}
    for split in (Split.TRAINING, Split.VALIDATION, Split.HOLDOUT):
        labels = {s.sample_id: index[s.label] for s in samples if s.split is split and s.label in index}
        splits[split], undecodable = _read(buffer_path, labels, preprocess, beat, memory_max_bytes)
        memory_max_bytes -= splits[split].pixels.nbytes
        bad += undecodable
    return splits, tuple(bad)


def load_unlabelled(
    buffer_path: Path,
    samples: Sequence[FrozenSample],
    preprocess: Preprocess,
    *,
    beat: Callable[[], None],
    memory_taken_bytes: int = 0,
) -> tuple[LabelledImages, tuple[int, ...]]:
    """Read and decode those of a round's samples that have no label; see `load_samples`. Their labels are all 0."""
    labels = {s.sample_id: 0 for s in samples if s.label is None}
    images, bad = _read(buffer_path, labels, preprocess, beat, max(0, MEMORY_MAX_BYTES - memory_taken_bytes))
    return images, tuple(bad)


def _read(
    buffer_path: Path,
    labels: Mapping[int, int],
    preprocess: Preprocess,
    beat: Callable[[], None],
    memory_max_bytes: int,
) -> tuple[LabelledImages, list[int]]:
    """The samples with these labels, in the order of their ids, and the ids of those that cannot be decoded."""
    size = (preprocess.height, preprocess.width, 3)
    good: list[int] = []
    bad: list[int] = []
    pixels = np.empty((min(memory_max_bytes // math.prod(size), len(labels)), *size), dtype=np.uint8)
    for sample_id, data in read_images(buffer_path, sorted(labels)):
        try:
            image = to_input(decode(data), preprocess)
        except ImageError:
            bad.append(sample_id)
            continue
        if len(good) < len(pixels):
            pixels[len(good)] = image
        good.append(sample_id)
        beat()
    numbers = np.array([labels[i] for i in good], np.int64)
    return LabelledImages(np.array(good, np.int64), numbers, pixels[: len(good)], buffer_path, preprocess), bad


_VIEWS = 0x76696577  # keeps the draws of views apart from those of rounds


def _mix(*parts: int | npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of numbers or arrays of numbers (the finaliser of splitmix64, once for each part)."""
    with np.errstate(over="ignore"):
        state = np.zeros(1, dtype=_U64)
        for part in parts:
            number = np.asarray(part).astype(_U64)
            state = (state ^ number) + _U64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> _U64(27))) * _U64(0x94D049BB133111EB)
            state = state ^ (state >> _U64(31))
        return state


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """Which samples an epoch draws, in which order, and how each is changed."""

    positions: Integers  # [D] into the training split; small classes occur more than once
    draws: npt.NDArray[np.uint64]  # [D] a hash for each draw, the source of its changes
    edges: tuple[int, ...]  # where batches begin and end in it


def plan_epoch(
    data: LabelledImages,
    *,
    seed: int,
    round_id: int,
    phase: str,
    epoch: int,
    batch_size: int,
    views: int | None = None,
) -> EpochPlan:
    """
    Shuffle and balance one epoch; a pure function of its arguments and of the sample ids.

    With `views` an image is changed in so many ways, one an epoch in turn, and in the same ways in every phase and round:
    what a teacher has said of them can be kept. Otherwise each time in another.

    A class with fewer than half of the samples of the largest one is repeated until it has about half of them, each
    sample at most ten times, each time with changes of its own. The last batch is never smaller than a quarter of
    the others (it is then part of the one before), because batch norm learns nothing from one or two images.
    """
    counts = np.bincount(data.labels)
    half = counts.max() / 2
    repeats = np.clip(np.round(half / np.maximum(counts, 1)), 1, _REPEATS_MAX).astype(np.int64)[data.labels]
    positions = np.repeat(np.arange(len(data)), repeats)
    turn = np.concatenate([np.arange(r) for r in repeats])
    phase_number = sum(phase.encode())
    ids, turns = data.sample_ids[positions].astype(_U64), turn.astype(_U64)
    draws = _mix(seed, round_id, phase_number, epoch, ids, turns)
    order = np.argsort(draws, kind="stable")
    edges = list(range(0, len(order), batch_size))
    if len(edges) > 1 and len(order) - edges[-1] < max(2, batch_size // 4):
        edges.pop()
    if views is not None:
        draws = _mix(seed, _VIEWS, epoch % views, ids, turns)
    return EpochPlan(positions[order], draws[order], (*edges, len(order)))


def augment(images: Images, draws: npt.NDArray[np.uint64], how: str) -> Images:
    """
    Shift by up to an eighth of the size (edge pixels repeated) and mirror half of the images.

    Args:
        images: uint8 [B, H, W, 3].
        draws: [B] the draws' hashes.
        how: "none", "crop" or "crop_flip".

    Returns:
        uint8 [B, H, W, 3].
    """
    if how == "none":
        return images
    count, height, width, _ = images.shape
    reach_y, reach_x = max(1, height // 8), max(1, width // 8)
    shift_y = (_mix(draws, 1) % _U64(2 * reach_y + 1)).astype(np.int64) - reach_y
    shift_x = (_mix(draws, 2) % _U64(2 * reach_x + 1)).astype(np.int64) - reach_x
    rows = np.clip(np.arange(height)[None, :] + shift_y[:, None], 0, height - 1)
    columns = np.clip(np.arange(width)[None, :] + shift_x[:, None], 0, width - 1)
    if how == "crop_flip":
        is_mirrored = (_mix(draws, 3) & _U64(1)).astype(bool)
        columns[is_mirrored] = columns[is_mirrored, ::-1]
    shifted: Images = images[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return shifted


def draws_of(sample_ids: Integers, seed: int) -> npt.NDArray[np.uint64]:
    """Hashes [B] that `augment` makes one change of each sample from, outside any epoch."""
    return _mix(seed, sample_ids.astype(_U64))


def uniform(draws: npt.NDArray[np.uint64], what: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) for hashes [B], others for each `what`."""
    numbers: npt.NDArray[np.float64] = (_mix(draws, what) >> _U64(11)).astype(np.float64) * 2.0**-53
    return numbers


def step_seed(*parts: int) -> int:
    """A seed for torch's generator (dropout, stochastic depth) of one step."""
    return int(_mix(*parts)[0] >> _U64(1))


def normalise(images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """
    What the network sees; the same in training and in the exported graph.

    Args:
        images: uint8 [N, H, W, 3].
        mean: float32 [1, 3, 1, 1] of RGB in 0..1.
        std: the same.

    Returns:
        float32 [N, 3, H, W].
    """
    return (images.permute(0, 3, 1, 2).to(torch.float32) / 255.0 - mean) / std


class Normaliser:
    """`normalise` with a model's mean and std, on the device of the training."""

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        self._mean = torch.tensor(preprocess.mean, device=device).reshape(1, 3, 1, 1)
        self._std = torch.tensor(preprocess.std, device=device).reshape(1, 3, 1, 1)
        self._device = device

    def __call__(self, images: Images) -> torch.Tensor:
        """uint8 [N, H, W, 3] -> float32 [N, 3, H, W], contiguous: the weights say in which format is computed."""
        tensor = torch.from_numpy(np.ascontiguousarray(images)).to(self._device)
        return normalise(tensor, self._mean, self._std).contiguous()

    def labels(self, labels: Integers) -> torch.Tensor:
        """int64 [N]."""
        return torch.from_numpy(labels).to(self._device)
