"""
Reference images: a few of each class of the factory model, given at its import, to tell what a round forgets.

`reference.npz` in the state directory, beside the models and not in them, because a model may be copied elsewhere and an
image may not: images uint8 [N, H, W, 3] at the model's size, labels [N] as class names.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgetune.errors import ImageError, ModelError, NoSamplesError
from edgetune.images import decode, to_input
from edgetune.learn.data import LabelledImages
from edgetune.learn.folders import image_files
from edgetune.store.durable import write_atomic
from edgetune.types import Preprocess

REFERENCE_FILE = "reference.npz"
_PER_CLASS = 20  # of a hundred classes at 224 px: 300 MB in memory for a moment of each round; of ten classes: 30


def write_reference(path: Path, directory: Path, classes: Sequence[str], preprocess: Preprocess) -> int:
    """
    Keep some images of each class, evenly out of the order of their names.

    Args:
        path: of the file to write.
        directory: a folder for each class; not every class needs one.
        classes: of the model.
        preprocess: of the model.

    Returns:
        How many images were kept.

    Raises:
        UsageError: a folder is of a class that the model does not know.
        NoSamplesError: there is no image that can be read.
    """
    by_class: dict[int, list[Path]] = {}
    for file in image_files(directory, classes):
        by_class.setdefault(file.label, []).append(file.path)
    images, labels = [], []
    for label, paths in sorted(by_class.items()):
        for place in np.unique(np.linspace(0, len(paths) - 1, min(_PER_CLASS, len(paths))).round().astype(int)):
            try:
                images.append(to_input(decode(paths[place].read_bytes()), preprocess))
            except ImageError:
                continue
            labels.append(classes[label])
    if not images:
        raise NoSamplesError(f"there is no image that can be read in {directory}", hint=f"{directory}/<class>/*.jpg")
    packed = io.BytesIO()
    np.savez_compressed(packed, images=np.stack(images), labels=np.array(labels))
    write_atomic(path, packed.getvalue())
    return len(images)


def load_reference(
    path: Path, classes: Sequence[str], wanted: Sequence[str], preprocess: Preprocess
) -> LabelledImages | None:
    """
    The reference images of some classes.

    Args:
        path: of the file.
        classes: of the round, in order; labels are indices into them.
        wanted: the classes to take.
        preprocess: of the model.

    Returns:
        None where there is no file, none of these classes in it, or it is of another model's size.

    Raises:
        ModelError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} is damaged: {error}", hint="import the factory model again") from error
    if images.shape[1:] != (preprocess.height, preprocess.width, 3):
        return None
    index = {label: number for number, label in enumerate(classes) if label in set(wanted)}
    mine = np.array([number for number, label in enumerate(labels.tolist()) if label in index], dtype=np.int64)
    if not len(mine):
        return None
    numbers = np.array([index[labels[i]] for i in mine.tolist()], dtype=np.int64)
    return LabelledImages(mine, numbers, images[mine], Path(), preprocess)
