"""
New classes learnt beside replayed old ones, in an adapting round: which old samples are replayed, and the loss by labels.

A class is new to a round when its base has no output for it, or one with a mark: imprinted, or known from a teacher alone.
In a batch the images of new classes are the stream, as the literature calls it, and all others are replayed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from edgetune.learn.data import Integers, LabelledImages, Normaliser, load_samples, step_seed
from edgetune.learn.imprint import answer_readily, features_of, hold_back, right_without
from edgetune.learn.network import Network
from edgetune.learn.replay import Floats, choose_samples, cross_entropy_among, der_pp_loss, er_ace_loss
from edgetune.learn.transfer import is_label_free
from edgetune.store.durable import write_atomic
from edgetune.types import FrozenSample, Manifest, Recipe, RoundKind, RoundSpec, Split

ALPHA, BETA = 0.2, 0.5  # of der++, as published for CIFAR-10 and a buffer of 500
LOGITS_FILE = "checkpoint.logits.npz"
_BATCH = 64


def new_classes(spec: RoundSpec, base: Manifest) -> tuple[str, ...]:
    """The classes that an adapting round is the first to train on; none in a round of another kind."""
    if spec.kind is not RoundKind.ADAPT:
        return ()
    shown = {sample.label for sample in spec.samples if sample.split is Split.TRAINING}
    learnt = set(base.classes) - set(base.marks)
    return tuple(label for label in spec.classes if label in shown and label not in learnt)


def choose_replay(
    spec: RoundSpec,
    recipe: Recipe,
    base: Manifest,
    *,
    load: Callable[[], Network],
    device: torch.device,
    beat: Callable[[], None],
) -> list[int] | None:
    """
    Which old training samples an adapting round with new classes learns from beside the new ones.

    Args:
        spec: of the round.
        recipe: how many bytes of decoded images they may be, and how they are chosen.
        base: whose classes are the old ones.
        load: makes the base's network, which herding looks through.
        device: where it looks.
        beat: called after every image and batch.

    Returns:
        Their sample ids, evenly over the classes; None: all of them.
    """
    new, size = set(new_classes(spec, base)), base.preprocess
    training = [s for s in spec.samples if s.split is Split.TRAINING and s.label is not None]
    old = [s for s in training if s.label not in new]
    if not new or recipe.replay_max_bytes is None:
        return None
    capacity = recipe.replay_max_bytes // (size.height * size.width * 3)
    if capacity >= len(old):
        return None
    seed = step_seed(recipe.seed, spec.round_id, 2)
    if recipe.replay == "herding":
        data = load_samples(Path(spec.buffer_path), old, spec.classes, size, beat=beat)[0][Split.TRAINING]
        network = load()
        network.module.to(device)
        features = features_of(network, _normalised(data, Normaliser(size, device), beat))
        chosen = choose_samples(data.labels, capacity, features=features.cpu().numpy())
        return [int(i) for i in data.sample_ids[chosen]]
    index = {label: number for number, label in enumerate(spec.classes)}
    labels = np.array([index[sample.label] for sample in old if sample.label is not None], dtype=np.int64)
    return [old[i].sample_id for i in choose_samples(labels, capacity, seed=seed).tolist()]


def keep_replayed(
    samples: Sequence[FrozenSample], new: Sequence[str], replayed: Sequence[int] | None
) -> tuple[FrozenSample, ...]:
    """The samples of a round without the old training samples that are not replayed; None: all are."""
    if replayed is None:
        return tuple(samples)
    kept, others = set(replayed), {*new, None}  # nobody has said of what class an unlabelled one is
    return tuple(s for s in samples if s.split is not Split.TRAINING or s.label in others or s.sample_id in kept)


class Rehearsal:
    """
    The loss of a batch by its labels; new classes and replayed ones are told apart by the label.

    How:
        er_ace: among the stream only the new classes of the batch compete, among the replayed images all classes that the
            round shows; see `replay.er_ace_loss`. Every other image of a new class counts as replayed: the memory of the
            literature has them too, once they were seen, and without them nothing would tell new from old.
        der++: cross-entropy on the new images, the base's logits on every other replayed image, and the labels of the
            rest; see `replay.der_pp_loss`.

    As published, the two parts of a batch count the same, however few images one of them has.
    """

    def __init__(self, how: str, *, new: Sequence[int], shown: Sequence[int], classes: int) -> None:
        """`new` and `shown` are numbers of classes, `classes` is how many outputs there are."""
        self._how = how
        self._is_new, self._is_shown = torch.zeros(2, classes, dtype=torch.bool)
        self._is_new[list(new)] = True
        self._is_shown[list(shown)] = True
        self._rows: dict[int, int] = {}
        self._logits = torch.empty(0, classes)

    def remember(self, sample_ids: Integers, logits: Floats) -> None:
        """What the base said of replayed samples: ids [R], logits [R, outputs of the base]; of new classes it said nothing."""
        self._rows = {int(sample_id): row for row, sample_id in enumerate(sample_ids)}
        self._logits = torch.full((len(logits), len(self._is_new)), float("nan"))
        self._logits[:, : logits.shape[1]] = torch.from_numpy(logits)
        self._logits[:, self._is_new] = float("nan")

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, sample_ids: Integers) -> torch.Tensor:
        """The loss, a scalar; logits [B, C], labels [B] int64, sample_ids [B]."""
        is_new = self._is_new.to(labels.device)[labels]
        if self._how == "er_ace":
            return self._er_ace(logits, labels, is_new)
        old = torch.nonzero(~is_new)[:, 0]
        if not len(old):
            return functional.cross_entropy(logits, labels)
        first, second = old[::2], old[1::2] if len(old) > 1 else old
        rows = [self._rows[int(sample_ids[i])] for i in first.tolist()]
        stored = self._logits[rows].to(logits.device)
        stream = functional.cross_entropy(logits[is_new], labels[is_new]) if bool(is_new.any()) else logits.sum() * 0.0
        return der_pp_loss(stream, (logits[first], stored), (logits[second], labels[second]), alpha=ALPHA, beta=BETA)

    def _er_ace(self, logits: torch.Tensor, labels: torch.Tensor, is_new: torch.Tensor) -> torch.Tensor:
        shown = self._is_shown.to(labels.device)
        is_stream = is_new & (is_new.cumsum(dim=0) % 2 == 1)
        if not bool(is_stream.any()):
            return cross_entropy_among(logits, labels, shown)
        return er_ace_loss(logits[is_stream], labels[is_stream], logits[~is_stream], labels[~is_stream], shown)


def hold_back_new(
    network: Network,
    *,
    spec: RoundSpec,
    recipe: Recipe,
    base: Manifest,
    validation: LabelledImages,
    normaliser: Normaliser,
    beat: Callable[[], None],
) -> dict[str, float]:
    """
    After the training of a round with new classes: let these take no more from the old ones than the recipe allows.

    Args:
        network: trained; changed in place, see `imprint.hold_back`.
        spec, recipe, base: of the round.
        validation: the round's; a label-free transfer does not look at its labels, so nothing is done.
        normaliser: of the network's input.
        beat: called after every batch.

    Returns:
        New class -> what was added to its bias.
    """
    new = [spec.classes.index(label) for label in new_classes(spec, base)]
    share = recipe.old_classes_drop_max
    if not new or share is None or not len(validation) or is_label_free(recipe.transfer, recipe.distillation):
        return {}
    features = features_of(network, _normalised(validation, normaliser, beat))
    right = right_without(network, new, features, torch.from_numpy(validation.labels))
    shifts = hold_back(network, new, right, share=share, class_share=recipe.old_class_drop_max)
    return {spec.classes[row]: round(shift, 4) for row, shift in shifts.items()}


def answer_never_shown(
    network: Network,
    rows: Sequence[int],
    *,
    recipe: Recipe,
    validation: LabelledImages,
    normaliser: Normaliser,
    beat: Callable[[], None],
) -> float:
    """
    After the training of a round that teaches classes that no sample shows: how readily they are answered.

    Args:
        network: trained; changed in place, see `imprint.answer_readily`.
        rows: of these classes.
        recipe: of the round: at most half of what old classes may lose.
        validation: the round's; its labels are not looked at.
        normaliser: of the network's input.
        beat: called after every batch.

    Returns:
        What was added to their biases.
    """
    if recipe.old_classes_drop_max is None or not len(validation):
        return 0.0
    features = features_of(network, _normalised(validation, normaliser, beat))
    return round(answer_readily(network, rows, features, share=recipe.old_classes_drop_max / 2), 4)


def make_rehearsal(
    round_dir: Path,
    spec: RoundSpec,
    recipe: Recipe,
    base: Manifest,
    training: LabelledImages,
    *,
    is_begun: bool,
    load: Callable[[], Network],
    device: torch.device,
    beat: Callable[[], None],
) -> Rehearsal | None:
    """
    The recipe's loss for a round with new classes; None: cross-entropy.

    The base's logits are asked for once, when the round begins, and lie beside its checkpoint.

    Args:
        round_dir, spec, recipe, base: of the round.
        training: its training samples, as they are without a random change.
        is_begun: the round goes on; what was kept of it counts.
        load, device, beat: as for `choose_replay`.
    """
    new = [spec.classes.index(label) for label in new_classes(spec, base)]
    if not new or recipe.rehearsal == "plain":
        return None
    shown = np.unique(training.labels).tolist()
    rehearsal = Rehearsal(recipe.rehearsal, new=new, shown=shown, classes=len(spec.classes))
    if recipe.rehearsal == "der++":
        path = round_dir / LOGITS_FILE
        if not (is_begun and path.exists()):
            network = load()
            network.module.to(device)
            write_atomic(path, _packed(_ask(network, training, Normaliser(base.preprocess, device), beat)))
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            rehearsal.remember(arrays["sample_ids"], arrays["logits"])
    return rehearsal


def _normalised(data: LabelledImages, normaliser: Normaliser, beat: Callable[[], None]) -> Iterator[torch.Tensor]:
    for images, _ in data.in_order(_BATCH):
        yield normaliser(images)
        beat()


def _ask(
    network: Network, data: LabelledImages, normaliser: Normaliser, beat: Callable[[], None]
) -> tuple[Integers, Floats]:
    network.module.eval()
    with torch.no_grad():
        said = [network.module(images).float().cpu() for images in _normalised(data, normaliser, beat)]
    return data.sample_ids, torch.cat(said).numpy()


def _packed(answers: tuple[Integers, Floats]) -> bytes:
    file = io.BytesIO()
    np.savez(file, sample_ids=answers[0], logits=answers[1])
    return file.getvalue()
