"""The real trainer process on real round directories; in this process where no signal or exit code is the point."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "learn"))

from conftest_site import (
    CLASSES,
    RECIPE,
    RecordingControl,
    Site,
    make_site,
    read_manifest,
    run_here,
    run_trainer,
    start_trainer,
)

from edgetune.errors import EXIT_TRAINER_CHECKPOINTED, EXIT_TRAINER_OUTCOME, EXIT_USAGE
from edgetune.serve.engine import Engine
from edgetune.store.models import Models
from edgetune.trainer import name_outcome
from edgetune.types import RoundKind, TrainerOutcome


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Forty samples of each of three classes and an untrained model; rounds of a test get their own models."""
    return make_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def whole(site: Site) -> tuple[Path, list[dict[str, object]]]:
    """A round that nothing stopped: its models directory and what the trainer said."""
    models = own_models(site, "whole")
    code, said, err = run_trainer(site.round_dir("whole", models_dir=models))
    assert code == 0, err
    return models, said


def own_models(site: Site, name: str) -> Path:
    """A copy of the site's models for one round."""
    return Path(shutil.copytree(site.root / "models", site.root / f"models-{name}"))


def weights(models: Path) -> bytes:
    """What a round ends with."""
    return (models / "v000002" / "weights.safetensors").read_bytes()


def test_a_round_publishes_a_smaller_and_better_model_that_verifies(
    whole: tuple[Path, list[dict[str, object]]],
) -> None:
    """The candidate is whole, reproduces its self-test, has the level asked for and beats an untrained base."""
    models, said = whole
    store = Models(models, quarantine=models.parent / "quarantine")
    store.verify(2)
    manifest = store.manifest(2)
    engine = Engine.load(models / "v000002", threads=1)
    engine.selftest()
    assert manifest.pruning is not None and manifest.pruning.level_achieved >= RECIPE.level
    assert manifest.comparison is not None
    assert manifest.comparison.candidate.correct > manifest.comparison.base.correct
    assert manifest.round_id == 1 and manifest.parent == 1 and manifest.latency is not None
    phases = [line["phase"] for line in said if line["event"] == "phase"]
    assert phases == ["load", "plan", "tune", "score", "prune", "retrain", "export", "measure", "time", "publish"]


def test_a_round_killed_at_its_checkpoints_ends_with_the_same_weights(
    site: Site, whole: tuple[Path, list[dict[str, object]]]
) -> None:
    """SIGKILL right after a checkpoint was replaced, twice, changes no bit of the result."""
    models = own_models(site, "killed")
    directory = site.round_dir("killed", models_dir=models)
    for fault in ("write_atomic.renamed:2", "write_atomic.renamed:4"):
        code, _, err = run_trainer(directory, EDGETUNE_FAULT=fault)
        assert code == -signal.SIGKILL, err
    assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
    assert weights(models) == weights(whole[0])


def test_a_round_asked_to_stop_checkpoints_and_ends_with_the_same_weights(
    site: Site, whole: tuple[Path, list[dict[str, object]]]
) -> None:
    """SIGTERM in the middle of training: exit 20, an outcome, and the same weights after a restart."""
    models = own_models(site, "stopped")
    directory = site.round_dir("stopped", models_dir=models)
    process = start_trainer(directory)
    assert process.stdout is not None
    for line in process.stdout:
        if '"tune"' in line:
            process.send_signal(signal.SIGTERM)
            break
    process.communicate(timeout=120)
    assert process.returncode == EXIT_TRAINER_CHECKPOINTED
    assert json.loads((directory / "outcome.json").read_text())["outcome"] == "checkpointed"
    assert not (models / "v000002").exists()
    assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
    assert weights(models) == weights(whole[0])


def test_a_published_round_is_recognised_when_it_is_started_again(
    site: Site, whole: tuple[Path, list[dict[str, object]]]
) -> None:
    """A crash between publication and exit must not train twice or fail."""
    before = weights(whole[0])
    control = RecordingControl()
    assert run_here(site.round_dir("again", models_dir=whole[0]), control)[0] is TrainerOutcome.PUBLISHED
    assert not any(line.get("phase") == "tune" for line in control.said)
    assert weights(whole[0]) == before


def test_an_adapting_round_widens_the_head_for_a_new_class(tmp_path: Path) -> None:
    """The base answers wrong for the class it does not know; the candidate has an output for it."""
    site = make_site(tmp_path, classes=(*CLASSES, "striped"))
    directory = site.round_dir("1", kind=RoundKind.ADAPT, classes=(*CLASSES, "striped"))
    assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
    manifest = read_manifest(tmp_path / "models" / "v000002")
    assert manifest.classes == (*CLASSES, "striped")
    assert manifest.comparison is not None
    assert manifest.comparison.new_classes == ("striped",)
    assert manifest.comparison.base.per_class["striped"].correct == 0


def test_a_nan_loss_is_a_named_outcome_and_never_a_model(tmp_path: Path) -> None:
    """Training that explodes publishes nothing."""
    site = make_site(tmp_path, builder="tiny_nets:exploding")
    directory = site.round_dir("1")
    code, said, _ = run_trainer(directory)
    assert (code, said[-1]["outcome"]) == (EXIT_TRAINER_OUTCOME, "nan_loss")
    assert json.loads((directory / "outcome.json").read_text())["hint"]
    assert not (tmp_path / "models" / "v000002").exists()


def test_a_directory_without_a_spec_is_refused(tmp_path: Path) -> None:
    """Run by hand in the wrong place, it says so."""
    code, _, err = run_trainer(tmp_path)
    assert code == EXIT_USAGE
    assert "spec.json" in err


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (MemoryError(), TrainerOutcome.OUT_OF_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), TrainerOutcome.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), TrainerOutcome.OUT_OF_MEMORY),
        (OSError(28, "No space left on device"), TrainerOutcome.DISK_FULL),
        (RuntimeError("something else"), TrainerOutcome.FAILED),
    ],
)
def test_an_error_becomes_its_outcome(error: Exception, outcome: TrainerOutcome) -> None:
    """Out of memory and a full disk are told from other failures."""
    assert name_outcome(error)[0] is outcome


def test_a_round_without_samples_of_one_class_or_memory_ends_in_a_named_outcome(tmp_path: Path) -> None:
    """No samples, one class, no memory and a version that is gone each have their name, and publish nothing."""
    site = make_site(tmp_path, builder="tiny_nets:hungry")
    red = tuple(sample for sample in site.samples if sample.label == "red")
    rounds = {
        "no_samples": site.round_dir("no_samples", samples=()),
        "one_class": site.round_dir("one_class", samples=red),
        "out_of_memory": site.round_dir("out_of_memory"),
        "bad_model": site.round_dir("bad_model", base_version=9),
    }
    for outcome, directory in rounds.items():
        got, message, _ = run_here(directory)
        assert got is TrainerOutcome(outcome), message
        assert message
    assert not (tmp_path / "models" / "v000002").exists()
