"""Classes that a teacher knows and no sample shows: learnt from its word on other images, marked, and judged."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "teach"))
sys.path.insert(0, str(Path(__file__).parent))

from conftest_site import CLASSES, RECIPE, SIZE, Site, make_site, read_manifest, run_here
from teacher_models import COLOURS, colour_model

from edgetune.decide.gate import judge
from edgetune.images import decode, to_input
from edgetune.serve.engine import Engine
from edgetune.types import GatePolicy, Manifest, Mark, RoundKind, Split, TeacherSource, TrainerOutcome

# red, green, blue, and a colour of two of them that no sample has
WITH_YELLOW = np.concatenate([COLOURS, np.array([[9.0], [9.0], [-3.0]], np.float32)], axis=1)
NAMES: dict[str, str | int] = {"red": 0, "green": 1, "blue": 2, "yellow": 3}
TAUGHT = replace(RECIPE, transfer="label_free", level=0.0, epochs_after=50, max_steps=None, old_classes_drop_max=0.05)
LAX = GatePolicy(latency_ratio_max=1000.0, accuracy_risk_max=1.0, size_ratio_max=2.0, holdout_min=5)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Forty samples each of red, green, blue and yellow; rounds are told of the first three alone."""
    site = make_site(tmp_path_factory.mktemp("site"), classes=(*CLASSES, "yellow"))
    colour_model(site.root / "teacher.onnx", weights=WITH_YELLOW)
    return replace(site, samples=tuple(sample for sample in site.samples if sample.label != "yellow"))


def source(site: Site, *unseen: str) -> TeacherSource:
    """The file that knows yellow too."""
    return TeacherSource(
        kind="file", file=str(site.root / "teacher.onnx"), classes=NAMES, unseen_classes=unseen, timeout_s=120
    )  # fmt: skip


def do_round(site: Site, name: str, **changes: Any) -> Manifest:
    """A round that publishes its candidate in its own copy of the models."""
    models = changes.pop("models_dir", None) or shutil.copytree(site.root / "models", site.root / f"models-{name}")
    changes = {"candidate_version": 2, "kind": RoundKind.ADAPT, "recipe": TAUGHT, **changes}
    directory = site.round_dir(name, models_dir=models, answers_dir=str(site.root / "answers"), **changes)
    outcome, message, _ = run_here(directory)
    assert outcome is TrainerOutcome.PUBLISHED, message
    return read_manifest(Path(models) / f"v{changes['candidate_version']:06}")


def yellow(count: int) -> np.ndarray[Any, Any]:
    """Images of a colour that no training sample has, uint8 [count, 16, 16, 3]."""
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 120, (count, 16, 16, 3)) + np.array([100, 100, 0])
    images = []
    for image in pixels.clip(0, 255).astype(np.uint8):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        images.append(to_input(decode(file.getvalue()), SIZE))
    return np.stack(images)


@pytest.fixture(scope="module")
def taught(site: Site) -> Manifest:
    """A version that knows yellow by the teacher's word."""
    return do_round(site, "taught", teacher=source(site, "yellow"))


def test_a_class_that_no_sample_shows_is_learnt_and_marked(site: Site, taught: Manifest) -> None:
    """Its output comes last, answers its images, and carries the mark; the gate calls it what it is."""
    assert taught.classes == (*CLASSES, "yellow")
    assert taught.marks == {"yellow": Mark.NEVER_SEEN_HERE.value}
    comparison = taught.comparison
    assert comparison is not None
    assert (comparison.new_classes, comparison.unseen_classes) == (("yellow",), ("yellow",))
    assert comparison.absent is None, "every class of the factory model was shown"
    assert "knows 'yellow', never seen here, by the teacher's word" in judge(comparison, LAX).reasons
    journal = json.loads((site.root / "rounds" / "taught" / "journal.json").read_text())
    assert journal["answered_readily"] != 0.0
    assert 0.5 <= journal["kept_of_training"] <= 1.0
    assert journal["teacher"]["images_asked"] > 50 * 60, "mixtures beside the samples, anew each time"
    engine = Engine.load(site.root / "models-taught" / "v000002", threads=1)
    said = engine.predict(yellow(40)).argmax(axis=1)
    assert (said == taught.classes.index("yellow")).mean() > 0.8


def test_an_unseen_class_hides_no_loss_of_the_others(taught: Manifest) -> None:
    """A candidate that knows it and is worse on the rest is refused."""
    comparison = taught.comparison
    assert comparison is not None
    perfect = replace(
        comparison.base,
        correct=comparison.base.count,
        per_class={label: replace(s, correct=s.count) for label, s in comparison.base.per_class.items()},
    )
    worse = replace(
        perfect, correct=0, per_class={label: replace(s, correct=0) for label, s in perfect.per_class.items()}
    )
    decision = judge(replace(comparison, base=perfect, candidate=worse), LAX)
    assert not decision.is_promoted
    assert any("accuracy falls" in reason for reason in decision.reasons)


def test_the_mark_stays_without_the_teacher_and_goes_with_the_first_labelled_sample(site: Site) -> None:
    """An adapting round keeps what the weights know; a sample of the class for training ends the mark, no other one does."""
    models = Path(shutil.copytree(site.root / "models", site.root / "models-later"))
    first = do_round(site, "first", models_dir=models, teacher=source(site, "yellow"))
    later: dict[str, Any] = {
        "models_dir": models, "base_version": 2, "classes": first.classes, "recipe": replace(RECIPE, max_steps=4),
    }  # fmt: skip
    untaught = do_round(site, "untaught", candidate_version=3, round_id=2, **later)
    assert untaught.marks == {"yellow": Mark.NEVER_SEEN_HERE.value}
    assert untaught.comparison is not None
    assert untaught.comparison.absent is None
    more = make_more(site)
    held_out = tuple(s for s in more if s.split is Split.HOLDOUT)
    kept = do_round(site, "kept", candidate_version=4, round_id=3, samples=site.samples + held_out, **later)
    assert kept.marks == {"yellow": Mark.NEVER_SEEN_HERE.value}
    seen = do_round(site, "seen", candidate_version=5, round_id=4, samples=site.samples + more, **later)
    assert seen.marks == {}


def make_more(site: Site) -> tuple[Any, ...]:
    """The samples of yellow that lie in the buffer."""
    from edgetune.clock import SystemClock
    from edgetune.store.buffer import Buffer
    from edgetune.store.retention import BufferPolicy

    buffer = Buffer(
        site.root / "edgetune.db",
        BufferPolicy(quota_bytes=2**28, validation_share=0.2, holdout_share=0.2, validation_min=1, holdout_min=1),
        clock=SystemClock(),
    )
    buffer.open()
    frozen = buffer.freeze(1, classes=("yellow",))
    buffer.close()
    return frozen


def test_all_is_what_the_teacher_names_but_what_is_refused(site: Site) -> None:
    """With a pruned factory model, and unlabelled samples beside: the classes of the mapping, less the refused one."""
    wide = colour_model(site.root / "wide.onnx", weights=np.concatenate([WITH_YELLOW, -WITH_YELLOW[:, :1]], axis=1))
    teacher = replace(source(site), file=str(wide), classes={**NAMES, "cyan": 4}, unseen_classes="all")
    made = do_round(
        site, "all", teacher=teacher, refused_classes=("cyan",), kind=RoundKind.RESHAPE,
        recipe=replace(RECIPE, transfer="replay", distillation=0.7, max_steps=6),
    )  # fmt: skip
    assert made.classes == (*CLASSES, "yellow")
    assert made.marks == {"yellow": Mark.NEVER_SEEN_HERE.value}
    assert made.pruning is not None


def test_a_class_that_the_teacher_does_not_know_ends_the_round_by_name(site: Site) -> None:
    """Nothing is published."""
    models = Path(shutil.copytree(site.root / "models", site.root / "models-unknown"))
    directory = site.round_dir(
        "unknown", models_dir=models, teacher=source(site, "heron"), recipe=TAUGHT, answers_dir=str(site.root / "a")
    )
    outcome, message, _ = run_here(directory)
    assert outcome is TrainerOutcome.BAD_TEACHER
    assert "training.unseen_classes: the teacher does not know heron" in message
    assert not (models / "v000002").exists()


@pytest.mark.parametrize("update", ["full", "latent"])
def test_a_hold_out_sample_of_an_unseen_class_ends_no_mixtures_and_latents_have_none(site: Site, update: str) -> None:
    """Only training samples show a class to the trainer; what is trained from latents is never asked about mixtures."""
    models = Path(shutil.copytree(site.root / "models", site.root / f"models-held-{update}"))
    first = do_round(site, f"before-{update}", models_dir=models, teacher=source(site, "yellow"))
    held_out = tuple(s for s in make_more(site) if s.split is Split.HOLDOUT)[:1]
    do_round(
        site, f"held-{update}", models_dir=models, base_version=2, candidate_version=3, round_id=2, classes=first.classes,
        teacher=source(site, "yellow"), samples=site.samples + held_out,
        recipe=replace(TAUGHT, update=update, epochs_after=4),
    )  # fmt: skip
    journal = json.loads((site.root / "rounds" / f"held-{update}" / "journal.json").read_text())
    assert ("answered_readily" in journal) == (journal["update"]["update"] != "latent")
    assert ("kept_of_training" in journal) == (journal["update"]["update"] != "latent")
    assert journal["update"]["update"] == update


def test_a_searched_reshape_answers_what_it_never_saw_as_readily(site: Site) -> None:
    """As one that cuts exactly its level does."""
    recipe = replace(TAUGHT, search="steps", level=0.3, accuracy_drop_max=1.0, trial_epochs=1, epochs_after=6)
    do_round(site, "searched", kind=RoundKind.RESHAPE, teacher=source(site, "yellow"), recipe=recipe)
    journal = json.loads((site.root / "rounds" / "searched" / "journal.json").read_text())
    assert "pruning" in journal and "answered_readily" in journal and "kept_of_training" not in journal
