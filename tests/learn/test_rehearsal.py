"""New classes beside replayed old ones: what is replayed, the losses, and whole adapting rounds with them."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))

from conftest_site import CLASSES, RECIPE, SIZE, RecordingControl, Site, make_site, picture, read_manifest, run_here

from edgetune.images import decode, to_input
from edgetune.learn.rehearsal import ALPHA, BETA, Rehearsal, choose_replay, keep_replayed, new_classes
from edgetune.serve.engine import Engine
from edgetune.types import Manifest, RoundKind, RoundSpec, Split, TrainerOutcome
from edgetune.wire import from_json, to_json

NEW = (*CLASSES, "violet")
IMAGE_BYTES = SIZE.height * SIZE.width * 3


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Version 2 knows three colours; the buffer holds a fourth as well."""
    whole = make_site(tmp_path_factory.mktemp("rehearsal"), classes=NEW, each=90)
    old = tuple(sample for sample in whole.samples if sample.label in CLASSES)
    recipe = replace(RECIPE, level=0.0, epochs_after=8)
    assert (
        run_here(whole.round_dir("teach", kind=RoundKind.ADAPT, samples=old, recipe=recipe))[0]
        is TrainerOutcome.PUBLISHED
    )
    return whole


# ----------------------------------------------------------------------------------------------- losses

LABELS = torch.tensor([3, 0, 1, 3, 2, 0])  # 3 is new, 4 is known and not shown
IDS = np.array([30, 31, 32, 33, 34, 35])


def drawn(seed: int = 0) -> torch.Tensor:
    """Logits [6, 5]."""
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_er_ace_is_the_published_loss_over_the_two_parts_of_a_batch() -> None:
    """Written out by hand; the stream pushes no old class down, and nobody pushes the class that is not shown."""
    logits = drawn()
    loss = Rehearsal("er_ace", new=[3], shown=[0, 1, 2, 3], classes=5)(logits, LABELS, IDS)
    replayed = [1, 2, 3, 4, 5]  # the first new image is the stream, alone among its classes: a loss of nothing
    expected = torch.stack([functional.cross_entropy(logits[i, :4], LABELS[i]) for i in replayed]).mean()
    assert torch.allclose(loss, expected)
    loss.backward()
    assert logits.grad is not None
    assert bool((logits.grad[0] == 0).all())
    assert bool((logits.grad[:, 4] == 0).all())


def test_der_pp_takes_logits_of_one_half_of_the_replayed_and_labels_of_the_other() -> None:
    """Written out by hand; the base's word on the new class is not there to be kept."""
    logits, stored = drawn(), drawn(1).detach().numpy()[:, :4]
    rehearsal = Rehearsal("der++", new=[3], shown=[0, 1, 2, 3], classes=5)
    rehearsal.remember(IDS[::-1].copy(), stored[::-1].copy())
    first, second = [1, 4], [2, 5]
    distance = (logits[first, :3] - torch.from_numpy(stored)[first, :3]).square().mean()
    expected = functional.cross_entropy(logits[[0, 3]], LABELS[[0, 3]]) + ALPHA * distance
    expected = expected + BETA * functional.cross_entropy(logits[second], LABELS[second])
    assert torch.allclose(rehearsal(logits, LABELS, IDS), expected)


@pytest.mark.parametrize("how", ["er_ace", "der++"])
@pytest.mark.parametrize("part", [[0, 3], [1, 2, 4, 5], [1], [0, 1]])
def test_a_batch_may_lack_one_of_the_parts(how: str, part: list[int]) -> None:
    """New images alone, replayed ones alone, one of them alone: a finite loss with a gradient."""
    logits = drawn()
    rehearsal = Rehearsal(how, new=[3], shown=[0, 1, 2, 3], classes=5)
    rehearsal.remember(IDS, drawn(1).detach().numpy())
    loss = rehearsal(logits[part], LABELS[part], IDS[part])
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


# ----------------------------------------------------------------------------------------------- what is replayed


def spec_of(site: Site, name: str, **changes: object) -> tuple[RoundSpec, Manifest]:
    """An adapting round against version 2, and version 2."""
    directory = site.round_dir(name, **{"kind": RoundKind.ADAPT, "base_version": 2, "classes": NEW, **changes})
    return from_json(RoundSpec, (directory / "spec.json").read_bytes()), read_manifest(site.root / "models" / "v000002")


def test_what_is_new_to_a_round_is_what_its_base_has_not_learnt(site: Site) -> None:
    """No output, or one with a mark; only in rounds that adapt, and only what is shown."""
    spec, base = spec_of(site, "new")
    assert new_classes(spec, base) == ("violet",)
    marks = {"red": "provisional", "blue": "never_seen_here"}
    assert new_classes(spec, replace(base, marks=marks)) == ("red", "blue", "violet")
    assert new_classes(replace(spec, kind=RoundKind.RESHAPE), base) == ()
    unseen = tuple(sample for sample in spec.samples if sample.label != "violet")
    assert new_classes(replace(spec, samples=unseen), base) == ()


@pytest.mark.parametrize("how", ["random", "herding"])
def test_what_is_replayed_fits_the_budget_evenly_over_the_classes(site: Site, how: str) -> None:
    """31 images' bytes are 31 images, of three classes; the same every time; all of them where they fit."""
    from edgetune.learn.network import load_network

    spec, base = spec_of(site, f"chosen-{how}")
    recipe = replace(RECIPE, replay=how, replay_max_bytes=31 * IMAGE_BYTES + 5)

    def choose(recipe: object) -> list[int] | None:
        return choose_replay(
            spec, recipe, base, load=lambda: load_network(site.root / "models" / "v000002"),  # type: ignore[arg-type]
            device=torch.device("cpu"), beat=lambda: None,
        )  # fmt: skip

    chosen = choose(recipe)
    assert chosen is not None
    assert chosen == choose(recipe)
    labels = {s.sample_id: s.label for s in spec.samples if s.split is Split.TRAINING}
    counts = {label: sum(labels[i] == label for i in chosen) for label in NEW}
    assert (sorted(counts.values()), counts["violet"]) == ([0, 10, 10, 11], 0)
    kept = keep_replayed(spec.samples, ["violet"], chosen)
    assert {s.sample_id for s in kept if s.split is Split.TRAINING and s.label != "violet"} == set(chosen)
    gone = [s for s in spec.samples if s not in kept]
    assert {s.split for s in gone} == {Split.TRAINING}
    assert "violet" not in {s.label for s in gone}
    assert choose(replace(recipe, replay_max_bytes=None)) is None
    assert choose(replace(recipe, replay_max_bytes=2**30)) is None


# ----------------------------------------------------------------------------------------------- whole rounds


def models_of(site: Site, name: str) -> Path:
    """A copy of the versions there are."""
    return Path(shutil.copytree(site.root / "models", site.root / f"models-{name}"))


@pytest.mark.parametrize(
    ("rehearsal", "replay", "distillation"),
    [("plain", "random", 0.0), ("er_ace", "herding", 0.0), ("der++", "random", 0.0), ("er_ace", "random", 0.5)],
)
def test_a_new_class_is_learnt_beside_a_few_old_images_and_a_stop_changes_no_bit(
    site: Site, rehearsal: str, replay: str, distillation: float
) -> None:
    """Sixteen images of each old class keep it; the new one is known; a round stopped thrice ends with the same weights."""
    recipe = replace(
        RECIPE, level=0.0, epochs_after=10, max_steps=70, rehearsal=rehearsal, replay=replay, distillation=distillation,
        replay_max_bytes=48 * IMAGE_BYTES, learning_rate=0.02,
    )  # fmt: skip
    name = f"{rehearsal}-{replay}-{distillation}"
    weights = []
    for stops in ((), (3, 20, 7)):
        models = models_of(site, f"{name}-{len(stops)}")
        directory = site.round_dir(
            f"{name}-{len(stops)}", kind=RoundKind.ADAPT, base_version=2, candidate_version=3, classes=NEW, recipe=recipe,
            models_dir=models, factory_version=2,
        )  # fmt: skip
        for steps in stops:
            assert run_here(directory, RecordingControl(stop_after=[steps]))[0] is TrainerOutcome.CHECKPOINTED
        outcome, message, _ = run_here(directory)
        assert outcome is TrainerOutcome.PUBLISHED, message
        weights.append((models / "v000003" / "weights.safetensors").read_bytes())
        journal = json.loads((directory / "journal.json").read_text())
        assert len(journal["replayed"]) == 48
        assert not (directory / "checkpoint.logits.npz").exists()
    assert weights[0] == weights[1]
    engine = Engine.load(models / "v000003", threads=1)
    for row, label in enumerate(NEW):
        images = np.stack([to_input(decode(picture(label, 7000 + n)), SIZE) for n in range(40)])
        assert float((engine.predict(images).argmax(axis=1) == row).mean()) >= 0.75, (label, name)


def test_what_new_classes_may_take_from_old_ones_is_bounded_by_their_biases_alone(site: Site) -> None:
    """Half of what is red is called violet too: with and without the bound the bits are the same, but for violet's bias."""
    samples = tuple(
        replace(s, label="violet") if s.label == "red" and s.split is Split.TRAINING and s.sample_id % 2 else s
        for s in site.samples
    )
    heads, held_back = [], []
    for most in (None, 0.0):
        name = f"held back {most}"
        models = models_of(site, name)
        recipe = replace(RECIPE, level=0.0, epochs_after=2, old_classes_drop_max=most)
        directory = site.round_dir(
            name, kind=RoundKind.ADAPT, base_version=2, candidate_version=3, classes=NEW, recipe=recipe,
            models_dir=models, samples=samples,
        )  # fmt: skip
        outcome, message, _ = run_here(directory)
        assert outcome is TrainerOutcome.PUBLISHED, message
        heads.append(load_file(models / "v000003" / "weights.safetensors"))
        held_back.append(json.loads((directory / "journal.json").read_text())["held_back"])
    changed = [name for name, tensor in heads[0].items() if not torch.equal(tensor, heads[1][name])]
    assert held_back[0] == {}
    assert held_back[1]["violet"] < 0.0
    (bias,) = changed
    moved = heads[1][bias] - heads[0][bias]
    assert moved[:3].tolist() == [0.0, 0.0, 0.0]
    assert float(moved[3]) == pytest.approx(held_back[1]["violet"], abs=1e-4)


def test_the_bases_logits_are_kept_with_a_round_that_was_stopped(site: Site) -> None:
    """Asked once: what lies beside the checkpoint counts, though the base were to answer otherwise by now."""
    recipe = replace(RECIPE, level=0.0, epochs_after=2, rehearsal="der++")
    models = models_of(site, "kept logits")
    directory = site.round_dir(
        "kept logits", kind=RoundKind.ADAPT, base_version=2, candidate_version=3, classes=NEW, recipe=recipe,
        models_dir=models,
    )  # fmt: skip
    assert run_here(directory, RecordingControl(stop_after=[2]))[0] is TrainerOutcome.CHECKPOINTED
    kept = (directory / "checkpoint.logits.npz").read_bytes()
    (directory / "checkpoint.logits.npz").write_bytes(kept)
    written_ns = (directory / "checkpoint.logits.npz").stat().st_mtime_ns
    assert run_here(directory, RecordingControl(stop_after=[2]))[0] is TrainerOutcome.CHECKPOINTED
    assert (directory / "checkpoint.logits.npz").stat().st_mtime_ns == written_ns


def test_a_provisional_class_counts_as_new_to_the_round_that_learns_it(site: Site) -> None:
    """With its mark in the base's manifest red is the stream, and only the others are bounded."""
    models = models_of(site, "provisional")
    path = models / "v000002" / "manifest.json"
    path.write_bytes(to_json(replace(read_manifest(path.parent), marks={"red": "provisional"})))
    samples = tuple(sample for sample in site.samples if sample.label in CLASSES)
    recipe = replace(RECIPE, level=0.0, epochs_after=1, replay_max_bytes=20 * IMAGE_BYTES)
    directory = site.round_dir(
        "provisional", kind=RoundKind.ADAPT, base_version=2, candidate_version=3, samples=samples, recipe=recipe,
        models_dir=models,
    )  # fmt: skip
    assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
    replayed = set(json.loads((directory / "journal.json").read_text())["replayed"])
    assert {sample.label for sample in samples if sample.sample_id in replayed} == {"green", "blue"}
    assert read_manifest(models / "v000003").marks == {}
