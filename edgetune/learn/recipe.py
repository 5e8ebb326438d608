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
import hashlib
import math
from dataclasses import asdict, replace
from pathlib import Path

import psutil

from edgetune.errors import WillNotFitError
from edgetune.learn.candidate import Candidate, needed_manifest, published_manifest
from edgetune.learn.checkpoint import CHECKPOINT_FILE, Checkpoint, load_checkpoint, save_checkpoint
from edgetune.learn.control import Control, left_whole_words
from edgetune.learn.cost import Size
from edgetune.learn.data import LabelledImages
from edgetune.learn.doubts import contradicted_by
from edgetune.learn.forecaster import peak_mib, process_peak_mib
from edgetune.learn.groups import left_whole
from edgetune.learn.imprint_round import run_imprint
from edgetune.learn.journal import Journal
from edgetune.learn.latency import Stopwatch
from edgetune.learn.layout import Layout, pin_torch
from edgetune.learn.network import (
    Network,
    load_network,
    rebuild,
    state_tensors,
    widen_head,
)
from edgetune.learn.planning import Course, Planner, Steps, is_hopeless, refuse_to_load, steps_of
from edgetune.learn.prune import check_prunable
from edgetune.learn.rehearsal import (
    LOGITS_FILE,
    choose_replay,
    hold_back_new,
    keep_replayed,
    make_rehearsal,
    new_classes,
)
from edgetune.learn.round_samples import gather
from edgetune.learn.round_search import search_round, told
from edgetune.learn.round_teacher import RoundTeacher
from edgetune.learn.schedules import settle
from edgetune.learn.shaping import as_pruning, describe_cut
from edgetune.learn.transfer import has_teacher
from edgetune.learn.tuner import RETRAIN, TUNE, Tuner
from edgetune.serve.engine import Engine
from edgetune.store.durable import remove_dir, remove_file
from edgetune.store.models import version_name
from edgetune.types import BoardHistory, Cost, Forecast, Manifest, Pruning, RoundKind, RoundSpec, Split
from edgetune.wire import to_json, to_plain

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
    round_ = _Round(round_dir, spec, control)
    try:
        network = round_.train()
        manifest = round_.publish(network)
    finally:
        round_.close()
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
    round_ = _Round(round_dir, spec, control)
    try:
        return round_.plan()
    finally:
        round_.close()


class _Round:
    """What all steps of a round share."""

    def __init__(self, round_dir: Path, spec: RoundSpec, control: Control) -> None:
        self._dir = round_dir
        self._spec = spec
        self._control = control
        # The history only says how a round is run, which the journal keeps once it is begun.
        self._digest = hashlib.sha256(to_json(replace(spec, history=BoardHistory()))).hexdigest()
        self._journal = Journal(round_dir, self._digest)
        self._base = needed_manifest(spec, spec.base_version)
        self._factory = needed_manifest(spec, spec.factory_version)
        self._source = self._factory if spec.kind is RoundKind.RESHAPE else self._base
        self._recipe = recipe = settle(spec.recipe, self._source.architecture)
        self._is_pruned = spec.kind is RoundKind.RESHAPE and recipe.level > 0
        self._journal["starts"] = self._journal.get("starts", 0) + 1
        self._journal.setdefault("bare_mib", round(psutil.Process().memory_info().rss / 2**20, 1))
        self._journal.write()
        least = keep_replayed(spec.samples, new_classes(spec, self._base), ())  # replayed ones are chosen later
        count = sum(sample.label is not None for sample in least)
        refuse_to_load(count, recipe, self._source, bare_mib=self._journal["bare_mib"])
        is_begun = "samples" in self._journal
        self._is_searched = self._is_pruned and recipe.search != "none"
        if "search" in self._journal:
            self._is_pruned = "pruning" in self._journal
        self._device = pin_torch(recipe.threads, self._journal)
        self._teacher = self._find_teacher() if has_teacher(recipe) else None
        try:
            self._prepare(is_begun=is_begun)
        except BaseException:
            self.close()
            raise

    def _prepare(self, *, is_begun: bool) -> None:
        """What every start does once it is known who teaches."""
        recipe = self._recipe
        self._note_teacher()
        if self._teacher is not None:  # it may bring classes that no sample shows
            self._spec = replace(self._spec, classes=self._teacher.classes)
        self._splits = self._gather()
        self._tuner = Tuner(
            recipe,
            self._splits[Split.TRAINING],
            self._splits[Split.VALIDATION],
            preprocess=self._source.preprocess,
            device=self._device,
            control=self._control,
            round_id=self._spec.round_id,
            teacher=None if self._teacher is None else self._teacher.asked,
            scratch=self._dir,
            history=self._spec.history,
        )
        self._tuner.by_labels = make_rehearsal(
            self._dir,
            self._spec,
            recipe,
            self._base,
            self._splits[Split.TRAINING],
            is_begun=is_begun,
            load=lambda: self._load(self._base),
            device=self._device,
            beat=self._control.beat,
        )
        if "layout" in self._journal:
            self._tuner.layout = Layout(**self._journal["layout"])
            self._tuner.use_threads(self._journal["threads"])
        if self._journal.forecast is not None:
            self._follow(self._journal.forecast)
        if "scoring_batch" in self._journal:
            self._tuner.scoring_batch = self._journal["scoring_batch"]
        # Without validation samples there is nothing that a search could go by: then exactly the level.
        self._is_searched &= len(self._splits[Split.VALIDATION]) > 0
        self._journal.write()

    # ------------------------------------------------------------------------------------------- load

    def _gather(self) -> dict[Split, LabelledImages]:
        """The round's samples, of old classes those that are replayed beside new ones."""
        spec, base = self._spec, self._base
        if "replayed" not in self._journal:
            self._journal["replayed"] = choose_replay(
                spec,
                self._recipe,
                base,
                load=lambda: self._load(base),
                device=self._device,
                beat=self._control.beat,
            )
        kept = keep_replayed(spec.samples, new_classes(spec, base), self._journal["replayed"])
        return gather(
            replace(spec, samples=kept),
            base_classes=base.classes,
            preprocess=self._source.preprocess,
            teacher=self._teacher,
            kept_in=self._dir,
            digest=self._digest,
            control=self._control,
            journal=self._journal,
        )

    def _load_network(self) -> Network:
        """The source version with its head widened; proven prunable when it is to be pruned."""
        recipe = self._recipe
        network = self._tuner.place(self._load(self._source))
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
        self._follow(plan)
        self._journal.forecast = plan
        if self._spec.kind is RoundKind.ADAPT:  # where something is cut, all that is left is trained
            self._journal["update"] = {"update": plan.update, "why": plan.reason}
        self._journal.write()

    def _forecast(self) -> Forecast:
        plan = self._journal.forecast
        assert plan is not None, "a round is planned before it is begun"
        return plan

    def _follow(self, plan: Forecast) -> None:
        self._tuner.updating.name, self._tuner.accumulation = plan.update, plan.accumulation
        self._recipe = replace(self._recipe, accumulation=plan.accumulation)

    def _course(self) -> Course:
        """What the round would do, as far as it is known before it begins."""
        recipe, steps, epoch = self._recipe, self._steps(), self._tuner.epoch_steps
        return Course(
            before=steps.before,
            after=steps.after,
            level=recipe.level if self._is_pruned else 0.0,
            trials=_TRIALS if self._is_searched else 0,
            trial_steps=math.ceil(recipe.trial_epochs * epoch),
            judged_images=len(self._splits[Split.VALIDATION]) * math.ceil((steps.before + steps.after) / epoch),
            is_taught=self._teacher is not None and self._teacher.outside is None and recipe.distillation > 0,
            asking=None if self._teacher is None else self._teacher.asking(self._splits[Split.TRAINING], recipe),
        )

    def _find_teacher(self) -> RoundTeacher:
        return RoundTeacher(
            self._spec,
            factory=self._factory,
            load=self._load,
            preprocess=self._source.preprocess,
            device=self._device,
            control=self._control,
            journal=self._journal,
        )

    def _load(self, manifest: Manifest) -> Network:
        return load_network(Path(self._spec.models_dir) / version_name(manifest.version), self._spec.builders)

    def _note_teacher(self) -> None:
        if self._teacher is not None:
            self._teacher.note()
            self._journal.write()

    def close(self) -> None:
        """End what runs beside the round."""
        if self._teacher is not None:
            self._note_teacher()
            self._teacher.close()

    # ------------------------------------------------------------------------------------------- train

    def train(self) -> Network:
        """Tune, prune, retrain: from the checkpoint if there is one."""
        checkpoint = load_checkpoint(self._dir, self._digest)
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

    def _hold_back(self, network: Network) -> None:
        """Keep what new classes take from old ones within what the gate allows."""
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
        is_first = bool(self._journal.get("pruned_first"))
        return steps_of(self._recipe, self._tuner.epoch_steps, is_cut=self._is_pruned, is_cut_first=is_first)

    def _keep(self, state: Checkpoint) -> None:
        save_checkpoint(self._dir, state, self._digest)
        self._note_teacher()

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
            teacher=None if self._teacher is None else self._teacher.by_sample,
            work=self._dir / "search",
            control=self._control,
        )
        self._journal["search"] = told(outcome)
        is_smaller = outcome.best is not outcome.base
        if is_smaller:
            self._journal["pruning"] = {**asdict(outcome.best), "round_to": outcome.network.describe().round_to()}
        self._is_pruned = is_smaller
        self._journal.write()
        found = self._tuner.place(outcome.network)
        phase = _FINISH if is_smaller else RETRAIN
        self._save(phase, found)
        remove_dir(self._dir / "search")
        return found, phase

    def _save(self, phase: str, network: Network) -> None:
        state = Checkpoint(phase=phase, description=network.describe(), network=state_tensors(network.module))
        save_checkpoint(self._dir, state, self._digest)
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
            directory=self._dir / "candidate",
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
