"""What the trials of a search are made of: training that goes on where it was interrupted, a cut, a look."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from edgetune.errors import WillNotFitError
from edgetune.learn.checkpoint import Checkpoint
from edgetune.learn.control import Control
from edgetune.learn.cost import Size, size_of
from edgetune.learn.depth import removed_exits
from edgetune.learn.finetune import validation_score
from edgetune.learn.goal import Material, Point
from edgetune.learn.latency import Stopwatch, export_engine
from edgetune.learn.layout import Layout, arrange, training_device
from edgetune.learn.mixtures import Mixtures
from edgetune.learn.network import Network
from edgetune.learn.planning import Course, Planner, most_of_cut_mib
from edgetune.learn.search_state import SearchState
from edgetune.learn.shaping import Ranking, describe_cut
from edgetune.learn.transfer import Teacher, has_teacher, telling_logits
from edgetune.learn.tuner import TUNE, Tuner
from edgetune.types import BoardHistory, Recipe

_ROUNDING = 1e-6  # of steps


class Workbench:
    """
    The network that is compressed, and the tools.

    Attributes:
        given: as it came, where it is trained.
        recipe: as asked, but for the order where memory is short.
        epoch_steps: of the training samples.
    """

    def __init__(
        self,
        network: Network,
        material: Material,
        recipe: Recipe,
        *,
        state: SearchState,
        threads: int,
        round_id: int,
        control: Control,
        teacher: Teacher | None,
        mixtures: Mixtures | None,
        saved: Callable[[], None],
    ) -> None:
        """The arguments are those of `compress`; `state` says what an earlier start has settled, `saved` hears of checkpoints."""
        self._saved = saved
        self.recipe, self._material, self._state, self._control = recipe, material, state, control
        device = training_device()
        torch.set_num_threads(recipe.threads)
        given = arrange(copy.deepcopy(network).module, device, "contiguous").eval()
        asked = teacher or (given if recipe.transfer == "hinton" else telling_logits(given))
        self._tuner = Tuner(
            recipe,
            material.training,
            material.validation,
            preprocess=material.preprocess,
            device=device,
            control=control,
            round_id=round_id,
            teacher=asked if has_teacher(recipe) else None,
        )
        self._tuner.mixtures = mixtures
        self.epoch_steps = self._tuner.epoch_steps
        self.given = self._tuner.place(copy.deepcopy(network))
        self._whole = size_of(self.given, material.preprocess)
        engine = export_engine(self.given, material.preprocess, threads=threads)
        self._stopwatch = Stopwatch(engine, material.preprocess, runs=recipe.timing_runs, beat=control.beat)
        self._rankings: dict[str, Ranking] = {}
        self._settle_order()
        self._settle_layout()

    def fit(self, level: float) -> None:
        """
        Choose in how many parts a step goes, where the recipe bounds the memory and leaves the order open.

        A round comes with its order, and has been planned; see `planning.Planner`, which is what plans here as well.

        Args:
            level: what the first cut takes away, 0..1.

        Raises:
            WillNotFitError: no batch is small enough.
        """
        facts, recipe = self._state.facts, self.recipe
        if recipe.memory_max_mib is None or recipe.order != "auto":
            return
        if facts["accumulation"] is None:
            steps = [math.ceil(epochs * self.epoch_steps) for epochs in (recipe.epochs_before, recipe.epochs_after)]
            course = Course(before=steps[0], after=steps[1], level=level)
            planner = Planner(
                self._tuner, self.given, recipe=recipe, course=course, history=BoardHistory(), control=self._control
            )
            plan = planner.plan()
            if not plan.fits:
                raise WillNotFitError(
                    f"it would take up to {plan.peak_mib.high:.0f} MiB of {recipe.memory_max_mib:.0f}, even with "
                    f"{plan.batch_size} images at a time",
                    hint="allow more memory, or compress it on a larger machine",
                )
            facts["accumulation"] = plan.accumulation
            self._state.write()
        self._tuner.accumulation = facts["accumulation"]

    def too_large(self, share: float) -> str:
        """Why a network cut to that share is not trained, where memory had it cut before it was tuned; empty: it fits."""
        most_mib = self.recipe.memory_max_mib
        if most_mib is None or not self._state.facts["pruned_first"]:
            return ""
        needed_mib = most_of_cut_mib(self._tuner, self.given, share, self.recipe)
        if needed_mib <= most_mib:
            return ""
        return f"a network of {share:.0%} would take up to {needed_mib:.0f} MiB of {most_mib:.0f} in training"

    def _settle_order(self) -> None:
        """Once for a search: the forecast depends on what this process holds, and the trials depend on the order."""
        facts, recipe = self._state.facts, self.recipe
        if facts["pruned_first"] is None:
            facts["pruned_first"] = self._tuner.prunes_first(self.given)
            facts["scoring_batch"] = self._tuner.scoring_batch
            self._state.write()
        self._tuner.scoring_batch = facts["scoring_batch"]
        if facts["pruned_first"]:
            self.recipe = replace(recipe, epochs_before=0, epochs_after=recipe.epochs_before + recipe.epochs_after)

    def _settle_layout(self) -> None:
        facts = self._state.facts
        if facts["layout"] is None:
            self._tuner.settle_layout(self.given)
            facts["layout"] = asdict(self._tuner.layout)
        self._tuner.layout = Layout(**facts["layout"])
        self._tuner.place(self.given)

    def kept(self, name: str | None) -> Network | None:
        """A network that an earlier step, or an earlier start, has kept; None: it has not."""
        found = None if name is None else self._state.network(name)
        return None if found is None else self._tuner.place(found)

    def train(
        self, phase: str, begin: Callable[[], Network], epochs: float, is_enough: Callable[[Sequence[float]], bool]
    ) -> tuple[Network, tuple[float, float] | None]:
        """Train what `begin` makes, or go on where this phase was interrupted; the network and its best score."""
        running = self._state.running(phase)
        network = self._tuner.place(begin() if running is None else running[0])
        self._control.phase(phase.partition(" ")[0])
        score = self._tuner.fine_tune(
            network,
            phase,
            math.floor(epochs * self._tuner.epoch_steps + _ROUNDING),
            resume=None if running is None else running[1],
            save=self._save,
            is_enough=is_enough,
        )
        return network, score

    def _save(self, checkpoint: Checkpoint) -> None:
        self._state.save(checkpoint)
        self._saved()

    def cut(self, name: str, start: Network, share: float) -> tuple[Network, Mapping[str, Any]]:
        """
        Cut a kept network, or the tuned one, down to a share of what the whole one costs; and how, for a journal.

        Raises:
            OutOfReachError: it cannot be cut that far.
        """

        def ranked(thinned: Network) -> Ranking:
            # the best one changes, the tuned does not
            trials = len(self._state.trials) if name != TUNE else 0
            key = f"{name} after {trials} without {removed_exits(thinned.module)}"
            if key not in self._rankings:
                self._rankings = {key: self._tuner.rank(thinned)}
            return self._rankings[key]

        shape, ranking = self._tuner.cut(start, share=share, whole=self._whole, stopwatch=self._stopwatch, rank=ranked)
        return shape.network, describe_cut(shape, ranking)

    def accuracy(self, network: Network) -> float:
        """Validation top-1, 0..1."""
        score = validation_score(
            network.module,
            self._material.validation,
            self._tuner.normaliser,
            self.recipe.batch_size,
            self._control,
        )
        return score[0]

    def look(self, network: Network, *, share: float, accuracy: float, epochs: float, wanted: float) -> Point:
        """Count and time a network of that accuracy, which is a success if it is the wanted one or more."""
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
