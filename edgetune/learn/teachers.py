"""The teachers of a round that are not the factory model: a model file, or a server; opened, matched, asked by the batch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgetune.errors import TeacherError
from edgetune.learn.control import Control
from edgetune.learn.data import Images
from edgetune.learn.transfer import Output, Shown
from edgetune.serve.engine import MANIFEST_FILE, MODEL_FILE
from edgetune.store.durable import sha256_file
from edgetune.teach.asking import Asked, shared_classes
from edgetune.teach.file import FileModel
from edgetune.teach.protocol import read_form
from edgetune.teach.server import ServerModel
from edgetune.types import Manifest, Preprocess, TeacherSource
from edgetune.wire import from_json

_COUNTS = ("images_asked", "images_kept", "sent_bytes", "received_bytes")


class OutsideTeacher:
    """A `transfer.Teacher` that is asked outside this process; close it."""

    def __init__(self, asked: Asked, preprocess: Preprocess) -> None:
        """`preprocess` is the student's: what it is shown is undone to the pixels that it was made of."""
        self._asked, self._preprocess = asked, preprocess

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

    def shares(self, images: Images) -> npt.NDArray[np.float64]:
        """
        How likely it finds each of the classes in `shared`, among all that it knows: uint8 [B, H, W, 3] -> [B, K].

        Raises:
            TeacherError: as when it is called.
        """
        whole = torch.softmax(torch.from_numpy(self._asked.whole(images)).double(), dim=1)
        shared: npt.NDArray[np.float64] = whole[:, list(self._asked.shared.theirs)].numpy()
        return shared

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
) -> OutsideTeacher:
    """
    Start or reach the teacher and match its classes with ours.

    Args:
        source: of kind "file" or "server".
        preprocess: the student's.
        classes: the student's, in order.
        answers_dir: where answers are kept.
        threads: of a file's model.
        control: hears that something goes on while an answer is waited for.
        version: of the server's model, when the round began with one.

    Raises:
        TeacherError: it cannot be used.
    """
    with contextlib.ExitStack() as on_failure:
        model, named, identity = _model(source, threads, control)
        on_failure.callback(model.close)
        size = (preprocess.height, preprocess.width)
        form = read_form(model.describe(), size=source.size, otherwise=size)
        if isinstance(model, ServerModel):
            form = replace(form, version=version or form.version)
            model.pin(form.version)
        if named:
            form = replace(form, classes=_checked(named, form.outputs))
        asked = Asked(
            model,
            form,
            shared_classes(form, classes, source.classes),
            identity=identity,
            mean=source.mean or preprocess.mean,
            std=source.std or preprocess.std,
            answers_dir=answers_dir,
            answers_max_bytes=source.cache_max_bytes,
        )
        on_failure.pop_all()
    return OutsideTeacher(asked, preprocess)


def added_up(before: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the counts of an earlier one added."""
    return {key: value + before.get(key, 0) if key in _COUNTS else value for key, value in record.items()}


def pixels(images: torch.Tensor, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """What `data.normalise` made these images of, exactly: float32 [B, 3, H, W] -> uint8 [B, H, W, 3]."""
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    whole = ((images.cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(whole.permute(0, 2, 3, 1).numpy())


def _model(
    source: TeacherSource, threads: int, control: Control
) -> tuple[FileModel | ServerModel, tuple[str, ...], str]:
    """The model, the names of its classes where a manifest tells them, and what it is known by."""
    if source.kind == "file":
        path, names = _model_file(Path(source.file))
        model = FileModel(
            path,
            threads=threads,
            memory_max_mib=source.memory_max_mib,
            timeout_s=source.timeout_s,
            alive=control.alive,
        )
        return model, names, sha256_file(path)
    try:
        server = ServerModel(
            source.server,
            ca_file=Path(source.ca_file) if source.ca_file else None,
            timeout_s=source.timeout_s,
            alive=control.alive,
            beat=control.beat,
        )
    except ValueError as error:
        raise TeacherError(f"training.teacher_server: {error}") from error
    return server, (), source.server


def _model_file(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The ONNX file, and the classes that the manifest beside it names if `path` is a version's directory."""
    if not path.is_dir():
        if not path.is_file():
            raise TeacherError(f"training.teacher_file: there is no file {path}")
        return path, ()
    try:
        manifest = from_json(Manifest, (path / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise TeacherError(f"training.teacher_file: {path} is no version of edgetune: {error}") from error
    if not (path / MODEL_FILE).is_file():
        raise TeacherError(f"training.teacher_file: {path / MODEL_FILE} is missing")
    return path / MODEL_FILE, manifest.classes


def _checked(names: tuple[str, ...], outputs: int) -> tuple[str, ...]:
    if len(names) != outputs:
        raise TeacherError(f"the teacher has {outputs} outputs and its manifest names {len(names)} classes")
    return names
