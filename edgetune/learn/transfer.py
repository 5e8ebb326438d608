"""
What a network learns from another one: three losses of one shape, and where the features they compare are taken.

A teacher that does not know all of the student's classes has no say in the others: the logits of both are compared over
the classes that they share, and the cross-entropy is over all (as in Li and Hoiem 2016, arXiv 1606.09282, for new ones).

Shapes: B images, K classes, C channels, H height, W width. A loss takes what the student and the teacher made of the
same images; its gradient reaches the student alone.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from edgetune.errors import ModelError, UsageError
from edgetune.learn.data import Integers
from edgetune.types import Recipe

TRANSFERS = ("hinton", "label_free", "replay")
# Of a position of a map over the batch: below it the position counts as silent, without a gradient that would explode.
_LEAST_NORM = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a network made of a batch."""

    logits: torch.Tensor  # float32 [B, K]
    features: tuple[torch.Tensor, ...] = ()  # of each group of layers float32 [B, C, H, W]; none: it was not looked at
    classes: tuple[int, ...] | None = None  # of each logit the student's number; None: all, in the student's order


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A batch as it is asked about: whoever has an answer in store knows it by the sample and its change."""

    images: torch.Tensor  # float32 [B, 3, H, W], normalised for the student
    sample_ids: Integers  # [B]
    draws: npt.NDArray[np.uint64]  # [B] the hash that each image's change was made from
    said: Output | None = None  # logits about the first of them, which nobody has to be asked about again

    def part(self, rows: Integers) -> Shown:
        """Some of the batch [P], rising."""
        said = self.said
        if said is not None:
            said = replace(said, logits=said.logits[torch.from_numpy(rows[rows < len(said.logits)])])
        mine = torch.from_numpy(rows).to(self.images.device)
        return Shown(images=self.images[mine], sample_ids=self.sample_ids[rows], draws=self.draws[rows], said=said)


Teacher = Callable[[Shown], Output]


class TransferLoss(Protocol):
    """One way to learn from a teacher."""

    @property
    def is_label_free(self) -> bool:
        """Whether the labels [B] int64 are not looked at."""
        ...

    @property
    def wants_features(self) -> bool:
        """Whether it can do more with features than with logits alone."""
        ...

    def __call__(self, student: Output, teacher: Output, labels: torch.Tensor) -> torch.Tensor:
        """
        The loss, a scalar.

        Raises:
            ModelError: the two do not fit together.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFree:
    """
    The distance of features and of logits: what the teacher saw and said, and nothing else.

    For each group sqrt(mean((N(T) - Pad(N(S)))^2)), and for the logits sqrt(mean((T - S)^2)), all added up. N is the L2
    norm along the batch, Pad appends channels of zeros up to the teacher's. Logits alone where one of the two has no
    features. In a batch of one N leaves the signs, so that only the logits have a gradient.

    Source: Zhao, Chen, Zhao 2022 (arXiv 2201.10947); differs from it in: norms below 1e-6 count as 0.
    """

    is_label_free: ClassVar[bool] = True
    wants_features: ClassVar[bool] = True

    def __call__(self, student: Output, teacher: Output, labels: torch.Tensor) -> torch.Tensor:  # noqa: ARG002, D102
        total = _distance(*_shared(student, teacher))
        if not student.features or not teacher.features:
            return total
        if len(student.features) != len(teacher.features):
            raise ModelError(
                f"the student has {len(student.features)} groups of layers and the teacher {len(teacher.features)}",
                hint="take a student of the teacher's family, or a transfer that looks at logits alone",
            )
        for number, (mine, theirs) in enumerate(zip(student.features, teacher.features, strict=True), start=1):
            total = total + _distance(_padded(_along_batch(mine), theirs, number), _along_batch(theirs.detach()))
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Hinton:
    """
    Cross-entropy, and beside it the teacher's word, put right where it contradicts the label.

    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2, with a weight; where the teacher's likeliest class is
    not the label, the probabilities of the two change places, as in Wen et al. 2019 (arXiv 1911.07471), section 3.2:
    a factory model may be wrong on half of what a turned camera shows, and still knows what resembles what.
    """

    share: float  # 0..1, the teacher's
    temperature: float

    is_label_free: ClassVar[bool] = False
    wants_features: ClassVar[bool] = False

    def __call__(self, student: Output, teacher: Output, labels: torch.Tensor) -> torch.Tensor:  # noqa: D102
        mine, theirs = _shared(student, teacher)
        soft = _put_right(functional.softmax(theirs / self.temperature, dim=1), labels, teacher.classes)
        said = functional.log_softmax(mine / self.temperature, dim=1)
        divergence = functional.kl_div(said, soft, reduction="batchmean") * self.temperature**2
        return (1 - self.share) * functional.cross_entropy(student.logits, labels) + self.share * divergence


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """
    The mean squared distance to logits, those of now or of long ago; a share below one adds the cross-entropy.

    Source: Buzzega et al. 2020 (arXiv 2004.07211), section 3, with a share in the place of its factor alpha.
    """

    share: float = 1.0  # 0..1, the logits'

    wants_features: ClassVar[bool] = False

    @property
    def is_label_free(self) -> bool:  # noqa: D102
        return self.share == 1.0

    def __call__(self, student: Output, teacher: Output, labels: torch.Tensor) -> torch.Tensor:  # noqa: D102
        distance = functional.mse_loss(*_shared(student, teacher))
        if self.is_label_free:
            return distance
        return (1 - self.share) * functional.cross_entropy(student.logits, labels) + self.share * distance


def make_transfer(name: str, *, share: float, temperature: float) -> TransferLoss | None:
    """
    The loss of that name; None where the teacher has no share in it.

    Args:
        name: one of TRANSFERS.
        share: 0..1, the teacher's; "label_free" has no other part and does not ask for it.
        temperature: of "hinton".

    Raises:
        UsageError: there is no such loss.
    """
    if name not in TRANSFERS:
        raise UsageError(f"there is no transfer {name!r}", hint=f"use one of: {', '.join(TRANSFERS)}")
    if name == "label_free":
        return LabelFree()
    if share <= 0:
        return None
    return Hinton(share=share, temperature=temperature) if name == "hinton" else Replay(share=share)


def is_label_free(name: str, share: float) -> bool:
    """Whether a lesson with that transfer and share of the teacher looks at no label at all."""
    made = make_transfer(name, share=share, temperature=1.0)
    return made is not None and made.is_label_free


def has_teacher(recipe: Recipe) -> bool:
    """Whether a recipe asks anybody beside the labels."""
    return recipe.distillation > 0 or recipe.transfer == "label_free"


def answered(teacher: Teacher, shown: Shown) -> Output:
    """What a teacher says of a batch, asked about that part of it that it has not spoken of; its logits alone where it has."""
    if shown.said is None or not len(shown.said.logits):
        return teacher(shown)
    said = replace(shown.said, logits=shown.said.logits.to(shown.images.device))
    if len(said.logits) == len(shown.images):
        return said
    rest = teacher(shown.part(np.arange(len(said.logits), len(shown.images))))
    return replace(said, logits=torch.cat([said.logits, rest.logits]))


def telling_logits(module: nn.Module, classes: Sequence[int] | None = None) -> Teacher:
    """
    A network as a teacher that tells its logits and no features.

    For a student that was cut out of it: channel by channel the features of the two are not those of the same filters.

    Args:
        module: in eval mode.
        classes: the columns that it has a say in; None: all.
    """

    def ask(shown: Shown) -> Output:
        with torch.no_grad():
            logits = module(shown.images).float()
        return Output(logits=logits if classes is None else logits[:, list(classes)], classes=_numbers(classes))

    return ask


def _numbers(classes: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if classes is None else tuple(classes)


class StoredLogits:
    """A teacher that is not there any more: what it said of each sample, whatever change the sample is shown with."""

    def __init__(
        self, sample_ids: Integers, logits: npt.NDArray[np.float32], classes: tuple[int, ...] | None = None
    ) -> None:
        """`sample_ids` [N], what was said of them [N, K], and of which classes, as in `Output`."""
        self._classes = classes
        self._rows = {int(sample_id): row for row, sample_id in enumerate(sample_ids)}
        self._logits = logits

    def __call__(self, shown: Shown) -> Output:
        """
        Look the batch up.

        Raises:
            UsageError: nothing is stored of one of its samples.
        """
        missing = [int(i) for i in shown.sample_ids if int(i) not in self._rows]
        if missing:
            raise UsageError(f"no logits are stored of sample {missing[0]}", hint="store those of all samples first")
        logits = self._logits[[self._rows[int(i)] for i in shown.sample_ids]]
        found = torch.from_numpy(np.asarray(logits, dtype=np.float32)).to(shown.images.device)
        return Output(logits=found, classes=self._classes)


@contextlib.contextmanager
def tapped(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """
    While it lasts, keep what the named layers give in the last forward pass: name -> [B, C, H, W].

    Raises:
        ModelError: the module has no such layer.
    """
    seen: dict[str, torch.Tensor] = {}

    def remember(name: str, _layer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        seen[name] = output

    with contextlib.ExitStack() as hooks:
        for name in names:
            try:
                layer = module.get_submodule(name)
            except AttributeError as error:
                raise ModelError(f"the network has no layer {name!r} to take features from") from error
            hooks.callback(layer.register_forward_hook(functools.partial(remember, name)).remove)
        yield seen


def group_taps(module: nn.Module) -> tuple[str, ...]:
    """
    The layers that give the features of a network's groups, after their ReLU; none where it has no such groups.

    A network says so itself in an attribute `taps`; else they are its children layer1, layer2, ... as in a ResNet.
    """
    own = getattr(module, "taps", None)
    if own is not None:
        return tuple(own)
    children = dict(module.named_children())
    return tuple(itertools.takewhile(children.__contains__, (f"layer{i}" for i in itertools.count(1))))


def look(module: nn.Module, images: torch.Tensor, taps: Sequence[str] = ()) -> Output:
    """
    Run a network once; images [B, 3, H, W] -> its logits and the features at `taps`, in float32.

    Raises:
        ModelError: a tapped layer does not exist or took no part.
    """
    with tapped(module, taps) as seen:
        logits = module(images)
    if missing := [name for name in taps if name not in seen]:
        raise ModelError(f"the layer {missing[0]!r} took no part in the network's answer")
    return Output(logits=logits.float(), features=tuple(seen[name].float() for name in taps))


def _shared(student: Output, teacher: Output) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of both over the classes that both know, once they are known to fit."""
    mine, theirs = student.logits, teacher.logits.detach()
    if teacher.classes is not None:
        mine = mine.index_select(1, torch.tensor(teacher.classes, device=mine.device))
    if theirs.shape != mine.shape:
        raise ModelError(
            f"the teacher answers {list(theirs.shape)} (images, classes) and the student {list(mine.shape)}",
            hint="map the teacher's classes to the student's first",
        )
    return mine, theirs


def _distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The root of the mean squared difference; its gradient is zero, and not NaN, where the two are equal."""
    norm: torch.Tensor = torch.linalg.vector_norm(one - other)
    return norm / math.sqrt(one.numel())


def _along_batch(features: torch.Tensor) -> torch.Tensor:
    """Each position of each channel over the L2 norm that it has in the batch, 0 where silent; [B, C, H, W]."""
    norms = torch.linalg.vector_norm(features, dim=0, keepdim=True)
    return torch.where(norms > _LEAST_NORM, features / norms.clamp_min(_LEAST_NORM), 0.0)


def _padded(mine: torch.Tensor, theirs: torch.Tensor, group: int) -> torch.Tensor:
    """[B, C, H, W] with channels of zeros appended, as many as the teacher has more."""
    if mine.shape[2:] != theirs.shape[2:]:
        sizes = [" x ".join(str(side) for side in features.shape[2:]) for features in (mine, theirs)]
        raise ModelError(
            f"the features of group {group} are {sizes[0]} in the student and {sizes[1]} in the teacher",
            hint="both must halve the image in the same places; or take a transfer that looks at logits alone",
        )
    if mine.shape[1] > theirs.shape[1]:
        raise ModelError(
            f"group {group} has {mine.shape[1]} channels in the student and only {theirs.shape[1]} in the teacher",
            hint="take a student that is nowhere wider; or take a transfer that looks at logits alone",
        )
    return functional.pad(mine, (0, 0, 0, 0, 0, theirs.shape[1] - mine.shape[1]))


def _put_right(soft: torch.Tensor, labels: torch.Tensor, classes: Sequence[int] | None) -> torch.Tensor:
    """
    Probabilities [B, K] whose largest changes places with that of the label [B].

    Args:
        soft: of the classes that the teacher knows.
        labels: the student's numbers.
        classes: the student's number of each column, None: the same; a label that is none of them changes nothing.
    """
    likeliest, label = soft.argmax(dim=1, keepdim=True), labels[:, None]
    if classes is not None:
        is_label = label == torch.tensor(classes, device=labels.device)  # [B, K]
        label = torch.where(is_label.any(dim=1, keepdim=True), is_label.int().argmax(dim=1, keepdim=True), likeliest)
    return soft.scatter(1, likeliest, soft.gather(1, label)).scatter(1, label, soft.gather(1, likeliest))
