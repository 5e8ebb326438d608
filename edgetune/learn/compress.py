"""
Compress a network to what a set of images needs: the engine of a round without the daemon.

    goal = Goal(accuracy_drop_max=0.01, ratio=0.5)           # within 1 point, at half the latency
    material = Material(training=..., validation=..., preprocess=..., classes=(...))
    outcome = compress(network, material, Recipe(level_of="latency"), goal, work=Path("work"))
    outcome.network                                            # the smallest that kept the accuracy, retrained

What was tried is kept in `work`: killed and called again with the same arguments, it goes on where it was.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from edgetune import units
from edgetune.decide.search import Dapr, Steps, Strategy, Trial, is_hopeless
from edgetune.errors import NoSamplesError, OutOfReachError, UsageError
from edgetune.learn.control import Control, SilentControl
from edgetune.learn.data import LabelledImages
from edgetune.learn.finetune import never
from edgetune.learn.goal import Goal, Material, Outcome, Point
from edgetune.learn.groups import left_whole
from edgetune.learn.layout import arrange
from edgetune.learn.mixtures import Mixtures
from edgetune.learn.network import Network
from edgetune.learn.prune import check_prunable
from edgetune.learn.schedules import settle
from edgetune.learn.search_state import SearchState, digest_of
from edgetune.learn.transfer import Teacher
from edgetune.learn.tuner import RETRAIN, TUNE
from edgetune.learn.workbench import Workbench
from edgetune.types import Recipe

__all__ = ["Goal", "Material", "Outcome", "Point", "compress"]

_STRATEGIES = ("steps", "dapr")
# A trial that is so close to what it has to reach is trained on: the rest of the retraining was seen to add 5 points.
_CLOSE = 0.04
_ROUNDING = 1 + 1e-9
_LEAST_RETRAINING = 0.5  # of the recipe's epochs, for a network whose trials have trained it already


def compress(
    network: Network,
    material: Material,
    recipe: Recipe,
    goal: Goal,
    *,
    work: Path,
    threads: int = 1,
    round_id: int = 0,
    control: Control | None = None,
    told: Callable[[Point], None] = lambda _: None,
    teacher: Teacher | None = None,
    mixtures: Mixtures | None = None,
) -> Outcome:
    """
    Find the smallest network that keeps the accuracy, and retrain it.

    tune -> (rank, cut, retrain briefly, ask the validation samples) again and again -> retrain

    Args:
        network: as given; not changed.
        material: what it is to be good at.
        recipe: how to score, cut and train; its `level` is not used.
        goal: when a smaller network is good enough, and when to stop.
        work: a directory for what must outlive a kill.
        threads: of the serving engine that latencies are measured with.
        round_id: part of every seed.
        control: sets the pace, asks for a stop.
        told: hears of each trial.
        teacher: asked where the recipe distils; None: the network as given.
        mixtures: of the training images, that it is asked about beside them; None: nothing else.

    Raises:
        UnprunableError: the network cannot be pruned, and nothing was trained; or the criterion's scores cannot rank filters.
        UsageError: the goal or the recipe asks for what there is not.
        WillNotFitError: the recipe bounds the memory, and by its forecast the search passes that.
        NoSamplesError: there is nothing to train or to validate on.
        StopAskedError: a stop was asked for; call again to go on.
    """
    for name in ("training", "validation"):
        if len(getattr(material, name)) == 0:
            raise NoSamplesError(f"there is no {name} image", hint="a search needs both: it selects on validation")
        _check_labels(name, getattr(material, name), network.num_classes)
    if goal.ratio is not None and not 0 < goal.ratio < 1:
        raise UsageError(f"a ratio of {goal.ratio} is asked for; it has to lie between 0 and 1")
    if goal.strategy not in _STRATEGIES:
        raise UsageError(f"there is no strategy {goal.strategy!r}", hint=f"use {' or '.join(_STRATEGIES)}")
    recipe = settle(recipe, network.architecture)
    groups = check_prunable(network, material.preprocess.height, material.preprocess.width)
    control = control or SilentControl()
    control.left_whole(left_whole(network.module, network.head, groups))
    return _Search(
        network,
        material,
        recipe,
        goal,
        work=work,
        threads=threads,
        round_id=round_id,
        control=control,
        told=told,
        teacher=teacher,
        mixtures=mixtures,
    ).run()


def _check_labels(name: str, data: LabelledImages, num_classes: int) -> None:
    outside = int(((data.labels < 0) | (data.labels >= num_classes)).sum())
    if outside:
        raise UsageError(
            f"{outside} of {len(data)} {name} images have a label outside 0 to {num_classes - 1}, the network's outputs",
            hint="leave images without a label out; let the network know their class (edgetune.learn.network.widen_head)",
        )


class _Search:
    """One call of `compress`."""

    def __init__(
        self,
        network: Network,
        material: Material,
        recipe: Recipe,
        goal: Goal,
        *,
        work: Path,
        threads: int,
        round_id: int,
        control: Control,
        told: Callable[[Point], None],
        teacher: Teacher | None,
        mixtures: Mixtures | None,
    ) -> None:
        self._goal, self._told, self._control = goal, told, control
        self._state = SearchState(work, digest_of(network, material, recipe, goal), network.builders)
        self._bench = Workbench(
            network,
            material,
            recipe,
            state=self._state,
            threads=threads,
            round_id=round_id,
            control=self._control,
            teacher=teacher,
            mixtures=mixtures,
            saved=self._write_state,
        )
        self._recipe = self._bench.recipe
        self._strategy: Strategy = Dapr() if goal.strategy == "dapr" else Steps(target=goal.ratio)
        if (first := self._strategy.propose([])) is not None:
            self._bench.fit(level=1 - first.share)
        self._began_s = time.monotonic() - float(self._state.facts["seconds"])
        self._joules_before: float | None = self._state.facts["joules"]

    def _joules(self) -> float | None:
        """Of all starts of this search."""
        before, since = self._joules_before, self._control.energy_j
        return before if since is None else (before or 0.0) + since

    def _write_state(self) -> None:
        self._state.facts["seconds"] = round(time.monotonic() - self._began_s, 1)
        self._state.facts["joules"] = self._joules()
        self._state.write()

    # ------------------------------------------------------------------------------------------- the search

    def run(self) -> Outcome:
        """All of it, or what is left."""
        base = self._base()
        wanted = max(base.accuracy - self._goal.accuracy_drop_max, self._goal.accuracy_min)
        tuned, stopped_by = self._bench.kept(TUNE), ""
        if tuned is None:
            tuned, stopped_by = self._tune()
        while not stopped_by and (proposal := self._strategy.propose(self._trials())) is not None:
            stopped_by = "" if self._is_under_way() else self._over_budget() or self._bench.too_large(proposal.share)
            if not stopped_by:
                name = self._state.facts["best"] if proposal.from_best else TUNE
                self._try(name, self._bench.kept(name) or tuned, proposal.share, wanted)
        best = self._bench.kept(self._state.facts["best"])
        if best is None:
            return self._outcome(self._bench.given, base, base, stopped_by or self._why_nothing())
        return self._finish(best, base, stopped_by or "the strategy has nothing left to try")

    def _why_nothing(self) -> str:
        """Why every trial failed: none could be cut so far, or what was cut lost too much."""
        refusals = [str(trial["why"]) for trial in self._state.trials]
        return refusals[-1] if refusals and all(refusals) else "no smaller network kept the accuracy"

    def _base(self) -> Point:
        facts = self._state.facts
        if facts["base"] is None:
            point = self._bench.look(
                self._bench.given, share=1.0, accuracy=self._bench.accuracy(self._bench.given), epochs=0.0, wanted=0.0
            )
            facts["base"] = asdict(point)
            self._write_state()
        return Point(**facts["base"])

    def _tune(self) -> tuple[Network, str]:
        """The network as tuned to the images; and which bound ended that before a trial could come, empty: none."""
        epochs, before = self._recipe.epochs_before, float(self._epochs_of(TUNE))
        if why := self._over_budget(epochs - before, before):
            return self._bench.given, why
        ended_by, done = [""], [epochs]

        def is_over(accuracies: Sequence[float]) -> bool:
            so_far = before + len(accuracies)
            if accuracies and so_far < epochs and (why := self._over_budget(epochs - so_far, so_far)):
                ended_by[0], done[0] = why, so_far
            return bool(ended_by[0])

        network, _ = self._bench.train(TUNE, lambda: copy.deepcopy(self._bench.given), epochs, is_over)
        facts = self._state.facts
        facts["epochs"] += max(0.0, done[0] - facts["tuned"])  # what a bound has ended was spent all the same
        facts["tuned"] = max(done[0], facts["tuned"])
        if not ended_by[0]:
            self._state.keep(TUNE, network)
        self._write_state()
        return network, ended_by[0]

    def _epochs_of(self, phase: str) -> int:
        """Whole ones, that an earlier call trained of a phase that was interrupted."""
        running = self._state.running(phase)
        return 0 if running is None else running[1].step // self._bench.epoch_steps

    def _trials(self) -> list[Trial]:
        points = [Point(**trial) for trial in self._state.trials]
        is_timed = self._recipe.level_of == "latency"  # a cut for latency may come out faster than was asked
        return [
            Trial(
                share=min(p.share, p.latency_ratio) if is_timed and p.is_success else p.share,
                is_success=p.is_success,
                is_limit=p.is_limit,
            )
            for p in points
        ]

    def _is_under_way(self) -> bool:
        """Whether the next trial was begun by an earlier call: what is under way is finished."""
        number = len(self._state.trials)
        return any(self._state.running(f"{phase} {number}") is not None for phase in ("trial", RETRAIN))

    def _over_budget(self, tuning: float = 0.0, tuned: float = 0.0) -> str:
        """
        Which bound another trial, and the retraining of what it finds, would pass at the pace so far; empty: none.

        Args:
            tuning: epochs that come before the trial.
            tuned: epochs of the tuning that is under way.
        """
        ahead = tuning + self._trial_epochs() + (self._recipe.epochs_after if self._is_brief else 0.0)
        return self._too_long(ahead, max(0.0, tuned - self._state.facts["tuned"]))

    def _too_long(self, ahead: float, since: float) -> str:
        """Which bound so many more epochs would pass at the pace so far, `since` of them being not counted yet; empty: none."""
        goal, epochs = self._goal, self._state.facts["epochs"] + since
        for most, spent, is_pace_known, shown in (
            (goal.epochs_max, epochs, True, _epochs),
            (goal.seconds_max, time.monotonic() - self._began_s, epochs > 0, lambda s: units.show(s, "duration")),
            (goal.joules_max, self._joules() or 0.0, epochs > 0, lambda j: units.show(j, "energy")),
        ):
            each = spent / epochs if epochs else 1.0
            if most is not None and spent >= most:
                return f"nothing is left of {shown(most)}"
            if most is not None and is_pace_known and spent + ahead * each > most * _ROUNDING:
                return f"what is left of {shown(most)} is too little for a trial and its retraining"
        return ""

    def _trial_epochs(self) -> float:
        return self._goal.trial_epochs if self._is_brief else self._recipe.epochs_after

    def _try(self, name: str, start: Network, share: float, wanted: float) -> None:
        """Cut, retrain, ask; keep the network if it is good enough, and the trial in any case."""
        number, facts = len(self._state.trials), self._state.facts
        lineage = 0.0 if name == TUNE else facts["lineage"]
        is_limit = self._state.running(f"{RETRAIN} {number}") is not None  # killed there: the trial itself is over
        try:
            if not is_limit:
                network, score, used = self._brief_trial(number, lambda: self._cut(name, start, share), wanted)
        except OutOfReachError as error:  # it cannot be cut that far: a failure like another, told with where it stays
            point = self._bench.look(
                start, share=share, accuracy=self._bench.accuracy(start), epochs=0.0, wanted=math.inf
            )
            self._record(replace(point, why=error.message))
            return
        is_close = self._is_brief and not is_limit and score is not None and wanted - _CLOSE <= score[0] < wanted
        if is_limit or (is_close and self._may_train_on(lineage + used, used)):
            if not is_limit:
                facts["used"] = used
                self._write_state()
            is_limit, used = True, facts["used"]
            epochs = self._left_of_retraining(lineage + used)
            network, score = self._bench.train(f"{RETRAIN} {number}", lambda: network, epochs, never)
            used += epochs
        accuracy = score[0] if score is not None else self._bench.accuracy(network)  # None: a trial without a step
        point = self._bench.look(network, share=share, accuracy=accuracy, epochs=used, wanted=wanted)
        point = replace(point, cut=facts["cut"])
        if point.is_success:
            point = replace(point, is_limit=is_limit and accuracy < wanted + _CLOSE)
            facts["lineage"] = lineage + used
            self._state.keep_best(network)
        self._record(point)

    def _cut(self, name: str, start: Network, share: float) -> Network:
        """Begin a trial; how it was cut is kept, should it be interrupted."""
        network, self._state.facts["cut"] = self._bench.cut(name, start, share)
        self._write_state()
        return network

    def _may_train_on(self, lineage: float, used: float) -> bool:
        """Whether the bounds are enough for a close trial's retraining and, if it fails, for that of the best."""
        facts = self._state.facts
        ahead = self._left_of_retraining(lineage)
        if facts["best"] is not None:
            ahead += self._left_of_retraining(facts["lineage"])
        return not self._too_long(ahead, used)

    @property
    def _is_brief(self) -> bool:
        """Whether a trial is less than the whole retraining."""
        return self._goal.strategy != "dapr"

    def _brief_trial(
        self, number: int, begin: Callable[[], Network], wanted: float
    ) -> tuple[Network, tuple[float, float] | None, float]:
        """The network, its best score, and the epochs that it took."""
        scores: list[float] = []
        epochs = self._trial_epochs()
        before = self._epochs_of(f"trial {number}")

        def is_enough(accuracies: Sequence[float]) -> bool:
            scores[:] = accuracies
            if not self._is_brief or not accuracies:
                return False
            return accuracies[-1] >= wanted or is_hopeless(
                accuracies, wanted - _CLOSE, round(epochs) - before - len(accuracies)
            )

        network, score = self._bench.train(f"trial {number}", begin, epochs, is_enough)
        return network, score, min(float(before + len(scores)), epochs)

    def _left_of_retraining(self, epochs: float) -> float:
        """Of a network that its trials have trained for so many epochs."""
        whole = self._recipe.epochs_after
        return max(_LEAST_RETRAINING * whole, whole - epochs)

    def _record(self, point: Point) -> None:
        self._state.trials.append(asdict(point))
        self._state.facts["epochs"] += point.epochs
        self._write_state()
        self._told(point)

    def _finish(self, best: Network, base: Point, stopped_by: str) -> Outcome:
        """Retrain the smallest one in full: it can only gain."""
        finished = self._bench.kept("finished")
        if finished is None:
            finished = best
            if self._is_brief and not self._trials()[-1].is_limit:  # otherwise it was retrained in full already
                epochs = self._left_of_retraining(self._state.facts["lineage"])
                finished, score = self._bench.train(RETRAIN, lambda: copy.deepcopy(best), epochs, never)
                self._state.facts["epochs"] += epochs
                if score is not None and score[0] < self._bench.accuracy(best):
                    finished = best
            self._state.keep("finished", finished)
            self._write_state()
        *_, last = (Point(**trial) for trial in self._state.trials if trial["is_success"])  # which is the best
        point = self._bench.look(
            finished, share=last.share, accuracy=self._bench.accuracy(finished), epochs=0.0, wanted=0.0
        )
        return self._outcome(finished, base, replace(point, cut=last.cut), stopped_by)

    def _outcome(self, network: Network, base: Point, best: Point, stopped_by: str) -> Outcome:
        arrange(network.module, torch.device("cpu"), "contiguous")
        return Outcome(
            network=network,
            base=base,
            best=best,
            points=[Point(**trial) for trial in self._state.trials],
            epochs=self._state.facts["epochs"],
            seconds=round(time.monotonic() - self._began_s, 1),
            joules=self._joules(),
            stopped_by=stopped_by,
        )


def _epochs(number: float) -> str:
    return f"{number:g} epoch{'s' * (number != 1)}"
