"""The plan of a round: smaller parts of a step where memory is short, less trained where time is, or a refusal."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from conftest_site import RECIPE, RecordingControl, Site, make_site, run_here, run_trainer, start_trainer
from test_finetune import PHASE, noisy_data, normaliser, tiny_network
from test_tuner import make_tuner, same_bits

from edgetune.learn import round_setup
from edgetune.learn.data import MEMORY_MAX_BYTES, held_bytes
from edgetune.learn.finetune import fine_tune
from edgetune.learn.network import Network, state_tensors
from edgetune.learn.planning import Asking, Course, Planner, allowance
from edgetune.learn.recipe import plan_round
from edgetune.learn.tuner import Tuner
from edgetune.types import (
    BoardHistory,
    Cut,
    Forecast,
    Preprocess,
    Recipe,
    RoundFigures,
    RoundKind,
    RoundSpec,
    TrainerOutcome,
)
from edgetune.wire import from_json

TRAINING = noisy_data(46, 1)
COURSE = Course(before=0, after=10)
AUTO = replace(RECIPE, update="auto", batch_size=64, level=0.0)


def planned(recipe: Recipe, course: Course = COURSE, **more: object) -> Forecast:
    """The plan of a tiny network."""
    control = more.pop("control", RecordingControl())
    history = more.pop("history", BoardHistory())
    may_measure = bool(more.pop("may_measure", True))
    network = tiny_network()
    tuner = make_tuner(recipe, TRAINING)
    plan = Planner(tuner, network, recipe=recipe, course=course, history=history, control=control).plan(
        may_measure=may_measure
    )
    assert same_bits(network, tiny_network())
    assert (tuner.updating.name, tuner.accumulation) == (plan.update, plan.accumulation)
    return plan


def test_without_budgets_a_round_is_run_as_asked() -> None:
    """All layers, the whole batch."""
    plan = planned(AUTO)
    assert (plan.fits, plan.update, plan.batch_size, plan.accumulation, plan.reason) == (True, "full", 64, 1, "")
    assert plan.energy_j is None


def test_where_memory_is_short_a_step_goes_in_parts() -> None:
    """Of all layers, as long as parts are large enough for a batch norm; the effective batch stays."""
    huge = replace(AUTO, batch_size=400_000)
    whole = planned(huge).peak_mib
    short = planned(replace(huge, memory_max_mib=whole.low / 3))
    assert (short.fits, short.update) == (True, "full")
    assert short.accumulation >= 4
    assert short.batch_size * short.accumulation >= 400_000
    assert "budgets.trainer_memory_max" in short.reason


def test_a_limit_that_nothing_fits_into_refuses() -> None:
    """With what the least of all ways would take."""
    plan = planned(replace(AUTO, memory_max_mib=1.0))
    assert not plan.fits
    assert "MiB of 1 (budgets.trainer_memory_max)" in plan.reason


def test_where_there_is_no_time_even_for_the_output_layer_a_round_is_refused() -> None:
    """And where there is any amount, everything is trained."""
    course = Course(before=0, after=400_000)
    assert planned(replace(AUTO, time_max_s=1e9), course).update == "full"
    late = planned(replace(AUTO, time_max_s=1.0), course)
    assert (late.fits, late.update) == (False, "head")
    assert "of 1s (budgets.round_time_max)" in late.reason


@pytest.mark.parametrize(
    "course",
    [
        Course(before=0, after=4000),
        Course(before=1000, after=3000, level=0.5),
        Course(before=1000, after=3000, level=0.5, trials=4, trial_steps=2000),
    ],
    ids=["adapt", "cut", "search"],
)
def test_where_time_is_short_a_round_trains_for_fewer_epochs(course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all layers, before a part of them alone is trained; a search's trials are shorter too."""
    measured = make_tuner(AUTO, TRAINING).profile(tiny_network())
    monkeypatch.setattr(Tuner, "profile", lambda *_: measured)  # the board's pace stays the same
    history = BoardHistory(rounds=(RoundFigures(other_s=1.0, is_reshape=True), RoundFigures(other_s=1.0)))
    whole = planned(AUTO, course, history=history)
    assert whole.training == 1.0
    short = planned(replace(AUTO, time_max_s=0.65 * whole.duration_s.likely), course, history=history)
    assert (short.fits, short.update) == (True, "full")
    assert short.training in (0.35, 0.5)
    assert "(budgets.round_time_max)" in short.reason


def test_a_round_trains_for_as_many_epochs_as_its_plan_has(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of them before its cut and half of them after."""
    trained: list[int] = []
    real = Tuner.fine_tune

    def fine_tune(self: Tuner, network: Network, name: str, steps: int, **how: Any) -> tuple[float, float] | None:
        trained.append(steps)
        return real(self, network, name, steps, **how)

    monkeypatch.setattr(Tuner, "fine_tune", fine_tune)
    steps = []
    for share in (1.0, 0.5):
        trained.clear()
        recipe = replace(RECIPE, epochs_before=2, epochs_after=4)
        models = Path(shutil.copytree(site.root / "models", site.root / f"models-{share}"))
        directory = site.round_dir(f"share-{share}", recipe=recipe, models_dir=models)
        _prescribe(directory, training=share)
        assert run_here(directory)[0] is TrainerOutcome.PUBLISHED
        steps.append(tuple(trained))
    (before, after), shorter = steps
    assert shorter == (math.ceil(before / 2), math.ceil(after / 2))


@pytest.mark.parametrize(("views", "is_mixed", "asked"), [(None, False, 10 * 64), (1, False, 64), (1, True, 11 * 64)])
def test_a_teacher_outside_takes_its_time_for_every_image_that_it_has_not_answered(
    views: int | None, is_mixed: bool, asked: int
) -> None:
    """A second each; with one view an epoch's images are asked about once, and mixtures of them each time. Its memory is told beside the round's own."""
    plain = planned(AUTO, may_measure=False)
    course = replace(COURSE, asking=Asking(image_s=1.0, held_mib=120.0, views=views, is_mixed=is_mixed))
    plan = planned(AUTO, course=course, may_measure=False)
    more = plan.duration_s.likely - plain.duration_s.likely
    assert asked - 5 < more < asked + 5
    assert plan.duration_s.low < asked, "all of it may have been answered before"
    assert plan.beside_mib == 120.0


def test_going_back_after_training_is_part_of_the_time_until_rounds_have_told() -> None:
    """Each look takes a third of what training on its images would; two are likely, one for each share at the most."""
    look = replace(COURSE, look_images=6_000)
    plain, more = (planned(AUTO, course=course, may_measure=False).duration_s for course in (COURSE, look))
    trained_s = 6_000 / AUTO.batch_size * planned(AUTO, may_measure=False).step_s.likely
    assert more.likely - plain.likely == pytest.approx(2 / 3 * trained_s, rel=0.01)
    assert more.low == plain.low
    assert more.high > plain.high + 6 / 3 * trained_s
    known = BoardHistory(rounds=3 * (RoundFigures(other_s=100.0, other_share=0.5),))
    plain, more = (planned(AUTO, course=course, history=known, may_measure=False) for course in (COURSE, look))
    assert more.duration_s.likely == pytest.approx(plain.duration_s.likely, rel=1e-6)


def test_a_trainer_that_is_slowed_down_takes_longer() -> None:
    """At half the pace twice as long: whatever a step takes here, the pace is a factor."""
    history = BoardHistory(rounds=(RoundFigures(other_s=1000.0, other_share=0.5),))
    fast, slow = RecordingControl(), RecordingControl()
    slow.obey('{"duty": 0.5}')
    one, other = (planned(AUTO, history=history, control=control).duration_s for control in (fast, slow))
    assert other.likely == pytest.approx(2 * one.likely, rel=0.05)
    known = planned(AUTO, history=replace(history, duties=(0.8, 0.8)), control=slow).duration_s
    assert known.likely == pytest.approx(one.likely / 0.8, rel=0.05), "rounds here were slowed down less as a rule"


def test_a_round_takes_beside_its_steps_what_rounds_of_its_kind_took() -> None:
    """Ranking, cutting and timing are no part of an adapt round; where there was none of a kind, any tells."""
    adapt = RoundFigures(other_s=1000.0, other_share=0.5)
    reshape = RoundFigures(other_s=5000.0, other_share=0.5, is_reshape=True)
    cut = replace(COURSE, level=0.5)
    assert planned(AUTO, history=BoardHistory(rounds=(adapt, reshape))).duration_s.likely < 1500
    assert planned(AUTO, cut, history=BoardHistory(rounds=(adapt, reshape))).duration_s.likely > 4500
    assert planned(AUTO, cut, history=BoardHistory(rounds=(adapt,))).duration_s.likely < 1500


@pytest.mark.parametrize("level_of", ["parameters", "macs"])
def test_what_a_cut_leaves_is_learnt_from_the_cuts_there_were(level_of: str) -> None:
    """Half of the weights were half of the work here, or hardly less of it."""

    def plan(cut: Cut) -> Forecast:
        figures = RoundFigures(other_s=1.0, other_share=0.1, is_reshape=True, cut=cut)
        recipe = replace(AUTO, batch_size=4096, level_of=level_of)
        return planned(recipe, replace(COURSE, level=0.5), history=BoardHistory(rounds=(figures,)), may_measure=False)

    thin, wide = plan(Cut(macs=1.0, kept=1.0)), plan(Cut(macs=1.0, kept=0.1))
    assert thin.peak_mib.likely < wide.peak_mib.likely
    if level_of == "parameters":
        assert plan(Cut(macs=1.0, kept=0.1)).step_s.likely < plan(Cut(macs=0.1, kept=0.1)).step_s.likely


def test_the_first_cut_network_on_a_board_may_take_more_than_the_next() -> None:
    """Nobody knows yet what an odd number of channels does to its heap."""
    course = replace(COURSE, level=0.5)
    figures = RoundFigures(other_s=1.0, other_share=0.1)
    first, next_ = (
        planned(AUTO, course, history=BoardHistory(rounds=(replace(figures, is_reshape=has_cut),)), may_measure=False)
        for has_cut in (False, True)
    )
    assert first.peak_mib.high > next_.peak_mib.high


def test_power_that_was_measured_makes_an_energy_and_a_refusal() -> None:
    """Ten watts for the time that the round takes."""
    history = BoardHistory(rounds=(RoundFigures(other_s=1000.0, other_share=0.5, power_w=10.0),))
    plan = planned(AUTO, history=history)
    assert plan.energy_j is not None
    assert plan.energy_j.likely == pytest.approx(10 * plan.duration_s.likely)
    refused = planned(replace(AUTO, energy_max_j=5000.0), history=history)
    assert not refused.fits
    assert "budgets.round_energy_max" in refused.reason


def test_a_power_that_is_known_alone_tells_the_energy_and_changes_nothing_else() -> None:
    """Of a round in pieces or searched nothing else is said."""
    history = BoardHistory(rounds=(RoundFigures(power_w=10.0),))
    known, blind = planned(AUTO, history=history, may_measure=False), planned(AUTO, may_measure=False)
    assert known.energy_j is not None
    assert known.energy_j.likely == pytest.approx(10.0 * known.duration_s.likely)
    assert known.duration_s.likely == pytest.approx(blind.duration_s.likely, rel=0.3)
    assert blind.energy_j is None


def test_what_has_to_be_left_to_others_is_no_part_of_what_is_allowed() -> None:
    """Memory that is available now, and what the trainer holds already, less the reserve."""
    found = allowance(replace(AUTO, memory_available_min_mib=100.0)).available_mib
    expected = (psutil.virtual_memory().available + psutil.Process().memory_info().rss) / 2**20 - 100
    assert found == pytest.approx(expected, rel=0.1)
    assert not planned(replace(AUTO, memory_available_min_mib=1e9)).fits


def test_a_step_in_parts_is_the_step_where_no_batch_norm_looks() -> None:
    """In eval mode's statistics the sum of the parts' gradients is the batch's: the weights differ by rounding alone."""

    def trained(accumulation: int) -> dict[str, torch.Tensor]:
        network = tiny_network()
        for module in network.module.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.train = lambda _mode=True, kept=module: kept  # type: ignore[assignment,misc]
                module.training = False
        phase = replace(PHASE, steps=6, accumulation=accumulation)
        fine_tune(
            network, phase, TRAINING, noisy_data(0, 2), normaliser(), resume=None, save=lambda _: None,
            control=RecordingControl(),
        )  # fmt: skip
        return state_tensors(network.module)

    whole, parts = trained(1), trained(3)
    assert all(torch.allclose(whole[name], parts[name], rtol=1e-3, atol=1e-5) for name in whole)
    assert any(not torch.equal(whole[name], state_tensors(tiny_network().module)[name]) for name in whole)


# ----------------------------------------------------------------------------------------------- whole rounds


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """An untrained model and three colours."""
    return make_site(tmp_path_factory.mktemp("planning"), each=40)


def journal(directory: Path) -> dict[str, object]:
    """What a round wrote down."""
    return dict(json.loads((directory / "journal.json").read_text()))


def test_a_round_that_does_not_fit_is_refused_before_it_trains(site: Site) -> None:
    """By name and with the number, again when it is started again; nothing is published."""
    directory = site.round_dir("small", recipe=replace(RECIPE, memory_max_mib=50.0, order="tune_first"))
    for _ in range(2):
        control = RecordingControl()
        outcome, message, hint = run_here(directory, control)
        assert outcome is TrainerOutcome.WILL_NOT_FIT
        assert "MiB of 50 (budgets.trainer_memory_max)" in message
        assert "training.update" in hint
        assert not any(line.get("phase") in ("tune", "retrain") for line in control.said)
    assert not (site.root / "models" / "v000002").exists()


def test_a_model_for_which_there_is_no_room_is_not_loaded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading would itself pass the budget; what a trainer takes by itself is written down for the next round."""

    def loaded(*_: object, **__: object) -> None:
        pytest.fail("something was loaded")

    for name in ("gather", "load_network"):
        monkeypatch.setattr(round_setup, name, loaded)
    bare_mib = psutil.Process().memory_info().rss / 2**20
    for name, most_mib in (("far", 50.0), ("near", bare_mib + 20)):
        directory = site.round_dir(name, recipe=replace(RECIPE, memory_max_mib=most_mib))
        outcome, message, _ = run_here(directory)
        assert outcome is TrainerOutcome.WILL_NOT_FIT
        assert f"MiB of {most_mib:.0f} (budgets.trainer_memory_max)" in message
        assert journal(directory)["bare_mib"] == pytest.approx(bare_mib, abs=10)


def test_images_count_as_far_as_they_are_kept_in_memory() -> None:
    """A hundred thousand of them take no more than the decoded ones that are kept."""
    size = Preprocess(height=224, width=224)
    assert held_bytes(10, size) == 10 * 224 * 224 * 3
    assert held_bytes(100_000, size) == MEMORY_MAX_BYTES


def test_what_ranking_took_once_is_room_that_the_next_one_keeps() -> None:
    """More than was thought: batches are halved by as much, and the plan says no more than that."""
    seen = BoardHistory(rounds=(RoundFigures(other_s=1.0, other_share=0.1, is_reshape=True, ranking_share=1.5),))
    assert make_tuner(AUTO, TRAINING).ranking_high == 1.0
    assert make_tuner(AUTO, TRAINING, history=seen).ranking_high == 1.5


def test_a_round_that_cannot_fit_is_refused_before_anything_is_tried(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timing layouts and measuring steps would themselves take more than there is."""

    def tried(*_: object, **__: object) -> None:
        pytest.fail("a step was tried")

    for name in ("settle_layout", "settle_threads", "profile"):
        monkeypatch.setattr(Tuner, name, tried)
    most_mib = psutil.Process().memory_info().rss / 2**20 + 60  # the model can be loaded
    directory = site.round_dir("hopeless", recipe=replace(RECIPE, memory_max_mib=most_mib))
    outcome, message, _ = run_here(directory)
    assert outcome is TrainerOutcome.WILL_NOT_FIT
    assert f"MiB of {most_mib:.0f} (budgets.trainer_memory_max)" in message
    assert "it would take" in message


def test_a_round_only_planned_trains_nothing(site: Site) -> None:
    """As the real process does it: its exit says so, its journal holds the forecast."""
    directory = site.round_dir("plan")
    process = start_trainer(directory, args=("--plan",))
    out, err = process.communicate(timeout=300)
    assert json.loads(out.splitlines()[-1])["outcome"] == "planned", err
    found = journal(directory)
    assert found["forecast"]["fits"] is True  # type: ignore[index]
    assert "measured" not in found
    assert not (site.root / "models" / "v000002").exists()


def test_a_finished_round_says_what_it_took(site: Site) -> None:
    """The points that the next forecast learns from: of each phase its batch, its peak, and what network it was."""
    models = Path(shutil.copytree(site.root / "models", site.root / "models-measured"))
    directory = site.round_dir("measured", models_dir=models)
    code, _, err = run_trainer(directory)
    assert code == 0, err
    measured = journal(directory)["measured"]
    tune, retrain = measured["points"]  # type: ignore[index]
    assert tune["batch_size"] == retrain["batch_size"] == RECIPE.batch_size
    assert tune["workload"]["mega_weights"] > retrain["workload"]["mega_weights"]
    assert tune["step_s"] > 0
    assert measured["peak_mib"] >= tune["peak_mib"]  # type: ignore[index]
    assert retrain["peak_mib"] is None or measured["peak_mib"] >= retrain["peak_mib"] > 0  # by what the system lets see
    assert 0.2 < measured["ranking_share"] < 5  # type: ignore[index]


def test_a_round_in_parts_of_a_step_goes_on_after_stops_to_the_same_bits(site: Site) -> None:
    """What was chosen is in the journal, and no start chooses anew."""
    recipe = replace(RECIPE, level=0.0, epochs_after=2, batch_size=64)
    weights = []
    for stops in ((), (1,)):
        models = Path(shutil.copytree(site.root / "models", site.root / f"models-{len(stops)}"))
        directory = site.round_dir(f"parts-{len(stops)}", kind=RoundKind.ADAPT, recipe=recipe, models_dir=models)
        _prescribe(directory, accumulation=4)
        outcome, message, _ = run_here(directory, RecordingControl(stop_after=stops))
        while outcome is TrainerOutcome.CHECKPOINTED:
            outcome, message, _ = run_here(directory)
        assert outcome is TrainerOutcome.PUBLISHED, message
        assert journal(directory)["forecast"]["accumulation"] == 4  # type: ignore[index]
        weights.append((models / "v000002" / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_the_threads_of_a_round_are_chosen_once(site: Site) -> None:
    """On the cores that may be busy; a start that goes on uses those of the first, because sums depend on them."""
    recipe = replace(RECIPE, level=0.0, threads=2, cores_max=0.5)
    directory = site.round_dir("threads", kind=RoundKind.ADAPT, recipe=recipe)
    spec = from_json(RoundSpec, (directory / "spec.json").read_bytes())
    plan = plan_round(directory, spec, RecordingControl())
    written = journal(directory)
    assert set(written["threads_s"]) == {"2", "1"}  # type: ignore[call-overload]
    assert written["threads"] == plan.threads == torch.get_num_threads() == 1  # never twice as fast, and twice the pace
    (directory / "journal.json").write_text(json.dumps(written | {"threads": 2}))
    plan_round(directory, spec, RecordingControl())
    assert torch.get_num_threads() == journal(directory)["threads"] == 2


def _prescribe(directory: Path, **changes: float) -> None:
    """A plan as a start before this one would have left it."""
    spec = from_json(RoundSpec, (directory / "spec.json").read_bytes())
    plan_round(directory, spec, RecordingControl())
    written = journal(directory)
    written["forecast"] |= changes  # type: ignore[operator]
    (directory / "journal.json").write_text(json.dumps(written))
