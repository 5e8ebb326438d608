"""
How many samples of which class and split there are, and which to give up when the buffer is full. Pure.

The order: unlabelled samples, oldest first; then classes that the operator refused; then the class with most samples,
where validation and hold-out give way only above their minimum and above their share, and training gives way
otherwise. So the classes level out, rare ones stay, and the three splits keep their proportions. Samples that a running
round holds are never chosen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from edgetune.types import Split

Shelf = tuple["str | None", Split]  # a label (None: unlabelled) and a split


def assign_split(group: str, validation_share: float, holdout_share: float) -> Split:
    """
    The split of a group: a pure function of its name, so it is the same before and after any loss of the buffer.

    The hash's first 8 bytes, read as a fraction of 1, fall into [0, holdout), [holdout, holdout + validation), or the
    rest.
    """
    position = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2.0**64
    if position < holdout_share:
        return Split.HOLDOUT
    if position < holdout_share + validation_share:
        return Split.VALIDATION
    return Split.TRAINING


_STATUS = {"ask": "pending", "accept": "accepted", "refuse": "refused"}
_PREDICTION_IMAGES_SHARE = 0.1  # of the quota, at most, for images of predictions that someone may still label


@dataclass(slots=True)
class Count:
    """What one shelf holds."""

    samples: int = 0
    new: int = 0  # labelled since the last finished round; of unlabelled ones: not used by any
    pinned: int = 0
    image_bytes: int = 0

    def __bool__(self) -> bool:
        return self.samples > 0


@dataclass(slots=True)
class Tally:
    """The buffer's contents in numbers, kept up to date as samples come and go."""

    shelves: dict[Shelf, Count] = field(default_factory=dict)
    image_bytes: int = 0

    def shelf(self, label: str | None, split: Split) -> Count:
        """The count of one shelf, which may be zero."""
        return self.shelves.setdefault((label, split), Count())

    def put(self, label: str | None, split: Split, *, image_bytes: int, is_new: bool, is_pinned: bool = False) -> None:
        """One sample more."""
        self._change(label, split, 1, image_bytes, is_new=is_new, is_pinned=is_pinned)

    def take(self, label: str | None, split: Split, *, image_bytes: int, is_new: bool, is_pinned: bool = False) -> None:
        """One sample fewer."""
        self._change(label, split, -1, -image_bytes, is_new=is_new, is_pinned=is_pinned)

    def _change(
        self, label: str | None, split: Split, step: int, image_bytes: int, *, is_new: bool, is_pinned: bool
    ) -> None:
        count = self.shelf(label, split)
        count.samples += step
        count.image_bytes += image_bytes
        self.image_bytes += image_bytes
        count.new += step * is_new
        count.pinned += step * is_pinned

    def total(self) -> Count:
        """Everything."""
        total = Count()
        for count in self.shelves.values():
            total.samples += count.samples
            total.new += count.new
            total.pinned += count.pinned
            total.image_bytes += count.image_bytes
        return total

    def labels(self) -> dict[str, int]:
        """Label -> samples, in all splits."""
        totals: dict[str, int] = {}
        for (label, _), count in self.shelves.items():
            if label is not None and count:
                totals[label] = totals.get(label, 0) + count.samples
        return totals

    def nonzero(self) -> dict[Shelf, Count]:
        """The shelves that hold something."""
        return {shelf: count for shelf, count in self.shelves.items() if count}


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """The operator's wishes about what to keep."""

    validation_share: float  # of new groups, between 0 and 1
    holdout_share: float  # likewise
    validation_min: int  # samples a class keeps in this split whatever the quota says
    holdout_min: int  # likewise

    def victims(self, tally: Tally, refused: frozenset[str]) -> Iterator[Shelf]:
        """
        The shelves to take the oldest unpinned sample from, best first; the next is asked for when one has none.

        Args:
            tally: as it is now.
            refused: classes that the operator does not want.
        """
        for split in Split:
            if _free(tally, None, split):
                yield None, split  # the store takes the oldest of all unlabelled ones, whatever their split
        totals = tally.labels()
        by_size = sorted(totals, key=lambda label: (label not in refused, -totals[label], label))
        for label in by_size:
            yield from self._within_class(tally, label, totals[label], is_refused=label in refused)

    def _within_class(self, tally: Tally, label: str, total: int, *, is_refused: bool) -> Iterator[Shelf]:
        minima: Mapping[Split, int] = {Split.HOLDOUT: self.holdout_min, Split.VALIDATION: self.validation_min}
        shares = {Split.HOLDOUT: self.holdout_share, Split.VALIDATION: self.validation_share}
        counts = {split: tally.shelf(label, split).samples for split in Split}
        for split, minimum in minima.items():
            if counts[split] > max(minimum, shares[split] * total) and _free(tally, label, split):
                yield label, split
        if _free(tally, label, Split.TRAINING):
            yield label, Split.TRAINING
        for split, minimum in minima.items():
            if (is_refused or counts[split] > minimum) and _free(tally, label, split):
                yield label, split


def _free(tally: Tally, label: str | None, split: Split) -> bool:
    count = tally.shelves.get((label, split))
    return count is not None and count.samples > count.pinned


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferPolicy(Retention):
    """What the operator configured of the buffer."""

    quota_bytes: int  # of all stored images together; the file is somewhat larger
    new_classes: str = "ask"  # "ask", "accept" or "refuse": what becomes of a class never seen before
    predictions_max: int = 100_000  # rows; the oldest go first

    def __post_init__(self) -> None:
        """Raise ValueError for shares that leave nothing for training."""
        if min(self.validation_share, self.holdout_share) < 0 or self.validation_share + self.holdout_share >= 1:
            raise ValueError("the validation and hold-out shares must leave something for training")

    @property
    def status_of_unseen(self) -> str:
        """Of a class never seen before: "accepted", "pending" or "refused"."""
        return _STATUS[self.new_classes]

    @property
    def prediction_bytes_max(self) -> int:
        """How much of the quota images of predictions may take."""
        return int(self.quota_bytes * _PREDICTION_IMAGES_SHARE)
