"""
Candidate against served model -> promote or refuse, with every reason.

Both models saw the same hold-out samples, so the accuracies are compared as pairs: only the samples on which the two
disagree say anything. Two bounds apply to the drop on the classes that both models know. The observed drop may not
exceed `accuracy_drop_max`; and the largest drop that the hold-out cannot rule out may not exceed `accuracy_risk_max`,
else the hold-out is too small to tell.

A board that holds no sample at all of the classes that were known shows none of them: they are absent classes like
others, told and, with `absent_drop_max`, judged on reference images; the new classes alone decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from edgetune.types import ClassScore, Comparison, GateDecision, GatePolicy, Metrics

_RIGHT_OF_NEW = 0.5  # of the new classes' samples, where the board has no other


def judge(comparison: Comparison, policy: GatePolicy, *, shown_anew: Sequence[str] = ()) -> GateDecision:
    """
    Decide on a candidate.

    Args:
        comparison: both models on the same hold-out and the same runtime.
        policy: the operator's bounds.
        shown_anew: classes that both have outputs for and only the candidate was shown: back after an absence, or imprinted.
            The hold-out may have none of them, so they count as gained for having been shown.

    Returns:
        The decision; when promoted, `reasons` say what was gained, else all that speaks against it.
    """
    against = [*_sanity(comparison), *_accuracy(comparison, policy), *_runtime(comparison, policy)]
    warnings: list[str] = []
    for label in comparison.gone_classes:
        words = f"no longer knows {label!r}: no training sample of it is left, and the factory model does not know it"
        (against if label in (policy.protected_classes or ()) else warnings).append(words)
    for more_against, more_warnings in (_per_class(comparison, policy), _absent(comparison, policy)):
        against += more_against
        warnings += more_warnings
    gains = _gains(comparison, policy)
    gains += [f"was shown {label!r}, which the served version was not" for label in shown_anew]
    if not against and not gains:
        against.append("nothing is gained: neither more accurate, nor faster, nor smaller, nor a class more")
    return GateDecision(is_promoted=not against, reasons=tuple(against or gains), warnings=tuple(warnings))


def largest_plausible_drop(only_base: int, only_candidate: int, count: int, confidence: float) -> float:
    """
    Upper bound of the true drop in accuracy from paired answers.

    Args:
        only_base: samples that only the base got right.
        only_candidate: samples that only the candidate got right.
        count: all samples.
        confidence: of the one-sided bound, 0..1.

    Returns:
        A difference of shares; negative when the candidate is better with this confidence.

    Source: Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions": the Wald
    interval after adding one half to each of the four cells.
    """
    b, c, n = only_base + 0.5, only_candidate + 0.5, count + 2.0
    spread = math.sqrt(max(0.0, (b + c) - (b - c) ** 2 / n)) / n
    return (b - c) / n + NormalDist().inv_cdf(confidence) * spread


def chance_of_drop(before: int, after: int, count: int) -> float:
    """
    How likely it is to see a fall at least as large when nothing has changed.

    Args:
        before: right answers of the base.
        after: right answers of the candidate.
        count: samples of the class, the same for both.

    Returns:
        The one-sided p-value of Fisher's exact test on the two counts. The answers are paired, which this does not
        use; that makes it the more cautious in calling a fall real.
    """
    right = before + after
    ways = [math.comb(count, k) * math.comb(count, right - k) for k in range(max(0, right - count), after + 1)]
    return sum(ways) / math.comb(2 * count, right)


def chance_of_pairs(only_base: int, only_candidate: int) -> float:
    """
    How likely it is to lose at least so many answers and win so few when nothing has changed.

    Args:
        only_base: samples that only the base got right.
        only_candidate: samples that only the candidate got right.

    Returns:
        The one-sided p-value of McNemar's exact test.
    """
    changed = only_base + only_candidate
    chance: float = sum(math.comb(changed, k) for k in range(only_base, changed + 1)) / (1 << changed)
    return chance


def has_lost_accuracy(comparison: Comparison, policy: GatePolicy) -> bool:
    """
    Whether a candidate is refused for right answers that it lost, and chance does not explain it.

    Then the labels that it was trained on are worth a look. `accuracy_risk_max` plays no part: what cannot be ruled out was
    not seen.
    """
    if _sanity(comparison):
        return False
    before, after, count = _right_of_old(comparison)
    fell = count >= policy.holdout_min and (before - after) / count > policy.accuracy_drop_max
    if fell and chance_of_pairs(*_changed_of_old(comparison)) <= 1 - policy.confidence:
        return True
    return any(fall.chance <= 1 - policy.confidence for fall in _falls(comparison, policy))


def _right_of_old(comparison: Comparison) -> tuple[int, int, int]:
    """Right answers of the base and of the candidate on samples of classes that both know, and how many these are."""
    before, count = _old_classes(comparison.base, comparison.new_classes)
    after, _ = _old_classes(comparison.candidate, comparison.new_classes)
    return before, after, count


def _changed_of_old(comparison: Comparison) -> tuple[int, int]:
    """Of these samples, those that only the base and those that only the candidate got right."""
    # New classes cannot hide a loss: their samples are right only for the candidate and are not counted here.
    gained_new = sum(
        score.correct for label, score in comparison.candidate.per_class.items() if label in comparison.new_classes
    )
    return comparison.only_base_correct, max(0, comparison.only_candidate_correct - gained_new)


def _old_classes(metrics: Metrics, new_classes: tuple[str, ...]) -> tuple[int, int]:
    scores = [score for label, score in metrics.per_class.items() if label not in new_classes]
    return sum(score.correct for score in scores), sum(score.count for score in scores)


def _sanity(comparison: Comparison) -> list[str]:
    if not math.isfinite(comparison.candidate.loss):
        return [f"the candidate's loss is {comparison.candidate.loss}"]
    if comparison.candidate.count != comparison.base.count:
        return ["the two models were not measured on the same samples"]
    return []


def _accuracy(comparison: Comparison, policy: GatePolicy) -> list[str]:
    before, after, count = _right_of_old(comparison)
    if not count and comparison.new_classes:
        new = comparison.candidate
        if new.count < policy.holdout_min:
            return [f"hold-out too small: {new.count} of {policy.holdout_min} samples"]
        if new.correct < _RIGHT_OF_NEW * new.count:
            return [
                f"is right on {new.correct} of {new.count} hold-out samples, all of new classes, which alone can speak "
                f"for it; needed are {_RIGHT_OF_NEW:.0%}"
            ]
        return []
    if count < policy.holdout_min:
        whose = " of classes that were known" if comparison.new_classes else ""
        return [f"hold-out too small: {count} of {policy.holdout_min} samples{whose}"]
    if (before - after) / count > policy.accuracy_drop_max:
        return [
            f"accuracy falls from {before / count:.1%} to {after / count:.1%} on {count} samples, "
            f"allowed is a drop of {policy.accuracy_drop_max * 100:.1f} pp"
        ]
    risk = largest_plausible_drop(*_changed_of_old(comparison), count, policy.confidence)
    if risk > policy.accuracy_risk_max:
        return [
            f"hold-out too small: with {count} samples a drop of {risk * 100:.1f} pp cannot be ruled out "
            f"(at {policy.confidence:.0%}), allowed is {policy.accuracy_risk_max * 100:.1f} pp"
        ]
    return []


@dataclass(frozen=True, slots=True)
class _Fall:
    """A class that lost more than it may."""

    words: str
    allowed: float  # share of its samples
    is_protected: bool
    chance: float  # of such a fall when nothing has changed


def _falls(comparison: Comparison, policy: GatePolicy) -> Iterator[_Fall]:
    """The classes with enough hold-out samples that lost more than they may."""
    for label, base, candidate in _known_by_both(comparison):
        is_protected, allowed = _bound(label, policy)
        if _is_too_few(label, base, policy) or (base.correct - candidate.correct) / base.count <= allowed:
            continue
        words = f"{_named(label, policy)} falls from {base.correct} to {candidate.correct} of {base.count}"
        yield _Fall(words, allowed, is_protected, chance_of_drop(base.correct, candidate.correct, base.count))


def _known_by_both(comparison: Comparison) -> Iterator[tuple[str, ClassScore, ClassScore]]:
    """The classes of the hold-out that both have outputs for, with how each does on them."""
    for label, base in sorted(comparison.base.per_class.items()):
        candidate = comparison.candidate.per_class.get(label)
        if label not in comparison.new_classes and candidate is not None and base.count:
            yield label, base, candidate


def _named(label: str, policy: GatePolicy) -> str:
    return f"protected class {label!r}" if _bound(label, policy)[0] else f"class {label!r}"


def _per_class(comparison: Comparison, policy: GatePolicy) -> tuple[list[str], list[str]]:
    against = []
    warnings = [
        f"{_named(label, policy)} has {base.count} hold-out samples, too few to judge it"
        for label, base, _ in _known_by_both(comparison)
        if _is_too_few(label, base, policy)
    ]
    for fall in _falls(comparison, policy):
        if fall.is_protected or fall.chance <= 1 - policy.confidence:
            against.append(f"{fall.words}, allowed is a drop of {fall.allowed * 100:g} pp")
        else:
            # Of ten classes with fifteen samples each, one falls by three in most rounds, good or bad.
            warnings.append(f"{fall.words}, which may be chance ({fall.chance:.0%})")
    return against, warnings + _unseen(comparison, policy)


def _is_too_few(label: str, score: ClassScore, policy: GatePolicy) -> bool:
    """To judge a class by; one that somebody has named as protected is judged by what there is."""
    return score.count < policy.class_min and label not in (policy.protected_classes or ())


def _bound(label: str, policy: GatePolicy) -> tuple[bool, float]:
    """Whether a class is protected, and how much accuracy it may lose: of a protected one more than that, by chance or not."""
    is_protected = policy.protected_drop_max is not None and (
        policy.protected_classes is None or label in policy.protected_classes
    )
    if not is_protected or policy.protected_drop_max is None:
        return False, policy.class_drop_max
    return True, min(policy.protected_drop_max, policy.class_drop_max)


def _unseen(comparison: Comparison, policy: GatePolicy) -> list[str]:
    """What cannot be judged: protected classes that somebody named, outputs that never answer, a board without old samples."""
    unseen = [
        label
        for label in policy.protected_classes or ()
        if label not in comparison.base.per_class and label not in comparison.gone_classes
    ]
    told = [f"protected class {label!r} has no hold-out sample: what became of it is unknown" for label in unseen]
    for label in comparison.new_classes:
        score = comparison.candidate.per_class.get(label)
        if score and _is_silent(score):
            told.append(f"has an output for {label!r} that is right on none of its {score.count} hold-out samples")
    if comparison.new_classes and comparison.candidate.count and not _right_of_old(comparison)[2]:
        told.append("no hold-out sample is of a class that was known: only the new ones were judged")
    return told


def _absent(comparison: Comparison, policy: GatePolicy) -> tuple[list[str], list[str]]:
    """Classes that this site does not show: judged where they are to be kept, told in any case."""
    absent = comparison.absent
    if absent is None:
        return [], []
    who = f"of {absent.classes} classes that this site does not show"
    if not absent.count:
        return [], [f"what became {who} is unknown: there are no reference images of them"]
    drop = (absent.base_correct - absent.candidate_correct) / absent.count
    words = (
        f"accuracy on {absent.count} reference images {who} goes from {absent.base_correct / absent.count:.1%} "
        f"to {absent.candidate_correct / absent.count:.1%}"
    )
    if policy.absent_drop_max is not None and drop > policy.absent_drop_max:
        return [f"{words}, allowed is a drop of {policy.absent_drop_max * 100:.1f} pp"], []
    return [], [words] if drop > 0 else []


def _runtime(comparison: Comparison, policy: GatePolicy) -> list[str]:
    against = []
    if _is_slower(comparison, policy):
        undisturbed = comparison.candidate_latency.undisturbed_ratio
        quick = "" if undisturbed is None else f" and {undisturbed:.2f}x undisturbed"
        against.append(
            f"slower on this board: {_latency(comparison)}{quick}, allowed is {policy.latency_ratio_max:.2f}x"
        )
    size = comparison.candidate_cost.onnx_bytes / comparison.base_cost.onnx_bytes
    if size > policy.size_ratio_max:
        against.append(
            f"larger: {comparison.base_cost.onnx_bytes} to {comparison.candidate_cost.onnx_bytes} bytes, "
            f"allowed is {policy.size_ratio_max:.2f}x"
        )
    return against


# Turns differ, most of all on a busy board: in 110 measurements of two equal networks, fifty turns each, the median over turns
# called seven faster by 5 % and two slower by 10 %, and in none were three turns of four slower. So only what these say counts;
# or the median and the undisturbed runs together: beside another process neither called one of 160 such pairs slower by 3 %.
_CLEARLY = 1.05


def _is_slower(comparison: Comparison, policy: GatePolicy) -> bool:
    if comparison.latency_ratio_quartiles[0] > policy.latency_ratio_max:
        return True
    undisturbed = comparison.candidate_latency.undisturbed_ratio
    clearly = _CLEARLY * policy.latency_ratio_max
    return undisturbed is not None and min(undisturbed, comparison.latency_ratio) > clearly


def _is_faster(comparison: Comparison, policy: GatePolicy) -> bool:
    return comparison.latency_ratio < policy.worthwhile_ratio and comparison.latency_ratio_quartiles[1] < 1


def _latency(comparison: Comparison) -> str:
    before_ms, after_ms = comparison.base_latency.median_ms, comparison.candidate_latency.median_ms
    low, high = comparison.latency_ratio_quartiles
    half = "" if low == high else f" (half of the turns {low:.2f} to {high:.2f}x)"
    return f"{before_ms:.2f} ms to {after_ms:.2f} ms, {comparison.latency_ratio:.2f}x in turn{half}"


def _is_silent(score: ClassScore) -> bool:
    """An output that is never right is no gain."""
    return score.count > 0 and not score.correct


def _gains(comparison: Comparison, policy: GatePolicy) -> list[str]:
    gains = []
    base, candidate = comparison.base, comparison.candidate
    if base.count and (candidate.correct - base.correct) / base.count >= policy.accuracy_gain_min:
        gains.append(
            f"accuracy {base.correct / base.count:.1%} to {candidate.correct / base.count:.1%} on {base.count} samples"
        )
    if _is_faster(comparison, policy):
        gains.append(f"latency {_latency(comparison)}")
    before, after = comparison.base_cost, comparison.candidate_cost
    if after.parameters < before.parameters * policy.worthwhile_ratio:
        gains.append(f"parameters {before.parameters} to {after.parameters}")
    by_word = ", never seen here, by the teacher's word"
    for label in comparison.new_classes:
        score = candidate.per_class.get(label)
        if score and _is_silent(score):
            continue
        counts = f", and is right on {score.correct} of its {score.count} hold-out samples" if score else ""
        gains.append(f"knows {label!r}{by_word if label in comparison.unseen_classes else counts}")
    return gains
