"""CIFAR for the benchmarks: the archive as arrays or as folders, the papers' subsets, samples as a round takes them."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgetune.learn.data import LabelledImages
from edgetune.types import Preprocess

PREPROCESS = Preprocess(height=32, width=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
TRAINED_ON, VALIDATED_ON = 400, 500  # of each class's training images, in the archive's order: [0, 400), [400, 500)

SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
# arXiv 2006.08554's code
SUBSETS = {
    "aquatic": "aquatic_mammals fish",
    "indoor": "food_containers household_electrical_devices household_furniture",
    "outdoor": "large_man-made_outdoor_things large_natural_outdoor_scenes vehicles_1 vehicles_2 trees small_mammals people",
    "natural": "flowers fruit_and_vegetables insects large_omnivores_and_herbivores medium_mammals"
    " non-insect_invertebrates small_mammals reptiles",
    "random": "aquatic_mammals fish flowers fruit_and_vegetables household_furniture large_man-made_outdoor_things"
    " large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles trees vehicles_2",
}


def classes_of(subset: str) -> tuple[str, ...]:
    """The fine classes of one of the paper's subsets, or of a list "class,class,..."."""
    if subset in SUBSETS:
        return tuple(label for name in SUBSETS[subset].split() for label in SUPERCLASSES[name].split())
    return tuple(subset.split(","))


@dataclass(frozen=True)
class Archive:
    """A data set, decoded: [class][image] in the archive's order."""

    classes: tuple[str, ...]
    train: npt.NDArray[np.uint8]  # [classes, images, 32, 32, 3]; 500 images of CIFAR-100, 3,000 of CIFAR-10
    test: npt.NDArray[np.uint8]  # [classes, images, 32, 32, 3]; 100 and 1,000
    preprocess: Preprocess = PREPROCESS

    def without(self, labels: Sequence[str]) -> Archive:
        """As if these classes had never been."""
        kept = [number for number, label in enumerate(self.classes) if label not in labels]
        classes = tuple(self.classes[number] for number in kept)
        return replace(self, classes=classes, train=self.train[kept], test=self.test[kept])

    def samples(
        self, part: str, labels: Sequence[str], rows: range, *, most: int | None = None, seed: int = 0
    ) -> LabelledImages:
        """
        Images of some classes, in an order that the seed shuffles.

        Args:
            part: "train" or "test".
            labels: whose.
            rows: which images of each class, in the archive's order.
            most: keep so many, as evenly over the classes as can be; None: all.
            seed: which of them, and their order.
        """
        pixels = self.train if part == "train" else self.test
        numbers = [self.classes.index(label) for label in labels]
        rng = np.random.default_rng(seed)
        each = {number: rng.permutation(rows) for number in numbers}
        picked = [(number, int(each[number][i])) for i in range(len(rows)) for number in numbers][:most]
        index = np.array(picked, dtype=np.int64)  # [N, 2]
        ids = index[:, 0] * 10_000 + index[:, 1]
        return LabelledImages(ids, index[:, 0].copy(), pixels[index[:, 0], index[:, 1]], Path(), self.preprocess)


# data set -> the archive that a part is in
FILES = {
    "cifar100": {"train": "cifar100.zip", "test": "cifar100.zip"},
    "cifar10": {"train": "cifar10_train.zip", "test": "cifar10_test.zip"},
}


def read_archive(data: Path, cache: Path, data_set: str = "cifar100") -> Archive:
    """Decode one of FILES, once: the arrays are kept in `cache`."""
    kept = cache / f"{data_set}.npz"
    if not kept.exists():
        parts = {part: read_part(data / name, part) for part, name in FILES[data_set].items()}
        cache.mkdir(parents=True, exist_ok=True)
        pixels = {part: np.stack(list(by_class.values())) for part, by_class in parts.items()}
        np.savez(kept, classes=np.array(list(parts["train"])), train=pixels["train"], test=pixels["test"])
    with np.load(kept, allow_pickle=False) as arrays:
        return Archive(tuple(arrays["classes"].tolist()), arrays["train"], arrays["test"])


def read_part(path: Path, part: str) -> dict[str, npt.NDArray[np.uint8]]:
    """Class -> [n, H, W, 3], in the archive's order, of a zip with entries <part>/<class>/<name>."""
    if not path.exists():
        raise SystemExit(f"{path} is missing: a zip with entries {part}/<class>/<name>.webp")
    found: dict[str, list[npt.NDArray[np.uint8]]] = {}
    with zipfile.ZipFile(path) as zipped:
        for entry in zipped.namelist():
            if entry.startswith(f"{part}/") and entry.count("/") == 2 and not entry.endswith("/"):
                found.setdefault(entry.split("/")[1], []).append(_pixels(zipped.read(entry)))
    return {label: np.stack(found[label]) for label in sorted(found)}


def unpack(path: Path, part: str, rows: range, directory: Path) -> None:
    """
    Write images of an archive as files, byte for byte: directory/<class>/<name>.

    Args:
        path: a zip with entries <part>/<class>/<name>.
        part: "train" or "test".
        rows: which images of each class, in the archive's order; of all classes.
        directory: where the folders of the classes go; files that are there stay.
    """
    if not path.exists():
        raise SystemExit(f"{path} is missing: a zip with entries {part}/<class>/<name>.webp")
    seen: Counter[str] = Counter()
    with zipfile.ZipFile(path) as zipped:
        for entry in zipped.namelist():
            begin, _, rest = entry.partition("/")
            label, _, name = rest.partition("/")
            if begin != part or not name or "/" in name:
                continue
            file = directory / label / name
            if seen[label] in rows and not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(zipped.read(entry))
            seen[label] += 1


def _pixels(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
