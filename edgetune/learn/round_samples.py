"""What a round learns from and is judged on: its labelled samples, and those unlabelled ones that the teacher is sure of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.errors import NoSamplesError, OneClassError, TeacherError
from edgetune.learn.control import Control
from edgetune.learn.data import LabelledImages, load_samples, load_unlabelled
from edgetune.learn.round_teacher import RoundTeacher
from edgetune.learn.unlabelled import joined, sift, sift_once
from edgetune.types import Preprocess, RoundSpec, Split

UNLABELLED_FILE = "unlabelled.json"


def gather(
    spec: RoundSpec,
    *,
    base_classes: Sequence[str],
    preprocess: Preprocess,
    teacher: RoundTeacher | None,
    kept_in: Path,
    digest: str,
    control: Control,
    journal: MutableMapping[str, Any],
) -> dict[Split, LabelledImages]:
    """
    Read and decode them, ask about those without a label, and see to it that there is something to learn.

    Args:
        spec: of the round.
        base_classes: of the served version.
        preprocess: of the model.
        teacher: None: nobody is asked, and unlabelled samples stay out.
        kept_in: a directory; what the teacher said of unlabelled samples is asked once for a round.
        digest: of the round.
        control: hears of every sample.
        journal: gets the counts.

    Raises:
        NoSamplesError, OneClassError: nothing can be learnt from them.
        TeacherError: nor from the teacher alone; or it gives no answer.
        StopAskedError: a stop was asked for.
    """
    splits, bad = load_samples(Path(spec.buffer_path), spec.samples, spec.classes, preprocess, beat=control.beat)
    journal["samples"] = {split.value: len(data) for split, data in splits.items()}
    journal["undecodable_samples"] = list(bad)
    if teacher is not None and any(sample.label is None for sample in spec.samples):
        splits[Split.TRAINING] = _with_unlabelled(
            splits, spec, preprocess, teacher, kept_in / UNLABELLED_FILE, digest, control, journal
        )
    check_samples(
        splits[Split.TRAINING],
        spec.classes,
        base_classes if teacher is None or teacher.outside is None else (*base_classes, *teacher.outside.unseen),
        taught=None if teacher is None else teacher.taught,
        unlabelled=journal.get("unlabelled"),
    )
    return splits


def _with_unlabelled(  # noqa: PLR0917 - one caller
    splits: Mapping[Split, LabelledImages],
    spec: RoundSpec,
    preprocess: Preprocess,
    teacher: RoundTeacher,
    path: Path,
    digest: str,
    control: Control,
    journal: MutableMapping[str, Any],
) -> LabelledImages:
    """The training with those unlabelled samples that the teacher is sure of."""
    recipe = spec.recipe
    taken_bytes = sum(split.pixels.nbytes for split in splits.values())
    images, bad = load_unlabelled(
        Path(spec.buffer_path), spec.samples, preprocess, beat=control.beat, memory_taken_bytes=taken_bytes
    )
    found = sift_once(
        path,
        digest,
        lambda: sift(
            images,
            teacher.probabilities,
            confidence_min=recipe.unlabelled_confidence_min,
            how=recipe.augment,
            seed=recipe.seed,
            control=control,
        ),
    )
    by_class = Counter(spec.classes[number] for number in found.labels.values())
    journal["undecodable_samples"] += list(bad)
    journal["unlabelled"] = {
        "used": len(found.labels),
        "unsure": found.unsure,
        "inconsistent": found.inconsistent,
        "by_class": dict(sorted(by_class.items())),
    }
    return joined(splits[Split.TRAINING], images, found.labels)


def check_samples(
    training: LabelledImages,
    classes: Sequence[str],
    base_classes: Sequence[str],
    *,
    taught: Sequence[str] | None = None,
    unlabelled: Mapping[str, Any] | None = None,
) -> None:
    """
    Refuse what no model can be learnt from.

    Args:
        training: labelled by people or by the teacher.
        classes: of the candidate.
        base_classes: of the served version, and those that come from the teacher alone.
        taught: the classes that the teacher knows, where it alone is learnt from and no label is looked at.
        unlabelled: what became of unlabelled samples, if there were any.

    Raises:
        NoSamplesError: no training samples, or none of a class that is new.
        OneClassError: all training samples are of one class, and labels are all there is to learn from.
        TeacherError: the teacher alone is learnt from, and does not know a class that is new.
    """
    present = {classes[number] for number in set(training.labels.tolist())}
    new = [label for label in classes if label not in base_classes]
    if not present:
        raise _none_to_train_on(unlabelled)
    if taught is not None:
        if unknown := [label for label in new if label not in taught]:
            raise TeacherError(
                f"the teacher does not know the new class {', '.join(unknown)}, and its word is all that is learnt from",
                hint="set training.transfer to hinton, or refuse the class: edgetune data refuse CLASS",
            )
        return
    if empty := [label for label in new if label not in present]:
        raise NoSamplesError(f"no training sample of the new class {', '.join(empty)}", hint="add samples of it")
    if len(present) == 1:
        raise OneClassError(
            f"all {len(training)} training samples are of class {present.pop()!r}: there is nothing to tell apart"
        )


def _none_to_train_on(unlabelled: Mapping[str, Any] | None) -> NoSamplesError:
    if unlabelled is None:
        return NoSamplesError("there is no labelled training sample", hint="label some: edgetune data label")
    left_out = unlabelled["unsure"] + unlabelled["inconsistent"]
    return NoSamplesError(
        f"there is no labelled training sample, and of {left_out} unlabelled ones the teacher is sure of none",
        hint="label some: edgetune data next; or lower training.unlabelled_confidence_min",
    )
