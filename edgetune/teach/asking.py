"""
A teacher outside the trainer, asked by the image: prepared for it, asked for once, its answer kept and put into our order.

Shapes: B images, K classes of ours that the teacher knows, T outputs of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgetune.errors import TeacherError
from edgetune.images import to_input
from edgetune.teach.answers import Answers
from edgetune.teach.protocol import ModelForm, read_answer, write_request
from edgetune.types import Preprocess

_NAME_CHARACTERS_MAX = 200
_SHARED_MIN = 2  # of one class alone there is nothing to tell apart


class Model(Protocol):
    """A file's process or a server."""

    is_binary: bool
    sent_bytes: int
    received_bytes: int

    @property
    def held_mib(self) -> float:
        """Resident memory of its process; 0 where it is not on this board."""
        ...

    def describe(self) -> dict[str, Any]:
        """What it is, as the protocol's description."""
        ...

    def ask(self, header: bytes, data: bytes) -> tuple[bytes, bytes]:
        """Infer."""
        ...

    def close(self) -> None:
        """End it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """The classes that both know."""

    ours: tuple[int, ...]  # [K] numbers of ours, rising
    theirs: tuple[int, ...]  # [K] its output for each


def shared_classes(form: ModelForm, classes: Sequence[str], mapping: Mapping[str, str | int]) -> Shared:
    """
    Match the teacher's classes with ours: as the operator says, else by equal names.

    Args:
        form: of the teacher.
        classes: ours, in order.
        mapping: ours -> the teacher's output, by name or by number from 0; of classes that are not ours yet, too.

    Raises:
        TeacherError: the mapping names what the teacher has not, or two of ours the same, or fewer than two are shared.
    """
    numbers = {name: number for number, name in enumerate(form.classes)}
    outputs: dict[str, int] = {}
    for ours, theirs in mapping.items():
        number = numbers.get(theirs, -1) if isinstance(theirs, str) else theirs
        if not 0 <= number < form.outputs:
            known = "does not name its classes" if not form.classes else f"has {form.outputs} classes"
            raise TeacherError(f"training.teacher_classes: the teacher {known}, and {theirs!r} is not one of them")
        outputs[ours] = number
    pairs = [(i, outputs.get(name, numbers.get(name))) for i, name in enumerate(classes)]
    found = [(mine, theirs) for mine, theirs in pairs if theirs is not None]
    if len({theirs for _, theirs in found}) < len(found):
        raise TeacherError("training.teacher_classes: two of this site's classes are the same output of the teacher")
    if len(found) < _SHARED_MIN:
        raise TeacherError(
            f"the teacher knows {len(found)} of this site's {len(classes)} classes; two are the least",
            hint="say which of its outputs they are: training.teacher_classes",
        )
    return Shared(ours=tuple(mine for mine, _ in found), theirs=tuple(theirs for _, theirs in found))


def unseen_classes(
    form: ModelForm,
    classes: Sequence[str],
    mapping: Mapping[str, str | int],
    *,
    wanted: Sequence[str] | Literal["all"],
    refused: Sequence[str] = (),
) -> tuple[str, ...]:
    """
    The classes that are to come from the teacher alone, in the order in which they are named.

    Args:
        form: of the teacher.
        classes: ours: these do not come from it alone.
        mapping: ours -> the teacher's output, as for `shared_classes`.
        wanted: our names of them; "all": those in the mapping, then those that the teacher names itself.
        refused: not these.

    Raises:
        TeacherError: the teacher does not know one that is wanted.
    """
    outputs = {value if isinstance(value, int) else form.classes.index(value) for value in _known(form, mapping)}
    own = [name for number, name in enumerate(form.classes) if number not in outputs]
    offered = [*mapping, *(name for name in own if name not in mapping)]
    if wanted != "all" and (unknown := [name for name in wanted if name not in offered]):
        raise TeacherError(
            f"training.unseen_classes: the teacher does not know {', '.join(unknown)}",
            hint="say which of its outputs they are: training.teacher_classes",
        )
    found = tuple(n for n in (offered if wanted == "all" else wanted) if n not in classes and n not in refused)
    if odd := [n for n in found if not n.isprintable() or n != n.strip() or not 0 < len(n) <= _NAME_CHARACTERS_MAX]:
        raise TeacherError(
            f"the teacher calls a class {odd[0][:50]!r}, which cannot be a class here",
            hint="name those that are wanted: training.unseen_classes, with training.teacher_classes",
        )
    return found


def _known(form: ModelForm, mapping: Mapping[str, str | int]) -> list[str | int]:
    """The outputs that the mapping names and the teacher has."""
    return [value for value in mapping.values() if isinstance(value, int) or value in form.classes]


class Asked:
    """A teacher as a function of images."""

    def __init__(
        self,
        model: Model,
        form: ModelForm,
        shared: Shared,
        *,
        identity: str,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        answers_dir: Path,
        answers_max_bytes: int,
    ) -> None:
        """
        Take what was described and matched.

        Args:
            model: asked; closed with this.
            form: of its input and output.
            shared: classes.
            identity: says which model it is: of a file its SHA-256.
            mean: of RGB in 0..1, for a model that takes normalised floats.
            std: likewise.
            answers_dir: where its answers are kept.
            answers_max_bytes: at most.
        """
        self.model, self._form, self.shared = model, form, shared
        self._mean, self._std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        shown = {"form": asdict(form), "mean": mean, "std": std} if form.datatype == "FP32" else {"form": asdict(form)}
        text = json.dumps({"model": identity, **shown}, sort_keys=True)
        self.identity = hashlib.sha256(text.encode()).hexdigest()
        self._answers = Answers(answers_dir, self.identity, outputs=form.outputs, max_bytes=answers_max_bytes)
        self.images_asked = 0

    @property
    def version(self) -> str | None:
        """Of a server's model."""
        return self._form.version

    @property
    def images_kept(self) -> int:
        """How many images an answer was already there for."""
        return self._answers.hits

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """
        What the teacher says of images: uint8 [B, H, W, 3] -> logits float32 [B, K], in the order of `shared.ours`.

        Raises:
            TeacherError: it gives no answer, or one that cannot be learnt from.
        """
        return self.whole(images)[:, self.shared.theirs]

    def whole(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The same over all of its outputs, in its order: logits float32 [B, T]."""
        keys = [self._key(image) for image in images]
        known = {key: logits for key in keys if (logits := self._answers.get(key)) is not None}
        places = {key: place for place, key in enumerate(keys) if key not in known}
        if places:
            known.update(zip(places, self.anew(images[list(places.values())]), strict=True))
        return np.stack([known[key] for key in keys])

    def anew(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The same without looking at what it has said before; it is kept."""
        asked = self._ask(images)
        for image, logits in zip(images, asked, strict=True):
            self._answers.put(self._key(image), logits)
        return asked

    def once(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """As it is called, about images that nobody will ask about again: nothing is kept."""
        return self._ask(images)[:, self.shared.theirs]

    def close(self) -> None:
        """End the model and close its answers."""
        self.model.close()
        self._answers.close()

    def _key(self, image: npt.NDArray[np.uint8]) -> bytes:
        asked = hashlib.sha256(f"{self.identity} {image.shape}".encode())
        asked.update(image.tobytes())
        return asked.digest()

    def _ask(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        self.images_asked += len(images)
        request = write_request(self._form, self._prepared(images), is_binary=self.model.is_binary)
        return read_answer(*self.model.ask(*request), count=len(images), form=self._form)

    def _prepared(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """At the teacher's size, normalised and turned as it takes them."""
        form = self._form
        size = Preprocess(height=form.height, width=form.width)
        if images.shape[1:3] != (form.height, form.width):
            images = np.stack([to_input(Image.fromarray(image), size) for image in images])
        if form.datatype == "UINT8":
            prepared: npt.NDArray[Any] = images
        else:
            prepared = (images.astype(np.float32) / np.float32(255) - self._mean) / self._std
        return prepared if form.is_channels_last else prepared.transpose(0, 3, 1, 2)
