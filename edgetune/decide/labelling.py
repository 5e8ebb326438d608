"""
What should a person label next? Answers of the served model -> the samples whose labels would tell it most.

The least certain samples first: a small margin between the two best classes. Among several times as many of them as are
asked for, those that differ most, weighed with the doubt (greedy k-centre over the answers, Gonzalez 1985; for active
learning Sener and Savarese 2018, arXiv 1708.00489, there without the doubt): near-twins have near answers and come last, and
so does what is like a sample labelled lately; of one group at most one sample is asked about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgetune.decide.estimate import probabilities

_DOUBT_MIN = 1e-9  # of an answer with a margin of one
_FIELD = 8  # times as many uncertain samples as are asked for are compared with each other
_COMPARED_MAX = 400  # the latest labelled samples that what is asked next should differ from


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


def next_questions(
    candidates: Sequence[Candidate],
    labelled: Sequence[tuple[float, ...]],
    *,
    count: int,
    sharpness: float = 1.0,
) -> tuple[Question, ...]:
    """
    Choose what to ask about, the most telling first. The same answers give the same questions.

    Args:
        candidates: unlabelled samples with answers.
        labelled: logits of the same version for samples labelled lately, oldest first.
        count: at most so many; fewer when there are fewer groups.
        sharpness: the calibration of the confidences (`decide.estimate`).

    Cost: about 8 x count^2 distances between vectors of classes.
    """
    asked = [(_question(each, sharpness), each) for each in candidates]
    asked.sort(key=lambda pair: (pair[0].margin, pair[0].sample))
    field, groups = [], set()
    for question, candidate in asked:
        if candidate.group not in groups:
            groups.add(candidate.group)
            field.append((question, _place(candidate.logits, sharpness)))
    field = field[: _FIELD * count]
    centres = [_place(logits, sharpness) for logits in labelled[-_COMPARED_MAX:]]
    distances = [min((math.dist(place, centre) for centre in centres), default=math.inf) for _, place in field]
    chosen = []
    for _ in range(min(count, len(field))):
        # The first of equals, which is the least certain of them; where doubts are few, sure answers come last.
        index = max(range(len(field)), key=lambda i: distances[i] * max(_DOUBT_MIN, 1 - field[i][0].margin))
        question, place = field[index]
        chosen.append(question)
        distances = [min(far, math.dist(place, other)) for far, (_, other) in zip(distances, field, strict=True)]
        distances[index] = -math.inf
    return tuple(sorted(chosen, key=lambda question: (question.margin, question.sample)))


def _question(candidate: Candidate, sharpness: float) -> Question:
    shares = probabilities(candidate.logits, sharpness)
    guess, rival = sorted(range(len(shares)), key=lambda i: -shares[i])[:2]
    return Question(
        sample=candidate.sample,
        guess=guess,
        rival=rival,
        confidence=shares[guess],
        margin=shares[guess] - shares[rival],
    )


def _place(logits: Sequence[float], sharpness: float) -> list[float]:
    """Where an answer lies: square roots of the probabilities, whose distance is Hellinger's."""
    return [math.sqrt(share) for share in probabilities(logits, sharpness)]
