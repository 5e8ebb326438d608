"""The inbox on a real directory, with a clock whose hands the test moves and no events: the scan is the truth."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetune.device.inbox import Batch, Inbox
from edgetune.errors import StoreError
from edgetune.images import ImageLimits, decode, digest
from edgetune.types import LabelSource, NewSample, Preprocess

SETTLE_S = 2.0
PATIENCE_S = 10.0


class Hands:
    """A clock whose hands the test moves."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def now_s(self) -> float:
        return self.at_s

    def wall_s(self) -> float:
        return 1.7e9 + self.at_s

    async def sleep(self, duration_s: float) -> None:
        self.at_s += duration_s


def remove(paths: list[Path]) -> None:
    """What the store does, without its syncs."""
    for path in paths:
        path.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """What the store does, without its syncs."""
    source.rename(target)


def image(seed: int = 0, size: tuple[int, int] = (24, 16), kind: str = "PNG") -> bytes:
    """Random pixels as a file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


class Site:
    """An inbox, the directory below it, and what a daemon would have stored of it."""

    def __init__(self, home: Path, **options: object) -> None:
        self.root, self.quarantine = home / "inbox", home / "quarantine"
        self.clock = Hands()
        settings = {"settle_s": SETTLE_S, "watch": "poll", "remove": remove, "move": move, **options}
        self.inbox = Inbox(self.root, self.quarantine, clock=self.clock, **settings)  # type: ignore[arg-type]
        self.inbox.start()
        self.stored: dict[str, NewSample] = {}
        self.late: list[tuple[str, str]] = []
        self.handed: list[str] = []

    def put(self, name: str, data: bytes | str | dict[str, object]) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, dict):
            data = json.dumps(data)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    def collect(self) -> Batch:
        batch = self.inbox.collect()
        self.stored.update({sample.origin: sample for _, sample in batch.items})
        self.late += [(late.digest, late.label) for late in batch.late_labels]
        self.handed += [os.fspath(path) for path, _ in batch.items]
        return batch

    def run(self, duration_s: float, *, step_s: float = 0.5) -> None:
        """Live as the daemon does for a while."""
        for _ in range(round(duration_s / step_s)):
            self.clock.at_s += step_s
            while True:
                batch = self.collect()
                self.inbox.committed(batch.paths)
                if not batch.has_more:
                    break

    def left(self) -> list[str]:
        return sorted(
            p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file() or p.is_symlink()
        )

    def reasons(self) -> dict[str, str]:
        """Quarantined name -> why."""
        notes = {}
        for path in self.quarantine.rglob("*.reason.json"):
            name = path.name.removesuffix(".reason.json")
            assert path.with_name(name).exists()
            notes[name] = json.loads(path.read_text())["reason"]
        return notes


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """An empty inbox with the default settings."""
    return Site(tmp_path)


def test_a_file_in_a_class_folder_becomes_a_labelled_sample(site: Site) -> None:
    """Its bytes, size, label, origin and time are those of the file, which is then removed."""
    path = site.put("cat/a.png", image())
    os.utime(path, (1000, 1_600_000_000))
    site.run(5)
    sample = site.stored["cat/a.png"]
    assert (sample.label, sample.label_source, sample.width, sample.height) == ("cat", LabelSource.FOLDER, 24, 16)
    assert sample.digest == digest(image())
    assert sample.image == image()  # no model yet: the original
    assert sample.taken_at_s == 1_600_000_000
    assert site.left() == []
    assert site.inbox.waiting == 0
    assert site.inbox.taken == 1


def test_a_file_in_the_root_has_no_label(site: Site) -> None:
    """Unlabelled images are samples too."""
    site.put("a.png", image())
    site.run(5)
    assert site.stored["a.png"].label is None
    assert site.stored["a.png"].label_source is None


def test_nested_folders_belong_to_the_class_of_the_first(site: Site) -> None:
    """What is below a class folder says where an image comes from, not what it shows."""
    site.put("cat/garden/2026/a.png", image(1))
    site.put("cat/kitchen/a.png", image(2))
    site.run(5)
    samples = site.stored.values()
    assert [sample.label for sample in samples] == ["cat", "cat"]
    assert len({sample.group for sample in samples}) == 2
    assert all("garden" in s.group or "kitchen" in s.group for s in samples)


def test_with_a_model_the_image_is_stored_at_its_size(tmp_path: Path) -> None:
    """After a swap to another input size, later files follow it."""
    site = Site(tmp_path, preprocess=Preprocess(height=8, width=10))
    site.put("cat/a.png", image(1))
    site.run(5)
    assert decode(site.stored["cat/a.png"].image).size == (10, 8)
    assert site.stored["cat/a.png"].width == 24
    site.inbox.configure(preprocess=Preprocess(height=5, width=5))
    site.put("cat/b.png", image(2))
    site.run(5)
    assert decode(site.stored["cat/b.png"].image).size == (5, 5)


def test_originals_are_stored_when_asked(tmp_path: Path) -> None:
    """The bytes as they came, whatever the model's size."""
    site = Site(tmp_path, preprocess=Preprocess(height=8, width=10), store="original")
    site.put("cat/a.png", image())
    site.run(5)
    assert site.stored["cat/a.png"].image == image()


def test_a_file_being_written_is_left_alone_until_it_stands_still(site: Site) -> None:
    """A slow writer is never interrupted, however long it takes."""
    data = image()
    path = site.put("cat/a.png", data[:10])
    for end in range(20, len(data), 60):
        site.run(SETTLE_S - 0.5)
        path.write_bytes(data[:end])
    path.write_bytes(data)
    assert not site.handed
    site.run(SETTLE_S + 1)
    assert site.stored["cat/a.png"].digest == digest(data)
    assert not site.reasons()


def test_a_stalled_upload_gets_patience_before_it_is_called_damaged(site: Site) -> None:
    """It stood still longer than the settling time, and then went on."""
    path = site.put("cat/a.png", image()[:200])
    site.run(SETTLE_S + 3)
    path.write_bytes(image())
    site.run(SETTLE_S + 3)
    assert "cat/a.png" in site.stored
    assert not site.reasons()


def test_without_a_settling_time_too_a_file_half_written_is_not_called_damaged(tmp_path: Path) -> None:
    """The look fell between the writer's first byte and its last."""
    site = Site(tmp_path, settle_s=0.0, scan_interval_s=0.5)
    path = site.put("cat/a.png", b"")
    site.run(0.5)
    path.write_bytes(image())
    site.put("cat/damaged.png", image()[:200])
    site.run(1.5)
    assert list(site.stored) == ["cat/a.png"]
    assert not site.reasons()
    site.run(2)
    assert list(site.reasons()) == ["damaged.png"]


def test_files_present_before_the_start_are_taken(tmp_path: Path) -> None:
    """What lay there while the service was down."""
    (tmp_path / "inbox/dog").mkdir(parents=True)
    (tmp_path / "inbox/dog/old.png").write_bytes(image())
    site = Site(tmp_path)
    site.run(5)
    assert site.stored["dog/old.png"].label == "dog"


@pytest.mark.parametrize(
    "name",
    [
        ".hidden.png",
        ".dir/a.png",
        "a.png.part",
        "a.tmp",
        "a.jpg.crdownload",
        "a.PART",
        "b.png~",
        "Thumbs.db",
        "x.partial",
    ],
)
def test_unfinished_and_hidden_files_are_left_alone(site: Site, name: str) -> None:
    """Neither taken nor quarantined, for however long."""
    site.put(f"cat/{name}", image())
    site.run(60)
    assert not site.handed
    assert not site.reasons()
    assert site.left() == [f"cat/{name}"]


def test_a_finished_download_is_taken_under_its_final_name(site: Site) -> None:
    """x.png.part becomes x.png by rename."""
    path = site.put("cat/x.png.part", image())
    site.run(5)
    path.rename(path.with_suffix(""))
    site.run(5)
    assert list(site.stored) == ["cat/x.png"]


def test_links_are_never_followed(site: Site, tmp_path: Path) -> None:
    """A link to a file, to a folder and to nothing: what lies outside stays untouched and unread."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(image())
    site.put("cat/a.png", image(5))
    (site.root / "cat/link.png").symlink_to(outside / "secret.png")
    (site.root / "dogs").symlink_to(outside)
    (site.root / "cat/loop").symlink_to(site.root)
    (site.root / "dangling.png").symlink_to(tmp_path / "nowhere")
    site.run(30)
    assert list(site.stored) == ["cat/a.png"]
    assert (outside / "secret.png").exists()
    assert not site.reasons()


def test_pipes_and_sockets_do_not_block(site: Site) -> None:
    """Opening a pipe would wait for a writer for ever."""
    (site.root / "cat").mkdir()
    os.mkfifo(site.root / "cat/pipe.png")
    site.run(5)
    assert not site.handed


BAD: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "empty"),
    "text.txt": (b"not an image", "not a JPEG"),
    "cut.png": (image()[:300], "damaged"),
    "zeros.jpg": (bytes(4000), "zero bytes"),
    "fat.bmp": (image(size=(200, 200), kind="BMP"), "more than the"),
    "wide.png": (image(size=(300, 40)), "pixels"),
}


def test_bad_files_go_to_the_quarantine_with_a_reason_and_the_rest_is_taken(tmp_path: Path) -> None:
    """Each by its own reason; one bad file costs nothing but itself, and all are counted."""
    site = Site(tmp_path, limits=ImageLimits(max_bytes=60_000, max_pixels=10_000))
    for name, (data, _) in BAD.items():
        site.put(f"cat/{name}", data)
    site.put("cat/good.png", image())
    site.run(PATIENCE_S + 5)
    assert list(site.stored) == ["cat/good.png"]
    reasons = site.reasons()
    assert set(reasons) == set(BAD)
    for name, (data, word) in BAD.items():
        assert word in reasons[name]
        assert (site.quarantine / "cat" / name).read_bytes() == data
    assert site.left() == []
    assert site.inbox.quarantined == len(BAD)
    assert Site(tmp_path).inbox.quarantined == len(BAD)  # after a restart too


def test_a_quarantined_name_that_comes_again_overwrites_nothing(site: Site) -> None:
    """Both stay, and a good file of that name is taken."""
    for text in (b"first", b"second"):
        site.put("cat/a.png", text)
        site.run(PATIENCE_S + 5)
    kept = {path.name: path.read_bytes() for path in (site.quarantine / "cat").iterdir() if path.suffix == ".png"}
    assert kept == {"a.png": b"first", "a-2.png": b"second"}
    site.put("cat/a.png", image())
    site.run(5)
    assert "cat/a.png" in site.stored


def test_a_very_long_name_fits_into_the_quarantine(site: Site) -> None:
    """The reason's name must not exceed what a file system takes."""
    site.put(f"cat/{'ü' * 120}.jpg", b"bad")
    site.run(PATIENCE_S + 5)
    assert len(site.reasons()) == 1
    assert site.left() == []


@pytest.mark.parametrize(
    "folder", ["no", "on", "yes", "null", "1", "猫", "кошка", "قط", "chat noir", "🐈", "-rf", "a'b\"c"]
)
def test_any_folder_name_is_a_class(site: Site, folder: str) -> None:
    """No script, no YAML word, no shell word is special."""
    site.put(f"{folder}/кадр 猫 #1.png", image())
    site.run(5)
    (sample,) = site.stored.values()
    assert sample.label == folder


def test_one_word_in_two_unicode_forms_is_one_class(site: Site) -> None:
    """A folder made on a Mac and one made on Linux."""
    site.put("caf\u00e9/a.png", image(1))
    site.put("cafe\u0301/b.png", image(2))
    site.run(5)
    assert {sample.label for sample in site.stored.values()} == {"caf\u00e9"}


def test_names_that_are_not_text_are_taken_or_quarantined(site: Site) -> None:
    """A file's name may be any bytes; a class must be text."""
    folder = os.fsencode(site.root)
    for name in (b"/cat", b"/\xff\xfe"):
        Path(os.fsdecode(folder + name)).mkdir()
    for name in (b"/cat/\xe4\xf6.png", b"/\xff\xfe/a.png"):
        with open(folder + name, "wb") as file:  # noqa: PTH123  a path of bytes
            file.write(image())
    site.run(PATIENCE_S + 5)
    (sample,) = site.stored.values()
    assert sample.label == "cat"
    sample.origin.encode()
    assert "UTF-8" in "".join(site.reasons().values())
    assert site.left() == []


def test_a_folder_with_control_characters_is_no_class(site: Site) -> None:
    """It would break every list it is shown in."""
    site.put("a\nb/x.png", image())
    site.run(PATIENCE_S + 5)
    assert "control characters" in site.reasons()["x.png"]


def test_duplicates_are_handed_over_each_with_its_label(site: Site) -> None:
    """The buffer knows what to do with the same bytes under two names; both sources go."""
    site.put("cat/a.png", image())
    site.put("dog/b.png", image())
    site.run(5)
    assert {sample.label for sample in site.stored.values()} == {"cat", "dog"}
    assert len({sample.digest for sample in site.stored.values()}) == 1
    assert site.left() == []


# ------------------------------------------------------------------------------------------------ sidecars


@pytest.mark.parametrize("name", ["a.json", "a.png.json"])
def test_a_sidecar_outweighs_the_folder(site: Site, name: str) -> None:
    """Its label, group and time are the sample's, and it is removed with the image."""
    site.put("cat/a.png", image())
    site.put(f"cat/{name}", {"label": "lynx", "group": "visit 7", "taken_at": "2026-03-01T12:00:00Z"})
    site.run(5)
    sample = site.stored["cat/a.png"]
    assert (sample.label, sample.label_source, sample.group) == ("lynx", LabelSource.SIDECAR, "visit 7")
    assert sample.taken_at_s == 1_772_366_400
    assert site.left() == []


def test_a_sidecar_before_its_image_waits_for_it(site: Site) -> None:
    """The order of arrival does not matter."""
    site.put("a.json", {"label": "lynx"})
    site.run(60)
    assert site.left() == ["a.json"]
    site.put("a.png", image())
    site.run(5)
    assert site.stored["a.png"].label == "lynx"
    assert site.left() == []


def test_an_image_waits_for_a_sidecar_that_is_being_written(site: Site) -> None:
    """A sidecar that has just appeared is read when it has settled, and the image with it."""
    site.put("a.png", image())
    site.run(SETTLE_S - 0.5)
    site.put("a.json", '{"label": ')
    site.run(1)
    site.put("a.json", {"label": "lynx"})
    site.run(SETTLE_S + 3)
    assert site.stored["a.png"].label == "lynx"
    assert not site.reasons()


def test_a_sidecar_after_its_image_was_taken_labels_it(site: Site) -> None:
    """By the digest of the image that lay there."""
    site.put("a.png", image())
    site.run(10)
    site.put("a.json", {"label": "lynx"})
    site.run(5)
    assert site.late == [(digest(image()), "lynx")]
    assert site.left() == []


def test_a_sidecar_whose_image_never_comes_is_quarantined_in_the_end(site: Site) -> None:
    """After ten minutes, with that as the reason."""
    site.put("cat/a.json", {"label": "lynx"})
    site.run(500, step_s=5)
    assert not site.reasons()
    site.run(200, step_s=5)
    assert "without an image" in site.reasons()["a.json"]


def test_two_images_share_a_sidecar(site: Site) -> None:
    """It stays until the last of them is taken."""
    site = Site(site.root.parent, batch=1)
    for name in ("a.png", "a.bmp"):
        site.put(name, image(kind=Path(name).suffix[1:].upper()))
    site.put("a.json", {"label": "lynx"})
    site.run(5)
    assert [sample.label for sample in site.stored.values()] == ["lynx", "lynx"]
    assert site.left() == []


@pytest.mark.parametrize(
    ("text", "word"),
    [("{", "not JSON"), ("[1]", "object"), ('{"lable": "cat"}', "lable"), ('{"label": true}', "text in quotes"),
     ('{"label": ""}', "characters"), ('{"taken_at": "noon"}', "ISO 8601"), ('{"taken_at": NaN}', "ISO 8601"),
     ('{"taken_at": 1e300}', "ISO 8601"), ("[" * 60_000, "not JSON"), ('{"label": "' + "x" * 70_000 + '"}', "more than")],
)  # fmt: skip
def test_a_bad_sidecar_takes_its_image_along(site: Site, text: str, word: str) -> None:
    """A label that cannot be read must not be replaced by a guess; both are kept, counted once."""
    site.put("cat/a.png", image())
    site.put("cat/a.json", text)
    site.run(PATIENCE_S + 5)
    assert not site.stored
    assert word in site.reasons()["a.png"]
    assert "a.png" in site.reasons()["a.json"]
    assert site.inbox.quarantined == 1
    assert Site(site.root.parent).inbox.quarantined == 1


# ------------------------------------------------------------------------------------------------ trouble


def test_a_file_that_vanishes_between_scan_and_read_is_forgotten(tmp_path: Path) -> None:
    """Its writer changed their mind."""
    site = Site(tmp_path, batch=1)
    for name in "abc":
        site.put(f"cat/{name}.png", image(ord(name)))
    site.clock.at_s = SETTLE_S + 1
    site.collect()
    site.clock.at_s += SETTLE_S + 1
    assert site.collect().has_more
    (site.root / "cat/b.png").unlink()
    site.run(5)
    assert set(site.stored) == {"cat/a.png", "cat/c.png"}
    assert site.inbox.waiting == 1  # a.png was handed out and never committed


def test_a_file_changed_between_read_and_commit_is_not_removed(site: Site) -> None:
    """A camera that writes the same name again and again loses no image."""
    site.put("latest.png", image(1))
    site.run(1)
    site.clock.at_s += SETTLE_S
    batch = site.collect()
    assert len(batch.items) == 1
    site.put("latest.png", image(2))
    site.inbox.committed(batch.paths)
    assert site.left() == ["latest.png"]
    site.run(5)
    assert site.stored["latest.png"].digest == digest(image(2))
    assert site.left() == []


def test_what_is_being_committed_is_not_handed_out_twice(site: Site) -> None:
    """A slow commit is no reason to read a file again; a failed one is."""
    site.put("a.png", image())
    site.run(1)
    site.clock.at_s += SETTLE_S
    batch = site.collect()
    for _ in range(20):
        site.clock.at_s += 5
        assert not site.collect().items
    site.inbox.returned(batch.paths)
    site.run(5)
    assert len(site.handed) == 2
    assert site.left() == []


def test_kept_originals_stay_and_are_taken_once(tmp_path: Path) -> None:
    """Until they change; a sidecar that changes later still counts."""
    site = Site(tmp_path, keep_originals=True)
    site.put("cat/a.png", image(1))
    site.put("cat/a.json", {"label": "cat"})
    site.run(60)
    assert len(site.handed) == 1
    assert site.left() == ["cat/a.json", "cat/a.png"]
    site.put("cat/a.json", {"label": "lynx"})
    site.run(60)
    assert site.late == [(digest(image(1)), "lynx")]
    site.put("cat/a.png", image(2))
    site.run(60)
    assert len(site.handed) == 2
    assert site.inbox.waiting == 0


def refusing(error: Exception) -> Callable[..., None]:
    """A removal or a move that fails."""

    def refuse(*_: object) -> None:
        raise error

    return refuse


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), StoreError("read-only file system")])
def test_an_inbox_that_cannot_be_written_is_named_and_taken_once(tmp_path: Path, error: Exception) -> None:
    """Files that cannot be removed are not read again and again, and go as soon as they can be."""
    site = Site(tmp_path, remove=refusing(error))
    site.put("cat/a.png", image())
    site.run(60)
    assert len(site.handed) == 1
    assert "writable" in site.inbox.problems[0]
    site.inbox._remove = remove
    site.run(60)
    assert site.left() == []
    assert site.inbox.problems == ()


def test_a_bad_file_that_cannot_be_moved_is_given_up_on_until_it_changes(tmp_path: Path) -> None:
    """Named, left where it is, and tried again with its next content."""
    site = Site(tmp_path, move=refusing(OSError(18, "Invalid cross-device link")))
    site.put("cat/a.png", b"bad")
    site.run(60)
    assert "cross-device" in site.inbox.problems[0]
    assert site.left() == ["cat/a.png"]
    assert not list(site.quarantine.rglob("*.json"))
    assert site.inbox.quarantined == 0
    site.put("cat/a.png", image())
    site.run(5)
    assert "cat/a.png" in site.stored
    assert site.inbox.problems == ()


def test_an_unreadable_file_is_quarantined_and_an_unreadable_folder_named(site: Site) -> None:
    """Rights that were set wrongly are said in words."""
    site.put("cat/a.png", image()).chmod(0)
    site.put("dog/a.png", image())
    (site.root / "dog").chmod(0)
    if os.access(site.root / "dog", os.R_OK):
        pytest.skip("needs a user to whom file modes apply; this one (root) may read everything")
    site.run(PATIENCE_S + 5)
    (site.root / "dog").chmod(0o755)
    assert "readable" in site.reasons()["a.png"]
    assert any("dog" in problem for problem in site.inbox.problems)


def test_an_inbox_that_is_removed_is_made_again(site: Site) -> None:
    """Someone tidied up."""
    site.root.rmdir()
    site.run(5)
    site.put("cat/a.png", image())
    site.run(5)
    assert "cat/a.png" in site.stored


def test_the_clock_jumping_takes_nothing_too_early_and_loses_nothing(site: Site) -> None:
    """File times of 1970 and of 2100 settle like any other: only standing still counts."""
    for year, when in (("old", 0), ("new", 4_102_444_800)):
        os.utime(site.put(f"cat/{year}.png", image(when % 97)), (when, when))
    site.run(SETTLE_S - 0.5)
    assert not site.handed
    site.run(3)
    assert set(site.stored) == {"cat/old.png", "cat/new.png"}


def test_a_group_is_a_folder_and_a_block_of_time(tmp_path: Path) -> None:
    """Near-twins share it; another folder, another ten minutes, or a block of zero do not."""
    site = Site(tmp_path, group_block_s=600)
    for name, at in (("cat/a", 6000), ("cat/b", 6599), ("cat/c", 6600), ("dog/d", 6000)):
        os.utime(site.put(f"{name}.png", image(at + ord(name[-1]))), (at, at))
    site.run(5)
    group = {origin[4]: sample.group for origin, sample in site.stored.items()}
    assert group["a"] == group["b"]
    assert len({group["a"], group["c"], group["d"]}) == 3
    alone = Site(tmp_path, group_block_s=0)
    for name in "ef":
        alone.put(f"cat/{name}.png", image(ord(name)))
    alone.run(5)
    assert len({sample.group for sample in alone.stored.values()}) == 2


def test_ten_thousand_files_at_once_are_all_taken_once_each(tmp_path: Path) -> None:
    """In batches, from a few scans, whatever events said."""
    site = Site(tmp_path, preprocess=Preprocess(height=8, width=8), batch=256)
    count, data = 10_000, image(size=(8, 8), kind="JPEG")
    for folder in range(10):
        (site.root / f"class{folder}").mkdir()
    for number in range(count):  # distinct bytes: a JPEG may be followed by anything
        (site.root / f"class{number % 10}" / f"{number}.jpg").write_bytes(data + number.to_bytes(4, "big"))
    started = time.perf_counter()
    site.run(SETTLE_S + 1)
    print(f"{count / (time.perf_counter() - started):.0f} files/s")
    assert len(site.handed) == len(set(site.handed)) == count
    assert len({sample.digest for sample in site.stored.values()}) == count
    assert site.left() == []
    assert site.inbox.waiting == 0
