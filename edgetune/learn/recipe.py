"""
ONE round, top to bottom.

    load -> tune -> score, prune -> retrain -> measure -> export -> time -> publish

An adapting round has no tune and prune, an imprinting one trains nothing (`learn.imprint_round`); a searched one repeats
score, prune and a short training (`learn.round_search`). Everything the weights depend on is in the spec and the samples,
and in what was measured on the way, which the journal keeps (memory format, number type, channel multiple). Where the round
is, is in its checkpoint, so that it can be stopped or killed anywhere and goes on. It ends with the same weights bit for bit
where the spec leaves nothing to a measurement and to a search.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict, replace
from pathlib import Path

from edgetune.errors import WillNotFitError
from edgetune.learn.candidate import Candidate, published_manifest
from edgetune.learn.checkpoint import CHECKPOINT_FILE, Checkpoint, load_checkpoint, save_checkpoint
from edgetune.learn.control import Control, left_whole_words
from edgetune.learn.cost import Size
from edgetune.learn.doubts import contradicted_by
from edgetune.learn.forecaster import peak_mib, process_peak_mib
from edgetune.learn.groups import left_whole
from edgetune.learn.imprint_round import run_imprint
from edgetune.learn.latency import Stopwatch
from edgetune.learn.network import (
    Network,
    rebuild,
    state_tensors,
    widen_head,
)
from edgetune.learn.planning import Course, Planner, Steps, is_hopeless, steps_of
from edgetune.learn.prune import check_prunable
from edgetune.learn.rehearsal import LOGITS_FILE, answer_never_shown, hold_back_new
from edgetune.learn.round_search import search_round, told
from edgetune.learn.round_setup import RoundSetup
from edgetune.learn.shaping import as_pruning, describe_cut
from edgetune.learn.stepping_back import images_of_a_look, keep_known
from edgetune.learn.tuner import RETRAIN, TUNE
from edgetune.serve.engine import Engine
from edgetune.store.durable import remove_dir, remove_file
from edgetune.store.models import version_name
from edgetune.types import Cost, Forecast, Manifest, Pruning, Recipe, RoundKind, RoundSpec, Split
from edgetune.wire import to_plain

_PRUNE, _FINISH = "prune", "finish"
_TRIALS = 4  # of a search that finds what it looks for


def run_round(round_dir: Path, spec: RoundSpec, control: Control) -> Manifest:
    """
    Do a round, or what is left of it, and publish its candidate.

    Args:
        round_dir: holds the checkpoint and the journal.
        spec: what to do.
        control: where progress goes, and where pace and stop come from.

    Returns:
        The candidate's manifest, as published.

    Raises:
        RoundError, ModelError: a named outcome.
        StopAskedError: a stop was asked for; the round can go on from its checkpoint.
    """
    published = published_manifest(spec)
    if published is not None:
        return published
    control.phase("load")
    if spec.kind is RoundKind.IMPRINT:
        return run_imprint(round_dir, spec, control)
    setup = RoundSetup(round_dir, spec, control)
    try:
        round_ = _Round(setup)
        manifest = round_.publish(round_.train())
    finally:
        setup.close()
    for name in (CHECKPOINT_FILE, LOGITS_FILE):
        remove_file(round_dir / name)
    return manifest


def plan_round(round_dir: Path, spec: RoundSpec, control: Control) -> Forecast:
    """
    Only forecast a round, and whether it fits; see `run_round`. Its journal says the rest.

    Raises:
        RoundError, ModelError: as the round would end by itself; for want of room only where nothing can even be loaded.
    """
    control.phase("load")
    setup = RoundSetup(round_dir, spec, control)
    try:
        return _Round(setup).plan()
    finally:
        setup.close()


class _Round:
    """The steps, one after the other, on what the setup has."""

    def __init__(self, setup: RoundSetup) -> None:
        self._setup = setup
        self._spec, self._control, self._journal, self._tuner = setup.spec, setup.control, setup.journal, setup.tuner
        self._base, self._factory, self._source = setup.base, setup.factory, setup.source
        self._splits, self._teacher = setup.splits, setup.teacher
        self._is_pruned = setup.spec.kind is RoundKind.RESHAPE and setup.recipe.level > 0
        # Without validation samples there is nothing that a search could go by: then exactly the level.
        self._is_searched = (
            self._is_pruned and setup.recipe.search != "none" and len(self._splits[Split.VALIDATION]) > 0
        )
        if "search" in self._journal:
            self._is_pruned = "pruning" in self._journal

    @property
    def _recipe(self) -> Recipe:
        return self._setup.recipe

    # ------------------------------------------------------------------------------------------- load

    def _load_network(self) -> Network:
        """The source version with its head widened; proven prunable when it is to be pruned."""
        recipe = self._recipe
        network = self._tuner.place(self._setup.load(self._source))
        if self._journal.forecast is None and is_hopeless(network, self._tuner, recipe, self._spec.history):
            self._plan(network, may_measure=False)
            self._refuse_what_does_not_fit()
        if self._is_pruned:
            size = self._source.preprocess
            groups = check_prunable(network, size.height, size.width, self._control.beat)
            whole = left_whole(network.module, network.head, groups)
            self._journal["left_whole"] = left_whole_words(whole)
            if not self._is_searched:  # a search says it itself
                self._control.left_whole(whole)
            self._control.beat()
        widen_head(network, self._source.classes, self._spec.classes)
        self._tuner.place(network)
        if self._is_pruned and "pruned_first" not in self._journal:
            self._journal["pruned_first"] = self._tuner.prunes_first(network)
            self._journal["scoring_batch"] = self._tuner.scoring_batch
        if "layout" not in self._journal:  # a round that goes on keeps the one it began with: sums depend on it
            self._journal["layout_s"] = self._tuner.settle_layout(network)
            self._journal["layout"] = asdict(self._tuner.layout)
            self._journal["threads_s"] = self._tuner.settle_threads(network)
            self._journal["threads"] = self._tuner.threads
        if self._journal.forecast is None:
            self._plan(network)
        self._refuse_what_does_not_fit()
        return network

    def _begun(self) -> Network:
        """The network that a round without a cut begins with."""
        network = self._setup.load(self._source)
        widen_head(network, self._source.classes, self._spec.classes)
        return self._tuner.place(network)

    def _refuse_what_does_not_fit(self) -> None:
        plan = self._forecast()
        if not plan.fits:
            raise WillNotFitError(f"the round does not fit: {plan.reason}")

    def plan(self) -> Forecast:
        """Load and plan, and nothing more."""
        with contextlib.suppress(WillNotFitError):
            self._load_network()
        return self._forecast()

    def _plan(self, network: Network, *, may_measure: bool = True) -> None:
        """Forecast the round and choose how to run it; once, for what is chosen is part of the result."""
        self._control.phase("plan")
        planner = Planner(
            self._tuner,
            network,
            recipe=self._recipe,
            course=self._course(),
            history=self._spec.history,
            control=self._control,
        )
        plan = planner.plan(may_measure=may_measure)
        self._setup.follow(plan)
        self._journal.forecast = plan
        if self._spec.kind is RoundKind.ADAPT:  # where something is cut, all that is left is trained
            self._journal["update"] = {"update": plan.update, "why": plan.reason}
        self._journal.write()

    def _forecast(self) -> Forecast:
        plan = self._journal.forecast
        assert plan is not None, "a round is planned before it is begun"
        return plan

    def _course(self) -> Course:
        """What the round would do, as far as it is known before it begins."""
        recipe, steps, epoch = self._recipe, self._steps(), self._tuner.epoch_steps
        training, validation = (len(self._splits[split]) for split in (Split.TRAINING, Split.VALIDATION))
        return Course(
            before=steps.before,
            after=steps.after,
            level=recipe.level if self._is_pruned else 0.0,
            trials=_TRIALS if self._is_searched else 0,
            trial_steps=math.ceil(recipe.trial_epochs * epoch),
            judged_images=validation * math.ceil((steps.before + steps.after) / epoch),
            look_images=images_of_a_look(training, validation) if self._may_step_back else 0,
            is_taught=self._teacher is not None and self._teacher.outside is None and recipe.distillation > 0,
            asking=None
            if self._teacher is None
            else self._teacher.asking(self._splits[Split.TRAINING], recipe, is_mixed=self._tuner.mixtures is not None),
        )

    # ------------------------------------------------------------------------------------------- train

    def train(self) -> Network:
        """Tune, prune, retrain: from the checkpoint if there is one."""
        checkpoint = load_checkpoint(self._setup.directory, self._setup.digest)
        if checkpoint is None:
            network = self._load_network()
            phase = TUNE if self._is_pruned else RETRAIN
        else:
            network = self._tuner.place(rebuild(checkpoint.description, checkpoint.network, self._spec.builders))
            phase = checkpoint.phase
        if self._is_searched and phase == TUNE:
            network, phase = self._search(network)
        steps = self._steps()
        if phase == TUNE:
            self._control.phase(TUNE)
            self._tuner.fine_tune(network, TUNE, steps.before, resume=checkpoint, save=self._keep)
            phase, checkpoint = _PRUNE, None
            self._save(_PRUNE, network)
        if phase == _PRUNE:
            network = self._prune(network)
            phase, checkpoint = RETRAIN, None
            self._save(RETRAIN, network)
        if phase == RETRAIN:
            self._control.phase(RETRAIN)
            self._tuner.fine_tune(network, RETRAIN, steps.after, resume=checkpoint, save=self._keep)
            self._hold_back(network)
            self._save(_FINISH, network)
        return network

    @property
    def _may_step_back(self) -> bool:
        is_bounded = self._recipe.old_classes_drop_max is not None and len(self._splits[Split.VALIDATION]) > 0
        return self._tuner.mixtures is not None and is_bounded and not self._is_pruned

    def _hold_back(self, network: Network) -> None:
        """Keep what new classes take from old ones, and what classes that nothing shows take, within what the gate allows."""
        drop_max = self._recipe.old_classes_drop_max
        if self._tuner.mixtures is not None and self._tuner.updating.name != "latent":
            if self._may_step_back and drop_max is not None:
                self._journal["kept_of_training"] = keep_known(
                    network,
                    self._begun(),
                    known=[i for i, label in enumerate(self._spec.classes) if label in self._source.classes],
                    training=self._splits[Split.TRAINING],
                    validation=self._splits[Split.VALIDATION],
                    drop_max=drop_max / 2,
                    normaliser=self._tuner.normaliser,
                    beat=self._control.beat,
                )
            self._journal["answered_readily"] = answer_never_shown(
                network,
                self._setup.never_shown,
                recipe=self._recipe,
                validation=self._splits[Split.VALIDATION],
                normaliser=self._tuner.normaliser,
                beat=self._control.beat,
            )
        self._journal["held_back"] = hold_back_new(
            network,
            spec=self._spec,
            recipe=self._recipe,
            base=self._base,
            validation=self._splits[Split.VALIDATION],
            normaliser=self._tuner.normaliser,
            beat=self._control.beat,
        )
        self._journal.write()

    def _steps(self) -> Steps:
        is_first, recipe = bool(self._journal.get("pruned_first")), self._recipe
        if recipe.max_steps is not None and "search" in self._journal:  # which found nothing
            searched = math.ceil(self._journal["search"]["epochs"] * self._tuner.epoch_steps)
            recipe = replace(recipe, max_steps=max(0, recipe.max_steps - searched))
        return steps_of(recipe, self._tuner.epoch_steps, is_cut=self._is_pruned, is_cut_first=is_first)

    def _keep(self, state: Checkpoint) -> None:
        save_checkpoint(self._setup.directory, state, self._setup.digest)
        self._setup.note_teacher()

    def _search(self, network: Network) -> tuple[Network, str]:
        """As far towards the level as the validation samples allow; and what is left to do: nothing, or a retraining."""
        outcome = search_round(
            network,
            spec=self._spec,
            recipe=self._recipe,
            base=self._base,
            splits=self._splits,
            preprocess=self._source.preprocess,
            tuner=self._tuner,
            prunes_first=bool(self._journal.get("pruned_first")),
            mixtures=self._tuner.mixtures,
            teacher=None if self._teacher is None else self._teacher.by_sample,
            work=self._setup.directory / "search",
            control=self._control,
        )
        self._journal["search"] = told(outcome)
        is_smaller = outcome.best is not outcome.base
        if is_smaller:
            best = asdict(outcome.best)
            cut = best.pop("cut") or {}
            self._journal["pruning"] = {**cut, **best, "round_to": outcome.network.describe().round_to()}
        self._is_pruned = is_smaller
        self._journal.write()
        found = self._tuner.place(outcome.network)
        phase = _FINISH if is_smaller else RETRAIN
        if is_smaller:
            self._hold_back(found)
        self._save(phase, found)
        remove_dir(self._setup.directory / "search")
        return found, phase

    def _save(self, phase: str, network: Network) -> None:
        state = Checkpoint(phase=phase, description=network.describe(), network=state_tensors(network.module))
        save_checkpoint(self._setup.directory, state, self._setup.digest)
        self._control.beat()

    def _prune(self, network: Network) -> Network:
        recipe, spec = self._recipe, self._spec
        factory = Path(spec.models_dir) / version_name(self._factory.version)
        engine = Engine.load(factory, threads=spec.serving_threads)
        stopwatch = Stopwatch(engine, self._source.preprocess, runs=recipe.timing_runs, beat=self._control.beat)
        cost = self._factory.cost
        whole = Size(cost.parameters, cost.macs)
        shape, ranking = self._tuner.cut(network, share=1 - recipe.level, whole=whole, stopwatch=stopwatch)
        engine.close()
        self._journal["pruning"] = describe_cut(shape, ranking)
        self._journal.write()
        return shape.network

    def publish(self, network: Network) -> Manifest:
        """Export, compare with the base in the serving engine, publish."""
        self._note_doubts()
        candidate = Candidate(
            self._spec,
            directory=self._setup.directory / "candidate",
            base=self._base,
            preprocess=self._source.preprocess,
            pruning=self._pruning,
            splits=self._splits,
            timing_runs=self._recipe.timing_runs,
            control=self._control,
            taught=None if self._teacher is None else self._teacher.taught,
        )
        manifest = candidate.publish(network)
        self._note_measured()
        return manifest

    def _note_measured(self) -> None:
        """What it took, for this board's next forecasts."""
        other_mib = peak_mib()
        self._journal["measured"] = {
            "points": [to_plain(point) for point in self._tuner.measured.values()],
            "peak_mib": process_peak_mib(),
            "other_mib": other_mib,
            "ranking_share": self._tuner.ranking_share,
            "stepping_s": round(self._tuner.stepping_s, 3),
            "slept_s": round(self._control.slept_s, 3),
        }
        self._journal.write()

    def _note_doubts(self) -> None:
        """In the journal, for the case that the gate refuses: which labels the served version contradicts."""
        if "doubts" in self._journal:
            return
        self._journal["doubts"] = contradicted_by(
            self._base, self._spec, self._splits[Split.TRAINING], beat=self._control.beat
        )
        self._journal.write()

    def _pruning(self, cost: Cost) -> Pruning | None:
        """What the manifest says of the cut, once the candidate's cost is known."""
        if self._spec.kind is RoundKind.ADAPT:
            return self._base.pruning
        if not self._is_pruned:
            return None
        whole, found = self._factory.cost, self._journal["pruning"]
        return as_pruning(
            self._recipe,
            level_asked=self._recipe.level,
            round_to=found["round_to"],
            whole=Size(whole.parameters, whole.macs),
            left=Size(cost.parameters, cost.macs),
            latency_ratio=found["latency_ratio"],
        )
