"""Buffer statistics x time since the last round -> is a round wanted, of which kind, why, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgetune.decide.returning import Returned
from edgetune.types import BufferStats, ClassStats, RoundKind


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerPolicy:
    """When a round is wanted."""

    new_samples: int = 200
    new_class_samples: int = 20
    new_unlabelled: int | None = None  # unlabelled ones that make a round worth it; None: none do
    learns_unlabelled: bool = False  # rounds learn from them, so that none needs a label for training
    concern_samples: int = 20
    max_interval_s: float | None = None  # a round is wanted after this long if there is anything new
    min_interval_s: float = 0.0
    holdout_min: int = 50  # the gate would refuse below this, so do not train in vain
    prunes: bool = True  # else there is nothing to reshape for


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedSummary:
    """What the trigger must know of the served version."""

    classes: tuple[str, ...]  # but those that carry a mark: their first samples are those of a new class
    marked: tuple[str, ...] = ()  # these
    tuned_classes: tuple[str, ...]  # the classes its round had samples of; empty for a factory model
    absent_classes: frozenset[str] = frozenset()  # it has outputs for them, and its round did not show them
    is_target_met: bool  # it was pruned to the level that the configuration asks for


@dataclass(frozen=True, slots=True, kw_only=True)
class Concern:
    """Unlabelled images say that the served version does worse than it did; a round can help once some have labels."""

    reason: str
    labelled: int  # training samples of such images, labelled and not yet used by a round


@dataclass(frozen=True, slots=True, kw_only=True)
class ManualRequest:
    """An operator asked for a round."""

    kind: RoundKind | None = None  # None: as the trigger would choose
    is_forced: bool = False  # even with few samples
    by: str = "operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """Whether a round is wanted, with the words for it."""

    is_wanted: bool
    kind: RoundKind
    reason: str
    classes: tuple[str, ...] = ()  # of an imprint: which
    missing: tuple[str, ...] = ()  # "37 of 200 new samples"
    next_in_s: float | None = None  # when only time is missing


def consider(
    stats: BufferStats,
    policy: TriggerPolicy,
    served: ServedSummary | None,
    *,
    since_last_s: float | None,
    manual: ManualRequest | None = None,
    returned: Sequence[Returned] = (),
    concern: Concern | None = None,
    to_imprint: Sequence[str] = (),
    cooling_s: float = 0.0,
) -> Want:
    """
    Say whether a round is wanted.

    Args:
        stats: what the buffer holds.
        policy: the operator's thresholds.
        served: the served version, None when there is none.
        since_last_s: seconds since the last round ended, None when there was none.
        manual: an operator's request, if one is open.
        returned: classes that the factory model sees again, their samples labelled and not yet used by a round.
        concern: that the images have changed, or that the served version errs more often.
        to_imprint: new classes that can be answered at once, see `decide.imprinting`; takes seconds and waits for nothing.
        cooling_s: seconds of a cool-down that are left.

    Returns:
        The answer; when no, `missing` says what would make it a yes.
    """
    kind, kind_reason = _kind(stats.classes, served, policy)
    if served is None:
        return Want(is_wanted=False, kind=kind, reason="no model is served yet", missing=("a factory model",))
    kind = (manual.kind or kind) if manual else kind
    lacking = [] if manual and manual.is_forced else _lacking(stats, policy, served)
    if manual:
        if lacking:
            return Want(is_wanted=False, kind=kind, reason=f"asked for by {manual.by}", missing=tuple(lacking))
        return Want(is_wanted=True, kind=kind, reason=f"asked for by {manual.by}")
    if to_imprint and not _too_few_to_judge(stats.classes, policy, served):
        return _imprint(stats.classes, to_imprint)
    cause, missing = _cause(stats, policy, served, since_last_s)
    cause = next((each.reason for each in returned), cause)  # says more than the samples that it labelled
    if cause is None and concern is not None:
        cause = concern.reason
        if concern.labelled < policy.concern_samples:  # a round would learn what the model knows already
            labels = f"{concern.labelled} of {policy.concern_samples} new labels of such images: edgetune data next"
            missing, lacking = [], [labels, *missing, *lacking]
    if cause is None or lacking:
        return Want(is_wanted=False, kind=kind, reason=cause or "not enough that is new", missing=(*missing, *lacking))
    waits = [(cooling_s, "of the cool-down (triggers.cooldown)")]
    if since_last_s is not None:
        waits.append((policy.min_interval_s - since_last_s, "since the last round (triggers.min_interval)"))
    wait_s, what = max(waits)
    if wait_s > 0:
        missing = [f"{wait_s / 60:.0f} more minutes {what}"]
        return Want(is_wanted=False, kind=kind, reason=cause, missing=tuple(missing), next_in_s=wait_s)
    return Want(is_wanted=True, kind=kind, reason=f"{cause}; {kind.value}: {kind_reason}")


def _cause(
    stats: BufferStats, policy: TriggerPolicy, served: ServedSummary, since_last_s: float | None
) -> tuple[str | None, list[str]]:
    known = set(served.classes)
    for entry in _accepted(stats.classes):
        if entry.label not in known and entry.training >= policy.new_class_samples:
            return f"class {entry.label!r} is new, with {entry.training} training samples", []
        if entry.label in served.absent_classes and entry.training_since_round >= policy.new_class_samples:
            count = entry.training_since_round
            return f"class {entry.label!r}, which this site had not shown, is back with {count} training samples", []
    if stats.new_labelled >= policy.new_samples:
        return f"{stats.new_labelled} of {policy.new_samples} new samples", []
    if policy.new_unlabelled is not None and stats.new_unlabelled >= policy.new_unlabelled:
        return f"{stats.new_unlabelled} of {policy.new_unlabelled} new unlabelled images, for the teacher to name", []
    overdue = policy.max_interval_s is not None and since_last_s is not None and since_last_s >= policy.max_interval_s
    if overdue and stats.new_labelled > 0:
        return f"{stats.new_labelled} new samples and the last round is long ago (triggers.max_interval)", []
    missing = [f"{stats.new_labelled} of {policy.new_samples} new samples"]
    if policy.new_unlabelled is not None:
        missing.append(f"or {stats.new_unlabelled} of {policy.new_unlabelled} new unlabelled images")
    missing += [
        f"{entry.training} of {policy.new_class_samples} training samples of the new class {entry.label!r}"
        for entry in _accepted(stats.classes)
        if entry.label not in known
    ]
    missing += [
        f"your word on the pending class {entry.label!r} ({entry.total} samples): edgetune data accept {entry.label}"
        for entry in stats.classes
        if entry.status == "pending"
    ]
    return None, missing


def judging(classes: Iterable[ClassStats], known: Sequence[str]) -> int:
    """
    Hold-out samples that the gate would judge a round by.

    Args:
        classes: what the buffer holds.
        known: the classes that the served version has an output for. Theirs count; where there is none at all, all others.
    """
    accepted = _accepted(classes)
    return _of_known(accepted, known) or sum(entry.holdout for entry in accepted)


def _of_known(classes: Iterable[ClassStats], known: Sequence[str]) -> int:
    """Hold-out samples of these."""
    return sum(entry.holdout for entry in _accepted(classes) if entry.label in known)


def _lacking(stats: BufferStats, policy: TriggerPolicy, served: ServedSummary) -> list[str]:
    """What a round cannot do without, whatever asked for it."""
    accepted = _accepted(stats.classes)
    lacking = []
    is_taught = policy.learns_unlabelled and stats.unlabelled > 0
    if not is_taught and sum(entry.training > 0 for entry in accepted) < 2:
        lacking.append("labelled training samples of at least two classes")
    holdout = judging(stats.classes, (*served.classes, *served.marked))
    if holdout < policy.holdout_min:
        hint = (
            ""
            if holdout
            else "; images of one source within buffer.group_block share a split, a sidecar's group tells them apart"
        )
        lacking.append(f"{holdout} of {policy.holdout_min} hold-out samples (gate.holdout_min{hint})")
    return lacking


def _imprint(classes: Iterable[ClassStats], to_imprint: Sequence[str]) -> Want:
    counts = {entry.label: entry.training for entry in classes}
    named = ", ".join(f"{label!r} with {counts[label]} training samples" for label in to_imprint)
    reason = f"new: {named}; imprint: to be answered at once, provisionally, until a round learns it"
    return Want(is_wanted=True, kind=RoundKind.IMPRINT, reason=reason, classes=tuple(to_imprint))


def _too_few_to_judge(classes: Iterable[ClassStats], policy: TriggerPolicy, served: ServedSummary) -> bool:
    """
    Whether there are too few hold-out samples of the classes that are known to judge an imprint.

    Without any of them a round that trains may do, which distils; a row that is written has nothing that holds it back.
    """
    return _of_known(classes, (*served.classes, *served.marked)) < policy.holdout_min


def _kind(classes: Iterable[ClassStats], served: ServedSummary | None, policy: TriggerPolicy) -> tuple[RoundKind, str]:
    if not policy.prunes:
        return RoundKind.ADAPT, "nothing is to be pruned (pruning.level)"
    if served is None or not served.is_target_met:
        return RoundKind.RESHAPE, "the served model is not pruned to pruning.level"
    if {entry.label for entry in _accepted(classes) if entry.training} - set(served.tuned_classes):
        return RoundKind.RESHAPE, "the mix of classes has changed"
    return RoundKind.ADAPT, "the mix of classes is the same"


def _accepted(classes: Iterable[ClassStats]) -> list[ClassStats]:
    return [entry for entry in classes if entry.status == "accepted"]
