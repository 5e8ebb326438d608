"""
Labelled images from folders: what `edgetune prune` learns from and judges by.

    DIR/cat/*.jpg, DIR/dog/...                       a fifth is set aside for validation, by hash of the file's bytes
    DIR/train/cat/..., DIR/val/cat/..., DIR/test/... as the operator has split them; test may be missing, or show classes
                                                     that the others do not: what becomes of these is told then

A file belongs to one split for ever, whatever else is added, and the same bytes never stand in two.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from edgetune.errors import ImageError, NoSamplesError, OneClassError, OutOfMemoryError, UsageError
from edgetune.images import ImageLimits, decode, digest, to_input
from edgetune.learn.control import Control, SilentControl
from edgetune.learn.data import LabelledImages
from edgetune.types import Preprocess, Split
from edgetune.units import show

VALIDATION_SHARE = 0.2  # of a directory that is not split
_MEMORY_SHARE = 0.5  # of what is available; the rest is for training
# HEIC and AVIF cannot be read; they are named as such instead of being passed over.
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif"})
_HELD_BACK = (Split.HOLDOUT, Split.VALIDATION, Split.TRAINING)  # bytes in several splits stay in the first of these
_EVERY_CLASS_HINT = "add images of it, or take its folder away"


@dataclass(frozen=True, slots=True)
class Folders:
    """A directory of images, read."""

    training: LabelledImages
    validation: LabelledImages
    test: LabelledImages | None  # None: there is no test folder
    unreadable: tuple[tuple[str, str], ...]  # (path below the directory, why)
    notes: tuple[str, ...]  # what else was left out, as sentences
    samples_digest: str  # SHA-256 over the sorted "digest label split" lines

    @property
    def count(self) -> int:
        """Images in all splits."""
        return len(self.training) + len(self.validation) + (0 if self.test is None else len(self.test))


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file that should be an image, in the folder of its class."""

    path: Path
    label: int
    split: Split | None  # None: its bytes decide


def read_folders(
    directory: Path,
    classes: Sequence[str],
    preprocess: Preprocess,
    *,
    control: Control | None = None,
    available_bytes: int | None = None,
) -> Folders:
    """
    Read and decode all images below a directory.

    Args:
        directory: a folder for each class, or train/ and val/ (or validation/) and perhaps test/ with such folders.
        classes: the model's outputs, in order; it need not have images of all of them.
        preprocess: of the model.
        control: hears of progress, may ask for a stop.
        available_bytes: memory that may be used; None: as the system says.

    Raises:
        UsageError: the directory is not there or not laid out so, or a folder is no class of the model.
        NoSamplesError: there is no image, or a class has none to learn from or none to judge by.
        OneClassError: all images are of one class.
        OutOfMemoryError: decoded, they would take more than half of the memory that is available.
    """
    control = control or SilentControl()
    control.phase("load")
    files = list(image_files(directory, classes))
    if not files:
        raise NoSamplesError(f"there is no image in {directory}", hint=f"put images into {directory}/<class>/")
    _check_memory(len(files), preprocess, available_bytes)
    reading = _Reading(directory, classes, preprocess, control, steps=2 * len(files))
    wanted = reading.hashes(files)
    read = {split: reading.decode(split, files) for split, files in wanted.items()}
    if reading.unreadable and not any(map(len, read.values())):
        path, why = reading.unreadable[0]
        raise NoSamplesError(f"none of the {len(files)} images can be read; the first one, {path}: {why}")
    _check_classes(read, classes)
    return Folders(
        training=read[Split.TRAINING],
        validation=read[Split.VALIDATION],
        test=read.get(Split.HOLDOUT),
        unreadable=tuple(sorted(reading.unreadable)),
        notes=tuple(reading.notes),
        samples_digest=reading.samples_digest(),
    )


# ------------------------------------------------------------------------------------------------------- which files


def image_files(directory: Path, classes: Sequence[str]) -> Iterator[ImageFile]:
    """
    The image files below a directory, class by class, in the order of their names.

    Raises:
        UsageError: an image lies in no folder, or a folder is of a class that the model does not know.
    """
    index = {unicodedata.normalize("NFC", label): number for number, label in enumerate(classes)}
    for split, part in _parts(directory, index).items():
        folders = sorted(path for path in part.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not folders and _images_in(part):
            raise UsageError(
                f"the images in {part} are in no folder: what do they show?", hint=f"move them to {part}/<class>/"
            )
        for folder in folders:
            label = index.get(unicodedata.normalize("NFC", folder.name))
            if label is None:
                raise UsageError(
                    f"the model has no class {folder.name!r}, which {folder} is for",
                    hint=f"rename the folder or take it away; the model's classes are {_some(classes)}",
                )
            for path in _images_in(folder, deep=True):
                yield ImageFile(path, label, split)


def _parts(directory: Path, classes: Mapping[str, int]) -> dict[Split | None, Path]:
    """Where class folders lie, by split."""
    if not directory.is_dir():
        what = "is not a directory" if directory.exists() else "does not exist"
        raise UsageError(f"{directory} {what}", hint="name a directory with a folder of images for each class")
    train, test = directory / "train", directory / "test"
    held = [directory / name for name in ("val", "validation") if (directory / name).is_dir()]
    if not train.is_dir() or (not held and "train" in classes):  # CIFAR-100 has trains
        return {None: directory}
    if len(held) != 1:
        raise UsageError(
            f"{directory} has train/ and {'both val/ and validation/' if held else 'no val/ or validation/'}",
            hint="one folder has to hold the images that networks are judged by, a folder for each class inside; "
            "or leave train/ out and have a fifth set aside",
        )
    parts: dict[Split | None, Path] = {Split.TRAINING: train, Split.VALIDATION: held[0]}
    return parts | ({Split.HOLDOUT: test} if test.is_dir() else {})


def _images_in(folder: Path, *, deep: bool = False) -> list[Path]:
    found = []
    for place, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if deep and not name.startswith(".")]
        found += [Path(place, n) for n in names if Path(n).suffix.lower() in _SUFFIXES and not n.startswith(".")]
    return sorted(path for path in found if path.is_file())


def _some(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(sorted(names)[:most]) + more


def _check_memory(count: int, preprocess: Preprocess, available_bytes: int | None) -> None:
    needed = count * preprocess.height * preprocess.width * 3
    free = psutil.virtual_memory().available if available_bytes is None else available_bytes
    if needed > free * _MEMORY_SHARE:
        raise OutOfMemoryError(
            f"{count:,} images of {preprocess.height}x{preprocess.width} pixels take {show(needed, 'bytes')} of memory, "
            f"more than half of the {show(free, 'bytes')} that are available",
            hint="use fewer images, or a machine with more memory",
        )


# ------------------------------------------------------------------------------------------------------- their content


class _Reading:
    """Two passes over the files: the first knows every digest before the second takes memory for pixels."""

    def __init__(
        self, directory: Path, classes: Sequence[str], preprocess: Preprocess, control: Control, *, steps: int
    ) -> None:
        self._directory, self._classes, self._preprocess = directory, classes, preprocess
        self._control, self._step, self._steps = control, 0, steps
        self._lines: list[str] = []
        self.unreadable: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def hashes(self, files: Sequence[ImageFile]) -> dict[Split, dict[str, ImageFile]]:
        """Each split's files by the digest of their bytes, ascending; every digest once."""
        same: dict[str, list[ImageFile]] = {}
        for file in files:
            data = self._read(file)
            if data is not None:
                same.setdefault(digest(data), []).append(file)
        given = {file.split for file in files}
        splits: dict[Split, dict[str, ImageFile]] = {Split.TRAINING: {}, Split.VALIDATION: {}}
        if Split.HOLDOUT in given:
            splits[Split.HOLDOUT] = {}
        several: Counter[str] = Counter()
        for name, copies in sorted(same.items()):
            if len({file.label for file in copies}) > 1:
                several["the same image is in folders of two classes"] += len(copies)
                continue
            places = {file.split or _split_of(name) for file in copies}
            if len(places) > 1:
                several["the same image is in two splits: not trained on"] += len(places) - 1
            several["a copy of another image of its class"] += len(copies) - len(places)
            splits[next(split for split in _HELD_BACK if split in places)][name] = copies[0]
        self.notes += [f"left out {count:,}: {why}" for why, count in several.items() if count]
        return splits

    def decode(self, split: Split, files: Mapping[str, ImageFile]) -> LabelledImages:
        """The split's pixels, in the order of the digests; what cannot be decoded is noted."""
        size = self._preprocess
        pixels = np.empty((len(files), size.height, size.width, 3), dtype=np.uint8)
        ids: list[int] = []
        labels: list[int] = []
        for name, file in files.items():
            data = self._read(file)
            if data is None:
                continue
            try:
                pixels[len(ids)] = to_input(decode(data), size)
            except ImageError as error:
                self._refuse(file, error.message)
                continue
            ids.append(int(name[:16], 16) >> 1)
            labels.append(file.label)
            self._lines.append(f"{name} {self._classes[file.label]} {split.value}")
        return LabelledImages(
            np.array(ids, np.int64), np.array(labels, np.int64), pixels[: len(ids)], self._directory, size
        )

    def samples_digest(self) -> str:
        """Of everything that was decoded."""
        return hashlib.sha256("".join(f"{line}\n" for line in sorted(self._lines)).encode()).hexdigest()

    def _read(self, file: ImageFile) -> bytes | None:
        self._step += 1
        self._control.progress(step=self._step, steps=self._steps)
        self._control.beat()
        try:
            most = ImageLimits().max_bytes
            if file.path.stat().st_size > most:
                self._refuse(file, f"the file is larger than {show(most, 'bytes')}")
                return None
            return file.path.read_bytes()
        except OSError as error:
            self._refuse(file, error.strerror or str(error))
            return None

    def _refuse(self, file: ImageFile, why: str) -> None:
        self.unreadable.append((str(file.path.relative_to(self._directory)), why))


def _split_of(name: str) -> Split:
    """By the digest's second half; the first is the sample's id."""
    return Split.VALIDATION if int(name[32:40], 16) < VALIDATION_SHARE * 2**32 else Split.TRAINING


def _check_classes(read: Mapping[Split, LabelledImages], classes: Sequence[str]) -> None:
    """
    Every class that there are images of has to be learnt from and judged by, but for one that is only tested.

    One that validation does not show would be given up without anyone noticing. What test/ alone shows tells what becomes
    of a class that this data does not teach.
    """
    counts = {split: Counter(data.labels.tolist()) for split, data in read.items()}
    training, validation = counts[Split.TRAINING], counts[Split.VALIDATION]
    present = sorted(training.keys() | validation.keys())
    if not present and any(counts.values()):
        raise NoSamplesError(
            "there are images in test/ alone", hint="put images into train/<class>/ and val/<class>/ too"
        )
    if not present:
        raise NoSamplesError("every image is in folders of two classes", hint="leave each in one of them")
    for here, there, doing in ((training, validation, "learn from"), (validation, training, "judge by")):
        missing = [classes[label] for label in present if not here[label]]
        if missing:
            seen = there[classes.index(missing[0])]
            raise NoSamplesError(
                f"of class {_some(missing)} there is no image to {doing} ({seen} for the other purpose)",
                hint=f"{_EVERY_CLASS_HINT}; ten images of a class are the least that makes sense",
            )
    if len(present) == 1:
        raise OneClassError(
            f"all {training.total() + validation.total()} images are of class {classes[present[0]]!r}: there is nothing to tell apart",
            hint="add a folder of another class",
        )
