"""
A recipe applied to networks: tune, score, cut, retrain. A round and `edgetune prune` do it with the same hands.

Everything works in place or on copies in memory; what is kept, and where, is the caller's business.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgetune.decide.forecast import in_parts
from edgetune.errors import OutOfReachError
from edgetune.learn.checkpoint import Checkpoint
from edgetune.learn.control import Control
from edgetune.learn.cost import Size
from edgetune.learn.criteria import Batch, Criterion, ask, make_criterion, score_with
from edgetune.learn.data import Integers, LabelledImages, Normaliser, step_seed
from edgetune.learn.depth import DEPTHS, Thinner, removed_exits
from edgetune.learn.finetune import LabelLoss, Phase, fine_tune, never, steps_per_epoch, without_labels
from edgetune.learn.forecaster import Forecaster, begin_peak, micro_profile, peak_mib, workload_of
from edgetune.learn.groups import CoupledGroup, find_groups
from edgetune.learn.latency import Stopwatch
from edgetune.learn.layout import arrange, best_threads, candidate_layouts, fastest_layout
from edgetune.learn.memory import kept_by, pass_mib
from edgetune.learn.mixtures import Mixtures
from edgetune.learn.network import Network
from edgetune.learn.partial import Part
from edgetune.learn.schedules import PAPER
from edgetune.learn.shaping import Ranking, Shape, Shaper
from edgetune.learn.transfer import Shown, Teacher, is_label_free, telling_logits
from edgetune.learn.updating import Updating
from edgetune.types import BoardHistory, Interval, Preprocess, Recipe, StepPoint, Workload

TUNE, RETRAIN = "tune", "retrain"
# Scoring batches that each residual branch is tried out on.
_BRANCH_BATCHES = 4
# Filters are not scored in smaller ones: what is left of the memory then is the libraries'.
_SMALLEST_BATCH = 8
# Of the share of the time that is left, as a share of the parameters: with less the layers are too many and too thin. Of one
# network cut to a quarter of its time those of 14,000 parameters came to 36 %, those of 70,000 to 60 %.
_THIN = 0.5
_FEWEST = 2  # images that something is tried out on
_PROBING_BATCH = 16  # images on which layouts are timed, and in the larger batch of a micro-profile


class Tuner:
    """The recipe's hands."""

    def __init__(
        self,
        recipe: Recipe,
        training: LabelledImages,
        validation: LabelledImages,
        *,
        preprocess: Preprocess,
        device: torch.device,
        control: Control,
        round_id: int = 0,
        teacher: nn.Module | Teacher | None = None,
        scratch: Path | None = None,
        history: BoardHistory | None = None,
    ) -> None:
        """`teacher` is asked when the recipe distils; `round_id` is part of every seed; files may come and go in `scratch`."""
        self._recipe, self._control, self._round_id = recipe, control, round_id
        self._is_label_free = is_label_free(recipe.transfer, recipe.distillation)
        self._training = training = without_labels(training) if self._is_label_free else training
        self._validation, self._preprocess = validation, preprocess
        self._device, self._teacher = device, teacher
        self.normaliser = Normaliser(preprocess, device)
        self.layout = candidate_layouts(recipe.memory_format, recipe.dtype, device)[0]
        self.scoring_batch = recipe.batch_size  # less, where memory is short
        self.scoring_mib: float | None = None  # that ranking filters may take; None: nothing is ranked
        self.ranking_mib: float | None = None  # that it took
        shares = [figures.ranking_share for figures in (history or BoardHistory()).rounds]
        self.ranking_high = max([1.0, *filter(None, shares)])  # of `scoring_mib`, the most that ranking has taken here
        self.updating = Updating(training, self.normaliser, teacher, scratch=scratch, beat=control.beat)
        self.accumulation = recipe.accumulation
        self.threads = recipe.threads
        self.forecaster = Forecaster(history or BoardHistory(), threads=self.threads)
        self.measured: dict[str, StepPoint] = {}  # of each phase of training so far, by its name
        self.stepping_s = 0.0  # spent in steps, in all phases so far
        self.by_labels: LabelLoss | None = None  # of the loss by labels; None: cross-entropy
        self.mixtures: Mixtures | None = None  # beside the training samples
        self.epoch_steps = steps_per_epoch(training, recipe.batch_size)

    def place(self, network: Network) -> Network:
        """Put a network where it is trained."""
        arrange(network.module, self._device, self.layout.memory_format)
        return network

    def settle_layout(self, network: Network) -> dict[str, float]:
        """Measure which of the recipe's layouts trains this network fastest, and use it from now on."""
        recipe = self._recipe
        candidates = candidate_layouts(recipe.memory_format, recipe.dtype, self._device)
        images, labels = self._probe(self.probing_batch(network))
        self.layout, measured_s = fastest_layout(network.module, images, labels, candidates, beat=self._control.beat)
        self.place(network)
        return measured_s

    def settle_threads(self, network: Network) -> dict[int, float]:
        """Likewise with how many threads, where the recipe says how many cores may be busy and not how many threads."""
        recipe = self._recipe
        if recipe.cores_max is None or self._device.type != "cpu":
            return {}
        images, labels = self._probe(self.probing_batch(network))
        threads, measured_s = best_threads(
            network.module, images, labels, self.layout,
            most=recipe.threads, cores=recipe.cores_max, beat=self._control.beat,
        )  # fmt: skip
        self.use_threads(threads)
        return measured_s

    def use_threads(self, threads: int) -> None:
        """Train with so many from now on."""
        torch.set_num_threads(threads)
        self.threads = self.forecaster.threads = threads

    def _probe(self, size: int) -> Batch:
        """So many images to try something out on."""
        part = np.resize(np.arange(len(self._training)), size)
        return self.normaliser(self._training.images(part)), self.normaliser.labels(self._training.labels[part])

    def fine_tune(
        self,
        network: Network,
        name: str,
        steps: int,
        *,
        resume: Checkpoint | None = None,
        save: Callable[[Checkpoint], None] = lambda _: None,
        is_enough: Callable[[Sequence[float]], bool] = never,
    ) -> tuple[float, float] | None:
        """Train in place; see `finetune.fine_tune`. "tune" has a constant rate, everything else the recipe's schedule."""
        recipe = self._recipe
        paper = PAPER[network.architecture] if recipe.schedule == "paper" else None
        retraining = "cosine" if paper is None else "steps"
        phase = Phase(
            name=name,
            steps=steps,
            batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate_before if name == TUNE else recipe.learning_rate,
            schedule="constant" if name == TUNE else retraining,
            milestones=() if paper is None else paper.milestones,
            decay=0.1 if paper is None else paper.decay,
            momentum=recipe.momentum,
            nesterov=recipe.transfer == "label_free" and recipe.momentum > 0,  # as its paper trains
            weight_decay=recipe.weight_decay,
            augment=recipe.augment,
            views=recipe.augment_views,
            checkpoint_steps=recipe.checkpoint_steps,
            seed=recipe.seed,
            round_id=self._round_id,
            dtype=self.layout.dtype,
            distillation=recipe.distillation if self._teacher is not None else 0.0,
            temperature=recipe.temperature,
            transfer=recipe.transfer,
            accumulation=self.accumulation,
        )
        self._control.begin_count()
        is_peak_own = begin_peak()
        with self.updating.partly(network, self.layout.dtype) as (part, teacher):
            work = self.workload(network, part, is_from_cut=part is not None and part.kept is not None)
            score = fine_tune(
                network,
                phase,
                self._training,
                self._validation,
                self.normaliser,
                resume=resume,
                save=save,
                control=self._control,
                teacher=teacher,
                is_enough=is_enough,
                by_labels=self.by_labels,
                part=part,
                mixtures=self.mixtures,
            )
        self._measure(name, work, is_peak_own=is_peak_own)
        return score

    def _measure(self, name: str, work: Workload, *, is_peak_own: bool) -> None:
        """Note what the phase that has just ended took, for this board's next forecasts."""
        taken_s = sorted(self._control.steps_s)
        self.stepping_s += sum(taken_s)
        each = math.ceil(self._recipe.batch_size / self.accumulation)
        self.measured[name] = replace(
            self.forecaster.point(work, each),
            peak_mib=peak_mib() if is_peak_own or not self.measured else None,
            step_s=taken_s[len(taken_s) // 2] / in_parts(self.accumulation) if taken_s else None,
        )
        begin_peak()  # what follows has a peak of its own

    def prunes_first(self, network: Network) -> str:
        """
        Whether the network is to be cut before it is tuned, and why; empty when not.

        The whole network in training is what takes the most memory. Where the recipe's limit does not allow it, the
        network is cut at once. In either order filters are scored in batches that the limit allows.

        Raises:
            UnprunableError: the user's own criterion fails.
        """
        recipe = self._recipe
        most_mib = recipe.memory_max_mib
        needed_mib = self.forecaster.peak_mib(self.workload(network), recipe.batch_size).high
        why = ""
        if recipe.order == "prune_first":
            why = "pruning.order"
        elif recipe.order == "auto" and most_mib is not None and needed_mib > most_mib:
            why = f"tuning the whole network first would take up to {needed_mib:.0f} MiB of {most_mib:.0f}"
        self._fit_scoring(network, math.inf if most_mib is None else most_mib)
        return why

    def _fit_scoring(self, network: Network, most_mib: float) -> None:
        """Halve the batches in which filters are scored until the ranking keeps to the memory."""
        was_training = network.module.training
        batch = self._few()
        kept_of_image = self._kept_by_scoring(network, batch) / len(batch[0])
        while self._can_halve() and self.ranking_high * pass_mib(kept_of_image * self.scoring_batch) > most_mib:
            self.scoring_batch //= 2
        self.scoring_mib = pass_mib(kept_of_image * self.scoring_batch)
        network.module.train(was_training)

    @property
    def ranking_share(self) -> float | None:
        """Of what ranking was said to take, as much as it took; None: one of them is not known."""
        return None if self.scoring_mib is None or self.ranking_mib is None else self.ranking_mib / self.scoring_mib

    def _few(self) -> Batch:
        """Two images: what memory takes grows with their number."""
        return self._probe(_FEWEST)

    def workload(self, network: Network, part: Part | None = None, *, is_from_cut: bool = False) -> Workload:
        """What a training step of the network, or of a part of it, consists of; the network stays as it is."""
        batch = self._few()
        was_training = network.module.training
        state = copy.deepcopy(network.module.state_dict())
        network.module.train()
        try:
            if part is None:
                return workload_of(network.module, *batch)
            part.rest()
            with part.trained_alone():
                return workload_of(network.module, *batch, is_from_cut=is_from_cut)
        finally:
            network.module.load_state_dict(state)  # running statistics have seen the images
            network.module.train(was_training)

    def probing_batch(self, network: Network) -> int:
        """How many images the whole network is tried out on before there is a plan: few enough for the memory."""
        most_mib = self._recipe.memory_max_mib
        batch = min(self.scoring_batch, _PROBING_BATCH)
        if most_mib is not None:
            work = self.workload(network)
            while batch > _FEWEST and self.forecaster.peak_mib(work, batch).high > most_mib:
                batch //= 2
        return batch

    def least_mib(self, network: Network) -> Interval:
        """What the smallest step that is ever tried out will take, in MiB."""
        return self.forecaster.peak_mib(self.workload(network), _FEWEST)

    def profile(self, network: Network) -> list[StepPoint]:
        """Measure a few steps of a copy of the network in two small batches; see `forecaster.micro_profile`."""
        most = self.probing_batch(network)
        batches = [self._probe(size) for size in sorted({max(_FEWEST, most // 2), most})]
        return micro_profile(network.module, batches, self.forecaster, self.layout, beat=self._control.beat)

    def _kept_by_scoring(self, network: Network, batch: Batch) -> int:
        """Bytes that autograd keeps while this batch ranks the filters."""
        module = network.module.eval()
        criterion, groups = self._criterion(), self._groups(network)
        return kept_by(module, lambda: ask(criterion, self._recipe.criterion, module, groups, [batch]))

    def _criterion(self) -> Criterion:
        recipe = self._recipe
        seed = step_seed(recipe.seed, self._round_id)
        return make_criterion(recipe.criterion, seed=seed, beat=self._control.beat)

    def _groups(self, network: Network) -> tuple[CoupledGroup, ...]:
        size = self._preprocess
        return tuple(find_groups(network.module, network.head, size.height, size.width, self._control.beat))

    def _can_halve(self) -> bool:
        return self.scoring_batch >= 2 * _SMALLEST_BATCH

    def rank(self, network: Network) -> Ranking:
        """
        Score all filters on training samples.

        Raises:
            UnprunableError: the criterion's scores cannot rank filters.
        """
        self._control.phase("score")
        is_peak_own = begin_peak()
        network.module.eval()
        groups, criterion = self._groups(network), self._criterion()
        scores = score_with(criterion, self._recipe.criterion, network.module, groups, self._scoring_batches())
        self.ranking_mib = peak_mib() if is_peak_own else None
        return Ranking(groups, scores, criterion.adds_up)

    def cut(
        self,
        network: Network,
        *,
        share: float,
        whole: Size,
        stopwatch: Stopwatch | None,
        rank: Callable[[Network], Ranking] | None = None,
    ) -> tuple[Shape, Ranking]:
        """
        Cut a copy of a network down to a share of what the whole one costs.

        Where the level is a latency, whole residual branches go first (`depth.Thinner`), chosen in two ways, and more of them where what they
        leave has to be very thin to be fast enough, or is not at any width. Of the networks that are fast enough the one with the most parameters
        is taken.

        Args:
            network: not changed.
            share: 0..1, of the unit that the recipe's level is in.
            whole: what the unpruned network costs.
            stopwatch: times candidates; None only where nothing has to be timed.
            rank: gives the ranking of what is left; None: `Tuner.rank`.

        Raises:
            OutOfReachError: the share cannot be reached.
            UnprunableError: the criterion's scores cannot rank filters.
        """
        found: list[tuple[Shape, Ranking]] = []
        refused: OutOfReachError | None = None
        tried: set[tuple[str, ...]] = set()
        may_go = self._recipe.level_of == "latency" and self._recipe.remove_branches
        thinner = self._thinner(network) if may_go else None
        for depth, is_alone in itertools.product(DEPTHS, (True, False)) if may_go else ((0.0, True),):
            if is_alone and any(shape.cut.size.parameters >= _THIN * share * whole.parameters for shape, _ in found):
                break  # no more depth
            thinned = network
            if thinner is not None:
                self._control.phase("score")
                thinned = thinner.thin_out(share=share, depth=depth, is_alone=is_alone)
            gone = removed_exits(thinned.module)
            if gone in tried:
                continue
            tried.add(gone)
            ranking = (rank or self.rank)(thinned)
            self._control.phase("prune")
            try:
                shape = self.shape(thinned, ranking, share=share, whole=whole, stopwatch=stopwatch)
            except OutOfReachError as error:
                refused = error
                continue
            found.append((shape, ranking))
        if not found:
            assert refused is not None, "the first depth is always tried"
            raise refused
        return max(found, key=lambda pair: pair[0].cut.size.parameters)

    def _thinner(self, network: Network) -> Thinner:
        recipe, size = self._recipe, self._preprocess
        few = _BRANCH_BATCHES * recipe.batch_size // self.scoring_batch
        batches = list(itertools.islice(self._scoring_batches(), few))
        return Thinner(network, batches, image=(size.height, size.width), beat=self._control.beat)

    def shape(
        self, network: Network, ranking: Ranking, *, share: float, whole: Size, stopwatch: Stopwatch | None
    ) -> Shape:
        """Cut a copy of a network, which `ranking` is about, down to a share of what the whole one costs; see `Shaper`."""
        shaper = Shaper(self._recipe, self._preprocess, place=self.place, beat=self._control.beat)
        return shaper.shape(network, ranking, share=share, whole=whole, stopwatch=stopwatch)

    def _scoring_batches(self) -> Iterator[Batch]:
        """Training samples, unchanged, a class in turn: a small class is shown as often as a large one."""
        training, recipe = self._training, self._recipe
        generator = torch.Generator().manual_seed(step_seed(recipe.seed, self._round_id, 1))
        order: Integers = torch.randperm(len(training), generator=generator).numpy()
        classes = [order[training.labels[order] == label] for label in np.unique(training.labels)]
        count = recipe.scoring_batches * recipe.batch_size  # of images, however many are looked at together
        rows = -(-count // len(classes))
        rows = min(rows, max(len(mine) for mine in classes))
        picked = np.stack([np.resize(mine, rows) for mine in classes], axis=1).reshape(-1)  # repeats a small class
        for start in range(0, min(len(picked), count), self.scoring_batch):
            part = picked[start : start + self.scoring_batch]
            images = self.normaliser(training.images(part))
            if self._is_label_free and self._teacher is not None:
                yield images, self._said(images, training.sample_ids[part])
            else:
                yield images, self.normaliser.labels(training.labels[part])

    def _said(self, images: torch.Tensor, sample_ids: Integers) -> torch.Tensor:
        """In the place of labels [B]: the class that the teacher finds likeliest."""
        assert self._teacher is not None
        ask = telling_logits(self._teacher) if isinstance(self._teacher, nn.Module) else self._teacher
        said = ask(Shown(images=images, sample_ids=sample_ids, draws=np.zeros(len(sample_ids), np.uint64)))
        likeliest = said.logits.argmax(dim=1)
        return likeliest if said.classes is None else torch.tensor(said.classes, device=images.device)[likeliest]
