"""The incremental benchmark: what an arm may see, what is counted, and that it goes on where it was."""

from __future__ import annotations

import argparse
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.cifar import read_part
from benchmarks.incremental import (
    VALIDATED,
    WAYS,
    Learner,
    Pool,
    class_steps,
    forgetting,
    resnet18,
    restarting_rate,
    run,
)
from benchmarks.incremental_report import ARMS, Cell, accuracies, not_run, report, verdict
from benchmarks.rows import append_row, read_rows
from edgetune.learn.network import new_network

CELL = Cell(data_set="cifar10", net="cifar:resnet20", schedule="short", judge="test", buffer=20, arm="er", seed=0)


@pytest.fixture(scope="module")
def pool() -> Pool:
    """Ten classes of one colour each, so that a little training tells them apart."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (10, 1, 1, 1, 3))
    train, test = (
        np.clip(colours + rng.normal(0, 8, (10, count, 32, 32, 3)), 0, 255).astype(np.uint8)
        for count in (VALIDATED + 16, 4)
    )
    return Pool(tuple("abcdefghij"), train, test)


def _arguments(work: Path, **more: object) -> argparse.Namespace:
    given = {
        "data": Path("unused"), "work": work, "data_set": "cifar10", "net": "cifar:resnet20", "arms": ["naive", "er"],
        "buffers": [20], "seeds": [0], "images": 8, "epochs": 1, "batch": 8, "judge": "test", "threads": 1, "rate": None,
    }  # fmt: skip
    return argparse.Namespace(**{**given, **more})


def _learner(arm: str, buffer: int = 20, seed: int = 0) -> Learner:
    torch.manual_seed(seed)
    network = new_network("cifar:resnet20", 10)
    return Learner(WAYS[arm], network, buffer=buffer, batch=8, seed=seed, device=torch.device("cpu"))


def test_steps_hold_every_class_once_and_joint_has_one() -> None:
    """Five of two, ten of ten."""
    assert class_steps(10, 5, "er") == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert class_steps(10, 5, "joint") == [list(range(10))]
    hundred = class_steps(100, 10, "ours")
    assert [len(labels) for labels in hundred] == [10] * 10 and [
        label for labels in hundred for label in labels
    ] == list(range(100))


def test_images_that_choose_never_train_and_test_images_never_choose(pool: Pool) -> None:
    """The last 300 training images of each class are in no stream."""
    images, labels = pool.stream([3, 1], None)
    assert len(images) == 32 and labels.tolist() == [3] * 16 + [1] * 16
    assert np.array_equal(images, np.concatenate([pool.train[3, :16], pool.train[1, :16]]))
    assert np.array_equal(pool.judged("validation", [2], 5)[0], pool.train[2, 16:21])
    assert np.array_equal(pool.judged("test", [2])[0], pool.test[2])


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_sees_the_same_batches_of_the_stream(pool: Pool, arm: str) -> None:
    """Those with a memory as many replayed images beside each but the first; der++ twice as many; GDumb trains at the end."""
    learner = _learner(arm)
    for labels in ([0, 1], [2, 3]):
        learner.learn(*pool.stream(labels, 8), epochs=2)
    draws = WAYS[arm].draws
    batches = 2 * 2 * 2  # steps, epochs, of 8 images
    # the memory is filled in the last epoch of a step: of the first step the first three batches find it empty
    replayed = draws * 8 * (batches - 3)
    assert learner.trained_images == (0 if arm == "gdumb" else batches * 8 + replayed)
    if learner.memory is not None:
        counts = np.bincount(learner.memory.everything().labels)
        assert counts.sum() == 20
        assert WAYS[arm].policy == "reservoir" or counts.tolist() == [5, 5, 5, 5]
    if arm == "gdumb":
        learner.learn_memory(4)
        assert learner.trained_images == 4 * 16


def test_ours_stores_only_logits_of_classes_seen_and_der_all(pool: Pool) -> None:
    """The columns of classes to come are NaN in ours, and numbers in der++."""
    for arm in ("ours", "der++"):
        learner = _learner(arm)
        learner.learn(*pool.stream([0, 1], 8), epochs=1)
        assert learner.memory is not None
        logits = learner.memory.everything().logits
        assert np.isfinite(logits[:, :2]).all()
        assert np.isnan(logits[:, 2:]).all() == (arm == "ours") and np.isfinite(logits[:, 2:]).all() == (arm != "ours")


def test_what_ours_serves_has_a_head_of_its_own_and_learning_goes_on_with_the_other(pool: Pool) -> None:
    """Only the rows of the classes that are remembered differ; the network that learns stays as it was."""
    learner = _learner("ours")
    learner.learn(*pool.stream([0, 1], 8), epochs=1)
    before = {name: tensor.clone() for name, tensor in learner.network.module.state_dict().items()}
    served = learner.served().module.state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.network.module.state_dict().items())
    changed = {name for name in before if not torch.equal(before[name], served[name])}
    assert changed == {"fc.weight", "fc.bias"}
    assert torch.equal(before["fc.weight"][2:], served["fc.weight"][2:])


def test_gdumbs_rate_falls_eight_times_and_ends_low_however_few_the_steps() -> None:
    """Each fall takes twice as long as the one before, and the last ends with the training."""
    rates = [restarting_rate(0.05, step, 2550) for step in range(2550)]
    rises = [step for step in range(1, 2550) if rates[step] > rates[step - 1]]
    assert rates[0] == 0.05 and len(rises) == 7
    assert [round(step / 10) for step in rises] == [1, 3, 7, 15, 31, 63, 127]
    assert 0.0005 <= rates[-1] < 0.00051
    assert restarting_rate(0.05, 99, 100) < 0.001


def test_cutmix_pastes_the_share_that_it_says() -> None:
    """Every image keeps so many of its own pixels, and the rest is the other's."""
    learner = _learner("gdumb")
    shares = []
    for _ in range(40):
        images = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 3, 32, 32).clone()
        share, others = learner._cutmix(images)
        is_own = images == torch.arange(6.0).reshape(6, 1, 1, 1)
        for index in range(6):
            if int(others[index]) != index:
                assert is_own[index].float().mean().item() == pytest.approx(share)
                assert set(images[index].unique().tolist()) <= {float(index), float(others[index])}
        shares.append(share)
    assert 8 < sum(share < 1 for share in shares) < 32 and min(shares) < 0.5


def test_a_cell_is_the_same_when_it_is_run_again_and_a_run_goes_on_where_it_was(
    pool: Pool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The row that was lost comes back, the others are not run again."""
    np.savez(tmp_path / "cifar10.npz", classes=np.array(pool.classes), train=pool.train, test=pool.test)
    run(_arguments(tmp_path))
    path = tmp_path / "incremental.csv"
    cells = read_rows(path, Cell)
    assert [(cell.arm, cell.buffer) for cell in cells] == [("naive", 0), ("er", 20)]
    assert all(0 <= cell.accuracy <= 100 and len(cell.by_step.split()) == 5 for cell in cells)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    capsys.readouterr()
    run(_arguments(tmp_path))
    assert "1 cells are there" in capsys.readouterr().out
    again = read_rows(path, Cell)
    assert replace(again[1], seconds=cells[1].seconds) == cells[1] and again[0] == cells[0]


def test_forgetting_is_what_the_old_steps_had_at_best_less_what_is_left() -> None:
    """From the accuracies after each step; the last step's classes do not count, and what rises is not lost."""
    history = [[90.0], [40.0, 80.0], [50.0, 60.0, 70.0], [10.0, 60.0, 60.0, 9.0], [20.0, 30.0, 50.0, 9.0, 99.0]]
    assert forgetting(history) == pytest.approx((70 + 50 + 20 + 0) / 4)
    assert forgetting([[10.0], [30.0, 50.0]]) == 0.0
    assert forgetting([]) is None


def test_the_network_for_the_published_tables_keeps_the_resolution_of_small_images() -> None:
    """ResNet-18 with 11.2 million parameters, its last stage at 4x4."""
    module = resnet18(10).eval()
    assert sum(p.numel() for p in module.parameters()) == 11_173_962
    sizes = []
    module.layer4.register_forward_hook(lambda _layer, _inputs, output: sizes.append(tuple(output.shape)))
    with torch.no_grad():
        assert module(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert sizes == [(1, 512, 4, 4)]


def test_archives_are_read_by_class_in_their_order(tmp_path: Path) -> None:
    """Only the part that was asked for; a missing one is named."""
    path = tmp_path / "cifar10_train.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        for label, shade in (("dog", 3), ("cat", 200), ("cat", 100)):
            data = io.BytesIO()
            Image.new("RGB", (32, 32), (shade, 0, 0)).save(data, "PNG")
            zipped.writestr(f"train/{label}/{300 - shade}.png", data.getvalue())
        zipped.writestr("test/cat/1.png", b"not read")
    found = read_part(path, "train")
    assert list(found) == ["cat", "dog"]
    assert found["cat"][:, 0, 0, 0].tolist() == [200, 100] and found["dog"].shape == (1, 32, 32, 3)
    with pytest.raises(SystemExit, match="missing"):
        read_part(tmp_path / "none.zip", "train")


def test_the_report_compares_on_common_seeds_and_says_what_was_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours has two seeds, the best other one of them."""
    path = tmp_path / "incremental.csv"
    assert report(path) == 1
    done = [
        replace(CELL, arm="ours", accuracy=50.0, forgetting=10.0, by_step="50 50"),
        replace(CELL, arm="ours", seed=1, accuracy=54.0, forgetting=12.0, by_step="60 48"),
        replace(CELL, arm="er_ace", seed=1, accuracy=53.0, forgetting=9.0, by_step="53 53"),
        replace(CELL, arm="er", accuracy=30.0, forgetting=40.0, by_step="0 60"),
        replace(CELL, arm="joint", buffer=0, accuracy=80.0, by_step="80 80"),
    ]
    for cell in done:
        append_row(path, cell)
    assert read_rows(path, Cell) == done
    assert verdict(done, 20) == "buffer 20: ours is +1.0 pp over the best other, er_ace (seeds: 1)"
    assert verdict(done[2:], 20).endswith("cannot be compared yet")
    row = next(row for row in accuracies(done) if row[1] == "ours")
    assert row[2:5] == ("52.0 ± 2.8", "11.0 ± 1.4", "55 49")
    missing = not_run(done, (20,))
    assert "ours with 20 images: seed 2" in missing and "naive: seed 0, 1, 2" in missing
    assert report(path) == 0
    assert "er_ace" in capsys.readouterr().out
