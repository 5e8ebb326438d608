"""
What should a person label next? Answers of the served model -> the samples whose labels would tell it most.

Evenly over what the model takes them for: the class that fewest of the labels so far were taken for comes next, and of the
samples taken for it one that is drawn. That shows every class, and every kind of confusion, with few labels. Asking for the
least certain samples, of all or of each guess, was measured to be no better than chance (docs/benchmarks.md, "Few labels"):
fifty doubtful images teach less than fifty that are like what the board sees. Of one group, whose images are near-twins, at
most one sample is asked about.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgetune.decide.estimate import probabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A sample that nobody has labelled, and the served version's answer to it."""

    sample: int
    group: str  # near-twins share it
    logits: tuple[float, ...]  # finite, at least two


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A sample that a person should label."""

    sample: int
    guess: int  # index of the version's best class
    rival: int  # of the second best
    confidence: float  # probability of the guess, calibrated
    margin: float  # between the two, calibrated
    alike: int  # samples in the queue with the same guess, this one too
    labelled: int  # labels so far of samples with that guess, with those asked for before this one


def next_questions(
    candidates: Sequence[Candidate],
    labelled: Sequence[tuple[float, ...]],
    *,
    count: int,
    sharpness: float = 1.0,
) -> tuple[Question, ...]:
    """
    Choose what to ask about, the guess of which fewest labels are known first. The same answers give the same questions.

    Args:
        candidates: unlabelled samples with answers.
        labelled: logits of the same version for samples labelled lately.
        count: at most so many; fewer when there are fewer groups.
        sharpness: the calibration of the confidences (`decide.estimate`).
    """
    asked = [(_question(each, sharpness), each.group) for each in candidates]
    asked.sort(key=lambda pair: (_drawn(pair[0].sample), pair[0].sample))
    groups: set[str] = set()
    waiting: dict[int, deque[Question]] = defaultdict(deque)  # by guess
    for question, group in asked:
        if group not in groups:
            groups.add(group)
            waiting[question.guess].append(question)
    known = Counter(max(range(len(logits)), key=logits.__getitem__) for logits in labelled)
    chosen: list[Question] = []
    while len(chosen) < count and waiting:
        # Of guesses that are equally little known the commoner one, which stands for more images.
        guess = min(waiting, key=lambda each: (known[each], -len(waiting[each]), each))
        alike = len(waiting[guess])
        chosen.append(replace(waiting[guess].popleft(), alike=alike, labelled=known[guess]))
        known[guess] += 1
        if not waiting[guess]:
            del waiting[guess]
    return tuple(chosen)


def _drawn(sample: int) -> int:
    """A place in an order that has nothing to do with the order in which samples came (multiplicative hashing, Knuth)."""
    return sample * 2_654_435_761 % 2**32


def _question(candidate: Candidate, sharpness: float) -> Question:
    shares = probabilities(candidate.logits, sharpness)
    guess, rival = sorted(range(len(shares)), key=lambda i: -shares[i])[:2]
    return Question(
        sample=candidate.sample,
        guess=guess,
        rival=rival,
        confidence=shares[guess],
        margin=shares[guess] - shares[rival],
        alike=0,
        labelled=0,
    )
