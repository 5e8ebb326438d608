"""The teachers of a round that are not the factory model: a model file, or a server; opened, matched, asked by the batch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgetune.learn.control import Control
from edgetune.learn.data import Images
from edgetune.learn.transfer import Output, Shown
from edgetune.teach.asking import Asked, shared_classes, unseen_classes
from edgetune.teach.opening import open_model
from edgetune.types import Preprocess, TeacherSource

_AT_ONCE = 16  # images of a request, which has to be answered in time
_COUNTS = ("images_asked", "images_kept", "sent_bytes", "received_bytes")


class OutsideTeacher:
    """A `transfer.Teacher` that is asked outside this process; close it."""

    def __init__(self, asked: Asked, preprocess: Preprocess, *, unseen: Sequence[str] = ()) -> None:
        """
        Take whom to ask.

        Args:
            asked: it.
            preprocess: the student's: what it is shown is undone to the pixels that it was made of.
            unseen: classes that come from it alone, in the order in which they follow the student's.
        """
        self._asked, self._preprocess, self.unseen = asked, preprocess, tuple(unseen)

    def __call__(self, shown: Shown) -> Output:
        """
        Ask about a batch.

        Raises:
            TeacherError: there is no answer, or one that cannot be learnt from.
        """
        logits = torch.from_numpy(self._asked(pixels(shown.images, self._preprocess)))
        return Output(logits=logits.to(shown.images.device), classes=self._asked.shared.ours)

    @property
    def shared(self) -> tuple[int, ...]:
        """The student's numbers of the classes that it knows, rising."""
        return self._asked.shared.ours

    def probabilities(self, images: Images) -> npt.NDArray[np.float64]:
        """
        How likely it finds each of the classes in `shared`, among all that it knows: uint8 [B, H, W, 3] -> [B, K].

        Raises:
            TeacherError: as when it is called.
        """
        whole = torch.softmax(torch.from_numpy(self._asked.whole(images)).double(), dim=1)
        shared: npt.NDArray[np.float64] = whole[:, list(self._asked.shared.theirs)].numpy()
        return shared

    def once(self, images: Images) -> npt.NDArray[np.float32]:
        """
        What it says of images that come once, uint8 [B, H, W, 3] -> logits [B, K] of `shared`.

        Raises:
            TeacherError: as when it is called.
        """
        parts = [self._asked.once(images[at : at + _AT_ONCE]) for at in range(0, len(images), _AT_ONCE)]
        return np.concatenate(parts)

    def try_out(self, images: Images) -> tuple[float, float]:
        """
        Ask about a few images, uint8 [B, H, W, 3]: seconds for one, and the MiB that its process holds.

        A file is asked whatever it has said of them before; to a server no image goes twice.

        Raises:
            TeacherError: as when it is called.
        """
        ask, began_s = self._asked.anew if self._asked.model.held_mib else self._asked.whole, time.monotonic()
        ask(images)
        return (time.monotonic() - began_s) / len(images), self._asked.model.held_mib

    def record(self) -> dict[str, Any]:
        """For the journal: which teacher it is, and what asking it took since it was opened."""
        asked = self._asked
        return {
            "identity": asked.identity,
            "version": asked.version,
            "shared_classes": len(asked.shared.ours),
            "images_asked": asked.images_asked,
            "images_kept": asked.images_kept,
            "sent_bytes": asked.model.sent_bytes,
            "received_bytes": asked.model.received_bytes,
        }

    def close(self) -> None:
        """End it."""
        self._asked.close()


def open_teacher(
    source: TeacherSource,
    *,
    preprocess: Preprocess,
    classes: Sequence[str],
    answers_dir: Path,
    threads: int,
    control: Control,
    version: str | None = None,
    refused: Sequence[str] = (),
) -> OutsideTeacher:
    """
    Start or reach the teacher and match its classes with ours.

    Args:
        source: of kind "file" or "server".
        preprocess: the student's.
        classes: the student's, in order; those that the source wants of the teacher beside these are appended.
        answers_dir: where answers are kept.
        threads: of a file's model.
        control: hears that something goes on while an answer is waited for.
        version: of the server's model, when the round began with one.
        refused: classes that nobody is to have, whatever the source wants.

    Raises:
        TeacherError: it cannot be used.
    """
    opened = open_model(
        source,
        preprocess=preprocess,
        threads=threads,
        alive=control.alive,
        beat=control.beat,
        version=version,
        kept_in=answers_dir,
    )
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(opened.model.close)
        more = unseen_classes(opened.form, classes, source.classes, wanted=source.unseen_classes, refused=refused)
        asked = Asked(
            opened.model,
            opened.form,
            shared_classes(opened.form, (*classes, *more), source.classes),
            identity=opened.identity,
            mean=source.mean or preprocess.mean,
            std=source.std or preprocess.std,
            answers_dir=answers_dir,
            answers_max_bytes=source.cache_max_bytes,
        )
        on_failure.pop_all()
    return OutsideTeacher(asked, preprocess, unseen=more)


def added_up(before: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the counts of an earlier one added."""
    return {key: value + before.get(key, 0) if key in _COUNTS else value for key, value in record.items()}


def pixels(images: torch.Tensor, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """What `data.normalise` made these images of, exactly: float32 [B, 3, H, W] -> uint8 [B, H, W, 3]."""
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    whole = ((images.cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(whole.permute(0, 2, 3, 1).numpy())
