"""Images from folders: which are read, which split they belong to, and what is refused."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="learning needs the extra: train")

from edgetune.errors import EdgetuneError, NoSamplesError, OneClassError, OutOfMemoryError, UsageError
from edgetune.learn.control import SilentControl, StopAskedError
from edgetune.learn.folders import Folders, read_folders
from edgetune.types import Preprocess

SIZE = Preprocess(height=8, width=8)
CLASSES = ("cat", "dog", "owl")
PLENTY = 2**40


def put(path: Path, number: int, **how: Any) -> Path:
    """A picture of noise that no other number makes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **how)
    return path


def fill(folder: Path, count: int, first: int = 0) -> None:
    """Some pictures in a folder."""
    for number in range(first, first + count):
        put(folder / f"{number}.png", number)


def read(directory: Path, classes: tuple[str, ...] = CLASSES) -> Folders:
    """With plenty of memory."""
    return read_folders(directory, classes, SIZE, available_bytes=PLENTY)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Two classes of forty."""
    fill(tmp_path / "data" / "cat", 40)
    fill(tmp_path / "data" / "owl", 40, 1000)
    return tmp_path / "data"


def test_a_fifth_is_set_aside_and_stays_so_whatever_is_added(flat: Path) -> None:
    """The bytes decide: neither more files nor other names nor another class list move an image."""
    before = read(flat)
    assert len(before.training) + len(before.validation) == before.count == 80
    assert 6 <= len(before.validation) <= 26
    assert before.test is None
    fill(flat / "cat", 60, 5000)
    (flat / "owl" / "1000.png").rename(flat / "owl" / "zz.png")
    after = read(flat, ("owl", "cat"))
    for split in ("training", "validation"):
        assert set(getattr(before, split).sample_ids) < set(getattr(after, split).sample_ids)
    assert before.samples_digest != after.samples_digest


def test_pixels_and_labels_belong_together(flat: Path) -> None:
    """Every row is one of the files of its class, decoded and resized as everywhere."""
    data = read(flat).training
    wanted = {
        np.asarray(Image.open(path).convert("RGB").resize((8, 8), Image.Resampling.BILINEAR)).tobytes(): folder
        for folder in ("cat", "owl")
        for path in (flat / folder).iterdir()
    }
    assert data.pixels.shape == (len(data), 8, 8, 3)
    assert [wanted[row.tobytes()] for row in data.images(np.arange(len(data)))] == [CLASSES[n] for n in data.labels]
    assert len(set(data.sample_ids.tolist())) == len(data)


def test_folders_that_are_split_already_stay_so(tmp_path: Path) -> None:
    """train/, validation/ and test/; what stands in two of them is not trained on."""
    for part, first in (("train", 0), ("validation", 100), ("test", 200)):
        fill(tmp_path / part / "cat", 3, first)
        fill(tmp_path / part / "dog", 4, first + 50)
    for part in ("train", "validation"):
        (tmp_path / part / "cat" / "leak.png").write_bytes((tmp_path / "test" / "cat" / "200.png").read_bytes())
    found = read(tmp_path)
    assert found.test is not None
    assert (len(found.training), len(found.validation), len(found.test)) == (7, 7, 7)
    assert any("two splits" in note and "2:" in note for note in found.notes)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    """As in CIFAR-100."""
    fill(tmp_path / "train", 40)
    fill(tmp_path / "cat", 40, 100)
    assert read(tmp_path, ("cat", "train")).count == 80


def test_copies_count_once_and_contradictions_not_at_all(flat: Path) -> None:
    """The same bytes in one class are one image; in two classes nobody knows what they show."""
    picture = (flat / "cat" / "0.png").read_bytes()
    (flat / "cat" / "again.png").write_bytes(picture)
    assert read(flat).count == 80
    assert read(flat).notes == ("left out 1: a copy of another image of its class",)
    (flat / "owl" / "again.png").write_bytes(picture)
    assert read(flat).count == 79
    assert read(flat).notes == ("left out 3: the same image is in folders of two classes",)


def test_kinds_of_files(flat: Path) -> None:
    """EXIF turned, CMYK, nested and upper-case files are read; the bad are named; the rest is passed over."""
    exif = Image.Exif()
    exif[0x0112] = 6
    put(flat / "cat" / "garden" / "turned.JPG", 7000, exif=exif)
    Image.new("CMYK", (9, 9), (0, 255, 255, 0)).save(flat / "owl" / "print.jpg")
    put(flat / "cat" / "a.webp", 7001)
    (flat / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    (flat / "owl" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (flat / "cat" / "empty.jpg").touch()
    (flat / "cat" / "._x.jpg").write_bytes(b"a Mac's")
    (flat / "cat" / "notes.txt").write_text("three legs")
    (flat / ".git").mkdir()
    found = read(flat)
    assert found.count == 83
    named = dict(found.unreadable)
    assert set(named) == {"cat/broken.png", "cat/empty.jpg", "owl/phone.heic"}
    assert "HEIC" in named["owl/phone.heic"]
    assert named["cat/empty.jpg"] == "the file is empty"


def test_a_folder_from_a_mac_is_the_same_class(tmp_path: Path) -> None:
    """é is one letter here and two there."""
    fill(tmp_path / unicodedata.normalize("NFD", "séal"), 30)
    fill(tmp_path / "cat", 30, 100)
    assert read(tmp_path, ("cat", unicodedata.normalize("NFC", "séal"))).count == 60


@pytest.mark.parametrize(
    ("folders", "error", "words"),
    [
        ({}, NoSamplesError, "there is no image in"),
        ({"cat": 0, "dog": 0}, NoSamplesError, "there is no image in"),
        ({"cat": 1, "dog": 1}, NoSamplesError, "there is no image to"),
        ({"cat": 40, "dog": 1}, NoSamplesError, "of class dog there is no image to"),
        ({"cat": 40}, OneClassError, "all 40 images are of class 'cat'"),
        ({"cat": 40, "zebra": 3}, UsageError, "the model has no class 'zebra'"),
        ({".": 4}, UsageError, "are in no folder"),
        ({"train/cat": 4, "train/dog": 4}, UsageError, "no val/ or validation/"),
        ({"train/cat": 4, "val/cat": 4, "validation/cat": 4}, UsageError, "both val/ and validation/"),
        ({"train/cat": 4, "train/dog": 4, "val/cat": 4}, NoSamplesError, "of class dog there is no image to judge by"),
        ({"train/cat": 4, "val/cat": 4, "val/dog": 4}, NoSamplesError, "of class dog there is no image to learn from"),
        ({"train/cat": 3, "val/cat": 3, "test/dog": 3}, OneClassError, "all 6 images are of class 'cat'"),
        ({"train/cat": 0, "val/cat": 0, "test/dog": 3}, NoSamplesError, "there are images in test/ alone"),
    ],
)
def test_what_nothing_can_be_learnt_from_is_refused(
    folders: dict[str, int], error: type[EdgetuneError], words: str, tmp_path: Path
) -> None:
    """A sentence that says what is wrong, and a way out."""
    for number, (name, count) in enumerate(folders.items()):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        fill(tmp_path / name, count, 100 * number)
    with pytest.raises(error, match=words) as raised:
        read(tmp_path)
    assert raised.value.hint


def test_a_class_may_be_tested_that_is_not_learnt(tmp_path: Path) -> None:
    """What becomes of it is asked for, not what it looks like."""
    for number, name in enumerate(("train/cat", "train/dog", "val/cat", "val/dog", "test/owl")):
        (tmp_path / name).mkdir(parents=True)
        fill(tmp_path / name, 3, 100 * number)
    data = read(tmp_path)
    assert data.test is not None
    assert data.test.labels.tolist() == [CLASSES.index("owl")] * 3


def test_a_directory_that_is_not_there_or_holds_only_damage(tmp_path: Path) -> None:
    """Named, with the first reason."""
    with pytest.raises(UsageError, match="does not exist"):
        read(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not a directory"):
        read(tmp_path / "file")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "x.jpg").write_text("no image")
    with pytest.raises(NoSamplesError, match=r"none of the 1 images can be read; the first one, cat/x.jpg: not a JPEG"):
        read(tmp_path)


def test_more_than_half_of_the_memory_is_refused_before_anything_is_decoded(flat: Path) -> None:
    """80 images of 8x8 are 15 KiB: 30 KiB are enough and one byte less is not."""
    enough = 2 * 80 * 8 * 8 * 3
    assert read_folders(flat, CLASSES, SIZE, available_bytes=enough).count == 80
    with pytest.raises(OutOfMemoryError, match=r"80 images of 8x8 pixels take 15KiB .* 30KiB"):
        read_folders(flat, CLASSES, SIZE, available_bytes=enough - 1)


def test_reading_can_be_stopped(flat: Path) -> None:
    """A hundred thousand images take minutes."""
    control = SilentControl()
    control.stop()
    with pytest.raises(StopAskedError):
        read_folders(flat, CLASSES, SIZE, control=control)
