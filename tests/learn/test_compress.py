"""A compression on a tiny problem: what it finds, what it keeps, and that no stop, kill or damage loses its way."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from conftest_site import RecordingControl
from test_finetune import PHASE, SIZE, normaliser, tiny_network

from edgetune.errors import NoSamplesError, UnprunableError, UsageError
from edgetune.learn.compress import Goal, Material, Outcome, Point, _Search, compress
from edgetune.learn.control import StopAskedError
from edgetune.learn.data import LabelledImages
from edgetune.learn.finetune import fine_tune, validation_score
from edgetune.learn.network import Network, count_macs, count_parameters, new_network, state_tensors
from edgetune.learn.planning import Course
from edgetune.types import Recipe

RECIPE = Recipe(
    round_to=4, epochs_before=1, epochs_after=2, batch_size=16, learning_rate=0.05, learning_rate_before=0.02,
    augment="none", scoring_batches=3, timing_runs=2, threads=1, memory_format="contiguous", dtype="float32",
)  # fmt: skip
GOAL = Goal(accuracy_drop_max=0.04, trial_epochs=2, ratio=0.3)
OUT_OF_REACH = Goal(accuracy_drop_max=-1.0, trial_epochs=2)  # better by 100 points


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """A compression sets torch's threads for its process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def easy_data(count: int, seed: int, noise: int = 120) -> LabelledImages:
    """Three classes, each much brighter in its own channel."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = rng.integers(0, noise, (count, 8, 8, 3))
    pixels[np.arange(count), :, :, labels] += 80
    ids = np.arange(count) + 10_000 * seed
    return LabelledImages(ids, labels, pixels.astype(np.uint8), Path("/nowhere"), SIZE)


def easy_material() -> Material:
    """96 images to learn from, 60 to select on."""
    return Material(training=easy_data(96, 1), validation=easy_data(60, 2), preprocess=SIZE, classes=("r", "g", "b"))


def trained_network() -> Network:
    """The tiny network, which knows the three classes."""
    network = tiny_network()
    phase = replace(PHASE, name="given", steps=30, batch_size=16)
    fine_tune(
        network, phase, easy_data(96, 1), easy_data(0, 2), normaliser(), resume=None, save=lambda _: None,
        control=RecordingControl(),
    )  # fmt: skip
    return network


@pytest.fixture(scope="module")
def given() -> Network:
    """To be compressed; no test changes it."""
    return trained_network()


@dataclass
class Call:
    """One call of `compress`: what came of it, and what was done on the way."""

    outcome: Outcome | None = None
    told: list[Point] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)

    @property
    def trials(self) -> int:
        """How many were begun."""
        return self.phases.count("trial")


def call(
    network: Network,
    work: Path,
    *,
    recipe: Recipe = RECIPE,
    goal: Goal = GOAL,
    material: Material | None = None,
    stop_after_steps: int | None = None,
    stop_in_told: bool = False,
) -> Call:
    """Compress; a stop that was asked for leaves no outcome."""
    control = RecordingControl(stop_after=[stop_after_steps] if stop_after_steps is not None else [])
    made = Call()

    def told(point: Point) -> None:
        made.told.append(point)
        if stop_in_told:
            control.stop()

    with contextlib.suppress(StopAskedError):
        made.outcome = compress(
            network, material or easy_material(), recipe, goal, work=work, control=control, told=told
        )  # fmt: skip
    made.phases = [line["phase"] for line in control.said if line["event"] == "phase"]
    return made


def accuracy_of(network: Network, data: LabelledImages) -> float:
    """Validation top-1, asked here."""
    return validation_score(network.module, data, normaliser(), 16, RecordingControl())[0]


def bits(network: Network) -> dict[str, bytes]:
    """Every tensor."""
    return {name: tensor.numpy().tobytes() for name, tensor in state_tensors(network.module).items()}


def timeless(point: Point) -> Point:
    """Without what a clock said."""
    return replace(point, latency_ratio=0.0)


@pytest.fixture(scope="module")
def whole(given: Network, tmp_path_factory: pytest.TempPathFactory) -> tuple[Call, Path]:
    """One compression in one go, which others are compared with, and its work directory."""
    work = tmp_path_factory.mktemp("whole") / "deeper" / "work"
    return call(given, work), work


def check_whole(outcome: Outcome, network: Network, goal: Goal = GOAL, unit: str = "parameters") -> None:
    """An outcome hangs together: counted and asked here, the network is what its point says, smaller and as good."""
    given_accuracy = accuracy_of(network, easy_data(60, 2))
    assert outcome.base.accuracy == given_accuracy
    assert (outcome.base.parameters, outcome.base.share) == (count_parameters(network.module), 1.0)
    assert outcome.best.parameters == count_parameters(outcome.network.module) < outcome.base.parameters
    assert outcome.best.macs == count_macs(outcome.network.module, 8, 8) < outcome.base.macs
    found = accuracy_of(outcome.network, easy_data(60, 2))
    assert outcome.best.accuracy == found >= given_accuracy - goal.accuracy_drop_max
    good = [point for point in outcome.points if point.is_success]
    smallest = min(good, key=lambda point: point.share)
    assert (outcome.best.share, outcome.best.parameters) == (smallest.share, smallest.parameters)
    for point in outcome.points:
        is_cut = getattr(point, unit) <= point.share * getattr(outcome.base, unit)
        assert point.is_success == (is_cut and point.accuracy >= given_accuracy - goal.accuracy_drop_max)
    for point in good:
        assert point.latency_ratio > 0


# ---------------------------------------------------------------------------------------------- what it finds


def test_a_smaller_network_that_keeps_the_accuracy_is_found(given: Network, whole: tuple[Call, Path]) -> None:
    """At the ratio asked for, exactly reached; each trial told; the epochs are those of the phases."""
    made, _ = whole
    assert made.outcome is not None
    check_whole(made.outcome, given)
    assert made.outcome.base.accuracy > 0.95, "the problem is easy"
    assert made.outcome.best.share == 0.3
    assert made.told == made.outcome.points
    assert made.phases == ["tune", "score", "prune", "trial", "score", "prune", "trial", "retrain"]
    tried = sum(point.epochs for point in made.outcome.points)
    assert made.outcome.epochs == 1 + tried + max(1, 2 - tried), "what trials have trained need not be trained again"
    assert all(1 <= point.epochs <= 2 for point in made.outcome.points)
    assert made.outcome.seconds > 0
    with torch.no_grad():
        assert made.outcome.network.module(torch.zeros(2, 3, 8, 8)).shape == (2, 3)


def test_the_search_says_why_it_ended(given: Network, tmp_path: Path, whole: tuple[Call, Path]) -> None:
    """The same words in the call that ended it and in one that finds it ended."""
    made, work = whole
    assert made.outcome is not None
    again = call(given, work)
    assert again.outcome is not None
    assert made.outcome.stopped_by == again.outcome.stopped_by == "the strategy has nothing left to try"
    none = [call(given, tmp_path, goal=OUT_OF_REACH).outcome for _ in range(2)]
    assert [each is not None and each.stopped_by for each in none] == ["no smaller network kept the accuracy"] * 2


def test_the_network_that_is_given_is_not_changed(given: Network, whole: tuple[Call, Path]) -> None:
    """Neither weights nor statistics, nor its mode, nor gradients: it is what training made of it."""
    assert whole[0].outcome is not None
    assert bits(given) == bits(trained_network())
    network = copy.deepcopy(given)
    network.module.train()
    before = bits(network)
    compress(network, easy_material(), RECIPE, replace(GOAL, epochs_max=0.5), work=whole[1].parent / "other")
    assert network.module.training
    assert bits(network) == before
    assert all(parameter.grad is None for parameter in network.module.parameters())


@pytest.mark.parametrize("strategy", ["steps", "dapr"])
def test_a_tolerance_that_cannot_be_met_returns_the_network_as_given(
    given: Network, tmp_path: Path, strategy: str
) -> None:
    """Every trial fails; what comes back is the given network, bit for bit, and its own point."""
    made = call(given, tmp_path, goal=replace(OUT_OF_REACH, strategy=strategy))
    assert made.outcome is not None
    assert bits(made.outcome.network) == bits(given)
    assert made.outcome.best == made.outcome.base
    assert made.outcome.stopped_by == "no smaller network kept the accuracy"
    shares = [0.5, 0.5**0.5, 0.5**0.25] if strategy == "steps" else [0.5, 0.75, 0.85, 0.9, 0.95]
    assert [point.share for point in made.outcome.points] == pytest.approx(shares)
    assert not any(point.is_success for point in made.outcome.points)
    assert "retrain" not in made.phases


def test_the_papers_search_retrains_in_full_at_every_trial(given: Network, tmp_path: Path) -> None:
    """Shares in steps of 5 %, the recipe's epochs each, every trial from the tuned network, no retraining after."""
    goal = replace(GOAL, strategy="dapr", ratio=None)
    made = call(given, tmp_path, goal=goal)
    assert made.outcome is not None
    check_whole(made.outcome, given, goal)
    assert made.outcome.points[0].share == 0.5
    assert len(made.outcome.points) <= 6
    assert made.trials >= 3
    spent = [point.epochs for point in made.outcome.points]
    assert spent == [2.0] * made.trials + [0.0] * (len(spent) - made.trials), "5 % is more than can be cut"
    assert (made.phases.count("score"), made.phases.count("retrain")) == (1, 0)
    assert made.outcome.epochs == 1 + 2 * made.trials


@pytest.mark.parametrize("count", [3, 4])
def test_one_image_of_each_class_is_enough_to_begin(given: Network, tmp_path: Path, count: int) -> None:
    """And one of two: no class is without a score, no batch without a variance."""
    material = replace(easy_material(), training=easy_data(count, 1))
    made = call(given, tmp_path, material=material)
    assert made.outcome is not None
    assert made.outcome.best.accuracy >= made.outcome.base.accuracy - GOAL.accuracy_drop_max
    assert made.outcome.best.parameters <= 0.31 * count_parameters(given.module)


CLOSE = Goal(accuracy_drop_max=0.0, trial_epochs=1 / 6, accuracy_min=0.97)  # a trial of one step


def test_a_trial_that_comes_close_is_trained_on_and_is_the_last(
    given: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needs the whole retraining to succeed is found, is not retrained a second time, and ends the search."""
    monkeypatch.setattr("edgetune.learn.compress._CLOSE", 1.0)
    made = call(given, tmp_path, goal=CLOSE)
    assert made.outcome is not None
    check_whole(made.outcome, given, CLOSE)
    *others, last = made.outcome.points
    assert last.is_success
    assert last.is_limit
    assert not any(point.is_limit for point in others)
    assert made.phases[-1] == "retrain"
    assert made.outcome.epochs == pytest.approx(1 + sum(point.epochs for point in made.outcome.points))


def test_a_kill_while_a_trial_is_trained_on_loses_nothing(
    given: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second call goes on in the retraining of that trial."""
    monkeypatch.setattr("edgetune.learn.compress._CLOSE", 1.0)
    whole = call(given, tmp_path / "whole", goal=CLOSE)
    assert whole.outcome is not None
    assert whole.phases[-1] == "retrain"
    steps = 6 + len(whole.outcome.points) + 3  # the tuning, a step of each trial, and three of the retraining
    first = call(given, tmp_path / "stopped", goal=CLOSE, stop_after_steps=steps)
    assert first.outcome is None
    second = call(given, tmp_path / "stopped", goal=CLOSE)
    assert second.outcome is not None
    assert second.phases == ["retrain"]
    assert [timeless(point) for point in second.outcome.points] == [timeless(p) for p in whole.outcome.points]
    assert second.outcome.epochs == whole.outcome.epochs


def test_a_trial_that_was_interrupted_counts_all_its_epochs(given: Network, tmp_path: Path) -> None:
    """Those before the kill too."""
    whole = call(given, tmp_path / "whole", goal=OUT_OF_REACH)
    first = call(given, tmp_path / "stopped", goal=OUT_OF_REACH, stop_after_steps=6 + 6 + 3)
    assert first.outcome is None
    second = call(given, tmp_path / "stopped", goal=OUT_OF_REACH)
    assert whole.outcome is not None
    assert second.outcome is not None
    assert [p.epochs for p in second.outcome.points] == [p.epochs for p in whole.outcome.points]
    assert second.outcome.epochs == whole.outcome.epochs


@pytest.mark.parametrize("epochs_max", [4.0, 5.0, 6.0, 8.0])
def test_a_close_trial_is_trained_on_only_where_the_epochs_are_enough(
    given: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs_max: float
) -> None:
    """Even if it fails after all and the best has to be retrained as well."""
    monkeypatch.setattr("edgetune.learn.compress._CLOSE", 1.0)
    for accuracy_min in (0.97, 1.5):
        goal = replace(CLOSE, accuracy_min=accuracy_min, epochs_max=epochs_max)
        made = call(given, tmp_path / f"{accuracy_min}", goal=goal)
        assert made.outcome is not None
        assert made.outcome.epochs <= epochs_max


def test_a_share_that_no_cut_reaches_is_a_trial_that_failed(given: Network, tmp_path: Path) -> None:
    """As far as it goes, on a problem that a handful of filters solve: the end of the road is no error."""
    goal = replace(GOAL, ratio=None, accuracy_drop_max=0.9)
    made = call(given, tmp_path, goal=goal)
    assert made.outcome is not None
    good = [point.share for point in made.outcome.points if point.is_success]
    assert made.outcome.best.share == min(good) <= 0.125
    assert made.outcome.best.parameters == count_parameters(made.outcome.network.module)
    failed = [point for point in made.outcome.points if not point.is_success]
    assert failed and all(point.epochs == 0 for point in failed)
    assert made.trials == len(good), "what cannot be cut is not trained"


def test_where_no_width_can_change_the_network_stays_as_it_is(given: Network, tmp_path: Path) -> None:
    """A multiple of 64 where no layer has as many channels: no smaller network, no traceback."""
    made = call(given, tmp_path, recipe=replace(RECIPE, round_to=64))
    assert made.outcome is not None
    assert bits(made.outcome.network) == bits(given)
    assert made.trials == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"level_of": "macs"},
        {"round_to": None},
        {"distillation": 0.5},
        {"criterion": "l1", "epochs_before": 0, "memory_format": "channels_last"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_each_kind_of_recipe_finds_a_smaller_network(
    given: Network, tmp_path: Path, changes: dict[str, object]
) -> None:
    """Another unit, measured multiples, a teacher, another criterion without tuning."""
    recipe = replace(RECIPE, **changes)  # type: ignore[arg-type]
    made = call(given, tmp_path, recipe=recipe, goal=replace(GOAL, ratio=0.5))
    assert made.outcome is not None
    check_whole(made.outcome, given, unit=recipe.level_of)


def test_a_ratio_of_the_latency_is_measured(given: Network, tmp_path: Path) -> None:
    """In the serving engine: what is found was within the ratio when it was cut."""
    goal = replace(GOAL, ratio=0.97, epochs_max=None)
    made = call(given, tmp_path, recipe=replace(RECIPE, level_of="latency", timing_runs=5), goal=goal)
    assert made.outcome is not None
    assert made.outcome.best.latency_ratio > 0
    assert made.outcome.best.parameters == count_parameters(made.outcome.network.module)


# ---------------------------------------------------------------------------------------------- bounds


def test_no_trial_begins_once_the_epochs_are_spent(given: Network, tmp_path: Path) -> None:
    """Too few for one trial train nothing at all; then enough for one; what was found is finished."""
    for most in (0.1, 1, 4):
        none = call(given, tmp_path / f"{most}", goal=replace(GOAL, epochs_max=most))
        assert none.outcome is not None
        assert (none.trials, none.outcome.epochs) == (0, 0)
        shown = f"{most:g} epoch{'s' * (most != 1)}"
        assert none.outcome.stopped_by == f"what is left of {shown} is too little for a trial and its retraining"
        assert bits(none.outcome.network) == bits(given)
    one = call(given, tmp_path / "one", goal=replace(GOAL, epochs_max=5))
    assert one.outcome is not None
    assert one.trials == 1
    assert one.outcome.stopped_by == "what is left of 5 epochs is too little for a trial and its retraining"
    check_whole(one.outcome, given)


def test_no_trial_begins_once_the_energy_is_spent_and_a_kill_does_not_give_it_back(
    given: Network, tmp_path: Path
) -> None:
    """100 J are used by the first of two starts of one search, and 900 J by the second; 550 J are allowed."""
    material, found = easy_material(), None
    for stops_in_told in (True, False):
        control = RecordingControl(stop_after=[])
        control.energy_j = 100.0 if stops_in_told else 900.0

        def told(_: Point, control: RecordingControl = control, *, stops: bool = stops_in_told) -> None:
            if stops:
                control.stop()

        goal = replace(GOAL, joules_max=550.0, epochs_max=None)
        with contextlib.suppress(StopAskedError):
            found = compress(given, material, RECIPE, goal, work=tmp_path, control=control, told=told)
    assert found is not None
    assert found.joules == 1000.0
    assert len(found.points) == 1
    assert found.stopped_by == "nothing is left of 0.153Wh"


@pytest.mark.parametrize("epochs_max", [0.5, 1, 2, 3, 4, 5, 6, 7, 8, 20])
def test_no_more_epochs_are_spent_than_allowed(given: Network, tmp_path: Path, epochs_max: float) -> None:
    """Tuning, trials and the retraining of what they find are all in the bound."""
    made = call(given, tmp_path, goal=replace(GOAL, ratio=0.2, epochs_max=epochs_max))
    assert made.outcome is not None
    assert made.outcome.epochs <= epochs_max
    assert made.phases.count("retrain") == (made.outcome.best != made.outcome.base)


@pytest.mark.parametrize(("minutes", "trials"), [(59, 0), (61, 1)])
def test_a_trial_that_time_and_energy_would_not_let_be_retrained_is_not_begun(
    given: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, trials: int
) -> None:
    """Twelve minutes and watt-hours an epoch: the tuning takes one, a trial and a retraining up to four more."""
    spent: list[_Search] = []

    class Clock:
        """An epoch is twelve minutes, whatever it takes here."""

        def monotonic(self) -> float:
            return 720.0 * spent[0]._state.facts["epochs"] if spent else 0.0

    clock = Clock()
    monkeypatch.setattr("edgetune.learn.compress.time", clock)
    before = _Search._tune

    def tune(search: _Search) -> tuple[Network, str]:
        spent.append(search)
        return before(search)

    monkeypatch.setattr(_Search, "_tune", tune)
    for number, bound in enumerate(({"seconds_max": 60.0 * minutes}, {"joules_max": 3600.0 * minutes})):
        spent.clear()
        control = RecordingControl()
        monkeypatch.setattr(
            type(control), "energy_j", property(lambda _: 60.0 * clock.monotonic(), lambda *_: None), raising=False
        )
        made = compress(
            given, easy_material(), RECIPE, replace(OUT_OF_REACH, epochs_max=None, **bound), work=tmp_path / f"{number}",
            control=control,
        )  # fmt: skip
        assert len(made.points) == trials
        assert re.fullmatch(
            r"what is left of \d+\.?\d*(min|h|Wh) is too little for a trial and its retraining", made.stopped_by
        )


def test_a_tuning_ends_as_soon_as_its_pace_leaves_no_time_for_a_trial(
    given: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight epochs of an hour each are ahead, and six hours allowed: one epoch tells; with more time it goes on."""
    control = RecordingControl()
    epoch_s = 3600.0

    class Clock:
        """An hour for each six steps."""

        def monotonic(self) -> float:
            return epoch_s * sum(line["event"] == "progress" for line in control.said) / 6

    monkeypatch.setattr("edgetune.learn.compress.time", Clock())
    recipe, goal = replace(RECIPE, epochs_before=4), replace(GOAL, seconds_max=6 * epoch_s, epochs_max=None)
    made = compress(given, easy_material(), recipe, goal, work=tmp_path, control=control)
    assert (made.points, made.epochs) == ([], 1)
    assert made.stopped_by == "what is left of 6h is too little for a trial and its retraining"
    steps = sum(line["event"] == "progress" for line in control.said)
    again = compress(given, easy_material(), recipe, goal, work=tmp_path, control=control)
    assert (again.points, again.epochs, again.stopped_by) == ([], 1, made.stopped_by)
    assert sum(line["event"] == "progress" for line in control.said) == steps, "known by now: nothing is trained again"
    more = compress(given, easy_material(), recipe, replace(goal, seconds_max=40 * epoch_s), work=tmp_path)
    assert more.points


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"round_to": 64}, r"\d+ % of the parameters cannot be removed: .*, in multiples of 64"),
        ({"level_of": "macs"}, r"no smaller network kept the accuracy"),
    ],
)
def test_why_nothing_was_found_is_told(given: Network, tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    """Nothing could be cut so far, or what was cut lost too much."""
    goal = GOAL if "round_to" in changes else OUT_OF_REACH
    made = call(given, tmp_path, recipe=replace(RECIPE, **changes), goal=goal)
    assert made.outcome is not None
    assert re.fullmatch(why, made.outcome.stopped_by)
    assert all(bool(point.why) == ("round_to" in changes) for point in made.outcome.points)


def test_a_search_whose_state_is_lost_in_a_trial_begins_anew(given: Network, tmp_path: Path) -> None:
    """The checkpoint of that trial belongs to nothing any more."""
    assert call(given, tmp_path, stop_after_steps=6 + 3).outcome is None
    path = tmp_path / "search.json"
    path.write_bytes(path.read_bytes()[:40])
    made = call(given, tmp_path)
    assert made.outcome is not None
    assert made.outcome.best.cut is not None
    check_whole(made.outcome, given)


def test_every_trial_tells_how_it_was_cut_also_after_a_stop_in_its_middle(given: Network, tmp_path: Path) -> None:
    """With the multiples that were timed: median, spread and what each keeps of the scores."""
    recipe = replace(RECIPE, round_to=None)
    assert call(given, tmp_path, recipe=recipe, stop_after_steps=6 + 3).outcome is None
    made = call(given, tmp_path, recipe=recipe)
    assert made.outcome is not None
    cuts = [*(point.cut for point in made.outcome.points), made.outcome.best.cut]
    for cut in cuts:
        assert cut is not None
        assert len(cut["candidates"]) > 1
        assert {"round_to", "median_ms", "ratio_quartiles", "kept_share"} <= cut["candidates"][0].keys()
        assert cut["groups"]


def test_a_bound_on_the_memory_decides_in_how_many_parts_a_step_goes_once(
    given: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As planned by the first call and no later one; the same network as when the parts are asked for."""
    levels: list[float] = []

    class Planned:
        """Two parts are what fits."""

        def __init__(self, *_: object, course: Course, **__: object) -> None:
            levels.append(course.level)

        def plan(self) -> object:
            return SimpleNamespace(fits=True, accumulation=2)

    recipe = replace(RECIPE, memory_max_mib=4000.0)
    monkeypatch.setattr("edgetune.learn.workbench.Planner", Planned)
    first = call(given, tmp_path / "two", recipe=recipe, stop_in_told=True)
    assert first.outcome is None
    made = call(given, tmp_path / "two", recipe=recipe)
    assert levels == [0.5], "planned once"
    asked = call(given, tmp_path / "asked", recipe=replace(RECIPE, accumulation=2))
    assert made.outcome is not None and asked.outcome is not None
    assert bits(made.outcome.network) == bits(asked.outcome.network)
    plain = call(given, tmp_path / "plain")
    assert plain.outcome is not None
    assert bits(plain.outcome.network) != bits(made.outcome.network)


def test_where_memory_had_the_network_cut_first_no_trial_is_larger_than_fits(given: Network, tmp_path: Path) -> None:
    """Half of it fits and fails; the next try, of 71 %, would not fit: the search says so and ends."""
    with (
        mock.patch("edgetune.learn.tuner.Tuner.prunes_first", return_value="short"),
        mock.patch("edgetune.learn.workbench.most_of_cut_mib", lambda _t, _n, share, _r: 1000 * share),
        mock.patch("edgetune.learn.workbench.Workbench.fit"),
    ):
        made = call(given, tmp_path, recipe=replace(RECIPE, memory_max_mib=600.0), goal=OUT_OF_REACH)
    assert made.outcome is not None
    assert [point.share for point in made.outcome.points] == [0.5]
    assert made.outcome.stopped_by == "a network of 71% would take up to 707 MiB of 600 in training"


def test_a_trial_that_was_begun_is_finished_whatever_is_left(given: Network, tmp_path: Path) -> None:
    """An hour is over while it trains: the call after that ends it, and begins no other."""
    goal = replace(OUT_OF_REACH, seconds_max=3600.0)
    assert call(given, tmp_path, goal=goal, stop_after_steps=6 + 3).outcome is None
    path = tmp_path / "search.json"
    state = json.loads(path.read_text())
    assert state["facts"]["seconds"] > 0, "what a stop interrupts counts"
    path.write_text(json.dumps({**state, "facts": {**state["facts"], "seconds": 3600.0}}))
    made = call(given, tmp_path, goal=goal)
    assert made.outcome is not None
    assert len(made.outcome.points) == 1
    assert made.outcome.stopped_by == "nothing is left of 1h"


def test_a_hopeless_trial_is_given_up(given: Network, tmp_path: Path) -> None:
    """Of nine epochs each: nothing gains a point an epoch on a problem that is solved."""
    made = call(given, tmp_path, goal=replace(OUT_OF_REACH, trial_epochs=9))
    assert made.outcome is not None
    assert made.trials == len(made.outcome.points) == 3
    assert all(2 <= point.epochs <= 4 for point in made.outcome.points), [p.epochs for p in made.outcome.points]


def test_no_trial_begins_once_the_time_is_over(given: Network, tmp_path: Path) -> None:
    """No time at all tries nothing; time that runs out over two calls is counted over both."""
    nothing = call(given, tmp_path / "none", goal=replace(GOAL, seconds_max=0.0))
    assert nothing.outcome is not None
    assert (nothing.trials, nothing.outcome.stopped_by) == (0, "nothing is left of 0s")
    goal = replace(GOAL, seconds_max=3600.0)
    first = call(given, tmp_path / "hour", goal=goal, stop_in_told=True)
    assert (first.outcome, len(first.told)) == (None, 1)
    path = tmp_path / "hour" / "search.json"
    state = json.loads(path.read_text())
    path.write_text(
        json.dumps({**state, "facts": {**state["facts"], "seconds": 3600.0}})
    )  # as if that trial had taken an hour
    second = call(given, tmp_path / "hour", goal=goal)
    assert second.outcome is not None
    assert (second.trials, second.outcome.stopped_by) == (0, "nothing is left of 1h")
    assert second.outcome.seconds >= 3600
    assert second.outcome.points == first.told
    check_whole(second.outcome, given)


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("split", ["training", "validation"])
def test_no_images_are_refused_with_a_sentence(given: Network, tmp_path: Path, split: str) -> None:
    """Before anything is done or written."""
    material = replace(easy_material(), **{split: easy_data(0, 3)})  # type: ignore[arg-type]
    with pytest.raises(NoSamplesError, match=f"there is no {split} image") as raised:
        call(given, tmp_path / "work", material=material)
    assert "selects on validation" in raised.value.hint
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 50.0])
def test_a_ratio_that_is_none_is_refused(given: Network, tmp_path: Path, ratio: float) -> None:
    """50 for 50 %, and nothing left."""
    with pytest.raises(UsageError, match="has to lie between 0 and 1"):
        call(given, tmp_path, goal=replace(GOAL, ratio=ratio))


def test_a_strategy_that_there_is_not_is_refused(given: Network, tmp_path: Path) -> None:
    """A misspelt one is not another one."""
    with pytest.raises(UsageError, match="strategy"):
        call(given, tmp_path, goal=replace(GOAL, strategy="darp"))


@pytest.mark.parametrize("label", [-1, 3])
@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_label_that_no_output_has_is_refused(given: Network, tmp_path: Path, part: str, label: int) -> None:
    """An image without a label, or of a class that the network does not know: a sentence, and nothing is begun."""
    material = easy_material()
    data = getattr(material, part)
    labels = data.labels.copy()
    labels[1] = label
    with pytest.raises(UsageError, match=rf"1 of {len(data)} {part} images have a label outside 0 to 2") as raised:
        call(given, tmp_path / "work", material=replace(material, **{part: replace(data, labels=labels)}))
    assert "label" in raised.value.hint
    assert not (tmp_path / "work").exists()


def test_a_criterion_whose_scores_are_not_numbers_ends_the_search_with_a_sentence(
    given: Network, tmp_path: Path
) -> None:
    """It is no level that is out of reach, which a search would try again with less."""
    with (
        mock.patch(
            "edgetune.learn.criteria.weights.MeanMagnitude.score",
            lambda _self, _model, groups, _batches: [torch.full((group.channels,), float("nan")) for group in groups],
        ),
        pytest.raises(UnprunableError, match="are not numbers"),
    ):
        call(given, tmp_path, recipe=replace(RECIPE, criterion="l1"))


def test_a_network_that_cannot_be_pruned_is_refused_before_any_training(tmp_path: Path) -> None:
    """ShuffleNet's channels are mixed in a way that cutting breaks."""
    network = new_network("torchvision:shufflenet_v2_x0_5", 3)
    size = replace(SIZE, height=32, width=32)
    data = easy_data(6, 1)
    data = replace(data, pixels=np.zeros((6, 32, 32, 3), np.uint8), preprocess=size)
    material = Material(training=data, validation=data, preprocess=size, classes=("r", "g", "b"))
    with pytest.raises(UnprunableError):
        call(network, tmp_path / "work", material=material)
    assert not (tmp_path / "work").exists()


def test_trials_without_an_epoch_are_judged_as_they_are_cut(given: Network, tmp_path: Path) -> None:
    """No retraining in a trial is a way to search, too."""
    made = call(given, tmp_path, goal=replace(GOAL, trial_epochs=0, ratio=0.9))
    assert made.outcome is not None
    assert all(point.epochs == 0 for point in made.outcome.points)


# ---------------------------------------------------------------------------------------------- stop, go on, damage


def same_as_whole(made: Call, whole: tuple[Call, Path]) -> None:
    """Ends with the same points and the same bits as the compression in one go."""
    assert made.outcome is not None and whole[0].outcome is not None
    assert [timeless(p) for p in made.outcome.points] == [timeless(p) for p in whole[0].outcome.points]
    assert timeless(made.outcome.best) == timeless(whole[0].outcome.best)
    assert bits(made.outcome.network) == bits(whole[0].outcome.network)


def test_a_finished_compression_trains_nothing_when_it_is_called_again(
    given: Network, whole: tuple[Call, Path]
) -> None:
    """The result is there at once, the same."""
    again = call(given, whole[1])
    assert (again.phases, again.told) == ([], [])
    same_as_whole(again, whole)
    assert again.outcome is not None and whole[0].outcome is not None
    assert again.outcome.epochs == whole[0].outcome.epochs
    assert again.outcome.base == whole[0].outcome.base


@pytest.mark.parametrize("steps", [2, 8, 14, 20, 22])
def test_a_stop_is_obeyed_and_a_second_call_goes_on(
    given: Network, tmp_path: Path, whole: tuple[Call, Path], steps: int
) -> None:
    """In the tuning, in a trial, in the retraining: what was finished is not done again, and the end is the same."""
    first = call(given, tmp_path, stop_after_steps=steps)
    assert first.outcome is None, "it was stopped"
    assert whole[0].outcome is not None
    second = call(given, tmp_path)
    same_as_whole(second, whole)
    assert second.outcome is not None
    assert [timeless(p) for p in [*first.told, *second.told]] == [timeless(p) for p in second.outcome.points]
    assert second.trials == len(second.outcome.points) - len(first.told)
    assert ("tune" in second.phases) == ("score" not in first.phases)
    assert second.outcome.epochs == whole[0].outcome.epochs


def test_a_stop_between_two_trials_loses_none(given: Network, tmp_path: Path, whole: tuple[Call, Path]) -> None:
    """Asked for when a trial is told: each call makes one trial."""
    told = []
    for _ in range(2):
        made = call(given, tmp_path, stop_in_told=True)
        assert made.outcome is None
        assert made.trials == len(made.told) == 1
        told += made.told
    last = call(given, tmp_path)
    assert (last.trials, last.phases) == (0, ["retrain"])
    same_as_whole(last, whole)
    assert whole[0].outcome is not None
    assert [timeless(p) for p in told] == [timeless(p) for p in whole[0].outcome.points]


@pytest.mark.parametrize(
    "change",
    [
        lambda a: {**a, "goal": replace(GOAL, ratio=0.6)},
        lambda a: {**a, "recipe": replace(RECIPE, seed=1)},
        lambda a: {**a, "material": replace(easy_material(), validation=easy_data(60, 2, noise=140))},
        lambda a: {**a, "material": replace(easy_material(), training=easy_data(96, 1, noise=140))},
        lambda a: {**a, "material": replace(easy_material(), validation=easy_data(57, 2))},
    ],
    ids=["goal", "seed", "other validation pixels", "other training pixels", "fewer images"],
)
def test_another_problem_in_the_same_directory_starts_anew(
    given: Network, tmp_path: Path, change: Callable[[dict[str, object]], dict[str, object]]
) -> None:
    """Another goal, recipe or other pictures under the same ids: nothing of the earlier search is taken over."""
    assert len(call(given, tmp_path, stop_in_told=True).told) == 1
    other = change({})
    made = call(given, tmp_path, **other)  # type: ignore[arg-type]
    fresh = call(given, tmp_path / "fresh", **other)  # type: ignore[arg-type]
    assert made.phases == fresh.phases
    assert made.outcome is not None and fresh.outcome is not None
    assert [timeless(p) for p in made.outcome.points] == [timeless(p) for p in fresh.outcome.points]
    assert bits(made.outcome.network) == bits(fresh.outcome.network)


def test_another_network_in_the_same_directory_starts_anew(given: Network, tmp_path: Path) -> None:
    """One weight that differs is another network."""
    assert len(call(given, tmp_path, stop_in_told=True).told) == 1
    other = copy.deepcopy(given)
    with torch.no_grad():
        other.module.get_submodule("head").bias[0] += 1e-3  # type: ignore[operator]
    made = call(other, tmp_path)
    assert made.phases[0] == "tune"
    assert made.outcome is not None and made.told == made.outcome.points


def cut_short(path: Path, share: float) -> None:
    """Leave the beginning of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_a_cut_off_search_file_starts_anew(
    given: Network, tmp_path: Path, whole: tuple[Call, Path], share: float
) -> None:
    """A disk that lost its end: no traceback, and the whole result."""
    assert len(call(given, tmp_path, stop_in_told=True).told) == 1
    cut_short(tmp_path / "search.json", share)
    same_as_whole(call(given, tmp_path), whole)


@pytest.mark.parametrize("text", [b"[]", b"{}", b"null", b"\xff\xfe", b'{"of": "x"}'])
def test_a_search_file_that_is_something_else_starts_anew(
    given: Network, tmp_path: Path, whole: tuple[Call, Path], text: bytes
) -> None:
    """JSON of another kind, or no text at all."""
    (tmp_path / "search.json").write_bytes(text)
    same_as_whole(call(given, tmp_path), whole)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
@pytest.mark.parametrize("name", ["tune", "best"])
def test_a_cut_off_checkpoint_is_made_again(
    given: Network, tmp_path: Path, whole: tuple[Call, Path], name: str, share: float
) -> None:
    """A network that was found and cannot be read is not forgotten in silence: it is looked for again."""
    assert [point.is_success for point in call(given, tmp_path, stop_in_told=True).told] == [True]
    (path,) = tmp_path.glob(f"{name}*/*.safetensors")
    cut_short(path, share)
    same_as_whole(call(given, tmp_path), whole)


def test_a_cut_off_result_is_made_again_from_the_best(given: Network, tmp_path: Path, whole: tuple[Call, Path]) -> None:
    """Only the retraining is done again."""
    call(given, tmp_path)
    (path,) = (tmp_path / "finished").glob("*.safetensors")
    cut_short(path, 0.5)
    again = call(given, tmp_path)
    assert again.phases == ["retrain"]
    same_as_whole(again, whole)


CHILD = """
import sys
from pathlib import Path
from test_compress import GOAL, RECIPE, easy_material, trained_network
from edgetune.learn.compress import compress
print("begun", flush=True)
compress(trained_network(), easy_material(), RECIPE, GOAL, work=Path(sys.argv[1]),
         told=lambda point: print("trial", flush=True))
print("ended", flush=True)
"""


def child(work: Path, **environment: str) -> subprocess.Popen[str]:
    """The same compression in a process of its own."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(work)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def test_a_compression_in_another_process_is_the_same(given: Network, tmp_path: Path, whole: tuple[Call, Path]) -> None:
    """Here the result of its process is found finished."""
    process = child(tmp_path)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out.splitlines()) == (0, ["begun", "trial", "trial", "ended"]), err
    made = call(given, tmp_path)
    assert made.phases == []
    same_as_whole(made, whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_kill_at_a_random_moment_loses_at_most_one_trial(
    given: Network, tmp_path: Path, whole: tuple[Call, Path], seed: int
) -> None:
    """SIGKILL some time after it has begun; the second call ends with the whole result, and repeats no finished trial."""
    process = child(tmp_path)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(random.Random(seed).uniform(0.0, 3.0))
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    finished = out.count("trial")
    made = call(given, tmp_path)
    same_as_whole(made, whole)
    assert made.trials <= 2 - finished


@pytest.mark.slow
def test_a_kill_at_every_durable_step_ends_with_the_same_bits(
    given: Network, tmp_path: Path, whole: tuple[Call, Path]
) -> None:
    """Between the network that is kept and the list of trials, too: the same trial is made again from the same start."""
    deaths = 0
    for number in range(100):
        work = tmp_path / str(number)
        process = child(work, EDGETUNE_FAULT=str(number))
        _, err = process.communicate(timeout=300)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, err
        deaths += 1
        same_as_whole(call(given, work), whole)
    assert deaths >= 10
