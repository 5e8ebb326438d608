"""
Images that nobody took, to ask a teacher about: cut out, recoloured, blended and pasted ones of those that are there.

Of the classes that no image shows a teacher says little about images as they are. Some mixtures look to it like one of them, and
what it says of these carries over: a student that has learnt it answers images of classes that it was never shown.

Source: the idea of Asano and Saeed 2021, "Extrapolating from a single image to a thousand classes using distillation"
(arXiv 2112.00725), with blends as in Zhang et al. 2017 (arXiv 1710.09412) and patches as in Yun et al. 2019 (arXiv 1905.04899).
Differs from it in: the mixtures that the teacher finds most like a class that is not shown are picked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from edgetune.learn.data import Images, uniform
from edgetune.learn.transfer import Output

# uint8 [N, H, W, 3] -> logits float32 [N, K]
Ask = Callable[[Images], npt.NDArray[np.float32]]

_PICKED, _DRAWN = 1 / 3, 1 / 6  # of the batch: those that look most like a class that is not shown, and others of them
_STREAM = 1000  # the first of the streams of random numbers that a mixture takes
_AT_ONCE = 8  # images that are mixed
_LEAST_AREA = 0.2  # of an image that is cut out
_STRETCHED = 0.3  # the logarithm of a side's factor, at most
_GAIN, _OFFSET = 0.4, 0.2  # of a colour, at most


class Mixtures:
    """In the place of a part of each batch, and what the teacher says of them."""

    def __init__(self, ask: Ask, classes: Sequence[int], never: Collection[int]) -> None:
        """
        Take whom to ask.

        Args:
            ask: the teacher.
            classes: the student's number of each column of its answer.
            never: those of them that no image shows.
        """
        self._ask, self._classes = ask, tuple(classes)
        self._never = [column for column, label in enumerate(classes) if label in never]

    def __call__(self, images: Images, draws: npt.NDArray[np.uint64]) -> tuple[Images, Output | None]:
        """
        A third of a batch picked and a sixth drawn among mixtures of it; the rest stays.

        Args:
            images: uint8 [B, H, W, 3].
            draws: [B] hashes that everything is drawn from.

        Returns:
            As many images, the mixtures first, and the teacher's logits [M, K] about these; a batch of one stays as it is.

        Raises:
            TeacherError: it gives no answer.
        """
        picked, drawn = round(len(images) * _PICKED), round(len(images) * _DRAWN)
        if not picked:
            return images, None
        tried = mixed(images, draws)  # one of each: to pick among three took the teacher three times as long for little
        logits = self._ask(tried)
        order = np.argsort(-_share(logits, self._never), kind="stable")
        others = order[picked:][np.argsort(uniform(draws, 0)[order[picked:]], kind="stable")]
        chosen = np.concatenate([order[:picked], others[:drawn]])
        said = Output(logits=torch.from_numpy(logits[chosen]), classes=self._classes)
        return np.concatenate([tried[chosen], images[len(chosen) :]]), said


def _share(logits: npt.NDArray[np.float32], columns: Sequence[int]) -> npt.NDArray[np.float64]:
    """Of the probability, that these columns have, [N]."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    share: npt.NDArray[np.float64] = powers[:, list(columns)].sum(axis=1) / powers.sum(axis=1)
    return share


def mixed(images: Images, draws: npt.NDArray[np.uint64]) -> Images:
    """
    One mixture of each image with another one of the batch.

    Half of them are cut out and enlarged, half are recoloured; then half are blended with another, three eighths get a square
    of another.

    Args:
        images: uint8 [B, H, W, 3].
        draws: [B] hashes.

    Returns:
        uint8 [B, H, W, 3].
    """
    count = len(images)
    partners = (np.arange(count) + 1 + (uniform(draws, _STREAM) * max(1, count - 1)).astype(np.int64)) % count
    slices = [slice(at, at + _AT_ONCE) for at in range(0, count, _AT_ONCE)]  # as numbers they take much more memory
    return np.concatenate([_mixed(images[own], images[partners[own]], draws[own]) for own in slices])


def _mixed(images: Images, others: Images, draws: npt.NDArray[np.uint64]) -> Images:
    """Each image with its partner."""

    def draw(what: int) -> torch.Tensor:
        return torch.from_numpy(uniform(draws, _STREAM + 1 + what)).float()

    _, height, width, _ = images.shape
    pixels, other = (
        torch.from_numpy(np.ascontiguousarray(each)).permute(0, 3, 1, 2).float() / 255 for each in (images, others)
    )
    pixels = torch.where(_of(draw(0) < 0.5), _cut_out(pixels, draw), pixels)
    gain = torch.stack([1 + _GAIN * (2 * draw(5 + c) - 1) for c in range(3)], dim=1)
    offset = torch.stack([_OFFSET * (2 * draw(8 + c) - 1) for c in range(3)], dim=1)
    recoloured = (pixels * gain[:, :, None, None] + offset[:, :, None, None]).clamp(0, 1)
    pixels = torch.where(_of(draw(11) < 0.5), recoloured, pixels)
    how, share = draw(13), draw(14)
    blended = _of(share) * pixels + (1 - _of(share)) * other
    sides = (1 - draw(15)).sqrt()
    inside = _within(draw(16), sides, height)[:, None, :, None] & _within(draw(17), sides, width)[:, None, None, :]
    pasted = torch.where(inside, other, pixels)
    pixels = torch.where(_of(how < 0.5), blended, torch.where(_of(how < 0.875), pasted, pixels))
    made: Images = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(made)


def _of(values: torch.Tensor) -> torch.Tensor:
    """A number for each image, [B] -> [B, 1, 1, 1]."""
    return values[:, None, None, None]


def _cut_out(pixels: torch.Tensor, draw: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """A part of each image, enlarged to the whole."""
    side = (_LEAST_AREA + (1 - _LEAST_AREA) * draw(1)).sqrt()
    stretch = torch.exp(_STRETCHED * (2 * draw(2) - 1))
    high, wide = (side * stretch).clamp(max=1.0), (side / stretch).clamp(max=1.0)
    theta = torch.zeros(len(pixels), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = wide, (1 - wide) * (2 * draw(3) - 1)
    theta[:, 1, 1], theta[:, 1, 2] = high, (1 - high) * (2 * draw(4) - 1)
    grid = functional.affine_grid(theta, list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _within(place: torch.Tensor, share: torch.Tensor, length: int) -> torch.Tensor:
    """Which of the rows or columns lie in a stretch of such a share of all, [B, length]."""
    size = (share * length).clamp(min=1).floor()
    start = (place * (length - size + 1)).floor()
    at = torch.arange(length)
    return (at >= start[:, None]) & (at < (start + size)[:, None])
