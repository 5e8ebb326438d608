"""What is pure in the benchmarks: choosing, reading between points, unpacking, going on."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import compress
from benchmarks.cells import Cell
from benchmarks.cifar import Archive, read_archive, unpack
from benchmarks.train_base import RATES, Training, digest_of
from benchmarks.versus_torch_pruning import (
    LIBRARY,
    Timed,
    at_latency,
    equal_latency_gains,
    fastest_enough,
    prune_as_documented,
    report,
)
from edgetune.learn.importer import read_weights
from edgetune.learn.network import new_network

CELL = Cell(
    net="cifar:resnet20", images="unseen", subset="aquatic", unit="latency", level=50.0, arm="edgetune", seed=0,
    schedule="2+12 epochs", base_ms=1.0,
)  # fmt: skip


def test_the_smallest_ratio_that_is_fast_enough_is_taken_although_larger_ones_are_slower_again() -> None:
    """With rounding a larger ratio may be slower: the first that is fast enough counts, not the last."""
    network: Any = None
    timed = [Timed(0.1, 0.9, network), Timed(0.2, 0.5, network), Timed(0.3, 0.7, network), Timed(0.4, 0.4, network)]
    assert fastest_enough(timed, 0.6).pruning_ratio == 0.2
    assert fastest_enough(timed, 0.45).pruning_ratio == 0.4
    assert fastest_enough(timed, 0.1).pruning_ratio == 0.4  # none is: the fastest there is


def test_accuracy_is_read_on_the_line_between_the_neighbours_and_nowhere_else() -> None:
    """Inside of what was measured a straight line, outside nothing."""
    points = [(1.0, 66.0), (0.3, 40.0), (0.5, 60.0)]
    assert at_latency(points, 0.4) == pytest.approx(50.0)
    assert at_latency(points, 0.75) == pytest.approx(63.0)
    assert at_latency(points, 0.5) == pytest.approx(60.0)
    assert at_latency(points, 0.29) is None
    assert at_latency(points, 1.01) is None
    assert at_latency([(0.5, 1.0)], 0.5) is None


def test_gains_compare_only_networks_of_the_same_subset_and_seed() -> None:
    """The other's line goes through its own networks and the unpruned one of the same site."""
    done = [
        replace(CELL, test=0.62, latency_ms=0.6),
        replace(CELL, arm="unpruned+site", level=0.0, test=0.70, latency_ms=1.0),
        replace(CELL, arm="tp:taylor", test=0.50, latency_ms=0.5),
        replace(CELL, arm="tp:taylor", seed=1, test=0.99, latency_ms=0.6),
        replace(CELL, arm="tp:taylor", subset="indoor", test=0.99, latency_ms=0.6),
    ]
    assert equal_latency_gains(done, "edgetune", "tp:taylor") == pytest.approx([62.0 - 54.0])
    assert equal_latency_gains(done, "edgetune", "tp:quickstart") == []
    assert "edgetune over tp:taylor" in report(done)


@pytest.mark.parametrize("arm", list(LIBRARY))
def test_torch_pruning_leaves_the_head_and_the_given_network_whole(arm: str) -> None:
    """A copy is pruned, to the widths asked for, and still answers for all classes."""
    network = new_network("cifar:resnet20", 10)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    gradients = {name: torch.randn_like(parameter) for name, parameter in network.module.named_parameters()}
    pruned = prune_as_documented(network, LIBRARY[arm], 0.5, 8, gradients)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.module.state_dict().items())
    with torch.no_grad():
        assert pruned.module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    widths = [m.out_channels for m in pruned.module.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(width % 8 == 0 for width in widths) and sum(widths) < 784  # ResNet20 has 784 filters
    assert all(parameter.grad is None for parameter in pruned.module.parameters())


def test_unpacking_takes_the_rows_of_each_class_byte_for_byte(tmp_path: Path) -> None:
    """The same rows of each class in the archive's order; what is there already stays."""
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        for number in range(4):
            for label in ("cat", "dog"):
                zipped.writestr(f"train/{label}/{9 - number}.webp", f"{label}{number}")
        zipped.writestr("test/cat/0.webp", "not these")
    unpack(path, "train", range(1, 3), tmp_path / "out")
    found = {str(file.relative_to(tmp_path / "out")): file.read_text() for file in (tmp_path / "out").rglob("*.webp")}
    assert found == {"cat/8.webp": "cat1", "cat/7.webp": "cat2", "dog/8.webp": "dog1", "dog/7.webp": "dog2"}
    with pytest.raises(SystemExit, match="missing"):
        unpack(tmp_path / "none.zip", "train", range(1), tmp_path / "out")


def _archive() -> Archive:
    rng = np.random.default_rng(0)
    return Archive(("a", "b"), *(rng.integers(0, 256, (2, n, 32, 32, 3), dtype=np.uint8) for n in (500, 100)))


def test_a_base_that_was_stopped_ends_in_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    """Stopped after every step, the training ends in the same weights, bit for bit."""
    torch.set_num_threads(1)
    archive, ends = _archive(), []
    for name, ends_s in (("whole", None), ("stopped", 0.0)):
        is_done, chunks = False, 0
        while not is_done:
            training = Training(
                "alexnet", archive, name="base", directory=tmp_path / name, epochs=1, seed=3, trained_on=100
            )
            training.layout_to_take("contiguous", "float32")
            is_done, chunks = training.run(ends_s), chunks + 1
        ends.append(read_weights(training.weights))
        assert chunks == (1 if ends_s is None else 3)  # an epoch of 200 images has 2 steps, and the end is one more
        assert training.run(None)  # there is nothing left to do
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_another_length_or_seed_or_class_is_another_training() -> None:
    """A checkpoint of other epochs is not gone on with: its schedule was another."""
    digests = {
        digest_of(net, classes, trained_on, epochs, seed)
        for net in RATES for classes in (("a", "b"), ("a",)) for trained_on in (10, 20) for epochs in (1, 2) for seed in (0, 1)
    }  # fmt: skip
    assert len(digests) == 16 * len(RATES)


def test_an_archive_without_some_classes_has_the_images_of_the_others() -> None:
    """Numbers are counted anew."""
    archive = _archive()
    rest = archive.without(["a"])
    assert rest.classes == ("b",)
    assert (rest.train == archive.train[1:]).all() and (rest.test == archive.test[1:]).all()
    assert rest.samples("test", ("b",), range(3)).labels.tolist() == [0, 0, 0]


def test_archives_are_read_by_part_and_class(tmp_path: Path) -> None:
    """CIFAR-10 has a file for each part; the arrays are read again from what is kept."""
    rng = np.random.default_rng(0)
    pictures = {
        (part, label, i): rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        for part, count in (("train", 3), ("test", 2)) for label in ("dog", "cat") for i in range(count)
    }  # fmt: skip
    for part in ("train", "test"):
        with zipfile.ZipFile(tmp_path / f"cifar10_{part}.zip", "w") as zipped:
            for (of, label, i), pixels in pictures.items():
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "PNG")
                if of == part:
                    zipped.writestr(f"{part}/{label}/{9 - i}.png", file.getvalue())
    first = read_archive(tmp_path, tmp_path / "kept", "cifar10")
    again = read_archive(tmp_path / "nowhere", tmp_path / "kept", "cifar10")
    assert first.classes == again.classes == ("cat", "dog")
    for archive in (first, again):
        assert (archive.train[1, 2] == pictures["train", "dog", 2]).all()
        assert (archive.test[0, 1] == pictures["test", "cat", 1]).all()
    with pytest.raises(SystemExit, match=r"cifar100\.zip is missing"):
        read_archive(tmp_path, tmp_path / "kept")


def test_the_table_of_students_says_what_was_removed_of_what_is_learnt() -> None:
    """The paper's headline row, and a cell of another target is another cell."""
    student = compress.Student(
        teacher="cifar:wrn28_10", target=0.64, transfer="label_free", schedule="200 epochs", seed=0,
        teacher_parameters=36_220_634, parameters=226_262, test=0.9,
    )  # fmt: skip
    assert f"{student.removed:.3f}" == "99.375"
    assert "99.38 %" in compress.report([student]) and "90.0%" in compress.report([student])
    assert student.key != replace(student, target=1.0).key
    assert student.key == replace(student, test=0.5).key
