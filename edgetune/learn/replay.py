"""
Old samples kept so that new classes do not wipe them out: a memory of bounded size, and the losses that replay it.

Shapes: N images offered, M images remembered, B images of the stream, R images replayed, C outputs of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from edgetune.learn.data import Images, Integers

Floats = npt.NDArray[np.float32]
POLICIES = ("reservoir", "balanced", "greedy")
_LABEL_BYTES, _LOGIT_BYTES = 8, 4


@dataclass(frozen=True, slots=True)
class Remembered:
    """Samples as they were stored."""

    images: Images  # [R, H, W, 3]
    labels: Integers  # [R]
    logits: Floats  # [R, C]: what the network said then; NaN: nothing, for it did not know the class


class Memory:
    """
    At most so many samples of a stream, all in arrays that are there from the beginning.

    Policies:
        reservoir: every sample offered so far is kept with the same probability (Vitter 1985, algorithm R), so the
            classes are in it as in the stream.
        balanced: a class that was never the largest replaces samples of the largest; the others are reservoirs of
            their own (Chrysakis and Moens 2020, "Online continual learning from imbalanced data", algorithm 1).
        greedy: a class takes up its even share and then nothing (Prabhu et al. 2020, "GDumb", algorithm 1).

    Args:
        capacity: images; see `images_within` for a budget in bytes.
        shape: of an image, (H, W, 3).
        outputs: C.
        policy: one of `POLICIES`.
        seed: of every choice.
    """

    def __init__(self, capacity: int, shape: tuple[int, int, int], outputs: int, *, policy: str, seed: int) -> None:
        if policy not in POLICIES:
            raise ValueError(f"unknown policy {policy!r}; known: {', '.join(POLICIES)}")
        self._images = np.empty((capacity, *shape), dtype=np.uint8)
        self._labels = np.empty(capacity, dtype=np.int64)
        self._logits = np.full((capacity, outputs), np.nan, dtype=np.float32)
        self._policy = policy
        self._rng = np.random.default_rng(seed)
        self._size = 0
        self._offered = 0
        self._offered_of: dict[int, int] = {}
        self._was_largest: set[int] = set()

    def __len__(self) -> int:
        return self._size

    @property
    def nbytes(self) -> int:
        """What the arrays take, full or not."""
        return self._images.nbytes + self._labels.nbytes + self._logits.nbytes

    @property
    def capacity(self) -> int:
        """How many images there is room for."""
        return len(self._labels)

    def everything(self) -> Remembered:
        """All that is remembered, without a copy."""
        return self._at(slice(0, self._size))

    def draw(self, count: int) -> Remembered:
        """`count` different samples at random, or all there are."""
        return self._at(self._rng.permutation(self._size)[:count])

    def _at(self, which: slice | Integers) -> Remembered:
        return Remembered(self._images[which], self._labels[which], self._logits[which])

    def offer(self, images: Images, labels: Integers, logits: Floats | None = None) -> None:
        """
        Show the memory a piece of the stream.

        Args:
            images: uint8 [N, H, W, 3].
            labels: [N].
            logits: [N, C], NaN for classes not known yet; None: nothing is known of any.
        """
        for index, label in enumerate(labels.tolist()):
            self._offered += 1
            self._offered_of[label] = self._offered_of.get(label, 0) + 1
            place = self._place_for(label)
            if place is None:
                continue
            self._images[place] = images[index]
            self._labels[place] = label
            self._logits[place] = np.nan if logits is None else logits[index]

    def _place_for(self, label: int) -> int | None:
        """Where a sample of this class goes; None: nowhere."""
        if self._policy == "greedy" and self._has_its_share(label):
            return None
        if self._size < self.capacity:
            self._size += 1
            return self._size - 1
        if self._policy == "reservoir":
            place = int(self._rng.integers(self._offered))
            return place if place < self.capacity else None
        counts = np.bincount(self._labels, minlength=label + 1)
        if self._policy == "greedy":
            return self._one_of(int(counts.argmax()))
        self._was_largest.update(np.flatnonzero(counts == counts.max()).tolist())
        if label not in self._was_largest:
            return self._one_of(int(counts.argmax()))
        is_kept = self._rng.integers(self._offered_of[label]) < counts[label]
        return self._one_of(label) if is_kept else None

    def _has_its_share(self, label: int) -> bool:
        mine = int((self._labels[: self._size] == label).sum())
        return mine >= self.capacity / len(self._offered_of)

    def _one_of(self, label: int) -> int:
        return int(self._rng.choice(np.flatnonzero(self._labels[: self._size] == label)))


def images_within(budget_bytes: int, shape: tuple[int, int, int], outputs: int) -> int:
    """How many decoded images of a shape (H, W, 3), with label and `outputs` logits each, a budget has room for."""
    return budget_bytes // (int(np.prod(shape)) + _LABEL_BYTES + outputs * _LOGIT_BYTES)


# ----------------------------------------------------------------------------------------------- what to keep of a set


def even_shares(counts: Sequence[int], capacity: int) -> list[int]:
    """
    How many of each class to keep: as evenly as what there is allows.

    Args:
        counts: how many there are of each class.
        capacity: how many may be kept in all.

    Returns:
        One number a class, at most its count; classes that have more than they may keep differ by one at most, the
        first ones have more.
    """
    shares = [0] * len(counts)
    left = min(capacity, sum(counts))
    while left:
        wanting = [label for label, count in enumerate(counts) if shares[label] < count][:left]
        each = max(1, min(left // len(wanting), *(counts[label] - shares[label] for label in wanting)))
        for label in wanting:
            shares[label] += each
        left -= each * len(wanting)
    return shares


def herd(features: Floats, count: int) -> Integers:
    """
    Choose samples whose mean stays closest to the mean of all, the best first.

    Args:
        features: [N, D] of one class; their length does not matter, only their direction.
        count: how many; at most N are returned.

    Returns:
        Positions [min(count, N)], in the order in which they were chosen.

    Source: Rebuffi et al. 2017, "iCaRL" (arXiv 1611.07725), algorithm 4.
    """
    unit = features.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    mean, total = unit.mean(axis=0), np.zeros(unit.shape[1])
    is_left = np.ones(len(unit), dtype=bool)
    chosen: list[int] = []
    for number in range(1, min(count, len(unit)) + 1):
        distances = np.linalg.norm(mean - (total + unit) / number, axis=1)
        best = int(np.where(is_left, distances, np.inf).argmin())
        chosen.append(best)
        is_left[best] = False
        total += unit[best]
    return np.array(chosen, dtype=np.int64)


def choose_samples(labels: Integers, capacity: int, *, features: Floats | None = None, seed: int = 0) -> Integers:
    """
    Choose which samples of a set to replay, evenly over the classes.

    Args:
        labels: [N].
        capacity: how many images; from bytes with `images_within`.
        features: [N, D]: the ones that `herd` chooses are taken; None: random ones.
        seed: of the random ones.

    Returns:
        Positions in ascending order, min(capacity, N) of them.
    """
    rng = np.random.default_rng(seed)
    chosen: list[Integers] = []
    classes = np.unique(labels)
    members = [np.flatnonzero(labels == label) for label in classes]
    for mine, share in zip(members, even_shares([len(m) for m in members], capacity), strict=True):
        kept = rng.permutation(len(mine))[:share] if features is None else herd(features[mine], share)
        chosen.append(mine[kept])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)


# ----------------------------------------------------------------------------------------------- losses


def cross_entropy_among(logits: torch.Tensor, labels: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """
    Mean cross-entropy where only some classes compete; the logits of the others get no gradient.

    Args:
        logits: [B, C].
        labels: [B] int64, each among them.
        among: bool [C].
    """
    return functional.cross_entropy(logits.masked_fill(~among, float("-inf")), labels)


def rehearsal_loss(
    logits: torch.Tensor, labels: torch.Tensor, old_logits: torch.Tensor, old_labels: torch.Tensor
) -> torch.Tensor:
    """
    Plain rehearsal (ER): the mean cross-entropy over the stream's batch [B, C] and the replayed one [R, C] together.

    Source: Chaudhry et al. 2019, "On tiny episodic memories in continual learning" (arXiv 1902.10486), algorithm 1.
    """
    return functional.cross_entropy(torch.cat([logits, old_logits]), torch.cat([labels, old_labels]))


def er_ace_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    old_logits: torch.Tensor,
    old_labels: torch.Tensor,
    seen: torch.Tensor,
) -> torch.Tensor:
    """
    ER-ACE: in the stream's part only the classes of this batch compete, so it does not push the old ones down.

    Args:
        logits: [B, C] of the stream's batch.
        labels: [B] int64.
        old_logits: [R, C] of the replayed batch; R may be 0.
        old_labels: [R] int64.
        seen: bool [C], the classes that the stream has shown so far, this batch included.

    Source: Caccia et al. 2022, "New insights on reducing abrupt representation change in online continual learning"
    (arXiv 2104.05025), section 4: L(X_in, C_curr) + L(X_bf, C_old and C_curr), C_curr the classes of the incoming batch.
    """
    present = torch.zeros_like(seen)
    present[labels] = True
    loss = cross_entropy_among(logits, labels, present)
    return loss if len(old_labels) == 0 else loss + cross_entropy_among(old_logits, old_labels, seen)


def logits_replay_loss(logits: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """
    Mean squared difference to the stored logits, over the classes that were known when they were stored.

    Args:
        logits: [R, C].
        stored: [R, C]; NaN where the class was not known. With no NaN it is DER's term.

    Source: Buzzega et al. 2020, "Dark experience for general continual learning" (arXiv 2004.07211), equation 5; differs
    from it in: the mean in place of the sum, as in the authors' code; NaN.
    """
    is_known = ~torch.isnan(stored)
    difference = torch.where(is_known, logits - torch.nan_to_num(stored), 0.0)
    return difference.square().sum() / is_known.sum().clamp(min=1)


def der_pp_loss(
    loss: torch.Tensor,
    first: tuple[torch.Tensor, torch.Tensor],
    second: tuple[torch.Tensor, torch.Tensor],
    *,
    alpha: float,
    beta: float,
) -> torch.Tensor:
    """
    DER++: the stream's loss, the logits of one replayed batch and the labels of another.

    Args:
        loss: of the stream's batch.
        first: logits [R, C] now, and as they were stored [R, C].
        second: logits [R, C] of an independently drawn batch, and its labels [R].
        alpha: weight of the first; 0.1 with 200 and 0.2 with 500 images in the paper's CIFAR-10 runs.
        beta: weight of the second; 0.5 there.

    Source: Buzzega et al. 2020 (arXiv 2004.07211), equation 6.
    """
    return loss + alpha * logits_replay_loss(*first) + beta * functional.cross_entropy(*second)
