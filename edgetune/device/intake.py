"""
One file of the inbox to one checked sample: read once, decoded, hashed, labelled by its folder or its sidecar.

`inbox/cat/x.jpg` is a cat, and so is `inbox/cat/garden/2026/x.jpg`: the first folder is the class, the rest says where
it comes from. `inbox/x.jpg` has no label. A sidecar `x.json` or `x.jpg.json` holds an object with any of `label`,
`group`, `source` and `taken_at` (ISO 8601, or seconds since 1970); its label outweighs the folder's.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune import images
from edgetune.device.scan import FileKey, key_of, printable
from edgetune.errors import ImageError
from edgetune.images import ImageLimits
from edgetune.types import LabelSource, NewSample, Preprocess
from edgetune.units import show

_SIDECAR_BYTES_MAX = 64 * 1024
_NAME_CHARS_MAX = 200
_FIELDS = ("label", "group", "source", "taken_at")


class UnsettledError(Exception):
    """The file changed while it was read; it will be looked at again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What the JSON beside an image says."""

    label: str | None = None
    group: str | None = None
    source: str | None = None
    taken_at_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """How files become samples; replaced whole when the model's input or the configuration changes."""

    preprocess: Preprocess | None  # None: no model yet, originals are stored
    store: str  # "model_size" | "original"
    limits: ImageLimits
    group_block_s: float  # 0: every file is a group of its own

    def sample(self, path: str, relative: str, key: FileKey, sidecar: Sidecar) -> NewSample:
        """
        Read, check and label one file.

        Args:
            path: the file.
            relative: the same below the inbox.
            key: what the scan saw; the file must still be that.
            sidecar: an empty one where there is none.

        Raises:
            ImageError: the file cannot be used; the message says why.
            UnsettledError: it is being written.
            OSError: it cannot be opened or read.
        """
        folder_label = folder_class(relative)
        data = read_whole(path, key, self.limits.max_bytes)
        image = images.decode(data, self.limits)
        digest = images.digest(data)
        taken_at_s = key[1] / 1e9 if sidecar.taken_at_s is None else sidecar.taken_at_s
        label, source = sidecar.label, LabelSource.SIDECAR
        if label is None:
            label, source = folder_label, LabelSource.FOLDER
        is_resized = self.store == "model_size" and self.preprocess is not None
        return NewSample(
            digest=digest,
            image=images.encode(image, self.preprocess) if is_resized else data,
            width=image.width,
            height=image.height,
            label=label,
            label_source=None if label is None else source,
            group=self._group(relative, sidecar, taken_at_s, digest),
            origin=printable(relative),
            taken_at_s=taken_at_s,
        )

    def _group(self, relative: str, sidecar: Sidecar, taken_at_s: float, digest: str) -> str:
        if sidecar.group is not None:
            return sidecar.group
        if self.group_block_s <= 0:
            return digest
        source = sidecar.source or printable(relative.rpartition(os.sep)[0]) or "inbox"
        return f"{source}:{math.floor(taken_at_s / self.group_block_s)}"


def folder_class(relative: str) -> str | None:
    """
    The class that a file's first folder names; None in the root.

    Raises:
        ImageError: the folder's name cannot be a class name.
    """
    first, slash, _ = relative.partition(os.sep)
    return checked_name(first, "the folder's name") if slash else None


def checked_name(name: str, what: str) -> str:
    """
    A class name in the one form it is stored in: NFC, so that é from a Mac and é from Linux are one class.

    Raises:
        ImageError: empty, too long, with control characters, or not text at all.
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise ImageError(f"{what} is not valid UTF-8 and cannot be a class; rename it") from None
    normal = unicodedata.normalize("NFC", name).strip()
    if not normal or len(normal) > _NAME_CHARS_MAX:
        raise ImageError(f"{what} must have 1 to {_NAME_CHARS_MAX} characters")
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in normal):
        raise ImageError(f"{what} {normal!r} has control characters in it; rename it")
    return normal


def read_whole(path: str, key: FileKey, max_bytes: int) -> bytes:
    """
    Read a plain file once, never through a link at its end, never more than `max_bytes`.

    Raises:
        ImageError: too large, or not a plain file any more.
        UnsettledError: not the file that the scan saw, or it changed while it was read.
        OSError: it cannot be opened or read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as file:  # noqa: PTH123  from a descriptor
        before = os.fstat(handle)
        if not stat.S_ISREG(before.st_mode):
            raise ImageError("not a plain file")
        if key_of(before) != key:
            raise UnsettledError
        if before.st_size > max_bytes:
            raise ImageError(
                f"the file has {show(before.st_size, 'bytes')}, more than the {show(max_bytes, 'bytes')} allowed"
            )
        data = file.read(max_bytes + 1)
        if key_of(os.fstat(handle)) != key or len(data) != before.st_size:
            raise UnsettledError
    return data


def read_sidecar(path: str, key: FileKey) -> Sidecar:
    """
    Read the JSON beside an image. Unknown fields are an error: a mistyped `lable` must not be lost in silence.

    Raises:
        ImageError: not an object of the known fields; the message names what is wrong.
        UnsettledError, OSError: as for `read_whole`.
    """
    name = Path(printable(path)).name
    try:
        fields = json.loads(read_whole(path, key, _SIDECAR_BYTES_MAX))
    except (ValueError, RecursionError) as error:
        raise ImageError(f"the sidecar {name} is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ImageError(f"the sidecar {name} must hold an object with any of {', '.join(_FIELDS)}")
    unknown = [field for field in fields if field not in _FIELDS]
    if unknown:
        raise ImageError(f"the sidecar {name} has an unknown field {unknown[0]!r}; known are {', '.join(_FIELDS)}")
    return Sidecar(
        label=_text(fields, "label", name),
        group=_text(fields, "group", name),
        source=_text(fields, "source", name),
        taken_at_s=_moment_s(fields.get("taken_at"), name),
    )


def _text(fields: dict[str, Any], field: str, name: str) -> str | None:
    value = fields.get(field)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ImageError(f"{field} in the sidecar {name} must be text in quotes, not {json.dumps(value)[:50]}")
    return checked_name(value, f"{field} in the sidecar {name}")


def _moment_s(value: object, name: str) -> float | None:
    if value is None:
        return None
    try:
        if isinstance(value, str):  # Python 3.10 does not read a Z
            return dt.datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return dt.datetime.fromtimestamp(value, dt.timezone.utc).timestamp()
    except (ValueError, OverflowError, OSError):
        pass
    raise ImageError(f"taken_at in the sidecar {name} must be ISO 8601 or seconds since 1970, not {value!r}")
