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
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from edgetune.decide.search import Dapr, Steps, Strategy, Trial, is_hopeless
from edgetune.errors import NoSamplesError, UsageError
from edgetune.learn.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from edgetune.learn.control import Control, SilentControl
from edgetune.learn.cost import Size
from edgetune.learn.data import LabelledImages
from edgetune.learn.finetune import validation_score
from edgetune.learn.latency import Stopwatch, export_engine
from edgetune.learn.layout import Layout, arrange
from edgetune.learn.network import Network, rebuild, state_tensors
from edgetune.learn.prune import check_prunable
from edgetune.learn.tuner import RETRAIN, TUNE, Ranking, Tuner, size_of
from edgetune.store.durable import make_dir, write_atomic
from edgetune.types import Preprocess, Recipe
from edgetune.wire import to_json

_STATE = "search.json"
_TRIAL = "trial"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a compression has to keep and what it is after."""

    accuracy_drop_max: float = 0.01  # of the validation top-1 below that of the network as given, 0..1
    ratio: float | None = None  # of the cost (the recipe's `level_of`) that is small enough; None: as far as it goes
    strategy: str = "steps"  # "steps" | "dapr", see decide.search
    trial_epochs: float = 4  # most epochs of one trial of "steps"; "dapr" gives each its full retraining
    epochs_max: float | None = None  # over everything; None: no bound
    seconds_max: float | None = None  # likewise; a trial under way is finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """The images that decide."""

    training: LabelledImages
    validation: LabelledImages  # selects; is never trained on
    preprocess: Preprocess
    classes: tuple[str, ...]  # of the network's outputs, in order


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One network that was looked at: where it lies between small and good."""

    share: float  # asked, of the cost
    parameters: int
    macs: int
    latency_ratio: float  # to the network as given, interleaved
    accuracy: float  # validation top-1
    epochs: float  # that this trial took
    is_success: bool


@dataclass(slots=True)
class Outcome:
    """What a compression found."""

    network: Network
    base: Point  # the network as given
    best: Point  # `network`
    points: list[Point] = field(default_factory=list)  # every trial, in order
    epochs: float = 0.0  # over everything
    seconds: float = 0.0
    stopped_by: str = ""  # why the search ended


def compress(
    network: Network,
    material: Material,
    recipe: Recipe,
    goal: Goal,
    *,
    work: Path,
    threads: int = 1,
    control: Control | None = None,
    told: Callable[[Point], None] = lambda _: None,
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
        control: sets the pace, asks for a stop.
        told: hears of each trial.

    Raises:
        UnprunableError: the network cannot be pruned; nothing was trained.
        NoSamplesError: there is nothing to train or to validate on.
        StopAskedError: a stop was asked for; call again to go on.
    """
    for name in ("training", "validation"):
        if len(getattr(material, name)) == 0:
            raise NoSamplesError(f"there is no {name} image", hint="a search needs both: it selects on validation")
    if goal.ratio is not None and not 0 < goal.ratio < 1:
        raise UsageError(f"a ratio of {goal.ratio} is asked for; it has to lie between 0 and 1")
    check_prunable(network, material.preprocess.height, material.preprocess.width)
    return _Search(network, material, recipe, goal, work=work, threads=threads, control=control, told=told).run()


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
        control: Control | None,
        told: Callable[[Point], None],
    ) -> None:
        self._recipe, self._goal, self._told = recipe, goal, told
        self._control = control or SilentControl()
        self._material = material
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(recipe.threads)
        ancestor = arrange(copy.deepcopy(network).module, self._device, "contiguous").eval()
        self._tuner = Tuner(
            recipe,
            material.training,
            material.validation,
            preprocess=material.preprocess,
            device=self._device,
            control=self._control,
            teacher=ancestor if recipe.distillation > 0 else None,
        )
        self._given = self._tuner.place(copy.deepcopy(network))
        self._whole = size_of(self._given, material.preprocess)
        engine = export_engine(self._given, material.preprocess, threads=threads)
        self._stopwatch = Stopwatch(engine, material.preprocess, runs=recipe.timing_runs, beat=self._control.beat)
        self._strategy: Strategy = Dapr() if goal.strategy == "dapr" else Steps(target=goal.ratio)
        self._digest = _digest(network, material, recipe, goal)
        self._work = work
        make_dir(work)
        self._state = self._read_state()
        self._settle_layout()
        self._began_s = time.monotonic() - float(self._state["seconds"])
        self._rankings: dict[str, Ranking] = {}

    # ------------------------------------------------------------------------------------------- what is kept

    def _read_state(self) -> dict[str, Any]:
        path = self._work / _STATE
        empty: dict[str, Any] = {
            "of": self._digest,
            "points": [],
            "epochs": 0.0,
            "seconds": 0.0,
            "base": None,
            "layout": None,
        }
        if not path.exists():
            return empty
        state: dict[str, Any] = json.loads(path.read_bytes())
        return state if state["of"] == self._digest else empty

    def _settle_layout(self) -> None:
        if self._state["layout"] is None:
            self._tuner.settle_layout(self._given)
            self._state["layout"] = asdict(self._tuner.layout)
        self._tuner.layout = Layout(**self._state["layout"])
        self._tuner.place(self._given)

    def _write_state(self) -> None:
        self._state["seconds"] = round(time.monotonic() - self._began_s, 1)
        write_atomic(self._work / _STATE, json.dumps(self._state, indent=1).encode())

    def _keep(self, name: str, network: Network) -> None:
        make_dir(self._work / name)
        state = Checkpoint(phase=name, description=network.describe(), network=state_tensors(network.module))
        save_checkpoint(self._work / name, state, self._digest)
        self._rankings.pop(name, None)

    def _kept(self, name: str) -> Network | None:
        found = load_checkpoint(self._work / name, self._digest)
        if found is None:
            return None
        return self._tuner.place(rebuild(found.description, found.network, self._given.builders))

    # ------------------------------------------------------------------------------------------- the search

    def run(self) -> Outcome:
        """All of it, or what is left."""
        base = self._base()
        wanted = base.accuracy - self._goal.accuracy_drop_max
        tuned = self._kept(TUNE) or self._tune()
        stopped_by = "the strategy has nothing left to try"
        while (proposal := self._strategy.propose(self._trials())) is not None:
            stopped_by = self._over_budget()
            if stopped_by:
                break
            name = "best" if proposal.from_best else TUNE
            start = self._kept(name) or tuned
            self._try(name, start, proposal.share, wanted)
        best = self._kept("best")
        if best is None:
            return self._outcome(self._given, base, base, stopped_by or "no smaller network kept the accuracy")
        return self._finish(best, base, stopped_by)

    def _base(self) -> Point:
        if self._state["base"] is None:
            point = self._look(self._given, share=1.0, accuracy=self._accuracy(self._given), epochs=0.0, wanted=0.0)
            self._state["base"] = asdict(point)
            self._write_state()
        return Point(**self._state["base"])

    def _tune(self) -> Network:
        network = copy.deepcopy(self._given)
        self._control.phase(TUNE)
        epochs = self._recipe.epochs_before
        self._tuner.fine_tune(network, TUNE, round(epochs * self._tuner.epoch_steps))
        self._state["epochs"] += epochs
        self._keep(TUNE, network)
        self._write_state()
        return network

    def _trials(self) -> list[Trial]:
        return [Trial(share=p["share"], is_success=p["is_success"]) for p in self._state["points"]]

    def _over_budget(self) -> str:
        goal = self._goal
        if goal.epochs_max is not None and self._state["epochs"] >= goal.epochs_max:
            return f"{goal.epochs_max:g} epochs are spent"
        if goal.seconds_max is not None and time.monotonic() - self._began_s >= goal.seconds_max:
            return f"{goal.seconds_max:g} s are spent"
        return ""

    def _try(self, name: str, start: Network, share: float, wanted: float) -> None:
        """Cut, retrain, ask; keep the network if it is good enough, and the trial in any case."""
        if name not in self._rankings:
            self._control.phase("score")
            self._rankings[name] = self._tuner.rank(start)
        self._control.phase("prune")
        shape = self._tuner.shape(
            start, self._rankings[name], share=share, whole=self._whole, stopwatch=self._stopwatch
        )
        network = shape.network
        epochs = self._recipe.epochs_after if self._goal.strategy == "dapr" else self._goal.trial_epochs
        used: list[float] = []

        def is_enough(accuracies: Sequence[float]) -> bool:
            used[:] = accuracies
            left = round(epochs) - len(accuracies)
            if self._goal.strategy == "dapr" or not accuracies:
                return False
            return accuracies[-1] >= wanted or is_hopeless(accuracies, wanted, left)

        self._control.phase(_TRIAL)
        steps = round(epochs * self._tuner.epoch_steps)
        score = self._tuner.fine_tune(network, _TRIAL, steps, is_enough=is_enough)
        assert score is not None, "there are validation samples"
        point = self._look(network, share=share, accuracy=score[0], epochs=float(len(used)), wanted=wanted)
        if point.is_success:
            self._keep("best", network)
        self._state["points"].append(asdict(point))
        self._state["epochs"] += point.epochs
        self._write_state()
        self._told(point)

    def _finish(self, best: Network, base: Point, stopped_by: str) -> Outcome:
        """Retrain the smallest one in full: it can only gain."""
        finished = self._kept("finished")
        if finished is None:
            finished = best
            if self._goal.strategy != "dapr":  # there a trial is the whole retraining
                self._control.phase(RETRAIN)
                before = copy.deepcopy(best)
                epochs = self._recipe.epochs_after
                score = self._tuner.fine_tune(finished, RETRAIN, round(epochs * self._tuner.epoch_steps))
                self._state["epochs"] += epochs
                if score is not None and score[0] < self._accuracy(before):
                    finished = before
            self._keep("finished", finished)
            self._write_state()
        last = self._trials()[-1] if self._trials() else None
        share = min((t.share for t in self._trials() if t.is_success), default=last.share if last else 1.0)
        point = self._look(finished, share=share, accuracy=self._accuracy(finished), epochs=0.0, wanted=0.0)
        return self._outcome(finished, base, point, stopped_by)

    # ------------------------------------------------------------------------------------------- looking

    def _accuracy(self, network: Network) -> float:
        score = validation_score(
            network.module,
            self._material.validation,
            self._tuner.normaliser,
            self._recipe.batch_size,
            self._control,
        )
        return score[0]

    def _look(self, network: Network, *, share: float, accuracy: float, epochs: float, wanted: float) -> Point:
        size: Size = size_of(network, self._material.preprocess)
        return Point(
            share=share,
            parameters=size.parameters,
            macs=size.macs,
            latency_ratio=round(self._stopwatch.ratio(network), 4),
            accuracy=accuracy,
            epochs=epochs,
            is_success=accuracy >= wanted,
        )

    def _outcome(self, network: Network, base: Point, best: Point, stopped_by: str) -> Outcome:
        return Outcome(
            network=network,
            base=base,
            best=best,
            points=[Point(**p) for p in self._state["points"]],
            epochs=self._state["epochs"],
            seconds=round(time.monotonic() - self._began_s, 1),
            stopped_by=stopped_by,
        )


def _digest(network: Network, material: Material, recipe: Recipe, goal: Goal) -> str:
    """Of everything that the outcome depends on: another network, other images or another goal start anew."""
    total = hashlib.sha256(to_json(recipe))
    total.update(json.dumps(asdict(goal)).encode())
    total.update(json.dumps([material.classes, asdict(material.preprocess)], default=list).encode())
    for data in (material.training, material.validation):
        total.update(data.sample_ids.tobytes())
        total.update(data.labels.tobytes())
    for name, tensor in sorted(state_tensors(network.module).items()):
        total.update(name.encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()
