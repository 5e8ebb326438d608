"""The plan of a round, made before its first step: what it will take, how it is run so that it fits, or that it does not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import psutil

from edgetune.decide.forecast import (
    LEAST_OTHER_MIB,
    Allowance,
    choose_shorter,
    in_parts,
    largest,
    paced,
    shares_of,
    spread,
    times,
    total,
    why_not_loaded,
)
from edgetune.errors import WillNotFitError
from edgetune.learn.control import Control
from edgetune.learn.data import held_bytes
from edgetune.learn.memory import held_mib
from edgetune.learn.network import Network
from edgetune.learn.stepping_back import SHARES
from edgetune.learn.tuner import Tuner
from edgetune.types import BoardHistory, Cut, Forecast, Interval, Manifest, Recipe, Workload

_MIB, _FLOAT_BYTES = 2**20, 4
_HALF = 0.5
_SMALLEST_BATCH = 8  # a batch norm's statistics of fewer images are noise
_SURE = 1.25  # high over likely of a step's seconds: a board that is known better needs no micro-profile
FEWEST_ROUNDS = 3  # of which the same is said
# What a round does beside its steps, where no round has told: seconds, and MiB beyond what the process held before.
_OTHER_S = Interval(low=5.0, likely=20.0, high=90.0)
_OTHER_MIB = Interval(low=LEAST_OTHER_MIB, likely=80.0, high=160.0)
_NO_POWER = Interval(low=0.0, likely=0.0, high=0.0)
_RANKING = Interval(low=0.75, likely=0.87, high=1.0)  # of what `pass_mib` says: the CIFAR ResNet20 took 0.84 to 0.96
_CUT = Cut(macs=0.5, kept=0.3)  # where no round has told
# Of what is forecast for a cut network whose like was never trained here: a ResNet20 took 1.04 to 1.13 times that in batches
# of 64 and 1.25 to 1.35 times in batches of 128, because its odd layers leave the heap in pieces; and of one whose like was.
_NEW_CUT_PEAK = Interval(low=0.95, likely=1.1, high=1.35)
_CUT_PEAK = Interval(low=0.95, likely=1.0, high=1.2)
_ENDS = ("low", "likely", "high")
_FORWARD = 1 / 3  # of a training step's work


@dataclass(frozen=True, slots=True)
class Steps:
    """Of the two phases of training."""

    before: int
    after: int


def steps_of(recipe: Recipe, epoch_steps: int, *, is_cut: bool, is_cut_first: bool) -> Steps:
    """
    How long a round trains.

    Args:
        recipe: of the round.
        epoch_steps: steps of one epoch.
        is_cut: it has a phase before the cut.
        is_cut_first: all of it comes after the cut.
    """
    before = math.ceil(recipe.epochs_before * epoch_steps) if is_cut else 0
    after = math.ceil(recipe.epochs_after * epoch_steps)
    if recipe.max_steps is not None and before + after > recipe.max_steps:
        before = before * recipe.max_steps // (before + after)
        after = recipe.max_steps - before
    return Steps(0, before + after) if is_cut_first else Steps(before, after)


def shortened(recipe: Recipe, share: float) -> Recipe:
    """With a share of the training, of a search's trials too."""
    return replace(
        recipe,
        epochs_before=share * recipe.epochs_before,
        epochs_after=share * recipe.epochs_after,
        trial_epochs=share * recipe.trial_epochs,
        max_steps=None if recipe.max_steps is None else math.ceil(share * recipe.max_steps),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What a teacher outside this process takes."""

    image_s: float  # of one image that it has not answered yet
    held_mib: float  # by its process; 0: it is not on this board
    views: int | None  # ways in which each image is changed, see `data.plan_epoch`
    is_mixed: bool = False  # it is also asked about a mixture of each image of a batch, anew each time


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What a round would do."""

    before: int  # steps of the whole network, before it is cut
    after: int  # steps of what is trained then
    level: float = 0.0  # share that is cut
    trials: int = 0  # most trials of a search, in steps each `trial_steps`
    trial_steps: int = 0
    judged_images: int = 0  # that are asked for the accuracy, over all epochs
    look_images: int = 0  # of one look back after training, see `stepping_back`; 0: none is taken
    is_taught: bool = False  # another network of the same size answers every batch
    asking: Asking | None = None  # or somebody outside this process does


def allowance(recipe: Recipe) -> Allowance:
    """What the round may take now."""
    least = recipe.memory_available_min_mib
    available: float | None = None
    if least is not None:
        available = held_mib() + psutil.virtual_memory().available / _MIB - least
    return Allowance(
        peak_mib=recipe.memory_max_mib,
        available_mib=available,
        duration_s=recipe.time_max_s,
        energy_j=recipe.energy_max_j,
    )


def refuse_to_load(images: int, recipe: Recipe, source: Manifest, *, bare_mib: float) -> None:
    """
    End a round whose images and model there is no room for.

    Args:
        images: that are loaded at least.
        recipe: of the round.
        source: the version that it begins with.
        bare_mib: resident memory of the round's process with its libraries alone.

    Raises:
        WillNotFitError: with the number that does not fit.
    """
    loaded_bytes = held_bytes(images, source.preprocess) + source.cost.parameters * _FLOAT_BYTES
    if why := why_not_loaded(bare_mib, recipe.memory_max_mib, loaded_bytes / _MIB):
        raise WillNotFitError(f"the round does not fit: {why}")


def is_hopeless(network: Network, tuner: Tuner, recipe: Recipe, history: BoardHistory) -> bool:
    """Whether not even a try in the smallest batch fits into the memory, so that nothing may be tried."""
    if recipe.memory_max_mib is None:
        return False
    least = tuner.least_mib(network)
    is_known = len(history.rounds) >= FEWEST_ROUNDS  # else measuring may bring the upper end down
    return recipe.memory_max_mib < (least.high if is_known else least.likely)


class Planner:
    """
    Chooses how to run a round.

    Args:
        tuner: whose layout is settled; is set to what is chosen.
        network: as the round begins with it; stays as it is.
        recipe: of the round; its `update` counts where nothing is cut.
        course: what the round would do.
        history: of this board.
        control: the pace counts.
    """

    def __init__(
        self, tuner: Tuner, network: Network, *, recipe: Recipe, course: Course, history: BoardHistory, control: Control
    ) -> None:
        self._tuner, self._network, self._recipe, self._course = tuner, network, recipe, course
        self._rounds, self._duties, self._control = history.rounds, history.duties, control
        self._has_cut = any(figures.is_reshape for figures in history.rounds)
        self._cuts = [figures.cut for figures in history.rounds if figures.cut is not None]
        self._board = tuner.forecaster
        self._whole = tuner.workload(network)

    def plan(self, *, may_measure: bool = True) -> Forecast:
        """
        Settle it. A board that has not run enough rounds to be sure measures a few steps first, where it may.

        Returns:
            The forecast; where it does not fit, the caller ends the round.
        """
        guess = self._board.step_s(self._whole, self._recipe.batch_size)
        is_known = len(self._rounds) >= FEWEST_ROUNDS and guess.high <= _SURE * guess.likely
        if may_measure and not is_known:
            self._board.learn(self._tuner.profile(self._network))
        chosen = self._choose()
        self._tuner.updating.name, self._tuner.accumulation = chosen.update, chosen.accumulation
        return chosen

    def _choose(self) -> Forecast:
        """Half of the epochs for all layers teach more than all of them for the output layer: that is tried first."""
        allowed = allowance(self._recipe)
        shares = shares_of(self._course.before + self._course.after, self._tuner.epoch_steps)
        names = ["full"] if self._course.level > 0 else self._updates()
        if names[0] == "full" and len(names) > 1:
            chosen = choose_shorter(
                lambda share: self._ways(names[:1], share), allowed, [s for s in shares if s >= _HALF]
            )
            if chosen.fits:
                return chosen
        return choose_shorter(lambda share: self._ways(names, share), allowed, shares)

    def _updates(self) -> list[str]:
        return list(self._tuner.updating.ways(self._network, self._recipe.update))

    def _ways(self, names: Sequence[str], share: float) -> Iterator[Forecast]:
        """Best first: with everything trained, in smaller and smaller parts of a step; then with less trained."""
        tuner, recipe, course = self._tuner, self._recipe, self._course
        course = replace(
            course,
            before=math.ceil(share * course.before),
            after=math.ceil(share * course.after),
            trial_steps=math.ceil(share * course.trial_steps),
            judged_images=math.ceil(share * course.judged_images),
        )
        for name in names:
            work = self._whole
            if name != "full":
                part = tuner.updating.part(self._network, name)
                work = tuner.workload(self._network, part, is_from_cut=name == "latent")
            accumulation = 1
            while accumulation == 1 or recipe.batch_size / accumulation >= _SMALLEST_BATCH:
                yield self._forecast(course, name, work, accumulation)
                accumulation *= 2

    def _forecast(self, course: Course, name: str, work: Workload, accumulation: int) -> Forecast:
        each = math.ceil(self._recipe.batch_size / accumulation)
        cut = _narrower(work, 1 - course.level, self._recipe.level_of, self._cuts)
        per_step = in_parts(accumulation) * (1 + (_FORWARD if course.is_taught else 0.0))
        duration = self._duration(course, name, cut, each, per_step)
        watts = [figures.power_w for figures in self._rounds if figures.power_w is not None]
        return Forecast(
            peak_mib=self._peak(cut, each),
            step_s=times(self._board.step_s(cut, each), per_step),
            duration_s=duration,
            energy_j=times(duration, spread(watts, _NO_POWER)) if watts else None,
            batch_size=each,
            accumulation=accumulation,
            threads=self._tuner.threads,
            update=name,
            fits=False,
            reason="",
            calibrated_on=len(self._rounds),
            beside_mib=0.0 if course.asking is None else course.asking.held_mib,
        )

    def _peak(self, cut: Workload, each: int) -> Interval:
        steps = [self._board.peak_mib(cut, each)]
        if self._course.level:
            steps = [times(steps[0], _CUT_PEAK if self._has_cut else _NEW_CUT_PEAK)]
        if self._course.before:
            steps.append(self._board.peak_mib(self._whole, each))
        rest, step = self._board.rest_mib, largest(steps)
        least = Interval(low=rest + _OTHER_MIB.low, likely=rest + _OTHER_MIB.likely, high=rest + _OTHER_MIB.high)
        shares = [figures.other_share for figures in self._rounds if figures.other_share is not None]
        ranked = [figures.ranking_share for figures in self._rounds if figures.ranking_share is not None]
        # Gates keep more than a step does. Batches were halved by the same upper end.
        ranking = times(
            replace(spread(ranked, _RANKING), high=self._tuner.ranking_high), self._tuner.scoring_mib or 0.0
        )
        probing = self._board.peak_mib(self._whole, self._tuner.probing_batch(self._network))
        return largest(
            [step, least, ranking, probing, times(step, spread(shares, Interval(low=0.0, likely=0.0, high=1.0)))]
        )

    def _duration(self, course: Course, name: str, cut: Workload, each: int, per_step: float) -> Interval:
        most_s = self._recipe.search_time_max_s
        whole_s, cut_s = self._board.step_s(self._whole, each), self._board.step_s(cut, each)
        looks = course.judged_images / each * _FORWARD
        parts = [times(whole_s, course.before * per_step), times(cut_s, course.after * per_step + looks)]
        if name == "latent":  # every image goes through the layers below once
            parts.append(times(whole_s, self._tuner.epoch_steps * self._recipe.batch_size / each * _FORWARD))
        if course.trials:
            trial = times(cut_s, course.trial_steps * per_step)
            trained = total([*parts, times(replace(trial, low=0.0), course.trials)])
            if most_s is not None:  # another trial is begun only where all of it ends by then
                least = total([*parts, trial])
                trained = Interval(
                    **{end: min(getattr(trained, end), max(most_s, getattr(least, end))) for end in _ENDS}
                )
            parts = [trained]
        if course.asking is not None and len(self._rounds) < FEWEST_ROUNDS:  # later it is part of what steps took here
            views = 1 if name == "latent" else course.asking.views
            drawn = course.before + course.after + course.trials * course.trial_steps
            mixed = drawn if course.asking.is_mixed and name != "latent" else 0
            if views is not None:  # what was answered once is kept
                drawn = min(drawn, views * self._tuner.epoch_steps)
            asked = drawn + mixed
            asked_s = asked * self._recipe.batch_size * course.asking.image_s
            parts.append(Interval(low=0.0, likely=asked_s, high=1.5 * asked_s))
        if name != "latent" and len(self._rounds) < FEWEST_ROUNDS:
            look_s = times(whole_s, course.look_images / each * _FORWARD)
            parts.append(times(look_s, Interval(low=0.0, likely=2.0, high=float(len(SHARES)))))
        timed = [(figures.is_reshape, figures.other_s) for figures in self._rounds if figures.other_s is not None]
        # ranking and timing take their time
        alike = [seconds for is_reshape, seconds in timed if is_reshape == (course.level > 0)]
        parts.append(spread(alike or [seconds for _, seconds in timed], _OTHER_S))
        return paced(total(parts), self._control.kept_duty, self._duties)


def most_of_cut_mib(tuner: Tuner, network: Network, share: float, recipe: Recipe) -> float:
    """What training a network may take at its peak once it is cut to such a share, in MiB: the upper end."""
    each = math.ceil(recipe.batch_size / tuner.accumulation)
    cut = _narrower(tuner.workload(network), share, recipe.level_of, ())
    return times(tuner.forecaster.peak_mib(cut, each), _CUT_PEAK).high


def _narrower(work: Workload, share: float, level_of: str, cuts: Sequence[Cut]) -> Workload:
    """
    What is left of a network of which such a share is left: which channels go, nobody knows yet, but how it went before.

    Where parameters are counted, late layers go first, which are large and cheap to run. Of the CIFAR ResNet20, MobileNetV2
    and SqueezeNet at one half and one quarter of the parameters were left 0.67 to 0.87 and 0.31 to 0.71 of the
    multiply-accumulates, 0.80 to 0.93 and 0.39 to 0.75 of the activations; the powers of `_CUT` give 0.71, 0.50, 0.81 and 0.66.
    """
    macs_power, kept_power = (fmean(getattr(c, name) for c in cuts or [_CUT]) for name in ("macs", "kept"))
    is_counted = level_of == "parameters"
    macs, kept = (
        (share**macs_power, share**kept_power) if is_counted else (share, share ** min(kept_power / macs_power, 1.5))
    )
    return replace(
        work,
        kept_mib=work.kept_mib * kept,
        largest_mib=work.largest_mib * kept,
        mega_macs=work.mega_macs * macs,
        grouped_mega_macs=work.grouped_mega_macs * macs,
        mega_weights=work.mega_weights * share,
    )
