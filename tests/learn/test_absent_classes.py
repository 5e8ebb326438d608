"""Classes that a site does not show: what a round does to them, and what it says about it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from conftest_site import CLASSES, RECIPE, SIZE, Site, make_site, picture, read_manifest, run_here

from edgetune.errors import ModelError
from edgetune.images import decode, to_input
from edgetune.learn.reference import load_reference
from edgetune.serve.engine import Engine
from edgetune.types import AbsentClasses, RoundKind, TrainerOutcome

TRAINED = replace(RECIPE, level=0.0, epochs_after=12, max_steps=None)


def write_reference(path: Path, each: int = 30) -> None:
    """Pictures that the site's samples do not hold."""
    labels = [label for label in CLASSES for _ in range(each)]
    images = [to_input(decode(picture(label, 1000 + i)), SIZE) for i, label in enumerate(labels)]
    np.savez(path, images=np.stack(images), labels=np.array(labels))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A factory model that has learnt three colours, and a buffer of only two of them."""
    whole = make_site(tmp_path)
    taught = whole.round_dir("teach", kind=RoundKind.ADAPT, recipe=TRAINED)
    assert run_here(taught)[0] is TrainerOutcome.PUBLISHED
    return replace(whole, samples=tuple(sample for sample in whole.samples if sample.label != "blue"))


def published(site: Site, name: str, version: int, **recipe: object) -> AbsentClasses | None:
    """A round from version 2 on red and green alone; what it says of blue."""
    round_dir = site.round_dir(
        name, kind=RoundKind.ADAPT, base_version=2, factory_version=2, candidate_version=version, round_id=version,
        recipe=replace(TRAINED, **recipe), reference_path=str(site.root / "reference.npz"),
    )  # fmt: skip
    assert run_here(round_dir)[0] is TrainerOutcome.PUBLISHED
    comparison = read_manifest(site.root / "models" / f"v{version:06}").comparison
    assert comparison is not None
    return comparison.absent


def test_what_is_not_shown_is_measured_on_reference_images_or_called_unknown(site: Site) -> None:
    """Both models are asked the reference images of blue alone; the figures are those of the published engines."""
    assert published(site, "unknown", 3) == AbsentClasses(classes=1)
    write_reference(site.root / "reference.npz")
    for version, distillation in ((4, 0.0), (5, 0.9)):
        told = published(site, f"round {version}", version, distillation=distillation)
        assert told is not None
        right = {}
        for number in (2, version):
            engine = Engine.load(site.root / "models" / f"v{number:06}", threads=1)
            blue = [to_input(decode(picture("blue", 1000 + i)), SIZE) for i in range(30)]
            right[number] = int((engine.predict(np.stack(blue)).argmax(axis=1) == CLASSES.index("blue")).sum())
        assert (told.count, told.base_correct, told.candidate_correct) == (30, right[2], right[version])
        assert told.base_correct >= 20, "the model knows blue before"


def test_a_round_that_shows_every_class_has_no_absent_ones(tmp_path: Path) -> None:
    """Nothing is said then."""
    site = make_site(tmp_path)
    assert run_here(site.round_dir("all", kind=RoundKind.ADAPT))[0] is TrainerOutcome.PUBLISHED
    comparison = read_manifest(tmp_path / "models" / "v000002").comparison
    assert comparison is not None
    assert comparison.absent is None


def test_reference_images_are_taken_by_class_and_only_at_the_models_size(tmp_path: Path) -> None:
    """A file of another model's size is as good as none; a damaged one is named."""
    path = tmp_path / "reference.npz"
    assert load_reference(path, CLASSES, CLASSES, SIZE) is None
    write_reference(path, each=2)
    found = load_reference(path, CLASSES, ("blue",), SIZE)
    assert found is not None
    assert found.labels.tolist() == [2, 2]
    assert found.images(np.array([1])).shape == (1, 16, 16, 3)
    assert load_reference(path, CLASSES, ("violet",), SIZE) is None
    assert load_reference(path, CLASSES, CLASSES, replace(SIZE, height=32)) is None
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"reference\.npz is damaged"):
        load_reference(path, CLASSES, CLASSES, SIZE)
