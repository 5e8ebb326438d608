"""Whole imprint rounds on the tiny net: what they publish of a class that the served version does not know."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from conftest_site import CLASSES, RECIPE, SIZE, RecordingControl, Site, make_site, picture, read_manifest, run_here

from edgetune.decide.gate import judge
from edgetune.decide.imprinting import choose_samples
from edgetune.images import decode, to_input
from edgetune.learn.network import load_network
from edgetune.serve.engine import Engine
from edgetune.store.models import Models
from edgetune.types import GatePolicy, Manifest, RoundKind, Split, TrainerOutcome

NEW = (*CLASSES, "violet")
POLICY = GatePolicy(latency_ratio_max=1000.0, accuracy_risk_max=0.1)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Version 2 knows three colours well; the buffer holds eight training images of a fourth, and its hold-out."""
    whole = make_site(tmp_path_factory.mktemp("imprint"), classes=NEW, each=130)
    old = tuple(sample for sample in whole.samples if sample.label in CLASSES)
    recipe = replace(RECIPE, level=0.0, epochs_after=8)
    assert (
        run_here(whole.round_dir("teach", kind=RoundKind.ADAPT, samples=old, recipe=recipe))[0]
        is TrainerOutcome.PUBLISHED
    )
    violet = [sample for sample in whole.samples if sample.label == "violet"]
    few = [sample for sample in violet if sample.split is Split.TRAINING][:8]
    return replace(whole, samples=(*old, *few, *(sample for sample in violet if sample.split is Split.HOLDOUT)))


def do_imprint(site: Site, name: str, version: int = 3, **changes: object) -> Manifest:
    """An imprint round against version 2."""
    samples = choose_samples(site.samples, ["violet"], CLASSES)
    changes = {"classes": NEW, "samples": samples, **changes}
    directory = site.round_dir(
        name, kind=RoundKind.IMPRINT, base_version=2, candidate_version=version, round_id=version, **changes
    )
    outcome, message, _ = run_here(directory)
    assert outcome is TrainerOutcome.PUBLISHED, message
    return read_manifest(site.root / "models" / f"v{version:06}")


def logits(site: Site, version: int, label: str) -> np.ndarray:
    """What a version says of fifty images that no round has seen."""
    engine = Engine.load(site.root / "models" / f"v{version:06}", threads=1)
    return engine.predict(np.stack([to_input(decode(picture(label, 5000 + n)), SIZE) for n in range(50)]))


def test_eight_images_make_a_class_that_is_answered_while_the_others_answer_as_before(site: Site) -> None:
    """The gate promotes it; the old logits move by no more than another graph's rounding; the class is marked."""
    manifest = do_imprint(site, "imprint")
    Models(site.root / "models", quarantine=site.root / "quarantine").verify(3)
    assert (manifest.kind, manifest.parent, manifest.classes) == ("imprint", 2, NEW)
    assert manifest.marks == {"violet": "provisional"}
    comparison = manifest.comparison
    assert comparison is not None
    assert comparison.new_classes == ("violet",)
    decision = judge(comparison, POLICY)
    assert decision.is_promoted, decision.reasons
    right = {label: float((logits(site, 3, label).argmax(axis=1) == NEW.index(label)).mean()) for label in NEW}
    assert min(right.values()) >= 0.8, right
    for label in CLASSES:
        np.testing.assert_allclose(logits(site, 3, label)[:, :3], logits(site, 2, label), atol=1e-4)


def test_the_same_round_stopped_and_begun_again_ends_with_the_same_bits(site: Site) -> None:
    """It has no checkpoint and needs none."""
    whole = do_imprint(site, "whole", 4)
    samples = choose_samples(site.samples, ["violet"], CLASSES)
    directory = site.round_dir(
        "stopped", kind=RoundKind.IMPRINT, base_version=2, candidate_version=5, round_id=4, classes=NEW, samples=samples
    )
    for steps in (1, 2):
        assert run_here(directory, RecordingControl(stop_after=[steps]))[0] is TrainerOutcome.CHECKPOINTED
    assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
    assert (
        read_manifest(site.root / "models" / "v000005").files["weights.safetensors"]
        == whole.files["weights.safetensors"]
    )
    assert json.loads((directory / "journal.json").read_text())["samples"]["training"] == len(
        [sample for sample in samples if sample.split is Split.TRAINING]
    )


def test_reference_images_stand_for_old_classes_without_samples(site: Site) -> None:
    """Without any image of blue and green the row takes from them; with their reference images it does not."""
    only = tuple(s for s in site.samples if s.split is Split.HOLDOUT or s.label in ("red", "violet"))
    path = site.root / "reference.npz"
    do_imprint(site, "blind", 6, samples=only, reference_path=str(path))
    labels = [label for label in CLASSES for _ in range(20)]
    images = [to_input(decode(picture(label, 9000 + n)), SIZE) for n, label in enumerate(labels)]
    np.savez(path, images=np.stack(images), labels=np.array(labels))
    do_imprint(site, "referred", 7, samples=only, reference_path=str(path))

    def taken(version: int) -> float:
        said = np.concatenate([logits(site, version, label).argmax(axis=1) for label in ("green", "blue")])
        return float((said == NEW.index("violet")).mean())

    assert taken(7) <= min(0.1, taken(6))


def test_an_adapting_round_starts_from_the_imprinted_row_and_takes_the_mark_away(site: Site) -> None:
    """No step: the row is what it was. A step later it has moved, and the class is like any other."""
    do_imprint(site, "first", 8)
    row = load_network(site.root / "models" / "v000008").module.state_dict()
    for version, steps in ((9, 0), (10, 3)):
        directory = site.round_dir(
            f"adapt {steps}", kind=RoundKind.ADAPT, base_version=8, candidate_version=version, round_id=version,
            classes=NEW, samples=site.samples, recipe=replace(RECIPE, level=0.0, epochs_after=steps and 4, max_steps=steps or None),
        )  # fmt: skip
        assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
        after = load_network(site.root / "models" / f"v{version:06}").module.state_dict()
        head = [name for name in row if row[name].shape[:1] == (4,) and not torch.equal(row[name], after[name])]
        assert bool(head) is (steps > 0)
        assert read_manifest(site.root / "models" / f"v{version:06}").marks == {}


def test_a_new_class_without_an_image_is_refused_by_name(site: Site) -> None:
    """There is nothing to imprint it from."""
    samples = tuple(sample for sample in site.samples if sample.label in CLASSES)
    directory = site.round_dir(
        "empty", kind=RoundKind.IMPRINT, base_version=2, candidate_version=30, classes=NEW, samples=samples
    )
    outcome, message, _ = run_here(directory)
    assert (outcome, message) == (TrainerOutcome.NO_SAMPLES, "no training sample of the new class violet")
