"""Whole rounds on the tiny net, in this process: what they publish, and what the gate makes of it."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from conftest_site import CLASSES, RECIPE, RecordingControl, Site, make_site, read_manifest, run_here

from edgetune.daemon.round_told import contradicted_throughout
from edgetune.decide.gate import judge
from edgetune.learn.groups import CoupledGroup
from edgetune.learn.network import count_parameters, load_network
from edgetune.learn.transfer import Output, Replay
from edgetune.serve.engine import Engine
from edgetune.store.models import Models
from edgetune.types import FrozenSample, GatePolicy, Manifest, Pruning, RoundKind, Split, TrainerOutcome
from edgetune.wire import to_json

# Time on a busy test machine is not what is judged here.
POLICY = GatePolicy(latency_ratio_max=1000.0)
THOROUGH = replace(RECIPE, epochs_before=2, epochs_after=6)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """130 samples a class, a fifth of them held out; version 1 is untrained, version 2 was trained on them."""
    site = make_site(tmp_path_factory.mktemp("site"), each=130)
    directory = site.round_dir("first", kind=RoundKind.ADAPT, recipe=THOROUGH)
    assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
    return site


def do_round(site: Site, name: str, **changes: object) -> tuple[Manifest, Path, list[dict[str, object]]]:
    """A round against version 2 that publishes version 3 in its own copy of the models."""
    models = Path(shutil.copytree(site.root / "models", site.root / f"models-{name}"))
    changes = {"base_version": 2, "candidate_version": 3, "models_dir": models, **changes}
    control = RecordingControl()
    outcome, message, _ = run_here(site.round_dir(name, **changes), control)
    assert outcome is TrainerOutcome.PUBLISHED, message
    store = Models(models, quarantine=models.parent / "quarantine")
    store.verify(3)
    engine = Engine.load(models / "v000003", threads=1)
    engine.selftest()
    manifest = read_manifest(models / "v000003")
    network = load_network(models / "v000003")
    assert count_parameters(network.module) == manifest.cost.parameters
    return manifest, models / "v000003", control.said


def poisoned(samples: tuple[FrozenSample, ...], how: str) -> tuple[FrozenSample, ...]:
    """The labels of the training samples shuffled, or each class called by another's name; the rest is left clean."""
    training = [sample for sample in samples if sample.split is Split.TRAINING]
    if how == "shuffled":
        labels = [sample.label for sample in training]
        random.Random(1).shuffle(labels)
    else:
        labels = [CLASSES[(CLASSES.index(sample.label) + 1) % len(CLASSES)] for sample in training]
    renamed = {s.sample_id: label for s, label in zip(training, labels, strict=True)}
    return tuple(replace(sample, label=renamed.get(sample.sample_id, sample.label)) for sample in samples)


@pytest.mark.parametrize("kind", [RoundKind.RESHAPE, RoundKind.ADAPT])
@pytest.mark.parametrize("how", ["shuffled", "rotated"])
def test_a_candidate_learnt_from_poisoned_labels_is_refused(site: Site, kind: RoundKind, how: str) -> None:
    """The trainer publishes it in good faith; on the clean hold-out the gate sees that accuracy falls."""
    samples = poisoned(site.samples, how)
    manifest, _, _ = do_round(site, f"poisoned-{how}-{kind.value}", kind=kind, samples=samples, recipe=THOROUGH)
    assert manifest.comparison is not None
    decision = judge(manifest.comparison, POLICY)
    assert not decision.is_promoted
    assert any("accuracy falls" in reason for reason in decision.reasons), decision.reasons
    doubts = json.loads((site.root / "rounds" / f"poisoned-{how}-{kind.value}" / "journal.json").read_text())["doubts"]
    truth, told = {s.sample_id: s.label for s in site.samples}, {s.sample_id: s.label for s in samples}
    assert len(doubts["worst"]) == 10
    for each in doubts["worst"]:  # the wrong ones, and what they are
        assert truth[each["sample"]] != told[each["sample"]] == each["label"]
        assert each["says"] == truth[each["sample"]]
    wrong = sum(truth[s.sample_id] != s.label for s in samples if s.split is Split.TRAINING)
    assert sum(count["contradicted"] for count in doubts["classes"].values()) == pytest.approx(wrong, rel=0.15)


def test_labels_that_are_wrong_everywhere_promote_and_are_named(site: Site) -> None:
    """A hold-out that calls each class by another's name calls the candidate better: what the base says of it is a warning."""
    samples = tuple(
        replace(sample, label=CLASSES[(CLASSES.index(sample.label) + 1) % len(CLASSES)])
        for sample in site.samples
        if sample.label is not None
    )
    manifest, _, _ = do_round(site, "wrong-everywhere", kind=RoundKind.ADAPT, samples=samples, recipe=THOROUGH)
    assert manifest.comparison is not None
    assert judge(manifest.comparison, POLICY).is_promoted
    journal = json.loads((site.root / "rounds" / "wrong-everywhere" / "journal.json").read_text())
    words = contradicted_throughout(journal)
    assert words.startswith("unless the site has changed, labels may be wrong")
    assert all(str(each["sample"]) in words for each in journal["doubts"]["worst"])


def test_the_same_round_on_clean_labels_is_promoted(site: Site) -> None:
    """What the gate refuses above is the poison and nothing else: as accurate and smaller is promoted."""
    manifest, _, _ = do_round(site, "clean", recipe=THOROUGH)
    assert manifest.comparison is not None
    assert manifest.comparison.candidate.count >= POLICY.holdout_min
    decision = judge(manifest.comparison, POLICY)
    assert decision.is_promoted, decision.reasons
    assert any("parameters" in reason for reason in decision.reasons)


class FirstFilters:
    """A criterion of the user's own: the first filters of each group stay."""

    adds_up = False

    def score(self, _model: torch.nn.Module, groups: Sequence[CoupledGroup], _batches: object) -> list[torch.Tensor]:
        """One less for each."""
        return [torch.arange(group.channels, 0, -1, dtype=torch.float64) / group.channels for group in groups]


def test_rounds_with_each_criterion_publish_networks_of_their_own(site: Site) -> None:
    """l1, random, taylor and a user's own all reach the level, say so in the manifest, and do not cut the same filters."""
    published = {}
    for criterion in ("l1", "random", "taylor", "test_learning_rounds:FirstFilters"):
        manifest, directory, said = do_round(site, criterion, recipe=replace(RECIPE, criterion=criterion))
        phases = [line["phase"] for line in said if line["event"] == "phase"]
        assert phases == ["load", "plan", "tune", "score", "prune", "retrain", "export", "measure", "time", "publish"]
        pruning = manifest.pruning
        assert pruning is not None
        assert (pruning.criterion, pruning.level_asked, pruning.round_to) == (criterion, 0.4, 8)
        assert pruning.level_achieved >= 0.4
        network = load_network(directory)
        assert all(m.out_channels % 8 == 0 for m in network.module.modules() if isinstance(m, torch.nn.Conv2d))
        published[criterion] = (directory / "weights.safetensors").read_bytes()
    assert len(set(published.values())) == 4


def test_a_round_at_level_zero_only_fine_tunes_the_factory_model(site: Site) -> None:
    """No tune, score or prune phase; the factory's size, the accuracy of a trained model, no pruning recorded."""
    manifest, directory, said = do_round(site, "level-zero", recipe=replace(THOROUGH, level=0.0))
    assert [line["phase"] for line in said if line["event"] == "phase"] == [
        "load", "plan", "retrain", "export", "measure", "time", "publish",
    ]  # fmt: skip
    factory = read_manifest(site.root / "models" / "v000001")
    assert manifest.pruning is None
    assert manifest.cost.parameters == factory.cost.parameters
    assert load_network(directory).describe().layers == {}
    assert manifest.comparison is not None
    top1 = manifest.comparison.candidate.top1
    assert top1 is not None
    assert top1 > 0.8
    first = directory.parent / "v000002"  # the factory model adapted by the same recipe in a round of the same number
    assert (directory / "weights.safetensors").read_bytes() == (first / "weights.safetensors").read_bytes()


def test_an_adapting_round_keeps_the_shape_and_history_of_a_pruned_base(site: Site) -> None:
    """Fine-tuning a pruned version leaves its widths, and the manifest still says how it was pruned."""
    pruned, directory, _ = do_round(site, "pruned-base")
    models = directory.parent
    follow_up = site.round_dir(
        "follow-up", kind=RoundKind.ADAPT, base_version=3, candidate_version=4, round_id=2, models_dir=models
    )
    assert run_here(follow_up)[0] is TrainerOutcome.PUBLISHED
    adapted = read_manifest(models / "v000004")
    assert isinstance(pruned.pruning, Pruning)
    assert adapted.pruning == pruned.pruning
    assert adapted.cost.parameters == pruned.cost.parameters
    assert load_network(models / "v000004").describe() == load_network(directory).describe()
    assert (adapted.kind, adapted.parent) == ("adapt", 3)


def test_a_mark_goes_on_until_a_round_shows_the_class(site: Site) -> None:
    """A candidate inherits its base's marks, less those of the classes that it was trained on."""
    models = Path(shutil.copytree(site.root / "models", site.root / "models-marks"))
    path = models / "v000002" / "manifest.json"
    path.write_bytes(to_json(replace(read_manifest(path.parent), marks={"blue": "provisional", "red": "provisional"})))
    samples = tuple(sample for sample in site.samples if sample.label != "blue")
    directory = site.round_dir(
        "marks", kind=RoundKind.ADAPT, base_version=2, candidate_version=3, models_dir=models, samples=samples
    )
    assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
    assert read_manifest(models / "v000003").marks == {"blue": "provisional"}


@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
@pytest.mark.parametrize("kind", [RoundKind.RESHAPE, RoundKind.ADAPT])
def test_a_round_stopped_at_many_steps_ends_with_the_same_bits(site: Site, memory_format: str, kind: RoundKind) -> None:
    """Stops before the first checkpoint, between two, across the cut and near the end change no bit."""
    recipe = replace(RECIPE, memory_format=memory_format, max_steps=24)
    _, whole, _ = do_round(site, f"whole-{memory_format}-{kind.value}", kind=kind, recipe=recipe)
    models = Path(shutil.copytree(site.root / "models", site.root / f"models-stopped-{memory_format}-{kind.value}"))
    directory = site.round_dir(
        f"stopped-{memory_format}-{kind.value}", kind=kind, recipe=recipe, base_version=2, candidate_version=3,
        models_dir=models,
    )  # fmt: skip
    stops = (1, 2, 4, 3, 5, 1, 1)
    outcomes = [run_here(directory, RecordingControl(stop_after=[steps]))[0] for steps in stops]
    assert outcomes == [TrainerOutcome.CHECKPOINTED] * len(outcomes)
    assert not (models / "v000003").exists()
    assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
    for name in ("weights.safetensors", "network.json", "model.onnx"):
        assert (models / "v000003" / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_damaged_checkpoint_or_one_of_another_round_starts_anew(site: Site) -> None:
    """Half a file, and a file whose spec is another, are not gone on from; the result is the whole round's."""
    _, whole, _ = do_round(site, "whole")
    models = Path(shutil.copytree(site.root / "models", site.root / "models-damaged"))
    directory = site.round_dir("damaged", base_version=2, candidate_version=3, models_dir=models)
    assert run_here(directory, RecordingControl(stop_after=[5]))[0] is TrainerOutcome.CHECKPOINTED
    path = directory / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run_here(directory, RecordingControl(stop_after=[3]))[0] is TrainerOutcome.CHECKPOINTED
    other = site.round_dir("other", base_version=2, candidate_version=3, models_dir=models, round_id=9)
    shutil.copy(path, other / path.name)
    control = RecordingControl(stop_after=[1])
    assert run_here(other, control)[0] is TrainerOutcome.CHECKPOINTED
    assert [line["step"] for line in control.said if line["event"] == "progress" and "step" in line] == [1, 2]
    assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
    assert (models / "v000003" / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()


def test_a_searched_round_goes_towards_its_level_and_tells_every_trial(site: Site) -> None:
    """With any loss allowed it reaches the level; its trials are in the journal, its scratch networks are gone."""
    recipe = replace(RECIPE, search="steps", level=0.5, accuracy_drop_max=1.0, trial_epochs=1)
    manifest, _, said = do_round(site, "searched", recipe=recipe)
    assert manifest.pruning is not None
    assert manifest.pruning.level_achieved >= 0.5
    journal = json.loads((site.root / "rounds" / "searched" / "journal.json").read_text())
    assert [trial["is_success"] for trial in journal["search"]["trials"]] == [True]
    assert journal["search"]["trials"][0]["share"] == 0.5
    assert not (site.root / "rounds" / "searched" / "search").exists()
    assert journal["search"]["trials"][0]["cut"]["groups"] == journal["pruning"]["groups"]
    phases = [line["phase"] for line in said if line["event"] == "phase"]
    assert phases == [
        "load",
        "plan",
        "tune",
        "score",
        "prune",
        "trial",
        "retrain",
        "export",
        "measure",
        "time",
        "publish",
    ]


@pytest.mark.parametrize("search", ["none", "steps"])
def test_a_round_names_the_layers_that_cannot_be_pruned_before_any_work(tmp_path: Path, search: str) -> None:
    """Once in what it says, before it trains, and in its journal; where all can be pruned it says nothing."""
    for builder, words in (("gated", "1 layer cannot be pruned and will keep all filters: gate"), ("tiny", "")):
        site = make_site(tmp_path / builder, builder=f"tiny_nets:{builder}")
        control = RecordingControl(stop_after=[2])
        directory = site.round_dir("r", recipe=replace(RECIPE, search=search))
        outcome, _, _ = run_here(directory, control)
        assert outcome is TrainerOutcome.CHECKPOINTED
        events = [said["event"] for said in control.said]
        assert [said["words"] for said in control.said if said["event"] == "left_whole"] == [words] * bool(words)
        assert not words or events.index("left_whole") < events.index("progress")
        assert json.loads((directory / "journal.json").read_bytes())["left_whole"] == words


def test_a_search_that_finds_nothing_smaller_still_fine_tunes(site: Site) -> None:
    """No loss at all and more is asked for: the candidate is the whole network, and says that it is not pruned."""
    recipe = replace(RECIPE, search="steps", accuracy_drop_max=-1.0, trial_epochs=1)
    manifest, _, said = do_round(site, "nothing smaller", recipe=recipe)
    assert manifest.pruning is None
    assert manifest.cost.parameters == read_manifest(site.root / "models" / "v000001").cost.parameters
    assert "retrain" in [line["phase"] for line in said if line["event"] == "phase"]


@pytest.mark.parametrize("drop_max", [1.0, -1.0], ids=["finds", "finds nothing"])
@pytest.mark.parametrize("most", [2, 9, 23])
def test_a_searched_round_takes_no_more_steps_than_allowed(site: Site, most: int, drop_max: float) -> None:
    """Whether it finds something or fine-tunes the whole network in the end."""
    recipe = replace(RECIPE, search="steps", level=0.5, accuracy_drop_max=drop_max, trial_epochs=1, max_steps=most)
    _, _, said = do_round(site, f"at most {most} {drop_max}", recipe=recipe)
    assert sum(line["event"] == "progress" for line in said) <= most


def test_a_criterion_of_the_users_that_fails_ends_a_round_with_a_sentence(site: Site) -> None:
    """Before anything is trained."""
    directory = site.round_dir("boom", recipe=replace(RECIPE, criterion="tiny_nets:Boom"), candidate_version=9)
    outcome, why, _ = run_here(directory)
    assert outcome is TrainerOutcome.UNPRUNABLE
    assert why == "criterion 'tiny_nets:Boom' failed: ValueError: boom"


def test_a_searched_round_goes_on_after_stops(site: Site) -> None:
    """Stopped in the tuning, in a trial and in the retraining, it ends with a whole candidate and repeats no trial."""
    recipe = replace(RECIPE, search="steps", level=0.5, accuracy_drop_max=1.0, trial_epochs=1)
    models = Path(shutil.copytree(site.root / "models", site.root / "models-stopped-search"))
    directory = site.round_dir("stopped search", recipe=recipe, base_version=2, candidate_version=3, models_dir=models)
    outcomes = [run_here(directory, RecordingControl(stop_after=[steps]))[0] for steps in (2, 4, 3, 5)]
    assert outcomes == [TrainerOutcome.CHECKPOINTED] * 4
    assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
    journal = json.loads((directory / "journal.json").read_text())
    assert len(journal["search"]["trials"]) == 1
    pruning = read_manifest(models / "v000003").pruning
    assert pruning is not None
    assert pruning.level_achieved >= 0.5


@pytest.mark.parametrize("search", ["none", "steps"])
def test_the_factory_model_has_no_say_in_a_class_that_it_does_not_know(
    search: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where a level is cut nor in the trials of a search: its logits are those of red, green and blue."""
    learns, told = Replay.__call__, set[object]()

    def learning(self: Replay, student: Output, teacher: Output, labels: torch.Tensor) -> torch.Tensor:
        told.add(teacher.classes)
        return learns(self, student, teacher, labels)

    monkeypatch.setattr(Replay, "__call__", learning)
    site = make_site(tmp_path, classes=(*CLASSES, "violet"), each=20)
    recipe = replace(
        RECIPE, search=search, accuracy_drop_max=1.0, trial_epochs=1, transfer="replay", distillation=0.5
    )  # fmt: skip
    assert (
        run_here(site.round_dir("violet", recipe=recipe, classes=(*CLASSES, "violet")))[0] is TrainerOutcome.PUBLISHED
    )
    assert told == {(0, 1, 2)}
