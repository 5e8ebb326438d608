"""Which files of the inbox belong together, and which were taken a while ago: images and the JSON beside them."""

from __future__ import annotations

import os
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgetune.device.scan import SIDECAR_SUFFIX, FileKey, Found

_TAKEN_MAX = 40_000  # names; two an image


class Listing:
    """One scan's files by name; an image and its sidecar find each other in it."""

    def __init__(self, files: Iterable[Found] = ()) -> None:
        self.files = {found.path: found for found in files}
        self._images: defaultdict[str, list[str]] = defaultdict(list)  # by path without suffix
        for found in self.files.values():
            if not found.is_sidecar:
                self._images[stem(found.path)].append(found.path)

    def sidecar_of(self, image: str) -> Found | None:
        """`x.jpg.json`, or else `x.json`."""
        return self.files.get(image + SIDECAR_SUFFIX) or self.files.get(stem(image) + SIDECAR_SUFFIX)

    def images_of(self, sidecar: str) -> Sequence[str]:
        """The images that a sidecar speaks of: `x.json` speaks of both `x.jpg` and `x.png`."""
        base = base_of(sidecar)
        is_exact = base in self.files and not self.files[base].is_sidecar
        return [base] if is_exact else self._images.get(base, [])

    def leave(self, image: str) -> Found | None:
        """Take an image off the list; its sidecar is returned when no other image needs it."""
        sidecar = self.sidecar_of(image)
        images = self._images.get(stem(image), [])
        if image in images:
            images.remove(image)
        if sidecar is None or (sidecar.path != image + SIDECAR_SUFFIX and images):
            return None
        return sidecar


class Taken:
    """Names of images that were taken, for sidecars that come late. Forgets the oldest, and everything at a restart."""

    def __init__(self, names_max: int = _TAKEN_MAX) -> None:
        self._names_max = names_max
        self._digests: OrderedDict[str, str] = OrderedDict()

    def add(self, image: str, digest: str) -> None:
        """Remember an image."""
        for name in (image, stem(image)):
            self._digests[name] = digest
            self._digests.move_to_end(name)
        while len(self._digests) > self._names_max:
            self._digests.popitem(last=False)

    def digest_of(self, sidecar: str) -> str | None:
        """The digest of the image that this sidecar speaks of."""
        return self._digests.get(base_of(sidecar))


def stem(path: str) -> str:
    """A path without its suffix."""
    return os.path.splitext(path)[0]  # noqa: PTH122  a Path for each of ten thousand names takes seconds


def base_of(sidecar: str) -> str:
    """What a sidecar's name begins with: an image's path, with or without its suffix."""
    return sidecar[: -len(SIDECAR_SUFFIX)]


def is_same_file(path: str, key: FileKey) -> bool:
    """Whether the file is still the one that was read: a new one under the same name must not be removed."""
    try:
        status = Path(path).stat(follow_symlinks=False)
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns, status.st_ino) == key
